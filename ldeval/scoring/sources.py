"""Which way the checkpoints of a run are opened: by the model type, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ldeval.errors import (
    CheckpointError,
    MissingExtraError,
    UnsupportedBackendError,
)
from ldeval.records import Checkpoint
from ldeval.scoring.models import ModelSource, RestartedModels
from ldeval.scoring.vllm_engine import VllmEngine


def model_source(
    model: str,
    model_args: Mapping[str, Any],
    *,
    base: str | None,
    checkpoints: Sequence[Checkpoint] = (),
    serve: bool = False,
) -> ModelSource:
    """The way to open checkpoints for a harness model type.

    Args:
        model: as in ``lm_eval --model``.
        model_args: as in ``--model_args``, without ``pretrained``.
        base: folder that lends its tokenizer to checkpoints saved without one.
        checkpoints: those to come, as far as they are known.
        serve: let a ``vllm serve`` of its own compute, instead of this process.

    Raises:
        CheckpointError: when ``model_args`` names a checkpoint itself.
    """
    for name in ("pretrained", "peft", "lora_local_path"):
        if name in model_args:
            raise CheckpointError(
                f"--model_args holds {name}={model_args[name]}, but the sweep chooses "
                "the checkpoint. Leave it out; give the base model with --base."
            )
    if serve and model != "vllm":
        raise UnsupportedBackendError(
            f"--serve starts vLLM's server, and --model is {model}. Leave --model out."
        )
    if model == "vllm":
        adapters = [c for c in checkpoints if c.layout == "adapter"]
        engine = _served_class() if serve else VllmEngine
        return engine(model_args, base=base, adapters=adapters)
    return RestartedModels(model, model_args, base=base)


def _served_class() -> type[VllmEngine]:
    try:
        from ldeval.scoring.server import ServedVllm
    except ImportError as error:
        raise MissingExtraError(error.name or "requests", "api") from error
    return ServedVllm
