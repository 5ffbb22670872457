"""The guarantees of a squeeze step, over thousands of random predictions.

Claims are numbered as in appendix E of arXiv 2407.10490.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ldeval.dynamics.first_order import (
    jacobian,
    jacobian_frobenius,
    jacobian_operator_norm,
    log_softmax,
    squared_norm,
    through_softmax,
)
from ldeval.dynamics.squeezing import (
    Pressure,
    first_order_threshold,
    log_ratios,
    stepped,
    threshold,
)
from ldeval.errors import TheoryError

CASES = 20_000


def cases() -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """[n, V] ln π, [n] labels and a strength: 20,000 in batches of one V and s."""
    rng = np.random.default_rng(0)
    for _ in range(CASES // 200):
        size = int(rng.integers(3, 60))
        scale = rng.choice([0.1, 1.0, 3.0, 8.0], size=(200, 1))
        log_p = log_softmax(scale * rng.standard_normal((200, size)))
        yield log_p, rng.integers(0, size, 200), float(10 ** rng.uniform(-3, 0.7))


def best_other(log_p: np.ndarray, label: np.ndarray) -> np.ndarray:
    hidden = log_p.copy()
    np.put_along_axis(hidden, label[:, None], -np.inf, axis=-1)
    return hidden.argmax(-1)


def at(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, index[:, None], axis=-1)[:, 0]


def others(values: np.ndarray, label: np.ndarray) -> np.ndarray:
    """[n, V − 1] without the label's column."""
    kept = np.arange(values.shape[1]) != label[:, None]
    return values[kept].reshape(len(values), -1)


def test_ratios_are_those_of_a_softmax_after_the_step() -> None:
    for log_p, label, s in cases():
        found = log_ratios(log_p, label, s)
        hot = np.eye(log_p.shape[1])[label]
        after = log_softmax(log_p + s * (np.exp(log_p) - hot))
        assert np.allclose(found, after - log_p, rtol=0, atol=1e-11)
        row = stepped(log_p[0], [Pressure(int(label[0]), -s)])
        assert np.allclose(row, after[0], rtol=0, atol=1e-12)


def test_claim_1_the_class_that_is_pushed_falls() -> None:
    for log_p, label, s in cases():
        assert (at(log_ratios(log_p, label, s), label) < 0).all()


def test_claim_2_the_largest_other_class_rises() -> None:
    for log_p, label, s in cases():
        rise = at(log_ratios(log_p, label, s), best_other(log_p, label))
        # π_y below 1e-17 leaves nothing to distinguish from 0
        assert (rise >= 0).all()
        visible = np.exp(at(log_p, label)) * s > 1e-16
        assert (rise[visible] > 0).all()


def test_the_others_rise_exactly_above_the_threshold() -> None:
    for log_p, label, s in cases():
        margin = others(np.exp(log_p), label) - threshold(log_p, label, s)[:, None]
        change = others(log_ratios(log_p, label, s), label)
        clear = np.abs(s * margin) > 1e-13
        assert clear.mean() > 0.5
        assert ((change > 0) == (margin > 0))[clear].all()


def test_the_rich_get_richer_the_larger_the_class_the_larger_its_ratio() -> None:
    for log_p, label, s in cases():
        order = np.argsort(others(log_p, label), axis=-1)
        change = np.take_along_axis(
            others(log_ratios(log_p, label, s), label), order, axis=-1
        )
        assert (np.diff(change, axis=-1) >= -1e-13).all()


def test_what_falls_to_first_order_falls_at_every_strength() -> None:
    for log_p, label, s in cases():
        tau = first_order_threshold(log_p, label)
        assert (threshold(log_p, label, s) >= tau - 1e-13).all()
        doomed = others(np.exp(log_p), label) < tau[:, None] - 1e-12
        assert (others(log_ratios(log_p, label, s), label)[doomed] < 0).all()


def test_claim_3a_from_a_flat_prediction_all_others_rise_alike() -> None:
    for size in range(3, 60):
        for s in (1e-3, 0.1, 1.0, 5.0):
            change = others(
                log_ratios(np.full((1, size), -math.log(size)), np.array([1]), s),
                np.array([1]),
            )
            assert (change > 0).all()
            assert np.ptp(change) < 1e-14


