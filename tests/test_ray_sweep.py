"""Sweeps over a real Ray cluster of two workers, on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from ldeval.bundled import bundled_probes
from ldeval.cli import main
from ldeval.decodes import run_decodes
from ldeval.errors import ClusterError, MismatchError, StoreError
from ldeval.files import place
from ldeval.probes import read_probes
from ldeval.ray_cluster import Cluster
from ldeval.ray_pool import Pool, Task
from ldeval.ray_sweep import sweep_on_ray
from ldeval.ray_worker import ShardWorker
from ldeval.records import Checkpoint, ScoreTable, TokenScores
from ldeval.shards import FOLDER, cut
from ldeval.store import list_steps, load_run, read_table, step_folder
from ldeval.sweep import SweepSettings, sweep, sweep_stages
from tests.sweeping import sweep_settings
from tests.tiny import save_run

CLUSTER = Cluster(workers=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and run/checkpoint-{10,20,30}."""
    return save_run(tmp_path_factory.mktemp("trained"), [10, 20, 30])


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # workers stand back behind all else on a machine, unless they are told not to
        patch.setenv("RAY_worker_niceness", "0")
        start_cluster()
        yield
        ray.shutdown()


def start_cluster() -> None:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)


@pytest.fixture(scope="module")
def local(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ScoreTable]:
    """The same sweep in this process."""
    store = tmp_path_factory.mktemp("local")
    sweep(trained / "run", settings(trained, store))
    return load_run(store / "run")


def settings(trained: Path, store: Path, **changes: Any) -> SweepSettings:
    changes = {"probes": read_probes(bundled_probes()).limited(5, 2), **changes}
    return sweep_settings(trained, store, **changes)


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


@pytest.fixture(scope="module")
def swept(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the run, scored by two workers."""
    store = tmp_path_factory.mktemp("swept")
    result = sweep_on_ray([trained / "run"], settings(trained, store), CLUSTER)
    assert result["run"].scored == (0, 10, 20, 30)
    return store


def test_the_tables_are_those_of_a_local_sweep(
    trained: Path, swept: Path, local: list[ScoreTable]
) -> None:
    assert_same(load_run(swept / "run"), local)
    assert local[0].manifest.noise_floor is not None
    assert not (swept / "run" / FOLDER).exists()
    # and a local sweep keeps them as its own
    again = sweep(trained / "run", settings(trained, swept))
    assert again.kept == (0, 10, 20, 30)


def test_a_worker_that_is_killed_costs_its_task_alone(
    trained: Path,
    tmp_path: Path,
    local: list[ScoreTable],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with once_a_shard_has_its_second_step(tmp_path, kill_a_worker):
        result = sweep_on_ray([trained / "run"], settings(trained, tmp_path), CLUSTER)
    assert result["run"].scored == (0, 10, 20, 30)
    assert result["run"].broken == ()
    assert "a worker was lost" in caplog.text
    assert_same(load_run(tmp_path / "run"), local)


def test_one_loss_too_many_ends_the_sweep_and_keeps_what_is_done(
    trained: Path, tmp_path: Path
) -> None:
    """A lost worker is no fault of the checkpoint: that is not listed as broken."""
    with (
        once_a_shard_has_its_second_step(tmp_path, kill_a_worker),
        pytest.raises(ClusterError, match="1 workers were lost over shard"),
    ):
        sweep_on_ray(
            [trained / "run"],
            settings(trained, tmp_path),
            replace(CLUSTER, workers=1, shards=2, retries=0),
        )
    assert list((tmp_path / "run" / FOLDER).glob("*/step_000010/manifest.json"))
    assert [step.step for step in list_steps(tmp_path / "run")] == [0]


def test_workers_that_never_start_end_the_sweep() -> None:
    @ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]
    class Stillborn:
        def ready(self) -> None:
            os._exit(1)

    def start() -> tuple[Any, Any]:
        worker = Stillborn.remote()
        return worker, worker.ready.remote()

    pool = Pool(Cluster(retries=1), start, 1, False)
    first = Checkpoint("c", 0)
    shards = cut(read_probes(bundled_probes()), 1)
    pool.begin({}, "r")
    pool.submit([Task(0, first, first)])
    try:
        with pytest.raises(ClusterError, match="2 workers in a row ended"):
            pool.outcomes(0, shards)
    finally:
        pool.close()


def kill_a_worker() -> None:
    os.kill(_workers()[0], signal.SIGKILL)


@contextlib.contextmanager
def once_a_shard_has_its_second_step(
    store: Path, act: Callable[[], object]
) -> Iterator[None]:
    """Do something in the middle of a sweep."""
    ended = threading.Event()

    def wait() -> None:
        shards = store / "run" / FOLDER
        while not ended.wait(0.01):
            if any(shards.glob("*/step_0000[123]0/manifest.json")):
                act()
                return

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _workers() -> list[int]:
    """Processes of the pool's actors."""
    import psutil

    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if f"ray::{ShardWorker.__name__}" in " ".join(process.info["cmdline"] or ())
    ]


def test_a_driver_that_is_killed_goes_on_at_the_same_cluster(
    trained: Path, tmp_path: Path, local: list[ScoreTable]
) -> None:
    """Here the cluster is one that somebody else started, named by its address."""
    command = [sys.executable, "-m", "ldeval.cli", "-q", "sweep", str(trained / "run")]
    command += ["--store", str(tmp_path), "--base", str(trained / "base")]
    command += ["--model_args", "dtype=float32,device=cpu", "--apply_chat_template"]
    command += ["--limit", "5", "2", "--ray-workers", "2"]
    address = ray.get_runtime_context().gcs_address
    shards = tmp_path / "run" / FOLDER
    with subprocess.Popen([*command, "--ray", address]) as driver:
        while not any(shards.glob("*/step_0000[123]0/manifest.json")):
            assert driver.poll() is None, "ended before it could be killed"
            time.sleep(0.01)
        driver.kill()
    assert not (tmp_path / "run" / "step_000030" / "manifest.json").is_file()
    again = subprocess.run([*command, "--ray", address], check=False)
    assert again.returncode == 0
    assert_same(load_run(tmp_path / "run"), local)
    assert not shards.exists()


