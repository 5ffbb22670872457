"""What a sweep will take: counted exactly, calibrated by a measured rate, linear."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ldeval.bundled import bundled_probes
from ldeval.checkpoints import describe_checkpoint
from ldeval.cli import main
from ldeval.errors import CheckpointError, MismatchError, StoreError
from ldeval.plan import Hypothetical, RayAsked, plan_sweep
from ldeval.plan.build import Checkpoints, Resources, build_plan
from ldeval.plan.calibration import codec_of_folder, count_probes
from ldeval.plan.fleet import PARALLEL, Machine, fleet_of, this_machine
from ldeval.plan.rates import STATED, Counted, read_stored, stored_rates
from ldeval.plan.shapes import (
    flops_of,
    shape_of_checkpoint,
    shape_of_config,
    shape_of_size,
)
from ldeval.plan.tables import TableRates, repeated, table_rates
from ldeval.plan.work import work_of
from ldeval.probes import read_probes
from ldeval.records import PlanPart, PlanRates, Rate, ScoreTable, ScoringWork, SweepPlan
from ldeval.report.plan_tables import (
    amount,
    bottleneck_sentence,
    duration,
    many,
    plan_json,
    print_plan,
    size,
)
from ldeval.scoring.encode import codec_of
from ldeval.scoring.models import RestartedModels
from ldeval.scoring.score import score_requests
from ldeval.shards import join_step
from ldeval.store import list_runs, read_table, step_folder
from ldeval.sweep import sweep
from ldeval.sweep.settings import SIZING_ARGUMENTS
from tests.sweeping import ARGS, sweep_settings
from tests.tiny import save_run, save_tiny

RATES = PlanRates(
    scoring=Rate(4e14, "given"),
    encoding=Rate(4e-3, "measured", "96 probes"),
    **{name: Rate(value, "assumed") for name, value in STATED.items()},
)
HERE = Resources(
    devices=64,
    device="cuda",
    device_name="as given",
    device_memory=80 * 2.0**30,
    main_memory=2.0**40,
    disk=2.0**50,
)
WORK = ScoringWork(96, 1152, 0, 4388, 58537, 62838, 111193, 7079065, "packed")
TABLES = TableRates(*[Rate(1, "measured")] * len(fields(TableRates)))
LARGE = shape_of_size(70e9, 128_256)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and run/checkpoint-{10,20}."""
    return save_run(tmp_path_factory.mktemp("trained"), [10, 20])