def test_claim_3b_between_flat_and_peaked_some_rise_and_some_fall() -> None:
    log_p = log_softmax(np.array([2.0, 1.0, 0.0, -1.0, -2.0]))
    change = log_ratios(log_p, 2, 0.5)
    assert change[0] > 0 > change[3] > change[4]


def test_claim_3c_from_a_peaked_prediction_all_others_but_the_largest_fall() -> None:
    """Where π* ≥ 0.7 and π_y ≤ 0.01, π_i ≤ 0.3 < 0.49 − 0.01 ≤ τ for all i ≠ y, *."""
    rng = np.random.default_rng(3)
    found = 0
    for log_p, label, s in cases():
        peak = best_other(log_p, label)
        raised = log_p.copy()
        lift = rng.uniform(3, 9, len(label))
        np.put_along_axis(
            raised, peak[:, None], (at(log_p, peak) + lift)[:, None], axis=-1
        )
        raised = log_softmax(raised)
        p = np.exp(raised)
        kept = (at(p, peak) >= 0.7) & (at(p, label) <= 0.01)
        found += int(kept.sum())
        change = log_ratios(raised, label, s)
        np.put_along_axis(change, peak[:, None], -1.0, axis=-1)
        assert (change[kept] < 0).all()
    assert found > 2_000


