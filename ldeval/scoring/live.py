"""Score a model where it stands, in the middle of its training, and leave no trace.

Apart from :mod:`models`, which opens checkpoints: here the model is somebody else's.
Nothing that its trainer goes on with may differ afterwards: weights, buffers, modes of
every module, settings of its configuration, random states. What is scored is what a
checkpoint saved now would hold, in the precision of its weights, and its hash is the
hash of that checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from safetensors import safe_open

from ldeval.checkpoints import tensor_header
from ldeval.errors import ScoringError, UnsupportedBackendError
from ldeval.scoring import packed

DTYPE_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""What torch and safetensors call a type."""


class LiveModel(HFLM):  # type: ignore[misc]  # lm_eval is untyped
    """The harness's transformers model around one that is in training.

    The harness's own constructor takes a model too, but it leaves evaluation mode on,
    ties weights again and may give the tokenizer a padding token.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        mixed_precision_dtype: torch.dtype | None = None,
    ) -> None:
        LM.__init__(self)
        self._model = model
        self._device = next(model.parameters()).device
        self._config = model.config
        self._max_length = None
        self.backend = "causal"
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.custom_prefix_token_id = None
        self.add_bos_token = None
        self.chat_template_args: dict[str, Any] = {}
        self.enable_thinking = None
        self.softmax_dtype = None
        self.mixed_precision_dtype = mixed_precision_dtype
        self.batch_size_per_gpu = 1
        self.truncation = False


def check_live(model: torch.nn.Module) -> None:
    """Refuse models that one process cannot compute by itself.

    Raises:
        UnsupportedBackendError: naming what holds its weights elsewhere.
    """
    place = _elsewhere(model)
    if place is not None:
        raise UnsupportedBackendError(
            f"the model's weights are {place}, so that no process can score it alone "
            "while it trains. Save checkpoints with full weights and score them with "
            "'ldeval sweep --watch'."
        )
    if not _is_causal(model):
        raise UnsupportedBackendError(
            f"{type(model).__name__} is not a causal language model of transformers, "
            "and only such a one can be scored in place."
        )


def _is_causal(model: Any) -> bool:
    """Whether it gives every position's next token: a reward model has no head that
    does."""
    config = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        return False
    head = getattr(model, "get_output_embeddings", lambda: None)
    return head() is not None


def _elsewhere(model: torch.nn.Module) -> str | None:
    if packed.sharded(model):
        return "sharded over processes by FSDP"
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id"):
            return "partitioned over processes by DeepSpeed ZeRO-3"
        if type(parameter).__name__ == "DTensor" or hasattr(parameter, "_local_tensor"):
            return "distributed over processes (DTensor)"
        if parameter.device.type == "meta":
            return "offloaded from this process"
    return None


def unwrapped(model: Any) -> Any:
    """The model inside what data parallelism and compilation put around it."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(
            model,
            (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel),
        ):
            model = model.module
        else:
            return model


# ---------------------------------------------------------------------------- no trace


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Let a model be scored, then leave it, and everything random, as it was.

    Raises:
        ScoringError: when a weight or a buffer was written to: training would go on
            from something else.
    """
    modes = [(module, module.training) for module in model.modules()]
    checkpointing = list(_attributes(model.modules(), "gradient_checkpointing"))
    configs = list(_configs(model))
    settings = [
        *_attributes(configs, "use_cache"),
        *_attributes(configs, "_attn_implementation"),
    ]
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    held = dict(_versions(model))
    try:
        with random_states(model), _own_forward(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for owner, name, value in (*checkpointing, *settings):
            if getattr(owner, name) != value:
                setattr(owner, name, value)
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
    written = [name for name, version in _versions(model) if held.get(name) != version]
    if written:
        raise ScoringError(
            f"scoring wrote to {written[0]!r} of the model in training, so that "
            "training would go on from something else. Leave this model to 'ldeval "
            "sweep --watch'."
        )


@contextlib.contextmanager
def random_states(model: torch.nn.Module) -> Iterator[None]:
    """Python's, numpy's and torch's random states, put back at the end."""
    python, numpy_state = random.getstate(), np.random.get_state()
    device = next(model.parameters()).device
    # torch forks the states of devices that can be told apart
    apart = device.type not in ("cpu", "meta", "mps")
    devices, kind = ([device], device.type) if apart else ([], "cuda")
    try:
        with torch.random.fork_rng(devices=devices, device_type=kind):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)


@contextlib.contextmanager
def _own_forward(model: Any) -> Iterator[None]:
    """The model's forward pass without the autocast that mixed-precision training
    wraps it in: a checkpoint is scored in the precision of its weights."""
    original = model.__dict__.get("_original_forward")
    if original is None:
        yield
        return
    wrapped = model.__dict__.get("forward")
    model.forward = original
    try:
        yield
    finally:
        if wrapped is None:
            del model.forward
        else:
            model.forward = wrapped


