"""Signs of repetition: does the model say less, and the same, wherever it speaks?

At the off-label positions of chosen, over one split: the ratio of mean entropies
(nats over nats) and the ratio of Simpson indices of the argmax ids, end over first.
The Simpson index λ = Σ_v (n_v / n)² is the chance that two positions drawn with
replacement have the same argmax. The thresholds for both are uncalibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from ldeval.compare.clusters import Term, cluster_labels, estimate
from ldeval.compare.digest import Digest
from ldeval.compare.logic import conjunct, is_above, is_below
from ldeval.compare.series import end_series
from ldeval.compare.stats import (
    Bootstrap,
    Float,
    Replicate,
    studentized_estimate,
)
from ldeval.compare.stored import Bool, Index
from ldeval.compare.thresholds import Thresholds
from ldeval.records import Conjunct, Estimate, IntArray

RATIO = "ratio"
NO_POSITION = "no off-label position along chosen"
SIMPSON_REPLICATES = 999
"""Fewer than elsewhere: each replicate counts every id anew."""
_COLUMNS = 64


@dataclass(frozen=True)
class RepetitionInput:
    """One split's responses along chosen, at every checkpoint."""

    tables: Sequence[Digest]
    """[C] in order of step; none where only means are known."""
    rows: Index
    """[C, R] row of each response of the first table, −1 where not scored."""
    chosen: Bool
    """[R] the split's responses of kind chosen."""
    window: int
    """W, how many of the last checkpoints are averaged."""
    bootstrap: Bootstrap
    thresholds: Thresholds


Persistent = Callable[[Estimate, Callable[[], Float]], Estimate]
"""Widens an estimate by the wandering of its path [C], where that is assessed."""


def repetition_conjuncts(
    evidence: RepetitionInput, persistent: Persistent
) -> tuple[Conjunct, Conjunct]:
    """The two conditions of the verdict ``repetition``."""
    limits = evidence.thresholds
    entropy = _entropy_ratio(evidence, persistent)
    simpson = _simpson_ratio(evidence, persistent)
    return (
        conjunct(
            "entropy",
            f"mean entropy off the label, end over first, below {limits.entropy_ratio}",
            is_below(entropy, limits.entropy_ratio),
            {"entropy ratio": entropy},
        ),
        conjunct(
            "concentration",
            "Simpson index of the argmax ids, end over first, above "
            f"{limits.simpson_ratio}",
            is_above(simpson, limits.simpson_ratio),
            {"Simpson index ratio": simpson},
        ),
    )


def _missing_column(evidence: RepetitionInput, *columns: str) -> str | None:
    """Which of the columns the first or one of the last tables lacks."""
    if not evidence.tables:
        return "only means were imported"
    for table in (evidence.tables[0], *evidence.tables[-evidence.window :]):
        for column in columns:
            if column not in table.stored:
                return f"the column {column} is missing at step {table.manifest.step}"
    return None


def _undefined(reason: str, evidence: RepetitionInput) -> Estimate:
    return Estimate.undefined(reason, unit=RATIO, level=evidence.thresholds.level)


def _kept(evidence: RepetitionInput) -> Bool:
    """[R] responses along chosen of the split with an off-label position, scored at the
    first and at all of the last tables."""
    keep = evidence.chosen & (_counts(evidence) > 0)
    scored = evidence.rows >= 0
    return np.asarray(keep & scored[0] & scored[-evidence.window :].all(axis=0))


def _counts(evidence: RepetitionInput) -> Float:
    """[R] off-label positions of each response."""
    return np.nan_to_num(evidence.tables[0].column("positions_off"))


def _term(evidence: RepetitionInput, kept: Bool, values: Float) -> Term:
    first = evidence.tables[0]
    texts = {"chosen": first.text_hashes[kept]}
    weights = values[kept]
    return Term(first.probe_ids[kept], texts, weights, weights, missing=NO_POSITION)


def _entropy_ratio(evidence: RepetitionInput, persistent: Persistent) -> Estimate:
    """Σ H(end) / Σ H(first) over the off-label positions."""
    reason = _missing_column(evidence, "argmax_ids", "entropies")
    if reason is not None:
        return _undefined(reason, evidence)
    kept = _kept(evidence)
    sums = np.full((len(evidence.tables), int(kept.sum())), np.nan)
    for column, table, rows in zip(sums, evidence.tables, evidence.rows, strict=True):
        index = rows[kept]
        values = table.column("entropy_off")[np.maximum(index, 0)]
        column[:] = np.where(index >= 0, values, np.nan)
    whole = np.zeros(len(kept))
    whole[kept] = sums[0]
    series = end_series(_term(evidence, kept, whole), sums, evidence.window)
    found = estimate(
        [series.term],
        unit=RATIO,
        bootstrap=evidence.bootstrap,
        level=evidence.thresholds.level,
    )
    return persistent(found, series.path)


