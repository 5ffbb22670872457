"""An imported run as a comparison: what means, or arrays of prompts, can say."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ldeval.compare.claims import claims
from ldeval.compare.delta import NATS_PER_RESPONSE
from ldeval.compare.evidence import ARGMAX
from ldeval.compare.families import adjusted, adjusted_pairs
from ldeval.compare.levels import NO_PROMPTS, LevelEvidence
from ldeval.compare.series import spread
from ldeval.compare.significance import SignFlips
from ldeval.compare.squeeze import Question, decide
from ldeval.compare.stats import DISPLAY_LEVEL, REPLICATES, Bootstrap, Float, state
from ldeval.compare.thresholds import Thresholds
from ldeval.errors import MismatchError
from ldeval.records import (
    OBJECTIVES,
    Comparison,
    CurvePoint,
    Estimate,
    KindChange,
    LevelColumn,
    LevelRun,
    Margin,
    PairComparison,
    Trajectory,
)

NO_TOKENS = "token counts were not imported"


def compare_levels(
    levels: LevelRun,
    *,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Comparison:
    """Compare the evaluations of an imported run.

    Raises:
        MismatchError: fewer than two evaluations.
    """
    if len(levels.steps) < 2:
        raise MismatchError(
            f"run {levels.run!r} holds {len(levels.steps)} evaluation; at least two "
            "are needed."
        )
    limits = thresholds or Thresholds()
    evidence = LevelEvidence(levels, Bootstrap(seed, replicates), limits)
    negative = None if levels.objective is None else OBJECTIVES[levels.objective]
    ask = Question(
        evidence,
        nats=limits.change_nats,
        probability=limits.change_probability,
        objective_has_negative=negative,
    )
    work = _Work(evidence, SignFlips(seed))
    last = len(levels.steps) - 1
    overall = work.pair(0, last)
    successive = [work.pair(i, j) for i, j in pairwise(range(last + 1))]
    return Comparison(
        run=levels.run,
        steps=levels.steps,
        kinds=evidence.kinds,
        curves=tuple(work.curves()),
        pairs=adjusted_pairs(successive),
        overall=adjusted(overall),
        trajectories=tuple(map(work.trajectory, work.judged)),
        richer=(),
        laws=(),
        cross=(),
        claims=claims(ask, levels.objective),
        verdicts=decide(ask) if evidence.kinds else (),
        noise_floor=math.nan,
        flow_floor=math.nan,
        persistence_assessed=limits.persistence(len(levels.steps)),
        excluded=(),
        notes=_notes(levels, limits),
        manifests=(),
    )


def _notes(levels: LevelRun, limits: Thresholds) -> tuple[str, ...]:
    notes = [f"imported from {levels.file} ({levels.origin})", *levels.notes]
    if not levels.prompts:
        notes.append(
            "no prompt interval: only means were imported, so intervals are of the "
            "checkpoints' own wandering"
        )
    notes.append(
        "changes are in nats/response: kinds of different length cannot be compared; "
        "m is 1% of a kind's first value"
    )
    if not limits.persistence(len(levels.steps)):
        notes.append(
            f"persistence not assessed: {len(levels.steps)} evaluations, fewer than "
            f"{limits.persistence_checkpoints}"
        )
    if levels.step_unit == "evaluations":
        notes.append("steps count evaluations: the file says nothing of steps")
    return tuple(notes)


class _Work:
    """Changes and curves of one imported run."""

    def __init__(self, evidence: LevelEvidence, signs: SignFlips) -> None:
        self.evidence, self.levels, self.signs = evidence, evidence.levels, signs
        judged = [c for c in self.levels.columns if c.role != "context"]
        order = {kind: i for i, kind in enumerate(evidence.kinds)}
        self.judged = sorted(judged, key=lambda c: order.get(c.name, len(order)))

    def pair(self, first: int, second: int) -> PairComparison:
        """What is known of two evaluations."""
        return PairComparison(
            before=self.levels.steps[first],
            after=self.levels.steps[second],
            changes=tuple(self._change(c, first, second) for c in self.judged),
            margins=self._margins(first, second),
            flows=(),
            influence=(),
            only_before=(),
            only_after=(),
        )

    def _change(self, column: LevelColumn, first: int, second: int) -> KindChange:
        before, after = column.values[first], column.values[second]
        per_token = _undefined(NO_TOKENS, "nats/token")
        each = self._each(column, first, second)
        known = each[np.isfinite(each)]
        tested = len(known) and not column.name.startswith(ARGMAX)
        return KindChange(
            kind=column.name,
            split=self.levels.split,
            n=len(known),
            mean_tokens=math.nan,
            before_sum=before,
            after_sum=after,
            delta_sum=self._delta(after - before, each),
            delta_tok=per_token,
            share_fell=float((known < 0).mean()) if len(known) else math.nan,
            first=per_token,
            body=per_token,
            end=per_token,
            matched=per_token,
            quantiles=(math.nan,) * 5,
            p_value=self.signs.p_value(known) if tested else math.nan,
            p_adjusted=math.nan,
        )

    def _each(self, column: LevelColumn, first: int, second: int) -> Float:
        """[P] change of every prompt; empty where only means are known."""
        prompts = self.levels.prompts.get(column.name)
        return np.zeros(0) if prompts is None else prompts[second] - prompts[first]

    def _delta(self, change: float, each: Float) -> Estimate:
        if len(each):
            return self.evidence.over_prompts(each, DISPLAY_LEVEL)
        nan = math.nan
        reason = NO_PROMPTS if math.isfinite(change) else "absent from the file"
        return Estimate(
            change, nan, nan, nan, DISPLAY_LEVEL, 0, 0, NATS_PER_RESPONSE, reason
        )

    def _margins(self, first: int, second: int) -> tuple[Margin, ...]:
        both = [self.levels.column(kind) for kind in ("chosen", "rejected")]
        if both[0] is None or both[1] is None:
            return ()
        chosen, rejected = both[0].values, both[1].values
        before, after = (chosen[i] - rejected[i] for i in (first, second))
        each = self._each(both[0], first, second)
        other = self._each(both[1], first, second)
        paired = each - other if len(each) and len(other) else np.zeros(0)
        return (
            Margin(
                split=self.levels.split,
                before_sum=before,
                after_sum=after,
                delta_sum=self._delta(after - before, paired),
                delta_tok=_undefined(NO_TOKENS, "nats/token"),
            ),
        )

    def trajectory(self, column: LevelColumn) -> Trajectory:
        """The shape of one column's path."""
        evidence, steps = self.evidence, self.levels.steps
        path = evidence.path({column.name: 1.0})
        peak = int(np.nanargmax(path)) if np.isfinite(path).any() else 0
        end, form = evidence.kind(column.name), evidence.form(column.name)
        scale = evidence.thresholds.wander_scale
        return Trajectory(
            kind=column.name,
            split=self.levels.split,
            end=end,
            state=state(end, evidence.floors.get(column.name, math.inf)),
            spread=spread(path, evidence.window, scale),
            peak_step=steps[peak],
            peak_low=steps[peak],
            peak_high=steps[peak],
            rise=form["rise"],
            fall=form["fall"],
            slope=form["slope"],
        )

    def curves(self) -> list[CurvePoint]:
        """Levels by evaluation, context columns too."""
        points = []
        for column in (*self.judged, *_context(self.levels)):
            for number, value in enumerate(column.values):
                unit = NATS_PER_RESPONSE if column.role != "context" else "as logged"
                level = Estimate(
                    value,
                    *(math.nan, math.nan, math.nan, DISPLAY_LEVEL, 0, 0),
                    unit,
                    column.note or NO_PROMPTS,
                )
                if column.name in self.levels.prompts:
                    level = self._level(column, number)
                undefined = _undefined(NO_TOKENS, "nats/token")
                points.append(
                    CurvePoint(
                        self.levels.steps[number],
                        column.name,
                        self.levels.split,
                        level,
                        undefined,
                        undefined,
                    )
                )
        return points

    def _level(self, column: LevelColumn, number: int) -> Estimate:
        """A level with the interval of its change since the first evaluation."""
        found = self._delta(0.0, self._each(column, 0, number))
        first = column.values[0]
        return replace(
            found,
            value=column.values[number],
            low=found.low + first,
            high=found.high + first,
        )


def _context(levels: LevelRun) -> list[LevelColumn]:
    return [column for column in levels.columns if column.role == "context"]


def _undefined(reason: str, unit: str) -> Estimate:
    return Estimate.undefined(reason, unit=unit, level=DISPLAY_LEVEL)
