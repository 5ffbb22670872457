"""The paths of all kinds through a run: end, state, rise, fall and slope."""

from __future__ import annotations

import math

from ldeval.compare.delta import ARGMAX_ALONG
from ldeval.compare.evidence import ARGMAX, FROZEN, SplitEvidence
from ldeval.compare.series import spread
from ldeval.compare.shape import peak_interval, shape
from ldeval.compare.stats import state
from ldeval.records import KIND_NAMES, Trajectory

DERIVED = tuple(of + kind for of in (ARGMAX, FROZEN) for kind in ARGMAX_ALONG)


def trajectories(evidence: SplitEvidence, nats: float) -> tuple[Trajectory, ...]:
    """One a kind that the split holds, in the order of ``KINDS``, argmax rows last.

    Args:
        nats: m, nats/token.
    """
    steps = [table.manifest.step for table in evidence.tables]
    found = []
    for kind in (*KIND_NAMES, *DERIVED):
        series = evidence.series(kind)
        if not len(series.term):
            continue
        form = shape(series, steps, evidence.bootstrap)
        low, high = peak_interval(series, evidence.bootstrap.seed)
        end = evidence.kind(kind)
        limits = evidence.thresholds
        lasting = limits.persistence(len(steps))
        found.append(
            Trajectory(
                kind=kind,
                split=evidence.split,
                end=end,
                state=state(end, nats),
                spread=spread(series.path(), evidence.window, limits.wander_scale)
                if lasting
                else math.nan,
                peak_step=steps[form.peak],
                peak_low=steps[low],
                peak_high=steps[high],
                rise=form.rise,
                fall=form.fall,
                slope=form.slope,
            )
        )
    return tuple(found)