def _simpson_ratio(evidence: RepetitionInput, persistent: Persistent) -> Estimate:
    """Mean Simpson index at the end over that at the first checkpoint."""
    reason = _missing_column(evidence, "argmax_ids")
    if reason is not None:
        return _undefined(reason, evidence)
    kept, counts = _kept(evidence), _counts(evidence)
    if not kept.any():
        return _undefined(NO_POSITION, evidence)
    (labels,), _ = cluster_labels([_term(evidence, kept, counts)])
    cluster = np.full(len(kept), -1)
    cluster[kept] = labels
    rows = np.flatnonzero(evidence.tables[0].kinds == "chosen")
    owner = np.repeat(rows, counts[rows].astype(np.intp))
    blank = np.full(len(owner), -1)
    ids = [
        blank if table.argmax_ids is None else table.argmax_ids
        for table in evidence.tables
    ]
    matrices = argmax_counts(np.stack(ids), cluster[owner])
    found = simpson_ratio(
        matrices[0],
        matrices[-evidence.window :],
        n=int(kept.sum()),
        bootstrap=Bootstrap(evidence.bootstrap.seed, SIMPSON_REPLICATES),
        level=evidence.thresholds.level,
    )
    return persistent(found, lambda: _path(matrices))


def argmax_counts(ids: IntArray, cluster: IntArray) -> list[csr_array]:
    """How often each id is the argmax in each cluster, one matrix a checkpoint.

    Args:
        ids: [C, P] argmax ids; −1 is not counted.
        cluster: [P] cluster of each position; −1 is not counted.

    Returns:
        C matrices [G, distinct ids].
    """
    distinct, codes = np.unique(ids, return_inverse=True)
    shape = (int(cluster.max()) + 1, len(distinct))
    matrices = []
    for column, code in zip(ids, codes.reshape(ids.shape), strict=True):
        kept = (column >= 0) & (cluster >= 0)
        ones = np.ones(int(kept.sum()))
        matrices.append(csr_array((ones, (cluster[kept], code[kept])), shape=shape))
    return matrices


def simpson_ratio(
    before: csr_array,
    after: Sequence[csr_array],
    *,
    n: int,
    bootstrap: Bootstrap,
    level: float,
) -> Estimate:
    """Mean of λ over ``after``, divided by λ of ``before``.

    λ = Σ_v n_v² / n² with n_v = Σ_g n_gv is linearised as
    e_g = G (2 Σ_v n_gv n_v / n² − 2 λ n_g / n).

    Args:
        before, after: counts of argmax ids, [G, ids], alike in shape.
        n: responses behind them.
    """
    matrices = [before, *after]
    clusters = before.shape[0]
    values, influence = _ratio_and_influence(matrices, np.ones((clusters, 1)))
    return studentized_estimate(
        float(values[0]),
        influence[:, 0],
        np.asarray(before.sum(axis=1), np.float64),
        float(clusters),
        lambda order: _replicate([matrix[order] for matrix in matrices]),
        unit=RATIO,
        n=n,
        bootstrap=bootstrap,
        level=level,
    )


def _replicate(matrices: Sequence[csr_array]) -> Replicate:
    clusters = matrices[0].shape[0]

    def replicate(weights: Float) -> tuple[Float, Float]:
        values, squares = [], []
        for start in range(0, len(weights), _COLUMNS):
            drawn = weights[start : start + _COLUMNS].T
            ratio, influence = _ratio_and_influence(matrices, drawn)
            values.append(ratio)
            squares.append((drawn * influence**2).sum(axis=0))
        scale = clusters * (clusters - 1)
        return np.concatenate(values), np.concatenate(squares) / scale

    return replicate


def _ratio_and_influence(
    matrices: Sequence[csr_array], weights: Float
) -> tuple[Float, Float]:
    """Ratios [b] and linearised values [G, b] for weights [G, b]."""
    first, *last = [_simpson(matrix, weights) for matrix in matrices]
    value = np.mean([index for index, _ in last], axis=0) / first[0]
    influence = np.mean([linear for _, linear in last], axis=0) - value * first[1]
    return value, influence / first[0]


def _simpson(matrix: csr_array, weights: Float) -> tuple[Float, Float]:
    """λ [b] and its linearised values [G, b]."""
    by_id = matrix.T @ weights
    sizes = np.asarray(matrix.sum(axis=1), np.float64)
    total = sizes @ weights
    index = (by_id**2).sum(axis=0) / total**2
    linear = (matrix @ by_id) / total**2 - index * sizes[:, None] / total
    return np.asarray(index), np.asarray(2.0 * len(weights) * linear)


def _path(counts: Sequence[csr_array]) -> Float:
    """[C] λ at each checkpoint over λ at the first; NaN where nothing was stored."""
    path = np.full(len(counts), np.nan)
    for step, matrix in enumerate(counts):
        if matrix.nnz:
            by_id = np.asarray(matrix.sum(axis=0), np.float64)
            path[step] = (by_id**2).sum() / by_id.sum() ** 2
    return np.asarray(path / path[0])
