"""Open the harness's models for the checkpoints of a run, one after the other.

Most model types are started anew for each checkpoint. vLLM takes about a minute to
start, so one engine serves the whole run: weights are swapped in place, and after every
swap a few responses are compared with an independent computation of that checkpoint.
"""

from __future__ import annotations

import gc
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ldeval.checkpoints import has_tokenizer
from ldeval.errors import (
    CheckpointError,
    LdevalError,
    MissingExtraError,
    UnsupportedBackendError,
)
from ldeval.records import Checkpoint

log = logging.getLogger(__name__)

WORKER_EXTENSION = "ldeval.scoring.vllm_worker.WeightSwap"


class ModelSource(Protocol):
    """Gives a harness model that computes with a checkpoint's weights."""

    def open(self, checkpoint: Checkpoint) -> Any:
        """A harness model for this checkpoint; closes the one before."""

    def restart(self, checkpoint: Checkpoint) -> Any:
        """The same, but started anew from the checkpoint's own files."""

    @property
    def swapped(self) -> bool:
        """Whether the last :meth:`open` changed weights in a live engine, so that the
        result must be checked against an independent computation."""

    def close(self) -> None:
        """Free the model."""


def model_source(
    model: str, model_args: Mapping[str, Any], *, base: str | None
) -> ModelSource:
    """The way to open checkpoints for a harness model type.

    Args:
        model: as in ``lm_eval --model``.
        model_args: as in ``--model_args``, without ``pretrained``.
        base: folder that lends its tokenizer to checkpoints saved without one.

    Raises:
        CheckpointError: when ``model_args`` names a checkpoint itself.
    """
    for name in ("pretrained", "peft", "lora_local_path"):
        if name in model_args:
            raise CheckpointError(
                f"--model_args holds {name}={model_args[name]}, but the sweep chooses "
                "the checkpoint. Leave it out; give the base model with --base."
            )
    if model == "vllm":
        return VllmEngine(model_args, base=base)
    return RestartedModels(model, model_args, base=base)


def _class(model: str) -> Any:
    from lm_eval.api.registry import get_model

    try:
        return get_model(model)
    except ImportError as error:
        raise MissingExtraError(error.name or model, _extra(model)) from error
    except (KeyError, ValueError) as error:
        raise UnsupportedBackendError(
            f"--model {model}: lm_eval knows no such model type ({error})"
        ) from error


def _extra(model: str) -> str:
    return "vllm" if model == "vllm" else "hf"


class RestartedModels:
    """A new model for each checkpoint."""

    swapped = False

    def __init__(
        self, model: str, model_args: Mapping[str, Any], *, base: str | None
    ) -> None:
        self._model = model
        self._args = dict(model_args)
        self._base = base
        self._lm: Any = None

    def open(self, checkpoint: Checkpoint) -> Any:
        """Load a checkpoint; an adapter upon its base."""
        self.close()
        arguments = dict(self._args)
        if checkpoint.layout == "adapter":
            base = checkpoint.base or self._base
            if base is None:
                raise CheckpointError(
                    f"{checkpoint.path}: an adapter that does not say upon which base. "
                    "Give it with --base."
                )
            arguments.update(pretrained=base, peft=checkpoint.folder)
        else:
            arguments["pretrained"] = checkpoint.folder
        _lend_tokenizer(arguments, checkpoint, self._base)
        self._lm = _start(self._model, arguments, checkpoint)
        return self._lm

    restart = open

    def close(self) -> None:
        """Free the model's memory."""
        self._lm = None
        gc.collect()


def _lend_tokenizer(
    arguments: dict[str, Any], checkpoint: Checkpoint, base: str | None
) -> None:
    if base is not None and not has_tokenizer(checkpoint.folder):
        arguments.setdefault("tokenizer", base)


def _start(model: str, arguments: dict[str, Any], checkpoint: Checkpoint) -> Any:
    """Build the model; a checkpoint that its library cannot load is a broken one."""
    cls = _class(model)
    if "device" in inspect.signature(cls.__init__).parameters:
        arguments.setdefault("device", _device())
    try:
        return cls.create_from_arg_obj(arguments)
    except LdevalError:
        raise
    except ImportError as error:
        raise MissingExtraError(error.name or model, _extra(model)) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{checkpoint.path}: cannot be loaded: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error


def _device() -> str:
    """Where to compute when the user does not say; HFLM alone would insist on CUDA."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type


class VllmEngine:
    """One vLLM engine for all checkpoints, their weights swapped in place.

    The engine starts with tied embeddings taken apart (vLLM's own reload leaves the
    output layer at the old matrix), so it answers wrongly until the first swap: every
    checkpoint is swapped in, the first one too.
    """

    swapped = True

    def __init__(self, model_args: Mapping[str, Any], *, base: str | None) -> None:
        self._args = dict(model_args)
        self._base = base
        self._lm: Any = None
        self._tied = False

    def open(self, checkpoint: Checkpoint) -> Any:
        """Start the engine at the first checkpoint; swap the weights at each."""
        if checkpoint.layout == "adapter":
            raise CheckpointError(
                f"{checkpoint.path}: an adapter, which the vLLM sweep does not take "
                "yet. Score this run with --model hf, or merge the adapter."
            )
        if self._lm is None or not self.swapped:
            self.close()
            self._lm = self._start(checkpoint, swappable=True)
        folder = str(Path(checkpoint.folder).resolve())
        try:
            loaded = self._lm.model.collective_rpc(
                "ldeval_swap", args=(folder, self._tied)
            )
        except Exception as error:  # what a worker raises arrives so
            self.close()  # its weights are half of one checkpoint, half of another
            raise CheckpointError(
                f"{checkpoint.path}: cannot be swapped into the engine ({error})"
            ) from error
        self._lm.model.reset_prefix_cache()
        log.info("swapped in %s: %s tensors", checkpoint.path, loaded[0])
        self.swapped = True
        return self._lm

    def restart(self, checkpoint: Checkpoint) -> Any:
        """A plain engine, started from this checkpoint's files; no swap."""
        self.close()
        self._lm = self._start(checkpoint, swappable=False)
        self.swapped = False
        return self._lm

    def _start(self, checkpoint: Checkpoint, *, swappable: bool) -> Any:
        arguments = {**self._args, "pretrained": checkpoint.folder}
        _lend_tokenizer(arguments, checkpoint, self._base)
        if swappable:
            self._tied = ties_embeddings(checkpoint.folder)
            arguments["worker_extension_cls"] = WORKER_EXTENSION
            if self._tied:
                overrides = dict(arguments.get("hf_overrides") or {})
                overrides["tie_word_embeddings"] = False
                arguments["hf_overrides"] = overrides
        return _start("vllm", arguments, checkpoint)

    def close(self) -> None:
        """Shut the engine down."""
        if self._lm is not None:
            engine = self._lm.model
            self._lm = None
            shutdown = getattr(engine.llm_engine.engine_core, "shutdown", None)
            if callable(shutdown):
                shutdown()
            del engine
        gc.collect()


def ties_embeddings(folder: str | Path) -> bool:
    """Whether a checkpoint's output layer is its input embedding."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: its config.json cannot be read ({error})"
        ) from error
    return bool(config.get_text_config().tie_word_embeddings)
