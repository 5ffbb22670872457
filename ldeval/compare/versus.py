"""Two runs side by side: at equal steps, examples, tokens or margin gained.

Each run's change is taken since its own first checkpoint, per response and token, and
interpolated linearly between the checkpoints around a place x of the common scale;
runs are paired by prompt, so that prompts which differ in level and in pace count in
neither. On the scale of the margin, x is the mean gain of s(chosen) − s(rejected) and
the place of a run is where its mean path first reaches x, taken as given. Where several
seeds are given their runs are the unit instead, with Welch's interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import scipy.special as special

from ldeval.compare.clusters import Strings, Term, estimate
from ldeval.compare.cross import collateral
from ldeval.compare.delta import NATS_PER_TOKEN
from ldeval.compare.digest import Digest, digest
from ldeval.compare.evidence import SplitEvidence
from ldeval.compare.pairing import align, check_manifests, noise_floor, usable
from ldeval.compare.reference import build_reference
from ldeval.compare.series import Series, end_series, paired
from ldeval.compare.stats import DISPLAY_LEVEL, REPLICATES, Bootstrap, Float
from ldeval.compare.thresholds import Thresholds
from ldeval.compare.versus_claims import run_claims
from ldeval.errors import MismatchError
from ldeval.records import (
    KIND_NAMES,
    OBJECTIVES,
    Decay,
    Estimate,
    Scale,
    ScoreSource,
    Split,
    Versus,
    VersusPoint,
)
from ldeval.store import missing_steps

DERIVED = ("argmax:chosen", "argmax:rejected")
POINTS_AT_MOST = 12


@dataclass(frozen=True)
class RunInput:
    """One run, as it came from the store."""

    name: str
    tables: Sequence[ScoreSource]
    examples: Mapping[int, int] | None = None
    """How many were trained on, by optimizer step; what comes twice counts twice."""
    tokens: Mapping[int, int] | None = None
    """Tokens that the loss counted, by optimizer step."""


@dataclass(frozen=True)
class _Run:
    """One run reduced to digests against the first run's first checkpoint."""

    name: str
    tables: Sequence[Digest]
    examples: Mapping[int, int] | None
    tokens: Mapping[int, int] | None
    bootstrap: Bootstrap
    limits: Thresholds

    @cached_property
    def evidence(self) -> dict[Split, SplitEvidence]:
        """Series of each split, at the level of verdicts."""
        return {
            split: SplitEvidence(self.tables, split, self.bootstrap, self.limits)
            for split in get_args(Split)
        }

    @property
    def steps(self) -> Float:
        """[C] optimizer steps since the first checkpoint."""
        steps = np.array([table.manifest.step for table in self.tables], np.float64)
        return np.asarray(steps - steps[0])

    def scale(self, at: Scale) -> Float:
        """[C] the place of each checkpoint on the common scale; NaN where a checkpoint
        has none.

        Raises:
            MismatchError: it is not known.
        """
        if at == "steps":
            return self.steps
        if at == "examples":
            return self._examples()
        if at == "tokens":
            return self._tokens()
        series = [self.evidence["trained"].series(k) for k in ("chosen", "rejected")]
        if not all(len(part.term) for part in series):
            raise MismatchError(
                f"run {self.name!r} has no chosen and rejected on trained probes, so "
                "it has no margin. Compare --at steps."
            )
        chosen, rejected = paired(series)
        each = replace(chosen.term, denominators=np.ones(len(chosen.term)))
        return Series(each, chosen.changes - rejected.changes).path()

    def _examples(self) -> Float:
        if self.examples is None:
            raise MismatchError(
                f"run {self.name!r} has no record of the examples of each step "
                "(trained.jsonl). Compare --at steps."
            )
        return self._total(self.examples)

    def _tokens(self) -> Float:
        if self.tokens is None:
            raise MismatchError(
                f"run {self.name!r} has no record of the tokens of each step "
                "(trained.jsonl, as ldeval.record_examples writes it). Compare --at "
                "steps or examples."
            )
        return self._total(self.tokens)

    def _total(self, by_step: Mapping[int, int]) -> Float:
        """[C] the sum over the steps since the first checkpoint.

        Raises:
            MismatchError: steps are missing.
        """
        first, last = (self.tables[i].manifest.step for i in (0, -1))
        count, earliest = missing_steps(by_step, first, last)
        if count:
            raise MismatchError(
                f"run {self.name!r}: its record of examples (trained.jsonl) tells "
                f"nothing of {count} of the steps after {first} (the first is "
                f"{earliest}). Compare --at steps."
            )
        sums = [
            sum(n for step, n in by_step.items() if first < step <= table.manifest.step)
            for table in self.tables
        ]
        return np.array(sums, np.float64)


