"""A number with its uncertainty: what every statistic is given as."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty; NaN, with the reason, where it is undefined."""

    value: float
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    se: float
    """Standard error over clusters."""
    level: float
    """Confidence level of the interval, e.g. 0.95."""
    n: int
    """Responses (or positions, where the unit is per token of a subset) used."""
    clusters: int
    """Independent units behind the standard error."""
    unit: str
    reason: str | None = None
    """Why the value or the interval is undefined, when it is."""

    @property
    def half_width(self) -> float:
        """The wider half of the interval: conservative for an asymmetric one."""
        return max(self.high - self.value, self.value - self.low)

    @classmethod
    def undefined(
        cls, reason: str, *, unit: str, level: float, n: int = 0, clusters: int = 0
    ) -> Estimate:
        """NaN throughout, with the reason."""
        nan = math.nan
        return cls(nan, nan, nan, nan, level, n, clusters, unit, reason)
