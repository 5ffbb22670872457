"""Sweeps over a real Ray cluster of two workers, on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldeval.bundled import bundled_probes
from ldeval.cli import main
from ldeval.decodes import run_decodes
from ldeval.errors import MismatchError, ScoringError
from ldeval.probes import read_probes
from ldeval.ray_pool import Cluster, ShardWorker
from ldeval.ray_sweep import sweep_on_ray
from ldeval.records import ScoreTable, TokenScores
from ldeval.shards import FOLDER
from ldeval.store import list_steps, load_run, read_table, step_folder
from ldeval.sweep import SweepSettings, sweep, sweep_stages
from tests.tiny import save_run

ray = pytest.importorskip("ray")

CLUSTER = Cluster(workers=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and run/checkpoint-{10,20,30}."""
    return save_run(tmp_path_factory.mktemp("trained"), [10, 20, 30])


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def local(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ScoreTable]:
    """The same sweep in this process."""
    store = tmp_path_factory.mktemp("local")
    sweep(trained / "run", settings(trained, store))
    return load_run(store / "run")


def settings(trained: Path, store: Path, **changes: Any) -> SweepSettings:
    return replace(
        SweepSettings(
            probes=read_probes(bundled_probes()).limited(5, 2),
            store=store,
            run="run",
            model_args={"dtype": "float32", "device": "cpu"},
            base=str(trained / "base"),
            apply_chat_template=True,
            progress=False,
        ),
        **changes,
    )


def assert_same(found: list[ScoreTable], wanted: list[ScoreTable]) -> None:
    """The same rows and ids; values within what a matrix product's shape changes."""
    assert [t.manifest.step for t in found] == [t.manifest.step for t in wanted]
    for mine, theirs in zip(found, wanted, strict=True):
        for name in ("probe_ids", "kinds", "trained", "text_hashes", "offsets"):
            assert getattr(mine, name).tolist() == getattr(theirs, name).tolist()
        for name in TokenScores.__dataclass_fields__:
            a, b = getattr(mine.tokens, name), getattr(theirs.tokens, name)
            assert (a is None) == (b is None), name
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=name)
        one, two = mine.manifest, theirs.manifest
        for name in (
            *("run", "step", "checkpoint", "weights_hash", "probe_set_hash"),
            *("tokenizer_hash", "template_hash", "span", "backend", "tier", "dtype"),
            *("n_probes", "n_responses", "n_tokens", "excluded", "settings"),
            *("context_hash", "reference_step", "split_exceptions", "stored_dtype"),
        ):
            assert getattr(one, name) == getattr(two, name), name
        assert (one.noise_floor is None) == (two.noise_floor is None)


def test_the_tables_are_those_of_a_local_sweep(
    trained: Path, tmp_path: Path, local: list[ScoreTable]
) -> None:
    result = sweep_on_ray([trained / "run"], settings(trained, tmp_path), CLUSTER)
    assert result["run"].scored == (0, 10, 20, 30)
    assert_same(load_run(tmp_path / "run"), local)
    assert local[0].manifest.noise_floor is not None
    assert not (tmp_path / "run" / FOLDER).exists()
    # and a local sweep keeps them as its own
    again = sweep(trained / "run", settings(trained, tmp_path))
    assert again.kept == (0, 10, 20, 30)


def test_a_worker_that_is_killed_costs_its_task_alone(
    trained: Path,
    tmp_path: Path,
    local: list[ScoreTable],
    caplog: pytest.LogCaptureFixture,
) -> None:
    killed: list[int] = []

    def kill() -> None:
        """The first worker that has a shard's second step."""
        shards = tmp_path / "run" / FOLDER
        while not killed:
            time.sleep(0.01)
            if any(shards.glob("*/step_000010/manifest.json")):
                killed.extend(_workers()[:1])
                os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    result = sweep_on_ray([trained / "run"], settings(trained, tmp_path), CLUSTER)
    thread.join()
    assert result["run"].scored == (0, 10, 20, 30)
    assert "a worker was lost" in caplog.text
    assert_same(load_run(tmp_path / "run"), local)


def _workers() -> list[int]:
    """Processes of the pool's actors."""
    import psutil

    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if f"ray::{ShardWorker.__name__}" in " ".join(process.info["cmdline"] or ())
    ]


