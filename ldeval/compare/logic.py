"""Three-valued logic of the decision table: true, false, or not settled (None).

A condition that an interval reaches across, or that something missing leaves open, is
None; it makes a conjunction undecided unless another part is false.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ldeval.compare.stats import state
from ldeval.records import Conjunct, Estimate, Split, State, Truth, Verdict


def truth(value: bool | None) -> Truth:
    """The word for a three-valued truth."""
    if value is None:
        return "undecided"
    return "holds" if value else "does_not_hold"


def all_hold(values: Iterable[bool | None]) -> bool | None:
    """False if any is false, true if all are true, otherwise None."""
    found = list(values)
    if any(value is False for value in found):
        return False
    return None if any(value is None for value in found) else True


def opposite(value: bool | None) -> bool | None:
    """Not, leaving None as it is."""
    return None if value is None else not value


def is_state(estimate: Estimate, margin: float, wanted: State) -> bool | None:
    """Whether the estimate is up (or down, flat); None where it is unclear."""
    found = state(estimate, margin)
    return None if found == "unclear" else found == wanted


def is_below(estimate: Estimate, bound: float) -> bool | None:
    """Whether the whole interval lies below ``bound``; false where it lies above."""
    if estimate.high < bound:
        return True
    return False if estimate.low >= bound else None


def is_above(estimate: Estimate, bound: float) -> bool | None:
    """Whether the whole interval lies above ``bound``; false where it lies below."""
    if estimate.low > bound:
        return True
    return False if estimate.high <= bound else None


def value_of(conjunct: Conjunct) -> bool | None:
    """The three-valued truth of a conjunct."""
    return {"holds": True, "does_not_hold": False}.get(conjunct.truth)


def conjunct(
    name: str,
    statement: str,
    value: bool | None,
    evidence: Mapping[str, Estimate],
    reason: str | None = None,
) -> Conjunct:
    """A conjunct; an undecided one is given the reason that its evidence shows."""
    if value is None and reason is None:
        reason = unsettled(evidence)
    return Conjunct(name, statement, truth(value), dict(evidence), reason)


def moved(
    name: str, statement: str, label: str, estimate: Estimate, m: float, wanted: State
) -> Conjunct:
    """A conjunct that asks for one estimate's state."""
    value = is_state(estimate, m, wanted)
    return conjunct(name, statement, value, {label: estimate})


def verdict(
    name: str,
    split: Split,
    conjuncts: Sequence[Conjunct],
    too_little: str | None,
    least: int,
    details: Mapping[str, str] | None = None,
) -> Verdict:
    """Combine conjuncts; undecided throughout where there is too little to go on.

    Args:
        too_little: why nothing can be decided here, or None.
        least: clusters below which an estimate settles no conjunct.
    """
    conjuncts = [_supported(part, least) for part in conjuncts]
    found = truth(all_hold(map(value_of, conjuncts)))
    reason = None
    if too_little is not None:
        found, reason = "undecided", too_little
    elif found == "undecided":
        open_ones = [part for part in conjuncts if part.truth == "undecided"]
        reason = "; ".join(f"{part.name}: {part.reason}" for part in open_ones)
    return Verdict(name, found, split, tuple(conjuncts), reason, dict(details or {}))


def _supported(part: Conjunct, least: int) -> Conjunct:
    """The conjunct, undecided where it rests on too few clusters; what is false for a
    reason that no number shows stays so, and means without prompts have no clusters."""
    few = {k: e.clusters for k, e in part.evidence.items() if 0 < e.clusters < least}
    if not few or part.truth == "undecided" or (part.reason and not value_of(part)):
        return part
    named = ", ".join(f"{label}: {clusters}" for label, clusters in few.items())
    reason = f"too few clusters of prompts, at least {least} are needed ({named})"
    return replace(part, truth="undecided", reason=reason)


def unsettled(evidence: Mapping[str, Estimate]) -> str:
    """Why the estimates leave a condition open."""
    undefined = [
        f"{label}: {estimate.reason or 'undefined'}"
        for label, estimate in evidence.items()
        if not math.isfinite(estimate.low)
    ]
    if undefined:
        return "; ".join(undefined)
    names = ", ".join(evidence)
    return f"the interval is too wide to tell ({names})"