def compare_runs(
    side_a: Sequence[RunInput],
    side_b: Sequence[RunInput],
    *,
    at: Scale = "steps",
    allow_mixed: bool = False,
    seed: int = 0,
    replicates: int = REPLICATES,
    thresholds: Thresholds | None = None,
) -> Versus:
    """Set run A (and its other seeds) against run B (and its other seeds).

    Args:
        side_a, side_b: the run first, then its other seeds.

    Raises:
        MismatchError: the runs must not be compared, or the scale is not known.
    """
    limits = thresholds or Thresholds()
    floor = noise_floor(
        table.manifest for run in (*side_a, *side_b) for table in run.tables
    )
    limits = replace(limits, change_nats=limits.nats(floor))
    bootstrap = Bootstrap(seed, replicates)
    reference = build_reference(_ordered(side_a[0])[0])
    runs: list[list[_Run]] = []
    for side in (side_a, side_b):
        runs.append([])
        for item in side:
            tables = _ordered(item)
            for table in tables:
                check_manifests(reference.manifest, table.manifest, allow_mixed)
            kept = [digest(table, reference).slim() for table in tables]
            runs[-1].append(
                _Run(item.name, kept, item.examples, item.tokens, bootstrap, limits)
            )
    return _Versus(runs[0], runs[1], at, limits).found()


def _ordered(item: RunInput) -> list[ScoreSource]:
    if len(item.tables) < 2:
        raise MismatchError(
            f"run {item.name!r} holds {len(item.tables)} checkpoints; two are needed."
        )
    return sorted(item.tables, key=lambda table: table.manifest.step)


def place_weights(scale: Float, x: float) -> Float:
    """Weights of checkpoints [C] that interpolate the path where it first reaches x.

    Args:
        scale: [C] the path; checkpoints where it is NaN have no part in it.

    Raises:
        ValueError: the path never reaches x.
    """
    known = np.flatnonzero(~np.isnan(scale))
    weights, path = np.zeros(len(scale)), scale[known]
    after = int(np.argmax(path >= x))
    if path[after] < x:
        raise ValueError(f"the path ends at {path.max()}, below {x}")
    if after == 0 or path[after] == x:
        weights[known[after]] = 1.0
        return weights
    share = (x - path[after - 1]) / (path[after] - path[after - 1])
    weights[known[after - 1 : after + 1]] = 1.0 - share, share
    return weights