def test_a_driver_that_ended_goes_on_with_its_shards_on_fewer_workers(
    trained: Path, swept: Path, tmp_path: Path, local: list[ScoreTable]
) -> None:
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    asked = settings(trained, tmp_path)
    # as if killed before the last step was joined, with one shard of it begun
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
    two = replace(CLUSTER, workers=1, shards=2)
    result = sweep_on_ray([copy / "run"], asked, two)["run"]
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
    sweep_on_ray(runs, asked, replace(CLUSTER, workers=1, shards=3))
    sweep_stages(runs, replace(asked, store=stores[1]))
    for name in ("run", "second"):
        assert_same(load_run(stores[0] / name), load_run(stores[1] / name))
        mine, theirs = (run_decodes(store / name) for store in stores)
        assert [d.step for d in mine] == [d.step for d in theirs]
        for one, two in zip(mine, theirs, strict=True):
            assert [d.text for d in one.decodes] == [d.text for d in two.decodes]
            assert one.probe_set_hash == two.probe_set_hash
            assert one.settings == two.settings
    with pytest.raises(MismatchError, match="max_tokens 4, this sweep has 5"):
        sweep_on_ray(runs, replace(asked, greedy=5), replace(CLUSTER, workers=1))


def test_other_scores_under_the_same_name_are_refused(
    trained: Path, swept: Path
) -> None:
    other = replace(
        settings(trained, swept), probes=read_probes(bundled_probes()).limited(4, 2)
    )
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
    assert main([*command, "--model_args", "pretrained=x"]) == 2
    assert "the sweep chooses the checkpoint" in capfd.readouterr().err
    with pytest.raises(ClusterError, match="a worker needs 64 CPUs"):
        sweep_on_ray([trained / "run"], settings(trained, tmp_path), Cluster(cpus=64))


def test_a_store_that_workers_do_not_share_is_named(trained: Path) -> None:
    """Each process has a memory of its own."""
    asked = settings(trained, place("memory://store"))
    with pytest.raises(StoreError, match="a disk that they share, or at a URL"):
        sweep_on_ray([trained / "run"], asked, replace(CLUSTER, workers=1))


@pytest.mark.parametrize(
    "option",
    [
        ("--ray-workers", "0"),
        ("--ray-workers", "-1"),
        ("--ray-shards", "0"),
        ("--ray-cpus", "nan"),
        ("--ray-gpus", "-1"),
        ("--ray-gpus", "1.5"),
        ("--ray-cpus", "0.00001"),
        ("--ray-retries", "-1"),
    ],
)
def test_amounts_that_are_none_are_refused(option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "run", "--store", "store", "--ray", "auto", *option])


def test_tables_of_one_shard_alone_are_equal_to_the_last_bit(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the packs are the same; threads are as many, one. Two workers share the
    checkpoints; names are kept as they were given."""
    monkeypatch.chdir(trained)
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sweep("run", settings(trained, tmp_path / "local", base="base"))
    finally:
        torch.set_num_threads(threads)
    asked = settings(trained, tmp_path / "ray", base="base")
    sweep_on_ray(["run"], asked, replace(CLUSTER, shards=1))
    for step in (0, 10, 20, 30):
        mine, theirs = (
            read_table(step_folder(tmp_path / name, "run", step)).manifest
            for name in ("ray", "local")
        )
        assert mine.files == theirs.files
        assert mine.noise_floor == theirs.noise_floor
        assert mine.checkpoint == theirs.checkpoint


def test_a_machine_that_is_lost_leaves_its_shard_to_those_that_stay(
    trained: Path,
    tmp_path: Path,
    local: list[ScoreTable],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two machines of one core: another worker has no room, and none is needed."""
    from ray.cluster_utils import Cluster as Machines

    ray.shutdown()
    memory = {"num_cpus": 1, "object_store_memory": 80_000_000}
    machines = Machines(initialize_head=True, head_node_args=memory)
    second = machines.add_node(**memory)
    try:
        ray.init(address=machines.address)
        lose = partial(machines.remove_node, second, allow_graceful=False)
        with once_a_shard_has_its_second_step(tmp_path, lose):
            result = sweep_on_ray(
                [trained / "run"], settings(trained, tmp_path), Cluster()
            )
        assert result["run"].scored == (0, 10, 20, 30)
        assert "a worker was lost" in caplog.text
        assert_same(load_run(tmp_path / "run"), local)
    finally:
        ray.shutdown()
        machines.shutdown()
        start_cluster()


def test_a_dead_address_is_said_at_once(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    ray.shutdown()
    try:
        for address, said in (
            (f"127.0.0.1:{port}", "nobody answers there"),
            ("nonsense", "is no address"),
            ("host:port", "is no address"),
        ):
            with pytest.raises(ClusterError, match=said):
                sweep_on_ray(
                    [trained / "run"],
                    settings(trained, tmp_path),
                    Cluster(address=address),
                )
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(
            ClusterError, match=rf"RAY_ADDRESS 127.0.0.1:{port}: nobody"
        ):
            sweep_on_ray([trained / "run"], settings(trained, tmp_path), Cluster())
        monkeypatch.delenv("RAY_ADDRESS")
    finally:
        start_cluster()
