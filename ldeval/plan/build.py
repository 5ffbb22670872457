"""From work, rates and numbers of checkpoints to a plan: arithmetic alone.

Every checkpoint costs the same, and every part is linear in checkpoints; all but what
a checkpoint costs by itself (its weights, a pair's fixed part) is linear in probes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ldeval.plan.shapes import flops_of
from ldeval.records import (
    ModelShape,
    PlanBytes,
    PlanPart,
    PlanRates,
    ScoringWork,
    Shortfall,
    SweepPlan,
)

USABLE = 0.9
"""Share of a device's memory that an engine may take."""

TABLE_BYTES = 352
"""Of a scored token in memory: eight numbers, the own top 20 and the reference's."""
HELD_BYTES = 2 * TABLE_BYTES + 80
"""While a checkpoint's table is put together out of its responses, with the reference's
ids beside it."""
DIGEST_BYTES = 500
"""Of a response in ``ldeval diff``, for each checkpoint (30 MB for 60,000), beside …"""
REFERENCE_BYTES = 80
"""… the reference's ids, for each scored token once."""


@dataclass(frozen=True)
class Resources:
    """What there is to work with; NaN where it is not known."""

    devices: float
    """All together."""
    device: str
    """``cpu`` or an accelerator's type."""
    device_name: str
    device_memory: float
    """Bytes, of one."""
    main_memory: float
    """Bytes."""
    disk: float
    """Bytes free where the store is."""
    share: float | None = None
    """Devices that an engine is given; None: as many as it must have."""
    sharded: bool = False
    """Whether shards are scored, however few engines there are."""
    together: bool = False
    """Whether all engines are on one machine."""
    remote: bool = False
    """Whether the store is at a URL."""
    temporary: float = math.nan
    """Bytes free in this machine's temporary folder."""


@dataclass(frozen=True)
class Checkpoints:
    """What is to be scored."""

    left: int
    finished: int
    bytes_each: float
    """Weights of one on disk."""


def build_plan(
    run: str,
    shape: ModelShape,
    work: ScoringWork,
    checkpoints: Checkpoints,
    rates: PlanRates,
    resources: Resources,
    *,
    measured_probes: float,
    calibrated_on: ModelShape | None = None,
    notes: Sequence[str] = (),
) -> SweepPlan:
    """The plan of a sweep.

    Args:
        work: for one checkpoint, of all probes that are planned.
        measured_probes: those whose tokens were counted.
        calibrated_on: the model whose FLOP/s ``rates`` hold.
    """
    flops = flops_of(shape, work)
    engine = shape.parameters * shape.memory_bytes + activations(shape, resources)
    needed = devices_an_engine(engine, resources)
    # a share of a device is no whole number in floats
    engines = max(1, int(resources.devices / needed + 1e-9))
    joined = resources.sharded or engines > 1
    sizes = _bytes(shape, work, checkpoints, rates, resources, joined, engines)
    return SweepPlan(
        run=run,
        model=shape,
        calibrated_on=calibrated_on,
        device=resources.device_name,
        checkpoints=checkpoints.left,
        finished=checkpoints.finished,
        devices_per_engine=needed,
        engines=engines,
        measured_probes=measured_probes,
        work=work,
        flops=flops,
        rates=rates,
        parts=_parts(flops.total, work, checkpoints, rates, joined, engines, needed),
        bytes=sizes,
        shortfalls=tuple(_shortfalls(sizes, resources, engines)),
        notes=tuple(notes),
    )


def activations(shape: ModelShape, resources: Resources) -> float:
    """Bytes beside the weights: a pack's states in one layer, and two chunks of logits.

    An estimate; ``docs/scoring.md`` has measured ones.
    """
    from ldeval.scoring.head import LOGITS_BYTES
    from ldeval.scoring.layouts import TOKENS

    kind = "cpu" if resources.device == "cpu" else "cuda"
    width = 4 * shape.hidden + 2 * shape.heads_width + 3 * shape.intermediate
    return TOKENS[kind] * width * shape.memory_bytes + 2 * LOGITS_BYTES[kind]


