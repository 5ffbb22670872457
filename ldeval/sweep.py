"""Score every checkpoint of a run into the store: resumable, past broken ones.

The first checkpoint that can be scored is the run's reference: its most probable tokens
are the bins in which later checkpoints' mass is followed. What is finished is never
scored again; what cannot be scored is listed with its reason.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ldeval.checkpoints import (
    BrokenCheckpoint,
    check_weights,
    describe_checkpoint,
    find_checkpoints,
    is_saved,
    stored_dtype,
    tensor_shapes,
    weights_hash,
)
from ldeval.errors import (
    CheckpointError,
    IncompleteError,
    MismatchError,
    ScoringError,
)
from ldeval.probes import ProbeSet
from ldeval.records import TOP_K, Checkpoint, IntArray, Manifest, ScoreTable, Span
from ldeval.scoring.models import (
    ModelSource,
    RestartedModels,
    compare_known,
    model_source,
    plain_logprob_sums,
)
from ldeval.scoring.score import (
    Key,
    Scored,
    encode_probes,
    score_probes,
    score_requests,
)
from ldeval.scoring.tables import (
    as_reference,
    attach_reference,
    build_table,
    reference_ids,
)
from ldeval.store import (
    TRAINED,
    list_runs,
    read_manifest,
    read_table,
    step_folder,
    write_table,
)

log = logging.getLogger(__name__)

KNOWN_ANSWERS = 3
"""Responses compared with an independent computation after a weight swap."""


@dataclass(frozen=True)
class SweepSettings:
    """What is the same for every checkpoint of a sweep."""

    probes: ProbeSet
    store: Path
    run: str
    model: str = "hf"
    model_args: Mapping[str, Any] = field(default_factory=dict)
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
        StoreError: when the store cannot be written; finished steps stay.
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
    origin = settings.initial_model or settings.base
    source = model_source(settings.model, settings.model_args, base=settings.base)
    try:
        for number, run in enumerate(runs):
            if number:
                last = find_checkpoints(runs[number - 1])[-1].path
                name = Path(run).resolve().name
                settings = replace(settings, run=name, base=last, initial_model=origin)
            jobs = _jobs(run, settings.base)
            with _Sweep(settings, run, source) as work:
                for place, checkpoint in enumerate(jobs, 1):
                    log.info(
                        "%s: checkpoint %d of %d: %s",
                        settings.run,
                        place,
                        len(jobs),
                        checkpoint.path,
                    )
                    work.take(checkpoint)
                results[settings.run] = work.result()
    finally:
        source.close()
    return results


def watch(
    run: str | Path,
    settings: SweepSettings,
    *,
    interval: float = 5.0,
    sleep: Callable[[float], None] = time.sleep,
) -> SweepResult:
    """Score checkpoints as a trainer writes them, before it deletes them.

    Ends when the checkpoint of the trainer's last step is scored, or at an interrupt.

    Args:
        interval: seconds between looks at the folder.
        sleep: waits that long.
    """
    done: set[str] = set()
    source = model_source(settings.model, settings.model_args, base=settings.base)
    with contextlib.closing(source), _Sweep(settings, run, source) as work:
        try:
            if settings.base is not None:
                work.take(describe_checkpoint(settings.base, 0))
            while True:
                for checkpoint in _saved(run):
                    if checkpoint.path not in done:
                        done.add(checkpoint.path)
                        work.take(checkpoint)
                        if _is_last(checkpoint):
                            return work.result()
                sleep(interval)
        except KeyboardInterrupt:
            log.warning("interrupted; finished steps are kept")
        return work.result()


def _jobs(run: str | Path, base: str | None) -> list[Checkpoint]:
    first = [] if base is None else [describe_checkpoint(base, 0)]
    return first + find_checkpoints(run)


def _saved(run: str | Path) -> Iterator[Checkpoint]:
    try:
        found = find_checkpoints(run)
    except CheckpointError:
        return  # the trainer has not made the folder, or its first checkpoint, yet
    yield from (checkpoint for checkpoint in found if is_saved(checkpoint))


def _is_last(checkpoint: Checkpoint) -> bool:
    state = Path(checkpoint.path) / "trainer_state.json"
    try:
        record = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # deleted or being replaced by the trainer: not the last one
    return int(record.get("global_step", -1)) >= int(record.get("max_steps", 1 << 62))


class _Sweep:
    """The state of one sweep: the open model, the reference, what was done."""

    def __init__(
        self, settings: SweepSettings, run: str | Path, source: ModelSource
    ) -> None:
        self._settings = settings
        self._run = Path(run)
        self._source = source
        self._reference: dict[Key, IntArray] = {}
        self._reference_step: int | None = None
        self._first: Manifest | None = None
        self._shapes: dict[str, tuple[int, ...]] | None = None
        origin = settings.initial_model or settings.base
        self._origin = None if origin is None else weights_hash(origin)
        self._asked = {
            "model": settings.model,
            "span": settings.span,
            "apply_chat_template": settings.apply_chat_template,
            "system_instruction": settings.system_instruction,
            "top_k": settings.top_k,
            "origin_weights": self._origin,
        }
        self._scored: list[int] = []
        self._kept: list[int] = []
        self._broken: list[BrokenCheckpoint] = []

    def __enter__(self) -> _Sweep:
        return self

    def __exit__(self, *_: object) -> None:
        trained = self._run / TRAINED
        target = self._settings.store / self._settings.run
        if trained.is_file() and target.is_dir():
            shutil.copyfile(trained, target / TRAINED)

    def result(self) -> SweepResult:
        """What was done so far."""
        return SweepResult(tuple(self._scored), tuple(self._kept), tuple(self._broken))

    def take(self, checkpoint: Checkpoint) -> None:
        """Score one checkpoint, keep a finished one, or list a broken one."""
        try:
            self._take(checkpoint)
        except (CheckpointError, ScoringError) as error:
            log.error("%s", error)
            self._broken.append(
                BrokenCheckpoint(checkpoint.path, checkpoint.step, str(error))
            )

    def _take(self, checkpoint: Checkpoint) -> None:
        settings = self._settings
        check_weights(checkpoint)
        self._check_shapes(checkpoint)
        digest = weights_hash(checkpoint.path)
        folder = step_folder(settings.store, settings.run, checkpoint.step)
        if self._finished(folder, digest):
            self._kept.append(checkpoint.step)
            if self._reference_step is None:
                self._refer_to(read_table(folder))
            return
        table = self._from_another_run(checkpoint, digest)
        if table is None:
            table = self._scored_table(checkpoint, digest)
        self._check_alike(table.manifest)
        if self._reference_step is None:
            table = as_reference(table)
        else:
            table = attach_reference(table, self._reference, self._reference_step)
        write_table(folder, table)
        self._scored.append(checkpoint.step)
        if self._reference_step is None:
            self._refer_to(table)

    def _scored_table(self, checkpoint: Checkpoint, digest: str) -> ScoreTable:
        settings = self._settings
        started = time.monotonic()
        lm = self._source.open(checkpoint)
        notes: tuple[str, ...] = ()
        if self._source.swapped:
            lm, notes = self._checked(lm, checkpoint)
        scored = self._score(lm)
        return build_table(
            settings.probes.probes,
            scored,
            run=settings.run,
            step=checkpoint.step,
            checkpoint=checkpoint.path,
            weights_hash=digest,
            probe_set_hash=settings.probes.content_hash,
            settings=self._asked,
            stored_dtype=stored_dtype(checkpoint.path),
            seconds=time.monotonic() - started,
            notes=notes,
        )

    def _from_another_run(
        self, checkpoint: Checkpoint, digest: str
    ) -> ScoreTable | None:
        """The same weights scored on the same probes under another run's name, as
        where DPO starts from the last checkpoint of SFT."""
        settings = self._settings
        if self._reference_step is not None or not settings.store.is_dir():
            return None  # only a first step: its own top tokens become the reference
        for name, steps in list_runs(settings.store).items():
            for item in steps:
                if name == settings.run or not item.complete:
                    continue
                manifest = read_manifest(item.folder)
                if self._asks_the_same(manifest, digest):
                    log.info("%s: same weights as %s", checkpoint.path, item.folder)
                    note = f"the same weights were scored as {name} step {item.step}"
                    return _renamed(
                        read_table(item.folder), settings.run, checkpoint, note
                    )
        return None

    def _asks_the_same(self, manifest: Manifest, digest: str) -> bool:
        return (
            manifest.weights_hash == digest
            and manifest.probe_set_hash == self._settings.probes.content_hash
            and manifest.settings == self._asked
        )

    def _score(self, lm: Any) -> Scored:
        settings = self._settings
        return score_probes(
            lm,
            settings.probes.probes,
            span=settings.span,
            apply_chat_template=settings.apply_chat_template,
            system_instruction=settings.system_instruction,
            origin_weights=self._origin,
            reference=self._reference,
            top_k=settings.top_k,
            progress=settings.progress,
        )

    def _refer_to(self, table: ScoreTable) -> None:
        self._reference = reference_ids(table)
        self._reference_step = table.manifest.step
        self._first = table.manifest

    def _finished(self, folder: Path, digest: str) -> bool:
        """Whether this step is stored already; other scores there are refused."""
        try:
            manifest = read_manifest(folder)
        except IncompleteError:
            return False
        wanted = {
            "weights_hash": digest,
            "probe_set_hash": self._settings.probes.content_hash,
            "settings": self._asked,
        }
        for name, value in wanted.items():
            found = getattr(manifest, name)
            if found != value:
                raise MismatchError(
                    f"{folder} holds scores with {name} {found}, this sweep has "
                    f"{value}. Use another --run or --store, or delete that folder."
                )
        return True

    def _check_alike(self, manifest: Manifest) -> None:
        """A checkpoint with another tokenizer is not of this run."""
        if self._first is None:
            return
        for name in ("tokenizer_hash", "template_hash", "vocab_size"):
            first, now = getattr(self._first, name), getattr(manifest, name)
            if first != now:
                raise CheckpointError(
                    f"{manifest.checkpoint}: {name} is {now}, step {self._first.step} "
                    f"has {first}. Is this checkpoint from another run? Scores in "
                    "different tokens cannot be compared."
                )

    def _check_shapes(self, checkpoint: Checkpoint) -> None:
        """Missing tensors would be filled with random numbers without a word."""
        if checkpoint.layout == "adapter":
            return
        shapes = tensor_shapes(checkpoint.path)
        if self._shapes is None:
            self._shapes = shapes
        for name in sorted(self._shapes.keys() | shapes.keys()):
            first, now = self._shapes.get(name), shapes.get(name)
            if first != now:
                raise CheckpointError(
                    f"{checkpoint.path}: tensor {name!r} has shape {now}, the run's "
                    f"first checkpoint has {first}. Is this checkpoint from another "
                    "model, or incomplete?"
                )

    def _checked(self, lm: Any, checkpoint: Checkpoint) -> tuple[Any, tuple[str, ...]]:
        """Compare a few responses with an independent computation after a swap."""
        try:
            worst = self._known_answers(lm, checkpoint)
        except ScoringError as error:
            note = f"{error}; the engine was started anew from this checkpoint"
            log.warning("%s: %s", checkpoint.path, note)
            return self._source.restart(checkpoint), (note,)
        return lm, (
            f"known-answer check after the swap: {worst:.2g} nats per token at worst "
            f"over {KNOWN_ANSWERS} responses",
        )

    def _known_answers(self, lm: Any, checkpoint: Checkpoint) -> float:
        """Worst difference over the shortest responses of the first probes, nats per
        token."""
        settings = self._settings
        probes = settings.probes.probes[:KNOWN_ANSWERS]
        encoded = encode_probes(
            lm,
            probes,
            span=settings.span,
            apply_chat_template=settings.apply_chat_template,
            system_instruction=settings.system_instruction,
        )
        requests = sorted(score_requests(encoded, None, {}), key=lambda r: len(r.ids))
        sample = requests[:KNOWN_ANSWERS]
        known = plain_logprob_sums(
            checkpoint.path, [(list(r.ids), r.start, r.stop) for r in sample]
        )
        keys = [(request.probe_id, request.kind) for request in sample]
        scored = score_probes(
            lm,
            probes,
            span=settings.span,
            apply_chat_template=settings.apply_chat_template,
            system_instruction=settings.system_instruction,
            wanted=keys,
            top_k=settings.top_k,
            progress=False,
        )
        return compare_known(
            known,
            [scored.scores[key].logprob_sum for key in keys],
            [request.n_tokens for request in sample],
            scored.backend.dtype,
        )


def _renamed(
    table: ScoreTable, run: str, checkpoint: Checkpoint, note: str
) -> ScoreTable:
    manifest = replace(
        table.manifest,
        run=run,
        step=checkpoint.step,
        checkpoint=checkpoint.path,
        notes=(*table.manifest.notes, note),
    )
    return replace(table, manifest=manifest)


def score_model(
    model: str,
    probes: ProbeSet,
    *,
    backend: str,
    model_args: Mapping[str, Any],
    apply_chat_template: bool = False,
) -> ScoreTable:
    """Score one model without a store.

    Raises:
        CheckpointError: when it cannot be loaded.
        ScoringError: when its scores cannot be trusted.
    """
    checkpoint = describe_checkpoint(model, 0)
    check_weights(checkpoint)
    source = RestartedModels(backend, model_args, base=None)
    try:
        started = time.monotonic()
        scored = score_probes(
            source.open(checkpoint),
            probes.probes,
            apply_chat_template=apply_chat_template,
        )
    finally:
        source.close()
    table = build_table(
        probes.probes,
        scored,
        run=Path(model).name,
        step=0,
        checkpoint=model,
        weights_hash=weights_hash(model),
        probe_set_hash=probes.content_hash,
        stored_dtype=stored_dtype(model),
        seconds=time.monotonic() - started,
    )
    return as_reference(table)
