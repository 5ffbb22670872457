"""The estimates that verdicts rest on: end values, at the verdict level.

A run's end value is the mean change since the first checkpoint over the last
W = min(5, ⌊C/4⌋) of C checkpoints. Checkpoints wander too, by σ_c = max(sd of the last
W values, 1.48 · median |first difference| / √2), so (2.58 σ_c)² / W is added to the
squared half-widths. With fewer than 8 checkpoints W = 1, nothing is added, and
persistence is not assessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ldeval.compare.clusters import (
    Term,
    cluster_labels,
    estimate,
    estimate_between,
)
from ldeval.compare.delta import (
    NATS_PER_TOKEN,
    NO_ARGMAX,
    NO_FROZEN,
    NO_TOKEN_SCORES,
    TOO_SHORT,
)
from ldeval.compare.digest import Digest
from ldeval.compare.flow import (
    BIN_NAMES,
    PROBABILITY_PER_TOKEN,
    flow_terms,
    masses_of,
)
from ldeval.compare.pairing import align, distinct_evaluations, split_rows
from ldeval.compare.repetition import RepetitionInput, repetition_conjuncts
from ldeval.compare.series import Series, end_series, paired, spread, widened
from ldeval.compare.shape import shape
from ldeval.compare.stats import Bootstrap, Float
from ldeval.compare.thresholds import Thresholds
from ldeval.records import KIND_NAMES, SPLIT_NAMES, Conjunct, Estimate, Split

Bool = npt.NDArray[np.bool_]
ARGMAX = "argmax:"
FROZEN = "frozen:"


class Evidence(Protocol):
    """What the decision table asks of a run, from tables or from imported means."""

    @property
    def split(self) -> Split:
        """Which probes."""
        ...

    @property
    def thresholds(self) -> Thresholds:
        """Numbers of the decision table."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds that the split holds, in the order of ``KINDS``."""
        ...

    @property
    def checkpoints(self) -> int:
        """C."""
        ...

    @property
    def tables(self) -> Sequence[Digest]:
        """Checkpoints in order of step; none where only means were imported."""
        ...

    @property
    def floors(self) -> Mapping[str, float]:
        """m by kind, where it is a kind's own."""
        ...

    @property
    def argmax_along(self) -> Sequence[str]:
        """Kinds along which an argmax is followed, the most telling first."""
        ...

    @property
    def scored_means(self) -> str:
        """When :meth:`is_scored` is true, in words."""
        ...

    @property
    def margin(self) -> Estimate:
        """The change of the margin."""
        ...

    def kind(self, kind: str, body: bool = False) -> Estimate:
        """The change of a kind."""
        ...

    def form(self, kind: str) -> Mapping[str, Estimate]:
        """``rise``, ``fall`` and ``slope`` of a kind's path."""
        ...

    def mean(self, kinds: Sequence[str]) -> Estimate:
        """The mean change of several kinds."""
        ...

    def contrast(
        self, kind: str, others: Sequence[str], body: bool = False
    ) -> Estimate:
        """The change of a kind minus the mean change of others."""
        ...

    def flow(self, kind: str) -> dict[str, Estimate]:
        """Mean flow into each bin; empty where not known."""
        ...

    def is_scored(self, change: Estimate) -> bool:
        """Whether a kind with this change counts among those scored."""
        ...

    def too_little(self) -> str | None:
        """Why nothing can be decided, or None."""
        ...

    def repetition(self) -> tuple[Conjunct, ...]:
        """The conditions of the verdict ``repetition``."""
        ...


