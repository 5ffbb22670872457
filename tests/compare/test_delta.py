"""Pairing, refusals, changes by kind, margins and curves."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from ldeval.compare import (
    check_comparable,
    curves,
    digests,
    kind_changes,
    margins,
    pair_rows,
)
from ldeval.compare.pairing import distinct_evaluations
from ldeval.compare.stats import Bootstrap
from ldeval.errors import MismatchError, ProbeError
from ldeval.records import KIND_NAMES, Excluded

from .conftest import (
    lift,
    make_world,
    reordered,
    squeezed,
    with_manifest,
    without,
)

FEW = Bootstrap(0, 199)


def changes_between(before, after):
    before, after = digests([before, after])
    found = kind_changes(before, after, pair_rows(before, after), FEW)
    return {(change.kind, change.split): change for change in found}


def assert_close(one, other):
    for name in ("value", "se", "low", "high"):
        expected = getattr(other, name)
        assert getattr(one, name) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("probe_set_hash", "other probes"),
        ("tokenizer_hash", "other tokenizer"),
        ("template_hash", "a template"),
        ("span", "no_end"),
        ("vocab_size", 32),
        ("backend", "vllm"),
        ("tier", "tokens"),
        ("dtype", "bfloat16"),
    ],
)
def test_tables_that_differ_in_kind_are_refused_naming_both_values(
    small_pair, field, value
):
    before, after = small_pair
    other = with_manifest(after, **{field: value})
    with pytest.raises(MismatchError) as caught:
        check_comparable(before, other)
    message = str(caught.value)
    assert field in message
    assert repr(value) in message
    assert repr(getattr(before.manifest, field)) in message


@pytest.mark.parametrize("field", ["backend", "tier", "dtype"])
def test_mixed_tables_are_accepted_when_allowed(small_pair, field):
    before, after = small_pair
    value = {"tier": "tokens"}.get(field, "other")
    check_comparable(before, with_manifest(after, **{field: value}), allow_mixed=True)


def test_an_unknown_vocabulary_size_is_not_a_different_one(small_pair):
    before, after = small_pair
    check_comparable(before, with_manifest(after, vocab_size=None))


def test_a_response_tokenized_differently_is_refused_naming_probe_and_kind(small_pair):
    before, after = small_pair
    ids = after.tokens.token_ids.copy()
    row = after.index()["p003", "rejected"]
    ids[after.offsets[row]] += 1
    tokens = dataclasses.replace(after.tokens, token_ids=ids)
    with pytest.raises(MismatchError, match="'p003', kind 'rejected'"):
        check_comparable(before, dataclasses.replace(after, tokens=tokens))


def test_a_response_of_another_length_is_refused_naming_probe_and_kind():
    one = make_world(3, seed=0).table(0)
    other = make_world(3, seed=9).table(1)
    with pytest.raises(MismatchError, match="probe 'p000', kind 'chosen'"):
        check_comparable(one, other)


def test_a_row_that_stands_twice_is_refused():
    table = make_world(3).table(0)
    twice = reordered(table, np.append(np.arange(len(table)), 1))
    with pytest.raises(ProbeError, match="two rows for probe 'p000'"):
        check_comparable(table, twice)


def test_an_unknown_kind_is_refused_with_the_valid_ones():
    table = make_world(3).table(0)
    kinds = np.where(table.kinds == "initial", "novel", table.kinds)
    with pytest.raises(ProbeError, match=r"'novel'.*random_words"):
        check_comparable(table, dataclasses.replace(table, kinds=kinds))


def test_only_rows_in_both_tables_are_paired_and_the_others_listed(small_pair):
    before, after = small_pair
    dropped = after.index()["p001", "initial"]
    rest = reordered(after, np.delete(np.arange(len(after)), dropped))
    pairs = pair_rows(before, rest)
    assert pairs.only_before == (("p001", "initial"),)
    assert pairs.only_after == ()
    assert len(pairs.before) == len(after) - 1
    same = before.kinds[pairs.before] == rest.kinds[pairs.after]
    assert same.all()


def test_excluded_and_unfinished_rows_count_as_not_scored(small_pair):
    before, after = small_pair
    sums = after.logprob_sums.copy()
    sums[after.index()["p002", "chosen"]] = np.nan
    item = Excluded("p004", "rejected", "truncated")
    broken = with_manifest(
        dataclasses.replace(after, logprob_sums=sums), excluded=(item,)
    )
    only = pair_rows(before, broken).only_before
    assert set(only) == {("p002", "chosen"), ("p004", "rejected")}


def test_a_change_is_the_ratio_of_sums_over_the_paired_responses(small_pair):
    before, after = small_pair
    found = changes_between(before, after)
    for kind in KIND_NAMES:
        for split, trained in (("trained", True), ("heldout", False)):
            rows = (before.kinds == kind) & (before.trained == trained)
            change = (after.logprob_sums - before.logprob_sums)[rows]
            tokens = before.n_tokens[rows]
            one = found[kind, split]
            assert one.n == rows.sum()
            assert one.delta_sum.value == pytest.approx(change.mean())
            assert one.delta_tok.value == pytest.approx(change.sum() / tokens.sum())
            assert one.mean_tokens == pytest.approx(tokens.mean())
            assert one.before_sum == pytest.approx(before.logprob_sums[rows].mean())
            assert one.after_sum == pytest.approx(after.logprob_sums[rows].mean())
            assert one.share_fell == np.mean(change < 0)


def test_first_body_and_end_make_up_the_whole_change(small_pair):
    for change in changes_between(*small_pair).values():
        parts = (
            change.first.value
            + change.body.value * (change.mean_tokens - 2)
            + change.end.value
        )
        assert parts == pytest.approx(change.delta_sum.value)


def test_responses_below_three_tokens_have_no_body():
    world = make_world(6, kinds=("chosen",), tokens=(2, 3))
    change = changes_between(world.table(0), world.changed(squeezed()).table(1))
    body = change["chosen", "trained"].body
    assert math.isnan(body.value)
    assert body.reason == "no response has three tokens"
    assert math.isfinite(change["chosen", "trained"].first.value)


def test_argmax_rows_follow_the_most_probable_token_whatever_it_is(small_pair):
    before, after = small_pair
    found = changes_between(before, after)
    rows = (before.kinds == "rejected") & before.trained
    gained = after.sums(after.tokens.argmax_logprobs) - before.sums(
        before.tokens.argmax_logprobs
    )
    expected = gained[rows].mean()
    assert found["argmax:rejected", "trained"].delta_sum.value == pytest.approx(
        expected
    )
    names = [kind for kind, split in found if split == "trained"]
    assert names[-4:] == [
        "argmax:chosen",
        "argmax:rejected",
        "frozen:chosen",
        "frozen:rejected",
    ]


def test_argmax_rows_without_their_column_are_undefined_with_the_reason(small_pair):
    before, after = small_pair
    found = changes_between(before, without(after, "argmax_ids", "argmax_logprobs"))
    row = found["argmax:chosen", "trained"]
    assert math.isnan(row.delta_tok.value)
    assert row.delta_tok.reason == "argmax log-probabilities not stored"
    assert row.n == 0


def test_sums_without_token_scores_give_totals_only(small_pair):
    tables = []
    for table in small_pair:
        unknown = np.full(len(table.tokens), np.nan)
        tokens = dataclasses.replace(table.tokens, logprobs=unknown)
        tables.append(dataclasses.replace(table, tokens=tokens))
    whole = changes_between(*small_pair)["chosen", "trained"]
    found = changes_between(*tables)["chosen", "trained"]
    assert found.delta_tok == whole.delta_tok
    for part in (found.first, found.body, found.end):
        assert math.isnan(part.value)
        assert part.reason == "per-token scores not stored"


def test_swapping_the_tables_turns_every_change_around(small_pair):
    before, after = small_pair
    forth, back = changes_between(before, after), changes_between(after, before)
    for key, change in forth.items():
        if key[0].startswith("frozen:"):
            continue  # the argmax that is frozen is that of whichever comes first
        mirror = back[key]
        for name in ("delta_sum", "delta_tok", "first", "body", "end", "matched"):
            one, other = getattr(change, name), getattr(mirror, name)
            assert other.value == pytest.approx(-one.value, nan_ok=True)
            assert other.low == pytest.approx(-one.high, nan_ok=True)
            assert other.high == pytest.approx(-one.low, nan_ok=True)


def test_neither_row_order_nor_prompt_names_change_a_change(small_pair):
    before, after = small_pair
    plain = changes_between(before, after)
    order = np.random.default_rng(0).permutation(len(before))
    probes = sorted(set(before.probe_ids.tolist()))
    names = {p: f"name {7 * i % len(probes):02d}" for i, p in enumerate(probes)}
    assert len(set(names.values())) == len(probes)
    renamed = []
    for table, rows in ((before, order), (after, order[::-1])):
        moved = reordered(table, rows)
        ids = np.array([names[p] for p in moved.probe_ids.tolist()])
        renamed.append(dataclasses.replace(moved, probe_ids=ids))
    for key, change in changes_between(*renamed).items():
        for name in ("delta_sum", "delta_tok", "first", "body", "end"):
            assert_close(getattr(change, name), getattr(plain[key], name))


def test_the_margin_is_chosen_minus_rejected_over_prompts_that_have_both(small_pair):
    before, after = small_pair
    dropped = after.index()["p001", "rejected"]
    rest = reordered(after, np.delete(np.arange(len(after)), dropped))
    margin = margins(before, rest, pair_rows(before, rest), FEW)[0]
    change = after.logprob_sums - before.logprob_sums
    index = before.index()
    both = [p for p in sorted(set(before.probe_ids[before.trained])) if p != "p001"]
    chosen = np.array([index[p, "chosen"] for p in both])
    rejected = np.array([index[p, "rejected"] for p in both])
    expected = (change[chosen] - change[rejected]).mean()
    per_token = (
        change[chosen].sum() / before.n_tokens[chosen].sum()
        - change[rejected].sum() / before.n_tokens[rejected].sum()
    )
    assert margin.split == "trained"
    assert margin.delta_sum.n == len(both)
    assert margin.delta_sum.value == pytest.approx(expected)
    assert margin.delta_tok.value == pytest.approx(per_token)
    assert margin.after_sum - margin.before_sum == pytest.approx(expected)


def test_a_curve_keeps_to_the_responses_scored_at_every_checkpoint():
    world = make_world(8, kinds=("chosen", "rejected"))
    first, second = world.table(0), world.changed(squeezed()).table(5, world)
    gone = second.index()["p002", "chosen"]
    second = reordered(second, np.delete(np.arange(len(second)), gone))
    points = {(p.step, p.kind): p for p in curves(digests([first, second]), FEW)}
    rows = (first.kinds == "chosen") & (first.probe_ids != "p002")
    level = first.logprob_sums[rows]
    assert points[0, "chosen"].mean_sum.n == 7
    assert points[0, "chosen"].mean_sum.value == pytest.approx(level.mean())
    per_token = level.sum() / first.n_tokens[rows].sum()
    assert points[0, "chosen"].per_token.value == pytest.approx(per_token)
    assert points[5, "rejected"].mean_sum.n == 8
    assert (5, "argmax:chosen") in points


def test_a_curves_interval_is_that_of_the_change_since_the_first_checkpoint():
    world = make_world(24, kinds=("chosen", "rejected"))
    first, second = world.table(0), world.changed(squeezed()).table(5, world)
    points = {(p.step, p.kind): p for p in curves(digests([first, second]), FEW)}
    found = changes_between(first, second)
    for kind in ("chosen", "rejected"):
        change = found[kind, "trained"]
        start, end = points[0, kind], points[5, kind]
        for scale, expected in (
            ("mean_sum", change.delta_sum),
            ("per_token", change.delta_tok),
        ):
            one, other = getattr(start, scale), getattr(end, scale)
            assert one.low == one.value == one.high
            assert other.value - one.value == pytest.approx(expected.value)
            assert other.low - one.value == pytest.approx(expected.low)
            assert other.high - one.value == pytest.approx(expected.high)


def test_a_repeated_evaluation_is_not_a_distinct_one(small_pair):
    before, after = small_pair
    order = np.random.default_rng(1).permutation(len(after))
    assert distinct_evaluations([before, after, reordered(after, order)]) == 2


def test_repeated_texts_are_clustered_within_a_table():
    world = make_world(10, kinds=("chosen", "irrelevant_train"))
    texts = dict(world.texts)
    for probe in world.probes[:4]:
        texts[probe, "irrelevant_train"] = "the same text"
    world = dataclasses.replace(world, texts=texts)
    after = world.changed(lambda p, k, z, y: lift(z, y, 0.1)).table(1, world)
    found = changes_between(world.table(0), after)
    assert found["irrelevant_train", "trained"].delta_tok.clusters == 7
    assert found["chosen", "trained"].delta_tok.clusters == 10
