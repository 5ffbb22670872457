"""The scores of a run while it trains: into the same store as a sweep's.

Apart from the callback, which knows of a trainer's events; here is what a sweep does
for checkpoints on disk (the first one as reference, a noise floor, the settings in
every manifest), done for a model in memory.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ldeval.checkpoints import (
    check_weights,
    describe_checkpoint,
    stored_dtype,
    weight_files,
    weights_hash,
)
from ldeval.compare import compare_run
from ldeval.compare.pairing import noise_floor
from ldeval.errors import MismatchError, StoreError
from ldeval.integrations.recorder import copy_records
from ldeval.lease import writing
from ldeval.probes import ProbeSet
from ldeval.records import (
    OBJECTIVES,
    TOP_K,
    Checkpoint,
    Comparison,
    IntArray,
    Manifest,
    Span,
)
from ldeval.reuse import Question
from ldeval.scoring.live import (
    DTYPE_NAMES,
    LiveModel,
    LiveWeights,
    holds_weights_of,
    is_trained_adapter,
    is_untrained_adapter,
    live_weights,
    memory_dtype,
    undisturbed,
)
from ldeval.scoring.noise import measure_noise
from ldeval.scoring.score import Key, Scored, score_probes
from ldeval.scoring.tables import (
    as_reference,
    attach_reference,
    build_table,
    reference_ids,
)
from ldeval.store import (
    StoredStep,
    list_steps,
    open_run,
    read_manifest,
    read_table,
    read_trained_between,
    set_aside,
    step_folder,
    write_table,
)

log = logging.getLogger(__name__)

NOTE = "scored in the trainer's memory"

_writing: weakref.WeakValueDictionary[str, LiveRun] = weakref.WeakValueDictionary()
"""By its folder, the live run of this process that last began to write it."""


@dataclass(frozen=True)
class LiveSettings:
    """What is the same for every scoring of a run."""

    probes: ProbeSet
    store: Path
    run: str
    span: Span = "trl"
    apply_chat_template: bool = False
    system_instruction: str | None = None
    initial_model: str | None = None
    """Folder of the model that ``initial`` responses must come from; None for the one
    that training starts from, where it, or its base, is a folder."""
    mixed_precision_dtype: str | None = None
    objective: str | None = None


class LiveRun:
    """The state of one run's live scores."""

    def __init__(self, settings: LiveSettings) -> None:
        self.settings = settings
        self._reference: dict[Key, IntArray] = {}
        self._reference_step: int | None = None
        self._floors: set[tuple[str, str]] = set()
        self._origin: str | None = None
        self._loaded: dict[str, str] = {}
        self._right = contextlib.ExitStack()
        self._still_held: Callable[[], None] = lambda: None

    @property
    def folder(self) -> Path:
        """``STORE/RUN``."""
        return step_folder(self.settings.store, self.settings.run, 0).parent

    def begin(self, model: Any, step: int) -> None:
        """Go on from what is stored of this run, up to the step training starts from.

        Scores of later steps are of training that was lost, and are set aside. Until
        :meth:`end` no other process writes the run.

        Raises:
            MismatchError: when the store holds scores of something else there.
            StoreError: another process writes this run, or it cannot be written.
        """
        self._take_over()
        self._still_held = self._right.enter_context(writing(self.folder))
        _writing[str(self.folder)] = self
        later = [item for item in list_steps(self.folder) if item.step > step]
        earlier = [
            item
            for item in list_steps(self.folder)
            if item.step <= step and item.complete
        ]
        self._origin = self._origin_weights(model, step, earlier)
        self._loaded = _loaded_as(model)
        for item in earlier:
            self._check_alike(read_manifest(item.folder))
        if later:
            place = set_aside(self.folder, later)
            log.warning(
                "%s: training goes on from step %d; the scores of steps %s are of "
                "training that was lost, and are kept in %s",
                self.folder,
                step,
                ", ".join(str(item.step) for item in later),
                place,
            )
        if earlier:
            first = read_table(earlier[0].folder)
            self._reference = reference_ids(first)
            self._reference_step = first.manifest.step

    def _origin_weights(
        self, model: Any, step: int, earlier: Sequence[StoredStep]
    ) -> str | None:
        """Of the model that ``initial`` responses must come from."""
        given = self.settings.initial_model
        if given is None and step > 0 and earlier:
            # as it began: to be gone on with, a model may be loaded from a checkpoint
            began = read_manifest(earlier[0].folder).settings.get("origin_weights")
            return None if began is None else str(began)
        folder = _origin_folder(model) if given is None else Path(given)
        if folder is None:
            return None
        check_weights(describe_checkpoint(folder, 0))
        if given is None and step == 0 and is_trained_adapter(model):
            return live_weights(model).digest
        return weights_hash(folder)

    def keep_record(self, output_dir: Path) -> None:
        """Bring the record of what was trained when beside the scores.

        Raises:
            StoreError: another process writes this run, or it cannot be written.
            TrainedRecordError: the record is damaged.
        """
        self._still_held()
        copy_records(output_dir, self.folder)

    def end(self) -> None:
        """Let others write the run."""
        self._right.close()

    def _take_over(self) -> None:
        """End an earlier training of this process that raised, as one interrupted in a
        notebook does: nothing tells a callback of that, and its trainer lives on."""
        earlier = _writing.pop(str(self.folder), None)
        if earlier is not None:
            earlier.end()
            earlier._still_held = functools.partial(_taken_over, self.folder)

    def _check_alike(self, manifest: Manifest) -> None:
        hashes = manifest.weights_hash, self.settings.probes.content_hash
        found = Question(*hashes, self.asked).differs(manifest)
        if found is not None:
            name, there, asked = found
            raise MismatchError(
                f"{self.folder} holds step {manifest.step} with {name} {there}, this "
                f"run has {asked}. Give another run name or store, or delete that "
                "folder."
            )
        if manifest.noise_floor is not None:
            floor = manifest.noise_floor
            self._floors.add((floor.backend, floor.dtype))

    @property
    def asked(self) -> dict[str, Any]:
        """The settings as a sweep's manifests have them, so that it keeps these
        steps."""
        mixed = self.settings.mixed_precision_dtype
        autocast = {} if mixed is None else {"mixed_precision_dtype": mixed}
        return {
            "model": "hf",
            "model_args": {**self._loaded, **autocast},
            "span": self.settings.span,
            "apply_chat_template": self.settings.apply_chat_template,
            "system_instruction": self.settings.system_instruction,
            "top_k": TOP_K,
            "origin_weights": self._origin,
        }

    def score(self, model: Any, tokenizer: Any, step: int, place: str) -> float | None:
        """Score the model as it is now and store the table.

        Args:
            place: where a checkpoint of this step is or would be.

        Returns:
            The seconds that scoring took where the same scores are stored already;
            None where they are new.

        Raises:
            ScoringError, StoreError, MismatchError: nothing is stored then.
        """
        self._still_held()
        settings = self.settings
        started = time.monotonic()
        weights = self._weights(model, step)
        folder = step_folder(settings.store, settings.run, step)
        stored = _stored(folder, weights.digest)
        if stored is not None:
            return stored.seconds
        mixed = settings.mixed_precision_dtype
        with undisturbed(model):
            model.eval()
            lm = LiveModel(
                model,
                tokenizer,
                mixed_precision_dtype=None if mixed is None else getattr(torch, mixed),
            )
            scored = self._scored(lm)
            floor = self._noise(lm, scored, model, step)
        table = build_table(
            settings.probes.probes,
            scored,
            run=settings.run,
            step=step,
            checkpoint=place,
            weights_hash=weights.digest,
            probe_set_hash=settings.probes.content_hash,
            settings=self.asked,
            objective=settings.objective,
            stored_dtype=weights.dtype,
            seconds=time.monotonic() - started,
            notes=(NOTE,),
            noise_floor=floor,
        )
        if self._reference_step is None:
            table = as_reference(table)
            self._reference = reference_ids(table)
            self._reference_step = step
        else:
            table = attach_reference(table, self._reference, self._reference_step)
        self._still_held()  # scoring takes long
        write_table(folder, table)
        if floor is not None:
            self._floors.add((floor.backend, floor.dtype))
        return None

    def _weights(self, model: Any, step: int) -> LiveWeights:
        """Of a checkpoint saved now; before training, of the folder it begins from."""
        folder = _origin_folder(model)
        if folder is None:
            return live_weights(model)
        if getattr(model, "peft_config", None):
            stored = stored_dtype(folder)
            # a new adapter changes nothing: these are scores of its base
            if step == 0 and is_untrained_adapter(model):
                return LiveWeights(weights_hash(folder), stored)
            return replace(live_weights(model), dtype=stored)
        live = live_weights(model)
        cast = live.dtype != stored_dtype(folder)
        if step == 0 and cast and holds_weights_of(model, weight_files(folder)):
            return replace(live, digest=weights_hash(folder))
        return live

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "span": self.settings.span,
            "apply_chat_template": self.settings.apply_chat_template,
            "system_instruction": self.settings.system_instruction,
            "origin_weights": self._origin,
        }

    def _scored(self, lm: LiveModel) -> Scored:
        return score_probes(
            lm,
            self.settings.probes.probes,
            reference=self._reference,
            progress=False,
            **self._options,
        )

    def _noise(self, lm: LiveModel, scored: Scored, model: Any, step: int) -> Any:
        """Measured once a run, as in a sweep."""
        backend = scored.backend
        if (backend.name, backend.dtype) in self._floors:
            return None
        # before the first step, the folder that was loaded holds these weights; but of
        # an adapter that training goes on with, its base's does not
        begins = step == 0 and not is_trained_adapter(model)
        folder = _origin_folder(model) if begins else None
        return measure_noise(
            lm,
            self.settings.probes.probes,
            scored,
            None if folder is None else Checkpoint(str(folder), step),
            self._options,
        )

    def compare(self) -> Comparison | None:
        """What changed so far, as ``ldeval diff`` would say; None after one scoring."""
        tables = open_run(self.folder)
        if len(tables) < 2:
            return None
        steps = sorted(table.manifest.step for table in tables)
        objective = self.settings.objective
        return compare_run(
            tables,
            run=self.settings.run,
            noise_floor=noise_floor(table.manifest for table in tables),
            trained_log=read_trained_between(self.folder, steps[0], steps[-1]),
            objective_has_negative=None if objective is None else OBJECTIVES[objective],
            objective=objective,
        )


