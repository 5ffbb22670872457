"""A plan's times, devices and bytes: linear, and what goes on beside what."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldeval.plan import RayAsked
from ldeval.plan.build import Checkpoints, build_plan
from ldeval.plan.fleet import Machine, fleet_of, this_machine
from ldeval.plan.tables import repeated, table_rates
from ldeval.records import PlanPart, ScoreTable, SweepPlan
from ldeval.report.plan_tables import (
    bottleneck_sentence,
    plan_json,
    print_plan,
)
from ldeval.shards import join_step
from ldeval.store import read_table, step_folder
from tests.plan.planning import HERE, LARGE, RATES, WORK, flat, planned


def on_shards(step: float, join: float, left: int, finished: int = 0) -> SweepPlan:
    """A plan whose steps take so long to score, and so long to join."""
    parts = (
        PlanPart("scoring", left * step, left * step * 64),
        PlanPart("joining", left * join, left * join),
        PlanPart("comparing", 1, 1, after_sweep=True),
    )
    return replace(planned(left), parts=parts, finished=finished)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1000), st.integers(2, 50))
def test_a_plan_is_linear_in_checkpoints(left: int, times: int) -> None:
    one, many_ = flat(planned(left)), flat(planned(left * times))
    for name in ("encoding", "loading", "scoring", "writing", "joining"):
        assert many_[name] == pytest.approx(times * one[name])
    for name in ("read", "stored"):
        assert many_[name] == pytest.approx(times * one[name])
    for name in ("weights", "activations", "held"):
        assert many_[name] == one[name]


@settings(max_examples=30, deadline=None)
@given(st.floats(1, 1e6), st.floats(1, 1e3))
def test_a_plan_is_linear_in_probes(factor: float, times: float) -> None:
    one, many_ = planned(10, factor), planned(10, factor * times)
    assert many_.flops.total == pytest.approx(times * one.flops.total)
    first, second = flat(one), flat(many_)
    for name in ("encoding", "scoring", "writing", "stored", "held"):
        assert second[name] == pytest.approx(times * first[name])
    assert second["loading"] == first["loading"]


def test_nothing_left_takes_nothing() -> None:
    plan = build_plan(
        "run",
        LARGE,
        WORK,
        Checkpoints(0, 100, LARGE.parameters * 2),
        RATES,
        HERE,
        measured_probes=96,
    )
    assert plan.sweep_seconds == plan.device_hours_held == plan.bytes.stored == 0
    assert bottleneck_sentence(plan) == "Nothing is left to score."


def test_the_largest_plan_is_finite_and_names_its_bottleneck() -> None:
    plan = planned(100, 1e6 / 96)
    assert all(math.isfinite(value) for value in flat(plan).values())
    assert (plan.devices_per_engine, plan.engines) == (2, 32)
    assert plan.bytes.weights == 140e9
    # 2 operations a parameter and token, and a little for attention and logits
    least = 2 * plan.model.matrix_parameters * plan.work.computed
    assert least < plan.flops.total < 1.05 * least
    assert plan.bottleneck is not None
    assert plan.bottleneck.seconds == max(part.seconds for part in plan.parts)
    assert "null" not in plan_json(plan).replace('"calibrated_on": null', "")


def test_work_is_shared_between_engines_and_loading_is_not() -> None:
    alone, together = planned(10, devices=2), planned(10, devices=64)
    first, second = flat(alone), flat(together)
    assert (alone.engines, together.engines) == (1, 32)
    assert second["scoring"] == pytest.approx(first["scoring"] / 32)
    assert second["loading"] == first["loading"]
    assert second["read"] == 32 * first["read"]
    assert first["joining"] == 0
    assert second["joining"] > 0


@pytest.mark.parametrize(
    ("arguments", "ray", "devices", "share"),
    [
        ({}, None, 1, None),
        ({"tensor_parallel_size": 2}, None, 2, 2),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, None, 4, 4),
        ({}, RayAsked(32), 32, 1),
        ({}, RayAsked(32, gpus=2), 64, 2),
        ({"tensor_parallel_size": 2}, RayAsked(32), 64, 2),
        ({"tensor_parallel_size": 2}, RayAsked(32, gpus=4), 128, 4),
        ({}, RayAsked(4, gpus=0.5), 2, 0.5),
        ({}, RayAsked(4, gpus=0.4), 2, 0.5),
        ({}, RayAsked(4, gpus=0.6), 4, 1),
        ({}, RayAsked(4, gpus=0), 4, 1),
    ],
)
def test_ray_workers_are_engines_and_a_plan_counts_devices(
    arguments: dict[str, Any], ray: RayAsked | None, devices: float, share: float
) -> None:
    fleet = fleet_of(arguments, ray, None)
    assert (fleet.devices, fleet.share) == (devices, share)
    assert fleet.sharded == (ray is not None)
    assert fleet_of(arguments, ray, 8).devices == 8


@pytest.mark.parametrize(
    ("share", "an_engine", "engines", "lacks"),
    [
        (None, 2, 32, []),
        (1, 2, 32, ["device"]),
        (2, 2, 32, []),
        (4, 4, 16, []),
        (0.5, 2, 32, ["device"]),
    ],
)
def test_an_engine_has_the_devices_it_is_given_and_no_fewer_than_it_needs(
    share: float | None, an_engine: float, engines: int, lacks: list[str]
) -> None:
    plan = planned(10, share=share)
    assert (plan.devices_per_engine, plan.engines) == (an_engine, engines)
    assert [item.what for item in plan.shortfalls] == lacks


def test_several_engines_may_share_a_device() -> None:
    plan = planned(10, share=0.25, device_memory=640 * 2.0**30, devices=8)
    assert (plan.devices_per_engine, plan.engines) == (0.25, 32)
    thirds = planned(10, share=1 / 3, device_memory=640 * 2.0**30, devices=7 * (1 / 3))
    assert thirds.engines == 7
    alone = planned(10, device_memory=640 * 2.0**30, devices=8)
    assert flat(plan)["scoring"] == pytest.approx(flat(alone)["scoring"])
    assert "32 engines of 0.25 devices" in print_plan(plan)


@pytest.mark.parametrize(
    ("ray", "devices", "told"),
    [
        (RayAsked(), 8, None),
        (RayAsked(3), 3, None),
        (RayAsked(32), 8, "room for 8 of 32 workers"),
        (RayAsked(gpus=2), 8, None),
        (RayAsked(gpus=0), 16, None),
        (RayAsked(gpus=0, cpus=5), 3, None),
        (RayAsked(gpus=0, cpus=0), 1, None),
        (RayAsked(gpus=0, cpus=0.1), 160, None),
        (RayAsked(gpus=0.5), 8, None),
        (RayAsked(gpus=0.6), 8, None),
        (RayAsked(gpus=16), 16, "none would start"),
        (RayAsked(cluster="the cluster at auto"), 1, "the cluster at auto has room"),
        (RayAsked(5, cluster="the cluster at auto"), 5, None),
    ],
)
def test_without_a_number_of_workers_those_are_planned_that_have_room_here(
    ray: RayAsked, devices: int, told: str | None
) -> None:
    fleet = fleet_of({}, ray, None, Machine(16, 8))
    assert fleet.devices == devices
    assert told is None or told in fleet.notes[0]
    assert bool(told) == bool(fleet.notes)
    assert fleet_of({}, ray, 64, Machine(16, 8)).notes == ()


def test_this_machine_has_the_room_that_ray_finds() -> None:
    ray = pytest.importorskip("ray._private.utils")
    assert this_machine().cores == ray.get_num_cpus()


@pytest.mark.parametrize("gpus", [None, 0.5, 1, 2])
def test_a_worker_with_fewer_devices_than_its_engine_takes_is_told(
    gpus: float | None,
) -> None:
    ray, spread_out = RayAsked(2, gpus=gpus), {"tensor_parallel_size": 4}
    assert "give --ray-gpus 4" in fleet_of(spread_out, ray, None).notes[0]
    on_cpus = Machine(16, 0)
    told = fleet_of(spread_out, ray, None, on_cpus).notes
    assert not any("give --ray-gpus" in note for note in told)
    for enough in (0, 4, 8):
        fleet = fleet_of(spread_out, replace(ray, gpus=enough), None)
        assert fleet.notes == ()


@settings(max_examples=100, deadline=None)
@given(st.floats(0.1, 10), st.floats(0.1, 10), st.integers(1, 60), st.integers(0, 1))
def test_a_sweep_takes_as_long_as_its_steps_scored_and_joined_beside_each_other(
    step: float, join: float, left: int, finished: int
) -> None:
    scored = joined = 0.0
    for number in range(left):
        if number == 0 and finished:
            scored = joined = join  # the reference, cut into shards again
        scored += step
        joined = max(joined, scored) + join
        if number == 0 and not finished:
            scored = joined  # no shard goes on before it has the reference
    plan = on_shards(step, join, left, finished)
    assert plan.sweep_seconds == pytest.approx(joined)
    assert plan.whole_seconds == pytest.approx(joined + 1)


def test_devices_are_held_through_all_of_a_sweep_and_busy_for_a_part() -> None:
    plan = planned(100, 1e6 / 96)
    held, busy = plan.device_hours_held, plan.device_hours_busy
    assert held == pytest.approx(64 * plan.sweep_seconds / 3600)
    parts = flat(plan)
    assert busy == pytest.approx(64 * (parts["scoring"] + parts["loading"]) / 3600)
    assert busy < held
    text = print_plan(plan, width=10_000)
    assert f"{held:,.0f} GPU-hours held, {busy:,.0f} of them busy" in text
    # one that is not taken up by an engine is not held
    assert planned(100, devices=65).devices == 64


def test_what_something_longer_goes_on_beside_is_no_bottleneck() -> None:
    names = [on_shards(step, join, 50).bottleneck for step, join in ((3, 2), (2, 3))]
    assert [part.name for part in names if part] == ["scoring", "joining"]
    plan = planned(100, 1e6 / 96)
    several = sum(part.seconds for part in plan.parts if not part.after_sweep)
    assert plan.sweep_seconds < several
    assert (
        "a step is joined while the engines score"
        in print_plan(plan, width=10_000).lower()
    )


def test_joining_has_a_rate_of_its_own() -> None:
    plan = planned(10)
    joining = next(part for part in plan.parts if part.name == "joining")
    wanted = 10 * plan.work.asked * plan.rates.joining.value
    assert joining.seconds == joining.worker_seconds == pytest.approx(wanted)
    assert RATES.joining.value > RATES.writing.value
    assert "5.3 µs/token" in print_plan(plan)


@pytest.mark.parametrize(
    ("left", "finished", "tables"), [(100, 0, 2), (1, 0, 1), (1, 5, 2), (0, 5, 0)]
)
def test_shards_of_the_first_step_and_of_the_one_being_joined_stand_beside_tables(
    left: int, finished: int, tables: int
) -> None:
    plan = build_plan(
        "run",
        LARGE,
        WORK,
        Checkpoints(left, finished, LARGE.parameters * 2),
        RATES,
        HERE,
        measured_probes=96,
    )
    each = WORK.asked * RATES.stored.value
    assert plan.bytes.stored == pytest.approx(left * each)
    assert plan.bytes.temporary == pytest.approx(tables * each)


def test_a_store_at_a_url_takes_two_tables_of_the_temporary_folder() -> None:
    each = WORK.asked * RATES.stored.value
    near, far = planned(10), planned(10, remote=True, temporary=each)
    assert near.bytes.fetched == 0
    assert far.bytes.fetched == pytest.approx(2 * each)
    assert planned(10, remote=True, devices=2).bytes.fetched == pytest.approx(each)
    assert planned(0, remote=True).bytes.fetched == 0
    assert [item.what for item in far.shortfalls] == ["temporary folder"]
    assert "does not fit this machine's temporary folder" in bottleneck_sentence(far)
    assert "in this machine's temporary folder" in print_plan(far)
    assert "temporary folder" not in print_plan(near)


def test_what_one_worker_of_ray_scores_is_joined_too() -> None:
    assert flat(planned(10, devices=2))["joining"] == 0
    assert flat(planned(10, devices=2, sharded=True))["joining"] > 0


def test_the_rate_of_joining_is_that_of_joining_the_shards(
    scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_table(step_folder(scored, "run", 0))
    joined: list[ScoreTable] = []

    def keep(run: Path, tables: Any, step: int, *rest: Any, **options: Any) -> None:
        join_step(run, tables, step, *rest, **options)
        joined.append(read_table(step_folder(run.parent, run.name, step)))
        time.sleep(0.1)

    monkeypatch.setattr("ldeval.plan.tables.join_step", keep)
    monkeypatch.setattr("ldeval.plan.tables.TOKENS", 1)
    monkeypatch.setattr("ldeval.plan.tables._compared", lambda _: 1.0)
    rates = table_rates(table, "measured", "here")
    large = repeated(table, 4)
    assert np.array_equal(joined[0].tokens.token_ids, large.tokens.token_ids)
    assert list(joined[0].probe_ids) == list(large.probe_ids)
    assert rates.joining.value > 0.1 / len(large.tokens)
    assert rates.writing.value > 0
    assert rates.joining.source == "measured"


def test_engines_on_one_cpu_share_its_main_memory() -> None:
    weights = planned(10).bytes
    engine = weights.weights + weights.activations
    here = {"device": "cpu", "devices": 4, "device_memory": 4 * engine}
    room = 3.5 * engine
    apart = planned(10, **here, main_memory=room)
    assert (apart.engines, apart.shortfalls) == (4, ())
    together = planned(10, **here, main_memory=room, together=True)
    lack = next(item for item in together.shortfalls if item.what == "main memory")
    assert lack.needed > 4 * engine * 0.9
    assert fleet_of({}, RayAsked(), None, Machine(16, 8)).here
    assert not fleet_of({}, RayAsked(2, cluster="c"), None, Machine(16, 8)).here


def test_devices_that_do_not_compute_at_the_same_time_are_told() -> None:
    told = "scoring with it takes up to 2 times as long"
    assert told in print_plan(planned(10), width=10_000)
    assert told not in print_plan(planned(10, device_memory=2.0**40), width=10_000)
    cached = replace(planned(10), work=replace(WORK, layout="cached"))
    assert told not in print_plan(cached, width=10_000)


@pytest.mark.parametrize(
    ("shards", "devices", "told"),
    [(None, None, False), (4, None, False), (5, None, True), (5, 10, False)],
)
def test_more_shards_than_workers_are_told(
    shards: int | None, devices: int | None, told: bool
) -> None:
    ray = RayAsked(4, gpus=2, shards=shards, cluster="c")
    notes = fleet_of({}, ray, devices).notes
    assert any("--ray-shards" in note for note in notes) == told


def test_what_does_not_fit_is_named_with_what_it_needs() -> None:
    plan = planned(10, devices=1, main_memory=2.0**20, disk=2.0**20)
    lacks = [item.what for item in plan.shortfalls]
    assert lacks == ["device", "main memory", "comparing", "disk"]
    said = bottleneck_sentence(plan)
    assert "at least 2 devices of 80 GiB an engine" in said
    assert planned(10).shortfalls == ()
    unknown = planned(10, device_memory=math.nan, devices=1)
    assert unknown.devices_per_engine == 1
