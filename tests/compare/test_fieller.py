"""Ratios of means: Fieller's interval against its definition and by coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from ldeval.compare.fieller import fieller_estimate


def data(seed=0, n=40, a=1.0, b=2.0):
    rng = np.random.default_rng(seed)
    noise = rng.multivariate_normal([0, 0], [[1, 0.4], [0.4, 1]], n)
    return a + noise[:, 0], b + noise[:, 1]


def test_the_ends_are_where_the_paired_t_test_just_rejects():
    x, y = data()
    found = fieller_estimate(x, y, unit="1", n=40)

    def excess(theta):
        return scipy.stats.ttest_1samp(x - theta * y, 0.0).pvalue - 0.05

    low = scipy.optimize.brentq(excess, found.value - 3, found.value)
    high = scipy.optimize.brentq(excess, found.value, found.value + 3)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.value == pytest.approx(x.mean() / y.mean())


def test_a_denominator_that_may_be_zero_leaves_the_ratio_undefined():
    x, y = data(b=0.05)
    found = fieller_estimate(x, y, unit="1", n=40, missing="unclear")
    assert math.isnan(found.value)
    assert found.reason == "unclear"


def test_the_interval_covers_the_true_ratio_as_often_as_it_says():
    hits = 0
    for seed in range(600):
        x, y = data(seed, n=24)
        found = fieller_estimate(x, y, unit="1", n=24)
        hits += found.low <= 0.5 <= found.high
    assert 0.92 < hits / 600 < 0.98


def test_a_ratio_of_a_column_with_itself_is_one_without_doubt():
    x, _ = data()
    found = fieller_estimate(x + 4, x + 4, unit="1", n=40)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1), abs=1e-6)
