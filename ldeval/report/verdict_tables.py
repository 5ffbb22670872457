"""Verdicts in words and in tables, with the evidence behind each.

Beside ``change_tables`` because a verdict is read by its conjuncts: which one decided,
on which numbers, and for which split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ldeval.records import (
    SPLIT_NAMES,
    Comparison,
    Conjunct,
    Estimate,
    Split,
    Truth,
    Verdict,
)
from ldeval.report.rounding import quote
from ldeval.report.tables import Column, Table
from ldeval.report.words import SPLITS

MEANINGS: Mapping[str, str] = {
    "squeezing": "rejected was pushed down, most other kinds fell, the mass moved to "
    "the model's top tokens, and chosen fell with the rest",
    "squeezing_chosen_held": "rejected was pushed down, most other kinds fell, the "
    "mass moved to the model's top tokens, and chosen was held",
    "likelihood_displacement": "chosen fell while the margin over rejected rose",
    "learning": "chosen rose, and the run does not read as squeezing_chosen_held",
    "hallucination_pull": "the chosen responses of other trained prompts rose, more "
    "than those of unseen prompts",
    "ungrammatical_leakage": "shuffled words rose, more than the same words in order",
    "repetition": "the model's predictions along chosen grew narrow and alike",
}
"""What each verdict says when it holds."""

STATES: Mapping[Truth, str] = {
    "holds": "holds",
    "does_not_hold": "does not hold",
    "undecided": "undecided",
}
_TRUTHS: Mapping[Truth, str] = {
    "holds": "true",
    "does_not_hold": "false",
    "undecided": "undecided",
}
_NO_REASON = "no reason was given"
_QUOTED = 3
"""Estimates of a conjunct that a sentence quotes; the evidence table has them all."""


def deciding(verdict: Verdict) -> Conjunct | None:
    """The conjunct that settles a verdict which does not hold or is undecided."""
    if verdict.state == "holds":
        return None
    found = (c for c in verdict.conjuncts if c.truth == verdict.state)
    return next(found, None)


def reason_of(verdict: Verdict) -> str:
    """Why the verdict reads as it does, in words."""
    conjunct = deciding(verdict)
    if verdict.state == "holds":
        names = [
            c.name + (f" ({c.reason})" if c.reason else "") for c in verdict.conjuncts
        ]
        return f"true: {', '.join(names)}" if names else _NO_REASON
    if conjunct is None or (verdict.state == "undecided" and verdict.reason):
        return verdict.reason or _NO_REASON
    if verdict.state == "undecided":
        return f"{conjunct.name}: {conjunct.reason or _NO_REASON}"
    asked = "" if conjunct.statement == conjunct.name else conjunct.statement
    about = "; ".join(part for part in (asked, conjunct.reason) if part)
    return f"{conjunct.name} is false" + (f" (it asks: {about})" if about else "")


def shared_reason(verdicts: Sequence[Verdict], split: Split) -> str | None:
    """The reason that leaves all verdicts of a split undecided, where it is one."""
    found = [v for v in verdicts if v.split == split]
    reasons = {reason_of(verdict) for verdict in found}
    alike = len(found) > 1 and all(v.state == "undecided" for v in found)
    return reasons.pop() if alike and len(reasons) == 1 else None


def verdict_sentence(verdict: Verdict) -> str:
    """One verdict of one split in words, with the numbers that decide it."""
    text = f"{verdict.name}, {SPLIT_NAMES[verdict.split]} probes: "
    text += STATES[verdict.state]
    if verdict.state == "holds" and verdict.name in MEANINGS:
        text += f": {MEANINGS[verdict.name]}"
    text += f"; {reason_of(verdict)}"
    conjunct = deciding(verdict)
    if conjunct is not None and conjunct.evidence and _is_why(conjunct, verdict):
        text += f"; {_quotes(conjunct.evidence)}"
    return f"{text}{_details(verdict)}."


def _is_why(conjunct: Conjunct, verdict: Verdict) -> bool:
    """Whether the verdict's reason speaks of the conjunct, not of too few prompts."""
    return verdict.reason is None or conjunct.name in verdict.reason


