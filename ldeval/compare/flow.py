"""Where probability mass went, in bins that the reference checkpoint fixes.

At position m of a response with label y_m, the run's first checkpoint gives its top-k
tokens and its argmax y*. With F_m = top-k ∪ {y_m} the bins are the label {y_m}, the
argmax {y*}, the rest of the top-k K = F_m ∖ {y_m, y*}, and the tail T = 1 − Σ_F p.
f_b = p_after(b) − p_before(b) (probability) sums to zero over the bins, and since the
bins never move, flows add up over pairs of checkpoints.

Only off-label positions (y* ≠ y_m) are counted, so the argmax bin is never empty.

A table that lacks ln p of some id of F_m bounds it: an unknown p lies in
[0, min(p_(k), 1 − Σ stored)], p_(k) the smallest of the table's own top
probabilities, and all unknown ones together are at most 1 − Σ stored. The estimates'
intervals then cover both bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ldeval.compare.clusters import Term, estimate_between
from ldeval.compare.pairing import align, split_rows, token_positions
from ldeval.compare.stats import Bootstrap, Float
from ldeval.records import Flow, IntArray, ScoreTable, TokenScores, split_name

Bool = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]

BIN_NAMES = ("label", "argmax", "top", "tail")
"""The bins, in the order of the last axis of :class:`BinMass`."""
FLOW_KINDS = ("chosen", "rejected")
"""The kinds along which flows are followed."""
PROBABILITY_PER_TOKEN = "probability/token"

_NO_TOKEN = -1
_BLOCK = 8192


@dataclass(frozen=True)
class OffLabel:
    """The positions along one kind where the reference's argmax is not the label."""

    kind: str
    table: ScoreTable
    """The reference table."""
    rows: Index
    """[R] its rows of this kind, trained and held out."""
    owner: Index
    """[P] which of ``rows`` each off-label position belongs to."""
    position: Index
    """[P] flat position of each in the reference table."""

    @property
    def counts(self) -> Float:
        """[R] off-label positions in each response."""
        return np.bincount(self.owner, minlength=len(self.rows)).astype(np.float64)

    def sums(self, column: Float) -> Float:
        """[R] Σ of a value [P] over the positions of each response."""
        sums = np.bincount(self.owner, weights=column, minlength=len(self.rows))
        return sums.astype(np.float64)

    def locate(self, table: ScoreTable) -> tuple[Bool, Index]:
        """Which positions ``table`` scored [P], and where they are in it [P]; 0 where
        it did not."""
        rows = align(self.table, table)[self.rows]
        here = (rows >= 0)[self.owner]
        within = self.position - self.table.offsets[self.rows[self.owner]]
        flat = np.where(here, table.offsets[rows[self.owner]] + within, 0)
        if len(table.tokens):
            here &= np.isfinite(table.tokens.logprobs[flat])
        return here, flat


@dataclass(frozen=True)
class Bins:
    """The ids of the bins at the off-label positions along one kind."""

    where: OffLabel
    label: IntArray
    """[P] the response's token."""
    argmax: IntArray
    """[P] the reference's most probable token; never the label."""
    top: IntArray
    """[P, k] the rest of the reference's top-k; −1 in place of label and argmax."""


@dataclass(frozen=True)
class BinMass:
    """Probability of the bins under one checkpoint, summed over each response."""

    low: Float
    """[R, 4] lower bounds of Σ p over the off-label positions; NaN where such a
    position was not scored."""
    high: Float
    """[R, 4] upper bounds; equal to ``low`` where every id is known."""
    exact: Bool
    """[P] positions at which every id of the bins is known."""
    outside: Bool | None
    """[P] positions at which this checkpoint's argmax lies outside the bins; None
    where argmax ids were not stored."""


def off_label(reference: ScoreTable, kind: str) -> OffLabel | None:
    """The off-label positions along ``kind``; None where argmax ids were not stored."""
    tokens = reference.tokens
    if tokens.argmax_ids is None:
        return None
    rows = np.flatnonzero(reference.kinds == kind)
    lengths = reference.n_tokens[rows]
    owner, position = token_positions(reference.offsets[rows], lengths)
    kept = tokens.argmax_ids[position] != tokens.token_ids[position]
    return OffLabel(kind, reference, rows, owner[kept], position[kept])


