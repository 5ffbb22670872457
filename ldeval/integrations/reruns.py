"""Rows of one run among those of a rerun that wrote into the same file.

A file opened in append mode holds no step. But every run begins with an evaluation of
the same weights, so a later row that equals the first begins another run, and a rerun
with the same data goes through nearly the same rows again. Rows are given out one
after another: to the run where the row is nearest to what another run had at that
place, otherwise to the run whose last row it is nearest to.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]

_SAME = 1e-4
"""Relative difference below which two evaluations are of the same weights."""


def separate_reruns(matrix: Rows) -> tuple[list[int], list[str]]:
    """The longest run among the rows.

    Args:
        matrix: [rows, columns] values in file order; NaN is not compared.

    Returns:
        The row numbers of that run, in order, and remarks on what was left out.
    """
    runs = [[0]]
    for row in range(1, len(matrix)):
        if _distance(matrix, row, 0) < _SAME:
            runs.append([row])
        else:
            _nearest(matrix, runs, row).append(row)
    kept = max(runs, key=len)
    if len(runs) == 1:
        return kept, []
    left = sorted(set(range(len(matrix))) - set(kept))
    shown = ", ".join(str(row + 1) for row in left[:12])
    more = f" and {len(left) - 12} more" if len(left) > 12 else ""
    return kept, [
        f"{len(runs)} runs wrote into this file: the longest is kept, "
        f"{len(left)} rows of the others are left out (lines {shown}{more})"
    ]


def _nearest(matrix: Rows, runs: list[list[int]], row: int) -> list[int]:
    """The run that the row most likely continues.

    By its distance to what a longer run had at the place that would be the row's, where
    it is clearly nearer to that than to the run's own last row; otherwise by the
    distance to the last row. Of equal ones a match with a longer run comes first, then
    the run that was continued last.
    """

    def rank(run: list[int]) -> tuple[float, int, int]:
        own = _distance(matrix, row, run[-1])
        expected = [other[len(run)] for other in runs if len(other) > len(run)]
        found = min((_distance(matrix, row, at) for at in expected), default=own)
        if expected and found < 0.5 * own:
            return found, 0, -run[-1]
        return own, 1, -run[-1]

    return min(runs, key=rank)


def _distance(matrix: Rows, one: int, other: int) -> float:
    """Largest relative difference over the columns that both rows hold."""
    a, b = matrix[one], matrix[other]
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        return float("inf")
    scale = np.maximum(np.abs(b[known]), 1e-12)
    return float(np.max(np.abs(a[known] - b[known]) / scale))
