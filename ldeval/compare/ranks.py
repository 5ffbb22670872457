"""Spearman's rank correlation and its interval; ties share their mean rank."""

from __future__ import annotations

import math

import numpy as np
import scipy.special as special

from ldeval.compare.stats import DISPLAY_LEVEL, Float
from ldeval.records import Estimate


def rank_correlation(x: Float, y: Float) -> float:
    """Spearman's rank correlation of two columns [R]; NaN where either is constant."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def rank_estimate(
    x: Float, y: Float, clusters: int, *, level: float = DISPLAY_LEVEL
) -> Estimate:
    """Spearman's ρ with the interval of Bonett and Wright (2000).

    tanh(artanh ρ ± z √((1 + ρ²/2) / (G − 3))), G the clusters: rows of one cluster
    count as one.

    Args:
        x, y: [R].
        clusters: G.
    """
    value, unit = rank_correlation(x, y), "dimensionless"
    if math.isnan(value):
        reason = "a constant has no ranks"
        return Estimate.undefined(
            reason, unit=unit, level=level, n=len(x), clusters=clusters
        )
    if clusters < 4:
        reason = f"{clusters} clusters: no interval"
        nan = math.nan
        return Estimate(value, nan, nan, nan, level, len(x), clusters, unit, reason)
    error = math.sqrt((1.0 + value**2 / 2.0) / (clusters - 3))
    reach = float(special.ndtri(0.5 + level / 2.0)) * error
    middle = math.atanh(max(-1.0 + 1e-15, min(1.0 - 1e-15, value)))
    low, high = math.tanh(middle - reach), math.tanh(middle + reach)
    return Estimate(
        value, low, high, error * (1 - value**2), level, len(x), clusters, unit
    )


def _ranks(column: Float) -> Float:
    """Ranks from 1, ties sharing their mean rank."""
    _, place, counts = np.unique(column, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - 0.5 * (counts - 1))[place])
