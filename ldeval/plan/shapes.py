"""What a model's forward pass costs: its shape, and floating-point operations from it.

A checkpoint at hand is counted, tensor by tensor, from its safetensors headers; of a
configuration alone, transformers builds the model without memory for its tensors; a
bare number of parameters gets proportions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldeval.checkpoints import stored_dtype, tensor_shapes
from ldeval.errors import CheckpointError
from ldeval.files import lenient_json
from ldeval.records import Flops, ModelShape, ScoringWork
from ldeval.scoring.models import loading, open_config

DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
}
HYPOTHETICAL_BYTES = 2
"""Of a parameter of a model that is not at hand and says nothing: bfloat16."""

ASPECT = 102.4
"""Width over layers of a made-up model, and …"""
LAYER_PARAMETERS = 12.75
"""… parameters of a layer over the square of the width: both as in Llama 3 70B (80
layers of width 8,192, feed-forward 28,672, 8 of 64 heads for keys and values)."""
FEED_FORWARD = 3.5
"""Feed-forward over model width, as there."""

_LOOKED_UP = ("embed", "wte", "wpe")
"""In names of tensors that are looked up, not multiplied with."""
_OUTPUT = ("lm_head", "embed_out")


def shape_of_checkpoint(folder: str | Path, computed: str | None = None) -> ModelShape:
    """A model on disk, counted from the headers of its weights.

    Args:
        computed: dtype that it is computed in, ``float32`` say; None or ``auto``: the
            one that it is stored in.

    Raises:
        CheckpointError: where there are no weights or no configuration.
    """
    config = _config(Path(folder) / "config.json")
    shapes = tensor_shapes(folder)
    if not shapes:
        raise CheckpointError(
            f"{folder}: no *.safetensors in it to count. Give a checkpoint with "
            "--base, or a configuration with --plan-config."
        )
    stored = DTYPE_BYTES.get(stored_dtype(folder) or "", HYPOTHETICAL_BYTES)
    return _shape(str(folder), "tensors", config, shapes, stored, computed)


def shape_of_config(path: str | Path, computed: str | None = None) -> ModelShape:
    """A model of which there is only a transformers ``config.json``.

    Raises:
        CheckpointError: where it cannot be read, lacks a size, or is of a model type
            that transformers does not know.
    """
    config = _config(Path(path))
    named = str(config.get("dtype") or config.get("torch_dtype") or "")
    stored = DTYPE_BYTES.get(named, HYPOTHETICAL_BYTES)
    for names in (_HIDDEN, _LAYERS, _VOCABULARY):
        _needed(config, path, *names)  # transformers has a default for each
    shapes = _shapes_of_empty(path)
    return _shape(str(path), "config", config, shapes, stored, computed)


def _shapes_of_empty(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Of every tensor of the model that a configuration is of, by name."""
    import torch
    from transformers import AutoModelForCausalLM

    config = open_config(path).get_text_config()
    with loading(path), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {name: tuple(found.shape) for name, found in model.named_parameters()}


def shape_of_size(
    parameters: float, vocabulary: int, computed: str | None = None
) -> ModelShape:
    """A made-up dense model with so many parameters, in the proportions of Llama 3 70B.

    Args:
        vocabulary: V; tokens are counted with a tokenizer at hand, so this is its.
    """
    # parameters = LAYER_PARAMETERS · h³ / ASPECT + 2 V h, solved by Newton's method
    hidden = (parameters * ASPECT / LAYER_PARAMETERS) ** (1 / 3)
    for _ in range(50):
        value = LAYER_PARAMETERS * hidden**3 / ASPECT + 2 * vocabulary * hidden
        slope = 3 * LAYER_PARAMETERS * hidden**2 / ASPECT + 2 * vocabulary
        hidden -= (value - parameters) / slope
    matrices = parameters - 2 * vocabulary * hidden
    width = max(1, round(hidden))
    layers = max(1, round(hidden / ASPECT))
    memory = DTYPE_BYTES.get(computed or "", HYPOTHETICAL_BYTES)
    return ModelShape(
        name="a dense model",
        origin="proportions",
        parameters=parameters,
        matrix_parameters=matrices,
        layers=layers,
        hidden=width,
        heads_width=width,
        intermediate=round(FEED_FORWARD * width),
        vocabulary=vocabulary,
        stored_bytes=HYPOTHETICAL_BYTES,
        memory_bytes=memory,
    )


