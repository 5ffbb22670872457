"""What computes a harness model's scores: its backend, its tier, its tokenizer.

The tier is chosen by what the model can do, not by what it inherits from: native
per-token scores; sums on our token ids; or the harness's plain loglikelihood on text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, Literal

from ldeval.scoring import fallback
from ldeval.scoring.encode import TextCodec, codec_of

Tier = Literal["native", "tokens", "text"]


@dataclass(frozen=True)
class Backend:
    """How one model is scored; one row of a table stands on one of these."""

    name: str
    """``hf``, ``vllm``, ``served``, or the class name of the model."""
    tier: Tier
    dtype: str
    vocab_size: int | None
    versions: Mapping[str, str]
    tokenizer_hash: str
    template_hash: str | None
    """Hash of the tokenizer's template, used or not; None where it has none."""
    codec: TextCodec | None = field(default=None, repr=False, compare=False)
    """How text becomes tokens; None in the text tier."""


def backend_of(lm: Any) -> Backend:
    """Choose the tier of a harness model, and name what computes its scores.

    Raises:
        UnsupportedBackendError: for a setting that changes what a score means.
    """
    if _is_transformers(lm):
        from ldeval.scoring import hf

        hf.check_settings(lm)
        computed = lm.mixed_precision_dtype or next(lm.model.parameters()).dtype
        width = int(lm.model.get_output_embeddings().weight.shape[0])
        return _backend(
            lm, "hf", "native", str(computed), width, ["transformers", "torch"]
        )
    if is_local_vllm(lm):
        from ldeval.scoring import vllm

        vllm.check_settings(lm)
        config = lm.model.llm_engine.model_config
        dtype, width = str(config.dtype), int(config.get_vocab_size())
        return _backend(lm, "vllm", "native", dtype, width, ["vllm", "torch"])
    if _is_completions(lm):
        from ldeval.scoring import served

        served.check_settings(lm)
        if served.ability(lm) == "echo":
            return _backend(lm, type(lm).__name__, "tokens", "unknown", None, [])
        facts = served.facts_of(lm)
        found = _backend(lm, "served", "native", facts.dtype, facts.vocab_size, [])
        return replace(found, versions={**found.versions, **facts.versions})
    if fallback.takes_tokens(lm):
        return _backend(lm, type(lm).__name__, "tokens", "unknown", None, [])
    return _backend(lm, type(lm).__name__, "text", "unknown", None, [])


def _is_transformers(lm: Any) -> bool:
    """Whether ``lm`` runs the plain forward pass of a transformers causal model.

    Subclasses of the harness's HFLM include sequence-to-sequence, Mamba and steered
    models with a forward pass of their own: those are left to the slower tiers.
    """
    base = _harness_class(lm, "lm_eval.models.huggingface", "HFLM")
    return (
        base is not None
        and lm.backend == "causal"
        and type(lm)._model_call is base._model_call
        and callable(getattr(lm, "model", None))
    )


def is_local_vllm(lm: Any) -> bool:
    """Whether ``lm`` holds a vLLM engine (data_parallel_size > 1: it holds none)."""
    return (
        _harness_class(lm, "lm_eval.models.vllm_causallms", "VLLM") is not None
        and lm.data_parallel_size <= 1
        and hasattr(lm.model, "llm_engine")
    )


def _is_completions(lm: Any) -> bool:
    """Whether ``lm`` sends token ids to a completions server (chat classes do not)."""
    base = _harness_class(
        lm, "lm_eval.models.openai_completions", "LocalCompletionsAPI"
    )
    return (
        base is not None
        and type(lm)._create_payload is base._create_payload
        and type(lm).tok_encode is base.tok_encode
        and lm.tokenizer_backend in ("huggingface", "remote")
    )


def _harness_class(lm: Any, module: str, name: str) -> Any:
    """The named class among the model's bases, without importing its packages."""
    for base in type(lm).__mro__:
        if base.__module__ == module and base.__name__ == name:
            return base
    return None


def _backend(
    lm: Any,
    name: str,
    tier: Tier,
    dtype: str,
    vocab_size: int | None,
    packages: Sequence[str],
) -> Backend:
    codec = None if tier == "text" else codec_of(lm)
    versions = {p: metadata.version(p) for p in ["ldeval", "lm_eval", *packages]}
    return Backend(
        name=name,
        tier=tier,
        dtype=dtype.removeprefix("torch."),
        vocab_size=vocab_size,
        versions=versions,
        tokenizer_hash="unknown" if codec is None else codec.tokenizer_hash,
        template_hash=None if codec is None else codec.template_hash,
        codec=codec,
    )
