"""The plan of one sweep: what is left of it, what it is made of, what it is timed by.

A size that is made up (``Hypothetical``) replaces what was found; as soon as one is,
the sweep is another than the store's, and nothing counts as finished.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldeval.checkpoints import (
    base_of,
    check_weights,
    describe_checkpoint,
    find_checkpoints,
)
from ldeval.errors import CheckpointError, IncompleteError, MismatchError, StoreError
from ldeval.files import is_remote
from ldeval.plan.build import Checkpoints, Resources, build_plan
from ldeval.plan.calibration import (
    Calibration,
    accelerator,
    codec_of_folder,
    count_probes,
    device_name,
    measure,
    of_some_threads,
    origin_hash,
    weight_bytes,
)
from ldeval.plan.fleet import Fleet, Machine, RayAsked, fleet_of, this_machine
from ldeval.plan.rates import StoredRun, given_rates, read_stored, stored_rates
from ldeval.plan.shapes import (
    shape_of_checkpoint,
    shape_of_config,
    shape_of_size,
)
from ldeval.plan.work import work_of
from ldeval.records import Checkpoint, Manifest, ModelShape, PlanLayout, SweepPlan
from ldeval.shards import begun_with
from ldeval.store import read_manifest, run_folder, step_folder
from ldeval.sweep import SweepSettings


@dataclass(frozen=True)
class Hypothetical:
    """Sizes and rates that are said instead of found; None: found."""

    parameters: float | None = None
    """Of a made-up model."""
    config: Path | None = None
    """``config.json`` of a model that is not at hand."""
    probes: float | None = None
    checkpoints: int | None = None
    """All that are scored, the model before training among them."""
    devices: int | None = None
    """All together, each as the one that was measured."""
    ray: RayAsked | None = None
    """What Ray's options say; None: the sweep runs in this process."""
    flops: float | None = None
    """FLOP/s that one device sustains; then no model is opened."""
    memory: float | None = None
    """Bytes of one device."""
    rates_from: Path | None = None
    """A stored run, ``STORE/RUN``, whose manifests tell the rates."""

    @property
    def another_sweep(self) -> bool:
        """Whether some size is made up."""
        sizes = (self.parameters, self.config, self.probes, self.checkpoints)
        return any(size is not None for size in sizes)


def plan_sweep(
    runs: Sequence[str | Path],
    settings: SweepSettings,
    asked: Hypothetical | None = None,
) -> SweepPlan:
    """What is left of a sweep over some runs, and what it takes.

    Args:
        runs: as of ``sweep_stages``; the first need not exist where ``asked`` says how
            many checkpoints there are, and ``settings.base`` names a model.

    Raises:
        CheckpointError: no model at hand, or a configuration that cannot be read.
        MismatchError: the store holds other scores under this run's name.
        StoreError: the run to take rates from has no finished step.
        ScoringError: the model that should be timed cannot be scored.
    """
    asked = asked or Hypothetical()
    if asked.parameters is not None and asked.config is not None:
        raise MismatchError(
            "--plan-parameters and --plan-config both make a model up. Give one."
        )
    fleet = fleet_of(settings.model_args, asked.ray, asked.devices, _machine(asked))
    jobs = _jobs(runs, settings, asked)
    at_hand = _at_hand(jobs, settings)
    own = _shape(at_hand, settings)
    shape = _planned_shape(own, asked, settings)
    threads = fleet.threads if _device(settings, asked) == "cpu" else None
    found = _calibration(settings, asked, at_hand, own, threads)
    work = work_of(
        found.counted.encoded,
        found.layout,
        excluded=found.counted.excluded,
        device=found.device,
    )
    counted = work.probes
    if asked.probes is not None:
        if not counted:
            raise MismatchError("there is no probe to extrapolate from: give --probes.")
        work = work.scaled(asked.probes / counted)
    given = found.rates.scoring.source == "given"
    return build_plan(
        settings.run,
        shape,
        work,
        _checkpoints(jobs, settings, asked, shape),
        found.rates,
        _resources(settings, asked, found.device, fleet),
        measured_probes=counted,
        calibrated_on=None if given else found.timed,
        notes=[*_notes(settings, asked, jobs), *fleet.notes],
    )


# ---------------------------------------------------------------------- what is to do


@dataclass(frozen=True)
class _Jobs:
    """Checkpoints of a sweep."""

    left: tuple[Checkpoint, ...]
    finished: tuple[Checkpoint, ...]
    broken: tuple[str, ...] = ()
    """Why some will not be scored."""


