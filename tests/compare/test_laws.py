"""Squeeze or temperature, rich and poor: closed forms, brute force, known answers."""

from __future__ import annotations

import numpy as np
import pytest

from ldeval.compare import Bootstrap, build_reference, digests
from ldeval.compare.laws import law_tests, left_out_errors, richer_curves

from .conftest import log_softmax, make_world, squeeze_step, without

KINDS = ("chosen", "rejected")
FEW = Bootstrap(0, 199)


def tables_of(change, trained=20, seed=0, top_k=12):
    world = make_world(trained, seed=seed, kinds=KINDS, tokens=(6, 12))
    after = world.changed(change)
    return world, after, [world.table(0, top_k=top_k), after.table(1, world, top_k)]


def laws_of(change, **more):
    _, _, tables = tables_of(change, **more)
    found = law_tests(digests(tables)[-1], FEW)
    return {law.kind: law for law in found if law.split == "trained"}


def test_a_pure_squeeze_step_is_explained_by_p_with_its_own_strength():
    law = laws_of(lambda p, k, z, y: squeeze_step(z, y, 0.7))["rejected"]
    assert law.squeeze.value == pytest.approx(0.7, abs=1e-6)
    assert law.squeeze_r2 == pytest.approx(1.0)
    assert law.reading == "squeeze"


def test_pure_sharpening_is_explained_by_ln_p_with_its_temperature():
    law = laws_of(lambda p, k, z, y: z / 0.8)["rejected"]
    assert law.temperature.value == pytest.approx(1 / 0.8 - 1, abs=1e-6)
    assert law.temperature_r2 == pytest.approx(1.0)
    assert law.reading == "temperature"


def test_noise_alone_is_neither():
    rng = np.random.default_rng(0)
    law = laws_of(lambda p, k, z, y: z + 0.3 * rng.standard_normal(z.shape))["chosen"]
    assert law.reading == "neither"
    assert max(law.squeeze_r2, law.temperature_r2) < 0.05


def test_the_left_out_errors_are_those_of_fits_without_the_cluster():
    rng = np.random.default_rng(1)
    x, group = rng.normal(size=90), np.repeat(np.arange(9), 10)
    y = 0.5 * x + rng.normal(size=90)
    expected = []
    for g in range(9):
        rest = group != g
        slope = (x[rest] @ y[rest]) / (x[rest] @ x[rest])
        expected.append(np.sum((y[~rest] - slope * x[~rest]) ** 2))
    sums = [np.bincount(group, weights=v) for v in (x * y, x * x, y * y)]
    assert left_out_errors(*sums) == pytest.approx(expected)


def test_the_slope_is_the_pooled_within_position_least_squares_slope():
    rng = np.random.default_rng(2)

    def change(p, k, z, y):
        return squeeze_step(z, y, 0.4) + 0.1 * rng.standard_normal(z.shape)

    world, after, tables = tables_of(change)
    law = next(la for la in law_tests(digests(tables)[-1], FEW) if la.kind == "chosen")
    above = below = 0.0
    for probe in world.probes:
        labels = world.labels[probe, "chosen"]
        first, last = (log_softmax(w.logits[probe, "chosen"]) for w in (world, after))
        for m, label in enumerate(labels):
            top = np.argsort(-first[m], kind="stable")[:12]
            top = top[top != label]
            x, d = np.exp(first[m][top]), (last - first)[m][top]
            above += (x - x.mean()) @ (d - d.mean())
            below += (x - x.mean()) @ (x - x.mean())
    # scores are stored in single precision
    assert law.squeeze.value == pytest.approx(above / below, rel=1e-5)


def test_tokens_above_the_threshold_rise_and_the_rich_get_richer():
    world, _, tables = tables_of(lambda p, k, z, y: squeeze_step(z, y, 0.02), top_k=24)
    kept = digests(tables)
    reference = build_reference(tables[0])
    curve = next(
        c for c in richer_curves(kept[-1], reference, FEW) if c.kind == "rejected"
    )
    assert curve.above.low > 0 > curve.below.high
    changes = [item.change.value for item in curve.bins]
    assert changes[-1] == max(changes)
    assert changes[-1] > 0 > changes[0]
    assert sum(item.tokens for item in curve.bins) == 23 * sum(
        len(world.labels[p, "rejected"]) for p in world.probes
    )
    assert 0 <= curve.valleys <= 1


def test_without_norms_there_is_no_threshold_and_the_reason_is_named():
    _, _, tables = tables_of(lambda p, k, z, y: squeeze_step(z, y, 0.5))
    bare = [without(table, "sq_norms") for table in tables]
    curve = richer_curves(digests(bare)[-1], build_reference(bare[0]), FEW)[0]
    assert np.isnan(curve.threshold)
    assert "sq_norms" in str(curve.above.reason)
    assert curve.bins[0].tokens > 0


def test_without_top_tokens_there_is_no_law():
    _, _, tables = tables_of(lambda p, k, z, y: squeeze_step(z, y, 0.5))
    bare = [without(table, "top_ids", "top_logprobs") for table in tables]
    assert law_tests(digests(bare)[-1], FEW) == ()
