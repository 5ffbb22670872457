"""Rise, fall and slope of a path, and what noise makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from ldeval.compare.clusters import Term
from ldeval.compare.series import Series
from ldeval.compare.shape import peak_interval, shape, slope_weights
from ldeval.compare.stats import Bootstrap

FEW = Bootstrap(0, 199)


def series_of(path, n=60, noise=0.3, seed=0, tokens=None):
    rng = np.random.default_rng(seed)
    tokens = np.ones(n) if tokens is None else tokens
    changes = np.asarray(path)[:, None] + noise * rng.standard_normal((len(path), n))
    changes = (changes - changes[0]) * tokens
    names = np.array([f"p{i:03d}" for i in range(n)])
    return Series(Term(names, {"chosen": names}, changes[-1], tokens), changes)


def test_the_slope_is_that_of_least_squares_on_the_place_in_the_run():
    steps, path = [0, 10, 20, 50], np.array([0.0, 0.3, 0.1, 0.9])
    place = np.array(steps) / 50
    assert slope_weights(steps) @ path == pytest.approx(np.polyfit(place, path, 1)[0])
    found = shape(series_of(path, noise=0.0), steps, FEW)
    assert found.slope.value == pytest.approx(np.polyfit(place, path, 1)[0])


def test_a_bell_rises_to_its_peak_and_falls_from_it():
    found = shape(series_of([0, 0.5, 1.0, 0.6, 0.2]), range(5), FEW)
    assert found.peak == 2
    assert found.rise.low > 0.7
    assert found.rise.value == pytest.approx(1.0, abs=0.15)
    assert found.fall.value == pytest.approx(0.8, abs=0.15)


def test_a_steady_rise_has_its_peak_at_the_end_and_no_fall():
    found = shape(series_of(np.linspace(0, 2, 6)), range(6), FEW)
    assert found.peak == 5
    assert found.fall.value == 0.0
    assert peak_interval(series_of(np.linspace(0, 2, 6)), 0) == (5, 5)


def test_noise_alone_gives_neither_rise_nor_fall_on_average():
    rises, falls = [], []
    for seed in range(150):
        flat = series_of(np.zeros(12), n=40, noise=1.0, seed=seed)
        found = shape(flat, range(12), Bootstrap(0, 0))
        rises.append(found.rise.value)
        falls.append(found.fall.value)
    for values in (rises, falls):
        assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values)) + 0.01


def test_every_response_counts_by_its_tokens():
    tokens = np.array([1.0, 9.0] * 30)
    heavy = series_of([0.0, 1.0], tokens=tokens, noise=0.0)
    assert shape(heavy, [0, 1], FEW).rise.value == pytest.approx(1.0)


def test_the_peak_s_interval_widens_with_noise():
    sharp = peak_interval(series_of([0, 1, 0.9, 0], noise=0.05), 0)
    blunt = peak_interval(series_of([0, 1, 0.9, 0], noise=3.0), 0)
    assert sharp == (1, 1)
    assert blunt[1] > blunt[0]
