"""Fieller's interval of a ratio whose denominator may be near zero.

θ = a / b with a and b estimated from the same clusters is not rejected where
(a − θ b)² ≤ t² (v_aa − 2 θ v_ab + θ² v_bb), v the variances and covariance of the two
estimates and t Student's quantile with G − 1 degrees of freedom (Fieller 1954). The
set is an interval only where b is clearly not zero; otherwise it is unbounded, and the
ratio is undefined.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.special as special

from ldeval.compare.stats import DISPLAY_LEVEL, Float
from ldeval.records import Estimate


def fieller_estimate(
    numerator: Float,
    denominator: Float,
    *,
    unit: str,
    n: int,
    level: float = DISPLAY_LEVEL,
    missing: str = "the denominator is not clearly different from zero",
) -> Estimate:
    """a / b of two cluster means.

    Args:
        numerator, denominator: [G] linearised values of each cluster, whose means are a
            and b.

    Returns:
        NaN with ``missing`` where b's own interval at ``level`` contains 0.
    """
    clusters = len(numerator)
    if clusters < 2:
        reason = f"{clusters} cluster: no interval"
        return Estimate.undefined(reason, unit=unit, level=level, clusters=clusters)
    a, b = float(numerator.mean()), float(denominator.mean())
    spread = np.cov(np.stack([numerator, denominator]), ddof=1) / clusters
    t = float(special.stdtrit(clusters - 1, 0.5 + level / 2.0))
    # θ² (b² − t² v_bb) − 2 θ (a b − t² v_ab) + (a² − t² v_aa) ≤ 0
    square = b * b - t * t * spread[1, 1]
    if not square > 0:
        return Estimate.undefined(
            missing, unit=unit, level=level, n=n, clusters=clusters
        )
    middle = a * b - t * t * spread[0, 1]
    root = math.sqrt(max(middle**2 - square * (a * a - t * t * spread[0, 0]), 0.0))
    low, high = (middle - root) / square, (middle + root) / square
    value = a / b
    error = math.sqrt(
        max(
            spread[0, 0] - 2 * value * spread[0, 1] + value**2 * spread[1, 1],
            0.0,
        )
    ) / abs(b)
    return Estimate(value, low, high, error, level, n, clusters, unit)
