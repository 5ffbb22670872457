"""Open the harness's models for the checkpoints of a run, one after the other.

Most model types are started anew for each checkpoint. vLLM takes long to start, so that
one engine serves a whole run (:mod:`vllm_engine`).
"""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ldeval.checkpoints import base_of, has_tokenizer
from ldeval.errors import (
    CheckpointError,
    LdevalError,
    MissingExtraError,
    UnsupportedBackendError,
)
from ldeval.records import Checkpoint


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
    if model.endswith("-completions"):
        return "api"
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
            base = base_of(checkpoint, self._base)
            arguments.update(pretrained=base, peft=checkpoint.folder)
        else:
            arguments["pretrained"] = checkpoint.folder
        lend_tokenizer(arguments, checkpoint, self._base)
        self._lm = start_model(self._model, arguments, checkpoint)
        return self._lm

    restart = open

    def close(self) -> None:
        """Free the model's memory."""
        self._lm = None
        gc.collect()


def lend_tokenizer(
    arguments: dict[str, Any], checkpoint: Checkpoint, base: str | None
) -> None:
    """Name the base's tokenizer for a checkpoint that was saved without one."""
    if base is not None and not has_tokenizer(checkpoint.folder):
        arguments.setdefault("tokenizer", base)


def start_model(model: str, arguments: dict[str, Any], checkpoint: Checkpoint) -> Any:
    """Build the model.

    Raises:
        CheckpointError: its library cannot load the checkpoint.
        UnsupportedBackendError: nothing takes an argument of this name, or its value.
        MissingExtraError: a package is absent.
    """
    cls = _class(model)
    if "device" in inspect.signature(cls.__init__).parameters:
        arguments.setdefault("device", _device())
    try:
        with loading(checkpoint.path):
            return cls.create_from_arg_obj(arguments)
    except ImportError as error:
        raise MissingExtraError(error.name or model, _extra(model)) from error
    except (TypeError, AttributeError) as error:
        # a name that nothing takes, or a dtype that torch does not have
        raise UnsupportedBackendError(
            f"--model {model} cannot be started with its arguments "
            f"({', '.join(arguments)}): {error}. Is each spelled as lm_eval and the "
            "model's library take it?"
        ) from error


def open_tokenizer(place: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder.

    Raises:
        CheckpointError: when transformers cannot load it.
    """
    from transformers import AutoTokenizer

    with loading(place):
        return AutoTokenizer.from_pretrained(
            str(place), trust_remote_code=trust_remote_code
        )


def open_config(place: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model's folder.

    Raises:
        CheckpointError: when transformers cannot read it.
    """
    from transformers import AutoConfig

    with loading(place):
        return AutoConfig.from_pretrained(
            str(place), trust_remote_code=trust_remote_code
        )


def trusts_code(model_args: Mapping[str, Any]) -> bool:
    """Whether the user asked for the code that comes with a checkpoint to be run.

    Said at every call, False too: where it is left out, transformers asks the terminal,
    and takes what is piped into the command for the answer.
    """
    return bool(model_args.get("trust_remote_code", False))


@contextlib.contextmanager
def loading(place: str | Path) -> Iterator[None]:
    """Name what a library could not load."""
    try:
        yield
    except LdevalError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{place}: cannot be loaded: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error


def _device() -> str:
    """Where to compute when the user does not say; HFLM alone would insist on CUDA."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type
