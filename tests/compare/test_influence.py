"""Slopes between kinds."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from ldeval.compare import Bootstrap, influence, pair_rows
from ldeval.compare.influence import partial_slope
from ldeval.compare.ranks import rank_estimate

from .conftest import lift, make_world

FEW = Bootstrap(0, 199)


def with_changes(before, change):
    """A later table whose Δsum is ``change(probe, kind, tokens)``."""
    rows = zip(
        before.probe_ids.tolist(),
        before.kinds.tolist(),
        before.n_tokens.tolist(),
        strict=True,
    )
    gained = np.array([change(*row) for row in rows])
    return dataclasses.replace(before, logprob_sums=before.logprob_sums + gained)


def cells_between(before, after):
    found = influence(before, after, pair_rows(before, after), FEW)
    return {(cell.source, cell.target, cell.split): cell for cell in found}


def test_the_slope_is_that_of_the_target_s_change_per_token_on_the_source_s():
    world = make_world(30, kinds=("chosen", "rejected"))
    rng = np.random.default_rng(0)
    gain = {probe: rng.normal() for probe in world.probes}
    factor = {"chosen": 1.0, "rejected": 0.5}
    before = world.table(0)
    after = with_changes(before, lambda p, kind, n: factor[kind] * gain[p] * n)
    cells = cells_between(before, after)
    assert cells["chosen", "rejected", "trained"].slope.value == pytest.approx(0.5)
    assert cells["rejected", "chosen", "trained"].slope.value == pytest.approx(2.0)
    assert cells["chosen", "rejected", "trained"].correlation == pytest.approx(1.0)


def test_unrelated_kinds_have_a_slope_whose_interval_holds_zero():
    world = make_world(40, kinds=("chosen", "initial"))
    rng = np.random.default_rng(1)
    before = world.table(0)
    after = with_changes(before, lambda p, kind, n: n * rng.normal())
    slope = cells_between(before, after)["chosen", "initial", "trained"].slope
    assert slope.low < 0 < slope.high
    assert slope.level == 0.95


def test_every_ordered_pair_of_kinds_has_a_cell_but_the_diagonal_has_none(small_pair):
    cells = cells_between(*small_pair)
    assert len(cells) == 2 * 12 * 11
    assert all(source != target for source, target, _ in cells)


def test_fewer_than_five_shared_prompts_leave_the_slope_undefined():
    before = make_world(4, kinds=("chosen", "rejected")).table(0)
    rng = np.random.default_rng(0)
    after = with_changes(before, lambda p, kind, n: rng.normal())
    slope = cells_between(before, after)["chosen", "rejected", "trained"].slope
    assert math.isnan(slope.value)
    assert slope.reason == "4 shared prompts; at least 5 are needed"


def test_a_source_that_did_not_move_explains_nothing():
    world = make_world(12, kinds=("chosen", "rejected"))
    after = world.changed(lambda p, k, z, y: z if k == "chosen" else lift(z, y, 0.2))
    cells = cells_between(world.table(0), after.table(1, world))
    cell = cells["chosen", "rejected", "trained"]
    assert math.isnan(cell.slope.value)
    assert "alike on every prompt" in str(cell.slope.reason)
    assert math.isnan(cell.correlation)


def test_the_partial_slope_is_that_of_the_regression_with_its_controls():
    rng = np.random.default_rng(5)
    controls = rng.normal(size=(60, 4))
    x = controls @ [0.5, -1.0, 0.2, 0.0] + rng.normal(size=60)
    y = 0.7 * x + controls @ [1.0, 0.3, 0.0, -0.5] + 0.1 * rng.normal(size=60)
    found = partial_slope(x, y, controls, np.arange(60), FEW)
    design = np.column_stack([x, np.ones(60), controls])
    expected = np.linalg.lstsq(design, y, rcond=None)[0][0]
    assert found.value == pytest.approx(expected)
    assert found.low < 0.7 < found.high


def test_length_alone_makes_a_slope_that_the_partial_one_does_not_show():
    partial, covered = [], 0
    for seed in range(24):
        world = make_world(60, kinds=("chosen", "initial"), tokens=(4, 30), seed=seed)
        rng = np.random.default_rng(100 + seed)
        before = world.table(0)
        lengths = {p: len(world.labels[p, "chosen"]) for p in world.probes}
        gain = {k: 0.1 * rng.normal(size=60) for k in ("chosen", "initial")}
        places = {p: i for i, p in enumerate(world.probes)}
        after = with_changes(
            before,
            lambda p, k, n, of=lengths, g=gain, at=places: (
                n * (0.1 * of[p] + g[k][at[p]])
            ),
        )
        cell = cells_between(before, after)["chosen", "initial", "trained"]
        assert cell.slope.low > 0.5
        partial.append(cell.partial.value)
        covered += cell.partial.low < 0 < cell.partial.high
    assert abs(np.mean(partial)) < 3 * np.std(partial) / np.sqrt(len(partial))
    assert covered >= 20


def test_the_rank_correlation_agrees_with_scipy_and_its_interval_holds_it():
    rng = np.random.default_rng(7)
    x = rng.normal(size=50)
    y = x + rng.normal(size=50)
    found = rank_estimate(x, y, 50)
    assert found.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert -1 < found.low < found.value < found.high < 1
    assert math.isnan(rank_estimate(np.ones(50), y, 50).value)


def test_the_rank_correlation_s_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(8)
    truth = 6 / np.pi * np.arcsin(0.5 / 2)  # of a normal pair with correlation 0.5
    hits = 0
    for _ in range(500):
        x = rng.normal(size=40)
        y = 0.5 * x + np.sqrt(0.75) * rng.normal(size=40)
        found = rank_estimate(x, y, 40)
        hits += found.low <= truth <= found.high
    assert 0.92 < hits / 500 < 0.98
