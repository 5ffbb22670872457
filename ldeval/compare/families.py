"""Which p-values are adjusted together.

First → last: the stored kinds of one split, by Holm. Successive pairs: all of them,
with all stored kinds of one split, by Benjamini and Hochberg, since many are looked at
and none is a claim. Derived argmax rows belong to no family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

from ldeval.compare.significance import benjamini_hochberg, holm
from ldeval.records import KIND_BY_NAME, PairComparison, Split


def adjusted(pair: PairComparison) -> PairComparison:
    """First → last with Holm's adjusted p-values."""
    return _replaced([pair], holm)[0]


def adjusted_pairs(pairs: Sequence[PairComparison]) -> tuple[PairComparison, ...]:
    """Successive pairs with Benjamini and Hochberg's adjusted p-values."""
    return tuple(_replaced(pairs, benjamini_hochberg))


def _replaced(
    pairs: Sequence[PairComparison],
    adjust: Callable[[Sequence[float]], list[float]],
) -> list[PairComparison]:
    found = [list(pair.changes) for pair in pairs]
    for split in get_args(Split):
        places = [
            (i, j)
            for i, changes in enumerate(found)
            for j, change in enumerate(changes)
            if change.split == split and change.kind in KIND_BY_NAME
        ]
        values = adjust([found[i][j].p_value for i, j in places])
        for (i, j), value in zip(places, values, strict=True):
            found[i][j] = replace(found[i][j], p_adjusted=value)
    return [
        replace(pair, changes=tuple(changes))
        for pair, changes in zip(pairs, found, strict=True)
    ]
