"""The tiers below the native one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from ldeval.probes import ProbeSet
from ldeval.scoring.backends import backend_of
from ldeval.scoring.score import score_probes
from tests.scoring.conftest import open_hf


class OwnForward(HFLM):
    """A subclass with a forward pass of its own, as steered and Mamba models have."""

    def _model_call(self, inps: Any, **kwargs: Any) -> Any:
        return super()._model_call(inps, **kwargs)


class TextOnly(LM):
    """A model that takes text and has no tokenizer."""

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(-float(len(r.args[1])), False) for r in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return [0.0 for _ in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        return ["" for _ in requests]


def test_our_token_ids_through_the_harness_give_the_native_sums(
    tiny: Path, few_probes: ProbeSet
) -> None:
    native = score_probes(open_hf(tiny), few_probes.probes, progress=False)
    lm = OwnForward(pretrained=str(tiny), device="cpu", dtype="float32")
    assert backend_of(lm).tier == "tokens"
    tokens = score_probes(lm, few_probes.probes, progress=False)
    assert list(tokens.scores) == list(native.scores)
    assert tokens.span == native.span
    for key, score in native.scores.items():
        other = tokens.scores[key]
        assert other.tokens is None
        assert other.token_ids == score.token_ids
        assert abs(other.logprob_sum - score.logprob_sum) < 1e-2


def test_a_text_only_model_gets_another_span_and_says_so(
    few_probes: ProbeSet, caplog: pytest.LogCaptureFixture
) -> None:
    scored = score_probes(TextOnly(), few_probes.probes, progress=False)
    assert scored.backend.tier == "text"
    assert scored.span == "lm_eval"
    assert len([r for r in caplog.records if "span lm_eval" in r.message]) == 1
    for (probe_id, kind), score in scored.scores.items():
        probe = next(p for p in few_probes if p.probe_id == probe_id)
        assert score.logprob_sum == -len(probe.responses[kind].text)
        assert score.tokens is None
        assert score.token_ids is None