def reference_bins(reference: ScoreTable, kind: str) -> Bins | None:
    """The bins along ``kind``; None where the top tokens were not stored."""
    tokens, where = reference.tokens, off_label(reference, kind)
    if where is None or tokens.argmax_ids is None or tokens.argmax_logprobs is None:
        return None
    if tokens.top_ids is None or tokens.top_logprobs is None:
        return None
    label = tokens.token_ids[where.position]
    argmax = tokens.argmax_ids[where.position]
    top = tokens.top_ids[where.position]
    named = (top == label[:, None]) | (top == argmax[:, None])
    return Bins(where, label, argmax, np.where(named, _NO_TOKEN, top))


def bin_mass(bins: Bins, table: ScoreTable) -> BinMass:
    """Mass of each bin under ``table``, a table comparable with the reference."""
    here, position = bins.where.locate(table)
    inside = np.flatnonzero(here)
    bounds = np.full((2, 4, len(here)), np.nan)
    exact = np.zeros(len(here), bool)
    risen = np.zeros(len(here), bool)
    for start in range(0, len(inside), _BLOCK):
        block = inside[start : start + _BLOCK]
        stored = _Stored(table.tokens, position[block])
        ids = bins.label[block], bins.argmax[block], bins.top[block]
        bounds[:, :, block], exact[block] = stored.bins(*ids)
        if stored.argmax is not None:
            risen[block] = ~_contains(stored.argmax, *ids)
    # a response that was not scored holds NaN at each of its positions
    low, high = (
        np.stack([bins.where.sums(column) for column in side], axis=1)
        for side in bounds
    )
    outside = None if table.tokens.argmax_ids is None else risen
    return BinMass(low, high, exact, outside)


def flow_terms(
    bins: Bins, low: Float, high: Float, keep: Bool, bin_name: str
) -> tuple[Term, Term]:
    """Lower and upper terms of one bin's mean flow over off-label positions.

    Args:
        low, high: [R, 4] bounds of the flows, summed over each response.
        keep: [R] responses to use, scored and with an off-label position.
    """
    column = BIN_NAMES.index(bin_name)
    where = bins.where
    rows, counts = where.rows[keep], where.counts[keep]
    prompts = where.table.probe_ids[rows]
    texts = {where.kind: where.table.text_hashes[rows]}
    missing = f"no off-label position along {where.kind} scored at both checkpoints"
    lower, upper = (
        Term(prompts, texts, side[keep, column], counts, missing=missing)
        for side in (low, high)
    )
    return lower, upper


def flows(
    bins: Sequence[Bins],
    before: Sequence[BinMass],
    after: Sequence[BinMass],
    bootstrap: Bootstrap,
) -> tuple[Flow, ...]:
    """Flows between two checkpoints, one a kind and split that has any position.

    Args:
        bins: one a kind.
        before, after: the masses of those bins under the two checkpoints.
    """
    found = []
    for of_kind, earlier, later in zip(bins, before, after, strict=True):
        for trained in (True, False):
            where = of_kind.where
            keep = split_rows(where.table, where.kind, trained)[where.rows]
            keep &= np.isfinite(earlier.low + later.low).all(axis=1)
            keep &= where.counts > 0
            if keep.any():
                found.append(_flow(of_kind, earlier, later, keep, trained, bootstrap))
    return tuple(found)


def _flow(
    bins: Bins,
    before: BinMass,
    after: BinMass,
    keep: Bool,
    trained: bool,
    bootstrap: Bootstrap,
) -> Flow:
    low, high = after.low - before.high, after.high - before.low
    estimates = {}
    for name in BIN_NAMES:
        lower, upper = flow_terms(bins, low, high, keep, name)
        estimates[name] = estimate_between(
            [lower], [upper], unit=PROBABILITY_PER_TOKEN, bootstrap=bootstrap
        )
    inside = keep[bins.where.owner]
    exact = before.exact & after.exact
    outside = math.nan if after.outside is None else float(after.outside[inside].mean())
    return Flow(
        kind=bins.where.kind,
        split=split_name(trained),
        positions=int(inside.sum()),
        exact_share=float(exact[inside].mean()),
        risen_share=outside,
        **estimates,
    )


