"""The estimates that verdicts rest on: end values, at the verdict level.

A run's end value is the mean change since the first checkpoint over the last
W = min(5, ⌊C/4⌋) of C checkpoints. Checkpoints wander too, by σ_c = max(sd of the last
W values, 1.48 · median |first difference| / √2), so (2.58 σ_c)² / W is added to the
squared half-widths. With fewer than 8 checkpoints W = 1, nothing is added, and
persistence is not assessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ldeval.compare.clusters import (
    Rows,
    Term,
    cluster_labels,
    estimate,
    estimate_between,
)
from ldeval.compare.delta import (
    NATS_PER_TOKEN,
    NO_ARGMAX,
    NO_TOKEN_SCORES,
    TOO_SHORT,
    ResponseParts,
    argmax_parts,
    label_parts,
)
from ldeval.compare.flow import (
    BIN_NAMES,
    PROBABILITY_PER_TOKEN,
    BinMass,
    Bins,
    flow_terms,
)
from ldeval.compare.pairing import align, split_rows
from ldeval.compare.stats import Bootstrap, Float
from ldeval.compare.thresholds import Thresholds
from ldeval.records import Estimate, ScoreTable, Split

Bool = npt.NDArray[np.bool_]
ARGMAX = "argmax:"
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


@dataclass(frozen=True)
class SplitEvidence:
    """End values of one split of a run, as estimates at the verdict level."""

    tables: Sequence[ScoreTable]
    """[C] in order of step."""
    split: Split
    bins: Sequence[Bins]
    """Flow bins along chosen and rejected; empty where none were stored."""
    masses: Sequence[Sequence[BinMass]]
    """[kind][C] their masses."""
    bootstrap: Bootstrap
    thresholds: Thresholds

    @cached_property
    def window(self) -> int:
        """W, how many of the last checkpoints are averaged."""
        return self.thresholds.window(len(self.tables))

    @cached_property
    def rows(self) -> npt.NDArray[np.intp]:
        """[C, R] row of each response of the first table, −1 where not scored."""
        return np.stack([align(self.tables[0], table) for table in self.tables])

    @cached_property
    def _own(self) -> list[ResponseParts]:
        return [label_parts(table) for table in self.tables]

    @cached_property
    def _argmax(self) -> list[ResponseParts]:
        return [argmax_parts(table) for table in self.tables]

    def mask(self, kind: str) -> Bool:
        """[R] rows of the first table that hold ``kind`` in this split."""
        return split_rows(self.tables[0], kind, self.split == "trained")

    @cached_property
    def clusters(self) -> int:
        """Clusters behind chosen and rejected: what the split is worth."""
        terms = [self.series(kind).term for kind in ("chosen", "rejected")]
        return cluster_labels(terms)[1] if any(map(len, terms)) else 0

    def series(self, kind: str, body: bool = False) -> Series:
        """Changes of a stored kind, or of ``argmax:<kind>``, nats.

        Args:
            body: without the first and the end token of each response.
        """
        along = kind.removeprefix(ARGMAX)
        parts = self._argmax if kind.startswith(ARGMAX) else self._own
        kept = np.flatnonzero(self.mask(along))
        weights = parts[0].tokens[kept]
        if body:
            weights = np.maximum(weights - 2.0, 0.0)
        missing = self._missing(kind, kept, body)
        levels = self._levels(parts, kept, body)
        first = self.tables[0]
        texts = {along: first.text_hashes[kept]}
        prompts = first.probe_ids[kept]
        template = Term(prompts, texts, weights, weights, missing=missing)
        return end_series(template, levels - levels[0], self.window)

    def _levels(
        self, parts: Sequence[ResponseParts], kept: npt.NDArray[np.intp], body: bool
    ) -> Float:
        levels = np.full((len(parts), len(kept)), np.nan)
        for level, part, rows in zip(levels, parts, self.rows[:, kept], strict=True):
            column = part.body if body else part.sums
            here = rows >= 0
            level[here] = column[rows[here]]
        return levels

    def _missing(self, kind: str, kept: npt.NDArray[np.intp], body: bool) -> str:
        if not len(kept):
            return f"{kind} was not scored on {self.split} probes"
        if kind.startswith(ARGMAX):
            return NO_ARGMAX
        if body:
            scored = np.isfinite(self._own[0].first[kept]).any()
            return TOO_SHORT if scored else NO_TOKEN_SCORES
        return f"{kind} has no response scored at the first and the last checkpoints"

    def kind(self, kind: str, body: bool = False) -> Estimate:
        """Δtok of a kind, nats/token."""
        return self._combine([self.series(kind, body)], [1.0], NATS_PER_TOKEN)

    def mean(self, kinds: Sequence[str]) -> Estimate:
        """Mean of the Δtok of several kinds, each over its own prompts."""
        weights = [1.0 / len(kinds)] * len(kinds)
        return self._combine(list(map(self.series, kinds)), weights, NATS_PER_TOKEN)

    def contrast(
        self, kind: str, others: Sequence[str], body: bool = False
    ) -> Estimate:
        """Δtok of ``kind`` minus the mean Δtok of ``others``, over the prompts that
        have all of them, nats/token."""
        series = [self.series(name, body) for name in (kind, *others)]
        weights = [1.0] + [-1.0 / len(others)] * len(others)
        if all(len(part.term) for part in series):
            series = _paired(series)
        return self._combine(series, weights, NATS_PER_TOKEN)

    @cached_property
    def margin(self) -> Estimate:
        """Σ (Δs(chosen) − Δs(rejected)) / Σ ½(n(chosen) + n(rejected)), nats/token.

        The change of the summed margin, which the losses act on, put per token so
        that the same m applies; its sign is that of the sum.
        """
        series = [self.series(kind) for kind in ("chosen", "rejected")]
        if not all(len(part.term) for part in series):
            return self._combine(series, [1.0, -1.0], NATS_PER_TOKEN)
        chosen, rejected = _paired(series)
        weights = 0.5 * (chosen.term.denominators + rejected.term.denominators)
        texts = {**chosen.term.texts, **rejected.term.texts}
        template = replace(chosen.term, texts=texts, denominators=weights)
        changes = chosen.changes - rejected.changes
        both = end_series(template, changes, self.window)
        return self._combine([both], [1.0], NATS_PER_TOKEN)

    def flow(self, kind: str) -> dict[str, Estimate]:
        """Mean flow into each bin at the off-label positions along ``kind``,
        probability/token; empty where the top tokens were not stored."""
        for bins, masses in zip(self.bins, self.masses, strict=True):
            if bins.where.kind == kind:
                return {name: self._flow(bins, masses, name) for name in BIN_NAMES}
        return {}

    def _flow(self, bins: Bins, masses: Sequence[BinMass], name: str) -> Estimate:
        low = np.stack([mass.low - masses[0].high for mass in masses])
        high = np.stack([mass.high - masses[0].low for mass in masses])
        window = self.window
        ends = low[-window:].mean(axis=0), high[-window:].mean(axis=0)
        where = bins.where
        keep = self.mask(where.kind)[where.rows] & (where.counts > 0)
        keep &= np.isfinite(ends[0]).all(axis=1)
        lower, upper = flow_terms(bins, *ends, keep, name)
        found = estimate_between(
            [lower],
            [upper],
            unit=PROBABILITY_PER_TOKEN,
            bootstrap=self.bootstrap,
            level=self.thresholds.level,
        )
        middle = 0.5 * (low + high)[:, keep, BIN_NAMES.index(name)]
        return self.persistent(found, Series(lower, middle).path)

    def _combine(
        self, series: Sequence[Series], weights: Sequence[float], unit: str
    ) -> Estimate:
        pairs = list(zip(series, weights, strict=True))
        found = estimate(
            [part.term.times(weight) for part, weight in pairs],
            unit=unit,
            bootstrap=self.bootstrap,
            level=self.thresholds.level,
        )
        return self.persistent(
            found, lambda: np.sum([weight * part.path() for part, weight in pairs], 0)
        )

    def persistent(self, value: Estimate, path: Callable[[], Float]) -> Estimate:
        """Widen by the wandering of the path [C], where persistence is assessed."""
        limits = self.thresholds
        if not limits.persistence(len(self.tables)) or not math.isfinite(value.low):
            return value
        sigma = spread(path(), self.window, limits.wander_scale)
        return widened(value, sigma, self.window, limits.wander_quantile)


def _paired(series: Sequence[Series]) -> list[Series]:
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
