"""Run against run: equal steps, equal margin, seeds, refusals."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats

from ldeval.compare.versus import RunInput, compare_runs, place_weights, welch
from ldeval.errors import MismatchError
from ldeval.records import Excluded, NoiseFloor
from ldeval.report import dumps_versus, print_versus
from tests.report.test_report_files import documented

from .conftest import make_world, with_manifest
from .test_influence import with_changes

KINDS = ("chosen", "rejected", "initial", "permuted")


def run_of(world, slopes, steps=(0, 10, 20), *, noise=0.02, seed=0, name="run", **more):
    """Each kind's Δtok falls or rises linearly in the step."""
    rng = np.random.default_rng(seed)
    own = {row: 1 + noise * rng.normal() for row in world.logits}
    first = world.table(steps[0])
    tables = [first]
    for step in steps[1:]:
        share = (step - steps[0]) / 20
        moved = with_changes(
            first, lambda p, k, n, s=share: n * s * slopes.get(k, 0.0) * own[p, k]
        )
        tables.append(with_manifest(moved, step=step, **more))
    return RunInput(name, tables)


@pytest.fixture(scope="module")
def world():
    return make_world(24, 4, kinds=KINDS)


FAST = {"chosen": 0.5, "rejected": -1.0, "initial": -0.4, "permuted": -0.4}
SLOW = {"chosen": 0.5, "rejected": -1.0, "initial": -0.1, "permuted": -0.1}


def test_the_run_that_decays_slower_is_named_with_how_much(world):
    a, b = run_of(world, FAST, name="a"), run_of(world, SLOW, seed=1, name="b")
    found = compare_runs([a], [b])
    by = {(d.kind, d.split): d for d in found.decays}
    decay = by["initial", "trained"]
    assert decay.slower == "b"
    assert decay.point.difference.value == pytest.approx(0.3, abs=0.01)
    assert decay.point.a.value == pytest.approx(-0.4, abs=0.01)
    assert found.reached == 20
    assert {p.x for p in found.points} == {10.0, 20.0}


def test_a_run_against_itself_differs_nowhere(world):
    a = run_of(world, FAST)
    found = compare_runs([a], [a])
    assert {d.slower for d in found.decays} == {"unclear"}
    assert {d.point.difference.value for d in found.decays if ":" not in d.kind} == {
        0.0
    }


def test_no_run_is_called_slower_within_the_noise_that_was_measured(world):
    floor = NoiseFloor("hf", "bfloat16", 24, per_response=0.5, kind_means=0.35)
    a = run_of(world, FAST, name="a")
    b = run_of(world, SLOW, seed=1, name="b", noise_floor=floor)
    found = compare_runs([a], [b])
    by = {(d.kind, d.split): d for d in found.decays}
    assert found.noise_floor == 0.35
    assert by["initial", "trained"].point.difference.low > 0.25
    assert by["initial", "trained"].slower == "unclear"


def test_runs_of_other_lengths_meet_where_the_shorter_ends_between_checkpoints(world):
    a = run_of(world, FAST, steps=(0, 10, 20), noise=0.0)
    b = run_of(world, FAST, steps=(0, 14), noise=0.0)
    found = compare_runs([a], [b])
    assert found.reached == 14
    decay = next(d for d in found.decays if (d.kind, d.split) == ("initial", "trained"))
    assert decay.point.a.value == pytest.approx(-0.4 * 14 / 20)
    assert decay.point.difference.value == pytest.approx(0.0, abs=1e-9)


def test_at_equal_margin_a_run_that_merely_learnt_less_is_not_slower(world):
    half = {kind: 0.5 * slope for kind, slope in FAST.items()}
    a = run_of(world, FAST, noise=0.0)
    b = run_of(world, half, noise=0.0)
    at_steps = compare_runs([a], [b])
    at_margin = compare_runs([a], [b], at="margin")
    by_step, by_margin = (
        next(d for d in found.decays if (d.kind, d.split) == ("initial", "trained"))
        for found in (at_steps, at_margin)
    )
    assert by_step.slower == "b"
    assert by_margin.slower == "unclear"
    assert by_margin.point.difference.value == pytest.approx(0.0, abs=1e-9)
    assert by_margin.collateral_a.value == pytest.approx(by_margin.collateral_b.value)


def test_the_loss_for_each_nat_of_margin_is_that_of_the_place_both_runs_reach(world):
    late = {"chosen": 0.5, "rejected": -1.0, "permuted": -0.4}
    a = run_of(world, late, steps=(0, 10), noise=0.0)
    fall = run_of(world, {**late, "initial": -3.0}, steps=(0, 20), noise=0.0)
    a = dataclasses.replace(a, tables=[*a.tables, fall.tables[1]])
    b = run_of(world, late, steps=(0, 10), noise=0.0)
    for at in ("steps", "margin"):
        decays = compare_runs([a], [b], at=at).decays
        decay = next(d for d in decays if (d.kind, d.split) == ("initial", "trained"))
        assert decay.collateral_a.value == pytest.approx(0.0, abs=1e-9)


