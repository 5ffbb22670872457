"""How kinds move together: does learning one response carry another with it?

For each ordered pair of kinds, the slope over prompts of Δtok(target) on
Δtok(source), Δtok here being the response's own Δsum / n (nats/token). A slope of 0.5
says that where the source gained one nat/token more, the target gained half a nat
more. It is an association across prompts, not the derivative that the eNTK predicts.

Long responses, and improbable ones, move differently whatever was learnt. So beside
the plain slope stand the rank correlation, and the partial slope: that of the
residuals of both columns on length and earlier ln p per token of both responses
(Frisch, Waugh and Lovell), which is the slope of the regression with those four terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from ldeval.compare.clusters import Labels, Strings, Term, cluster_labels
from ldeval.compare.pairing import PairedRows, Rows, split_rows
from ldeval.compare.ranks import rank_correlation, rank_estimate
from ldeval.compare.stats import (
    DISPLAY_LEVEL,
    Bootstrap,
    Float,
    slope_estimate,
)
from ldeval.records import KIND_NAMES, Estimate, InfluenceCell, Split, split_name

MIN_PROMPTS = 5
"""Fewer prompts with both kinds leave a slope undefined."""


@dataclass(frozen=True)
class _Column:
    """Per-response changes of one kind, sorted by prompt."""

    prompts: Strings
    texts: Strings
    change: Float
    """[R] Δsum / n, nats/token."""
    length: Float
    """[R] tokens."""
    earlier: Float
    """[R] Σ ln p / n before, nats/token."""


def influence(
    before: Rows, after: Rows, pairs: PairedRows, bootstrap: Bootstrap
) -> tuple[InfluenceCell, ...]:
    """Kind × kind slopes, trained then held out, without the diagonal.

    Undefined, with the reason, where two kinds share fewer than ``MIN_PROMPTS``
    prompts or the source does not vary.
    """
    cells = []
    for trained in (True, False):
        columns = _columns(before, after, pairs, trained)
        split = split_name(trained)
        for source, target in permutations(columns, 2):
            cells.append(_cell(columns, source, target, split, bootstrap))
    return tuple(cells)


def _columns(
    before: Rows, after: Rows, pairs: PairedRows, trained: bool
) -> dict[str, _Column]:
    change = after.logprob_sums[pairs.after] - before.logprob_sums[pairs.before]
    lengths = before.n_tokens[pairs.before]
    found = {}
    for kind in KIND_NAMES:
        mask = split_rows(before, kind, trained)[pairs.before] & (lengths > 0)
        kept = np.flatnonzero(mask)
        rows = pairs.before[kept]
        order = np.argsort(before.probe_ids[rows], kind="stable")
        kept, rows = kept[order], rows[order]
        if len(kept):
            per_token = change[kept] / lengths[kept]
            found[kind] = _Column(
                before.probe_ids[rows],
                before.text_hashes[rows],
                per_token,
                lengths[kept].astype(np.float64),
                before.logprob_sums[rows] / lengths[kept],
            )
    return found


def _cell(
    columns: dict[str, _Column],
    source: str,
    target: str,
    split: Split,
    bootstrap: Bootstrap,
) -> InfluenceCell:
    x, y = columns[source], columns[target]
    prompts, left, right = np.intersect1d(
        x.prompts, y.prompts, assume_unique=True, return_indices=True
    )
    texts = {source: x.texts[left], target: y.texts[right]}
    explaining, explained = x.change[left], y.change[right]
    (labels,), _ = cluster_labels([Term(prompts, texts, explained, explaining)])
    slope = slope_estimate(
        explaining, explained, labels, bootstrap=bootstrap, min_rows=MIN_PROMPTS
    )
    controls = np.stack(
        [x.length[left], x.earlier[left], y.length[right], y.earlier[right]], axis=1
    )
    return InfluenceCell(
        source,
        target,
        split,
        slope,
        rank_correlation(explaining, explained),
        rank_estimate(explaining, explained, int(labels.max(initial=-1)) + 1),
        partial_slope(explaining, explained, controls, labels, bootstrap),
    )


def partial_slope(
    x: Float, y: Float, controls: Float, labels: Labels, bootstrap: Bootstrap
) -> Estimate:
    """Slope of y on x at equal ``controls`` [R, q], dimensionless.

    Undefined with fewer than ``MIN_PROMPTS`` rows beyond the terms fitted.
    """
    needed = MIN_PROMPTS + controls.shape[1] + 1
    if len(x) < needed:
        reason = f"{len(x)} shared prompts; at least {needed} are needed"
        return Estimate.undefined(
            reason, unit="dimensionless", level=DISPLAY_LEVEL, n=len(x)
        )
    basis = np.concatenate([np.ones((len(x), 1)), controls], axis=1)
    scale = np.abs(basis).max(axis=0)
    basis = basis / np.where(scale > 0, scale, 1.0)
    left, right = (v - basis @ np.linalg.lstsq(basis, v)[0] for v in (x, y))
    if np.ptp(left) <= 1e-9 * max(float(np.ptp(x)), 1e-300):
        reason = "length and earlier log-probability explain the source wholly"
        return Estimate.undefined(
            reason, unit="dimensionless", level=DISPLAY_LEVEL, n=len(x)
        )
    found = slope_estimate(
        left, right, labels, bootstrap=bootstrap, min_rows=MIN_PROMPTS
    )
    # fitting the controls took as many degrees of freedom from the residuals
    wider = math.sqrt((len(x) - 1) / (len(x) - 1 - controls.shape[1]))
    return replace(
        found,
        low=found.value - wider * (found.value - found.low),
        high=found.value + wider * (found.high - found.value),
        se=wider * found.se,
    )