@dataclass(frozen=True)
class SplitEvidence:
    """End values of one split of a run, as estimates at the verdict level."""

    tables: Sequence[Digest]
    """[C] in order of step."""
    split: Split
    bootstrap: Bootstrap
    thresholds: Thresholds

    floors: Mapping[str, float] = field(default_factory=dict)
    """No kind has a floor of its own: all changes are per token."""
    argmax_along: Sequence[str] = ("rejected", "chosen")

    @property
    def scored_means(self) -> str:
        """When :meth:`is_scored` is true, in words."""
        return f"on at least {self.thresholds.min_clusters} clusters"

    def is_scored(self, change: Estimate) -> bool:
        """Whether the change rests on enough clusters."""
        return change.clusters >= self.thresholds.min_clusters

    def too_little(self) -> str | None:
        """Why nothing can be decided on this split, or None."""
        limits = self.thresholds
        if self.clusters < limits.min_clusters:
            return (
                f"{self.clusters} clusters of {SPLIT_NAMES[self.split]} prompts; a "
                f"verdict needs at least {limits.min_clusters}"
            )
        different = distinct_evaluations(self.tables)
        if different < limits.min_evaluations:
            return (
                f"{different} distinct evaluation; a verdict needs at least "
                f"{limits.min_evaluations}"
            )
        return None

    def repetition(self) -> tuple[Conjunct, ...]:
        """The conditions of the verdict ``repetition``."""
        return repetition_conjuncts(
            RepetitionInput(
                self.tables,
                self.rows,
                self.mask("chosen"),
                self.window,
                self.bootstrap,
                self.thresholds,
            ),
            self.persistent,
        )

    @cached_property
    def window(self) -> int:
        """W, how many of the last checkpoints are averaged."""
        return self.thresholds.window(len(self.tables))

    @cached_property
    def rows(self) -> npt.NDArray[np.intp]:
        """[C, R] row of each response of the first table, −1 where not scored."""
        return np.stack([align(self.tables[0], table) for table in self.tables])

    @property
    def checkpoints(self) -> int:
        """C."""
        return len(self.tables)

    def form(self, kind: str) -> Mapping[str, Estimate]:
        """``rise``, ``fall`` and ``slope`` of a kind's path, nats/token."""
        series = self.series(kind)
        steps = [table.manifest.step for table in self.tables]
        found = shape(series, steps, self.bootstrap, self.thresholds.level)
        parts = {"rise": found.rise, "fall": found.fall, "slope": found.slope}
        return {n: self.persistent(e, series.path) for n, e in parts.items()}

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds with a row in this split, in the order of ``KINDS``."""
        return tuple(kind for kind in KIND_NAMES if self.mask(kind).any())

    def mask(self, kind: str) -> Bool:
        """[R] rows of the first table that hold ``kind`` in this split."""
        return split_rows(self.tables[0], kind, self.split == "trained")

    @cached_property
    def clusters(self) -> int:
        """Clusters behind chosen and rejected: what the split is worth."""
        terms = [self.series(kind).term for kind in ("chosen", "rejected")]
        return cluster_labels(terms)[1] if any(map(len, terms)) else 0

    def series(self, kind: str, body: bool = False) -> Series:
        """Changes of a stored kind, of ``argmax:<kind>`` or ``frozen:<kind>``, nats.

        Args:
            body: without the first and the end token of each response.
        """
        of, _, along = kind.rpartition(":")
        kept = np.flatnonzero(self.mask(along))
        weights = self.tables[0].n_tokens[kept].astype(np.float64)
        if body:
            weights = np.maximum(weights - 2.0, 0.0)
        missing = self._missing(kind, kept, body)
        levels = self._levels(of or "own", kept, body)
        first = self.tables[0]
        texts = {along: first.text_hashes[kept]}
        prompts = first.probe_ids[kept]
        template = Term(prompts, texts, weights, weights, missing=missing)
        return end_series(template, levels - levels[0], self.window)

    def _levels(self, of: str, kept: npt.NDArray[np.intp], body: bool) -> Float:
        levels = np.full((len(self.tables), len(kept)), np.nan)
        name = f"{of}_{'body' if body else 'sum'}"
        for level, table, rows in zip(
            levels, self.tables, self.rows[:, kept], strict=True
        ):
            column = table.logprob_sums if name == "own_sum" else table.column(name)
            here = rows >= 0
            level[here] = column[rows[here]]
        return levels

    def _missing(self, kind: str, kept: npt.NDArray[np.intp], body: bool) -> str:
        if not len(kept):
            return f"{kind} was not scored on {self.split} probes"
        if kind.startswith(ARGMAX):
            return NO_ARGMAX
        if kind.startswith(FROZEN):
            return NO_FROZEN
        if body:
            scored = np.isfinite(self.tables[0].column("own_first")[kept]).any()
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
            series = paired(series)
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
        chosen, rejected = paired(series)
        weights = 0.5 * (chosen.term.denominators + rejected.term.denominators)
        texts = {**chosen.term.texts, **rejected.term.texts}
        template = replace(chosen.term, texts=texts, denominators=weights)
        changes = chosen.changes - rejected.changes
        both = end_series(template, changes, self.window)
        return self._combine([both], [1.0], NATS_PER_TOKEN)

    def flow(self, kind: str) -> dict[str, Estimate]:
        """Mean flow into each bin at the off-label positions along ``kind``,
        probability/token; empty where the top tokens were not stored."""
        if any(table.mass is None for table in self.tables):
            return {}
        kept = np.flatnonzero(self.mask(kind))
        low, high = (np.full((len(self.tables), len(kept), 4), np.nan) for _ in "lh")
        first = masses_of(self.tables[0], self.rows[0][kept], "off")
        if first is None or not len(kept):
            return {}
        for step, table in enumerate(self.tables):
            index = self.rows[step][kept]
            masses = masses_of(table, np.maximum(index, 0), "off")
            if masses is not None:
                here = (index >= 0)[:, None]
                low[step] = np.where(here, masses.low - first.high, np.nan)
                high[step] = np.where(here, masses.high - first.low, np.nan)
        return {
            name: self._flow(kind, kept, first.positions, low[..., b], high[..., b])
            for b, name in enumerate(BIN_NAMES)
        }

    def _flow(
        self,
        kind: str,
        kept: npt.NDArray[np.intp],
        positions: Float,
        low: Float,
        high: Float,
    ) -> Estimate:
        """Args: low, high: [C, R] bounds of the flow since the first checkpoint."""
        window = self.window
        ends = low[-window:].mean(axis=0), high[-window:].mean(axis=0)
        keep = (positions > 0) & np.isfinite(ends[0])
        lower, upper = (
            flow_terms(self.tables[0], kept[keep], kind, side[keep], positions[keep])
            for side in ends
        )
        found = estimate_between(
            [lower],
            [upper],
            unit=PROBABILITY_PER_TOKEN,
            bootstrap=self.bootstrap,
            level=self.thresholds.level,
        )
        middle = 0.5 * (low + high)[:, keep]
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
