"""Workers on Ray that each hold one engine, and who of them scores what.

Apart from :mod:`ray_sweep`, which knows of steps and tables; here are processes that
may die. What a worker finishes is in the store at once, so that a lost one costs the
task it was at: that goes back into the queue, and another worker takes it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from ldeval.errors import LdevalError, MissingExtraError, ScoringError
from ldeval.records import Checkpoint, NoiseFloor, Probe
from ldeval.scoring.backends import backend_of
from ldeval.scoring.models import ModelSource
from ldeval.scoring.noise import measure_sample
from ldeval.scoring.score import Key, ResponseScore, Scored
from ldeval.scoring.sources import model_source
from ldeval.shards import Shard
from ldeval.store import read_manifest, step_folder
from ldeval.sweep import Sweep, SweepSettings

log = logging.getLogger(__name__)

KNOCK = 5.0
"""Seconds to wait for an answer from an address."""
PATIENCE = 600.0
"""Seconds without any worker after which a sweep gives up."""
LOOK = 10.0
"""Seconds between looks at workers that are still to come."""


@dataclass(frozen=True)
class Cluster:
    """Where to compute, with what for each worker."""

    address: str | None = None
    """Of a running cluster; None for RAY_ADDRESS, else this machine alone."""
    workers: int | None = None
    """None for as many as the cluster has room for."""
    shards: int | None = None
    """None for one a worker."""
    cpus: float = 1.0
    gpus: float | None = None
    """None for one where the cluster has any."""
    retries: int = 3
    """How often a task is given out again after its worker was lost."""


@dataclass(frozen=True)
class Task:
    """One checkpoint over one shard."""

    shard: int
    checkpoint: Checkpoint
    first: Checkpoint
    """The run's first checkpoint: the reference of the others."""


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    broken: str | None
    """Why the checkpoint could not be scored; None where it was."""
    tokens: int
    """Tokens of the table."""


# ---------------------------------------------------------------------- in the workers


class ShardWorker:
    """One engine, and the sweeps over the shards that it was given so far."""

    def __init__(
        self,
        model: str,
        model_args: Mapping[str, Any],
        base: str | None,
        checkpoints: Sequence[Checkpoint],
    ) -> None:
        made = model_source(model, model_args, base=base, checkpoints=checkpoints)
        self._source = KeptOpen(made)
        self._sweeps: dict[tuple[str, str], Sweep] = {}

    def ready(self) -> None:
        """Answers once the worker has started."""

    def take(
        self,
        settings: SweepSettings,
        run: str,
        checkpoint: Checkpoint,
        first: Checkpoint,
    ) -> Outcome:
        """Score a checkpoint over a shard into the shard's own run.

        Args:
            settings: of the shard.
            run: the folder of the checkpoints.
            first: is taken before, where this worker has not seen the shard: it is in
                the store by then.
        """
        name = (str(settings.store), settings.run)
        if name not in self._sweeps:
            self._sweeps[name] = Sweep(settings, run, self._source)
            if first != checkpoint:
                self._sweeps[name].take(first)
        work = self._sweeps[name]
        work.take(checkpoint)
        broken = [b for b in work.result().broken if b.step == checkpoint.step]
        if broken:
            return Outcome(broken[-1].reason, 0)
        folder = step_folder(settings.store, settings.run, checkpoint.step)
        return Outcome(None, read_manifest(folder).n_tokens)

    def forget(self) -> None:
        """Begin all shards anew: the first checkpoint was none."""
        self._sweeps.clear()

    def noise(
        self,
        checkpoint: Checkpoint,
        sample: Sequence[Probe],
        scores: Mapping[Key, ResponseScore],
        options: Mapping[str, Any],
        base: str | None,
    ) -> NoiseFloor | None:
        """Score a sample a second time, and compare with the scores in the store."""
        lm = self._source.open(checkpoint)
        scored = Scored(
            backend=backend_of(lm),
            span=options["span"],
            template_used=options["apply_chat_template"],
            scores=scores,
            excluded=(),
            split_exceptions=(),
            contexts={},
            notes=(),
        )
        return measure_sample(lm, sample, scored, checkpoint, options, base=base)


