"""A plan of made-up rates and devices, for tests of the arithmetic."""

from __future__ import annotations

import dataclasses
from dataclasses import fields, replace
from typing import Any

from ldeval.plan.build import Checkpoints, Resources, build_plan
from ldeval.plan.rates import STATED
from ldeval.plan.shapes import (
    shape_of_size,
)
from ldeval.plan.tables import TableRates
from ldeval.records import PlanRates, Rate, ScoringWork, SweepPlan

RATES = PlanRates(
    scoring=Rate(4e14, "given"),
    encoding=Rate(4e-3, "measured", "96 probes"),
    **{name: Rate(value, "assumed") for name, value in STATED.items()},
)
HERE = Resources(
    devices=64,
    device="cuda",
    device_name="as given",
    device_memory=80 * 2.0**30,
    main_memory=2.0**40,
    disk=2.0**50,
)
WORK = ScoringWork(96, 1152, 0, 4388, 58537, 62838, 111193, 7079065, "packed")
TABLES = TableRates(*[Rate(1, "measured")] * len(fields(TableRates)))
LARGE = shape_of_size(70e9, 128_256)


def planned(left: int, factor: float = 1.0, **changes: Any) -> SweepPlan:
    return build_plan(
        "run",
        LARGE,
        WORK.scaled(factor),
        Checkpoints(left, 0, LARGE.parameters * 2),
        RATES,
        replace(HERE, **changes),
        measured_probes=96,
    )


def flat(plan: SweepPlan) -> dict[str, float]:
    parts = {part.name: part.seconds for part in plan.parts}
    return {**parts, **dataclasses.asdict(plan.bytes)}
