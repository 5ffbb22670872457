"""A worker: one engine in a process of its own, and the sweeps over its shards.

Apart from :mod:`ray_pool`, which says who does what; this is all that runs on the
machines of the cluster, and needs no Ray itself.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldeval.errors import CheckpointError, ClusterError
from ldeval.logs import start_logging
from ldeval.ray_cluster import Cluster
from ldeval.records import Checkpoint, NoiseFloor, Probe
from ldeval.scoring.backends import backend_of
from ldeval.scoring.models import ModelSource, trusts_code
from ldeval.scoring.noise import measure_sample
from ldeval.scoring.score import Key, ResponseScore, Scored
from ldeval.scoring.sources import model_source
from ldeval.store import read_manifest, step_folder
from ldeval.sweep import Sweep, SweepSettings


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    broken: str | None
    """Why the checkpoint could not be scored; None where it was."""
    tokens: int
    """Tokens of the table."""
    machine: str
    """Where it was done."""
    missing: bool = False
    """There, the checkpoint's folder was not to be seen."""


class ShardWorker:
    """One engine, and the sweeps over the shards that it was given so far."""

    def __init__(self) -> None:
        # nothing that can fail: what fails here could not be told from a lost machine
        self._sweeps: dict[tuple[str, str], Sweep] = {}
        self._machine = platform.node()

    def ready(
        self,
        folder: str,
        model: str,
        model_args: Mapping[str, Any],
        base: str | None,
        checkpoints: Sequence[Checkpoint],
    ) -> None:
        """Start.

        Args:
            folder: that of the driver, if there is one here: relative names of model
                arguments and adapters' bases are looked for in it.
            model, model_args, base, checkpoints: of :func:`model_source`.
        """
        start_logging()  # Ray shows what is logged here where the sweep was started
        if Path(folder).is_dir():
            os.chdir(folder)
        made = model_source(model, model_args, base=base, checkpoints=checkpoints)
        self._source = KeptOpen(made)
        self._trusted = trusts_code(model_args)

    def take(
        self,
        settings: SweepSettings,
        run: str,
        checkpoint: Checkpoint,
        first: Checkpoint | None,
    ) -> Outcome:
        """Score a checkpoint over a shard into the shard's own run.

        Args:
            settings: of the shard.
            run: the folder of the checkpoints.
            first: is taken before, where this worker has not seen the shard: it is in
                the store by then. None where its scores are all that there is.

        Raises:
            ClusterError: what other workers wrote is not to be seen here.
        """
        name = (str(settings.store), settings.run)
        if name not in self._sweeps:
            begun = self._begun(settings, run)
            if first is not None and first != checkpoint:
                self._refer_to(first, begun, settings)
            self._sweeps[name] = begun
        work = self._sweeps[name]
        work.take(checkpoint)
        broken = [b for b in work.result().broken if b.step == checkpoint.step]
        if broken:
            missing = not Path(checkpoint.path).is_dir()
            return Outcome(broken[-1].reason, 0, self._machine, missing)
        folder = step_folder(settings.store, settings.run, checkpoint.step)
        return Outcome(None, read_manifest(folder).n_tokens, self._machine)

    def _begun(self, settings: SweepSettings, run: str) -> Sweep:
        try:
            return Sweep(settings, run, self._source)
        except CheckpointError as error:
            # the driver has read the same files before
            raise ClusterError(f"on {self._machine}: {error}") from error

    def _refer_to(
        self, first: Checkpoint, work: Sweep, settings: SweepSettings
    ) -> None:
        work.take(first)
        if first.step not in work.result().kept:
            reasons = [item.reason for item in work.result().broken]
            raise ClusterError(
                f"{settings.store / settings.run}: the scores of the run's first "
                f"checkpoint are not to be had on {self._machine} "
                f"({reasons[0] if reasons else 'no such step there'}). Checkpoints and "
                "the store must have the same names on all machines."
            )

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
        return measure_sample(
            lm,
            sample,
            scored,
            checkpoint,
            options,
            base=base,
            trust_remote_code=self._trusted,
        )


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


def worker_class(cluster: Cluster) -> Any:
    """:class:`ShardWorker` as an actor with a worker's resources."""
    import ray

    return ray.remote(
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus or 0,
        max_restarts=0,
        # the driver has a bar for all
        runtime_env={"env_vars": {"TQDM_DISABLE": "1"}},
    )(ShardWorker)