def test_a_checkpoint_that_scored_nothing_has_no_place_on_the_scale_of_the_margin(
    world,
):
    a, b = run_of(world, FAST, noise=0.0), run_of(world, FAST, noise=0.0)
    every = [(p, k) for p, k in world.logits]
    gone = tuple(Excluded(p, k, "too long") for p, k in every)
    middle = with_manifest(a.tables[1], excluded=gone)
    a = dataclasses.replace(a, tables=[a.tables[0], middle, a.tables[2]])
    found = compare_runs([a], [b], at="margin")
    assert found.reached == compare_runs([b], [b], at="margin").reached
    for decay in found.decays:
        if ":" not in decay.kind:
            assert decay.point.difference.value == pytest.approx(0.0, abs=1e-9)
            assert decay.point.a.value == pytest.approx(FAST[decay.kind])


def test_examples_need_a_record_of_them(world):
    a = run_of(world, FAST)
    with pytest.raises(MismatchError, match=r"trained\.jsonl"):
        compare_runs([a], [a], at="examples")
    a = dataclasses.replace(a, examples=dict.fromkeys(range(1, 21), 2))
    double = dict.fromkeys(range(1, 21), 4)
    b = dataclasses.replace(run_of(world, FAST, seed=3), examples=double)
    assert compare_runs([a], [b], at="examples").reached == 40
    del double[7]
    with pytest.raises(MismatchError, match=r"nothing of 1 of the steps .* is 7"):
        compare_runs([a], [b], at="examples")


def test_tokens_need_a_record_of_them(world):
    a = run_of(world, FAST)
    with pytest.raises(MismatchError, match="record of the tokens"):
        compare_runs([a], [a], at="tokens")
    counts = {s: 100 + s for s in range(1, 21)}
    a = dataclasses.replace(a, tokens=counts)
    half = {s: 0.5 * n for s, n in counts.items()}
    b = dataclasses.replace(run_of(world, FAST, seed=3), tokens=half)
    assert compare_runs([a], [b], at="tokens").reached == sum(half.values())


def test_several_seeds_are_the_unit_where_they_are_given(world):
    a = [run_of(world, FAST, seed=s) for s in (0, 1, 2)]
    b = [run_of(world, SLOW, seed=s) for s in (3, 4)]
    found = compare_runs(a, b)
    seeds = next(
        d.seeds for d in found.decays if (d.kind, d.split) == ("initial", "trained")
    )
    assert seeds is not None
    assert seeds.n == 5
    assert seeds.value == pytest.approx(0.3, abs=0.01)
    assert seeds.low < seeds.value < seeds.high
    assert compare_runs(a[:1], b[:1]).decays[0].seeds is None


def test_with_several_seeds_prompts_alone_name_no_run_as_slower(world):
    a = [run_of(world, FAST, seed=0), run_of(world, SLOW, seed=1)]
    b = [run_of(world, SLOW, seed=2), run_of(world, FAST, seed=3)]
    key = ("initial", "trained")
    alone, several = (
        next(d for d in found.decays if (d.kind, d.split) == key)
        for found in (compare_runs(a[:1], b[:1]), compare_runs(a, b))
    )
    assert alone.slower == "b"
    assert several.point == alone.point
    assert several.seeds.low < 0 < several.seeds.high
    assert several.slower == "unclear"


def test_the_seeds_interval_is_welch_s():
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, 1, 5), rng.normal(1, 3, 4)
    theirs = scipy.stats.ttest_ind(two, one, equal_var=False).confidence_interval(0.95)
    found = welch(one, two)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert math.isnan(welch(one[:1], two).low)


def test_a_place_is_interpolated_where_the_path_first_reaches_it():
    path = np.array([0.0, 4.0, 2.0, 8.0])
    assert place_weights(path, 3.0).tolist() == [0.25, 0.75, 0, 0]
    assert place_weights(path, 8.0).tolist() == [0, 0, 0, 1]
    assert place_weights(path, 5.0) @ path == pytest.approx(5.0)
    gap = np.array([0.0, math.nan, 8.0])
    assert place_weights(gap, 2.0).tolist() == [0.75, 0, 0.25]
    with pytest.raises(ValueError, match="ends at 8"):
        place_weights(path, 9.0)


def test_claims_ask_for_the_objectives_that_they_are_about(world):
    a = run_of(world, FAST, objective="dpo")
    b = run_of(world, SLOW, seed=1, objective="dpo")
    tables = [with_manifest(r.tables[0], objective="dpo") for r in (a, b)]
    a, b = (
        dataclasses.replace(r, tables=[t, *r.tables[1:]])
        for r, t in zip((a, b), tables, strict=True)
    )
    claims = {c.name: c for c in compare_runs([a], [b]).claims}
    assert claims["D3"].state == "undecided"
    assert "SFT as run A" in str(claims["D3"].reason)
    assert claims["E1"].effect["others, B - A"].value == pytest.approx(0.3, abs=0.01)


def test_runs_on_other_probes_are_refused(world):
    a, b = run_of(world, FAST), run_of(world, SLOW)
    other = [with_manifest(t, probe_set_hash="other") for t in b.tables]
    with pytest.raises(MismatchError, match="probe_set_hash"):
        compare_runs([a], [RunInput("b", other)])
    with pytest.raises(MismatchError, match="two are needed"):
        compare_runs([a], [RunInput("b", b.tables[:1])])


def test_the_table_and_the_json_hold_every_decay(world):
    found = compare_runs([run_of(world, FAST)], [run_of(world, SLOW, seed=1)])
    text = print_versus(found)
    assert "initial" in text
    assert max(map(len, text.splitlines())) <= 100
    assert '"slower": "b"' in dumps_versus(found)
    assert set(json.loads(dumps_versus(found))) == documented("versus")