def _jobs(
    runs: Sequence[str | Path], settings: SweepSettings, asked: Hypothetical
) -> _Jobs:
    """The checkpoints of every stage; the first of a later one is one of the one
    before, whose scores it gets."""
    if asked.checkpoints is not None and not Path(runs[0]).is_dir():
        return _Jobs((), ())
    left: list[Checkpoint] = []
    finished: list[Checkpoint] = []
    broken: list[str] = []
    for number, run in enumerate(runs):
        name = Path(run).resolve().name if number else settings.run
        first = number == 0 and settings.base is not None
        base = [describe_checkpoint(str(settings.base), 0)] if first else []
        for checkpoint in base + find_checkpoints(run):
            try:
                check_weights(checkpoint)
            except CheckpointError as error:
                broken.append(str(error))
                continue
            done = not asked.another_sweep and _is_finished(
                settings, name, checkpoint.step
            )
            (finished if done else left).append(checkpoint)
    return _Jobs(tuple(left), tuple(finished), tuple(broken))


def _is_finished(settings: SweepSettings, run: str, step: int) -> bool:
    """Whether a step is stored; its weights are not hashed for that.

    Raises:
        MismatchError: when other scores lie there, as far as can be told.
    """
    folder = step_folder(settings.store, run, step)
    try:
        manifest = read_manifest(folder)
    except IncompleteError:
        return False
    for name, there, here in _answers(manifest, settings):
        if there != here:
            raise MismatchError(
                f"{folder} holds scores with {name} {there}, this sweep has {here}. "
                "Use another --run or --store, or delete that folder."
            )
    return True


def _answers(
    manifest: Manifest, settings: SweepSettings
) -> list[tuple[str, object, object]]:
    there = manifest.settings
    names = ("model", "span", "apply_chat_template", "system_instruction")
    pairs = [(n, there.get(n), getattr(settings, n)) for n in names if n in there]
    own = settings.probes.content_hash
    return [("probe_set_hash", manifest.probe_set_hash, own), *pairs]


def _checkpoints(
    jobs: _Jobs, settings: SweepSettings, asked: Hypothetical, shape: ModelShape
) -> Checkpoints:
    found = [*jobs.left, *jobs.finished]
    number = len(jobs.left) if asked.checkpoints is None else asked.checkpoints
    made_up = shape.parameters * shape.stored_bytes
    if asked.parameters is not None or asked.config is not None or not found:
        return Checkpoints(number, len(jobs.finished), made_up)
    some = jobs.left or jobs.finished
    if settings.model == "vllm":
        # the engine starts with the adapters' base
        some = tuple(item for item in some if item.layout == "adapter") or some
    sizes = [weight_bytes(checkpoint, settings) for checkpoint in some]
    return Checkpoints(number, len(jobs.finished), sum(sizes) / len(sizes))


def _notes(settings: SweepSettings, asked: Hypothetical, jobs: _Jobs) -> list[str]:
    notes = list(jobs.broken)
    if asked.flops is not None and asked.memory is None:
        notes.append(
            "The memory of a device is not known, so that the model is taken to fit "
            "one: give --plan-memory."
        )
    made_up = asked.parameters is not None or asked.config is not None
    adapters = any(item.layout == "adapter" for item in (*jobs.left, *jobs.finished))
    if made_up and adapters and settings.model == "vllm":
        notes.append(
            "The run's checkpoints are adapters, whose size with another model is not "
            "known: full weights are planned for each, where vLLM reads an adapter."
        )
    if settings.greedy:
        notes.append(
            f"Greedy decodes of {settings.greedy} tokens (--greedy) are not counted."
        )
    return notes


# ------------------------------------------------------------------------- the model


def _at_hand(jobs: _Jobs, settings: SweepSettings) -> Checkpoint:
    """The model that tokens are counted and rates are measured with."""
    if settings.base is not None:
        return describe_checkpoint(settings.base, 0)
    for checkpoint in (*jobs.left, *jobs.finished):
        return checkpoint
    raise CheckpointError(
        "no model at hand to count tokens with: give --base, or a RUN_DIR that exists."
    )


def _full_weights(checkpoint: Checkpoint, settings: SweepSettings) -> str:
    """The folder of a model's own weights; of an adapter, its base's."""
    if checkpoint.layout != "adapter":
        return checkpoint.folder
    return str(base_of(checkpoint, settings.base))


def _computed(settings: SweepSettings) -> str | None:
    named = settings.model_args.get("dtype")
    return None if named in (None, "auto") else str(named)


