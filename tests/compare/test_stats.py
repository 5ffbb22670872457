"""The interval machinery against slow computations, closed forms and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ldeval.compare.ranks import rank_correlation
from ldeval.compare.stats import (
    Bootstrap,
    bounded_estimate,
    ratio_estimate,
    slope_estimate,
    state,
)
from ldeval.records import Estimate

FEW = 199


def ratio(numerators, denominators=None, coefficients=None, *, replicates=FEW, **more):
    numerators = np.asarray(numerators, float)
    if numerators.ndim == 1:
        numerators = numerators[:, None]
    if denominators is None:
        denominators = np.ones_like(numerators)
    if coefficients is None:
        coefficients = np.ones(numerators.shape[1])
    denominators = np.asarray(denominators, float).reshape(numerators.shape)
    more = {"unit": "nats", "n": len(numerators)} | more
    more.setdefault("bootstrap", Bootstrap(0, replicates))
    return ratio_estimate(
        numerators, denominators, np.asarray(coefficients, float), **more
    )


def random_sums(seed: int, clusters: int = 15, terms: int = 2):
    rng = np.random.default_rng(seed)
    denominators = rng.integers(1, 9, size=(clusters, terms)).astype(float)
    numerators = denominators * rng.normal(0.3, 1.0, size=(clusters, terms))
    return numerators, denominators, rng.normal(size=terms)


def slow_bootstrap_t(rows, theta_and_influence, replicates, level):
    """Bootstrap-t written out: every resample is built and linearised by itself."""
    theta, influence = theta_and_influence(rows)
    size = np.array([row["size"] for row in rows])
    order = np.lexsort((size, np.abs(influence)))
    rows = [rows[i] for i in order]
    clusters = len(rows)
    se = np.std(influence, ddof=1) / math.sqrt(clusters)
    studentized = []
    for block in Bootstrap(0, replicates).weights(clusters):
        for weights in block:
            drawn = [
                row for row, w in zip(rows, weights, strict=True) for _ in range(int(w))
            ]
            value, linear = theta_and_influence(drawn)
            error = np.std(linear, ddof=1) / math.sqrt(clusters)
            studentized.append((value - theta) / error)
    tail = (1 - level) / 2
    low, high = np.quantile(studentized, [tail, 1 - tail], method="weibull")
    return theta, se, theta - high * se, theta - low * se


def test_agrees_with_a_slow_bootstrap_of_ratios_of_sums():
    numerators, denominators, coefficients = random_sums(3)

    def direct(rows):
        d = np.array([row["d"] for row in rows])
        n = np.array([row["n"] for row in rows])
        ratios = d.sum(0) / n.sum(0)
        linear = ((d - ratios * n) / n.mean(0)) @ coefficients
        return coefficients @ ratios, linear

    rows = [
        {"d": d, "n": n, "size": n.sum()}
        for d, n in zip(numerators, denominators, strict=True)
    ]
    found = ratio(numerators, denominators, coefficients, level=0.9)
    expected = slow_bootstrap_t(rows, direct, FEW, 0.9)
    assert (found.value, found.se, found.low, found.high) == pytest.approx(expected)


def test_agrees_with_a_slow_bootstrap_of_slopes():
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(20), 2)
    x = rng.normal(2.0, 1.0, 40)
    y = 0.7 * x + rng.normal(size=40)

    def direct(rows):
        x = np.concatenate([row["x"] for row in rows])
        y = np.concatenate([row["y"] for row in rows])
        slope, intercept = np.polyfit(x, y, 1)
        square = np.sum((x - x.mean()) ** 2)
        linear = [
            len(rows)
            * np.sum((row["x"] - x.mean()) * (row["y"] - intercept - slope * row["x"]))
            / square
            for row in rows
        ]
        return slope, np.array(linear)

    rows = [{"x": x[labels == g], "y": y[labels == g], "size": 2.0} for g in range(20)]
    found = slope_estimate(x, y, labels, bootstrap=Bootstrap(0, FEW), level=0.9)
    value, se, low, high = slow_bootstrap_t(rows, direct, FEW, 0.9)
    # widened in the ratio of the jackknife's standard error, from fits without one
    left_out = [np.polyfit(x[labels != g], y[labels != g], 1)[0] for g in range(20)]
    jackknife = math.sqrt(19 / 20 * np.sum((left_out - np.mean(left_out)) ** 2))
    ratio = max(jackknife / se, 1.0)
    expected = (
        *(value, ratio * se),
        *(value - ratio * (value - low), value + ratio * (high - value)),
    )
    assert (found.value, found.se, found.low, found.high) == pytest.approx(expected)


def test_one_term_with_unit_weights_is_a_mean_with_its_usual_standard_error():
    values = np.random.default_rng(0).normal(size=30)
    found = ratio(values)
    assert found.value == pytest.approx(values.mean())
    assert found.se == pytest.approx(scipy.stats.sem(values))


def test_the_interval_of_a_mean_is_near_student_s_for_normal_data():
    values = np.random.default_rng(1).normal(size=60)
    found = ratio(values, replicates=4999)
    low, high = scipy.stats.t.interval(0.95, 59, values.mean(), scipy.stats.sem(values))
    assert found.low == pytest.approx(low, abs=0.25 * found.se)
    assert found.high == pytest.approx(high, abs=0.25 * found.se)


def test_the_95_percent_interval_covers_the_mean_about_95_times_in_100():
    rng = np.random.default_rng(7)
    bootstrap = Bootstrap(0, 999)
    covered = 0
    for _ in range(300):
        found = ratio(rng.normal(1.0, 2.0, size=24), bootstrap=bootstrap)
        covered += found.low <= 1.0 <= found.high
    assert 0.90 <= covered / 300 <= 0.99


def test_the_95_percent_interval_covers_a_skewed_ratio_of_sums():
    rng = np.random.default_rng(8)
    bootstrap = Bootstrap(0, 999)
    covered = 0
    for _ in range(300):
        tokens = rng.integers(5, 60, size=32).astype(float)
        changes = tokens * (rng.exponential(1.0, size=32) - 1.5)
        found = ratio(changes, tokens, bootstrap=bootstrap)
        covered += found.low <= -0.5 <= found.high
    assert 0.88 <= covered / 300 <= 0.99


@given(seed=st.integers(0, 10_000), clusters=st.integers(2, 30))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_clusters_changes_nothing(seed, clusters):
    numerators, denominators, coefficients = random_sums(seed, clusters)
    order = np.random.default_rng(seed).permutation(clusters)
    first = ratio(numerators, denominators, coefficients)
    second = ratio(numerators[order], denominators[order], coefficients)
    assert second.value == pytest.approx(first.value)
    if clusters > 2:  # two clusters have equal influence: a tie has no order
        assert (second.low, second.high) == pytest.approx((first.low, first.high))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_interval_mirrors_when_the_sign_of_every_change_flips(seed):
    numerators, denominators, coefficients = random_sums(seed)
    one = ratio(numerators, denominators, coefficients)
    other = ratio(-numerators, denominators, coefficients)
    assert other.value == pytest.approx(-one.value)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))


@given(seed=st.integers(0, 10_000), factor=st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_the_interval_scales_with_the_unit(seed, factor):
    numerators, denominators, coefficients = random_sums(seed)
    one = ratio(numerators, denominators, coefficients)
    other = ratio(factor * numerators, denominators, coefficients)
    scaled = [factor * v for v in (one.value, one.se, one.low, one.high)]
    assert [other.value, other.se, other.low, other.high] == pytest.approx(scaled)


def test_estimates_do_not_depend_on_what_was_estimated_before():
    used = Bootstrap(0, FEW)
    for seed in range(5):
        ratio(random_sums(seed, 9)[0], bootstrap=used)
    values = np.arange(20.0) ** 2
    assert ratio(values, bootstrap=used) == ratio(values, bootstrap=Bootstrap(0, FEW))


def test_weights_resample_every_cluster_as_often_as_there_are_clusters():
    blocks = list(Bootstrap(0, 4999).weights(1500))
    assert sum(len(block) for block in blocks) == 4999
    assert all((block.sum(axis=1) == 1500).all() for block in blocks)
    assert np.concatenate(blocks).mean() == 1.0


def test_blocks_of_weights_stay_small_for_ten_thousand_clusters():
    block = next(Bootstrap(0, 4999).weights(10_000))
    assert block.nbytes <= 16_000_000


def test_another_seed_gives_another_interval_for_the_same_value():
    values = np.random.default_rng(0).normal(size=20)
    one = ratio(values, bootstrap=Bootstrap(0, FEW))
    two = ratio(values, bootstrap=Bootstrap(1, FEW))
    assert one.value == two.value
    assert one.low != two.low


def test_no_change_is_zero_with_an_interval_of_no_width():
    found = ratio(np.zeros(12))
    assert (found.value, found.se, found.low, found.high) == (0, 0, 0, 0)
    assert found.reason is None


def test_clusters_that_agree_exactly_leave_no_spread():
    tokens = np.arange(1.0, 13.0)
    found = ratio(-0.1 * tokens, tokens)
    assert found.value == pytest.approx(-0.1)
    assert found.se == 0
    assert found.low == found.high == found.value


def test_one_cluster_has_a_value_but_no_interval_and_says_why():
    found = ratio([3.0])
    assert found.value == 3.0
    assert math.isnan(found.low)
    assert math.isnan(found.se)
    assert found.reason == "1 cluster: no interval"


def test_nothing_at_all_is_undefined_with_the_reason():
    found = ratio(np.zeros((0, 1)), missing="no responses")
    assert math.isnan(found.value)
    assert found.reason == "no responses"


def test_a_term_without_weight_is_undefined_with_the_reason():
    found = ratio(np.ones((5, 2)), [[1, 0]] * 5, missing="no tokens")
    assert math.isnan(found.value)
    assert found.reason == "no tokens"


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0] * 19 + [5.0]])
def test_dropped_replicates_never_make_the_interval_narrower_than_student_s(values):
    found = ratio(values, level=0.99)
    reach = scipy.stats.t.ppf(0.995, len(values) - 1) * found.se
    assert found.low <= found.value - reach
    assert found.high >= found.value + reach


def test_a_term_that_few_clusters_carry_still_has_a_finite_interval():
    denominators = np.ones((25, 2))
    denominators[3:, 1] = 0.0
    numerators = denominators * np.random.default_rng(0).normal(size=(25, 2))
    found = ratio(numerators, denominators, [1.0, -1.0])
    assert np.isfinite([found.low, found.high]).all()
    assert found.low < found.value < found.high


def test_the_slope_needs_five_rows_and_a_source_that_varies():
    x = np.arange(4.0)
    few = slope_estimate(x, x, np.arange(4), bootstrap=Bootstrap(0, FEW))
    assert math.isnan(few.value)
    assert few.reason == "4 shared prompts; at least 5 are needed"
    same = slope_estimate(
        np.ones(9), np.arange(9.0), np.arange(9), bootstrap=Bootstrap(0, FEW)
    )
    assert math.isnan(same.value)
    assert "alike" in str(same.reason)


def test_a_perfect_line_has_its_slope_exactly():
    x = np.random.default_rng(0).normal(size=20)
    found = slope_estimate(x, 3.0 - 2.0 * x, np.arange(20), bootstrap=Bootstrap(0, FEW))
    assert found.value == pytest.approx(-2.0)
    assert found.low == pytest.approx(-2.0)
    assert found.high == pytest.approx(-2.0)


def test_repeating_every_row_within_its_cluster_leaves_the_slope_s_error_alone():
    rng = np.random.default_rng(2)
    x, noise = rng.normal(size=30), rng.normal(size=30)
    y, labels = x + noise, np.arange(30)
    once = slope_estimate(x, y, labels, bootstrap=Bootstrap(0, FEW))
    twice = slope_estimate(
        np.tile(x, 2), np.tile(y, 2), np.tile(labels, 2), bootstrap=Bootstrap(0, FEW)
    )
    assert twice.value == pytest.approx(once.value)
    assert twice.se == pytest.approx(once.se)


def test_rank_correlation_agrees_with_scipy_and_is_nan_for_a_constant():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 30).astype(float), rng.normal(size=30)
    expected = scipy.stats.spearmanr(x, y).statistic
    assert rank_correlation(x, y) == pytest.approx(expected)
    assert math.isnan(rank_correlation(x, np.ones(30)))


def interval(low: float, value: float, high: float) -> Estimate:
    return Estimate(value, low, high, 1.0, 0.99, 30, 30, "nats/token")


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (interval(0.02, 0.03, 0.04), "up"),
        (interval(-0.04, -0.03, -0.02), "down"),
        (interval(-0.005, 0.001, 0.007), "flat"),
        (interval(-0.02, 0.0, 0.02), "unclear"),
        (interval(0.005, 0.02, 0.035), "unclear"),
        (interval(0.0, 0.0, 0.0), "flat"),
        (interval(math.nan, 0.5, math.nan), "unclear"),
        (Estimate.undefined("absent", unit="nats", level=0.99), "unclear"),
    ],
)
def test_states_follow_their_definition(estimate, expected):
    assert state(estimate, 0.01) == expected


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_the_state_of_a_mirrored_estimate_is_the_mirrored_state(value, half, margin):
    mirror = {"up": "down", "down": "up", "flat": "flat", "unclear": "unclear"}
    one = interval(value - half, value, value + half)
    other = interval(-value - half, -value, -value + half)
    assert state(other, margin) == mirror[state(one, margin)]


def test_bounds_are_met_in_the_middle_and_their_intervals_joined():
    both = bounded_estimate(interval(0.1, 0.2, 0.3), interval(0.3, 0.4, 0.6))
    assert (both.low, both.value, both.high) == pytest.approx((0.1, 0.3, 0.6))


def test_few_clusters_get_students_t_interval():
    values = np.array([0.3, 1.1, -0.4, 0.9, 2.0])[:, None]
    found = ratio_estimate(
        values,
        np.ones_like(values),
        np.ones(1),
        unit="nats",
        n=5,
        bootstrap=Bootstrap(0, 199),
    )
    expected = scipy.stats.t.interval(
        0.95, 4, loc=values.mean(), scale=scipy.stats.sem(values[:, 0])
    )
    assert (found.low, found.high) == pytest.approx(expected)
