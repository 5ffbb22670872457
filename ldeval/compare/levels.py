"""The decision table's evidence from imported means, and from arrays of prompts.

Only sums per response are known, so changes are in nats/response and m is 1% of the
first value's size, a kind's own. Where means alone were imported there are no prompts
to resample: the half-width is h = 2.58 σ_c / √W, of the checkpoints' own wandering
(:mod:`evidence`) whatever their number, and every estimate is marked "no prompt
interval". Where every prompt's sum was imported the bootstrap-t over prompts comes
first, as for scored runs, and the wandering widens it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ldeval.compare.clusters import Term, estimate
from ldeval.compare.delta import NATS_PER_RESPONSE
from ldeval.compare.evidence import ARGMAX, FROZEN
from ldeval.compare.repetition import RepetitionInput, repetition_conjuncts
from ldeval.compare.series import spread, widened
from ldeval.compare.shape import slope_weights
from ldeval.compare.stats import Bootstrap, Float
from ldeval.compare.thresholds import Thresholds
from ldeval.records import KIND_NAMES, Conjunct, Estimate, LevelRun, Split

NO_PROMPTS = "no prompt interval: only means were imported"
ABSENT = "absent at the first or at the last evaluations"
FLOOR_SHARE = 0.01
"""m is this share of the first value's size."""


