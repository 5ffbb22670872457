"""What is asked of a sweep, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldeval.checkpoints import (
    BrokenCheckpoint,
)
from ldeval.probes import ProbeSet
from ldeval.records import (
    TOP_K,
    Span,
)

SIZING_ARGUMENTS = frozenset(
    {
        "batch_size",
        "block_size",
        "device",
        "enforce_eager",
        "gpu_memory_utilization",
        "max_batch_size",
        "max_num_batched_tokens",
        "max_num_seqs",
        "parallelize",
        "pipeline_parallel_size",
        "tensor_parallel_size",
    }
)
"""Model arguments that say how much is done at once, not what is computed: a sweep may
go on with others. Every other one must stay as it was."""


@dataclass(frozen=True)
class SweepSettings:
    """What is the same for every checkpoint of a sweep."""

    probes: ProbeSet
    store: Path
    run: str
    model: str = "hf"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    serve: bool = False
    """Let a ``vllm serve`` of the run's own compute (model ``vllm``)."""
    span: Span = "trl"
    apply_chat_template: bool = False
    system_instruction: str | None = None
    initial_model: str | None = None
    """Folder of the model that the run descends from, when it is not the first
    checkpoint: ``initial`` responses sampled from another model are excluded."""
    base: str | None = None
    """Scored as step 0; lends its tokenizer to checkpoints saved without one."""
    top_k: int = TOP_K
    progress: bool = True
    greedy: int = 0
    """Tokens that each checkpoint takes by itself after every prompt, at most; 0: no
    greedy decodes are kept."""
    noise: bool = True
    """Measure the noise floor; a shard leaves that to the whole sweep."""
    objectives: tuple[str, ...] = ()
    """What each stage was trained with (``sft``, ``dpo`` …), where it is declared; it
    decides whether a stage can have pushed responses down on purpose."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep did."""

    scored: tuple[int, ...]
    """Steps scored now."""
    kept: tuple[int, ...]
    """Steps that were finished before."""
    broken: tuple[BrokenCheckpoint, ...]
    """Checkpoints that could not be scored."""
