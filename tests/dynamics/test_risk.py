"""Risk of preference pairs: each score against its definition, computed plainly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ldeval.dynamics.risk import (
    RANKINGS,
    edit_similarity,
    first_difference,
    pair_risks,
    ranked,
    valley,
)
from ldeval.dynamics.sequences import encode, log_probs, scored, sequences
from ldeval.dynamics.training import objective
from ldeval.dynamics.update import moved
from ldeval.errors import TheoryError
from ldeval.records import PairRisk, Response, RiskReport
from ldeval.report.dynamics_tables import risk_table
from tests.dynamics.tiny_lm import some_probes, tiny_lm


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral_window"])
def test_every_score_is_its_definition(architecture: str) -> None:
    lm = tiny_lm(architecture)
    (pair,) = some_probes(1)
    ((found,), left_out) = pair_risks(lm, [pair], objective("dpo"))
    assert not left_out
    hidden, gradients = {}, {}
    for request in encode(lm, [pair], kinds=("chosen", "rejected"))[0]:
        ids = torch.tensor([request.ids])
        with torch.no_grad():
            out = lm.model(ids, output_hidden_states=True)
        states = out.hidden_states[-1][0, request.start - 1 : request.stop - 1]
        hidden[request.kind] = states
        (one,) = sequences(lm, [request])
        parts = torch.autograd.grad(
            log_probs(lm, one).sum(), list(lm.trainable.values())
        )
        gradients[request.kind] = torch.cat([g.flatten() for g in parts])
    plus, minus = hidden["chosen"], hidden["rejected"]
    ches = plus.sum(0) @ minus.sum(0) - plus.sum(0) @ plus.sum(0)
    mean = plus.mean(0) @ minus.mean(0) - plus.mean(0) @ plus.mean(0)
    assert found.ches == pytest.approx(float(ches), rel=1e-5)
    assert found.ches_normalised == pytest.approx(float(mean), rel=1e-5)
    w, l_ = gradients["chosen"], gradients["rejected"]
    assert found.chosen_squared == pytest.approx(float(w @ w), rel=1e-8)
    assert found.inner == pytest.approx(float(w @ l_), rel=1e-8)
    assert found.rejected_squared == pytest.approx(float(l_ @ l_), rel=1e-8)
    assert found.chosen_change == pytest.approx(0.05 * float(w @ w - w @ l_), rel=1e-8)


def test_the_change_is_that_of_a_small_step_on_the_pair_alone() -> None:
    lm = tiny_lm()
    (pair,) = some_probes(1)
    ((found,), _) = pair_risks(lm, [pair], objective("dpo"))
    requests, _ = encode(lm, [pair], kinds=("chosen", "rejected"))
    (one,) = sequences(lm, requests)
    totals = log_probs(lm, one)
    names = list(lm.trainable)
    pulls = torch.tensor([0.05, -0.05], dtype=torch.float64)
    gradient = torch.autograd.grad(
        (pulls[list(one.requests)] * totals).sum(), list(lm.trainable.values())
    )
    before = scored(lm, requests)
    with moved(lm, dict(zip(names, gradient, strict=True)), 1e-6):
        change = (scored(lm, requests) - before) / 1e-6
    assert found.chosen_change == pytest.approx(float(change[0]), rel=1e-3)
    assert found.rejected_change == pytest.approx(float(change[1]), rel=1e-3)
    falls = float(change[0]) < 0 and float(change[1]) < 0
    assert found.both_fall == falls


def test_near_equal_pairs_are_more_entangled_than_unlike_ones() -> None:
    """A response that differs in one word shares nearly all its gradient."""
    lm = tiny_lm()
    (pair,) = some_probes(1)
    words = pair.responses["chosen"].text.split()
    near = " ".join([*words[:-1], "water"])
    close = replace(
        pair,
        probe_id="near",
        responses={**pair.responses, "rejected": Response("rejected", near)},
    )
    (far, near_risk), _ = pair_risks(lm, [pair, close], objective("dpo"))
    assert near_risk.edit_similarity > far.edit_similarity
    entangled = [
        p.inner / math.sqrt(p.chosen_squared * p.rejected_squared)
        for p in (near_risk, far)
    ]
    assert entangled[0] > entangled[1]


def test_a_valley_is_where_the_distribution_is_peaked_elsewhere() -> None:
    peaked = torch.tensor([[5.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    rows = peaked.repeat(3, 1)
    # after the first token: one label in the valley, one on the peak
    share, excess = valley(rows, [1, 1, 0], 0)
    assert share == 0.5
    p = peaked.softmax(-1)[0]
    expected = (p @ p - (p[1] + p[0]) / 2).item()
    assert excess == pytest.approx(expected)
    assert math.isnan(valley(rows, [1, 1, 0], 2)[0])


def test_the_first_difference_counts_from_the_responses_start() -> None:
    lm = tiny_lm()
    (pair,) = some_probes(1)
    chosen, rejected = encode(lm, [pair], kinds=("chosen", "rejected"))[0]
    place = first_difference(chosen, rejected)
    own, other = chosen.ids[chosen.start :], rejected.ids[rejected.start :]
    assert own[:place] == other[:place]
    assert own[place] != other[place]
    assert edit_similarity(chosen, chosen) == 1.0
    assert 0 <= edit_similarity(chosen, rejected) < 1


def test_without_gradients_only_the_cheap_scores_are_there() -> None:
    lm = tiny_lm()
    cheap, _ = pair_risks(lm, some_probes(2), objective("dpo"), gradients=False)
    full, _ = pair_risks(lm, some_probes(2), objective("dpo"))
    for one, other in zip(cheap, full, strict=True):
        assert (one.ches, one.valley) == (other.ches, other.valley)
        assert math.isnan(one.inner)
        assert one.both_fall is None


def test_a_narrowed_model_takes_its_parameters_alone() -> None:
    lm = tiny_lm()
    whole = pair_risks(lm, some_probes(1), objective("dpo"))[0][0]
    parts = [
        pair_risks(lm.narrowed(p), some_probes(1), objective("dpo"))[0][0].inner
        for p in ("mlp", "^(?!.*mlp)")
    ]
    assert sum(parts) == pytest.approx(whole.inner)


def test_parameters_that_chosen_does_not_move_leave_entanglement_undefined() -> None:
    some = PairRisk("a", 1, 1, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 1.0, 1.0, 0.0, 0.0)
    nothing = replace(some, chosen_squared=0.0, inner=0.0)
    assert some.entanglement == 0.5
    assert math.isnan(nothing.entanglement)
    assert ranked([nothing, some], "entanglement") == [some, nothing]
    report = RiskReport({}, "change", (nothing,), ())
    assert risk_table(report).rows[0][4] == "–"


def test_a_pair_without_rejected_is_listed_with_its_reason() -> None:
    lm = tiny_lm()
    first, second = some_probes(2)
    odd = replace(first, responses={"chosen": first.responses["chosen"]})
    found, left_out = pair_risks(lm, [odd, second], objective("dpo"))
    assert [p.example_id for p in found] == [second.probe_id]
    assert [e.probe_id for e in left_out] == [first.probe_id]
    assert "no rejected response" in left_out[0].reason


def test_pairs_are_ranked_most_at_risk_first_and_unknown_scores_last() -> None:
    def pair(name: str, change: float) -> PairRisk:
        return PairRisk(name, 1, 1, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, change, 0.0)

    pairs = [pair("a", 1.0), pair("b", math.nan), pair("c", -2.0)]
    assert [p.example_id for p in ranked(pairs, "change")] == ["c", "a", "b"]
    with pytest.raises(TheoryError, match=", ".join(RANKINGS)):
        ranked(pairs, "luck")


def test_a_loss_that_sees_one_response_cannot_be_judged() -> None:
    with pytest.raises(TheoryError, match="preference loss"):
        pair_risks(tiny_lm(), some_probes(1), objective("sft"))