def _contains(ids: IntArray, label: IntArray, argmax: IntArray, top: IntArray) -> Bool:
    inside = (ids == label) | (ids == argmax) | (ids[:, None] == top).any(axis=1)
    return np.asarray(inside)


class _Stored:
    """Every ln p that one table holds at some positions, from whichever column."""

    def __init__(self, tokens: TokenScores, position: Index) -> None:
        ids = [tokens.token_ids[position, None]]
        logprobs = [tokens.logprobs[position, None]]
        self.argmax: IntArray | None = None
        ceiling = np.ones(len(position))
        if tokens.argmax_ids is not None:
            self.argmax = tokens.argmax_ids[position]
        if tokens.argmax_ids is not None and tokens.argmax_logprobs is not None:
            ids.append(tokens.argmax_ids[position, None])
            logprobs.append(tokens.argmax_logprobs[position, None])
            ceiling = np.exp(tokens.argmax_logprobs[position].astype(np.float64))
        if tokens.top_ids is not None and tokens.top_logprobs is not None:
            ids.append(tokens.top_ids[position])
            logprobs.append(tokens.top_logprobs[position])
            ceiling = np.exp(tokens.top_logprobs[position].min(axis=1).astype(float))
        if tokens.ref_ids is not None and tokens.ref_logprobs is not None:
            ids.append(tokens.ref_ids[position])
            logprobs.append(tokens.ref_logprobs[position])
        self._sort(np.concatenate(ids, axis=1), np.concatenate(logprobs, axis=1))
        self._ceiling = ceiling
        """[P] no token that is not stored is more probable."""

    def _sort(self, ids: IntArray, logprobs: Float) -> None:
        """Keep each known id once, in ascending order, the rest as −1 with p = 0."""
        known = np.where(np.isnan(logprobs), _NO_TOKEN, ids).astype(np.int64)
        order = np.argsort(known, axis=1, kind="stable")
        self._ids = np.take_along_axis(known, order, axis=1)
        values = np.exp(np.take_along_axis(logprobs, order, axis=1).astype(np.float64))
        fresh = np.ones(self._ids.shape, bool)
        fresh[:, 1:] = self._ids[:, 1:] != self._ids[:, :-1]
        fresh &= self._ids != _NO_TOKEN
        self._ids[~fresh] = _NO_TOKEN
        self._probabilities = np.where(fresh, values, 0.0)

    def bins(
        self, label: IntArray, argmax: IntArray, top: IntArray
    ) -> tuple[Float, Bool]:
        """Bounds [2, 4, P] of the four bins, and where they are exact [P]."""
        (p_label, _), (p_argmax, no_argmax), (p_top, no_top) = (
            self._lookup(label[:, None]),
            self._lookup(argmax[:, None]),
            self._lookup(top),
        )
        rest = np.maximum(1.0 - self._probabilities.sum(axis=1), 0.0)
        single = np.minimum(self._ceiling, rest)
        of_argmax, of_top = no_argmax * single, np.minimum(no_top * single, rest)
        of_tail = np.minimum((no_argmax + no_top) * single, rest)
        tail = 1.0 - (p_label + p_argmax + p_top)
        low = [p_label, p_argmax, p_top, tail - of_tail]
        high = [p_label, p_argmax + of_argmax, p_top + of_top, tail]
        return np.array([low, high]), (no_argmax + no_top) == 0

    def _lookup(self, ids: IntArray) -> tuple[Float, Index]:
        """Σ p of the known among ``ids`` [P, q], and how many are unknown; −1 is no
        token and counts as neither."""
        total = np.zeros(len(ids))
        unknown = np.zeros(len(ids), np.intp)
        for column in range(ids.shape[1]):
            wanted = ids[:, column]
            match = self._ids == wanted[:, None]
            real = wanted != _NO_TOKEN
            total += np.where(real, (self._probabilities * match).sum(axis=1), 0.0)
            unknown += real & ~match.any(axis=1)
        return total, unknown
