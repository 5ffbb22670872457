"""Sweep over Ray: a run's checkpoints, each by all shards of its probes at once.

A :class:`ShardedSweep` is a sweep whose steps are scored elsewhere: what is finished,
broken, or stored under another run is told as in a local one. All shards score the
first checkpoint first, since it is the reference of all others; then each goes through
the rest at its own pace, and a step is joined when every shard has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldeval.decodes import decodes_place, kept_decodes
from ldeval.errors import CheckpointError, ClusterError, ScoringError, StoreError
from ldeval.files import refuse_link, remove, remove_tree
from ldeval.lease import writing
from ldeval.ray_cluster import Cluster, connected
from ldeval.ray_pool import Pool, Task
from ldeval.ray_worker import Outcome, worker_class
from ldeval.records import Checkpoint, NoiseFloor
from ldeval.scoring.noise import noise_sample
from ldeval.shards import (
    FOLDER,
    Shard,
    begun_with,
    cut,
    join_decodes,
    join_step,
    sample_scores,
    seed_decodes,
    seed_step,
)
from ldeval.store import (
    MANIFEST,
    StoredTable,
    open_table,
    read_manifest,
    run_folder,
    step_folder,
)
from ldeval.sweep import (
    Sweep,
    SweepResult,
    SweepSettings,
    all_checkpoints,
    jobs,
    stages,
)


def sweep_on_ray(
    runs: Sequence[str | Path], settings: SweepSettings, cluster: Cluster
) -> dict[str, SweepResult]:
    """As :func:`ldeval.sweep.sweep_stages`, on a Ray cluster.

    Checkpoints and the store must have the same names on every machine of it.

    Raises:
        MissingExtraError: ray is not installed.
        ClusterError: no cluster, no room in it, or workers that are lost again and
            again; finished work is kept.
        CheckpointError, StoreError, MismatchError: as a local sweep.
    """
    results = {}
    with connected(cluster) as found, _pool(found, settings, runs) as pool:
        for run, stage in stages(runs, settings):
            target = run_folder(stage.store, stage.run)
            todo = jobs(run, stage.base)
            with (
                writing(target) as still_held,
                ShardedSweep(stage, run, pool, found, todo, still_held) as work,
            ):
                results[stage.run] = work.take_all(todo)
    return results


@contextlib.contextmanager
def _pool(
    cluster: Cluster, settings: SweepSettings, runs: Sequence[str | Path]
) -> Iterator[Pool]:
    actor = worker_class(cluster)
    begin_with = (
        str(Path.cwd()),
        settings.model,
        dict(settings.model_args),
        _absolute(settings.base),
        [_everywhere(found) for found in all_checkpoints(runs)],
    )

    def start() -> tuple[Any, Any]:
        worker = actor.remote()
        return worker, worker.ready.remote(*begin_with)

    workers = min(cluster.workers or 1, len(settings.probes))
    pool = Pool(cluster, start, workers, settings.progress)
    try:
        yield pool
    finally:
        pool.close()


def _absolute(folder: str | None) -> str | None:
    """A name that means the same to a worker in another folder."""
    return None if folder is None else str(Path(folder).absolute())


def _everywhere(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, path=str(Path(checkpoint.path).absolute()))


class ShardedSweep(Sweep):
    """A sweep that opens no model: shards of its probes are scored by a pool."""

    def __init__(
        self,
        settings: SweepSettings,
        run: str | Path,
        pool: Pool,
        cluster: Cluster,
        todo: Sequence[Checkpoint],
        still_held: Callable[[], None],
    ) -> None:
        super().__init__(settings, run, _NoModels(), still_held)
        self._pool, self._todo = pool, todo
        self._target = run_folder(settings.store, settings.run)
        count = begun_with(self._target) or cluster.shards or cluster.workers or 1
        self._shards = cut(settings.probes, count)
        parts = self._target / FOLDER
        for folder in (parts, *(parts / shard.name for shard in self._shards)):
            refuse_link(folder)
        pool.begin(
            {shard.number: self._of(shard) for shard in self._shards},
            str(Path(run).absolute()),
        )

    def _of(self, shard: Shard) -> SweepSettings:
        return replace(
            self._settings,
            probes=shard.probes,
            store=(self._target / FOLDER).absolute(),
            run=shard.name,
            base=_absolute(self._settings.base),
            initial_model=_absolute(self._settings.initial_model),
            progress=False,
            noise=False,
        )

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)
        if details[0] is None and not self._has_parts_of_broken_steps():
            self._still_held()
            remove_tree(self._target / FOLDER)

    def _has_parts_of_broken_steps(self) -> bool:
        """Whether a shard has a step that another could not score: the next sweep need
        not score it again."""
        return any(
            (self._part(shard, broken.step) / MANIFEST).is_file()
            for broken in self.result().broken
            for shard in self._shards
        )

    def _compute(self, folder: Path, checkpoint: Checkpoint, digest: str) -> None:
        """Wait until all shards have the checkpoint, and join them."""
        if self._reference_step is not None:
            self._join(checkpoint)
            self._free(checkpoint.step)
            return
        self._pool.submit([self._task(s, checkpoint, checkpoint) for s in self._shards])
        try:
            self._join(checkpoint)
        except (CheckpointError, ScoringError):
            # no shard may keep a reference that the others do not have
            self._pool.forget()
            self._free(checkpoint.step)
            raise

    def _join(self, checkpoint: Checkpoint) -> None:
        step = checkpoint.step
        outcomes = self._pool.outcomes(step, self._shards)
        check_all(outcomes, checkpoint)
        self._check_seen(outcomes, step)
        tables = [open_table(self._part(shard, step)) for shard in self._shards]
        mine = replace(tables[0].manifest, checkpoint=checkpoint.path)
        self._alike.check_alike(mine)
        floor = self._measured(checkpoint, tables)
        self._still_held()
        join_step(
            self._target,
            tables,
            step,
            self._settings.probes,
            checkpoint=checkpoint.path,
            floor=floor,
        )

    def _free(self, step: int) -> None:
        """Delete what shards have of a step; not of the reference, which a worker that
        begins a shard reads."""
        if step == self._reference_step:
            return
        self._still_held()
        for shard in self._shards:
            folder = self._part(shard, step)
            remove(folder / MANIFEST)  # what is half deleted must not count as there
            remove_tree(folder)

    def _part(self, shard: Shard, step: int) -> Path:
        """Where a shard has a step."""
        return step_folder(self._target / FOLDER, shard.name, step)

    def _check_seen(self, outcomes: Sequence[Outcome], step: int) -> None:
        """Whether workers write where this process reads.

        Raises:
            StoreError: what one wrote is not here.
        """
        for shard, outcome in zip(self._shards, outcomes, strict=True):
            folder = self._part(shard, step)
            if not (folder / MANIFEST).is_file():
                raise StoreError(
                    f"{folder}: was written on {outcome.machine}, and is not to be "
                    "seen here. A store of several machines must be on a disk that "
                    "they share, or at a URL."
                )

    def _measured(
        self, checkpoint: Checkpoint, tables: Sequence[StoredTable]
    ) -> NoiseFloor | None:
        """The noise floor, by one worker for all, once a backend and dtype."""
        found = tables[0].manifest
        if (found.backend, found.dtype) in self._floors:
            return None
        sample = noise_sample(self._settings.probes.probes)
        floor: NoiseFloor | None = self._pool.ask(
            "noise",
            _everywhere(checkpoint),
            sample,
            sample_scores(tables, sample),
            self._options,
            _absolute(self._settings.base),
        )
        return floor

    def _refer_to(self, folder: Path) -> None:
        """The first step is there: let all shards go through the others."""
        manifest = read_manifest(folder)
        self._reference_step = manifest.step
        self._alike.remember(manifest)
        broken = {item.step for item in self.result().broken}
        whole = (item for item in self._todo if item.step not in broken)
        first = next((item for item in whole if item.step == manifest.step), None)
        rest = [item for item in self._todo if self._is_left(item)]
        if not rest:
            return
        for step in (manifest.step, *(item.step for item in rest)):
            if self._is_stored(step):
                seed_step(self._target, self._shards, step)
        if self._settings.greedy:
            seed_decodes(self._target, self._shards, manifest.step)
        for shard in self._shards:
            self._pool.submit([self._task(shard, item, first) for item in rest])

    def _is_left(self, checkpoint: Checkpoint) -> bool:
        """Whether the shards have to take a checkpoint, for scores or for decodes."""
        if not self._is_stored(checkpoint.step):
            return self._reference_step is not None and (
                checkpoint.step > self._reference_step
            )
        return self._wants_decodes(checkpoint) and not self._pool.knows(checkpoint.step)

    def _wants_decodes(self, checkpoint: Checkpoint) -> bool:
        place = decodes_place(self._target, checkpoint.step)
        return self._settings.greedy > 0 and not place.is_file()

    def _is_stored(self, step: int) -> bool:
        folder = step_folder(self._settings.store, self._settings.run, step)
        return (folder / MANIFEST).is_file()

    def _decode(self, checkpoint: Checkpoint, digest: str) -> None:
        """Join what the shards' sweeps kept of greedy decodes.

        Raises:
            CheckpointError: a shard's decodes could not be had.
            MismatchError: other decodes are kept already.
        """
        step, asked = checkpoint.step, self._asked_of_decodes(digest)
        if not self._settings.greedy or kept_decodes(self._target, step, asked):
            return
        check_all(self._pool.outcomes(step, self._shards), checkpoint)
        self._still_held()
        join_decodes(self._target, self._shards, step, self._settings.probes)
        self._free(step)

    @staticmethod
    def _task(shard: Shard, checkpoint: Checkpoint, first: Checkpoint | None) -> Task:
        before = None if first is None else _everywhere(first)
        return Task(shard.number, _everywhere(checkpoint), before)


def check_all(outcomes: Sequence[Outcome], checkpoint: Checkpoint) -> None:
    """Whether all shards have a checkpoint.

    Raises:
        CheckpointError: one found it broken.
        ClusterError: one did not find it, and it is here.
    """
    for outcome in outcomes:
        if outcome.broken is None:
            continue
        if outcome.missing and Path(checkpoint.path).is_dir():
            raise ClusterError(
                f"{checkpoint.path}: is not to be seen on {outcome.machine}. "
                "Checkpoints must have the same names on all machines."
            )
        raise CheckpointError(outcome.broken)


class _NoModels:
    """In place of a model source: nothing is computed in this process."""

    swapped = False

    def open(self, checkpoint: Checkpoint) -> Any:
        raise AssertionError(f"{checkpoint.path}: is scored by workers")

    restart = open

    def close(self) -> None:
        """Nothing is open."""