@dataclass(frozen=True)
class _Versus:
    """Both sides, each the run and its other seeds."""

    side_a: Sequence[_Run]
    side_b: Sequence[_Run]
    at: Scale
    limits: Thresholds

    def found(self) -> Versus:
        scales = [run.scale(self.at) for run in (*self.side_a, *self.side_b)]
        reached = float(min(np.max(s, initial=0, where=~np.isnan(s)) for s in scales))
        if reached <= 0:
            raise MismatchError(
                f"one of the runs never moved forward on the scale of {self.at}. "
                "Compare --at steps."
            )
        places = self._places(scales[0], reached)
        points = [
            point
            for split in get_args(Split)
            for kind in (*KIND_NAMES, *DERIVED)
            for x in places
            if (point := self._point(kind, split, x)) is not None
        ]
        decays = [self._decay(p) for p in points if p.x == reached]
        return Versus(
            run_a=self.side_a[0].name,
            run_b=self.side_b[0].name,
            at=self.at,
            reached=reached,
            noise_floor=self.limits.change_nats,
            points=tuple(points),
            decays=tuple(decays),
            claims=run_claims(
                lambda kinds: self._mean_difference(kinds, reached),
                (_negative(self.side_a[0]), _negative(self.side_b[0])),
                self.limits,
            ),
            notes=tuple(self._notes()),
        )

    def _places(self, scale: Float, reached: float) -> list[float]:
        inner = sorted({float(x) for x in scale if 0 < x < reached})
        if len(inner) >= POINTS_AT_MOST:
            keep = np.linspace(0, len(inner) - 1, POINTS_AT_MOST - 1).astype(int)
            inner = [inner[i] for i in keep]
        return [*inner, reached]

    def _terms(self, kind: str, split: Split, x: float) -> list[Term] | None:
        """The kind's change in A and in B over the prompts that both have."""
        terms = []
        for run in (self.side_a[0], self.side_b[0]):
            terms.append(_series_at(run, kind, split, x, self.at).term)
        one, two = terms
        shared = np.intersect1d(one.prompts, two.prompts)
        if not len(shared):
            return None
        return [_sorted(term, shared) for term in terms]

    def _point(self, kind: str, split: Split, x: float) -> VersusPoint | None:
        terms = self._terms(kind, split, x)
        if terms is None:
            return None
        one, two = terms
        return VersusPoint(
            x,
            kind,
            split,
            self._estimate([one]),
            self._estimate([two]),
            self._estimate([two, one.times(-1.0)]),
        )

    def _estimate(
        self, terms: Sequence[Term], level: float = DISPLAY_LEVEL
    ) -> Estimate:
        bootstrap = self.side_a[0].bootstrap
        return estimate(terms, unit=NATS_PER_TOKEN, bootstrap=bootstrap, level=level)

    def _decay(self, point: VersusPoint) -> Decay:
        slower: Literal["a", "b", "unclear"] = "unclear"
        floor, seeds = self.limits.change_nats, self._seeds(point)
        judged = point.difference if seeds is None else seeds
        if judged.low > floor:
            slower = "b"
        elif judged.high < -floor:
            slower = "a"
        ratios = [
            self._collateral(run, point) for run in (self.side_a[0], self.side_b[0])
        ]
        return Decay(
            kind=point.kind,
            split=point.split,
            point=point,
            slower=slower,
            collateral_a=ratios[0],
            collateral_b=ratios[1],
            seeds=seeds,
        )

    def _collateral(self, run: _Run, point: VersusPoint) -> Estimate:
        if point.kind not in KIND_NAMES:
            return Estimate.undefined(
                "not a stored kind", unit="dimensionless", level=DISPLAY_LEVEL
            )
        return collateral(
            point.kind,
            lambda kind: _series_at(run, kind, point.split, point.x, self.at),
        )

    def _seeds(self, point: VersusPoint) -> Estimate | None:
        if max(len(self.side_a), len(self.side_b)) < 2:
            return None
        sides: list[Float] = []
        for side in (self.side_a, self.side_b):
            values: list[float] = []
            for run in side:
                place = point.kind, point.split, point.x, self.at
                term = _series_at(run, *place).term
                if len(term):
                    values.append(term.numerators.sum() / term.denominators.sum())
            sides.append(np.array(values))
        return welch(sides[0], sides[1])

    def _mean_difference(self, kinds: Sequence[str], x: float) -> Estimate:
        """Mean over kinds of b − a at place x, at the verdict level."""
        terms: list[Term] = []
        found = [t for k in kinds if (t := self._terms(k, "trained", x)) is not None]
        for one, two in found:
            weight = 1.0 / len(found)
            terms += [two.times(weight), one.times(-weight)]
        if not terms:
            return Estimate.undefined(
                "no such kind in both runs",
                unit=NATS_PER_TOKEN,
                level=self.limits.level,
            )
        return self._estimate(terms, self.limits.level)

    def _notes(self) -> list[str]:
        a, b = self.side_a[0], self.side_b[0]
        notes = []
        starts = [run.tables[0].manifest.weights_hash for run in (a, b)]
        if starts[0] != starts[1]:
            notes.append(
                "the runs start from different weights: each change is since the run's "
                "own first checkpoint"
            )
        if self.at == "margin":
            notes.append("the place at which a margin is reached is taken as given")
        absent = align(a.tables[0], b.tables[0]) < 0
        missing = int(np.sum(usable(a.tables[0]) & absent))
        if missing:
            notes.append(f"{missing} responses of {a.name} are not in {b.name}")
        return notes


def _negative(run: _Run) -> bool | None:
    declared = {table.manifest.objective for table in run.tables}
    objective = declared.pop() if len(declared) == 1 else None
    return None if objective is None else OBJECTIVES[objective]


def _series_at(run: _Run, kind: str, split: Split, x: float, at: Scale) -> Series:
    """Δsum of a kind's responses at place x alone, over their tokens."""
    series = run.evidence[split].series(kind)
    weights = place_weights(run.scale(at), x)
    used = weights > 0
    change = weights[used] @ series.changes[used]
    return end_series(series.term, change[None, :], 1)


def _sorted(term: Term, prompts: Strings) -> Term:
    order = np.argsort(term.prompts, kind="stable")
    return term.at(order[np.isin(term.prompts[order], prompts)])


def welch(one: Float, two: Float, level: float = DISPLAY_LEVEL) -> Estimate:
    """mean(two) − mean(one) with Welch's interval, runs as the unit, nats/token."""
    value = float(two.mean() - one.mean()) if len(one) and len(two) else math.nan
    count = len(one) + len(two)
    if min(len(one), len(two)) < 2:
        nan, reason = math.nan, "at least two seeds of each run are needed"
        return Estimate(
            value, nan, nan, nan, level, count, count, NATS_PER_TOKEN, reason
        )
    parts = [side.var(ddof=1) / len(side) for side in (one, two)]
    error = math.sqrt(sum(parts))
    if error == 0.0:
        return Estimate(value, value, value, 0.0, level, count, count, NATS_PER_TOKEN)
    freedom = sum(parts) ** 2 / sum(
        p**2 / (len(side) - 1) for p, side in zip(parts, (one, two), strict=True)
    )
    reach = float(special.stdtrit(freedom, 0.5 + level / 2.0)) * error
    return Estimate(
        value, value - reach, value + reach, error, level, count, count, NATS_PER_TOKEN
    )
