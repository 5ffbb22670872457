"""Score every checkpoint of a run into the store: resumable, past broken ones.

The first checkpoint that can be scored is the run's reference: its most probable tokens
are the bins in which later checkpoints' mass is followed. What is finished is never
scored again; what cannot be scored is listed with its reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ldeval.checkpoints import (
    BrokenCheckpoint,
    check_weights,
    describe_checkpoint,
    find_checkpoints,
    stored_dtype,
    weights_hash,
)
from ldeval.decodes import kept_decodes, write_decodes
from ldeval.errors import (
    CheckpointError,
    KnownAnswerError,
    ScoringError,
    UnsupportedBackendError,
)
from ldeval.files import copy_whole
from ldeval.lease import writing
from ldeval.probes import ProbeSet
from ldeval.records import (
    TOP_K,
    Checkpoint,
    GreedyDecodes,
    IntArray,
    Manifest,
    NoiseFloor,
    ScoreTable,
    Span,
)
from ldeval.redact import redact_settings
from ldeval.reuse import Question, from_another_run, is_finished
from ldeval.run_checks import RunChecks
from ldeval.scoring.greedy import greedy_decodes
from ldeval.scoring.known_answers import KnownAnswerCheck
from ldeval.scoring.models import ModelSource
from ldeval.scoring.noise import measure_noise
from ldeval.scoring.score import (
    Key,
    Scored,
    score_probes,
)
from ldeval.scoring.sources import model_source
from ldeval.scoring.tables import (
    as_reference,
    attach_reference,
    build_table,
    reference_ids,
)
from ldeval.store import (
    TRAINED,
    read_manifest,
    read_table,
    run_folder,
    step_folder,
    write_table,
)
from ldeval.texts import keep_texts

log = logging.getLogger(__name__)

SIZING_ARGUMENTS = frozenset(
    {
        "batch_size",
        "block_size",
        "device",
        "enforce_eager",
        "gpu_memory_utilization",
        "max_batch_size",
        "max_num_batched_tokens",
        "max_num_seqs",
        "parallelize",
        "tensor_parallel_size",
    }
)
"""Model arguments that say how much is done at once, not what is computed: a sweep may
go on with others. Every other one must stay as it was."""


@dataclass(frozen=True)
class SweepSettings:
    """What is the same for every checkpoint of a sweep."""

    probes: ProbeSet
    store: Path
    run: str
    model: str = "hf"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    serve: bool = False
    """Let a ``vllm serve`` of the run's own compute (model ``vllm``)."""
    span: Span = "trl"
    apply_chat_template: bool = False
    system_instruction: str | None = None
    initial_model: str | None = None
    """Folder of the model that the run descends from, when it is not the first
    checkpoint: ``initial`` responses sampled from another model are excluded."""
    base: str | None = None
    """Scored as step 0; lends its tokenizer to checkpoints saved without one."""
    top_k: int = TOP_K
    progress: bool = True
    greedy: int = 0
    """Tokens that each checkpoint takes by itself after every prompt, at most; 0: no
    greedy decodes are kept."""
    noise: bool = True
    """Measure the noise floor; a shard leaves that to the whole sweep."""
    objectives: tuple[str, ...] = ()
    """What each stage was trained with (``sft``, ``dpo`` …), where it is declared; it
    decides whether a stage can have pushed responses down on purpose."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep did."""

    scored: tuple[int, ...]
    """Steps scored now."""
    kept: tuple[int, ...]
    """Steps that were finished before."""
    broken: tuple[BrokenCheckpoint, ...]
    """Checkpoints that could not be scored."""


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

    Each later stage's step 0 is the last checkpoint of the stage before. The first
    stage is stored as ``settings.run``, the others under their folder's name.

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
            with writing(target) as still_held, Sweep(stage, run, source) as work:
                results[stage.run] = work.take_all(jobs(run, stage.base), still_held)
    finally:
        source.close()
    return results


