"""For how many workers a machine has room, as Ray counts it.

Apart from the cluster, which is asked what its machines have: a plan asks none.
"""

from __future__ import annotations

from collections.abc import Mapping

_WHOLE = 10_000
"""Ray counts in ten-thousandths: 1 / 0.1 is no whole number of times in floats."""


def fit(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How many workers a machine with so many CPUs and GPUs has room for.

    Part of a GPU is part of one: two workers of 0.6 do not share one, nor does a third
    get what is left of two.

    Args:
        node: what the machine has, by kind of resource.
        needs: what a worker takes, of one kind at least.
    """
    rooms = []
    for kind, need in needs.items():
        there = node.get(kind, 0)
        if kind == "GPU" and 0 < need < 1:
            whole, rest = divmod(_parts(there), _WHOLE)
            rooms.append(whole * times(1, need) + times(rest / _WHOLE, need))
        elif need:
            rooms.append(times(there, need))
    return min(rooms)


def times(there: float, each: float) -> int:
    """How often an amount goes into what is there."""
    return _parts(there) // max(1, _parts(each))


def _parts(amount: float) -> int:
    return round(amount * _WHOLE)
