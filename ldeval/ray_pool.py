"""Which worker of a cluster scores what, and what becomes of the work of lost ones.

Apart from :mod:`ray_sweep`, which knows of steps and tables; here are processes that
may die. What a worker finishes is in the store at once, so that a lost one costs the
task it was at: that goes back into the queue, and another worker takes it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ldeval.errors import (
    CheckpointError,
    ClusterError,
    LdevalError,
    ScoringError,
    UnsupportedBackendError,
)
from ldeval.ray_cluster import Cluster
from ldeval.ray_worker import Outcome
from ldeval.records import Checkpoint
from ldeval.shards import Shard
from ldeval.sweep import SweepSettings

log = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds without any worker after which a sweep gives up."""
LOOK = 10.0
"""Seconds between looks at workers that are still to come."""


@dataclass(frozen=True)
class Task:
    """One checkpoint over one shard."""

    shard: int
    checkpoint: Checkpoint
    first: Checkpoint | None
    """The run's first checkpoint: the reference of the others. None where it is gone,
    and its scores alone are there."""


class Pool:
    """Workers, the tasks that wait for them, and what came of those that are done."""

    def __init__(
        self,
        cluster: Cluster,
        start: Callable[[], tuple[Any, Any]],
        workers: int,
        progress: bool,
    ) -> None:
        """
        Args:
            start: makes one worker, and what it answers once it has started.
            workers: how many there should be at any time.
        """
        import ray

        self._ray = ray
        self._cluster, self._start = cluster, start
        self._queues: dict[int, deque[Task]] = {}
        self._outcomes: dict[tuple[int, int], Outcome] = {}
        self._running: dict[Any, tuple[Any, Task | None]] = {}
        self._known: set[tuple[int, int]] = set()
        self._idle: list[Any] = []
        self._last: dict[Any, int] = {}
        self._lost: Counter[tuple[int, int]] = Counter()
        self._unborn = 0
        self._tokens = 0
        self._bar = tqdm(
            desc="Scoring shards", unit="shard", total=0, disable=not progress
        )
        self._seen = time.monotonic()
        for _ in range(workers):
            self._hire()

    def begin(self, settings: Mapping[int, SweepSettings], run: str) -> None:
        """The shards of a run, by number; what was of another run is forgotten."""
        self._settings = {n: self._ray.put(item) for n, item in settings.items()}
        self._run = run
        self._queues, self._outcomes, self._known = {}, {}, set()
        self._lost.clear()
        # what is still being done for the run before counts for nothing
        self._running = {r: (worker, None) for r, (worker, _) in self._running.items()}

    def submit(self, tasks: Sequence[Task]) -> None:
        """Put tasks into the queue; those of one shard are begun in this order."""
        for task in tasks:
            self._queues.setdefault(task.shard, deque()).append(task)
            self._known.add((task.shard, task.checkpoint.step))
        self._bar.total += len(tasks)
        self._bar.refresh()
        self._give_out()

    def outcomes(self, step: int, shards: Sequence[Shard]) -> list[Outcome]:
        """Of one step over all shards, when they are done.

        Raises:
            ClusterError: workers are lost again and again, or none can be had.
            LdevalError: what no checkpoint can be scored with.
        """
        wanted = [(shard.number, step) for shard in shards]
        while any(key not in self._outcomes for key in wanted):
            self._wait()
        return [self._outcomes[key] for key in wanted]

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a method of any idle worker, trying others where it is lost."""
        for _ in range(self._cluster.retries + 1):
            while not self._idle:
                self._wait()
            worker = self._idle[-1]
            try:
                return self._got(getattr(worker, name).remote(*arguments))
            except _Lost as lost:
                self._idle.remove(worker)
                self._replace(worker, str(lost))
        raise ClusterError(
            f"{self._cluster.retries + 1} workers were lost over the noise floor. "
            "Finished work is kept; the same command goes on."
        )

    def forget(self) -> None:
        """Let every worker begin its shards anew."""
        for worker in [*self._idle, *(w for w, _ in self._running.values())]:
            worker.forget.remote()
        self._queues, self._outcomes, self._known = {}, {}, set()

    def knows(self, step: int) -> bool:
        """Whether a step was submitted."""
        return any(known == step for _, known in self._known)

    def close(self) -> None:
        """End the workers."""
        self._bar.close()
        for worker in [*self._idle, *(w for w, _ in self._running.values())]:
            self._ray.kill(worker)
        self._idle, self._running = [], {}

    # --------------------------------------------------------------------------- parts

    def _hire(self) -> None:
        worker, answer = self._start()
        self._running[answer] = (worker, None)

    def _wait(self) -> None:
        """Until something is done, or for a while."""
        if not self._running:
            raise AssertionError("what is waited for was never given out")
        done, _ = self._ray.wait(list(self._running), timeout=LOOK)
        for reference in done:
            worker, task = self._running.pop(reference)
            try:
                outcome = self._got(reference)
            except _Lost as lost:
                self._back(worker, task, str(lost))
                continue
            except UnsupportedBackendError:
                raise
            except (CheckpointError, ScoringError) as error:
                # no checkpoint's fault: those are outcomes
                raise ClusterError(str(error)) from error
            self._seen = time.monotonic()
            self._unborn = 0
            self._idle.append(worker)
            if task is not None:
                self._outcomes[(task.shard, task.checkpoint.step)] = outcome
                self._tokens += outcome.tokens
                self._bar.set_postfix_str(f"{self._tokens:,} tokens")
                self._bar.update()
        self._give_out()
        if not done:
            self._without_workers()

    def _without_workers(self) -> None:
        at_work = self._idle or any(task for _, task in self._running.values())
        waited = time.monotonic() - self._seen
        if at_work:
            self._seen = time.monotonic()
        elif waited > PATIENCE:
            raise ClusterError(
                f"no worker could be had for {waited:.0f} s (each needs "
                f"{self._cluster.needs}). Finished work is kept; the same command goes "
                "on when the cluster has room."
            )
        else:
            log.info("waiting for workers, each of which needs %s", self._cluster.needs)

    def _got(self, reference: Any) -> Any:
        """A result; an error that ldeval raised over there is raised here as it was.

        Raises:
            _Lost: the worker, its machine or its memory is gone.
        """
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LdevalError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            raise _Lost(_reason(error)) from error

    def _back(self, worker: Any, task: Task | None, reason: str) -> None:
        """A worker is lost: its task first in the queue again, and another worker."""
        if worker not in self._last:
            self._unborn += 1
        if self._unborn > self._cluster.retries:
            raise ClusterError(
                f"{self._unborn} workers in a row ended before their first shard, the "
                f"last so: {reason} Has every machine of the cluster the packages that "
                "this one has? Finished work is kept."
            )
        if task is not None:
            key = (task.shard, task.checkpoint.step)
            self._lost[key] += 1
            if self._lost[key] > self._cluster.retries:
                raise ClusterError(
                    f"{task.checkpoint.path}: {self._lost[key]} workers were lost over "
                    f"shard {task.shard}, the last so: {reason} Finished work is kept; "
                    "is there enough memory for one more model?"
                )
            self._queues.setdefault(task.shard, deque()).appendleft(task)
        self._replace(worker, reason)

    def _replace(self, worker: Any, reason: str) -> None:
        log.warning("a worker was lost (%s); another is started", reason)
        # one that is only out of reach must not go on writing
        self._ray.kill(worker)
        self._hire()

    def _give_out(self) -> None:
        """Give idle workers tasks: of the shard that each was at, else of the one with
        most left, rather one that nobody is at."""
        for worker in list(self._idle):
            left = {number: len(queue) for number, queue in self._queues.items()}
            if not any(left.values()):
                return
            own = self._last.get(worker)
            if own is None or not left.get(own):
                busy = {task.shard for _, task in self._running.values() if task}
                own = max(left, key=lambda n: (left[n] > 0, n not in busy, left[n], -n))
            task = self._queues[own].popleft()
            self._idle.remove(worker)
            self._last[worker] = task.shard
            reference = worker.take.remote(
                self._settings[task.shard], self._run, task.checkpoint, task.first
            )
            self._running[reference] = (worker, task)


class _Lost(Exception):
    """A worker is no more; why, as far as Ray can tell."""


def _reason(error: Exception) -> str:
    """What Ray says, in a line: an error in starting is in the last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1 if getattr(error, "actor_init_failed", False) else 0]
