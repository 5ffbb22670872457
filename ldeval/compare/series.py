"""Changes since the first checkpoint as series, and what their ends are worth.

A run's end value is the mean over the last W checkpoints; σ_c, the checkpoints' own
wandering, widens its interval (:mod:`evidence`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ldeval.compare.clusters import Rows, Term
from ldeval.compare.stats import Float
from ldeval.records import Estimate

NO_SHARED_PROMPT = "no prompt has all the kinds that are contrasted"


@dataclass(frozen=True)
class Series:
    """Changes since the first checkpoint of the responses of one kind and split."""

    term: Term
    """Rows scored at the first and at all of the last W checkpoints; its numerators
    are the end values."""
    changes: Float
    """[C, R] nats (or probability) by checkpoint; NaN where not scored."""

    def at(self, rows: Rows) -> Series:
        """The rows given by mask or by number, in that order."""
        return Series(self.term.at(rows), self.changes[:, rows])

    def path(self) -> Float:
        """[C] Σ change / Σ weight at each checkpoint over the rows scored there."""
        known = np.isfinite(self.changes)
        weight = (known * self.term.denominators).sum(axis=1)
        total = np.where(known, self.changes, 0.0).sum(axis=1)
        return np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan)


def end_series(
    template: Term, changes: Float, window: int, missing: str | None = None
) -> Series:
    """A series whose end values are the mean of the last ``window`` checkpoints.

    Args:
        template: prompts, texts and weights of the rows; its numerators are ignored.
        changes: [C, R].
    """
    end = changes[-window:].mean(axis=0)
    term = replace(template, numerators=end, missing=missing or template.missing)
    return Series(term, changes).at(np.isfinite(end))


def spread(path: Float, window: int, scale: float) -> float:
    """σ_c of a path [C] of end-value estimates, in its unit."""
    known = path[np.isfinite(path)]
    steps = np.abs(np.diff(known))
    wander = scale * float(np.median(steps)) / math.sqrt(2.0) if len(steps) else 0.0
    last = known[-window:]
    return max(float(last.std(ddof=1)) if len(last) > 1 else 0.0, wander)


def widened(value: Estimate, sigma: float, window: int, quantile: float) -> Estimate:
    """Both half-widths h become √(h² + (quantile · σ_c)² / W)."""
    extra = (quantile * sigma) ** 2 / window
    below = math.hypot(value.value - value.low, math.sqrt(extra))
    above = math.hypot(value.high - value.value, math.sqrt(extra))
    return replace(value, low=value.value - below, high=value.value + above)


def paired(series: Sequence[Series]) -> list[Series]:
    """The series over the prompts that all of them have, in one order."""
    shared = series[0].term.prompts
    for part in series[1:]:
        shared = np.intersect1d(shared, part.term.prompts)
    paired = []
    for part in series:
        order = np.argsort(part.term.prompts, kind="stable")
        part = replace(part, term=replace(part.term, missing=NO_SHARED_PROMPT))
        paired.append(part.at(order[np.isin(part.term.prompts[order], shared)]))
    return paired
