"""A run swept, or several that follow on one another, with one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from ldeval.checkpoints import (
    describe_checkpoint,
    ended_with,
    find_checkpoints,
)
from ldeval.lease import writing
from ldeval.records import (
    Checkpoint,
)
from ldeval.scoring.sources import model_source
from ldeval.store import (
    run_folder,
)
from ldeval.sweep.run import Sweep
from ldeval.sweep.settings import SweepResult, SweepSettings


def sweep(run: str | Path, settings: SweepSettings) -> SweepResult:
    """Score the base model (step 0) and every ``checkpoint-N`` of a run.

    Raises:
        CheckpointError: when there is nothing to score.
        StoreError: when the store cannot be written, or another process writes this
            run; finished steps stay.
        MismatchError: when the store already holds other scores under this run's name.
    """
    return sweep_stages([run], settings)[settings.run]


def sweep_stages(
    runs: Sequence[str | Path], settings: SweepSettings
) -> dict[str, SweepResult]:
    """Score runs that follow on one another (SFT, then DPO from it), with one model.

    Each later stage's step 0 is the checkpoint that the stage before ended with: the
    last, or the best where ``load_best_model_at_end`` went back to it. The first stage
    is stored as ``settings.run``, the others under their folder's name.

    Returns:
        By name, what was done.

    Raises:
        CheckpointError, StoreError, MismatchError: as :func:`sweep`.
    """
    results: dict[str, SweepResult] = {}
    source = model_source(
        settings.model,
        settings.model_args,
        base=settings.base,
        checkpoints=all_checkpoints(runs),
        serve=settings.serve,
    )
    try:
        for run, stage in stages(runs, settings):
            target = run_folder(stage.store, stage.run)
            with (
                writing(target) as still_held,
                Sweep(stage, run, source, still_held) as work,
            ):
                results[stage.run] = work.take_all(jobs(run, stage.base))
    finally:
        source.close()
    return results


def stages(
    runs: Sequence[str | Path], settings: SweepSettings
) -> Iterator[tuple[str | Path, SweepSettings]]:
    """Each run and what is the same for its checkpoints: a later one starts from the
    checkpoint that the one before ended with."""
    origin = settings.initial_model or settings.base
    yield runs[0], settings
    for before, run in pairwise(runs):
        settings = replace(
            settings,
            run=Path(run).resolve().name,
            base=ended_with(before).path,
            initial_model=origin,
            objectives=settings.objectives[1:],
        )
        yield run, settings


def all_checkpoints(runs: Sequence[str | Path]) -> list[Checkpoint]:
    """Every ``checkpoint-N`` of some runs."""
    return [found for run in runs for found in find_checkpoints(run)]


def jobs(run: str | Path, base: str | None) -> list[Checkpoint]:
    """What a sweep scores, in order: the base as step 0, then every checkpoint."""
    first = [] if base is None else [describe_checkpoint(base, 0)]
    return first + find_checkpoints(run)
