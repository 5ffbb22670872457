"""Packs: what is in them, and which models may have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ldeval.scoring import packed
from ldeval.scoring.batch import ScoreRequest
from tests.scoring.conftest import open_hf
from tests.tiny import FALLBACK, PACKED, save_tiny, tiny_model


def requests_of_lengths(*lengths: int) -> list[ScoreRequest]:
    return [
        ScoreRequest("a", str(n), (1, 2, 3, 4, *([5 + n] * n)), 4, 4 + n)
        for n in lengths
    ]


def test_a_pack_computes_each_prompt_once() -> None:
    (pack,) = packed.packs(requests_of_lengths(*range(1, 7)), tokens=1000)
    assert pack.ids.shape[1] == 4 + sum(n - 1 for n in range(1, 7))


def test_a_token_attends_to_its_own_past_alone() -> None:
    (pack,) = packed.packs(requests_of_lengths(3, 9, 2, 8, 1), tokens=1000)
    (segments,) = pack.segments
    assert (segments.start, segments.stop) == (0, 4)
    seen = []
    for branch in segments.branches:
        for places, filled in zip(branch.places, branch.filled, strict=True):
            for row in torch.nonzero(filled)[:, 0].tolist():
                place = int(places[row])
                past = [*range(4), *places.tolist()]
                allowed = torch.tensor(past)[branch.allowed[row]].tolist()
                positions = pack.positions[0][allowed].tolist()
                assert positions == list(range(int(pack.positions[0, place]) + 1))
                seen.append(place)
    assert sorted(seen) == list(range(4, pack.ids.shape[1]))


def test_responses_of_unlike_length_are_not_filled_up_to_the_longest() -> None:
    (pack,) = packed.packs(requests_of_lengths(100, 90, 10, 9, 1), tokens=1000)
    shapes = [branch.places.shape for branch in pack.segments[0].branches]
    assert shapes == [(2, 99), (2, 9)]


def test_packs_keep_to_their_budget_and_lose_nothing() -> None:
    requests = [
        ScoreRequest(str(p), str(n), tuple(range(30)), 10, 30)
        for p in range(7)
        for n in range(5)
    ]
    found: list[int] = []
    for pack in packed.packs(requests, tokens=100):
        found += pack.requests
        assert pack.ids.shape[1] <= 100
        assert [len(rows) for rows in pack.rows] == [20] * len(pack.requests)
    assert sorted(found) == list(range(35))


def test_a_response_over_the_budget_goes_alone() -> None:
    packs = list(packed.packs(requests_of_lengths(200, 3, 2), tokens=50))
    assert [len(pack.requests) for pack in packs] == [1, 2]


@pytest.mark.parametrize("architecture", PACKED)
def test_full_attention_is_packed(architecture: str) -> None:
    assert packed.fits(tiny_model(architecture, 512), 100) is None


@pytest.mark.parametrize("architecture", FALLBACK)
def test_other_attention_is_not(architecture: str) -> None:
    reason = packed.fits(tiny_model(architecture, 512), 100)
    assert reason is not None


def test_a_window_is_no_hindrance_to_sequences_that_fit_into_it() -> None:
    model = tiny_model("mistral_window", 512)
    assert packed.fits(model, 8) is None
    assert "over 8 tokens, the longest sequence has 9" in str(packed.fits(model, 9))


def test_flash_attention_and_sharded_models_are_refused_by_name(tmp_path: Path) -> None:
    model = open_hf(save_tiny(tmp_path)).model
    model.config._attn_implementation_internal = "flash_attention_2"
    assert "'flash_attention_2' is not ours" in str(packed.fits(model, 8))
    model.config._attn_implementation_internal = "sdpa"

    class FSDPLinear(torch.nn.Linear):
        pass

    model.lm_head = FSDPLinear(32, 512)
    assert "sharded over processes" in str(packed.fits(model, 8))


def test_the_models_own_attention_comes_back(tmp_path: Path) -> None:
    model = open_hf(save_tiny(tmp_path)).model
    before = model(torch.tensor([[1, 2, 3]])).logits

    def fail() -> None:
        with packed.segment_attention(model):
            assert model.config._attn_implementation == packed.ATTENTION["sdpa"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.config._attn_implementation == "sdpa"
    np.testing.assert_array_equal(
        model(torch.tensor([[1, 2, 3]])).logits.detach(), before.detach()
    )
