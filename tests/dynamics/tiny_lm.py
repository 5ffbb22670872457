"""Tiny language models in float64, with responses to probe and examples to train on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ldeval.bundled import bundled_probes
from ldeval.dynamics.causal_lm import CausalLM, as_causal_lm
from ldeval.dynamics.sequences import encode
from ldeval.probes import read_probes
from ldeval.records import Probe
from ldeval.scoring.batch import ScoreRequest
from ldeval.scoring.encode import tokenizer_codec
from tests.tiny import tiny_model, tiny_tokenizer

TRAINED_WORDS = 12


def shortened(probe: Probe, words: int = TRAINED_WORDS) -> Probe:
    """The probe with only the first words of every response."""
    responses = {
        kind: replace(r, text=" ".join(r.text.split()[:words]))
        for kind, r in probe.responses.items()
    }
    return replace(probe, responses=responses)


def some_probes(count: int, skip: int = 0) -> list[Probe]:
    """Bundled probes with short responses."""
    found = [p for p in read_probes(bundled_probes()) if "rejected" in p.responses]
    return [shortened(probe) for probe in found[skip : skip + count]]


def tiny_lm(
    architecture: str = "llama",
    *,
    double: bool = True,
    model: Any = None,
    seed: int = 0,
) -> CausalLM:
    """A random network behind the bundled probes' tokenizer."""
    tokenizer = tiny_tokenizer()
    if model is None:
        model = tiny_model(architecture, len(tokenizer), seed)
    model = model.double() if double else model
    model.config.get_text_config()._attn_implementation = "eager"
    return as_causal_lm(model, tokenizer_codec(tokenizer, max_length=256))


def probe_requests(
    lm: CausalLM, count: int = 3, kinds: tuple[str, ...] | None = None
) -> list[ScoreRequest]:
    """Responses of probes that no example comes from."""
    requests, excluded = encode(lm, some_probes(count, skip=20), kinds=kinds)
    assert not excluded
    return requests