def _configs(model: torch.nn.Module) -> Iterator[Any]:
    seen: set[int] = set()
    for module in model.modules():
        for name in ("config", "generation_config"):
            config = getattr(module, name, None)
            if config is not None and id(config) not in seen:
                seen.add(id(config))
                yield config


def _attributes(owners: Iterable[Any], name: str) -> Iterator[tuple[Any, str, Any]]:
    for owner in owners:
        if name in getattr(owner, "__dict__", {}):
            yield owner, name, owner.__dict__[name]


def _versions(model: torch.nn.Module) -> Iterator[tuple[str, int]]:
    """How often each weight and buffer was written to; torch counts."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_inference():
            yield name, tensor._version


# ------------------------------------------------------------------------ its own hash


@dataclass(frozen=True)
class LiveWeights:
    """What a checkpoint saved now would hold."""

    digest: str
    """As :func:`ldeval.checkpoints.weights_hash` of that checkpoint."""
    dtype: str | None
    """The type that most bytes have; None where that is not known."""


def live_weights(model: Any) -> LiveWeights:
    """Hash the weights that ``save_pretrained`` would write: those of the adapter,
    where one is trained, otherwise all of them."""
    state = _saved_state(model)
    digest = hashlib.sha256()
    sizes: dict[str, int] = {}
    for name in sorted(state):
        tensor = state[name].detach()
        name_of_type = str(tensor.dtype).removeprefix("torch.")
        dtype = DTYPE_NAMES.get(name_of_type, name_of_type)
        digest.update(tensor_header(name, dtype, tuple(tensor.shape)))
        # one tensor at a time: no copy of the model is made
        flat = tensor.contiguous().cpu().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
        sizes[dtype] = sizes.get(dtype, 0) + flat.numel() * flat.element_size()
    return LiveWeights(digest.hexdigest(), max(sizes, key=lambda name: sizes[name]))


def memory_dtype(model: Any) -> str:
    """The type that most bytes of a model's floating-point weights have in memory, as
    torch calls it, e.g. ``float32``; of an adapter that of its base."""
    if getattr(model, "peft_config", None):
        model = model.get_base_model()
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            size = parameter.numel() * parameter.element_size()
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + size
    most = max(sizes, key=lambda dtype: sizes[dtype])
    return str(most).removeprefix("torch.")


def holds_weights_of(model: Any, files: Iterable[Path]) -> bool:
    """Whether a model holds what its files do, in whatever type it was loaded.

    Args:
        files: safetensors.
    """
    state = _saved_state(model)
    left = set(state)
    for path in files:
        with safe_open(str(path), framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118  # no mapping
                mine = state.get(name)
                if mine is None:
                    return False
                stored = handle.get_tensor(name).to(mine.device, mine.dtype)
                if not torch.equal(stored, mine.detach()):
                    return False
                left.discard(name)
    return not left


def is_untrained_adapter(model: Any) -> bool:
    """Whether a LoRA adapter still adds nothing, as it begins: the factors that begin
    as zeros are zero. Other adapters, and other beginnings, are not told."""
    return _adds_something(model) is False


def is_trained_adapter(model: Any) -> bool:
    """Whether a LoRA adapter that began by adding nothing adds something by now. Other
    adapters, and other beginnings, are not told."""
    if not _adds_something(model):
        return False
    config = model.peft_config[model.active_adapter]
    return getattr(config, "init_lora_weights", None) in (True, "gaussian")


def _adds_something(model: Any) -> bool | None:
    """None where there is no LoRA adapter. A factor of an embedding that begins as
    zeros is its first, of any other layer its second."""
    if not getattr(model, "peft_config", None):
        return None
    factors = [
        parameter
        for name, parameter in model.named_parameters()
        if "lora_B" in name or "lora_embedding_A" in name
    ]
    return any(bool(factor.any()) for factor in factors) if factors else None


def _saved_state(model: Any) -> dict[str, torch.Tensor]:
    if getattr(model, "peft_config", None):
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(model, adapter_name=model.active_adapter)
        return dict(state)
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }
    for name in _tied(model, state):
        del state[name]
    return _as_named_on_disk(model, state)


def _as_named_on_disk(
    model: Any, state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Since its version 5 transformers names and splits some weights in memory in
    another way than in the files that it writes."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return state
    return dict(revert_weight_conversion(model, state))


def _tied(model: Any, state: dict[str, torch.Tensor]) -> list[str]:
    """Names under which a weight is found a second time, and which are not saved."""
    ties = getattr(model, "all_tied_weights_keys", None)
    if ties is None:
        ties = getattr(model, "_tied_weights_keys", None) or ()
    declared = set(ties)
    places: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in state.items():
        if tensor.numel():
            storage = tensor.untyped_storage()
            place = (tensor.device, storage.data_ptr(), tensor.storage_offset())
            places.setdefault((*place, tuple(tensor.shape)), []).append(name)
    copies = []
    for names in places.values():
        spare = [name for name in sorted(names) if name in declared] or sorted(names)
        copies += spare[: len(names) - 1]
    return copies
