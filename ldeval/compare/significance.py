"""p-values of paired changes, and their adjustment for how many were looked at.

The paired permutation test asks whether a change is symmetric about zero: under that
hypothesis each cluster's sum of changes D_g keeps its size and takes either sign with
equal chance, so

    p = #{ε ∈ {−1, 1}^G : |Σ ε_g D_g| ≥ |Σ D_g|} / 2^G,

counted in full up to ``EXACT_CLUSTERS`` clusters and over random draws beyond, the
observed signs included (Phipson & Smyth 2010). Every cluster counts by its sum, the
numerator of Δtok. Holm's step-down method (1979) bounds the chance of any false
rejection, Benjamini and Hochberg's (1995) the expected share of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ldeval.compare.stats import Float

DRAWS = 9999
EXACT_CLUSTERS = 13
"""Up to so many clusters all 2^G signs are tried."""

_ROUNDING = 1e-10


class SignFlips:
    """Random signs, the same for every test over the same number of clusters.

    Args:
        seed: non-negative.
        draws: how many random sign vectors there are beyond ``EXACT_CLUSTERS``.
    """

    def __init__(self, seed: int = 0, draws: int = DRAWS) -> None:
        self.seed = seed
        self.draws = draws
        self._drawn: dict[int, npt.NDArray[np.int8]] = {}

    def p_value(self, sums: Float) -> float:
        """Two-sided p of Σ D = 0.

        Args:
            sums: D, [G] one a cluster; NaN below one cluster.
        """
        clusters = len(sums)
        if not clusters:
            return math.nan
        # signs go by position: an order by size makes the result independent of names
        ordered = np.sort(np.abs(sums))
        observed = abs(float(sums.sum())) * (1.0 - _ROUNDING)
        if clusters <= EXACT_CLUSTERS:
            reached = np.abs(_all_signs(clusters) @ ordered) >= observed
            return float(reached.mean())
        reached = np.abs(self._signed_sums(ordered)) >= observed
        return float((1 + reached.sum()) / (1 + self.draws))

    def _signed_sums(self, ordered: Float) -> Float:
        signs = self._signs(len(ordered))
        totals = np.empty(self.draws)
        # blocks keep the converted signs small
        rows = max(1, 4_000_000 // len(ordered))
        for start in range(0, self.draws, rows):
            block = signs[start : start + rows].astype(np.float64)
            totals[start : start + rows] = block @ ordered
        return totals

    def _signs(self, clusters: int) -> npt.NDArray[np.int8]:
        if clusters not in self._drawn:
            generator = np.random.default_rng([self.seed, clusters, 1])
            drawn = generator.integers(0, 2, (self.draws, clusters), np.int8)
            if len(self._drawn) > 8:
                self._drawn.clear()
            self._drawn[clusters] = (2 * drawn - 1).astype(np.int8)
        return self._drawn[clusters]


def _all_signs(clusters: int) -> Float:
    codes = np.arange(2**clusters)[:, None] >> np.arange(clusters)
    return np.asarray(2.0 * (codes & 1) - 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values; NaN stays NaN and is no member of the family."""
    return _stepwise(p_values, down=True)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p-values; NaN as in :func:`holm`."""
    return _stepwise(p_values, down=False)


def _stepwise(p_values: Sequence[float], *, down: bool) -> list[float]:
    found = np.array(p_values, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(found))
    order = known[np.argsort(found[known], kind="stable")]
    count = len(order)
    rank = np.arange(count)
    if down:
        adjusted = np.maximum.accumulate(found[order] * (count - rank))
    else:
        scaled = found[order] * count / (rank + 1)
        adjusted = np.minimum.accumulate(scaled[::-1])[::-1]
    found[order] = np.minimum(adjusted, 1.0)
    return [float(value) if np.isfinite(value) else math.nan for value in found]
