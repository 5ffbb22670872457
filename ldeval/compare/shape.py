"""Rise, fall and slope of one kind's path through a run.

With L_c = Σ_i Δsum_i(c) / Σ_i n_i the path of a kind since the first checkpoint
(nats/token), rise = L_peak − L_first and fall = L_peak − L_last. The highest point of
a noisy path is above its true peak, so the prompts are split in two: each half is
measured at the peak of the other half's path, and the two halves are taken together.
Then noise alone gives neither rise nor fall on average, where the plain maximum always
gives both. The halves follow from the response texts, not from names or order.

slope is the least-squares slope of L on the place in the run, 0 at the first step and
1 at the last: Σ_c w_c L_c with w_c = (x_c − x̄) / Σ (x − x̄)². All three are ratios of
sums over prompts, with bootstrap-t intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ldeval.compare.clusters import Labels, Term, cluster_labels, estimate
from ldeval.compare.series import Series
from ldeval.compare.stats import DISPLAY_LEVEL, Bootstrap, Float, sums_by
from ldeval.records import Estimate

NATS_PER_TOKEN = "nats/token"
PEAK_REPLICATES = 999


@dataclass(frozen=True)
class Shape:
    """A path's features, and where its peak lies."""

    peak: int
    """Number of the checkpoint at which the whole path is highest."""
    rise: Estimate
    fall: Estimate
    slope: Estimate


def shape(
    series: Series,
    steps: Sequence[int],
    bootstrap: Bootstrap,
    level: float = DISPLAY_LEVEL,
) -> Shape:
    """The features of a series over the responses scored at every checkpoint.

    Args:
        steps: [C].
    """
    whole = series.at(np.asarray(np.isfinite(series.changes).all(axis=0)))
    changes, term = whole.changes, whole.term
    peak = int(np.argmax(whole.path())) if len(term) else 0
    top = np.zeros(len(term))
    for fold, other in _folds(term):
        path = Series(term.at(other), changes[:, other]).path()
        at = int(np.argmax(path)) if np.isfinite(path).any() else peak
        top[fold] = changes[at, fold]

    def over(numerators: Float) -> Estimate:
        return estimate(
            [replace(term, numerators=numerators)],
            unit=NATS_PER_TOKEN,
            bootstrap=bootstrap,
            level=level,
        )

    return Shape(
        peak=peak,
        rise=over(top - changes[0]),
        fall=over(top - changes[-1]),
        slope=over(slope_weights(steps) @ changes),
    )


def slope_weights(steps: Sequence[int]) -> Float:
    """w with Σ w L the least-squares slope of L on the place in the run [C]."""
    place = np.asarray(steps, np.float64)
    place = (place - place[0]) / (place[-1] - place[0])
    centred = place - place.mean()
    return np.asarray(centred / (centred @ centred))


def _folds(term: Term) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Two halves of the rows, by mask, whole clusters each; each beside the other."""
    if not len(term):
        return []
    (labels,), clusters = cluster_labels([term])
    place = np.empty(clusters, np.intp)
    place[_content_order(term, labels, clusters)] = np.arange(clusters)
    odd = place[labels] % 2 == 1
    return [(odd, ~odd), (~odd, odd)] if clusters > 1 else [(odd | True, odd | True)]


def _content_order(term: Term, labels: Labels, clusters: int) -> np.ndarray:
    """Clusters in the order of their first text; names and rows do not matter."""
    texts = next(iter(term.texts.values()))
    rows = np.argsort(texts, kind="stable")
    _, first = np.unique(labels[rows], return_index=True)
    assert len(first) == clusters
    return np.argsort(first, kind="stable")


def peak_interval(series: Series, seed: int) -> tuple[int, int]:
    """2.5% and 97.5% quantiles of the peak's place over resampled clusters."""
    whole = series.at(np.asarray(np.isfinite(series.changes).all(axis=0)))
    if not len(whole.term):
        return 0, len(series.changes) - 1
    (labels,), clusters = cluster_labels([whole.term])
    order = _content_order(whole.term, labels, clusters)
    columns = np.stack(
        [
            sums_by(labels, column, clusters)
            for column in (*whole.changes, whole.term.denominators)
        ],
        axis=1,
    )[order]
    peaks = []
    for weights in Bootstrap(seed, PEAK_REPLICATES).weights(clusters):
        sums = weights @ columns
        peaks.append(np.argmax(sums[:, :-1] / sums[:, -1:], axis=1))
    places = np.sort(np.concatenate(peaks))
    low, high = np.quantile(places, [0.025, 0.975], method="nearest")
    return int(low), int(high)
