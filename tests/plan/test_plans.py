"""Plans of real runs: rates that are measured or stored."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ldeval.bundled import bundled_probes
from ldeval.errors import CheckpointError, MismatchError, StoreError
from ldeval.plan import Hypothetical, RayAsked, plan_sweep
from ldeval.plan.fleet import PARALLEL, fleet_of
from ldeval.plan.rates import Counted, read_stored, stored_rates
from ldeval.plan.shapes import (
    flops_of,
    shape_of_checkpoint,
)
from ldeval.probes import read_probes
from ldeval.records import Rate
from ldeval.report.plan_tables import (
    print_plan,
)
from ldeval.scoring.models import RestartedModels
from ldeval.store import list_runs, read_table, step_folder
from ldeval.sweep.settings import SIZING_ARGUMENTS
from tests.plan.planning import LARGE, TABLES, WORK, flat
from tests.sweeping import ARGS, sweep_settings


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


@pytest.mark.parametrize("model", ["hf", "vllm"])
def test_an_adapter_is_planned_with_its_base(
    trained: Path, tmp_path: Path, model: str
) -> None:
    """Which vLLM's engine starts with, and loads no more."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = trained / "base"
    network = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    adapter = tmp_path / "run" / "checkpoint-5"
    get_peft_model(network, config).save_pretrained(adapter)
    wanted = sweep_settings(trained, tmp_path / "store", model=model)
    plan = plan_sweep([tmp_path / "run"], wanted, Hypothetical(flops=1e12))
    weights = (base / "model.safetensors").stat().st_size
    own = (adapter / "adapter_model.safetensors").stat().st_size
    assert plan.checkpoints == 2
    read = 2 * own if model == "vllm" else 2 * weights + own
    assert plan.bytes.read == pytest.approx(read)
    made_up = Hypothetical(flops=1e12, parameters=1e6)
    larger = plan_sweep([tmp_path / "run"], wanted, made_up)
    assert larger.bytes.read == 2 * 2e6
    told = [n for n in (*plan.notes, *larger.notes) if "checkpoints are adapters" in n]
    assert len(told) == (model == "vllm")
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
