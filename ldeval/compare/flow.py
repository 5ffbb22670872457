"""Where probability mass went, in bins that the reference checkpoint fixes.

f_b = p_after(b) − p_before(b) (probability) sums to zero over label, argmax, rest of
top-k and tail (:mod:`reference`), and since the bins never move, flows add up over
pairs of checkpoints. Means are ratios of sums over positions, every position alike.

The share of the lost label mass that a bin got is mean f_b / (−mean f_label): net, so
the three shares sum to 1, may be negative, and are never clipped. Where the label's
interval contains 0 nothing was clearly lost and the shares are undefined. Shares are
shown over all positions and, as strata, where the reference's argmax is not the label
(off) and where it is (on).

Where a probability is only bounded (:mod:`stored`), estimates' intervals cover both
bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldeval.compare.chunk import OFF, ON
from ldeval.compare.clusters import Term, cluster_labels, estimate_between
from ldeval.compare.digest import Digest
from ldeval.compare.fieller import fieller_estimate
from ldeval.compare.pairing import PairedRows, split_rows
from ldeval.compare.stats import Bootstrap, Float, bounded_estimate, sums_by
from ldeval.compare.stored import Bool
from ldeval.records import KIND_NAMES, Estimate, Flow, Split, Stratum, split_name

BIN_NAMES = ("label", "argmax", "top", "tail")
"""The bins, in the order of the last axis of a digest's masses."""
PROBABILITY_PER_TOKEN = "probability/token"
SHARE = "share"
NO_LOSS = "the label's mass did not clearly change"
NOT_FROM_REFERENCE = "only known from the run's first checkpoint on"
NO_ARGMAX_IDS = "argmax ids not stored"

STRATA: tuple[Stratum, ...] = ("all", "off", "on")
STRATUM = {"off": OFF, "on": ON}


@dataclass(frozen=True)
class Masses:
    """Bin masses of some responses under one checkpoint, in one stratum."""

    low: Float
    """[R, 4] lower bounds of Σ p over the positions; NaN where not scored."""
    high: Float
    """[R, 4] upper bounds; equal to ``low`` where every id is known."""
    positions: Float
    """[R] positions in the stratum."""
    exact: Float
    """[R] of these, positions at which every id is known."""
    outside: Float
    """[R] of these, positions whose argmax lies outside the bins; NaN if not known."""
    risen: tuple[Float, Float]
    """[R] bounds of Σ Δp of those argmaxes since the reference."""

    def at(self, rows: Bool) -> Masses:
        """The responses of a mask."""
        return Masses(
            self.low[rows],
            self.high[rows],
            self.positions[rows],
            self.exact[rows],
            self.outside[rows],
            (self.risen[0][rows], self.risen[1][rows]),
        )


def masses_of(table: Digest, rows: np.ndarray, stratum: Stratum) -> Masses | None:
    """Masses of the responses ``rows``; None where no bins are stored."""
    if table.mass is None:
        return None
    names = ("off", "on") if stratum == "all" else (stratum,)
    found = [table.masses(STRATUM[name]) for name in names]
    low, high = np.sum([m[:, rows] for m in found if m is not None], axis=0)

    def total(column: str) -> Float:
        columns = [table.column(f"{column}_{n}")[rows] for n in names]
        return np.asarray(np.sum(columns, axis=0))

    return Masses(
        low,
        high,
        total("positions"),
        total("exact"),
        total("outside"),
        (total("risen_low"), total("risen_high")),
    )


def flow_terms(
    digest: Digest, rows: np.ndarray, kind: str, numerators: Float, positions: Float
) -> Term:
    """A term of the mean flow over positions of responses ``rows``."""
    return Term(
        digest.probe_ids[rows],
        {kind: digest.text_hashes[rows]},
        numerators,
        positions,
        missing=f"no such position along {kind} scored at both checkpoints",
    )