def test_a_driver_that_ended_goes_on_with_its_shards_on_fewer_workers(
    trained: Path, tmp_path: Path, local: list[ScoreTable]
) -> None:
    asked = settings(trained, tmp_path)
    sweep_on_ray([trained / "run"], asked, CLUSTER)
    # as if killed before the last step was joined, with one shard of it done
    last = step_folder(tmp_path, "run", 30)
    shutil.rmtree(last)
    name = "shard_0000_of_0003"
    (tmp_path / "run" / FOLDER / name / "step_000030").mkdir(parents=True)
    result = sweep_on_ray([trained / "run"], asked, replace(CLUSTER, workers=1))
    assert result["run"].scored == (30,)
    assert result["run"].kept == (0, 10, 20)
    assert_same(load_run(tmp_path / "run"), local)


def test_a_broken_first_checkpoint_is_broken_for_all_shards(
    trained: Path, tmp_path: Path
) -> None:
    """Not even by one shard alone may it become a reference."""
    copy = tmp_path / "made"
    shutil.copytree(trained, copy)
    (copy / "base" / "config.json").write_text("{")
    asked = settings(copy, tmp_path / "store", base=None)
    shutil.copytree(copy / "base", copy / "run" / "checkpoint-5")
    result = sweep_on_ray([copy / "run"], asked, CLUSTER)["run"]
    assert [item.step for item in result.broken] == [5]
    assert result.scored == (10, 20, 30)
    manifests = [t.manifest for t in load_run(tmp_path / "store" / "run")]
    assert {m.reference_step for m in manifests} == {10}


def test_stages_and_greedy_decodes_are_those_of_a_local_sweep(
    trained: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    shutil.copytree(trained / "run" / "checkpoint-10", second / "checkpoint-7")
    runs = [trained / "run", second]
    stores = tmp_path / "ray", tmp_path / "local"
    asked = settings(trained, stores[0], greedy=4)
    sweep_on_ray(runs, asked, replace(CLUSTER, shards=3))
    sweep_stages(runs, replace(asked, store=stores[1]))
    for name in ("run", "second"):
        assert_same(load_run(stores[0] / name), load_run(stores[1] / name))
        mine, theirs = (run_decodes(store / name) for store in stores)
        assert [d.step for d in mine] == [d.step for d in theirs]
        for one, two in zip(mine, theirs, strict=True):
            assert [d.text for d in one.decodes] == [d.text for d in two.decodes]
            assert one.probe_set_hash == two.probe_set_hash
            assert one.settings == two.settings


def test_other_scores_under_the_same_name_are_refused(
    trained: Path, tmp_path: Path
) -> None:
    asked = settings(trained, tmp_path)
    sweep_on_ray([trained / "run"], asked, CLUSTER)
    other = replace(asked, probes=read_probes(bundled_probes()).limited(4, 2))
    with pytest.raises(MismatchError, match="probe_set_hash"):
        sweep_on_ray([trained / "run"], other, CLUSTER)


def test_what_no_worker_can_do_is_said_as_a_local_sweep_says_it(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["-q", "sweep", str(trained / "run"), "--store", str(tmp_path)]
    command += ["--ray", "--ray-workers", "1", "--limit", "2", "1"]
    assert main([*command, "--model", "no-such-model"]) == 2
    assert "lm_eval knows no such model type" in capfd.readouterr().err
    assert list_steps(tmp_path / "run") == []
    with pytest.raises(ScoringError, match="a worker needs 64 CPUs"):
        sweep_on_ray([trained / "run"], settings(trained, tmp_path), Cluster(cpus=64))


def test_tables_of_one_shard_alone_are_equal_to_the_last_bit(
    trained: Path, tmp_path: Path, local: list[ScoreTable]
) -> None:
    """Then the packs are the same; threads are as many, one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sweep(trained / "run", settings(trained, tmp_path / "local"))
    finally:
        torch.set_num_threads(threads)
    one = replace(CLUSTER, workers=1)
    sweep_on_ray([trained / "run"], settings(trained, tmp_path / "ray"), one)
    for step in (0, 10, 20, 30):
        mine, theirs = (
            read_table(step_folder(tmp_path / name, "run", step)).manifest
            for name in ("ray", "local")
        )
        assert mine.files == theirs.files
        assert mine.noise_floor == theirs.noise_floor


def test_a_dead_address_is_said_at_once(trained: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    ray.shutdown()
    try:
        for address, said in (
            (f"127.0.0.1:{port}", "nobody answers there"),
            ("nonsense", "is no address"),
        ):
            with pytest.raises(ScoringError, match=said):
                sweep_on_ray(
                    [trained / "run"],
                    settings(trained, tmp_path),
                    Cluster(address=address),
                )
    finally:
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)
