"""The Simpson index and its ratio."""

from __future__ import annotations

import numpy as np
import pytest

from ldeval.compare.repetition import argmax_counts, simpson_ratio
from ldeval.compare.stats import Bootstrap


def counts_of(ids, cluster):
    return argmax_counts(np.atleast_2d(ids), np.asarray(cluster))


def test_counts_leave_out_unknown_ids_and_positions_of_no_cluster():
    counts = counts_of([[5, 5, -1, 9, 9], [5, 6, 6, 9, 9]], [0, 0, 1, 1, -1])
    assert [int(matrix.sum()) for matrix in counts] == [3, 4]
    assert counts[0].shape == counts[1].shape


def test_the_ratio_is_that_of_the_chances_of_meeting_one_id_twice():
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, 20, 200), rng.integers(0, 5, 200)])
    cluster = np.repeat(np.arange(25), 8)
    before, after = counts_of(ids, cluster)
    found = simpson_ratio(
        before, [after], n=25, bootstrap=Bootstrap(0, 199), level=0.99
    )
    index = [np.mean(row[:, None] == row[None, :]) for row in ids]
    assert found.value == pytest.approx(index[1] / index[0])
    assert found.low < found.value < found.high


def test_its_standard_error_agrees_with_the_jackknife():
    rng = np.random.default_rng(1)
    ids = np.stack([rng.integers(0, 9, 400), rng.geometric(0.4, 400)])
    cluster = np.repeat(np.arange(50), 8)
    before, after = counts_of(ids, cluster)
    found = simpson_ratio(
        before, [after], n=50, bootstrap=Bootstrap(0, 199), level=0.95
    )
    without_one = []
    for g in range(50):
        rest = ids[:, cluster != g]
        index = [np.mean(row[:, None] == row[None, :]) for row in rest]
        without_one.append(index[1] / index[0])
    jackknife = np.sqrt(49 / 50 * np.sum((without_one - np.mean(without_one)) ** 2))
    assert found.se == pytest.approx(jackknife, rel=0.1)


def test_the_same_ids_at_both_ends_have_a_ratio_of_one_without_spread():
    ids = np.random.default_rng(2).integers(0, 9, 100)
    before, after = counts_of(np.stack([ids, ids]), np.repeat(np.arange(20), 5))
    found = simpson_ratio(
        before, [after], n=20, bootstrap=Bootstrap(0, 199), level=0.99
    )
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