@pytest.fixture(scope="module")
def scored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the finished sweep."""
    store = tmp_path_factory.mktemp("store")
    sweep(trained / "run", sweep_settings(trained, store))
    return store


# ----------------------------------------------------------------------------- tokens


def test_tokens_are_those_that_scoring_stores(trained: Path, scored: Path) -> None:
    wanted = sweep_settings(trained, scored)
    plan = plan_sweep([trained / "run"], wanted)
    table = read_table(step_folder(scored, "run", 10))
    assert plan.work.asked == table.manifest.n_tokens == len(table.tokens)
    assert plan.work.responses == table.manifest.n_responses
    assert plan.work.excluded == len(table.manifest.excluded) == 5


def test_a_tokenizer_alone_encodes_as_the_open_model(trained: Path) -> None:
    for changes in ({}, {"model_args": {**ARGS, "max_length": 64}}):
        wanted = sweep_settings(trained, Path("nowhere"), **changes)
        source = RestartedModels("hf", wanted.model_args, base=None)
        folder = trained / "base"
        lm = source.open(describe_checkpoint(folder, 0))
        own = count_probes(wanted.probes, codec_of(lm), wanted, None, lm)
        alone = count_probes(
            wanted.probes, codec_of_folder(folder, wanted), wanted, None
        )
        assert alone.encoded == own.encoded
    assert any(probe.excluded for probe in own.encoded)


def test_packing_computes_fewer_tokens_than_sending_every_response_alone(
    trained: Path,
) -> None:
    wanted = sweep_settings(trained, Path("nowhere"))
    codec = codec_of_folder(trained / "base", wanted)
    encoded = count_probes(wanted.probes, codec, wanted, None).encoded
    counts = {
        layout: work_of(encoded, layout)
        for layout in ("packed", "shared", "cached", "whole")
    }
    requests = list(score_requests(encoded, None, {}))
    whole = sum(len(request.ids) for request in requests)
    assert counts["whole"].computed == counts["whole"].separate == whole
    # every prompt once, and all but the last token of each response
    once = counts["packed"].prompt + counts["packed"].asked - len(requests)
    assert counts["shared"].computed == once
    # a prompt is there again where a pack is full
    assert once <= counts["packed"].computed < 1.02 * once
    assert once < counts["cached"].computed < whole
    assert len({work.asked for work in counts.values()}) == 1


def test_what_is_counted_is_what_packs_hold(trained: Path) -> None:
    from ldeval.scoring.packed import ALIKE, packs

    wanted = sweep_settings(trained, Path("nowhere"))
    codec = codec_of_folder(trained / "base", wanted)
    encoded = count_probes(wanted.probes, codec, wanted, None).encoded
    tokens = pairs = 0
    requests = list(score_requests(encoded, None, {}))
    for pack in packs(requests, tokens=2048, alike=ALIKE["cpu"]):
        tokens += pack.ids.numel()
        for part in pack.segments:
            prompt = part.stop - part.start
            pairs += prompt**2
            masks = [(branch.places, branch.allowed) for branch in part.branches]
            pairs += sum(len(places) * allowed.numel() for places, allowed in masks)
    work = work_of(encoded, "packed")
    assert (work.computed, work.pairs) == (tokens, pairs)


# ------------------------------------------------------------------------- operations


@pytest.mark.parametrize("architecture", ["llama", "llama_tied", "gpt2", "qwen2"])
def test_operations_are_those_that_torch_counts(
    tmp_path: Path, architecture: str
) -> None:
    from ldeval.scoring import hf

    folder = save_tiny(tmp_path / "model", architecture=architecture)
    some = read_probes(bundled_probes()).limited(1, 1)
    wanted = sweep_settings(tmp_path, tmp_path, base=str(folder), probes=some)
    codec = codec_of_folder(folder, wanted)
    encoded = count_probes(wanted.probes, codec, wanted, None).encoded
    requests = list(score_requests(encoded, None, {}))
    source = RestartedModels("hf", ARGS, base=None)
    lm = source.open(describe_checkpoint(folder, 0))
    # kernels of fused attention are not in torch's count
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        found = dict(hf.score(lm, requests, top_k=20, layout="packed"))
    assert len(found) == len(requests)
    flops = flops_of(shape_of_checkpoint(folder), work_of(encoded, "packed"))
    assert flops.total == pytest.approx(counter.get_total_flops(), rel=0.002)
    assert min(flops.matrices, flops.attention, flops.output) > 0.02 * flops.total


@pytest.mark.parametrize(
    "architecture", ["llama", "llama_tied", "gpt2", "qwen2", "gpt_neox", "gemma2"]
)
def test_a_configuration_has_the_shape_of_its_tensors(
    tmp_path: Path, architecture: str
) -> None:
    folder = save_tiny(tmp_path / "model", architecture=architecture)
    tensors = shape_of_checkpoint(folder)
    config = shape_of_config(folder / "config.json")
    assert config.matrix_parameters == tensors.matrix_parameters
    # biases, norms and learned positions are not in the formula
    assert config.parameters == pytest.approx(tensors.parameters, rel=0.25)
    assert config.parameters <= tensors.parameters
    for name in ("layers", "hidden", "heads_width", "vocabulary", "stored_bytes"):
        assert getattr(config, name) == getattr(tensors, name)


def test_llama_3_70b_has_its_parameters_by_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_70B))
    shape = shape_of_config(path)
    assert shape.parameters == pytest.approx(70_553_706_496, rel=1e-4)
    made_up = shape_of_size(70_553_706_496, 128_256)
    assert made_up.layers == shape.layers
    assert made_up.hidden == pytest.approx(shape.hidden, rel=0.01)
    assert made_up.matrix_parameters == pytest.approx(shape.matrix_parameters, rel=0.01)


LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def test_experts_are_not_computed_from_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA_70B, "num_local_experts": 8}))
    with pytest.raises(CheckpointError, match="mixture of experts"):
        shape_of_config(path)
    path.write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="no hidden_size"):
        shape_of_config(path)


def test_of_experts_those_are_counted_that_a_token_goes_through(
    tmp_path: Path,
) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=1,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    shape = shape_of_checkpoint(tmp_path)
    attention = 32 * 32 * 2 + 32 * 16 * 2
    router, expert = 32 * 4, 3 * 32 * 64
    assert shape.matrix_parameters == 2 * (attention + router + expert)
    assert shape.parameters > 2 * 4 * expert


# ------------------------------------------------------------------------- arithmetic


def planned(left: int, factor: float = 1.0, **changes: Any) -> SweepPlan:
    return build_plan(
        "run",
        LARGE,
        WORK.scaled(factor),
        Checkpoints(left, 0, LARGE.parameters * 2),
        RATES,
        replace(HERE, **changes),
        measured_probes=96,
    )


def flat(plan: SweepPlan) -> dict[str, float]:
    parts = {part.name: part.seconds for part in plan.parts}
    return {**parts, **dataclasses.asdict(plan.bytes)}


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


def on_shards(step: float, join: float, left: int, finished: int = 0) -> SweepPlan:
    """A plan whose steps take so long to score, and so long to join."""
    parts = (
        PlanPart("scoring", left * step, left * step * 64),
        PlanPart("joining", left * join, left * join),
        PlanPart("comparing", 1, 1, after_sweep=True),
    )
    return replace(planned(left), parts=parts, finished=finished)


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


# ----------------------------------------------------------------- plans of real runs


def test_a_plan_measures_the_model_at_hand_and_stores_nothing(
    trained: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    plan = plan_sweep([trained / "run"], sweep_settings(trained, store))
    assert not store.exists()
    assert (plan.checkpoints, plan.finished) == (3, 0)
    rates = dataclasses.asdict(plan.rates)
    assert {rate["source"] for rate in rates.values()} == {"measured"}
    assert all(rate["value"] > 0 for n, rate in rates.items() if "start" not in n)
    assert plan.work.layout == "packed"
    weights = trained / "base" / "model.safetensors"
    assert plan.bytes.read == 3 * weights.stat().st_size
    assert plan.calibrated_on == plan.model


def test_an_adapter_is_planned_with_its_base(trained: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = trained / "base"
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    adapter = tmp_path / "run" / "checkpoint-5"
    get_peft_model(model, config).save_pretrained(adapter)
    wanted = sweep_settings(trained, tmp_path / "store")
    plan = plan_sweep([tmp_path / "run"], wanted, Hypothetical(flops=1e12))
    weights = (base / "model.safetensors").stat().st_size
    own = (adapter / "adapter_model.safetensors").stat().st_size
    assert plan.checkpoints == 2
    assert plan.bytes.read == pytest.approx(2 * weights + own)
    assert plan.model.parameters == shape_of_checkpoint(base).parameters


def test_stages_are_planned_together(trained: Path, tmp_path: Path) -> None:
    wanted = sweep_settings(trained, tmp_path / "store")
    later = tmp_path / "later"
    later.symlink_to(trained / "run")
    plan = plan_sweep([trained / "run", later], wanted, Hypothetical(flops=1e12))
    assert plan.checkpoints == 3 + 2


def test_a_broken_checkpoint_is_listed_and_not_counted(
    trained: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "run" / "checkpoint-7"
    broken.mkdir(parents=True)
    (broken / "model.safetensors").write_bytes(b"cut short")
    wanted = sweep_settings(trained, tmp_path / "store")
    plan = plan_sweep([tmp_path / "run"], wanted, Hypothetical(flops=1e12))
    assert plan.checkpoints == 1
    assert "cut short while being written" in plan.notes[0]


def test_finished_steps_are_done_and_lend_their_rates(
    trained: Path, scored: Path
) -> None:
    plan = plan_sweep([trained / "run"], sweep_settings(trained, scored))
    assert (plan.checkpoints, plan.finished) == (0, 3)
    assert plan.sweep_seconds == 0
    assert plan.rates.scoring.source == plan.rates.stored.source == "stored"
    tables = [read_table(step.folder) for step in list_runs(scored)["run"]][1:]
    stored = sum(e["bytes"] for t in tables for e in t.manifest.files.values())
    rows = sum(table.manifest.n_tokens for table in tables)
    assert plan.rates.stored.value == stored / rows
    seconds = sum(table.manifest.seconds for table in tables)
    assert plan.rates.scoring.value == pytest.approx(2 * plan.flops.total / seconds)


@pytest.mark.parametrize(
    ("backend", "now", "devices"),
    [
        ("hf", {}, 1),
        ("vllm", {}, 1),
        ("vllm", {"tensor_parallel_size": 4}, 4),
        ("vllm", {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, 8),
        ("hf", {"tensor_parallel_size": 4}, 1),
    ],
)
def test_the_rate_of_a_stored_engine_is_shared_between_its_devices(
    trained: Path,
    scored: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    now: dict[str, int],
    devices: int,
) -> None:
    """As now: no manifest says how an engine was spread, which changes no score."""
    assert set(PARALLEL) <= SIZING_ARGUMENTS
    monkeypatch.setattr("ldeval.plan.rates.table_rates", lambda *_: TABLES)
    stored = read_stored(scored / "run")
    assert stored is not None
    last = stored.manifests[-1]
    last = replace(last, backend=backend)
    stored = replace(stored, manifests=(last,))
    counted = Counted([], 0, Rate(1, "measured"))
    arguments = (stored, LARGE, WORK, counted, "run")
    rate = stored_rates(*arguments, now).scoring
    wanted = flops_of(LARGE, WORK).total / WORK.asked * last.n_tokens / last.seconds
    assert rate.value == pytest.approx(wanted / devices)
    assert ("devices" in rate.where) == (devices > 1)
    assert ("taken, as now, to be of" in rate.where) == (backend == "vllm")


def test_the_rate_of_a_timed_engine_is_shared_between_its_devices(
    trained: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_table(step_folder(scored, "run", 0))
    found = ("packed", Rate(1e12, "measured", "some probes"), table)
    monkeypatch.setattr("ldeval.plan.calibration._Timed.run", lambda _: found)
    monkeypatch.setattr("ldeval.plan.calibration.table_rates", lambda *_: TABLES)
    monkeypatch.setattr(
        "ldeval.plan.calibration.model_source",
        lambda model, arguments, **rest: RestartedModels(model, ARGS, base=None),
    )
    spread_out = {**ARGS, "tensor_parallel_size": 2}
    wanted = sweep_settings(trained, tmp_path, model_args=spread_out)
    plan = plan_sweep([trained / "run"], wanted)
    assert plan.rates.scoring.value == 5e11
    assert "of 2 devices" in plan.rates.scoring.where
    assert (plan.engines, plan.devices_per_engine) == (1, 2)
    parts = flat(plan)
    assert parts["scoring"] == pytest.approx(3 * plan.flops.total / 1e12)


def test_a_worker_on_a_cpu_is_timed_with_the_threads_it_will_have(
    trained: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    table = read_table(step_folder(scored, "run", 0))
    there: list[int] = []

    def run(_: Any) -> Any:
        there.append(torch.get_num_threads())
        return "packed", Rate(1e12, "measured", "some probes"), table

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("ldeval.plan.calibration._Timed.run", run)
    monkeypatch.setattr("ldeval.plan.calibration.table_rates", lambda *_: TABLES)
    wanted = sweep_settings(trained, tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        plans = [
            plan_sweep([trained / "run"], wanted, Hypothetical(ray=ray))
            for ray in (None, RayAsked(2, cluster="c"), RayAsked(2, 3, cluster="c"))
        ]
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert there == [4, 1, 3]
    named = [plan.device for plan in plans]
    assert named == ["cpu, 4 threads", "cpu, 1 thread", "cpu, 3 threads"]


def test_threads_of_a_worker_are_those_that_ray_lets_it_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for cpus, threads in ((0.5, 1), (1, 1), (3.7, 3)):
        assert fleet_of({}, RayAsked(2, cpus), None).threads == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert fleet_of({}, RayAsked(2), None).threads == 6
    assert fleet_of({}, RayAsked(2, cluster="there"), None).threads == 1
    assert fleet_of({}, None, None).threads is None


def test_a_stored_rate_of_all_threads_is_scaled_to_those_of_a_worker(
    trained: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldeval.plan.rates.table_rates", lambda *_: TABLES)
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    store = tmp_path / "store"
    shutil.copytree(scored, store)
    wanted = sweep_settings(trained, store)
    ray = Hypothetical(ray=RayAsked(2, cluster="c"))
    alone = plan_sweep([trained / "run"], wanted).rates.scoring
    worker = plan_sweep([trained / "run"], wanted, ray).rates.scoring
    assert worker.value == pytest.approx(alone.value / 4)
    assert "scaled from 4 threads to 1" in worker.where
    # what a sweep on Ray has left is of its workers
    (store / "run" / "shards" / "shard_0000_of_0002").mkdir(parents=True)
    assert plan_sweep([trained / "run"], wanted, ray).rates.scoring == alone


def test_other_scores_under_the_name_are_refused(trained: Path, scored: Path) -> None:
    others = read_probes(bundled_probes()).limited(2, 2)
    with pytest.raises(MismatchError, match="probe_set_hash"):
        plan_sweep([trained / "run"], sweep_settings(trained, scored, probes=others))
    with pytest.raises(MismatchError, match="apply_chat_template"):
        plan_sweep(
            [trained / "run"],
            sweep_settings(trained, scored, apply_chat_template=False),
        )


def test_a_hypothetical_sweep_takes_rates_of_a_stored_one(
    trained: Path, scored: Path, tmp_path: Path
) -> None:
    asked = Hypothetical(
        parameters=70e9, probes=1e6, checkpoints=100, rates_from=scored / "run"
    )
    wanted = sweep_settings(trained, tmp_path)
    plan = plan_sweep([tmp_path / "not there"], wanted, asked)
    assert (plan.checkpoints, plan.finished, plan.work.probes) == (100, 0, 1e6)
    assert plan.measured_probes == 5
    assert plan.model.parameters == 70e9
    assert plan.calibrated_on is not None
    assert plan.calibrated_on.parameters < 1e6
    text = print_plan(plan)
    assert "extrapolated from 5 probes" in text
    assert "rather overestimated" in text


def test_what_a_plan_needs_is_named(trained: Path, tmp_path: Path) -> None:
    wanted = sweep_settings(trained, tmp_path)
    with pytest.raises(StoreError, match="no finished step"):
        plan_sweep(
            [trained / "run"], wanted, Hypothetical(rates_from=tmp_path / "none")
        )
    with pytest.raises(CheckpointError, match="no model at hand"):
        plan_sweep(
            [tmp_path / "none"],
            replace(wanted, base=None),
            Hypothetical(checkpoints=3, flops=1e12),
        )
    with pytest.raises(CheckpointError, match="no such folder"):
        plan_sweep([tmp_path / "none"], wanted, Hypothetical(flops=1e12))
    with pytest.raises(MismatchError, match="Give one"):
        plan_sweep(
            [trained / "run"],
            wanted,
            Hypothetical(parameters=1e9, config=tmp_path / "config.json"),
        )


# ------------------------------------------------------------------------ the command


def test_the_command_prints_the_plan_and_writes_it_unrounded(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "plan.json"
    command = ["sweep", str(tmp_path / "none"), "--base", str(trained / "base")]
    command += ["--store", str(tmp_path / "store"), "--plan"]
    command += ["--plan-parameters", "70B", "--plan-probes", "1M"]
    command += ["--plan-checkpoints", "100", "--plan-flops", "400T"]
    command += ["--plan-workers", "64", "--plan-memory", "80G"]
    assert main([*command, "--plan-json", str(target)]) == 0
    text = capsys.readouterr().out
    assert "100 checkpoints to score, 0 finished" in text
    assert "given, not measured" in text
    assert "The bottleneck is" in text
    record = json.loads(target.read_text("utf-8"))
    assert record["rates"]["scoring"] == {
        "value": 4e14,
        "source": "given",
        "where": "",
    }
    parts = {part["name"]: part["seconds"] for part in record["parts"]}
    engines = sum(parts[n] for n in ("encoding", "loading", "scoring", "writing"))
    assert engines > parts["joining"]
    # a step is joined when the engines are through with it, but the first before
    joins = 2 * parts["joining"] / 100
    assert record["sweep_seconds"] == pytest.approx(engines + joins)
    assert not (tmp_path / "store").exists()


def test_the_command_plans_ray_workers_as_engines(
    trained: Path, tmp_path: Path
) -> None:
    target = tmp_path / "plan.json"
    command = ["sweep", str(tmp_path / "none"), "--base", str(trained / "base")]
    command += ["--store", str(tmp_path / "store"), "--plan"]
    command += ["--plan-parameters", "70B", "--plan-checkpoints", "3"]
    command += ["--plan-flops", "400T", "--plan-memory", "80G"]
    command += ["--plan-json", str(target), "--ray-gpus", "2"]
    for more in (["--ray-workers", "32"], ["--plan-workers", "64"]):
        assert main([*command, *more]) == 0
        record = json.loads(target.read_text("utf-8"))
        assert (record["engines"], record["devices_per_engine"]) == (32, 2)
        assert record["shortfalls"] == []


def test_the_command_asks_no_cluster_and_says_so(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "plan.json"
    command = ["sweep", str(trained / "run"), "--base", str(trained / "base")]
    command += ["--store", str(tmp_path / "store"), "--plan", "--plan-flops", "1T"]
    command += ["--plan-json", str(target), "--ray"]
    assert main([*command, "192.0.2.1:6379"]) == 0
    assert "the cluster at 192.0.2.1:6379 has room for" in capsys.readouterr().out
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.2:6379")
    assert main(command) == 0
    assert "the cluster at 192.0.2.2:6379 has room for" in capsys.readouterr().out
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("ldeval.plan.sweep_plan.this_machine", lambda: Machine(64, 8))
    assert main(command) == 0
    assert json.loads(target.read_text("utf-8"))["engines"] == 8


@pytest.mark.parametrize(
    "options",
    [["--plan-probes", "1M"], ["--plan-workers", "4"], ["--plan-flops", "1T"]],
)
def test_options_of_a_plan_do_nothing_without_one(
    trained: Path,
    tmp_path: Path,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["sweep", str(trained / "run"), "--store", str(tmp_path / "store")]
    assert main([*command, *options]) == 2
    assert "without --plan" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--plan-parameters", "many"),
        ("--plan-parameters", "0B"),
        ("--plan-parameters", "nan"),
        ("--plan-checkpoints", "1.5"),
        ("--plan-memory", "80 apples"),
        ("--plan-workers", "0"),
    ],
)
def test_a_size_that_is_none_is_refused(
    tmp_path: Path, option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", str(tmp_path), "--store", "store", option, text])
    assert repr(text) in capsys.readouterr().err


def test_sizes_read_as_they_are_written() -> None:
    assert (many(96), many(111_193), many(70e9)) == ("96", "111,193", "70 B")
    assert amount(9.06e21, "FLOP") == "9.06 ZFLOP"
    assert (size(2**30), size(140e9), size(12)) == ("1 GiB", "130 GiB", "12 B")
    assert (duration(0), duration(119), duration(7200)) == ("0 s", "119 s", "2 h")
    assert (duration(3 * 86400), duration(86400 * 5000)) == ("3 days", "13.7 years")
    assert {amount(math.nan, "B"), size(math.nan), duration(math.inf)} == {"–"}
