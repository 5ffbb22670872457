"""Squeeze or temperature? And do the rich get richer?

A squeeze step z ← z + s(π − e_y) changes the tokens other than the label by
Δ ln p_i = s p_i − ln Z: linear in p_i, rising where p_i > (1/s) ln Z, to first order
where p_i > τ = ‖π‖² − p_y (arXiv 2407.10490, section 3.3 and appendix E). Sharpening
by a temperature T changes them by (1/T − 1) ln p_i − c: linear in ln p_i. Both are
fitted within positions (the constants drop out), by least squares over the stored top
tokens other than the label, and judged by the R² on prompts left out:
R² = 1 − Σ_g |d_g − b_{−g} x_g|² / Σ_g |d_g|², d and x centred within positions.

From the first checkpoint to the last, along chosen and rejected. ln p of every top
token must be stored under both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ldeval.compare.clusters import Term, cluster_labels, estimate
from ldeval.compare.digest import Digest
from ldeval.compare.pairing import split_rows
from ldeval.compare.positions import MOMENTS, thresholds
from ldeval.compare.reference import DETAILED, RICHER_BINS, Reference
from ldeval.compare.stats import Bootstrap, Float, sums_by
from ldeval.compare.stored import Index
from ldeval.records import (
    Estimate,
    LawTest,
    RicherBin,
    RicherCurve,
    Split,
    split_name,
)

NATS = "nats"
DIMENSIONLESS = "dimensionless"
NO_TOP = "no stored top token was followed"
NO_NORMS = "the column sq_norms is missing at the first checkpoint"


def law_tests(last: Digest, bootstrap: Bootstrap) -> tuple[LawTest, ...]:
    """One a kind and split that holds top tokens under both checkpoints.

    Args:
        last: the last checkpoint, detailed against the first.
    """
    found = []
    for kind, trained, rows in _groups(last, "moments"):
        moments = last.detail["moments"][rows]
        kept = moments[:, MOMENTS.index("dd")] > 0
        if kept.any():
            work = _Law(last, rows[kept], kind, moments[kept], bootstrap)
            found.append(work.test(split_name(trained)))
    return tuple(found)


def richer_curves(
    last: Digest, reference: Reference, bootstrap: Bootstrap
) -> tuple[RicherCurve, ...]:
    """One a kind and split that holds top tokens under both checkpoints."""
    found = []
    for kind, trained, rows in _groups(last, "richer"):
        counts = last.detail["richer"][rows][:, :, 0].sum(axis=1)
        if kind in reference.edges and counts.any():
            work = _Richer(last, rows[counts > 0], kind, reference, bootstrap)
            found.append(work.curve(split_name(trained)))
    return tuple(found)


def _groups(last: Digest, column: str) -> Sequence[tuple[str, bool, Index]]:
    if column not in last.detail:
        return []
    return [
        (kind, trained, rows)
        for kind in DETAILED
        for trained in (True, False)
        if len(rows := np.flatnonzero(split_rows(last, kind, trained) & last.good))
    ]


def left_out_errors(cross: Float, square: Float, total: Float) -> Float:
    """[G] squared errors of each cluster under the slope fitted to the others.

    Args:
        cross, square, total: [G] Σ x d, Σ x² and Σ d² of each cluster.
    """
    rest = square.sum() - square
    slope = (cross.sum() - cross) / np.where(rest > 0, rest, math.inf)
    return np.asarray(total - 2.0 * slope * cross + slope**2 * square)


@dataclass(frozen=True)
class _Law:
    """Moments of the responses of one kind and split."""

    last: Digest
    rows: Index
    kind: str
    moments: Float
    bootstrap: Bootstrap

    def test(self, split: Split) -> LawTest:
        (labels,), clusters = cluster_labels([self._term("pd", "pp")])

        def by_cluster(name: str) -> Float:
            column = self._moment(name)
            return sums_by(labels, column, clusters)

        total = by_cluster("dd")
        errors = [
            left_out_errors(by_cluster(cross), by_cluster(square), total)
            for cross, square in (("pd", "pp"), ("ld", "ll"))
        ]
        scores = [1.0 - float(e.sum() / total.sum()) for e in errors]
        gain = np.zeros(len(labels))
        # whole clusters: a cluster's errors stand at its first row
        first = np.unique(labels, return_index=True)[1]
        gain[first] = errors[1] - errors[0]
        difference = self._estimate(gain, self._moment("dd"), "R²")
        return LawTest(
            kind=self.kind,
            split=split,
            squeeze=self._estimate(self._moment("pd"), self._moment("pp"), NATS),
            temperature=self._estimate(
                self._moment("ld"), self._moment("ll"), DIMENSIONLESS
            ),
            squeeze_r2=scores[0],
            temperature_r2=scores[1],
            difference=difference,
            reading=_reading(difference, *scores),
        )

    def _moment(self, name: str) -> Float:
        return self.moments[:, MOMENTS.index(name)]

    def _term(self, cross: str, square: str) -> Term:
        return _term(
            self.last, self.rows, self.kind, self._moment(cross), self._moment(square)
        )

    def _estimate(self, numerators: Float, denominators: Float, unit: str) -> Estimate:
        term = _term(self.last, self.rows, self.kind, numerators, denominators)
        return estimate([term], unit=unit, bootstrap=self.bootstrap)


def _reading(
    difference: Estimate, squeeze: float, temperature: float
) -> Literal["squeeze", "temperature", "neither"]:
    if difference.low > 0 and squeeze > 0:
        return "squeeze"
    if difference.high < 0 and temperature > 0:
        return "temperature"
    return "neither"


@dataclass(frozen=True)
class _Richer:
    """Responses of one kind and split, with sums by earlier probability."""

    last: Digest
    rows: Index
    kind: str
    reference: Reference
    bootstrap: Bootstrap

    def curve(self, split: Split) -> RicherCurve:
        edges = self.reference.edges[self.kind]
        sums = self.last.detail["richer"][self.rows]
        bins = tuple(
            self._bin(sums[:, b], float(edges[b]), float(edges[b + 1]))
            for b in range(RICHER_BINS)
        )
        return RicherCurve(self.kind, split, bins, self._median(), *self._sides())

    def _bin(self, sums: Float, low: float, high: float) -> RicherBin:
        tokens = float(sums[:, 0].sum())
        mean = float(sums[:, 1].sum() / tokens) if tokens else math.nan
        change = self._estimate([self._ratio(sums[:, 2], sums[:, 0])], NO_TOP)
        return RicherBin(low, high, mean, int(tokens), change)

    def _sides(self) -> tuple[Estimate, Estimate, Estimate, float]:
        if "sides" not in self.last.detail:
            missing = Estimate.undefined(NO_NORMS, unit=NATS, level=0.95)
            return missing, missing, missing, math.nan
        sums = self.last.detail["sides"][self.rows]
        terms = [self._ratio(sums[:, side, 1], sums[:, side, 0]) for side in (0, 1)]
        above, below = (self._estimate([term], "no such token") for term in terms)
        contrast = self._estimate([terms[0], terms[1].times(-1.0)], "no such token")
        valley, counted = self.last.detail["valleys"][self.rows].sum(axis=0)
        share = float(valley / counted) if counted else math.nan
        return above, below, contrast, share

    def _median(self) -> float:
        tau = thresholds(self.reference, self.kind)
        return float(np.median(tau)) if len(tau) else math.nan

    def _ratio(self, numerators: Float, denominators: Float) -> Term:
        return _term(self.last, self.rows, self.kind, numerators, denominators)

    def _estimate(self, terms: Sequence[Term], missing: str) -> Estimate:
        for term in terms:
            if term.denominators.sum() <= 0:
                return Estimate.undefined(missing, unit=NATS, level=0.95)
        return estimate(terms, unit=NATS, bootstrap=self.bootstrap)


def _term(
    last: Digest, rows: Index, kind: str, numerators: Float, denominators: Float
) -> Term:
    return Term(
        last.probe_ids[rows],
        {kind: last.text_hashes[rows]},
        numerators,
        denominators,
        missing=NO_TOP,
    )