def flows(
    before: Digest,
    after: Digest,
    pairs: PairedRows,
    bootstrap: Bootstrap,
    kinds: Sequence[str] = KIND_NAMES,
    strata: Sequence[Stratum] = STRATA,
    *,
    from_reference: bool = True,
) -> tuple[Flow, ...]:
    """Flows between two checkpoints, by kind, split and stratum that has a position.

    Args:
        from_reference: whether ``before`` is the run's first checkpoint.
    """
    found = []
    for kind in kinds:
        for trained in (True, False):
            mask = split_rows(before, kind, trained)[pairs.before]
            rows = pairs.before[mask], pairs.after[mask]
            for stratum in strata:
                earlier = masses_of(before, rows[0], stratum)
                later = masses_of(after, rows[1], stratum)
                if earlier is None or later is None:
                    continue
                keep = np.isfinite(earlier.low + later.low).all(axis=1)
                keep &= earlier.positions > 0
                if keep.any():
                    work = _Flow(
                        before,
                        rows[0][keep],
                        kind,
                        earlier.at(keep),
                        later.at(keep),
                        bootstrap,
                        from_reference,
                    )
                    found.append(work.flow(split_name(trained), stratum))
    return tuple(found)


@dataclass(frozen=True)
class _Flow:
    """The responses of one kind, split and stratum."""

    digest: Digest
    rows: np.ndarray
    kind: str
    before: Masses
    after: Masses
    bootstrap: Bootstrap
    from_reference: bool

    def flow(self, split: Split, stratum: Stratum) -> Flow:
        low = self.after.low - self.before.high
        high = self.after.high - self.before.low
        bins = {name: self._bin(low[:, b], high[:, b]) for b, name in _BINS}
        shares = {
            f"{name}_share": self._share(bins["label"], low, high, b)
            for b, name in _BINS
            if name != "label"
        }
        total = self.before.positions.sum()
        # known at both: at least what is left of one when the other's gaps are taken
        gaps = self.before.positions - self.before.exact
        exact = np.maximum(self.after.exact - gaps, 0.0).sum()
        return Flow(
            kind=self.kind,
            split=split,
            stratum=stratum,
            positions=int(total),
            exact_share=float(exact / total),
            risen_share=_ratio(self.after.outside.sum(), total),
            risen=self._risen(),
            **bins,
            **shares,
        )

    def _bin(self, low: Float, high: Float) -> Estimate:
        return estimate_between(
            [self._term(low)],
            [self._term(high)],
            unit=PROBABILITY_PER_TOKEN,
            bootstrap=self.bootstrap,
        )

    def _term(self, numerators: Float) -> Term:
        return flow_terms(
            self.digest, self.rows, self.kind, numerators, self.before.positions
        )

    def _share(self, label: Estimate, low: Float, high: Float, column: int) -> Estimate:
        return share(self._term(-low[:, 0]), label, low[:, column], high[:, column])

    def _risen(self) -> Estimate:
        low, high = self.after.risen
        if not self.from_reference or not np.isfinite(low + high).all():
            reason = NO_ARGMAX_IDS if self.from_reference else NOT_FROM_REFERENCE
            return Estimate.undefined(
                reason, unit=PROBABILITY_PER_TOKEN, level=self._level
            )
        return self._bin(low, high)

    @property
    def _level(self) -> float:
        return 0.95


def _ratio(value: float, total: float) -> float:
    return float(value / total) if np.isfinite(value) else math.nan


_BINS = tuple(enumerate(BIN_NAMES))


def share(lost: Term, label: Estimate, low: Float, high: Float) -> Estimate:
    """Net share of the lost label mass that one bin got, with Fieller's interval.

    Fieller's, since the denominator is random too: the bootstrap-t of the ratio covers
    88 to 90% at 24 prompts where 95% is named (``scripts/campaign_coverage.py``).

    Args:
        lost: Σ of the label's loss over each response, as numerators.
        label: the label's mean flow, whose interval decides whether there is a share.
        low, high: [R] bounds of the bin's flow.
    """
    level = label.level
    if not (label.low > 0 or label.high < 0):
        reason = label.reason or NO_LOSS
        return Estimate.undefined(reason, unit=SHARE, level=level)
    (labels,), clusters = cluster_labels([lost])
    total = sums_by(labels, lost.numerators, clusters)

    def of(side: Float) -> Estimate:
        return fieller_estimate(
            sums_by(labels, side, clusters),
            total,
            unit=SHARE,
            n=len(lost),
            level=level,
            missing=NO_LOSS,
        )

    first = of(low)
    if np.array_equal(low, high):
        return first
    second = of(high)
    one, two = sorted((first, second), key=lambda found: found.value)
    return bounded_estimate(one, two)
