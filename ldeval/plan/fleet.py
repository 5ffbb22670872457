"""How many devices a sweep is given, and how many of them an engine takes.

Apart from the arithmetic, which knows devices alone; options count other things:
``--ray-workers`` engines, ``--ray-gpus`` and ``tensor_parallel_size`` the devices of
one. No cluster is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    model_args: Mapping[str, Any], ray: RayAsked | None, devices: int | None
) -> Fleet:
    """The devices of a sweep.

    Args:
        ray: None where it is not spread by Ray.
        devices: all of them, where that is said.
    """
    own = spread(model_args)
    if ray is None:
        return Fleet(devices or own or 1, own)
    share = max(own or 0, ray.gpus or (0 if own else 1))
    notes = []
    if own is not None and ray.gpus is not None and ray.gpus < own:
        notes.append(
            f"Each worker is given {ray.gpus:g} GPUs and its engine takes {own}: give "
            f"--ray-gpus {own}."
        )
    total = devices or (ray.workers or 1) * share
    return Fleet(total, share, True, tuple(notes))
