"""Probes and checkpoints: what is scored, and under which weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ldeval.records.kinds import Split, split_name

Message = Mapping[str, str]


@dataclass(frozen=True)
class Response:
    """One response of a probe."""

    kind: str
    """One of ``KIND_NAMES``."""
    text: str
    """The response as text; never empty."""
    source: str | None = None
    """Where the text came from: the id of the probe whose text it is or is made of,
    or a free description (``written``, ``sampled``)."""


@dataclass(frozen=True)
class Probe:
    """One prompt with its chosen response and controlled variations of it."""

    probe_id: str
    """Unique in its set."""
    prompt: str | tuple[Message, ...]
    """Text, or chat messages (``role``, ``content``)."""
    responses: Mapping[str, Response]
    """By kind, in the order of ``KINDS``; ``chosen`` is always there."""
    trained: bool
    """Whether the model is trained on this prompt in the run that is probed."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Anything else the user keeps; ``sources`` and ``initial_model`` are read."""

    @property
    def split(self) -> Split:
        """``trained`` or ``heldout``."""
        return split_name(self.trained)


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of a model in a training run."""

    path: str
    """Folder of the weights, or of the adapter."""
    step: int
    """Optimizer step; 0 is the model before training."""
    layout: Literal["full", "adapter"] = "full"
    """Full weights, or a LoRA adapter upon ``base``."""
    base: str | None = None
    """Folder of the base weights, for an adapter."""
    staged: str | None = None
    """Where its files are read, when that is not ``path``: a trainer may delete the
    checkpoint while it is scored."""

    @property
    def folder(self) -> str:
        """Where to read its files."""
        return self.staged or self.path
