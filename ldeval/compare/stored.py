"""Probability of given tokens from what one table stores, exactly or within bounds.

A table that lacks ln p of some id bounds it: an unknown p lies in
[0, min(p_(k), 1 − Σ stored)], p_(k) the smallest of the table's own top probabilities,
and all unknown ones together are at most 1 − Σ stored. Apart from ``bins``, which says
which tokens are asked for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ldeval.compare.stats import Float
from ldeval.records import IntArray, TokenScores

Bool = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]

NO_TOKEN = -1
_BLOCK = 8192


def bin_bounds(
    tokens: TokenScores, label: IntArray, argmax: IntArray, top: IntArray
) -> tuple[Float, Bool]:
    """Mass of the four bins at each position.

    Args:
        tokens: [n] what one checkpoint stores.
        label: [n] the response's token.
        argmax: [n] the reference's most probable token; −1 where it is the label.
        top: [n, k] the reference's top-k, label and argmax included.

    Returns:
        Bounds [2, 4, n] of label, argmax, rest of top-k and tail, NaN where the
        position was not scored; and where they are exact [n].
    """
    bounds = np.full((2, 4, len(label)), np.nan)
    exact = np.zeros(len(label), bool)
    scored = np.isfinite(tokens.logprobs)
    if not scored.any():
        return bounds, exact
    source = _same_ids(tokens, top)
    fast = scored.copy()
    if source is None:
        fast[:] = False
    else:
        fast &= ~np.isnan(source).any(axis=1)
        # a tie may leave the argmax (the lowest id) out of the stored top-k
        fast &= (argmax == NO_TOKEN) | (top == argmax[:, None]).any(axis=1)
        _fill_known(bounds, tokens, label, argmax, top, source)
        exact |= fast
    rest = np.flatnonzero(scored & ~fast)
    for start in range(0, len(rest), _BLOCK):
        block = rest[start : start + _BLOCK]
        named = (top[block] == label[block, None]) | (top[block] == argmax[block, None])
        others = np.where(named, NO_TOKEN, top[block])
        found, known = Stored(tokens, block).bins(label[block], argmax[block], others)
        bounds[:, :, block] = found
        exact[block] = known
    bounds[:, :, ~scored] = np.nan
    return bounds, exact


def top_logprobs(tokens: TokenScores, top: IntArray) -> Float:
    """ln p of the ids ``top`` [n, k]; NaN where not stored, nats."""
    source = _same_ids(tokens, top)
    if source is not None:
        return np.asarray(source, np.float64)
    found = np.full(top.shape, np.nan)
    for start in range(0, len(top), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(top)))
        found[block] = Stored(tokens, block).logprobs(top[block])
    return found


def ceilings(tokens: TokenScores) -> Float:
    """[n] what no token that is not stored exceeds, min(p_(k), 1 − Σ stored)."""
    found = np.ones(len(tokens))
    if tokens.top_logprobs is not None:
        p = np.exp(np.asarray(tokens.top_logprobs, np.float64))
        found = np.minimum(p[:, -1], np.maximum(1.0 - p.sum(axis=1), 0.0))
    return np.asarray(found)


def _same_ids(tokens: TokenScores, top: IntArray) -> Float | None:
    """The stored column of ln p that holds just these ids, in this order."""
    for ids, logprobs in (
        (tokens.ref_ids, tokens.ref_logprobs),
        (tokens.top_ids, tokens.top_logprobs),
    ):
        if ids is not None and logprobs is not None and np.array_equal(ids, top):
            return np.asarray(logprobs)
    return None


def _fill_known(
    bounds: Float,
    tokens: TokenScores,
    label: IntArray,
    argmax: IntArray,
    top: IntArray,
    source: Float,
) -> None:
    p = np.exp(source.astype(np.float64))
    is_argmax = top == argmax[:, None]
    of_argmax = np.where(is_argmax, p, 0.0).sum(axis=1)
    of_label = np.exp(tokens.logprobs.astype(np.float64))
    rest = np.where(is_argmax | (top == label[:, None]), 0.0, p).sum(axis=1)
    tail = 1.0 - (of_label + of_argmax + rest)
    bounds[:] = np.stack([of_label, of_argmax, rest, tail])


class Stored:
    """Every ln p that one table holds at some positions, from whichever column."""

    def __init__(self, tokens: TokenScores, position: Index) -> None:
        ids = [tokens.token_ids[position, None]]
        logprobs = [tokens.logprobs[position, None]]
        ceiling = np.ones(len(position))
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
        """[n] no token that is not stored is more probable."""

    def _sort(self, ids: IntArray, logprobs: Float) -> None:
        """Keep each known id once, in ascending order, the rest as −1 with p = 0."""
        known = np.where(np.isnan(logprobs), NO_TOKEN, ids).astype(np.int64)
        order = np.argsort(known, axis=1, kind="stable")
        self._ids = np.take_along_axis(known, order, axis=1)
        values = np.exp(np.take_along_axis(logprobs, order, axis=1).astype(np.float64))
        fresh = np.ones(self._ids.shape, bool)
        fresh[:, 1:] = self._ids[:, 1:] != self._ids[:, :-1]
        fresh &= self._ids != NO_TOKEN
        self._ids[~fresh] = NO_TOKEN
        self._probabilities = np.where(fresh, values, 0.0)

    def logprobs(self, ids: IntArray) -> Float:
        """ln p of ``ids`` [n, q]; NaN where not stored."""
        found = np.full(ids.shape, np.nan)
        for column in range(ids.shape[1]):
            wanted = ids[:, column]
            match = (self._ids == wanted[:, None]) & (wanted != NO_TOKEN)[:, None]
            known = match.any(axis=1)
            p = (self._probabilities * match).sum(axis=1)
            with np.errstate(divide="ignore"):
                found[:, column] = np.where(known, np.log(p), np.nan)
        return found

    def bins(
        self, label: IntArray, argmax: IntArray, top: IntArray
    ) -> tuple[Float, Bool]:
        """Bounds [2, 4, n] of the four bins, and where they are exact [n]; −1 in
        ``argmax`` or ``top`` is no token."""
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
        """Σ p of the known among ``ids`` [n, q], and how many are unknown; −1 is no
        token and counts as neither."""
        total = np.zeros(len(ids))
        unknown = np.zeros(len(ids), np.intp)
        for column in range(ids.shape[1]):
            wanted = ids[:, column]
            match = self._ids == wanted[:, None]
            real = wanted != NO_TOKEN
            total += np.where(real, (self._probabilities * match).sum(axis=1), 0.0)
            unknown += real & ~match.any(axis=1)
        return total, unknown