def lowered(log_p: np.ndarray, label: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The label's logit lowered, the others' logits kept."""
    shift = np.zeros_like(log_p)
    np.put_along_axis(shift, label[:, None], -by[:, None], axis=-1)
    return log_softmax(log_p + shift)


def test_claim_4_first_half_the_less_likely_y_the_fewer_others_rise() -> None:
    """To first order i rises iff q_i > (1 − π_y)‖q‖² − π_y, q = π given not y."""
    rng = np.random.default_rng(4)
    compared = 0
    for log_p, label, _ in cases():
        less = lowered(log_p, label, rng.uniform(0.1, 5.0, len(label)))
        rises = [
            others(np.exp(p), label) > first_order_threshold(p, label)[:, None]
            for p in (log_p, less)
        ]
        near = (
            np.abs(
                others(np.exp(less), label)
                - first_order_threshold(less, label)[:, None]
            )
            < 1e-12
        )
        assert not (rises[1] & ~rises[0] & ~near).any()
        compared += int((rises[0] & ~rises[1]).sum())
    assert compared > 1_000


def test_claim_4_first_half_the_others_fall_more_on_average() -> None:
    """For π_y ≤ ½ the mean of Δ ln π over i ≠ y grows with π_y, to first order."""
    rng = np.random.default_rng(5)
    for log_p, label, _ in cases():
        less = lowered(log_p, label, rng.uniform(0.1, 5.0, len(label)))
        kept = at(np.exp(log_p), label) <= 0.5
        mean = [
            others(log_ratios(p, label, 1e-3), label).mean(-1) for p in (log_p, less)
        ]
        assert (mean[1] - mean[0] <= 1e-8)[kept].all()


def test_claim_4_second_half_yet_the_largest_itself_rises_less() -> None:
    """The caution: for π_y ≤ (1 − q*)/2 its own rise shrinks with π_y."""
    rng = np.random.default_rng(6)
    found = 0
    for log_p, label, _ in cases():
        peak = best_other(log_p, label)
        p_label = at(np.exp(log_p), label)
        share = at(np.exp(log_p), peak) / others(np.exp(log_p), label).sum(-1)
        kept = p_label <= (1 - share) / 2
        less = lowered(log_p, label, rng.uniform(0.1, 5.0, len(label)))
        rise = [at(log_ratios(p, label, 1e-3), peak) for p in (log_p, less)]
        assert (rise[1] - rise[0] <= 1e-8)[kept].all()
        found += int((rise[1] < rise[0])[kept].sum())
    assert found > 5_000


def test_claim_4_by_the_digests_own_numbers() -> None:
    """From π_y = 0.33 to 3e-6 others turn from rising to falling, y*'s rise shrinks."""
    logits = np.array([1.0, 0.6, 0.2, -0.3, -0.8])
    means, rises = [], []
    for target in (0.33, 0.1, 0.01, 3e-6):
        rest = np.log(np.exp(logits).sum())
        label = math.log(target / (1 - target)) + rest
        change = log_ratios(log_softmax(np.append(logits, label)), 5, 0.5)
        means.append(change[:5].mean())
        rises.append(change[0])
    assert means[0] > 0 > means[-1]
    assert means == sorted(means, reverse=True)
    assert rises == sorted(rises, reverse=True)
    assert rises[-1] > 0


def test_claim_5_a_larger_step_squeezes_more() -> None:
    """y falls more, y* rises more, and none that fell before rises."""
    for log_p, label, s in cases():
        small, large = (log_ratios(log_p, label, k * s) for k in (1.0, 2.0))
        peak = best_other(log_p, label)
        assert (at(large, label) < at(small, label)).all()
        assert (at(large, peak) >= at(small, peak)).all()
        grown = threshold(log_p, label, 2 * s) - threshold(log_p, label, s)
        assert (grown >= -1e-13).all()


@given(
    arrays(np.float64, st.integers(3, 40), elements=st.floats(-30, 30)),
    st.floats(1e-3, 50),
    st.data(),
)
@settings(max_examples=500)
def test_guarantees_hold_for_whatever_hypothesis_finds(
    logits: np.ndarray, s: float, data: st.DataObject
) -> None:
    label = data.draw(st.integers(0, len(logits) - 1))
    log_p = log_softmax(logits)
    change = log_ratios(log_p, label, s)
    rest = np.delete(np.arange(len(logits)), label)
    assert change[label] < 0
    assert change[rest[log_p[rest].argmax()]] >= 0
    mass = math.fsum(np.exp(log_p + change))
    assert mass == pytest.approx(1.0, abs=1e-9)


def test_the_third_partys_numbers_come_out() -> None:
    """Logits (2, 1, 0, −1, −2), a step of 0.5 on the fourth and on the first."""
    log_p = log_softmax(np.array([2.0, 1.0, 0.0, -1.0, -2.0]))
    low = np.exp(stepped(log_p, [Pressure(3, -0.5)]))
    high = np.exp(stepped(log_p, [Pressure(0, -0.5)]))
    assert low == pytest.approx([0.695, 0.209, 0.071, 0.016, 0.009], abs=6e-4)
    assert high == pytest.approx([0.572, 0.284, 0.097, 0.035, 0.013], abs=6e-4)


def test_a_step_up_lifts_its_class_and_lowers_the_largest_other() -> None:
    for log_p, label, s in cases():
        for row, y in zip(log_p[:20], label[:20], strict=True):
            change = stepped(row, [Pressure(int(y), s)]) - row
            assert change[y] > -1e-15
            assert change[best_other(row[None], np.array([y]))[0]] < 1e-15


def test_norms_of_the_jacobian_are_the_closed_forms() -> None:
    rng = np.random.default_rng(8)
    for _ in range(200):
        log_p = log_softmax(3 * rng.standard_normal(int(rng.integers(2, 40))))
        matrix = jacobian(log_p)
        assert np.linalg.norm(matrix) == pytest.approx(jacobian_frobenius(log_p))
        assert np.linalg.norm(matrix, 2) == pytest.approx(jacobian_operator_norm(log_p))
        rows = np.linalg.norm(matrix, axis=1) ** 2
        assert rows == pytest.approx(1 - 2 * np.exp(log_p) + squared_norm(log_p))
        shift = rng.standard_normal(len(log_p))
        assert through_softmax(log_p, shift) == pytest.approx(matrix @ shift)


@pytest.mark.parametrize("s", [0.0, -1.0, 301.0, math.nan])
def test_a_strength_out_of_range_is_refused(s: float) -> None:
    with pytest.raises(TheoryError, match="at most 300"):
        log_ratios(np.log([0.5, 0.5]), 0, s)


def test_a_class_out_of_range_is_refused() -> None:
    with pytest.raises(TheoryError, match="not among the 2"):
        threshold(np.log([0.5, 0.5]), 2, 1.0)
