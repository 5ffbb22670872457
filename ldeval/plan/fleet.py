"""How many devices a sweep is given, and how many of them an engine takes.

Apart from the arithmetic, which knows devices alone; options count other things:
``--ray-workers`` engines, ``--ray-gpus`` and ``tensor_parallel_size`` the devices of
one. No cluster is asked.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldeval.room import fit, times

PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")
"""Model arguments that spread one engine over devices. ``data_parallel_size`` is no
such: the harness then holds no engine, and no sweep can swap its weights."""


@dataclass(frozen=True)
class RayAsked:
    """What ``--ray`` and its options ask for."""

    workers: int | None = None
    """Engines; None: all that have room."""
    cpus: float = 1.0
    """Of a worker."""
    gpus: float | None = None
    """Of a worker; None: one where there are any."""
    cluster: str | None = None
    """The address of a running cluster, or another name of it; None: one of this
    machine alone."""
    shards: int | None = None
    """None: one a worker."""


@dataclass(frozen=True)
class Machine:
    """What a cluster of one machine has."""

    cores: int
    gpus: int


@dataclass(frozen=True)
class Fleet:
    """What a sweep is given to compute on."""

    devices: float = 1
    """All together."""
    share: float | None = None
    """Devices that an engine is given, below 1 where several have one; None: not said,
    so that it takes what it must."""
    sharded: bool = False
    """Whether Ray's workers score shards, whose tables are joined."""
    threads: int | None = None
    """Of an engine, where it computes on a CPU; None: all that there are."""
    here: bool = False
    """Whether all of it is on this machine."""
    notes: tuple[str, ...] = ()
    """What was taken for granted."""


def spread(model_args: Mapping[str, Any]) -> int | None:
    """Devices that the arguments of a model spread an engine over; None: they do not
    say."""
    given = [int(model_args[name]) for name in PARALLEL if model_args.get(name)]
    if not given:
        return None
    product = 1
    for number in given:
        product *= number
    return product


def fleet_of(
    model_args: Mapping[str, Any],
    ray: RayAsked | None,
    devices: float | None,
    machine: Machine | None = None,
) -> Fleet:
    """The devices of a sweep.

    Args:
        ray: None where it is not spread by Ray.
        devices: all of them, where that is said.
        machine: this one; None where the plan is for others.
    """
    own = spread(model_args)
    if ray is None:
        return Fleet(devices or own or 1, own)
    share = max(own or 0, _whole(ray.gpus) or (0 if own else 1))
    notes = []
    given = 1 if ray.gpus is None else ray.gpus
    on_gpus = bool(given) and (machine is None or machine.gpus > 0)
    if own is not None and own > given and on_gpus:
        notes.append(
            f"An engine takes {own} devices by its model arguments, and Ray gives its "
            f"worker {given:g} GPUs: give --ray-gpus {own}."
        )
    if devices is None:
        workers, told = _workers(ray, share, machine)
        devices, notes = workers * share, [*notes, *told]
    if ray.shards is not None and ray.shards * share > devices:
        notes.append(
            f"Planned with one shard a worker: with {ray.shards} (--ray-shards) every "
            "checkpoint is loaded once a shard, and steps wait longer to be joined."
        )
    here = ray.cluster is None and machine is not None
    return Fleet(devices, share, True, _threads(ray), here, tuple(notes))


def _whole(gpus: float | None) -> float:
    """GPUs that a worker keeps others from: two that ask for 0.6 do not share one."""
    return 1 / times(1, gpus) if gpus and gpus < 1 else gpus or 0


def _threads(ray: RayAsked) -> int:
    """That Ray lets a worker compute with: those of its CPUs, unless the environment
    says otherwise."""
    said = os.environ.get("OMP_NUM_THREADS", "") if ray.cluster is None else ""
    if said.isdecimal() and int(said):
        return int(said)
    return max(1, int(ray.cpus))


def _workers(
    ray: RayAsked, share: float, machine: Machine | None
) -> tuple[int, list[str]]:
    """Workers that start, and what is to be said of their number."""
    if ray.cluster is None and machine is not None:
        return _workers_here(ray, share, machine)
    if ray.workers is not None:
        return ray.workers, []
    where = "this machine" if ray.cluster is None else ray.cluster
    return 1, [
        f"How many workers {where} has room for is not known, since a plan asks no "
        "cluster: one is assumed. Give --ray-workers or --plan-workers."
    ]


def _workers_here(
    ray: RayAsked, share: float, machine: Machine
) -> tuple[int, list[str]]:
    """As many as have room on this machine, as the sweep itself has it."""
    gpus = share if ray.gpus or (ray.gpus is None and machine.gpus) else 0.0
    needs = {"CPU": ray.cpus, "GPU": gpus}
    if not any(needs.values()):
        return ray.workers or 1, []
    room = fit({"CPU": machine.cores, "GPU": machine.gpus}, needs)
    here = f"{machine.cores} cores and {machine.gpus} GPUs"
    if room < 1:
        return 1, [
            f"This machine has {here}, and no room for a worker of {ray.cpus:g} CPUs "
            f"and {gpus:g} GPUs: one is planned, and none would start."
        ]
    if ray.workers is not None and ray.workers > room:
        return room, [
            f"This machine has {here}, room for {room} of {ray.workers} workers: so "
            "many are planned, since no more would start."
        ]
    return ray.workers or room, []


def this_machine() -> Machine:
    """As Ray counts it: no more cores than a container is let have."""
    import torch

    cores = float(os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        cores = cores if limit == "max" else min(cores, int(limit) / int(period))
    return Machine(max(1, int(cores)), torch.cuda.device_count())
