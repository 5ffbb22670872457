"""A whole run, put together."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from ldeval.compare import compare_run
from ldeval.compare.families import adjusted
from ldeval.compare.significance import benjamini_hochberg
from ldeval.errors import LdevalError, MismatchError
from ldeval.records import KIND_NAMES, Estimate, Excluded

from .conftest import make_world, reordered, squeezed, with_manifest, without
from .test_greedy import world as decoded


def compare(tables, **more):
    return compare_run(tables, run="dpo", **({"replicates": 199} | more))


@pytest.fixture(scope="module")
def tables():
    world = make_world(20, 6)
    later = world.changed(squeezed(1))
    return (
        world.table(0),
        later.table(10, world),
        later.changed(squeezed(2)).table(20, world),
    )


@pytest.fixture(scope="module")
def comparison(tables):
    return compare(tables)


def estimates_in(record):
    """Every estimate inside a record, whatever its depth."""
    if isinstance(record, Estimate):
        yield record
    elif dataclasses.is_dataclass(record):
        for item in dataclasses.fields(record):
            yield from estimates_in(getattr(record, item.name))
    elif isinstance(record, tuple):
        for item in record:
            yield from estimates_in(item)
    elif isinstance(record, dict):
        yield from estimates_in(tuple(record.values()))


def test_a_run_is_compared_pair_by_pair_and_end_to_end(comparison):
    assert comparison.steps == (0, 10, 20)
    assert [(p.before, p.after) for p in comparison.pairs] == [(0, 10), (10, 20)]
    assert (comparison.overall.before, comparison.overall.after) == (0, 20)
    assert comparison.kinds == KIND_NAMES
    assert len(comparison.verdicts) == 14
    assert len(comparison.manifests) == 3


def test_changes_of_successive_pairs_add_up_to_the_overall_change(comparison):
    first, second = (
        {(c.kind, c.split): c.delta_sum.value for c in pair.changes}
        for pair in comparison.pairs
    )
    for change in comparison.overall.changes:
        key = change.kind, change.split
        assert first[key] + second[key] == pytest.approx(change.delta_sum.value)


def test_flows_of_successive_pairs_add_up_to_the_overall_flow(comparison):
    pairs = [
        {(f.kind, f.split, f.stratum): f for f in pair.flows}
        for pair in (*comparison.pairs, comparison.overall)
    ]
    assert set(pairs[0]) == set(pairs[1]) < set(pairs[2])
    assert {kind for kind, _, stratum in pairs[0] if stratum == "all"} == set(
        KIND_NAMES
    )
    for key in pairs[0]:
        one, two, whole = (found[key] for found in pairs)
        for name in ("label", "argmax", "top", "tail"):
            parts = getattr(one, name).value + getattr(two, name).value
            assert parts == pytest.approx(getattr(whole, name).value, abs=1e-12)


def test_displayed_intervals_are_at_95_and_verdicts_at_99_percent(comparison):
    shown = (comparison.pairs, comparison.overall, comparison.curves)
    assert {estimate.level for estimate in estimates_in(shown)} == {0.95}
    judged = estimates_in(comparison.verdicts)
    assert {estimate.level for estimate in judged} == {0.99}


def test_no_estimate_is_nan_without_a_reason(comparison):
    for estimate in estimates_in(comparison):
        numbers = (estimate.value, estimate.low, estimate.high, estimate.se)
        assert estimate.reason or all(map(math.isfinite, numbers))


def test_the_order_in_which_tables_are_given_changes_nothing(tables, comparison):
    assert compare(tables[::-1]) == comparison


def test_a_response_that_the_first_checkpoint_gives_no_finite_sum_is_left_out(tables):
    row = tables[0].index()["p003", "chosen"]
    at = int(tables[0].offsets[row])
    logprobs = tables[0].tokens.logprobs.copy()
    sums = tables[0].logprob_sums.copy()
    logprobs[at] = sums[row] = -np.inf
    tokens = dataclasses.replace(tables[0].tokens, logprobs=logprobs)
    first = dataclasses.replace(tables[0], tokens=tokens, logprob_sums=sums)
    found = compare([first, *tables[1:]])
    kept = np.delete(np.arange(len(first)), row)
    assert found.verdicts == compare([reordered(t, kept) for t in tables]).verdicts
    assert any("step 0: 1 responses without a finite" in n for n in found.notes)


def test_two_checkpoints_have_one_pair_which_is_the_overall_one(tables):
    found = compare(tables[:2])
    (pair,) = found.pairs
    assert adjusted(pair) == found.overall


def test_pairs_are_adjusted_by_benjamini_and_hochberg_with_two_checkpoints_too(tables):
    found = compare(tables[:2])
    own = [c for c in found.pairs[0].changes if ":" not in c.kind]
    for split in ("trained", "heldout"):
        known = [c for c in own if c.split == split]
        expected = benjamini_hochberg([c.p_value for c in known])
        assert [c.p_adjusted for c in known] == expected


def test_identical_tables_have_no_change_anywhere(tables):
    again = with_manifest(tables[0], step=10)
    found = compare([tables[0], again])
    changes = (found.overall.changes, found.overall.margins)
    bins = ("label", "argmax", "top", "tail")
    masses = tuple(getattr(f, name) for f in found.overall.flows for name in bins)
    assert all(f.argmax_share.reason for f in found.overall.flows)
    assert {c.p_adjusted for c in found.overall.changes if ":" not in c.kind} == {1.0}
    for estimate in estimates_in((changes, masses)):
        if estimate.reason is not None:
            continue  # no probe is long enough to be matched
        numbers = (estimate.value, estimate.low, estimate.high, estimate.se)
        assert numbers == (0, 0, 0, 0)
    assert all(verdict.state == "undecided" for verdict in found.verdicts)


def test_no_table_is_refused():
    with pytest.raises(LdevalError, match="at least two scored checkpoints"):
        compare([])


def test_a_single_table_is_refused_naming_its_step(tables):
    with pytest.raises(MismatchError, match="only step 10 exists"):
        compare(tables[1:2])


def test_two_tables_of_one_step_are_refused_naming_both(tables):
    twin = with_manifest(tables[1], checkpoint="elsewhere")
    with pytest.raises(MismatchError, match="step 10 is given twice") as caught:
        compare([*tables, twin])
    assert "'elsewhere'" in str(caught.value)


def test_a_mismatch_anywhere_in_the_run_is_refused(tables):
    other = with_manifest(tables[2], span="no_end")
    with pytest.raises(MismatchError, match="step 10 and step 20 differ in span"):
        compare([*tables[:2], other])


def test_mixed_backends_are_compared_when_allowed_and_noted(tables):
    other = with_manifest(tables[1], backend="vllm")
    with pytest.raises(MismatchError, match="backend"):
        compare([tables[0], other])
    found = compare([tables[0], other], allow_mixed=True, noise_floor=0.02)
    assert "mixed backend: hf, vllm" in found.notes
    assert found.noise_floor == 0.02
    assert found.flow_floor == 0.02


def test_rows_of_one_checkpoint_only_are_listed_and_excluded_ones_gathered(tables):
    item = Excluded("p003", "initial", "longer than the model's context")
    gone = tables[1].index()["p003", "initial"]
    short = reordered(tables[1], np.delete(np.arange(len(tables[1])), gone))
    found = compare([tables[0], with_manifest(short, excluded=(item,))])
    assert found.overall.only_before == (("p003", "initial"),)
    assert found.excluded == (item,)


def test_a_response_that_is_missing_at_several_steps_is_counted_once(tables):
    kept = np.delete(np.arange(len(tables[0])), tables[0].index()["p003", "initial"])
    found = compare([tables[0], *(reordered(t, kept) for t in tables[1:])])
    assert any(n.startswith("1 responses of step 0 are missing") for n in found.notes)


def test_kinds_are_those_scored_at_every_step(tables):
    kept = np.flatnonzero(tables[1].kinds != "permuted")
    found = compare([tables[0], reordered(tables[1], kept), tables[2]])
    assert "permuted" not in found.kinds
    assert {point.kind for point in found.curves} == set(found.kinds) | {
        "argmax:chosen",
        "argmax:rejected",
        "frozen:chosen",
        "frozen:rejected",
    }


def test_chosen_and_rejected_alone_are_compared_claims_about_others_left_open():
    world = make_world(24, kinds=("chosen", "rejected"))
    pair = world.table(0), world.changed(squeezed()).table(10, world)
    claims = {claim.name: claim for claim in compare(pair).claims}
    for name in ("D4", "D6"):
        assert claims[name].state == "undecided"
        assert claims[name].reason == "no other kind was scored"


def test_what_a_reader_should_know_is_noted(tables, comparison):
    assert any("persistence not assessed: 3" in note for note in comparison.notes)
    assert any("no noise floor" in note for note in comparison.notes)
    assert not comparison.persistence_assessed
    bare = [without(t, "top_ids", "top_logprobs") for t in tables]
    found = compare(bare[:2])
    assert found.overall.flows == ()
    assert any("no flows: the top tokens" in note for note in found.notes)


def test_decodes_that_cannot_be_followed_are_noted(tables):
    later = with_manifest(tables[1], weights_hash="w10")
    found = compare([tables[0], later], decodes=[decoded(10, 0.1, -0.2)])
    assert found.greedy is None
    assert any("greedy decodes are left out" in note for note in found.notes)


def test_sums_alone_give_changes_and_verdicts_with_reasons(tables):
    columns = [
        item.name
        for item in dataclasses.fields(tables[0].tokens)
        if item.name not in ("token_ids", "logprobs")
    ]
    sums_only = []
    for table in tables[:2]:
        bare = without(table, *columns)
        unknown = np.full(len(bare.tokens), np.nan)
        tokens = dataclasses.replace(bare.tokens, logprobs=unknown)
        bare = dataclasses.replace(bare, tokens=tokens)
        sums_only.append(with_manifest(bare, tier="tokens"))
    found = compare(sums_only)
    for estimate in estimates_in(found):
        assert estimate.reason or math.isfinite(estimate.value)
    states = {v.name: v for v in found.verdicts if v.split == "trained"}
    assert states["squeezing"].state == "undecided"
    leak = states["ungrammatical_leakage"]
    assert leak.state == "undecided"
    assert "per-token scores not stored" in leak.reason


def test_another_seed_moves_intervals_but_no_value(tables, comparison):
    other = compare(tables, seed=1)
    pairs = zip(estimates_in(comparison), estimates_in(other), strict=True)
    for one, two in pairs:
        assert one.value == two.value or math.isnan(one.value)
    assert other != comparison
