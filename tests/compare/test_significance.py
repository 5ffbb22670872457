"""Permutation tests and their adjustment, against scipy and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ldeval.compare.families import adjusted, adjusted_pairs
from ldeval.compare.significance import SignFlips, benjamini_hochberg, holm

P_VALUES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12)


def test_few_clusters_are_counted_in_full():
    rng = np.random.default_rng(0)
    sums = rng.normal(0.4, 1.0, 9)
    reached = [
        abs(np.dot(signs, sums)) >= abs(sums.sum()) - 1e-12
        for signs in itertools.product((-1, 1), repeat=9)
    ]
    assert SignFlips().p_value(sums) == np.mean(reached)


def test_many_clusters_agree_with_scipy_s_paired_permutation_test():
    rng = np.random.default_rng(1)
    sums = rng.normal(0.35, 1.0, 40)
    theirs = scipy.stats.permutation_test(
        (sums, np.zeros(40)),
        lambda x, y, axis: np.sum(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        random_state=np.random.default_rng(2),
    )
    assert SignFlips(0, 20_000).p_value(sums) == pytest.approx(theirs.pvalue, abs=0.006)


def test_under_the_hypothesis_p_values_are_uniform():
    rng = np.random.default_rng(3)
    flips = SignFlips(0, 999)
    found = [flips.p_value(rng.standard_t(3, 30)) for _ in range(400)]
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.001
    assert np.mean(np.array(found) <= 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@given(seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_neither_order_nor_direction_of_the_change_matters(seed):
    rng = np.random.default_rng(seed)
    sums, flips = rng.normal(0.2, 1, 25), SignFlips(0, 199)
    assert flips.p_value(sums) == flips.p_value(-sums[::-1])


def test_no_change_at_all_has_p_one_and_no_cluster_has_none():
    assert SignFlips().p_value(np.zeros(30)) == 1.0
    assert math.isnan(SignFlips().p_value(np.zeros(0)))


@given(P_VALUES)
def test_benjamini_and_hochberg_agree_with_scipy(values):
    theirs = scipy.stats.false_discovery_control(values)
    assert benjamini_hochberg(values) == pytest.approx(list(theirs))


@given(P_VALUES)
def test_holm_s_adjusted_p_values_are_those_of_its_definition(values):
    order = sorted(range(len(values)), key=lambda i: values[i])
    expected = {
        i: min(1.0, max((len(values) - j) * values[order[j]] for j in range(rank + 1)))
        for rank, i in enumerate(order)
    }
    assert holm(values) == pytest.approx([expected[i] for i in range(len(values))])


def test_an_undefined_p_value_belongs_to_no_family():
    found = holm([0.01, math.nan, 0.04])
    assert found[0] == pytest.approx(0.02)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(0.04)


def test_families_are_the_kinds_of_a_split_and_all_successive_pairs(small_pair):
    from ldeval.compare import digests, kind_changes, pair_rows
    from ldeval.compare.stats import Bootstrap
    from ldeval.records import KIND_BY_NAME, PairComparison

    before, after = digests(small_pair)
    rows = pair_rows(before, after)
    changes = kind_changes(before, after, rows, Bootstrap(0, 99), SignFlips(0, 499))
    pair = PairComparison(0, 10, changes, (), (), (), (), ())
    trained = [c for c in changes if c.split == "trained" and c.kind in KIND_BY_NAME]
    one = [c for c in adjusted(pair).changes if c.split == "trained"]
    expected = holm([c.p_value for c in trained])
    assert [c.p_adjusted for c in one if c.kind in KIND_BY_NAME] == expected
    assert all(math.isnan(c.p_adjusted) for c in one if c.kind not in KIND_BY_NAME)
    both = adjusted_pairs([pair, pair])
    values = [c.p_value for c in trained] * 2
    found = [
        c.p_adjusted
        for p in both
        for c in p.changes
        if c.split == "trained" and c.kind in KIND_BY_NAME
    ]
    assert found == benjamini_hochberg(values)