def _quotes(evidence: Mapping[str, Estimate]) -> str:
    shown = [f"{name}: {quote(e)}" for name, e in list(evidence.items())[:_QUOTED]]
    if len(evidence) > _QUOTED:
        shown.append(f"and {len(evidence) - _QUOTED} more in the evidence")
    return "; ".join(shown)


def _details(verdict: Verdict) -> str:
    """Further findings; where mass went is told only of a displacement that holds."""
    shown = [
        f"{name}: {text}"
        for name, text in verdict.details.items()
        if name != "destination" or verdict.state == "holds"
    ]
    return "".join(f"; {text}" for text in shown)


def verdict_table(comparison: Comparison) -> Table:
    """One row a verdict: its state in both splits and what decides it."""
    names = list(dict.fromkeys(v.name for v in comparison.verdicts))
    found = {(v.name, v.split): v for v in comparison.verdicts}
    shared = {split: shared_reason(comparison.verdicts, split) for split in SPLITS}
    rows = []
    for name in names:
        both = [found.get((name, split)) for split in SPLITS]
        states = [STATES[v.state] if v else "not assessed" for v in both]
        own = [v for v in both if v and not shared[v.split]]
        rows.append((name, *states, _reasons(own)))
    return Table(
        "Verdicts",
        (
            Column("verdict", "left"),
            *(Column(SPLIT_NAMES[split], "left") for split in SPLITS),
            Column("what decides it", "left"),
        ),
        tuple(rows),
        "A verdict holds if all its conditions are true at the 99% level, does not "
        "hold if one is false, and is undecided otherwise. It speaks of this run.",
        tuple(
            f"All verdicts on {SPLIT_NAMES[split]} probes are undecided: {reason}."
            for split, reason in shared.items()
            if reason
        ),
    )


def _reasons(verdicts: Iterable[Verdict]) -> str:
    """The reasons of both splits, said once where they agree."""
    by_reason: dict[str, list[Split]] = {}
    for verdict in verdicts:
        text = reason_of(verdict) + _details(verdict)
        by_reason.setdefault(text, []).append(verdict.split)
    if len(by_reason) == 1:
        return next(iter(by_reason))  # both splits, or one whose other says nothing
    return "; ".join(
        f"{'/'.join(SPLIT_NAMES[s] for s in splits)}: {text}"
        for text, splits in by_reason.items()
    )


def conjunct_table(comparison: Comparison, split: Split) -> Table:
    """Every condition once, with all its evidence and the verdicts that use it."""
    users: dict[tuple[str, str], list[str]] = {}
    conjuncts: dict[tuple[str, str], Conjunct] = {}
    for verdict in comparison.verdicts:
        for conjunct in verdict.conjuncts if verdict.split == split else ():
            key = (conjunct.name, conjunct.statement)
            conjuncts.setdefault(key, conjunct)
            users.setdefault(key, []).append(verdict.name)
    rows = tuple(
        (
            conjunct.name,
            _TRUTHS[conjunct.truth],
            conjunct.statement,
            _evidence(conjunct),
            ", ".join(users[key]),
        )
        for key, conjunct in conjuncts.items()
    )
    return Table(
        f"Evidence, {SPLIT_NAMES[split]} probes",
        (
            Column("condition", "left"),
            Column("reads", "left"),
            Column("asks", "left"),
            Column("evidence", "left"),
            Column("used by", "left"),
        ),
        rows,
        "Changes are after − before.",
    )


def _evidence(conjunct: Conjunct) -> str:
    parts = [f"{name}: {quote(e)}" for name, e in conjunct.evidence.items()]
    if conjunct.reason:
        parts.insert(0, conjunct.reason)
    return "; ".join(parts)


def verdict_sentences(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """All verdicts in words; one sentence for a split that is undecided throughout."""
    sentences = []
    for split in SPLITS:
        if reason := shared_reason(verdicts, split):
            name = SPLIT_NAMES[split]
            sentences.append(f"All verdicts, {name} probes: undecided; {reason}.")
        else:
            sentences += [verdict_sentence(v) for v in verdicts if v.split == split]
    return tuple(sentences)
