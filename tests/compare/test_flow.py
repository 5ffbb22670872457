"""Flows against the full distributions, with and without unknown probabilities."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldeval.compare import Bootstrap, digests, flows, pair_rows
from ldeval.compare.flow import BIN_NAMES

from .conftest import log_softmax, make_world, squeeze_step, squeezed, without

FEW = Bootstrap(0, 199)
KINDS = ("chosen", "rejected")


def between(reference, before, after, kind="rejected", stratum="off"):
    _, earlier, later = digests([reference, before, after])
    found = flows(earlier, later, pair_rows(earlier, later), FEW, [kind], [stratum])
    return {flow.split: flow for flow in found}


def bounds(reference, table, kind="rejected"):
    """[R, 4] lower and upper masses off the label along ``kind``."""
    found = digests([reference, table])[1]
    low, high = found.masses(0)[:, found.kinds == kind]
    return low, high


def slow_flow(reference, before, after, kind, top_k):
    """Mean flow of each bin from the full softmax of every off-label position."""
    totals, positions = np.zeros(4), 0
    for probe in reference.probes:
        y = reference.labels[probe, kind]
        worlds = (reference, before, after)
        ref, first, last = (np.exp(log_softmax(w.logits[probe, kind])) for w in worlds)
        for m, label in enumerate(y):
            top = np.argsort(-ref[m], kind="stable")[:top_k].tolist()
            if top[0] == label:
                continue
            rest = [v for v in top if v not in (label, top[0])]
            gain = last[m] - first[m]
            bins = [gain[label], gain[top[0]], gain[rest].sum()]
            totals += [*bins, -sum(bins)]
            positions += 1
    return totals / positions, positions


def values(flow):
    return np.array([getattr(flow, name).value for name in BIN_NAMES])


def worlds(seed):
    """Three checkpoints between which tokens change places."""
    rng = np.random.default_rng(seed)
    reference = make_world(6, seed=seed, kinds=KINDS, vocab=15)
    before = reference.changed(squeezed(seed + 1))
    return (
        reference,
        before,
        before.changed(lambda p, k, z, y: z + rng.normal(size=z.shape)),
    )


@pytest.mark.parametrize("top_k", [4, 15])
def test_flows_agree_with_the_full_distributions(top_k):
    reference, before, after = worlds(0)
    tables = [
        world.table(step, reference, top_k=top_k)
        for step, world in enumerate((reference, before, after))
    ]
    expected, positions = slow_flow(reference, before, after, "rejected", top_k)
    flow = between(*tables)["trained"]
    assert flow.positions == positions
    assert values(flow) == pytest.approx(expected, abs=1e-12)
    assert flow.exact_share == 1.0


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_bins_sum_to_zero_when_exact(seed):
    reference, before, after = worlds(seed)
    tables = [w.table(i, reference) for i, w in enumerate((reference, before, after))]
    for kind in KINDS:
        flow = between(*tables, kind)["trained"]
        assert abs(values(flow).sum()) < 1e-9


def test_flows_of_successive_pairs_add_up():
    chain = worlds(4)
    tables = [w.table(i, chain[0]) for i, w in enumerate(chain)]
    first = values(between(tables[0], tables[0], tables[1])["trained"])
    second = values(between(tables[0], tables[1], tables[2])["trained"])
    whole = values(between(tables[0], tables[0], tables[2])["trained"])
    assert first + second == pytest.approx(whole, abs=1e-12)


@given(seed=st.integers(0, 1000), share=st.floats(0.1, 1.0))
@settings(max_examples=20, deadline=None)
def test_bounds_contain_the_truth_when_ids_are_dropped(seed, share):
    chain = worlds(seed)
    tables = [w.table(i, chain[0], top_k=6) for i, w in enumerate(chain)]
    truth = values(between(*tables)["trained"])
    rng = np.random.default_rng(seed)
    for table in tables[1:]:
        unknown = rng.random(table.tokens.ref_logprobs.shape) < share
        table.tokens.ref_logprobs[unknown] = np.nan
    bounded = between(*tables)["trained"]
    for table in tables:
        low, high = bounds(tables[0], table)
        assert (low <= high + 1e-12).all()
        # what is unknown of argmax and top-k is missing from the tail, at most
        slack = (high - low)[:, 1:3].sum(axis=1)
        assert ((high - low)[:, 3] <= slack + 1e-12).all()
    for name, true in zip(BIN_NAMES, truth, strict=True):
        estimate = getattr(bounded, name)
        assert estimate.low - 1e-12 <= true <= estimate.high + 1e-12
    assert bounded.label.value == pytest.approx(truth[0])


def test_bounds_contain_the_truth_at_every_response():
    reference, _, after = worlds(2)
    table = after.table(1, reference, top_k=6)
    first = reference.table(0, top_k=6)
    truth = bounds(first, table)[0]
    table.tokens.ref_logprobs[:] = np.nan
    low, high = bounds(first, table)
    assert (low <= truth + 1e-12).all()
    assert (truth <= high + 1e-12).all()
    assert (low < high).any()


def test_an_unknown_probability_never_exceeds_the_smallest_stored_one():
    reference, _, after = worlds(3)
    table = after.table(1, reference, top_k=5)
    table.tokens.ref_logprobs[:] = np.nan
    low, high = bounds(reference.table(0, top_k=5), table)
    rows = np.flatnonzero(table.kinds == "rejected")
    for row, width in zip(rows, (high - low)[:, 1], strict=True):
        smallest = np.exp(table.row(int(row)).top_logprobs[:, -1])
        assert width <= smallest.sum() + 1e-12


def test_dropped_ids_are_counted_and_leave_the_label_s_flow_exact():
    reference, before, after = worlds(5)
    tables = [w.table(i, reference) for i, w in enumerate((reference, before, after))]
    exact = between(*tables)["trained"]
    tables[2] = without(tables[2], "ref_ids", "ref_logprobs")
    bounded = between(*tables)["trained"]
    assert bounded.exact_share < 1.0 == exact.exact_share
    assert bounded.label == exact.label


def test_without_any_top_tokens_later_the_bounds_still_hold():
    reference, before, after = worlds(6)
    tables = [w.table(i, reference) for i, w in enumerate((reference, before, after))]
    truth = values(between(*tables)["trained"])
    bare = ("ref_ids", "ref_logprobs", "top_ids", "top_logprobs")
    tables[2] = without(tables[2], *bare, "argmax_ids", "argmax_logprobs")
    bounded = between(*tables)["trained"]
    for name, true in zip(BIN_NAMES, truth, strict=True):
        assert getattr(bounded, name).low <= true <= getattr(bounded, name).high
    assert math.isnan(bounded.risen_share)
    assert bounded.exact_share == 0.0


def test_a_squeeze_step_feeds_the_argmax_and_starves_the_label():
    world = make_world(20, kinds=KINDS)
    after = world.changed(lambda p, k, z, y: squeeze_step(z, y, 1.0))
    flow = between(world.table(0), world.table(0), after.table(1, world))["trained"]
    assert flow.argmax.low > 0 > flow.label.high
    assert flow.argmax.value > -flow.label.value  # the other tokens pay as well


def test_the_share_of_risen_positions_counts_argmax_ids_outside_the_bins():
    world = make_world(8, kinds=KINDS)

    def raise_the_last(probe, kind, z, y):
        lifted = z.copy()
        lifted[np.arange(len(z)), np.argmin(z, axis=1)] += 20.0
        return lifted

    after = world.changed(raise_the_last).table(1, world)
    first = world.table(0)
    raised = [
        np.argmin(world.logits[p, "rejected"], axis=1)[m] != y
        for p in world.probes
        for m, y in enumerate(world.labels[p, "rejected"])
        if np.argmax(world.logits[p, "rejected"][m]) != y
    ]
    flow = between(first, first, after)["trained"]
    assert flow.risen_share == pytest.approx(np.mean(raised))


def test_only_off_label_positions_are_counted():
    world = make_world(5, kinds=KINDS)
    labels = {
        row: np.argmax(z, axis=1) if row[1] == "chosen" else world.labels[row]
        for row, z in world.logits.items()
    }
    world = dataclasses.replace(world, labels=labels)
    after = world.changed(squeezed()).table(1, world)
    assert between(world.table(0), world.table(0), after, "chosen") == {}
    flow = between(world.table(0), world.table(0), after)["trained"]
    off = sum(
        np.sum(np.argmax(world.logits[p, "rejected"], axis=1) != labels[p, "rejected"])
        for p in world.probes
    )
    assert flow.positions == off


def test_no_bins_without_the_reference_s_top_tokens():
    table = make_world(3, kinds=KINDS).table(0)
    for columns in (("top_ids", "top_logprobs"), ("argmax_ids",)):
        bare = without(table, *columns)
        assert between(bare, bare, bare) == {}


def test_a_response_missing_later_is_left_out_of_the_flow():
    reference, before, after = worlds(7)
    tables = [w.table(i, reference) for i, w in enumerate((reference, before, after))]
    sums = tables[2].logprob_sums.copy()
    gone = tables[2].index()["p001", "rejected"]
    sums[gone] = np.nan
    whole = between(*tables)["trained"]
    tables[2] = dataclasses.replace(tables[2], logprob_sums=sums)
    part = between(*tables)["trained"]
    assert part.positions < whole.positions
    assert part.argmax.n == whole.argmax.n - 1
