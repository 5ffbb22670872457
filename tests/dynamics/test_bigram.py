"""The 2-gram example: exact kernel, first order, and where probability goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ldeval.dynamics.bigram import (
    OFF_POLICY,
    ON_POLICY,
    POSITIVE,
    START,
    WORDS,
    Bigram,
    pretrained,
    region,
    study,
    train,
)
from ldeval.errors import TheoryError
from ldeval.records import BigramOutcome


def random_model(rng: np.random.Generator) -> Bigram:
    """Random logits, and random features of contexts."""
    features = rng.standard_normal((WORDS + 1, 7))
    return Bigram(2 * rng.standard_normal((WORDS + 1, WORDS)), features @ features.T)


def test_probabilities_of_all_responses_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert np.exp(random_model(rng).log_p()).sum() == pytest.approx(1.0)


def test_a_step_is_gradient_descent_on_the_features_weights() -> None:
    """Against torch: z = Uφ, one step on −g ln π(response)."""
    rng = np.random.default_rng(1)
    for trial in range(50):
        features = torch.from_numpy(rng.standard_normal((WORDS + 1, 7)))
        weights = torch.from_numpy(rng.standard_normal((WORDS, 7))).requires_grad_()

        def log_p(weights: Tensor, features: Tensor = features) -> Tensor:
            return torch.log_softmax(features @ weights.T, -1)

        first, second = (int(w) for w in rng.integers(0, WORDS, 2))
        pull = 1.0 if trial % 2 else -1.0
        table = log_p(weights)
        loss = -pull * (table[START, first] + table[first, second])
        (gradient,) = torch.autograd.grad(loss, weights)
        model = Bigram(
            (features @ weights.T).detach().numpy(), (features @ features.T).numpy()
        )
        moved, _ = train(model, (((first, second), pull),), steps=1, rate=0.1)
        wanted = (features @ (weights - 0.1 * gradient).T).detach().numpy()
        assert np.allclose(moved.logits, wanted, atol=1e-12)


def test_the_remainder_of_first_order_is_of_second_order() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        model = random_model(rng)
        rates, errors = np.geomspace(1e-5, 1e-3, 5), []
        for rate in rates:
            moved, predicted = train(
                model, (((1, 2), 1.0), ((3, 4), -1.0)), steps=1, rate=float(rate)
            )
            errors.append(np.linalg.norm(moved.log_p() - model.log_p() - predicted))
        slope = np.polyfit(np.log(rates), np.log(errors), 1)[0]
        assert slope == pytest.approx(2, abs=0.1)


def test_a_small_negative_step_lowers_its_response_and_a_positive_one_raises_it() -> (
    None
):
    rng = np.random.default_rng(3)
    for _ in range(500):
        model = random_model(rng)
        response = tuple(int(w) for w in rng.integers(0, WORDS, 2))
        for pull in (1.0, -1.0):
            moved, _ = train(model, ((response, pull),), steps=1, rate=1e-4)
            change = (moved.log_p() - model.log_p())[response]
            assert pull * change > 0


def test_a_context_without_shared_features_does_not_move() -> None:
    model = pretrained()
    gram = np.eye(WORDS + 1)
    moved, _ = train(Bigram(model.logits, gram), (((0, 1), -1.0),), steps=3, rate=0.5)
    still = [c for c in range(WORDS + 1) if c not in (0, START)]
    assert (moved.logits[still] == model.logits[still]).all()
    assert (moved.logits[[0, START]] != model.logits[[0, START]]).any()


def test_the_model_prefers_valid_responses_and_seldom_errs() -> None:
    found = study(steps=1)
    before = {k: v[0] for k, v in found.outcomes[0].regions.items()}
    assert before["valid"] > before["invalid"] > 5 * before["ungrammatical"]
    assert sum(before.values()) == pytest.approx(1.0)
    p = np.exp(found.log_p)
    assert np.unravel_index(p.argmax(), p.shape) == ON_POLICY
    assert p[OFF_POLICY] < 1e-3 < p[POSITIVE] < p[ON_POLICY]


def outcome(name: str) -> BigramOutcome:
    return next(o for o in study().outcomes if o.name == name)


def test_off_policy_negatives_squeeze_into_the_likeliest_and_on_policy_do_not() -> None:
    """The point of the example: the same push, in a valley and on a peak."""
    off, on = outcome("negative, off-policy"), outcome("negative, on-policy")
    assert off.gainer == ON_POLICY  # the likeliest of before
    assert off.top[1] > 1.3 * off.top[0]
    assert on.top[1] < on.top[0]
    changes = off.log_p - study().log_p
    assert (changes < 0).mean() > 0.8  # nearly everything else falls


def test_with_both_gradients_chosen_gains_most() -> None:
    for name in ("positive alone", "both, on-policy", "both, off-policy"):
        found = outcome(name)
        assert found.gainer == found.pulled == POSITIVE


def test_the_entropy_of_a_settled_map_is_defined() -> None:
    found = study(steps=2000, rate=1.0)
    ends = [outcome.entropy[1] for outcome in found.outcomes]
    assert all(0 <= entropy < np.log(100) for entropy in ends)
    assert (np.exp(found.outcomes[-1].log_p) == 0).any()


def test_regions_part_the_map() -> None:
    names = [region(i, j) for i in range(WORDS) for j in range(WORDS)]
    assert {n: names.count(n) for n in set(names)} == {
        "valid": 9,
        "invalid": 27,
        "ungrammatical": 64,
    }
    assert region(0, 9) == region(9, 0) == "ungrammatical"


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(TheoryError, match=r"\(3, 10\)"):
        train(pretrained(), (((3, 10), 1.0),), steps=1, rate=0.1)
    with pytest.raises(TheoryError, match="at least one step"):
        study(steps=0)
    with pytest.raises(TheoryError, match="at a rate above 0"):
        study(rate=float("nan"))
