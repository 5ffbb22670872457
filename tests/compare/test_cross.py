"""Pull, collateral, location, leak, spill-over and likeness, on known answers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from ldeval.compare import Bootstrap, Thresholds, build_reference, digests
from ldeval.compare.cross import cluster_order, collateral, cross_influence
from ldeval.compare.evidence import SplitEvidence
from ldeval.compare.memory import crossover_leak, spill_over, trained_between
from ldeval.records import Estimate, InfluenceCell

from .conftest import make_world, squeezed
from .test_influence import with_changes

FEW = Bootstrap(0, 199)


def evidence_of(tables):
    return SplitEvidence(digests(tables), "trained", FEW, Thresholds())


def with_step(table, step):
    manifest = dataclasses.replace(table.manifest, step=step)
    return dataclasses.replace(table, manifest=manifest)


@pytest.fixture(scope="module")
def moved():
    """30 prompts; chosen gains 2 g, rejected loses 3 g, initial loses g."""
    world = make_world(30, tokens=(6, 12))
    rng = np.random.default_rng(0)
    gain = {probe: 1.0 + 0.2 * rng.normal() for probe in world.probes}
    factor = {"chosen": 2.0, "rejected": -3.0, "initial": -1.0}
    before = world.table(0)
    after = with_changes(before, lambda p, k, n: factor.get(k, 0.0) * gain[p])
    return world, [before, with_step(after, 10)]


def test_collateral_is_what_a_kind_lost_for_each_nat_of_margin(moved):
    evidence = evidence_of(moved[1])
    found = collateral("initial", evidence.series)
    assert found.value == pytest.approx(1 / 5)
    assert found.low == pytest.approx(found.high)
    assert collateral("rejected", evidence.series).value == pytest.approx(3 / 5)


def test_a_margin_that_did_not_move_leaves_collateral_undefined():
    world = make_world(24, kinds=("chosen", "rejected", "initial"))
    rng = np.random.default_rng(1)
    before = world.table(0)
    after = with_changes(before, lambda p, k, n: rng.normal())
    found = collateral("initial", evidence_of([before, with_step(after, 1)]).series)
    assert math.isnan(found.value)
    assert "margin did not clearly change" in str(found.reason)


def test_everything_about_influence_comes_with_an_interval_or_a_reason(moved):
    world, tables = moved
    found = cross_influence(
        evidence_of(tables), build_reference(tables[0]), [], None, FEW
    )
    assert {p.kind for p in found.pulls} == {kind for _, kind in world.labels}
    for pull in found.pulls:
        for estimate in (pull.relative, pull.per_margin, pull.normalised):
            assert estimate.reason or estimate.low <= estimate.value <= estimate.high
    assert found.spill == ()


def test_the_four_places_of_a_change_add_up_to_it():
    world = make_world(24, tokens=(5, 10))
    tables = [world.table(0), world.changed(squeezed()).table(10, world)]
    found = cross_influence(
        evidence_of(tables), build_reference(tables[0]), [], None, FEW
    )
    for place in found.locations:
        rows = tables[0].kinds == place.kind
        change = (tables[1].logprob_sums - tables[0].logprob_sums)[rows].mean()
        parts = (place.first, place.shared, place.contrastive, place.end)
        assert sum(p.value for p in parts) == pytest.approx(change, abs=1e-5)


def test_the_normalised_change_and_sign_delta_follow_their_formulas():
    world = make_world(24, tokens=(5, 10))
    tables = [world.table(0), world.changed(squeezed()).table(10, world)]
    found = cross_influence(
        evidence_of(tables), build_reference(tables[0]), [], None, FEW
    )
    pull = next(p for p in found.pulls if p.kind == "rejected")
    rows = np.repeat(tables[0].kinds == "rejected", tables[0].n_tokens)
    first, last = (t.tokens for t in tables)
    p = np.exp(first.logprobs[rows])
    delta = (last.logprobs - first.logprobs)[rows]
    expected = np.mean(delta**2 / (1 - 2 * p + first.sq_norms[rows]))
    assert pull.normalised.value == pytest.approx(expected, rel=1e-4)
    expected = np.mean((last.mean_logprobs - first.mean_logprobs)[rows])
    assert pull.sign_delta.value == pytest.approx(expected, abs=1e-6)


def test_a_trained_response_that_leaks_to_other_prompts_is_told_from_an_untrained_one():
    world = make_world(40, kinds=("chosen", "irrelevant_train", "irrelevant_test"))
    # untrained sources: the irrelevant_test texts of the second half
    probes = world.probes
    texts = dict(world.texts)
    for i, probe in enumerate(probes):
        texts[probe, "irrelevant_train"] = texts[probes[(i + 1) % 20], "chosen"]
        texts[probe, "irrelevant_test"] = texts[probes[20 + (i + 1) % 20], "chosen"]
    world = dataclasses.replace(world, texts=texts)
    before = world.table(0)
    rng = np.random.default_rng(2)
    own = {probe: rng.normal() for probe in probes}
    source = {
        (p, "irrelevant_train"): probes[(i + 1) % 20] for i, p in enumerate(probes)
    }

    def change(probe, kind, n):
        if kind == "chosen":
            return own[probe] * n
        if kind == "irrelevant_train":
            return 0.5 * own[source[probe, kind]] * n
        return 0.01 * rng.normal() * n

    after = with_step(with_changes(before, change), 10)
    log = {5: frozenset(probes[:20])}
    evidence = evidence_of([before, after])
    found = crossover_leak(evidence, log, FEW)
    assert found.value == pytest.approx(0.5, abs=0.02)
    assert found.low > 0
    missing = crossover_leak(evidence, {5: frozenset(probes)}, FEW)
    assert "no irrelevant response whose untrained source" in str(missing.reason)


def test_direct_and_spill_over_are_told_apart_by_what_each_pair_trained():
    world = make_world(30, kinds=("chosen", "rejected"))
    before = world.table(0)
    half = set(world.probes[:15])
    middle = with_changes(before, lambda p, k, n: n * (0.4 if p in half else 0.1))
    last = with_changes(middle, lambda p, k, n: n * (0.1 if p in half else 0.4))
    tables = [before, with_step(middle, 10), with_step(last, 20)]
    log = {5: frozenset(half), 15: frozenset(world.probes[15:])}
    found = spill_over(evidence_of(tables), log, FEW)[0]
    assert found.direct.value == pytest.approx(0.4)
    assert found.spill.value == pytest.approx(0.1)
    assert found.contrast.value == pytest.approx(0.3)
    assert spill_over(evidence_of(tables), None, FEW) == ()
    assert trained_between(log, 0, 10) == half


def test_likeness_to_chosen_explains_a_change_that_grows_with_it():
    world = make_world(24, tokens=(6, 10))
    before = world.table(0)
    reference = build_reference(before)
    likeness = dict(zip(before.index(), reference.similarity, strict=True))
    after = with_changes(before, lambda p, k, n: n * 2.0 * likeness[p, k])
    found = cross_influence(
        evidence_of([before, with_step(after, 10)]), reference, [], None, FEW
    )
    assert [p.step for p in found.similarity] == [10]
    assert found.similarity[0].slope.value == pytest.approx(2.0)


def test_kinds_that_move_alike_stand_side_by_side():
    names = ("chosen", "rejected", "initial", "permuted")
    alike = {frozenset({"chosen", "initial"}), frozenset({"rejected", "permuted"})}
    blank = Estimate(0, 0, 0, 0, 0.95, 9, 9, "")
    cells = [
        InfluenceCell(
            *(a, b, "trained", blank, 0.9 if {a, b} in alike else 0.0, blank, blank)
        )
        for a in names
        for b in names
        if a != b
    ]
    order = cluster_order(cells)
    assert abs(order.index("chosen") - order.index("initial")) == 1
    assert abs(order.index("rejected") - order.index("permuted")) == 1
