"""Sentences that follow from the numbers, and from nothing else.

A direction is named only where the whole interval lies beyond the noise floor; an
interval that contains zero is said to leave the direction open. The sentences are
plain text with a true minus sign; whoever prints them escapes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from ldeval.compare.levels import FLOOR_SHARE
from ldeval.records import (
    SPLIT_NAMES,
    Comparison,
    Estimate,
    Flow,
    KindChange,
    Margin,
    PairComparison,
    Split,
)
from ldeval.report.rounding import count, number, percent, quote

Direction = Literal["rose", "fell", "flat", "unclear", "undefined"]

SPLITS: tuple[Split, ...] = ("trained", "heldout")

ARGMAX_PREFIX = "argmax:"
FROZEN_PREFIX = "frozen:"
"""Kinds that begin with either are derived, and are never evidence."""

_FLOW_WORDS: Mapping[Direction, str] = {
    "rose": "gained,",
    "fell": "lost,",
    "flat": "did not change by more than {floor:g},",
    "unclear": "moved in no clear direction,",
    "undefined": "is",
}
_FLOW_BINS = (
    ("label", "the label"),
    ("argmax", "the reference argmax"),
    ("top", "the rest of the reference top-k"),
    ("tail", "the tail"),
)


def direction(estimate: Estimate, floor: float) -> Direction:
    """The word that an interval allows.

    Args:
        estimate: A change, after − before.
        floor: Changes inside ± this are not called changes; NaN counts as 0.
    """
    floor = 0.0 if math.isnan(floor) else floor
    if any(map(math.isnan, (estimate.value, estimate.low, estimate.high))):
        return "undefined"
    if estimate.low > floor:
        return "rose"
    if estimate.high < -floor:
        return "fell"
    return "flat" if -floor <= estimate.low and estimate.high <= floor else "unclear"


def doubt(estimate: Estimate) -> str:
    """Why an unclear estimate names no direction."""
    if estimate.low > 0 or estimate.high < 0:
        return "too near the noise floor to be called a change"
    return "the direction is not clear"


def is_argmax(kind: str) -> bool:
    """Whether the kind is a derived argmax along another one."""
    return kind.startswith((ARGMAX_PREFIX, FROZEN_PREFIX))


def split_sentences(
    pair: PairComparison, split: Split, floor: float, flow_floor: float
) -> tuple[str, ...]:
    """Everything that the numbers of one split say, most general first.

    Args:
        pair: The two checkpoints, usually the first and the last.
        split: Which probes.
        floor: The noise floor, nats/token.
        flow_floor: That of flows, probability/token.
    """
    changes = [c for c in pair.changes if c.split == split]
    kinds = [c for c in changes if not is_argmax(c.kind)]
    if not kinds:
        return (f"No {SPLIT_NAMES[split]} probes were compared.",)
    by_kind = {c.kind: c for c in changes}
    preferred = [by_kind[k] for k in ("chosen", "rejected") if k in by_kind]
    return (
        *overview_sentences(kinds, floor),
        *(change_sentence(c, floor) for c in preferred),
        *_margin_sentences(pair, split, preferred, floor),
        *_flow_sentences(pair, split, flow_floor, rejected="rejected" in by_kind),
        *(argmax_sentence(c, floor) for c in changes if is_argmax(c.kind)),
    )


# ---------------------------------------------------------------------------- kinds


def overview_sentences(changes: Sequence[KindChange], floor: float) -> tuple[str, ...]:
    """Which kinds rose, which fell, and which are unclear, per token."""
    groups: dict[Direction, list[KindChange]] = {}
    for change in changes:
        groups.setdefault(direction(change.delta_tok, floor), []).append(change)
    total = len(changes)
    sentences = [
        _moved("Rose", groups.get("rose", []), total),
        _moved("Fell", groups.get("fell", []), total),
    ]
    leads: tuple[tuple[Direction, str], ...] = (
        ("flat", "No change beyond the noise floor"),
        ("unclear", "Not clear"),
    )
    for key, lead in leads:
        if found := groups.get(key):
            names = ", ".join(c.kind for c in found)
            sentences.append(f"{lead}: {len(found)} of {total} kinds: {names}.")
    for change in groups.get("undefined", []):
        sentences.append(f"{change.kind}: {quote(change.delta_tok)}.")
    return tuple(sentences)


def _moved(lead: str, changes: Iterable[KindChange], total: int) -> str:
    ordered = sorted(changes, key=lambda c: -abs(c.delta_tok.value))
    if not ordered:
        return f"{lead}: none of {count(total, 'kind')}."
    first, *rest = ordered
    text = f"{lead}: {len(ordered)} of {count(total, 'kind')}"
    text += f"{', most first' if rest else ''}: {first.kind}, {quote(first.delta_tok)}"
    if rest:
        text += "; then " + ", ".join(c.kind for c in rest)
    return f"{text}."


def change_sentence(change: KindChange, floor: float) -> str:
    """One kind in words: direction by token, amount by response and by token."""
    amounts = f"{quote(change.delta_sum)}; {quote(change.delta_tok)}"
    return (
        f"{change.kind}{_verb(change.delta_tok, floor)}: {amounts}. "
        f"It fell for {percent(change.share_fell)} of "
        f"{count(change.n, 'prompt')}{_disagreement(change, floor)}."
    )


def _verb(estimate: Estimate, floor: float) -> str:
    word = direction(estimate, floor)
    if word == "unclear":
        return f", {doubt(estimate)}"
    return {
        "rose": " rose",
        "fell": " fell",
        "flat": " did not change beyond the noise floor",
        "undefined": ", direction undefined",
    }[word]


def _disagreement(change: KindChange, floor: float) -> str:
    """A warning where the sum does not go the way that the token mean goes."""
    per_token = direction(change.delta_tok, floor)
    in_sum = direction(change.delta_sum, 0.0)
    if per_token in ("rose", "fell") and in_sum != per_token:
        return ", and the sum per response does not clearly go the same way"
    return ""


def _margin_sentences(
    pair: PairComparison, split: Split, preferred: Sequence[KindChange], floor: float
) -> tuple[str, ...]:
    """The margin with the noise floor of a response: the floor times its tokens."""
    tokens = sum(change.mean_tokens for change in preferred) / max(len(preferred), 1)
    found = (margin for margin in pair.margins if margin.split == split)
    return tuple(margin_sentence(margin, floor * tokens) for margin in found)


def margin_sentence(margin: Margin, floor: float) -> str:
    """Chosen − rejected in words; its direction is that of the sum.

    Args:
        margin: The change of s(chosen) − s(rejected), on which the losses act.
        floor: The noise floor of a response, nats/response.
    """
    text = f"The margin (chosen − rejected){_verb(margin.delta_sum, floor)}: "
    text += f"{quote(margin.delta_sum)}; {quote(margin.delta_tok)}"
    in_sum = direction(margin.delta_sum, floor)
    if in_sum in ("rose", "fell") and direction(margin.delta_tok, 0.0) != in_sum:
        text += ", and per token it does not clearly go the same way"
    return f"{text}."


def argmax_sentence(change: KindChange, floor: float) -> str:
    """The derived argmax along a kind: shown, never evidence."""
    frozen = change.kind.startswith(FROZEN_PREFIX)
    along = change.kind.removeprefix(ARGMAX_PREFIX).removeprefix(FROZEN_PREFIX)
    whose = "first checkpoint's argmax" if frozen else "argmax"
    return (
        f"Shown, not used as evidence: the {whose} along {along}"
        f"{_verb(change.delta_tok, floor)}: {quote(change.delta_tok)}."
    )


# ----------------------------------------------------------------------------- flow


def _flow_sentences(
    pair: PairComparison, split: Split, floor: float, *, rejected: bool
) -> tuple[str, ...]:
    flows = [f for f in pair.flows if f.split == split and f.kind == "rejected"]
    if rejected and not flows:
        return (
            "Where the mass of the rejected tokens went is not known: the comparison "
            "holds no flow along rejected.",
        )
    shares = [share_sentence(f) for f in flows if f.stratum == "all"]
    return (*shares, *(flow_sentence(f, floor) for f in flows if f.stratum == "off"))


def share_sentence(flow: Flow) -> str:
    """Of what the tokens of one kind lost, where it went, net."""
    shares = net_shares(flow)
    if not shares:
        return (
            f"The tokens of {flow.kind} did not clearly lose or gain probability, so "
            "there are no shares of it."
        )
    lost = flow.label.value < 0
    verb, went = ("lost", "went to") if lost else ("gained", "came from")
    parts = [
        f"{percent(shares[name])} net {went} {words}"
        for name, words in _FLOW_BINS
        if name in shares
    ]
    return (
        f"Of the probability that the tokens of {flow.kind} {verb}, over all "
        f"{count(flow.positions, 'position')}: {', '.join(parts)}."
    )


def flow_sentence(flow: Flow, floor: float) -> str:
    """Where the mass went at the off-label positions along one kind.

    Args:
        floor: Changes inside ± this are not called changes, probability/token.
    """
    parts = []
    for name, words in _FLOW_BINS:
        estimate: Estimate = getattr(flow, name)
        verb = _FLOW_WORDS[direction(estimate, floor)].format(floor=floor)
        parts.append(f"{words} {verb} {quote(estimate)}")
    text = (
        f"At the {count(flow.positions, 'off-label position')} along {flow.kind}: "
        f"{'; '.join(parts)}."
    )
    if shares := net_shares(flow):
        named = ", ".join(f"{_BIN_WORDS[b]} {percent(s)}" for b, s in shares.items())
        whole = "lost" if flow.label.value < 0 else "gained, and who paid it"
        text += f" Net share of what the label {whole}: {named}."
    if flow.exact_share < 1:
        text += f" {percent(flow.exact_share)} of the positions are exact, the rest "
        text += "bounded."
    return text


_BIN_WORDS = {"argmax": "argmax", "top": "rest of top-k", "tail": "tail"}


def net_shares(flow: Flow) -> dict[str, float]:
    """Share of the label's loss that each other bin took, net, or of its gain that the
    bin paid; may be negative.

    Empty where the label's interval contains zero: a share of a loss that is not
    clear is not defined.
    """
    found = {
        name: getattr(flow, f"{name}_share").value for name in ("argmax", "top", "tail")
    }
    return {} if any(math.isnan(share) for share in found.values()) else found


# -------------------------------------------------------------------------- standing


def standing_sentences(comparison: Comparison) -> tuple[str, ...]:
    """What holds for the whole run: the noise floor, and whether ends persist."""
    sentences = [floor_sentence(comparison)]
    if not comparison.persistence_assessed:
        sentences.append(
            f"Persistence is not assessed: with "
            f"{count(len(comparison.steps), 'checkpoint')} the end value is the last "
            "checkpoint alone."
        )
    return tuple(sentences)


def floor_sentence(comparison: Comparison) -> str:
    """Within which bounds nothing is called a change."""
    floor = comparison.noise_floor
    if math.isnan(floor):
        return (
            f"The noise floor is not known: changes within {percent(FLOOR_SHARE)} of a "
            "kind's first value are not called changes."
        )
    shown = number(floor, 3, signed=False)
    return (
        f"Changes within ±{shown} nats/token (the noise floor, or the smallest change "
        "worth the name where that is larger) are not called changes."
    )
