"""Δ ln p of every stored token at each position, reduced to moments of a response.

Only the last checkpoint is read so closely, against the first, and only along chosen
and rejected: at position m, for the tokens i of the reference's top-k other than the
label, d_i = ln p_i(last) − ln p_i(first). Kept of each response: the within-position
moments of d on p_i and on ln p_i (for ``laws``); sums of d by bin of the earlier p_i
and on either side of the closed-form threshold τ = ‖π‖² − p_label (for ``richer``); and
over all kinds Σ_m δ_m² / (1 − 2 p_m + ‖π_m‖²) (for ``cross``).
"""

from __future__ import annotations

import numpy as np

from ldeval.compare.reference import DETAILED, RICHER_BINS, Reference
from ldeval.compare.stats import Float, sums_by
from ldeval.compare.stored import Bool, Index, top_logprobs
from ldeval.records import ScoreTable

MOMENTS = ("pp", "ll", "pl", "pd", "ld", "dd")
"""Within-position sums of products: p of the token, ln p, and d = Δ ln p."""


def detail_columns(
    chunk: ScoreTable, reference: Reference, rows: Index, here: Index, there: Index
) -> dict[str, Float]:
    """Moments of each response [r, …]; zero where nothing was stored.

    Args:
        rows: [r] row of the reference of each response; −1 where there is none.
        here, there: [n] positions of the shared tokens, here and in the reference.
    """
    owner = np.repeat(np.arange(len(chunk)), chunk.n_tokens)[here]
    columns = _normalised(chunk, reference, owner, here, there)
    if reference.top is None or chunk.tokens.top_ids is None:
        return columns
    kinds = chunk.kinds[owner]
    moments = np.zeros((len(chunk), len(MOMENTS)))
    richer = np.zeros((len(chunk), RICHER_BINS, 3))
    sides = np.zeros((len(chunk), 2, 2))
    valleys = np.zeros((len(chunk), 2))
    for kind in DETAILED:
        if kind not in reference.edges:
            continue
        kept = np.flatnonzero(kinds == kind)
        tokens = chunk.tokens.take(here[kept])
        top = reference.top[there[kept]]
        earlier = reference.detail[kind][_rank(reference, kind, there[kept])]
        before = earlier.astype(np.float64)
        change = top_logprobs(tokens, top) - before
        other = (top != reference.label[there[kept]][:, None]) & np.isfinite(change)
        change = np.where(other, change, 0.0)
        work = (owner[kept], before, change, other)
        _add(moments, work[0], _moments(*work[1:]))
        _add(richer, work[0], _by_bin(reference.edges[kind], *work[1:]))
        tau = _threshold(reference, there[kept])
        if tau is not None:
            _add(sides, work[0], _by_side(tau, *work[1:]))
            after = reference.diverged[there[kept]]
            _add(valleys, work[0], np.stack([after & (tau > 0), after], axis=1))
    found = {"moments": moments, "richer": richer}
    if reference.sq_norms is not None:
        found |= {"sides": sides, "valleys": valleys}
    return columns | found


def thresholds(reference: Reference, kind: str) -> Float:
    """τ at every position along ``kind``; empty without stored norms."""
    found = _threshold(reference, reference.positions_of(kind))
    return np.zeros(0) if found is None else found


def _normalised(
    chunk: ScoreTable, reference: Reference, owner: Index, here: Index, there: Index
) -> dict[str, Float]:
    if reference.sq_norms is None:
        return {}
    earlier = reference.logprobs[there].astype(np.float64)
    delta = chunk.tokens.logprobs[here].astype(np.float64) - earlier
    row_norm = 1.0 - 2.0 * np.exp(earlier) + reference.sq_norms[there]
    # ‖π‖² ≥ p², so the norm of row y of A is at least (1 − p)²; where p rounds to 1
    # the token cannot change to first order and the ratio is left out as 0/0
    value = np.where(row_norm > 1e-9, delta**2 / np.maximum(row_norm, 1e-9), 0.0)
    return {"normalised": sums_by(owner, value, len(chunk))}


def _threshold(reference: Reference, there: Index) -> Float | None:
    if reference.sq_norms is None:
        return None
    p = np.exp(reference.logprobs[there].astype(np.float64))
    return np.asarray(reference.sq_norms[there].astype(np.float64) - p)


def _rank(reference: Reference, kind: str, there: Index) -> Index:
    """Place of each position among those of its kind."""
    return np.searchsorted(reference.positions_of(kind), there)


def _add(total: Float, owner: Index, values: Float) -> None:
    np.add.at(total, owner, values)


def _moments(before: Float, change: Float, other: Bool) -> Float:
    """[n, 6] within-position sums of products, in the order of ``MOMENTS``."""
    count = np.maximum(other.sum(axis=1, keepdims=True), 1)

    def centred(values: Float) -> Float:
        kept = np.where(other, values, 0.0)
        return np.where(other, kept - kept.sum(axis=1, keepdims=True) / count, 0.0)

    p, ln_p, d = centred(np.exp(before)), centred(before), centred(change)
    pairs = ((p, p), (ln_p, ln_p), (p, ln_p), (p, d), (ln_p, d), (d, d))
    return np.stack([(a * b).sum(axis=1) for a, b in pairs], axis=1)


def _by_bin(edges: Float, before: Float, change: Float, other: Bool) -> Float:
    """[n, bins, 3] count, Σ ln p and Σ Δ ln p by bin of the earlier probability."""
    places = np.searchsorted(edges[1:-1], np.exp(before), side="left")
    found = np.zeros((len(before), RICHER_BINS, 3))
    for b in range(RICHER_BINS):
        mask = other & (places == b)
        found[:, b, 0] = mask.sum(axis=1)
        found[:, b, 1] = np.where(mask, before, 0.0).sum(axis=1)
        found[:, b, 2] = np.where(mask, change, 0.0).sum(axis=1)
    return found


def _by_side(tau: Float, before: Float, change: Float, other: Bool) -> Float:
    """[n, 2, 2] count and Σ Δ ln p of tokens above τ, and of the others."""
    above = np.exp(before) > tau[:, None]
    found = np.zeros((len(before), 2, 2))
    for side, mask in enumerate((other & above, other & ~above)):
        found[:, side, 0] = mask.sum(axis=1)
        found[:, side, 1] = np.where(mask, change, 0.0).sum(axis=1)
    return found