class KeptOpen:
    """Models that stay open for the next shard of the same checkpoint."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self._open: tuple[str, Any] | None = None

    @property
    def swapped(self) -> bool:
        """Of the source: each shard checks a swap on its own probes."""
        return self._source.swapped

    def open(self, checkpoint: Checkpoint) -> Any:
        """The model of a checkpoint, loaded unless it is open."""
        if self._open is None or self._open[0] != checkpoint.path:
            self._open = None  # not beside the next one in memory
            self._open = (checkpoint.path, self._source.open(checkpoint))
        return self._open[1]

    def restart(self, checkpoint: Checkpoint) -> Any:
        """Load it anew."""
        self._open = None
        self._open = (checkpoint.path, self._source.restart(checkpoint))
        return self._open[1]

    def close(self) -> None:
        """Free the model."""
        self._open = None
        self._source.close()


# ----------------------------------------------------------------------- in the driver


class Pool:
    """Workers, the tasks that wait for them, and what came of those that are done."""

    def __init__(
        self, cluster: Cluster, start: Callable[[], Any], workers: int, progress: bool
    ) -> None:
        """
        Args:
            start: makes one worker.
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
        """Put tasks into the queue; those of one shard are done in this order."""
        for task in tasks:
            self._queues.setdefault(task.shard, deque()).append(task)
            self._known.add((task.shard, task.checkpoint.step))
        self._bar.total += len(tasks)
        self._bar.refresh()
        self._give_out()

    def outcomes(self, step: int, shards: Sequence[Shard]) -> list[Outcome]:
        """Of one step over all shards, when they are done.

        Raises:
            ScoringError: workers are lost again and again, or none can be had.
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
            except self._ray.exceptions.RayActorError as error:
                self._idle.remove(worker)
                self._replace(str(error))
        raise ScoringError(f"workers were lost {self._cluster.retries + 1} times")

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
        worker = self._start()
        self._running[worker.ready.remote()] = (worker, None)

    def _wait(self) -> None:
        """Until something is done, or for a while."""
        done, _ = self._ray.wait(list(self._running), timeout=LOOK)
        for reference in done:
            worker, task = self._running.pop(reference)
            try:
                outcome = self._got(reference)
            except self._ray.exceptions.RayActorError as error:
                self._back(task, str(error))
                continue
            self._seen = time.monotonic()
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
            raise ScoringError(
                f"no worker could be had for {waited:.0f} s (each needs {self._needs()}"
                "). Finished work is kept; the same command goes on when the cluster "
                "has room."
            )
        else:
            log.info("waiting for workers, each of which needs %s", self._needs())

    def _needs(self) -> str:
        return f"{self._cluster.cpus:g} CPUs, {self._cluster.gpus or 0:g} GPUs"

    def _got(self, reference: Any) -> Any:
        """A result; an error that ldeval raised over there is raised here as it was."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LdevalError):
                raise error.cause from None
            raise

    def _back(self, task: Task | None, reason: str) -> None:
        """A worker is lost: its task first in the queue again, and another worker."""
        if task is not None:
            key = (task.shard, task.checkpoint.step)
            self._lost[key] += 1
            if self._lost[key] > self._cluster.retries:
                raise ScoringError(
                    f"{task.checkpoint.path}: {self._lost[key]} workers were lost over "
                    f"shard {task.shard}, the last so: {_first_line(reason)} Finished "
                    "work is kept; is there enough memory for one more model?"
                )
            self._queues.setdefault(task.shard, deque()).appendleft(task)
        self._replace(reason)

    def _replace(self, reason: str) -> None:
        log.warning("a worker was lost (%s); another is started", _first_line(reason))
        self._hire()

    def _give_out(self) -> None:
        """Give idle workers tasks: of the shard that each was at, or of the one with
        most left that nobody is at."""
        busy = {task.shard for _, task in self._running.values() if task is not None}
        for worker in list(self._idle):
            open_shards = [n for n, q in self._queues.items() if q and n not in busy]
            if not open_shards:
                return
            own = self._last.get(worker)
            chosen = (
                own
                if own in open_shards
                else max(open_shards, key=lambda n: (len(self._queues[n]), -n))
            )
            task = self._queues[chosen].popleft()
            self._idle.remove(worker)
            self._last[worker] = task.shard
            busy.add(task.shard)
            reference = worker.take.remote(
                self._settings[task.shard], self._run, task.checkpoint, task.first
            )
            self._running[reference] = (worker, task)


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else "without a word"


# ------------------------------------------------------------------------- the cluster


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[Cluster]:
    """Be part of a cluster, or of one that is started on this machine and ends with the
    block.

    Yields:
        The cluster with the number of its workers, and their GPUs.

    Raises:
        MissingExtraError: ray is not installed.
        ScoringError: nobody answers at the address, or there is no room for a worker.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(error.name or "ray", "ray") from error
    if ray.is_initialized():
        yield _with_room(cluster)
        return
    if cluster.address is not None:
        _knock(cluster.address)
    try:
        ray.init(
            address=cluster.address,
            include_dashboard=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise ScoringError(
            f"no Ray cluster at {cluster.address or 'RAY_ADDRESS'} ({error}). Start "
            "one with 'ray start --head', or leave the address out."
        ) from error
    try:
        yield _with_room(cluster)
    finally:
        ray.shutdown()


def _with_room(cluster: Cluster) -> Cluster:
    import ray

    total = ray.cluster_resources()
    gpus = cluster.gpus
    if gpus is None:
        gpus = 1.0 if total.get("GPU", 0) >= 1 else 0.0
    room = [total.get("CPU", 0) / cluster.cpus] if cluster.cpus else []
    room += [total.get("GPU", 0) / gpus] if gpus else []
    most = int(min(room, default=1))
    if most < 1:
        raise ScoringError(
            f"a worker needs {cluster.cpus:g} CPUs and {gpus:g} GPUs, and the cluster "
            f"has {total.get('CPU', 0):g} and {total.get('GPU', 0):g}. Ask for less "
            "with --ray-cpus and --ray-gpus."
        )
    return replace(cluster, gpus=gpus, workers=min(cluster.workers or most, most))


def _knock(address: str) -> None:
    """Ray itself would try a dead address for minutes."""
    if address in ("auto", "local"):
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:
        raise ScoringError(
            f"--ray {address}: is no address. Give host:port, ray://host:port, or "
            "auto for the cluster that this machine is part of."
        )
    try:
        socket.create_connection((parts.hostname, parts.port), KNOCK).close()
    except OSError as error:
        raise ScoringError(
            f"--ray {address}: nobody answers there ({error.strerror or error}). Is "
            "the cluster up, and its port open to this machine?"
        ) from error


def worker_class(cluster: Cluster) -> Any:
    """:class:`ShardWorker` as an actor with a worker's resources."""
    import ray

    return ray.remote(
        num_cpus=cluster.cpus, num_gpus=cluster.gpus or 0, max_restarts=0
    )(ShardWorker)


def folder_of(run: str | Path) -> str:
    """A path that means the same to a worker in another folder."""
    return str(Path(run).resolve())