def flops_of(shape: ModelShape, work: ScoringWork) -> Flops:
    """Operations of scoring one checkpoint. Norms, activations, softmax and the stored
    statistics are left out: they are few, and none is a product of matrices."""
    return Flops(
        matrices=2.0 * shape.matrix_parameters * work.computed,
        attention=4.0 * shape.layers * shape.heads_width * work.pairs,
        output=2.0 * shape.hidden * shape.vocabulary * work.asked,
    )


# --------------------------------------------------------------------- configurations

_HIDDEN = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_VOCABULARY = ("vocab_size",)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
"""Experts that there are in a layer, and that a token goes through."""
_HEADS = ("num_attention_heads", "n_head", "num_heads")


def _config(path: Path) -> Mapping[str, Any]:
    """A transformers configuration; of several models in one, the text's."""
    try:
        record = lenient_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as a model's configuration ({error}). Give the "
            "config.json of a transformers model."
        ) from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: holds {type(record).__name__}, not an object.")
    text = record.get("text_config")
    return {**record, **text} if isinstance(text, dict) else record


def _shape(
    name: str,
    origin: Any,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    stored: float,
    computed: str | None,
) -> ModelShape:
    hidden = _needed(config, name, *_HIDDEN)
    heads = _number(config, *_HEADS)
    layers = _needed(config, name, *_LAYERS)
    total, matrices = _parameters(shapes, _experts_share(config))
    return ModelShape(
        name=name,
        origin=origin,
        parameters=total,
        matrix_parameters=matrices,
        layers=layers,
        hidden=hidden,
        heads_width=heads * _head_width(config, hidden, heads),
        intermediate=_intermediate(config, hidden),
        vocabulary=_needed(config, name, *_VOCABULARY),
        stored_bytes=stored,
        memory_bytes=DTYPE_BYTES.get(computed or "", stored),
    )


def _parameters(
    shapes: Mapping[str, tuple[int, ...]], experts: float
) -> tuple[float, float]:
    """All parameters, and those in matrices of the layers that a token goes through.

    Args:
        experts: share of the experts that it goes through.
    """
    total = matrices = 0.0
    for name, shape in shapes.items():
        size = math.prod(shape)
        total += size
        if len(shape) > 1 and not any(mark in name for mark in (*_LOOKED_UP, *_OUTPUT)):
            matrices += size * (experts if ".experts." in name else 1.0)
    return total, matrices


def _experts_share(config: Mapping[str, Any]) -> float:
    """Share of the experts that a token goes through."""
    experts = _number(config, *_EXPERTS)
    taken = _number(config, *_CHOSEN)
    return taken / experts if experts and taken else 1.0


def _head_width(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    return _number(config, "head_dim") or (hidden // heads if heads else 0)


def _intermediate(config: Mapping[str, Any], hidden: int) -> int:
    own = _number(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    of_expert = _number(config, "moe_intermediate_size") or own
    taken = _number(config, *_CHOSEN) if _number(config, *_EXPERTS) > 1 else 0
    return max(own, taken * of_expert)


def _number(config: Mapping[str, Any], *names: str) -> int:
    """The first of some entries that is there, a size that a model can have; 0 where
    none is."""
    for name in names:
        value = config.get(name)
        if type(value) is int and 0 <= value < 1 << 48:
            return value
    return 0


def _needed(config: Mapping[str, Any], path: str | Path, *names: str) -> int:
    found = _number(config, *names)
    if found < 1:
        raise CheckpointError(
            f"{path}: no {names[0]} in the configuration. Give the config.json of a "
            "causal language model of transformers."
        )
    return found
