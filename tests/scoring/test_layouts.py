"""Every layout against a plain forward pass, on architectures that take it and on those
that must not; and what happens where one is refused."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldeval.probes import ProbeSet
from ldeval.scoring import hf, layouts
from ldeval.scoring.batch import ScoreRequest
from ldeval.scoring.score import score_probes
from tests.scoring.conftest import open_hf, plain_logprobs
from tests.tiny import ARCHITECTURES, FALLBACK, PACKED, save_tiny

TOLERANCE = 2e-4
"""Nats per token, float32."""


@lru_cache(maxsize=16)
def model(architecture: str) -> Any:
    folder = Path(tempfile.mkdtemp())
    return open_hf(save_tiny(folder, architecture=architecture))


tokens = st.lists(st.integers(0, 511), min_size=1, max_size=12)
contexts = st.lists(st.integers(0, 511), min_size=1, max_size=20)


@st.composite
def request_lists(draw: st.DrawFn) -> list[ScoreRequest]:
    """Prompts with responses, in any order; prompts share beginnings, responses share
    beginnings, some are one token long, and some ask for ids of their own."""
    requests = []
    shared = draw(contexts)
    for probe in range(draw(st.integers(1, 4))):
        context = shared + draw(st.lists(st.integers(0, 511), max_size=3))
        opening = draw(st.lists(st.integers(0, 511), max_size=6))
        for number in range(draw(st.integers(1, 5))):
            response = (opening if draw(st.booleans()) else []) + draw(tokens)
            ids = (*context, *response)
            wanted = None
            if draw(st.booleans()):
                wanted = np.arange(3 * len(response)).reshape(-1, 3) % 512
            requests.append(
                ScoreRequest(
                    str(probe), str(number), ids, len(context), len(ids), wanted
                )
            )
    return draw(st.permutations(requests))


def assert_exact(lm: Any, requests: list[ScoreRequest], found: dict[int, Any]) -> None:
    assert sorted(found) == list(range(len(requests)))
    for index, request in enumerate(requests):
        expected = plain_logprobs(
            lm.model, list(request.ids), request.start, request.stop
        )
        label = torch.tensor(request.ids[request.start : request.stop])[:, None]
        gap = np.abs(found[index].logprobs - expected.gather(1, label)[:, 0].numpy())
        assert gap.mean() < TOLERANCE
        assert gap[0] < 1e-3  # the prompt's last token predicts the first
        if request.ref_ids is None:
            assert found[index].ref_ids is None
        else:
            wanted = expected.gather(1, torch.tensor(request.ref_ids)).numpy()
            np.testing.assert_allclose(found[index].ref_logprobs, wanted, atol=2e-3)


@pytest.mark.parametrize(
    ("architecture", "layout"),
    [(name, "packed") for name in PACKED]
    + [(name, "shared") for name in (*PACKED, "bloom", "mistral_window")]
    + [(name, "padded") for name in ARCHITECTURES]
    + [(name, "plain") for name in ("llama", "mamba")],
)
@settings(max_examples=12, deadline=None)
@given(requests=request_lists(), limit=st.sampled_from([1, 40, 1000]))
def test_scores_are_those_of_a_plain_forward_pass(
    architecture: str, layout: Any, requests: list[ScoreRequest], limit: int
) -> None:
    lm = model(architecture)
    found = dict(hf.score(lm, requests, top_k=5, layout=layout, tokens=limit))
    assert_exact(lm, requests, found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=8, deadline=None)
@given(requests=request_lists())
def test_whatever_the_model_the_scores_are_exact(
    architecture: str, requests: list[ScoreRequest]
) -> None:
    lm = model(architecture)
    found, _ = hf.score_checked(lm, requests, top_k=5)
    assert_exact(lm, requests, found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_layout_and_its_check_are_noted(
    architecture: str, few_probes: ProbeSet
) -> None:
    scored = score_probes(model(architecture), few_probes.probes, progress=False)
    (note,) = [n for n in scored.notes if "from a plain forward pass over" in n]
    if architecture in PACKED:
        assert note.startswith("packed sequences: ")
    else:
        assert "packed: " in note
        assert not note.startswith("packed")
    assert architecture not in FALLBACK or note.split()[0] in ("shared", "padded")


def one_prompt(count: int) -> list[ScoreRequest]:
    return [
        ScoreRequest("a", str(n), (1, 2, 3, *range(10, 20 + n)), 3, 13 + n)
        for n in range(count)
    ]


def test_a_model_that_ignores_the_segments_is_found_out(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = open_hf(tiny)
    forward = lm.model.forward

    def deaf(
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        logits_to_keep: Any = 0,
        use_cache: Any = None,
        **_: Any,
    ) -> Any:
        lm.model.config._attn_implementation = "sdpa"
        return forward(
            input_ids=input_ids,
            past_key_values=past_key_values,
            logits_to_keep=logits_to_keep,
            use_cache=use_cache,
        )

    monkeypatch.setattr(lm.model, "forward", deaf)
    requests = one_prompt(4)
    found, note = hf.score_checked(lm, requests, top_k=5)
    assert note.startswith("shared sequences (packed: ")
    assert "nats per token from a plain forward pass on probe 'a'" in note
    monkeypatch.undo()
    assert_exact(lm, requests, found)


def test_a_model_without_the_attention_interface_is_not_packed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = open_hf(tiny)
    forward = lm.model.forward

    def swallowing(
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        ldeval_segments: Any = None,
        **others: Any,
    ) -> Any:
        return forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **others,
        )

    monkeypatch.setattr(lm.model, "forward", swallowing)
    _, note = hf.score_checked(lm, one_prompt(3), top_k=5)
    assert "does not hand the segments of a pack on" in note


def test_a_head_that_does_more_than_its_configuration_says_goes_plain(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = open_hf(tiny)
    forward = lm.model.forward

    def doubled(
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> Any:
        out = forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **others,
        )
        out.logits = 2 * out.logits
        return out

    monkeypatch.setattr(lm.model, "forward", doubled)
    counted = 0

    def done(n: int) -> None:
        nonlocal counted
        counted += n

    requests = one_prompt(3)
    found, note = hf.score_checked(lm, requests, top_k=5, done=done)
    assert note.startswith("plain sequences, one at a time (packed: ")
    assert counted == 3
    assert_exact(lm, requests, found)


def test_a_long_sequence_is_checked_though_the_first_is_short(
    tmp_path: Path,
) -> None:
    """A window that the configuration does not tell of, as remote code may have one."""
    lm = open_hf(save_tiny(tmp_path, architecture="mistral_window"))
    lm.model.config.layer_types = None
    lm.model.config.sliding_window = None
    requests = [
        ScoreRequest("short", "chosen", (1, 2, 3), 2, 3),
        ScoreRequest("long", "chosen", tuple(range(1, 60)), 20, 59),
    ]
    found, _ = hf.score_checked(lm, requests, top_k=5)
    assert_exact(lm, requests, found)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_cap_on_attention_scores_is_kept_where_the_model_keeps_it(
    tmp_path: Path, attention: str, few_probes: ProbeSet
) -> None:
    folder = save_tiny(tmp_path, architecture="gemma2")
    lm = open_hf(folder, attn_implementation=attention)
    requests = one_prompt(4)
    found, note = hf.score_checked(lm, requests, top_k=5)
    assert note.startswith("packed sequences: ")
    assert ("leaves the cap out" in note) == (attention == "sdpa")
    assert_exact(lm, requests, found)
    other = open_hf(folder, attn_implementation={"eager": "sdpa"}.get(attention))
    if attention == "eager":
        apart, _ = hf.score_checked(other, requests, top_k=5)
        assert np.abs(apart[3].logprobs - found[3].logprobs).max() > 1e-3


def test_low_precision_is_packed_too(tiny: Path, few_probes: ProbeSet) -> None:
    exact = score_probes(open_hf(tiny), few_probes.probes, progress=False)
    for dtype in ("bfloat16", "float16"):
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(pretrained=str(tiny), device="cpu", dtype=dtype)
        scored = score_probes(lm, few_probes.probes, progress=False)
        assert scored.backend.dtype == dtype
        assert any(note.startswith("packed sequences: ") for note in scored.notes)
        for key, score in scored.scores.items():
            gap = abs(score.logprob_sum - exact.scores[key].logprob_sum)
            assert gap / len(score.token_ids or ()) < 5e-2


def test_padding_costs_no_tokens_beyond_the_budget() -> None:
    requests = [
        ScoreRequest("a", str(n), tuple(range(5 + n)), 2, 5 + n) for n in range(40)
    ]
    seen: list[int] = []
    for batch in layouts._batches(requests, 100, 0):
        width = max(len(requests[i].ids) for i in batch)
        assert len(batch) == 1 or width * len(batch) <= 100
        seen += batch
    assert sorted(seen) == list(range(40))