@dataclass(frozen=True)
class LevelEvidence:
    """What the decision table asks, from an imported run."""

    levels: LevelRun
    bootstrap: Bootstrap
    thresholds: Thresholds
    tables: Sequence[Any] = ()
    """None: nothing was scored here."""
    scored_means: str = "were imported"

    @property
    def split(self) -> Split:
        """Which probes the file speaks of."""
        return self.levels.split

    @property
    def checkpoints(self) -> int:
        """C."""
        return len(self.levels.steps)

    @property
    def window(self) -> int:
        """W, how many of the last evaluations are averaged."""
        return self.thresholds.window(self.checkpoints)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds with a column, in the order of ``KINDS``."""
        names = {c.name for c in self.levels.columns if c.role == "kind"}
        return tuple(kind for kind in KIND_NAMES if kind in names)

    @cached_property
    def argmax_along(self) -> Sequence[str]:
        """Kinds along which the file holds an argmax."""
        derived = [c.name for c in self.levels.columns if c.role == "derived"]
        return [name.removeprefix(ARGMAX) for name in derived]

    @cached_property
    def floors(self) -> Mapping[str, float]:
        """m of each column and of the margin, nats/response."""
        found = {}
        for column in self.levels.columns:
            first = column.values[0]
            found[column.name] = FLOOR_SHARE * abs(first)
        both = [found.get(name, math.nan) for name in ("chosen", "rejected")]
        # a margin may begin near zero: 1% of its parts, not of itself
        found["margin"] = 0.5 * sum(both)
        return {name: m for name, m in found.items() if math.isfinite(m)}

    def path(self, weights: Mapping[str, float]) -> Float:
        """[T] Σ weight · (value − first value) over columns; NaN where one is absent or
        there is no such column."""
        total = np.zeros(self.checkpoints)
        for name, weight in weights.items():
            column = self.levels.column(name)
            values = np.array(column.values if column else [math.nan] * len(total))
            total = total + weight * (values - values[0])
        return total

    def _estimate(self, weights: Mapping[str, float]) -> Estimate:
        for name in weights:
            if self.levels.column(name) is None:
                return self._undefined(f"{name} was not imported")
        path = self.path(weights)
        if not np.isfinite(path[-self.window :]).all():
            return self._undefined(f"{', '.join(weights)}: {ABSENT}")
        sigma = spread(path, self.window, self.thresholds.wander_scale)
        found = self._over_prompts(weights)
        if found is None:
            value, level = float(path[-self.window :].mean()), self.thresholds.level
            found = Estimate(
                value, value, value, 0.0, level, 0, 0, NATS_PER_RESPONSE, NO_PROMPTS
            )
        if self.levels.prompts and not self.thresholds.persistence(self.checkpoints):
            return found
        if not math.isfinite(found.low):
            return found
        return widened(found, sigma, self.window, self.thresholds.wander_quantile)

    def _over_prompts(self, weights: Mapping[str, float]) -> Estimate | None:
        """The bootstrap-t over prompts; None where they are not known."""
        if not all(name in self.levels.prompts for name in weights):
            return None
        total: Float = sum(
            weight * (values[-self.window :].mean(axis=0) - values[0])
            for name, weight in weights.items()
            for values in [self.levels.prompts[name]]
        )
        return self.over_prompts(total, self.thresholds.level)

    def over_prompts(self, change: Float, level: float) -> Estimate:
        """Mean of a change [P] with its interval over the prompts that have it."""
        names = np.array([f"{i:06d}" for i in range(len(change))])
        term = Term(names, {}, change, np.ones(len(change)))
        return estimate(
            [term.at(np.isfinite(change))],
            unit=NATS_PER_RESPONSE,
            bootstrap=self.bootstrap,
            level=level,
        )

    def _undefined(self, reason: str) -> Estimate:
        return Estimate.undefined(
            reason, unit=NATS_PER_RESPONSE, level=self.thresholds.level
        )

    def kind(self, kind: str, body: bool = False) -> Estimate:
        """The change of a kind's sum, nats/response."""
        if body or kind.startswith(FROZEN):
            return self._undefined("single tokens were not imported")
        return self._estimate({kind: 1.0})

    def mean(self, kinds: Sequence[str]) -> Estimate:
        """The mean change of several kinds."""
        return self._estimate(dict.fromkeys(kinds, 1.0 / max(len(kinds), 1)))

    def contrast(
        self, kind: str, others: Sequence[str], body: bool = False
    ) -> Estimate:
        """The change of a kind minus the mean change of others."""
        if body:
            return self._undefined("single tokens were not imported")
        return self._estimate({kind: 1.0} | dict.fromkeys(others, -1.0 / len(others)))

    @cached_property
    def margin(self) -> Estimate:
        """The change of chosen − rejected."""
        return self._estimate({"chosen": 1.0, "rejected": -1.0})

    def flow(self, kind: str) -> dict[str, Estimate]:
        """Nothing: no probabilities were imported."""
        return {}

    def form(self, kind: str) -> Mapping[str, Estimate]:
        """Rise, fall and slope of the mean path, its points each uncertain by σ_c.

        The peak is that of a running mean of three, so that one stray point makes none.
        """
        path = self.path({kind: 1.0})
        known = np.flatnonzero(np.isfinite(path))
        if len(known) < 2:
            reason = f"{kind}: {ABSENT}"
            return dict.fromkeys(("rise", "fall", "slope"), self._undefined(reason))
        values = path[known]
        smooth = values
        if len(values) > 4:
            padded = np.concatenate([values[:1], values, values[-1:]])
            smooth = np.convolve(padded, np.ones(3) / 3.0, "valid")
        sigma = spread(values, self.window, self.thresholds.wander_scale)
        weights = slope_weights([self.levels.steps[i] for i in known])
        peak = float(smooth.max())
        parts = {
            "rise": (peak - float(smooth[0]), math.sqrt(2.0)),
            "fall": (peak - float(smooth[-1]), math.sqrt(2.0)),
            "slope": (float(weights @ values), float(np.sqrt(weights @ weights))),
        }
        return {
            name: self._around(value, scale * sigma)
            for name, (value, scale) in parts.items()
        }

    def _around(self, value: float, sigma: float) -> Estimate:
        exact = Estimate(
            *(value, value, value, sigma, self.thresholds.level, 0, 0),
            NATS_PER_RESPONSE,
            NO_PROMPTS,
        )
        return replace(
            widened(exact, sigma, 1, self.thresholds.wander_quantile), se=sigma
        )

    def is_scored(self, change: Estimate) -> bool:
        """Whether the kind was imported at both ends (of enough prompts, if known)."""
        if self.levels.prompts:
            return change.clusters >= self.thresholds.min_clusters
        return math.isfinite(change.value)

    def too_little(self) -> str | None:
        """Why nothing can be decided, or None."""
        if not self.kinds:
            return "the import holds no response kind, only context"
        limits = self.thresholds
        columns = [c.values for c in self.levels.columns if c.role == "kind"]
        different = len({tuple(row) for row in zip(*columns, strict=True)})
        if different < limits.min_evaluations:
            return (
                f"{different} distinct evaluation; a verdict needs at least "
                f"{limits.min_evaluations}"
            )
        sizes = [p.shape[1] for p in self.levels.prompts.values()]
        if sizes and min(sizes) < limits.min_clusters:
            return (
                f"{min(sizes)} prompts; a verdict needs at least {limits.min_clusters}"
            )
        return None

    def repetition(self) -> tuple[Conjunct, ...]:
        """Undecided: no argmax ids were imported."""
        empty = np.zeros(0, np.intp)
        nothing = RepetitionInput(
            (), empty, empty.astype(bool), 1, self.bootstrap, self.thresholds
        )
        return repetition_conjuncts(nothing, lambda value, path: value)