def devices_needed(engine: float, memory: float) -> int:
    """Devices that one copy of the model needs; 1 where memory is not known."""
    if not math.isfinite(memory) or memory <= 0:
        return 1
    return max(1, math.ceil(engine / (USABLE * memory)))


def devices_an_engine(engine: float, resources: Resources) -> float:
    """Devices of one copy of the model: those that it is given, and no fewer than it
    needs."""
    needed = devices_needed(engine, resources.device_memory)
    if resources.share is None:
        return needed
    if resources.share < 1 and _fits(engine, resources):
        return resources.share
    return max(resources.share, needed)


def _fits(engine: float, resources: Resources) -> bool:
    """Whether one copy of the model fits the devices that it is given."""
    memory, share = resources.device_memory, resources.share
    given = resources.devices if share is None else min(share, resources.devices)
    return not memory > 0 or engine <= USABLE * memory * given


def _parts(
    flops: float,
    work: ScoringWork,
    checkpoints: Checkpoints,
    rates: PlanRates,
    joined: bool,
    engines: int,
    devices: float,
) -> tuple[PlanPart, ...]:
    left, rows = checkpoints.left, checkpoints.left * work.asked
    encoding = left * work.probes * rates.encoding.value
    # every engine takes its share of the probes under every checkpoint, and so loads
    # them all, at the same time as the others
    loading = left * checkpoints.bytes_each / rates.loading.value
    scoring = left * flops / rates.scoring.value
    writing = rows * rates.writing.value
    joining = rows * rates.joining.value if joined else 0.0
    pairs = max(0, left + checkpoints.finished - 1)
    comparing = pairs * (
        rates.comparing_start.value + work.asked * rates.comparing.value
    )
    return (
        PlanPart("encoding", encoding / engines, encoding),
        PlanPart("loading", loading, loading * engines * devices),
        PlanPart("scoring", scoring / (engines * devices), scoring),
        PlanPart("writing", writing / engines, writing),
        PlanPart("joining", joining, joining),
        PlanPart("comparing", comparing, comparing, after_sweep=True),
    )


def _bytes(
    shape: ModelShape,
    work: ScoringWork,
    checkpoints: Checkpoints,
    rates: PlanRates,
    resources: Resources,
    joined: bool,
    engines: int,
) -> PlanBytes:
    each = work.asked * rates.stored.value
    number = checkpoints.left + checkpoints.finished
    some = 1.0 if checkpoints.left else 0.0
    return PlanBytes(
        checkpoint=checkpoints.bytes_each,
        read=checkpoints.left * checkpoints.bytes_each * engines,
        weights=shape.parameters * shape.memory_bytes,
        activations=activations(shape, resources),
        held=some * work.asked * HELD_BYTES,
        comparing=work.asked * REFERENCE_BYTES + number * work.responses * DIGEST_BYTES,
        stored=checkpoints.left * each,
        temporary=_shards_kept(checkpoints) * each if joined else some * each,
        fetched=some * each * (2 if joined else 1) if resources.remote else 0.0,
    )


def _shards_kept(checkpoints: Checkpoints) -> int:
    """Steps that stand as shards beside their own joined table, at most: the first,
    whose shards the others refer to, and the one that is being joined."""
    if not checkpoints.left:
        return 0
    return 2 if checkpoints.finished else min(2, checkpoints.left)


def _shortfalls(
    sizes: PlanBytes, resources: Resources, engines: int
) -> list[Shortfall]:
    engine = sizes.weights + sizes.activations
    # on a CPU the weights stand in the same memory as the scores
    models = engine * (engines if resources.together else 1)
    held = sizes.held + (models if resources.device == "cpu" else 0.0)
    main = resources.main_memory
    found = []
    if not _fits(engine, resources):
        found.append(Shortfall("device", engine, resources.device_memory))
    if sizes.held and held > main:
        found.append(Shortfall("main memory", held, main))
    if sizes.comparing > main:
        found.append(Shortfall("comparing", sizes.comparing, main))
    if sizes.stored + sizes.temporary > resources.disk:
        disk = resources.disk
        found.append(Shortfall("disk", sizes.stored + sizes.temporary, disk))
    if sizes.fetched > resources.temporary:
        room = resources.temporary
        found.append(Shortfall("temporary folder", sizes.fetched, room))
    return found
