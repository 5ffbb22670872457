"""``ldeval sweep --plan``: its options, and printing the plan."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldeval.commands import store_place
from ldeval.commands.output import say
from ldeval.errors import MismatchError
from ldeval.files import write_whole
from ldeval.redact import redact_url

if TYPE_CHECKING:  # heavy to import: only for the types
    from ldeval.plan import RayAsked
    from ldeval.sweep import SweepSettings

_PREFIXES: dict[str, float] = {
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "b": 1e9,
    "t": 1e12,
    "p": 1e15,
}
_BINARY: dict[str, float] = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def add_plan_options(command: Any) -> None:
    """Add the options of a plan to the sweep command."""
    group = command.add_argument_group(
        "plan", "what the sweep would take; nothing is scored into the store"
    )
    group.add_argument(
        "--plan",
        action="store_true",
        help="print tokens, FLOPs, device-hours, bytes and the bottleneck, and end",
    )
    group.add_argument(
        "--plan-json", type=Path, metavar="FILE", help="write the plan, unrounded"
    )
    group.add_argument(
        "--plan-from",
        type=store_place,
        metavar="STORE/RUN",
        help="take the rates from a run that was scored (default: this one where steps "
        "are finished, else the model is timed now)",
    )
    group.add_argument(
        "--plan-flops",
        type=quantity,
        metavar="N",
        help="FLOP/s that one device sustains, e.g. 400T; no model is opened then",
    )
    group.add_argument(
        "--plan-memory", type=memory, metavar="SIZE", help="of one device, e.g. 80G"
    )
    group.add_argument(
        "--plan-workers",
        type=number,
        metavar="N",
        help="devices at work (default: those of --ray-workers, or of one engine)",
    )
    group.add_argument(
        "--plan-parameters", type=quantity, metavar="N", help="of a model, e.g. 70B"
    )
    group.add_argument(
        "--plan-config",
        type=Path,
        metavar="FILE",
        help="config.json of the model to plan for",
    )
    group.add_argument(
        "--plan-probes", type=quantity, metavar="N", help="how many, e.g. 1M"
    )
    group.add_argument(
        "--plan-checkpoints", type=number, metavar="N", help="how many in all"
    )


def quantity(text: str) -> float:
    """A positive number with a decimal prefix: ``70B``, ``1M``, ``400T``."""
    return _prefixed(text, _PREFIXES, "70B, 1M or 400T")


def memory(text: str) -> float:
    """Bytes with a binary prefix: ``80G``, ``80GiB``."""
    return _prefixed(text.lower().removesuffix("ib"), _BINARY, "80G")


def number(text: str) -> int:
    """A whole number, at least 1, a decimal prefix allowed."""
    value = quantity(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, e.g. 100")
    return int(value)


def _prefixed(text: str, prefixes: dict[str, float], examples: str) -> float:
    scale = prefixes.get(text[-1:].lower(), 1)
    digits = text[:-1] if text[-1:].lower() in prefixes else text
    try:
        value = float(digits) * scale
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no positive number with a prefix, e.g. {examples}"
        )
    return value


def plan_asked(options: argparse.Namespace) -> bool:
    """Whether the sweep is only to be planned.

    Raises:
        MismatchError: for options of a plan without one.
    """
    given = [
        f"--{name.replace('_', '-')}"
        for name in vars(options)
        if name.startswith("plan_") and getattr(options, name) is not None
    ]
    if given and not options.plan:
        raise MismatchError(
            f"{', '.join(given)} without --plan, which would score. Add --plan, or "
            "leave it out."
        )
    return bool(options.plan)


def _ray_asked(options: argparse.Namespace) -> RayAsked | None:
    """What Ray's options ask for; None where there are none.

    Without ``--ray``, the others are of a cluster that is not named.
    """
    from ldeval.plan import RayAsked

    if all(
        given is None for given in (options.ray, options.ray_workers, options.ray_gpus)
    ):
        return None
    cluster: str | None = "the cluster"
    if options.ray is not None:
        address = options.ray or os.environ.get("RAY_ADDRESS") or "local"
        cluster = f"the cluster at {redact_url(address)}"
        if address == "local":
            cluster = None
    return RayAsked(
        workers=options.ray_workers,
        cpus=options.ray_cpus,
        gpus=options.ray_gpus,
        cluster=cluster,
        shards=options.ray_shards,
    )


def print_sweep_plan(
    runs: Sequence[Path], settings: SweepSettings, options: argparse.Namespace
) -> int:
    """Plan a sweep, print the plan, and write it where that is asked for."""
    from ldeval.plan import Hypothetical, plan_sweep
    from ldeval.report.plan_tables import plan_json, print_plan

    asked = Hypothetical(
        parameters=options.plan_parameters,
        config=options.plan_config,
        probes=options.plan_probes,
        checkpoints=options.plan_checkpoints,
        devices=options.plan_workers,
        ray=_ray_asked(options),
        flops=options.plan_flops,
        memory=options.plan_memory,
        rates_from=options.plan_from,
    )
    plan = plan_sweep(runs, settings, asked)
    say(print_plan(plan))
    if options.plan_json is not None:
        write_whole(options.plan_json, plan_json(plan))
    return 0
