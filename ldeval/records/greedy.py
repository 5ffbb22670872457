"""What checkpoints say when they always take their most probable token.

The responses of probes are given; a greedy decode is the model's own. It shows whether
what happens to given responses reaches generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldeval.records.estimate import Estimate
from ldeval.records.kinds import Split
from ldeval.records.measures import Truth
from ldeval.records.scores import Excluded, FloatArray, IntArray

DECODES_VERSION = 1
"""Version of the stored decodes; readers refuse any other."""


@dataclass(frozen=True)
class GreedyDecode:
    """One prompt continued by one checkpoint."""

    probe_id: str
    trained: bool
    """Whether the prompt is trained on."""
    ids: IntArray
    """[n] int32, the tokens taken, the end token among them where it came."""
    logprobs: FloatArray
    """[n] float32, ln p of each under this checkpoint, nats."""
    text: str
    """The tokens as text, without special tokens."""
    ended: bool
    """Whether it ended by itself; otherwise it was cut off at the longest length."""
    reference_logprobs: FloatArray
    """[m] float32, ln p under this checkpoint of the tokens that the run's *first*
    checkpoint takes, nats."""


@dataclass(frozen=True)
class GreedyDecodes:
    """The greedy decodes of one checkpoint."""

    step: int
    weights_hash: str
    probe_set_hash: str
    reference_step: int
    """The step whose decodes ``reference_logprobs`` are of."""
    max_tokens: int
    """Longest decode."""
    backend: str
    dtype: str
    decodes: tuple[GreedyDecode, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How the prompts were asked: model type, template, system instruction."""
    excluded: tuple[Excluded, ...] = ()
    """Prompts that were not continued, and why."""
    off_argmax: int = 0
    """Tokens that another pass over the same text does not find most probable: ties,
    within the arithmetic of the engine."""


@dataclass(frozen=True)
class GreedyStep:
    """One checkpoint's greedy decodes beside the first checkpoint's, for one split.

    Intervals are 95%, over prompts.
    """

    step: int
    split: Split
    n: int
    """Prompts decoded by both."""
    reference_sum: Estimate
    """Mean Δ ln π(g_ref | x) of the first checkpoint's decode, nats/response."""
    reference_tok: Estimate
    """The same by token, ΣΔ / Σn, nats/token."""
    own_tok: Estimate
    """ln π per token of the checkpoint's own decode less that of the first's own under
    the first: how much surer of itself it is, nats/token."""
    length: Estimate
    """Change of the mean length, tokens."""
    repeated: Estimate
    """Change of the share of repeated 4-grams in a decode."""
    same: int
    """Prompts whose decode is the first checkpoint's, token by token."""
    shared: float
    """Mean share of the first's decode that the two have in common at their start."""
    ended: int
    """Decodes that ended by themselves."""


@dataclass(frozen=True)
class GreedyMove:
    """One prompt: what the first and the last checkpoint say."""

    probe_id: str
    split: Split
    delta_sum: float
    """Δ ln π of the first's decode, nats."""
    before: str
    after: str


@dataclass(frozen=True)
class GreedyPath:
    """Does what happens to given responses reach generation?"""

    reference_step: int
    max_tokens: int
    steps: tuple[GreedyStep, ...]
    surer: Mapping[Split, Truth]
    """Whether the last checkpoint's own decodes are more probable to it than the
    first's were to the first: mass went to what it says."""
    left: Mapping[Split, Truth]
    """Whether the first's decodes fell: it no longer says what it said."""
    moves: tuple[GreedyMove, ...]
    """Every prompt, first to last, those that fell most first."""
    excluded: tuple[Excluded, ...] = ()
    notes: tuple[str, ...] = ()
