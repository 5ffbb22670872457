"""How numbers read: the places they are rounded to, their signs and their intervals.

Rounding lives here and nowhere below, so that no result is rounded where it is
computed and every table and sentence rounds alike. The places follow the interval: a
number shows one digit more than its uncertainty carries, never fewer than one place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median_low

from ldeval.records import Estimate

MINUS = "−"
UNDEFINED = "–"
"""What stands where a number is undefined; the reason stands in a note."""

_MIN_PLACES, _MAX_PLACES = 1, 6
_PLAIN_UNITS = ("", "1", "dimensionless", "ratio")
_UNSIGNED_UNITS = ("ratio",)


def places(estimates: Iterable[Estimate], *, least: int = _MIN_PLACES) -> int:
    """Decimal places that suit a column of estimates.

    Those of the sharpest interval, but at most one more than those of the middle one:
    a single sharp interval should not fill the column with digits.
    """
    wanted = sorted(_places_of(e) for e in estimates if math.isfinite(e.value))
    if not wanted:
        return least
    return max(least, min(wanted[-1], median_low(wanted) + 1))


def _places_of(estimate: Estimate) -> int:
    half = estimate.half_width
    scale = half / 2 if 0 < half < math.inf else abs(estimate.value) / 100
    if scale <= 0 or not math.isfinite(scale):
        return _MIN_PLACES
    return min(max(-math.floor(math.log10(scale)), _MIN_PLACES), _MAX_PLACES)


def number(value: float, digits: int, *, signed: bool = True) -> str:
    """One number with a true minus sign.

    A change keeps its sign where it rounds to zero (``−0.0``), since on which side of
    zero an interval ends is what a reader looks for.

    Args:
        value: Any number; NaN reads ``–``.
        digits: Decimal places.
        signed: Whether a plus sign is written, as for changes.
    """
    if math.isnan(value):
        return UNDEFINED
    size = "∞" if math.isinf(value) else f"{abs(value):,.{digits}f}"
    if value < 0:
        return MINUS + size
    return "+" + size if signed and value > 0 else size


def interval(estimate: Estimate, digits: int, *, signed: bool = True) -> str:
    """``−4.0 to −2.2``; ``–`` where either end is undefined."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return UNDEFINED
    low = number(estimate.low, digits, signed=signed)
    return f"{low} to {number(estimate.high, digits, signed=signed)}"


def level(value: float) -> str:
    """A confidence level: ``95%``."""
    return f"{value * 100:g}%"


def quote(estimate: Estimate, *, signed: bool = True) -> str:
    """The one wording of an estimate.

    ``−3.1 nats/response (95% interval −4.0 to −2.2)``; where the number or its
    interval is undefined the reason stands in its place.
    """
    reason = estimate.reason or "no reason was given"
    if math.isnan(estimate.value):
        return f"undefined ({reason})"
    digits = _places_of(estimate)
    signed = signed and estimate.unit not in _UNSIGNED_UNITS
    unit = "" if estimate.unit in _PLAIN_UNITS else f" {estimate.unit}"
    value = number(estimate.value, digits, signed=signed) + unit
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return f"{value} (no interval: {reason})"
    ends = interval(estimate, digits, signed=signed)
    return f"{value} ({level(estimate.level)} interval {ends})"


def percent(share: float) -> str:
    """A share as a percentage; only a whole share reads 0% or 100%."""
    if math.isnan(share):
        return UNDEFINED
    if 0 < share < 0.01:
        return "<1%"
    if 0.99 < share < 1:
        return ">99%"
    return f"{share * 100:.0f}%".replace("-", MINUS)


def probability(value: float) -> str:
    """A p-value: three places, ``<0.001`` below, ``–`` where there is none."""
    if math.isnan(value):
        return UNDEFINED
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def count(value: int, one: str, many: str | None = None) -> str:
    """A count with its noun: ``1 probe``, ``1,200 probes``."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"
