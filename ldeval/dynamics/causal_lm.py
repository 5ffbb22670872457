"""A causal language model that can be differentiated, with the parameters that count.

Opened with transformers' own ``eager`` attention, written out in plain products: the
fused kernels have no forward-mode derivative. Apart from the scoring room, whose models
are the harness's and are never differentiated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ldeval.checkpoints import (
    base_of,
    check_weights,
    describe_checkpoint,
    has_tokenizer,
    weights_hash,
)
from ldeval.errors import MissingExtraError, TheoryError
from ldeval.scoring.encode import TextCodec, tokenizer_codec
from ldeval.scoring.models import loading, open_tokenizer

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class CausalLM:
    """A model in evaluation mode, so that dropout plays no part."""

    model: Any
    codec: TextCodec
    path: str
    """Folder of the checkpoint."""
    trainable: Mapping[str, torch.nn.Parameter]
    """What an optimizer step moves, in the model's own order: every parameter, or an
    adapter's alone."""
    selected: tuple[str, ...]
    """Those of them along which changes are predicted."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(iter(self.trainable.values())).dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(iter(self.trainable.values())).device

    @property
    def size(self) -> int:
        """Numbers in the selected parameters."""
        return sum(self.trainable[name].numel() for name in self.selected)

    def narrowed(self, pattern: str | None) -> CausalLM:
        """The same with the parameters whose name matches a regular expression.

        Raises:
            TheoryError: when none does, or it is no regular expression.
        """
        if pattern is None:
            return replace(self, selected=tuple(self.trainable))
        try:
            wanted = re.compile(pattern)
        except re.error as error:
            raise TheoryError(
                f"--parameters {pattern!r} is no regular expression ({error})."
            ) from error
        found = tuple(name for name in self.trainable if wanted.search(name))
        if not found:
            some = ", ".join(list(self.trainable)[:4])
            raise TheoryError(
                f"--parameters {pattern!r} matches none of {len(self.trainable)} "
                f"trainable parameters. They are named like {some}."
            )
        return replace(self, selected=found)

    def weights_hash(self) -> str:
        """Hash of the checkpoint's weight files."""
        return weights_hash(self.path)


def as_causal_lm(model: Any, codec: TextCodec, path: str = "") -> CausalLM:
    """A model that is at hand: what requires a gradient is trainable.

    Raises:
        TheoryError: when nothing requires one.
    """
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise TheoryError("no parameter of the model requires a gradient.")
    model.eval()
    return CausalLM(model, codec, path, trainable, tuple(trainable))


def open_causal_lm(
    path: str,
    *,
    base: str | None = None,
    dtype: str = "float32",
    parameters: str | None = None,
) -> CausalLM:
    """Load a checkpoint, or an adapter upon its base.

    Args:
        path: folder of full weights or of an adapter.
        base: model of an adapter that does not name it; lends its tokenizer.
        dtype: ``float32``, ``float64`` or ``bfloat16``.
        parameters: regular expression of the parameters that count; None for all.

    Raises:
        CheckpointError: when weights are missing, damaged or pickled.
        TheoryError: for an unknown dtype, or parameters that match nothing.
    """
    if dtype not in DTYPES:
        raise TheoryError(f"dtype {dtype!r} is not known. Valid: {', '.join(DTYPES)}.")
    checkpoint = describe_checkpoint(path, 0)
    check_weights(checkpoint)
    if checkpoint.layout == "adapter":
        under = base_of(checkpoint, base)
        model, lenders = _adapted(_plain_model(under, dtype), path), [base, under]
    else:
        model, lenders = _plain_model(path, dtype), [base]
    known = [place for place in lenders if place and has_tokenizer(place)]
    source = path if has_tokenizer(path) or not known else known[0]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    codec = tokenizer_codec(open_tokenizer(source), max_length=limit)
    return as_causal_lm(model, codec, path).narrowed(parameters)


def _plain_model(path: str, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    with loading(path):
        return AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[dtype],
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
        )


def _adapted(model: Any, adapter: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError("peft", "hf") from error
    with loading(adapter):
        return PeftModel.from_pretrained(model, adapter, is_trainable=True)
