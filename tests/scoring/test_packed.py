"""Packed sequences against plain ones, on several architectures."""

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
from ldeval.scoring import hf, packed
from ldeval.scoring.batch import ScoreRequest
from ldeval.scoring.score import score_probes
from tests.scoring.conftest import open_hf, plain_logprobs
from tests.tiny import ARCHITECTURES, save_tiny

TOLERANCE = 2e-4


@lru_cache(maxsize=8)
def model(architecture: str) -> Any:
    folder = Path(tempfile.mkdtemp())
    return open_hf(save_tiny(folder, architecture=architecture))


tokens = st.lists(st.integers(0, 511), min_size=1, max_size=12)
contexts = st.lists(st.integers(0, 511), min_size=1, max_size=20)


@st.composite
def request_lists(draw: st.DrawFn) -> list[ScoreRequest]:
    """Prompts with responses; some share long beginnings, some are one token long."""
    requests = []
    shared = draw(contexts)
    for probe in range(draw(st.integers(1, 4))):
        context = shared + draw(st.lists(st.integers(0, 511), max_size=3))
        opening = draw(st.lists(st.integers(0, 511), max_size=6))
        for number in range(draw(st.integers(1, 5))):
            response = (opening if draw(st.booleans()) else []) + draw(tokens)
            ids = (*context, *response)
            requests.append(
                ScoreRequest(str(probe), str(number), ids, len(context), len(ids))
            )
    return draw(st.permutations(requests))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=25, deadline=None)
@given(requests=request_lists(), limit=st.sampled_from([1, 40, 1000]))
def test_packed_scores_are_those_of_a_plain_forward_pass(
    architecture: str, requests: list[ScoreRequest], limit: int
) -> None:
    lm = model(architecture)
    found = {}
    for pack in packed.packs(requests, tokens=limit, rows=limit):
        with torch.inference_mode():
            logits = packed.logits(lm.model, pack, lm.device, torch.float32)[0]
        sizes = [len(rows) for rows in pack.rows]
        for index, rows in zip(pack.requests, logits.split(sizes), strict=True):
            found[index] = torch.log_softmax(rows, dim=-1)
    assert sorted(found) == list(range(len(requests)))
    for index, request in enumerate(requests):
        expected = plain_logprobs(
            lm.model, list(request.ids), request.start, request.stop
        )
        label = torch.tensor(request.ids[request.start : request.stop])[:, None]
        gap = found[index].gather(1, label) - expected.gather(1, label)
        assert float(gap.abs().mean()) < TOLERANCE
        assert float(gap[0].abs()) < 1e-3  # the prompt's last token predicts the first


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_with_full_attention_are_packed(
    architecture: str, few_probes: ProbeSet
) -> None:
    scored = score_probes(model(architecture), few_probes.probes, progress=False)
    assert any(note.startswith("packed sequences: ") for note in scored.notes)


def test_a_pack_computes_each_prompt_once(few_probes: ProbeSet) -> None:
    requests = [
        ScoreRequest("a", str(n), (1, 2, 3, 4, *([5 + n] * n)), 4, 4 + n)
        for n in range(1, 7)
    ]
    (pack,) = packed.packs(requests, tokens=1000, rows=1000)
    assert pack.ids.shape[1] == 4 + sum(n - 1 for n in range(1, 7))
    # nothing outside a response's own past is seen
    seen = pack.allowed.sum(dim=1)
    np.testing.assert_array_equal(seen, pack.positions[0] + 1)


def test_packs_keep_to_their_budget_and_lose_nothing() -> None:
    requests = [
        ScoreRequest(str(p), str(n), tuple(range(30)), 10, 30)
        for p in range(7)
        for n in range(5)
    ]
    found = []
    for pack in packed.packs(requests, tokens=100, rows=60):
        found += pack.requests
        assert pack.ids.shape[1] <= 100
        assert sum(len(rows) for rows in pack.rows) <= 60
    assert sorted(found) == list(range(35))


def sliding(folder: Path) -> Path:
    from transformers import MistralConfig, MistralForCausalLM

    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=8,
        initializer_range=0.3,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_short_sliding_window_is_not_packed_and_still_exact(
    tmp_path: Path, few_probes: ProbeSet
) -> None:
    lm = open_hf(sliding(tmp_path))
    scored = score_probes(lm, few_probes.probes, progress=False)
    assert "plain sequences, no packing: layers of type" in str(scored.notes) or (
        "a sliding window of 8 tokens" in str(scored.notes)
    )
    from ldeval.scoring.score import encode_probes, score_requests

    encoded = encode_probes(
        lm,
        few_probes.probes,
        span="trl",
        apply_chat_template=False,
        system_instruction=None,
    )
    for request in score_requests(encoded, set(scored.scores), {}):
        expected = plain_logprobs(
            lm.model, list(request.ids), request.start, request.stop
        )
        label = torch.tensor(request.ids[request.start : request.stop])[:, None]
        total = float(expected.gather(1, label).sum())
        score = scored.scores[(request.probe_id, request.kind)]
        assert abs(score.logprob_sum - total) / request.n_tokens < TOLERANCE


def test_a_model_that_ignores_the_mask_is_found_out_by_the_check(
    tiny: Path, few_probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = open_hf(tiny)
    forward = lm.model.forward

    def deaf(
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        logits_to_keep: Any = 0,
        use_cache: Any = None,
    ) -> Any:
        mask = (
            None
            if attention_mask is None or attention_mask.ndim == 4
            else attention_mask
        )
        return forward(
            input_ids=input_ids, attention_mask=mask, logits_to_keep=logits_to_keep
        )

    monkeypatch.setattr(lm.model, "forward", deaf)
    layout, note = hf.choose_layout(
        lm,
        [
            ScoreRequest("a", str(n), (1, 2, 3, *range(10, 20 + n)), 3, 13 + n)
            for n in range(4)
        ],
    )
    assert layout == "padded"
    assert "nats per token from plain sequences" in note
