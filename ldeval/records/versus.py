"""What sets one run against another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ldeval.records.estimate import Estimate
from ldeval.records.kinds import Split
from ldeval.records.measures import Claim

Side = Literal["a", "b"]
Scale = Literal["steps", "examples", "tokens", "margin"]


@dataclass(frozen=True)
class VersusPoint:
    """One kind in both runs at one place of the common scale."""

    x: float
    """Steps or examples since each run's start, or the margin gained, nats/response."""
    kind: str
    split: Split
    a: Estimate
    """Δtok of run A since its own first checkpoint, nats/token."""
    b: Estimate
    """Δtok of run B, nats/token."""
    difference: Estimate
    """b − a, paired by prompt, nats/token: positive where B lost less."""


@dataclass(frozen=True)
class Decay:
    """One kind at the last place that both runs reach."""

    kind: str
    split: Split
    point: VersusPoint
    slower: Literal["a", "b", "unclear"]
    """Whose path lies higher there, where the interval of the difference tells: that of
    ``seeds`` where there is one."""
    collateral_a: Estimate
    """Loss for each nat of margin that A gained up to there (Fieller),
    dimensionless."""
    collateral_b: Estimate
    seeds: Estimate | None
    """b − a with runs as the unit, where several seeds were given, nats/token."""


@dataclass(frozen=True)
class Versus:
    """Run A against run B."""

    run_a: str
    run_b: str
    at: Scale
    """What is made equal."""
    reached: float
    """The last place on the scale that both runs reach."""
    noise_floor: float
    """What a difference must exceed to be named, nats/token: the largest floor that
    was measured in either run, or the least change worth the name."""
    points: tuple[VersusPoint, ...]
    decays: tuple[Decay, ...]
    claims: tuple[Claim, ...]
    """D3, D5 and E1 on trained probes, A taken as the baseline."""
    notes: tuple[str, ...]
