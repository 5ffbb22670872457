"""One run's sweep: the open model, the reference, what is kept, scored and broken."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldeval.checkpoints import (
    BrokenCheckpoint,
    base_of,
    check_weights,
    describe_checkpoint,
    stored_dtype,
    weights_hash,
)
from ldeval.decodes import kept_decodes, write_decodes
from ldeval.errors import (
    CheckpointError,
    KnownAnswerError,
    MismatchError,
    ScoringError,
    UnsupportedBackendError,
)
from ldeval.files import copy_whole, passing_downloads
from ldeval.records import (
    Checkpoint,
    GreedyDecodes,
    IntArray,
    Manifest,
    NoiseFloor,
    ScoreTable,
)
from ldeval.redact import redact_settings
from ldeval.reuse import Question, from_another_run, is_finished
from ldeval.run_checks import RunChecks
from ldeval.scoring.greedy import greedy_decodes
from ldeval.scoring.known_answers import KnownAnswerCheck
from ldeval.scoring.models import ModelSource, trusts_code
from ldeval.scoring.noise import measure_noise
from ldeval.scoring.score import (
    Key,
    Scored,
    score_probes,
)
from ldeval.scoring.tables import (
    as_reference,
    attach_reference,
    build_table,
    reference_ids,
)
from ldeval.store import (
    TRAINED,
    list_steps,
    open_table,
    read_manifest,
    step_folder,
    write_parts,
    write_table,
)
from ldeval.sweep.settings import SIZING_ARGUMENTS, SweepResult, SweepSettings
from ldeval.texts import keep_texts

log = logging.getLogger(__name__)


class Sweep:
    """The state of one sweep: the open model, the reference, what was done."""

    def __init__(
        self,
        settings: SweepSettings,
        run: str | Path,
        source: ModelSource,
        still_held: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            still_held: is called before each write, and raises once another process
                writes the run; a shard's run is its worker's alone.
        """
        self._settings = settings
        self._run = Path(run)
        self._source = source
        self._still_held = still_held
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
            trust_remote_code=trusts_code(settings.model_args),
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
        self._bases: dict[str, str] = {}
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
            self._still_held()
            copy_whole(trained, target / TRAINED)

    def result(self) -> SweepResult:
        """What was done so far."""
        return SweepResult(tuple(self._scored), tuple(self._kept), tuple(self._broken))

    def take_all(self, checkpoints: Sequence[Checkpoint]) -> SweepResult:
        """Take checkpoints in order."""
        for place, checkpoint in enumerate(checkpoints, 1):
            log.info(
                "%s: checkpoint %d of %d: %s",
                self._settings.run,
                place,
                len(checkpoints),
                checkpoint.path,
            )
            self.take(checkpoint)
        return self.result()

    def take(self, checkpoint: Checkpoint) -> None:
        """Score one checkpoint, keep a finished one, or list a broken one.

        A setting that no checkpoint can be scored with ends the sweep instead, and so
        does another process that writes the run.
        """
        self._still_held()
        try:
            with passing_downloads():
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
        asked = self._asked_of(checkpoint)
        question = Question(digest, settings.probes.content_hash, asked)
        folder = step_folder(settings.store, settings.run, checkpoint.step)
        if self._reference_step is None:
            self._recall(folder.parent, question, checkpoint.step)
        if is_finished(folder, question):
            self._kept.append(checkpoint.step)
        else:
            if not self._reused(folder, question, checkpoint):
                self._compute(folder, checkpoint, digest)
            self._scored.append(checkpoint.step)
        if not self._texts_kept:
            # beside a finished step too: what was killed may not have come so far
            lenders = [checkpoint.folder, settings.base or checkpoint.folder]
            self._still_held()
            keep_texts(folder.parent, settings.probes, lenders)
            self._texts_kept = True
        self._count_floor(read_manifest(folder))
        if self._reference_step is None:
            self._refer_to(folder)
        self._decode(checkpoint, digest)

    def _asked_of(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """How a checkpoint is scored; an adapter, whose weights are not all that is
        computed with, upon which base, unless that is the run's origin."""
        if checkpoint.layout != "adapter":
            return self._asked
        base = base_of(checkpoint, self._settings.base)
        if base not in self._bases:
            here = Path(base).is_dir()
            self._bases[base] = _checked_hash(base) if here else base
        known = self._bases[base]
        return self._asked if known == self._origin else {**self._asked, "base": known}

    def _recall(self, run: Path, question: Question, before: int) -> None:
        """Keep to the run's first scores where their checkpoint is gone, as trainers
        delete old ones: what is stored refers to them.

        Raises:
            MismatchError: they answer another question, or have no decodes where later
                checkpoints are asked for theirs.
        """
        earlier = [s for s in list_steps(run) if s.complete and s.step < before]
        if not earlier:
            return
        step, folder = earlier[0].step, earlier[0].folder
        manifest = read_manifest(folder)
        # refuses scores that answer another question, whatever the weights were
        is_finished(folder, replace(question, weights_hash=manifest.weights_hash))
        if self._settings.greedy:
            asked = self._asked_of_decodes(manifest.weights_hash)
            self._first_decodes = kept_decodes(run, step, asked)
            if self._first_decodes is None:
                raise MismatchError(
                    f"{folder}: has no greedy decodes, which those of later steps "
                    "follow, and its checkpoint is gone. Leave --greedy out, or use "
                    "another --run."
                )
        self._count_floor(manifest)
        self._refer_to(folder)

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
        manifest = replace(table.manifest, reference_step=checkpoint.step)
        self._still_held()
        write_parts(folder, manifest, map(as_reference, table.chunks()))
        return True

    def _compute(self, folder: Path, checkpoint: Checkpoint, digest: str) -> None:
        """Score a checkpoint and store the table."""
        table = self._scored_table(checkpoint, digest)
        self._alike.check_alike(table.manifest)
        if self._reference_step is None:
            table = as_reference(table)
        else:
            table = attach_reference(table, self._reference, self._reference_step)
        self._still_held()  # scoring takes long
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
            settings=self._asked_of(checkpoint),
            objective=self._objective,
            stored_dtype=stored_dtype(checkpoint.folder, settings.base),
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
            self._still_held()
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
            trust_remote_code=trusts_code(self._settings.model_args),
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
        table = open_table(folder)
        self._reference = {}
        for part in table.chunks():
            self._reference.update(reference_ids(part))
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
