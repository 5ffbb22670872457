"""Sweeps over shards with a worker in this process, in place of a Ray cluster's.

What Ray itself does is tested in ``test_ray_sweep``; here is what becomes of tables.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from ldeval.bundled import bundled_probes
from ldeval.decodes import run_decodes
from ldeval.errors import StoreError
from ldeval.files import place, reading
from ldeval.lease import writing
from ldeval.probes import read_probes
from ldeval.ray_cluster import Cluster
from ldeval.ray_pool import Pool, Task
from ldeval.ray_sweep import ShardedSweep
from ldeval.ray_worker import Outcome, ShardWorker
from ldeval.records import GreedyDecodes
from ldeval.shards import FOLDER, Shard
from ldeval.store import list_steps, load_run, run_folder
from ldeval.sweep import SweepResult, SweepSettings, jobs, sweep
from tests.sweeping import ARGS, sweep_settings
from tests.tiny import save_run


class PoolOfOne:
    """As :class:`Pool`, with a worker in this process, that does each task at once."""

    def __init__(self) -> None:
        self.worker = ShardWorker()
        self.worker.ready("no such folder", "hf", ARGS, None, [])
        self.outcome: dict[tuple[int, int], Outcome] = {}

    def begin(self, settings: Mapping[int, SweepSettings], run: str) -> None:
        self._settings, self._run = settings, run

    def submit(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self.outcome[task.shard, task.checkpoint.step] = self.done(task)

    def done(self, task: Task) -> Outcome:
        return self.worker.take(
            self._settings[task.shard], self._run, task.checkpoint, task.first
        )

    def outcomes(self, step: int, shards: Sequence[Shard]) -> list[Outcome]:
        return [self.outcome[shard.number, step] for shard in shards]

    def ask(self, name: str, *arguments: Any) -> Any:
        return getattr(self.worker, name)(*arguments)

    def forget(self) -> None:
        self.worker.forget()

    def knows(self, step: int) -> bool:
        return any(known == step for _, known in self.outcome)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and run/checkpoint-{10,20}."""
    return save_run(tmp_path_factory.mktemp("trained"), [10, 20])


def swept(trained: Path, settings: SweepSettings, pool: PoolOfOne) -> SweepResult:
    """A sweep over two shards."""
    run = trained / "run"
    todo = jobs(run, settings.base)
    with (
        writing(run_folder(settings.store, settings.run)) as still_held,
        ShardedSweep(
            settings, run, cast(Pool, pool), Cluster(shards=2), todo, still_held
        ) as work,
    ):
        return work.take_all(todo)


def asked_of(trained: Path, store: Path, **changes: Any) -> SweepSettings:
    """Two probes and two checkpoints, which is quick."""
    probes = read_probes(bundled_probes()).limited(1, 1)
    return sweep_settings(trained, store, **{"probes": probes, "base": None, **changes})


def test_of_a_store_at_a_url_no_copies_pile_up(trained: Path) -> None:
    """Each step's tables are fetched to be joined."""
    store = place("memory://piling-up")
    before = set(reading._downloads().iterdir())
    result = swept(trained, asked_of(trained, store), PoolOfOne())
    assert result.scored == (10, 20)
    assert set(reading._downloads().iterdir()) == before


class BrokenForOne(PoolOfOne):
    """The last shard cannot score step 20."""

    def done(self, task: Task) -> Outcome:
        if (task.shard, task.checkpoint.step) == (1, 20):
            return Outcome("was not seen whole", 0, "here")
        return super().done(task)


def test_a_step_that_one_shard_cannot_score_stays_in_the_others(
    trained: Path, tmp_path: Path
) -> None:
    """And of steps that are joined, the shards keep the reference alone."""
    asked = asked_of(trained, tmp_path, base=str(trained / "base"))
    first = swept(trained, asked, BrokenForOne())
    assert (first.scored, [b.step for b in first.broken]) == ((0, 10), [20])
    folder = tmp_path / "run" / FOLDER
    held = {s.name: [i.step for i in list_steps(s)] for s in folder.iterdir()}
    assert held == {"shard_0000_of_0002": [0, 20], "shard_0001_of_0002": [0]}
    again = PoolOfOne()
    second = swept(trained, asked, again)
    assert (second.scored, second.kept, second.broken) == ((20,), (0, 10), ())
    scored = {
        shard: work.result().scored for (_, shard), work in again.worker._sweeps.items()
    }
    assert scored == {"shard_0000_of_0002": (), "shard_0001_of_0002": (20,)}
    assert not folder.exists()


@pytest.mark.parametrize("broken", [False, True])
def test_a_first_checkpoint_that_a_trainer_deleted_stays_the_reference(
    trained: Path, tmp_path: Path, broken: bool
) -> None:
    """To every shard, whose worker has its scores and its decodes alone."""
    copy = shutil.copytree(trained, tmp_path / "trained")
    shutil.move(copy / "run" / "checkpoint-20", tmp_path / "later")
    asked = asked_of(copy, tmp_path / "store", greedy=3)
    assert swept(copy, asked, PoolOfOne()).scored == (10,)
    if broken:
        (copy / "run" / "checkpoint-10" / "model.safetensors").write_bytes(b"")
    else:
        shutil.rmtree(copy / "run" / "checkpoint-10")
    shutil.move(tmp_path / "later", copy / "run" / "checkpoint-20")
    result = swept(copy, asked, PoolOfOne())
    assert (result.scored, [b.step for b in result.broken]) == ((20,), [10] * broken)
    run = tmp_path / "store" / "run"
    first, second = load_run(run)
    assert second.manifest.reference_step == 10
    np.testing.assert_array_equal(second.tokens.ref_ids, first.tokens.top_ids)
    decodes = run_decodes(run)
    assert [(d.step, d.reference_step) for d in decodes] == [(10, 10), (20, 10)]
    alone = asked_of(trained, tmp_path / "alone", greedy=3)
    sweep(trained / "run", alone)
    local = run_decodes(tmp_path / "alone" / "run")
    assert [_texts(d) for d in decodes] == [_texts(d) for d in local]


def _texts(decodes: GreedyDecodes) -> list[tuple[str, list[int], int]]:
    return [
        (d.probe_id, d.ids.tolist(), len(d.reference_logprobs)) for d in decodes.decodes
    ]


@pytest.mark.parametrize("name", [FOLDER, f"{FOLDER}/shard_0001_of_0002"])
def test_shards_are_not_scored_into_a_folder_that_is_a_link(
    trained: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(StoreError, match="is a link"):
        swept(trained, asked_of(trained, tmp_path), PoolOfOne())
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_shards_scored_is_not_joined_into_a_run_that_was_lost_meanwhile(
    trained: Path, tmp_path: Path
) -> None:
    pool = PoolOfOne()

    def still_held() -> None:
        if pool.outcome:
            raise StoreError("is another's")

    asked = asked_of(trained, tmp_path)
    todo = jobs(trained / "run", None)
    work = ShardedSweep(
        asked, trained / "run", cast(Pool, pool), Cluster(shards=2), todo, still_held
    )
    with pytest.raises(StoreError, match="is another's"), work:
        work.take_all(todo)
    assert list_steps(tmp_path / "run") == []
    assert len(list((tmp_path / "run" / FOLDER).iterdir())) == 2
