"""The options of a sweep over Ray, and the call."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldeval.commands import Noted, whole_number
from ldeval.errors import MismatchError, UnsupportedBackendError

if TYPE_CHECKING:
    from ldeval.sweep import SweepResult, SweepSettings


def add_ray_options(command: argparse.ArgumentParser) -> None:
    """Add ``--ray`` and what goes with it."""
    group = command.add_argument_group("over Ray")
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="score shards of the probes on a Ray cluster: host:port, auto, or without "
        "an address RAY_ADDRESS, else the cores of this machine",
    )
    group.add_argument(
        "--ray-workers",
        action=Noted,
        type=whole_number(1),
        metavar="N",
        help="default: all that have room",
    )
    group.add_argument(
        "--ray-shards",
        action=Noted,
        type=whole_number(1),
        metavar="N",
        help="default: one a worker",
    )
    group.add_argument(
        "--ray-cpus",
        action=Noted,
        type=_amount,
        default=1.0,
        metavar="N",
        help="for each worker",
    )
    group.add_argument(
        "--ray-gpus",
        action=Noted,
        type=_gpus,
        metavar="N",
        help="for each worker (default: 1 where the cluster has any)",
    )
    group.add_argument(
        "--ray-retries",
        action=Noted,
        type=whole_number(),
        default=3,
        metavar="N",
        help="how often a shard is given out again after its worker was lost",
    )


def ray_asked(options: argparse.Namespace) -> bool:
    """Whether the sweep is spread over Ray.

    Raises:
        MismatchError: for options of Ray without it, where nothing is planned either.
    """
    given = getattr(options, "given", ())
    if given and options.ray is None and not options.plan:
        raise MismatchError(
            f"{', '.join(given)} without --ray, which would score on this machine in "
            "one process. Add --ray, or leave it out."
        )
    return options.ray is not None


def _amount(text: str) -> float:
    """Of CPUs or GPUs; Ray divides one into ten thousand parts."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not (found == 0 or 1e-4 <= found < 1e6):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount, e.g. 1 or 0.5")
    return found


def _gpus(text: str) -> float:
    """Whole ones, or part of one: Ray gives no more than one in part."""
    found = _amount(text)
    if found > 1 and not found.is_integer():
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither whole GPUs nor part of one; give "
            f"{int(found)} or {int(found) + 1}, or less than 1"
        )
    return found


def sweep_with_ray(
    runs: Sequence[Path], settings: SweepSettings, options: argparse.Namespace
) -> dict[str, SweepResult]:
    """Sweep as the options of :func:`add_ray_options` say.

    Raises:
        UnsupportedBackendError: with ``--serve``, whose server is this machine's.
    """
    from ldeval.ray_cluster import Cluster
    from ldeval.ray_sweep import sweep_on_ray

    if options.serve:
        raise UnsupportedBackendError(
            "--serve starts a server on this machine, and --ray spreads a sweep over "
            "many. Leave one out: with --ray, --model vllm starts an engine a worker."
        )
    cluster = Cluster(
        address=options.ray or None,
        workers=options.ray_workers,
        shards=options.ray_shards,
        cpus=options.ray_cpus,
        gpus=options.ray_gpus,
        retries=options.ray_retries,
    )
    return sweep_on_ray(runs, settings, cluster)