def _stored(folder: Path, digest: str) -> Manifest | None:
    """The manifest of a step into which these weights were scored before.

    Raises:
        MismatchError: when others were.
    """
    found = [item for item in list_steps(folder.parent) if item.folder == folder]
    if not found or not found[0].complete:
        return None
    manifest = read_manifest(folder)
    if manifest.weights_hash != digest:
        raise MismatchError(
            f"{folder} holds scores of weights {manifest.weights_hash[:12]}…, the "
            f"model in training has {digest[:12]}…. Give another run name or store, or "
            "delete that folder."
        )
    return manifest


def _origin_folder(model: Any) -> Path | None:
    """The folder that a model, or an adapter's base, was loaded from."""
    if getattr(model, "peft_config", None):
        model = model.get_base_model()
    folder = Path(str(getattr(model, "name_or_path", "") or ""))
    return folder if folder.is_dir() and weight_files(folder) else None


def _loaded_as(model: Any) -> dict[str, str]:
    """How a model was loaded where a sweep would load it in another way, as the
    ``--model_args`` that say so."""
    folder = _origin_folder(model)
    found = {}
    memory = memory_dtype(model)
    if folder is not None and DTYPE_NAMES.get(memory) != stored_dtype(folder):
        found["dtype"] = memory
    quantized = getattr(model.config, "quantization_config", None)
    if quantized is not None and getattr(model, "peft_config", None):
        # not an argument of the harness: a sweep does not go on from such scores
        method = getattr(quantized, "quant_method", "unknown")
        found["quantization"] = str(getattr(method, "value", method))
    return found


def _taken_over(folder: Path) -> None:
    raise StoreError(
        f"{folder}: a later training of this process writes it. Give each training its "
        "own run name."
    )