def stages(
    runs: Sequence[str | Path], settings: SweepSettings
) -> Iterator[tuple[str | Path, SweepSettings]]:
    """Each run and what is the same for its checkpoints: a later one starts from the
    last checkpoint of the one before."""
    origin = settings.initial_model or settings.base
    yield runs[0], settings
    for before, run in pairwise(runs):
        settings = replace(
            settings,
            run=Path(run).resolve().name,
            base=find_checkpoints(before)[-1].path,
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


class Sweep:
    """The state of one sweep: the open model, the reference, what was done."""

    def __init__(
        self, settings: SweepSettings, run: str | Path, source: ModelSource
    ) -> None:
        self._settings = settings
        self._run = Path(run)
        self._source = source
        self._reference: dict[Key, IntArray] = {}
        self._reference_step: int | None = None
        self._first_decodes: GreedyDecodes | None = None
        self._open: tuple[str, Any] | None = None
        self._alike = RunChecks()
        self._floors: set[tuple[str, str]] = set()
        origin = settings.initial_model or settings.base
        self._origin = None if origin is None else _checked_hash(origin)
        self._check = KnownAnswerCheck(
            settings.probes.probes,
            span=settings.span,
            apply_chat_template=settings.apply_chat_template,
            system_instruction=settings.system_instruction,
            origin_weights=self._origin,
            base=settings.base,
        )
        self._asked = {
            "model": settings.model,
            "model_args": redact_settings(
                {
                    name: str(value)
                    for name, value in sorted(settings.model_args.items())
                    if name not in SIZING_ARGUMENTS
                }
            ),
            "span": settings.span,
            "apply_chat_template": settings.apply_chat_template,
            "system_instruction": settings.system_instruction,
            "top_k": settings.top_k,
            "origin_weights": self._origin,
            **({"serve": True} if settings.serve else {}),
        }
        self._texts_kept = False
        self._scored: list[int] = []
        self._kept: list[int] = []
        self._broken: list[BrokenCheckpoint] = []

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *_: object) -> None:
        trained = self._run / TRAINED
        target = self._settings.store / self._settings.run
        if trained.is_file() and target.is_dir():
            copy_whole(trained, target / TRAINED)

    def result(self) -> SweepResult:
        """What was done so far."""
        return SweepResult(tuple(self._scored), tuple(self._kept), tuple(self._broken))

    def take_all(
        self, checkpoints: Sequence[Checkpoint], still_held: Callable[[], None]
    ) -> SweepResult:
        """Take checkpoints in order, as long as the run may be written.

        Args:
            still_held: raises once another process writes the run.
        """
        for place, checkpoint in enumerate(checkpoints, 1):
            log.info(
                "%s: checkpoint %d of %d: %s",
                self._settings.run,
                place,
                len(checkpoints),
                checkpoint.path,
            )
            still_held()
            self.take(checkpoint)
        return self.result()

    def take(self, checkpoint: Checkpoint) -> None:
        """Score one checkpoint, keep a finished one, or list a broken one.

        A setting that no checkpoint can be scored with ends the sweep instead.
        """
        try:
            self._take(checkpoint)
        except UnsupportedBackendError:
            raise
        except (CheckpointError, ScoringError) as error:
            if isinstance(error, ScoringError):
                self._close()  # the next checkpoint gets a sound model
            log.error("%s", error)
            self._broken.append(
                BrokenCheckpoint(checkpoint.path, checkpoint.step, str(error))
            )
        finally:
            self._open = None  # the source alone holds it, and may free it

    def _close(self) -> None:
        self._open = None
        self._source.close()

    def _take(self, checkpoint: Checkpoint) -> None:
        settings = self._settings
        check_weights(checkpoint)
        self._alike.check_shapes(checkpoint)
        digest = weights_hash(checkpoint.folder)
        question = Question(digest, settings.probes.content_hash, self._asked)
        folder = step_folder(settings.store, settings.run, checkpoint.step)
        if is_finished(folder, question):
            self._kept.append(checkpoint.step)
        else:
            if not self._reused(folder, question, checkpoint):
                self._compute(folder, checkpoint, digest)
            self._scored.append(checkpoint.step)
        if not self._texts_kept:
            # beside a finished step too: what was killed may not have come so far
            lenders = [checkpoint.folder, settings.base or checkpoint.folder]
            keep_texts(folder.parent, settings.probes, lenders)
            self._texts_kept = True
        self._count_floor(read_manifest(folder))
        if self._reference_step is None:
            self._refer_to(folder)
        self._decode(checkpoint, digest)

    def _reused(self, folder: Path, question: Question, checkpoint: Checkpoint) -> bool:
        """Whether a first step's scores could be taken from another run; its own top
        tokens become the reference."""
        if self._reference_step is not None:
            return False
        settings = self._settings
        table = from_another_run(
            settings.store, settings.run, question, checkpoint, self._objective
        )
        if table is None:
            return False
        write_table(folder, as_reference(table))
        return True

    def _compute(self, folder: Path, checkpoint: Checkpoint, digest: str) -> None:
        """Score a checkpoint and store the table."""
        table = self._scored_table(checkpoint, digest)
        self._alike.check_alike(table.manifest)
        if self._reference_step is None:
            table = as_reference(table)
        else:
            table = attach_reference(table, self._reference, self._reference_step)
        write_table(folder, table)

    def _scored_table(self, checkpoint: Checkpoint, digest: str) -> ScoreTable:
        settings = self._settings
        started = time.monotonic()
        lm, notes = self._opened(checkpoint, digest)
        scored = self._score(lm)
        floor = self._noise(lm, scored, checkpoint)
        return build_table(
            settings.probes.probes,
            scored,
            run=settings.run,
            step=checkpoint.step,
            checkpoint=checkpoint.path,
            weights_hash=digest,
            probe_set_hash=settings.probes.content_hash,
            settings=self._asked,
            objective=self._objective,
            stored_dtype=stored_dtype(checkpoint.folder),
            seconds=time.monotonic() - started,
            notes=notes,
            noise_floor=floor,
        )

    def _opened(
        self, checkpoint: Checkpoint, digest: str
    ) -> tuple[Any, tuple[str, ...]]:
        """The model of a checkpoint, checked where it was swapped in; and notes."""
        self._open = None  # the model before must not stay in memory beside it
        lm = self._source.open(checkpoint)
        notes: tuple[str, ...] = ()
        if self._source.swapped:
            lm, notes = self._checked(lm, checkpoint, digest)
        self._open = (digest, lm)
        return lm, notes

    def _decode(self, checkpoint: Checkpoint, digest: str) -> None:
        """Keep what the checkpoint says by itself, where that is asked for."""
        settings = self._settings
        if not settings.greedy:
            return
        run = settings.store / settings.run
        asked = self._asked_of_decodes(digest)
        first = self._first_decodes
        reference = checkpoint.step if first is None else first.step
        found = kept_decodes(
            run, checkpoint.step, {**asked, "reference_step": reference}
        )
        if found is None:
            lm = self._open[1] if self._open and self._open[0] == digest else None
            if lm is None:
                lm, _ = self._opened(checkpoint, digest)
            found = greedy_decodes(
                lm,
                settings.probes.probes,
                step=checkpoint.step,
                **asked,
                reference=first,
                apply_chat_template=settings.apply_chat_template,
                system_instruction=settings.system_instruction,
                progress=settings.progress,
            )
            write_decodes(run, found)
        self._first_decodes = first or found

    def _asked_of_decodes(self, digest: str) -> dict[str, Any]:
        return {
            "weights_hash": digest,
            "probe_set_hash": self._settings.probes.content_hash,
            "max_tokens": self._settings.greedy,
            "settings": self._asked,
        }

    def _noise(
        self, lm: Any, scored: Scored, checkpoint: Checkpoint
    ) -> NoiseFloor | None:
        """Measured once a run for each backend and dtype."""
        backend = scored.backend
        if not self._settings.noise or (backend.name, backend.dtype) in self._floors:
            return None
        floor = measure_noise(
            lm,
            self._settings.probes.probes,
            scored,
            checkpoint,
            self._options,
            base=self._settings.base,
        )
        if floor is not None:
            log.info(
                "noise floor of %s %s: %.2g nats/token in a kind's mean, %.2g in a "
                "response, over %d responses",
                floor.backend,
                floor.dtype,
                floor.nats_per_token,
                floor.per_response,
                floor.responses,
            )
        return floor

    @property
    def _objective(self) -> str | None:
        declared = self._settings.objectives
        return declared[0] if declared else None

    @property
    def _options(self) -> dict[str, Any]:
        """How every response of this sweep is scored."""
        settings = self._settings
        return {
            "span": settings.span,
            "apply_chat_template": settings.apply_chat_template,
            "system_instruction": settings.system_instruction,
            "origin_weights": self._origin,
            "top_k": settings.top_k,
        }

    def _score(self, lm: Any) -> Scored:
        return score_probes(
            lm,
            self._settings.probes.probes,
            reference=self._reference,
            progress=self._settings.progress,
            **self._options,
        )

    def _count_floor(self, manifest: Manifest) -> None:
        floor = manifest.noise_floor
        if floor is not None:
            self._floors.add((floor.backend, floor.dtype))

    def _refer_to(self, folder: Path) -> None:
        """Follow the mass of later checkpoints in the top tokens of this one."""
        table = read_table(folder)
        self._reference = reference_ids(table)
        self._reference_step = table.manifest.step
        self._alike.remember(table.manifest)

    def _checked(
        self, lm: Any, checkpoint: Checkpoint, digest: str
    ) -> tuple[Any, tuple[str, ...]]:
        """Compare a few responses with an independent computation after a swap.

        An engine that fails is started anew from the checkpoint and checked again.

        Raises:
            KnownAnswerError: when that fails too.
        """
        try:
            return lm, (self._check.passed(lm, checkpoint, digest),)
        except KnownAnswerError as error:
            note = f"{error}; the engine was started anew from this checkpoint"
            log.warning("%s: %s", checkpoint.path, note)
        self._open = None
        lm = self._source.restart(checkpoint)
        return lm, (note, self._check.passed(lm, checkpoint, digest))


def _checked_hash(folder: str) -> str:
    check_weights(describe_checkpoint(folder, 0))
    return weights_hash(folder)