def _shape(checkpoint: Checkpoint, settings: SweepSettings) -> ModelShape:
    folder = _full_weights(checkpoint, settings)
    return shape_of_checkpoint(folder, _computed(settings))


def _planned_shape(
    own: ModelShape, asked: Hypothetical, settings: SweepSettings
) -> ModelShape:
    if asked.config is not None:
        return shape_of_config(asked.config, _computed(settings))
    if asked.parameters is not None:
        return shape_of_size(asked.parameters, own.vocabulary, _computed(settings))
    return own


# ------------------------------------------------------------------------- the rates


def _calibration(
    settings: SweepSettings,
    asked: Hypothetical,
    checkpoint: Checkpoint,
    shape: ModelShape,
    threads: int | None,
) -> Calibration:
    """Rates from a stored run where there is one, else measured now; given FLOP/s
    before either.

    Args:
        threads: of an engine on a CPU; None: all that there are.
    """
    run = asked.rates_from or run_folder(settings.store, settings.run)
    stored = read_stored(run)
    if stored is None and asked.rates_from is not None:
        raise StoreError(
            f"{run}: no finished step to take rates from. Give a STORE/RUN that "
            "'ldeval sweep' scored."
        )
    if stored is None and asked.flops is None:
        return measure(settings, checkpoint, shape, threads)
    codec = codec_of_folder(_full_weights(checkpoint, settings), settings)
    counted = count_probes(settings.probes, codec, settings, origin_hash(settings))
    layout, device = _layout(stored, settings), _device(settings, asked)
    rates, scored = None, None
    if stored is not None:
        scored = _scored_shape(stored, shape)
        work = work_of(counted.encoded, layout, device=device)
        rates = stored_rates(
            stored, scored, work, counted, run.name, settings.model_args
        )
        # Ray's workers, which leave shards while they are at it, had no more threads
        if threads is not None and begun_with(run) is None:
            scoring = of_some_threads(rates.scoring, threads)
            rates = replace(rates, scoring=scoring)
    if asked.flops is not None:
        rates = given_rates(asked.flops, counted, rates)
    assert rates is not None
    return Calibration(rates, counted, layout, device, scored)


def _layout(stored: StoredRun | None, settings: SweepSettings) -> PlanLayout:
    if stored is not None:
        return stored.layout
    return "packed" if settings.model == "hf" else "cached"


def _scored_shape(stored: StoredRun, shape: ModelShape) -> ModelShape:
    """Of the model that a stored run scored; the one at hand where it is gone."""
    scored = Path(stored.manifests[-1].checkpoint)
    there = (scored / "model.safetensors").is_file() or (
        scored / "model.safetensors.index.json"
    ).is_file()
    return shape_of_checkpoint(scored) if there else shape


def _device(settings: SweepSettings, asked: Hypothetical) -> str:
    """The type of device that is planned for."""
    named = settings.model_args.get("device")
    if named is not None:
        return str(named).split(":")[0]
    # who gives FLOP/s plans for other hardware than this machine's
    return "cuda" if asked.flops is not None else accelerator()


def _machine(asked: Hypothetical) -> Machine | None:
    """This machine, where a cluster of it alone is planned for."""
    if asked.ray is None or asked.ray.cluster is not None:
        return None
    machine = this_machine()
    # who gives FLOP/s may plan for other hardware
    other = asked.flops is not None and (asked.ray.workers or not machine.gpus)
    return None if other else machine


def _resources(
    settings: SweepSettings, asked: Hypothetical, device: str, fleet: Fleet
) -> Resources:
    import psutil

    main = float(psutil.virtual_memory().available)
    given = asked.flops is not None
    memory = asked.memory
    if memory is None:
        memory = math.nan if given else _device_memory(device, main)
    return Resources(
        devices=fleet.devices,
        device=device,
        device_name="as given" if given else device_name(device, fleet.threads),
        device_memory=memory,
        main_memory=main,
        disk=_free_disk(settings.store),
        share=fleet.share,
        sharded=fleet.sharded,
        together=fleet.here,
        remote=is_remote(settings.store),
        temporary=float(shutil.disk_usage(tempfile.gettempdir()).free),
    )


def _device_memory(device: str, main: float) -> float:
    if device == "cpu":
        return main
    if device == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory)
    return math.nan


def _free_disk(store: Path) -> float:
    """Bytes free where the store is or will be; NaN at a URL."""
    if is_remote(store):
        return math.nan
    place = Path(store).absolute()
    while not place.exists():
        place = place.parent
    return float(shutil.disk_usage(place).free)
