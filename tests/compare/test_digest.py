"""A checkpoint read part by part against the same read whole, and brute force."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ldeval.compare import (
    Bootstrap,
    build_reference,
    compare_run,
    digest,
    digests,
    flows,
    kind_changes,
    pair_rows,
)
from ldeval.errors import MismatchError
from ldeval.records import ScoreTable

from .conftest import log_softmax, make_world, reordered, squeezed

FEW = Bootstrap(0, 99)
KINDS = ("chosen", "rejected", "initial")


@dataclasses.dataclass
class Parts:
    """A table given out in parts of a few responses."""

    table: ScoreTable
    size: int = 7

    @property
    def manifest(self):
        return self.table.manifest

    def chunks(self):
        for start in range(0, len(self.table), self.size):
            yield self.table.part(start, min(start + self.size, len(self.table)))


@pytest.fixture(scope="module")
def worlds():
    first = make_world(12, 4, kinds=KINDS, tokens=(6, 14))
    second = first.changed(squeezed(1))
    return first, second, second.changed(squeezed(2))


def tables_of(worlds):
    return [world.table(10 * i, worlds[0]) for i, world in enumerate(worlds)]


def test_a_run_read_in_parts_compares_exactly_as_one_read_whole(worlds):
    tables = tables_of(worlds)
    whole = compare_run(tables, run="r", replicates=99)
    assert compare_run(list(map(Parts, tables)), run="r", replicates=99) == whole


def test_the_order_of_rows_in_a_later_table_does_not_matter(worlds):
    tables = tables_of(worlds)
    order = np.random.default_rng(0).permutation(len(tables[1]))
    moved = reordered(tables[1], order)
    plain = digests([tables[0], tables[1]])[1].columns
    other = digests([tables[0], Parts(moved)])[1].columns
    assert set(plain) == set(other)
    for name, values in plain.items():
        assert values[order] == pytest.approx(other[name], nan_ok=True), name


def test_the_matched_change_is_over_as_many_first_tokens_as_the_shortest_kind_has(
    worlds,
):
    tables = tables_of(worlds)[:2]
    before, after = digests(tables)
    changes = kind_changes(before, after, pair_rows(before, after), FEW)
    found = next(c for c in changes if (c.kind, c.split) == ("chosen", "trained"))
    total = counted = 0.0
    for probe in worlds[0].probes[:12]:
        shortest = min(len(worlds[0].labels[probe, kind]) for kind in KINDS) - 1
        if shortest < 5:
            continue
        rows = [t.row(t.index()[probe, "chosen"]).logprobs for t in tables]
        total += float((rows[1] - rows[0])[:shortest].sum())
        counted += shortest
    assert counted > 0
    assert found.matched.value == pytest.approx(total / counted)


def test_the_frozen_argmax_is_the_first_checkpoint_s_and_rises_less_than_the_maximum(
    worlds,
):
    first, second, _ = worlds
    before, after = digests(tables_of(worlds)[:2])
    changes = kind_changes(before, after, pair_rows(before, after), FEW)
    found = {c.kind: c.delta_sum.value for c in changes if c.split == "trained"}
    gains = []
    for probe in first.probes[:12]:
        logps = [log_softmax(w.logits[probe, "rejected"]) for w in (first, second)]
        top = logps[0].argmax(axis=1)
        here = np.arange(len(top))
        gains.append((logps[1] - logps[0])[here, top].sum())
    assert found["frozen:rejected"] == pytest.approx(np.mean(gains), abs=1e-6)
    assert found["frozen:rejected"] <= found["argmax:rejected"]


def test_strata_of_flow_add_up_and_shares_sum_to_one(worlds):
    before, after = digests(tables_of(worlds)[:2])
    found = flows(before, after, pair_rows(before, after), FEW)
    by = {(f.kind, f.split, f.stratum): f for f in found}
    assert {kind for kind, _, _ in by} == set(KINDS)
    for kind in KINDS:
        whole, off, on = (by[kind, "trained", s] for s in ("all", "off", "on"))
        assert whole.positions == off.positions + on.positions
        for name in ("label", "argmax", "top", "tail"):
            parts = sum(getattr(f, name).value * f.positions for f in (off, on))
            assert parts == pytest.approx(getattr(whole, name).value * whole.positions)
        assert on.argmax.value == 0.0
        values = [getattr(whole, n).value for n in ("label", "argmax", "top", "tail")]
        assert abs(sum(values)) < 1e-6
        shares = [whole.argmax_share, whole.top_share, whole.tail_share]
        if whole.label.low > 0 or whole.label.high < 0:
            assert sum(s.value for s in shares) == pytest.approx(1.0)
            share = whole.argmax.value / -whole.label.value
            assert whole.argmax_share.value == pytest.approx(share)
        else:
            assert all("did not clearly change" in str(s.reason) for s in shares)


def test_likeness_and_shared_tokens_are_those_of_a_longest_common_subsequence(worlds):
    reference = build_reference(tables_of(worlds)[0])
    for row in np.flatnonzero(reference.kinds == "rejected")[:6]:
        probe = str(reference.probe_ids[row])
        mine = reference.label[slice(*reference.offsets[[row, row + 1]])].tolist()
        chosen = worlds[0].labels[probe, "chosen"].tolist()
        length = common_length(mine, chosen)
        marked = reference.shared[slice(*reference.offsets[[row, row + 1]])]
        assert marked.sum() == length
        total = len(mine) + len(chosen)
        assert reference.similarity[row] == pytest.approx(2 * length / total)


def common_length(a, b):
    """By dynamic programming."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else best
    return table[-1, -1]


def test_a_later_table_tokenized_differently_is_refused_naming_the_response(worlds):
    tables = tables_of(worlds)
    other = dataclasses.replace(
        tables[1].tokens, token_ids=tables[1].tokens.token_ids.copy()
    )
    row = tables[1].index()["p003", "rejected"]
    other.token_ids[tables[1].offsets[row]] += 1
    moved = dataclasses.replace(tables[1], tokens=other)
    with pytest.raises(MismatchError, match="'p003', kind 'rejected' was tokenized"):
        digest(moved, build_reference(tables[0]))


def test_risen_mass_is_bounded_by_what_the_later_argmax_could_have_had(worlds):
    first = make_world(8, kinds=("chosen", "rejected"))

    def raise_the_last(probe, kind, z, y):
        lifted = z.copy()
        lifted[np.arange(len(z)), np.argmin(z, axis=1)] += 20.0
        return lifted

    later = first.changed(raise_the_last)
    kept = digests([first.table(0), later.table(1, first)])
    (flow,) = flows(*kept, pair_rows(*kept), FEW, ["rejected"], ["off"])
    gains = []
    for probe in first.probes:
        p, q = (
            np.exp(log_softmax(w.logits[probe, "rejected"])) for w in (first, later)
        )
        tops = np.argsort(-p, axis=1)[:, :8]
        for m, y in enumerate(first.labels[probe, "rejected"]):
            if p[m].argmax() != y:
                v = int(q[m].argmax())
                inside = v in tops[m] or v == y
                gains.append(0.0 if inside else q[m, v] - p[m, v])
    assert flow.risen.low <= np.mean(gains) <= flow.risen.high
    assert flow.risen.value == pytest.approx(np.mean(gains), abs=0.02)
