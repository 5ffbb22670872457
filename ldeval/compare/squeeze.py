"""The decision table: what a run's end values say, verdict by verdict.

C, R and M are chosen, rejected and their margin, O the ten other kinds, all as end
values (:mod:`ldeval.compare.evidence`) at the 99% level; m is the smallest change
worth the name. Squeezing (arXiv 2407.10490, section 3.3) is negative pressure on
rejected that takes mass from nearly everything and gives it to the argmax::

    S1  R down, and below the mean of its two rephrases
    S2  mean over O down, at least 70% of O below −m, at most 10% up
    S3  flow into the argmax up, at the off-label positions along rejected
    S4  C not down, and C − h > −0.1 |R|

A rise of the argmax alone is not squeezing: it rises in plain fine-tuning too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ldeval.compare.evidence import ARGMAX, FROZEN, Evidence
from ldeval.compare.logic import (
    all_hold,
    conjunct,
    is_below,
    is_state,
    moved,
    opposite,
    truth,
    value_of,
    verdict,
)
from ldeval.compare.provenance import TrainedLog, sources_trained
from ldeval.compare.stats import state
from ldeval.records import (
    KIND_BY_NAME,
    KIND_NAMES,
    Conjunct,
    Estimate,
    State,
    Verdict,
)

OTHERS = tuple(kind for kind in KIND_NAMES if kind not in ("chosen", "rejected"))
"""O: the kinds that training does not push by name."""
REPHRASES = ("rejected_semantic", "rejected_format")
DESTINATIONS = {"argmax": "argmax", "top": "top-k", "tail": "tail"}


@dataclass(frozen=True)
class Question:
    """One split's evidence, and what else the decision table needs to know."""

    evidence: Evidence
    nats: float
    """m, nats/token."""
    probability: float
    """m, probability/token."""
    objective_has_negative: bool | None = None
    """Whether the training objective pushes any response down; None if not said."""
    trained_log: TrainedLog | None = None

    def m(self, kind: str) -> float:
        """m for changes of one kind: its own where only means were imported."""
        return self.evidence.floors.get(kind, self.nats)


def decide(question: Question) -> tuple[Verdict, ...]:
    """All seven verdicts for one split."""
    ask, split = question, question.evidence.split
    little = ask.evidence.too_little(), ask.evidence.thresholds.min_clusters
    shared = negative_pressure(ask), others_fall(ask), mass_to_the_top(ask)
    fell, rose = _chosen(ask, "down"), _chosen(ask, "up")
    squeezed_held = verdict(
        "squeezing_chosen_held", split, (*shared, chosen_held(ask)), *little
    )
    return (
        verdict("squeezing", split, (*shared, fell), *little),
        squeezed_held,
        verdict(
            "likelihood_displacement",
            split,
            (fell, _margin_up(ask)),
            *little,
            {"destination": destination(ask)},
        ),
        verdict("learning", split, (rose, _not_squeezed(squeezed_held)), *little),
        verdict("hallucination_pull", split, hallucination(ask), *little),
        verdict("ungrammatical_leakage", split, leakage(ask), *little),
        verdict(
            "repetition",
            split,
            ask.evidence.repetition(),
            *little,
            {"calibration": "uncalibrated"},
        ),
    )


def negative_pressure(ask: Question) -> Conjunct:
    """S1: rejected fell, and by more than its rephrases did."""
    rejected = ask.evidence.kind("rejected")
    contrast = ask.evidence.contrast("rejected", REPHRASES)
    m = ask.m("rejected")
    fell = is_state(rejected, m, "down")
    below = is_below(contrast, 0.0)
    if below is None and state(contrast, m) == "flat":
        below = False
    found, reason = all_hold((fell, below)), None
    if ask.objective_has_negative is False:
        found, reason = False, "the declared objective has no negative term"
    return conjunct(
        "S1",
        "rejected down, and below the mean of its two rephrases",
        found,
        {"rejected": rejected, "rejected - rephrases": contrast},
        reason,
    )


def others_fall(ask: Question) -> Conjunct:
    """S2: nearly everything else fell."""
    limits, evidence = ask.evidence.thresholds, ask.evidence
    kinds = {kind: evidence.kind(kind) for kind in OTHERS}
    scored = {
        kind: change for kind, change in kinds.items() if evidence.is_scored(change)
    }
    regions = {KIND_BY_NAME[kind].region for kind in scored}
    found: dict[str, Estimate] = {}
    value, reason = None, None
    if len(scored) < limits.others_kinds or len(regions) < limits.others_regions:
        reason = (
            f"{len(scored)} other kinds from {len(regions)} regions "
            f"{evidence.scored_means}; {limits.others_kinds} kinds from "
            f"{limits.others_regions} regions are needed"
        )
    if scored:
        found["mean of others"] = evidence.mean(list(scored))
    if reason is None:
        value = most_fell(ask, found["mean of others"], scored)
    statement = (
        f"mean over the other kinds down, at least {limits.others_falling:.0%} of them "
        f"below -m, at most {limits.others_rising:.0%} up"
    )
    return conjunct("S2", statement, value, found | scored, reason)


def most_fell(
    ask: Question, mean: Estimate, changes: Mapping[str, Estimate]
) -> bool | None:
    """Mean down, most changes below −m and few of them up."""
    limits = ask.evidence.thresholds
    falling = sum(change.value < -ask.m(kind) for kind, change in changes.items())
    rising = sum(state(change, ask.m(k)) == "up" for k, change in changes.items())
    floor = sum(map(ask.m, changes)) / max(len(changes), 1)
    return all_hold(
        (
            is_state(mean, floor, "down"),
            falling >= limits.others_falling * len(changes),
            rising <= limits.others_rising * len(changes),
        )
    )


def mass_to_the_top(ask: Question) -> Conjunct:
    """S3: mass went into the reference's argmax where rejected was not the argmax."""
    statement = "flow into the argmax up, at the off-label positions along rejected"
    flow = ask.evidence.flow("rejected")
    if not flow:
        return _argmax_rises(ask)
    value = is_state(flow["argmax"], ask.probability, "up")
    shown = {f"flow into {name}": flow[name] for name in ("argmax", "tail")}
    return conjunct("S3", statement, value, shown)


def _argmax_rises(ask: Question) -> Conjunct:
    """S3 without flows: the argmax rises along a kind that itself does not.

    Along a rising kind it rises because the kind does, so it counts for nothing. Where
    the first checkpoint's argmax was followed too (frozen), the lower of the two
    counts: the maximum over tokens may change identity, the frozen one cannot.
    """
    shown: dict[str, Estimate] = {}
    values: list[bool | None] = []
    named = []
    for kind in ask.evidence.argmax_along:
        along, top = ask.evidence.kind(kind), ask.evidence.kind(ARGMAX + kind)
        shown |= {kind: along, ARGMAX + kind: top}
        frozen = ask.evidence.kind(FROZEN + kind)
        if math.isfinite(frozen.low):
            shown[FROZEN + kind] = frozen
            top = min(top, frozen, key=lambda found: found.value)
        still = opposite(is_state(along, ask.m(kind), "up"))
        rises = all_hold((still, is_state(top, ask.m(ARGMAX + kind), "up")))
        values.append(rises)
        if rises:
            named.append(kind)
    # one such kind is enough: any = not all of the opposites
    found = opposite(all_hold(map(opposite, values)))
    statement = "argmax up along a kind that is itself down or flat (no flows stored)"
    reason = f"along {', '.join(named)}" if named else None
    return conjunct("S3", statement, found, shown, reason)


def chosen_held(ask: Question) -> Conjunct:
    """S4: chosen kept its ground while rejected moved."""
    share = ask.evidence.thresholds.held_share
    chosen, rejected = ask.evidence.kind("chosen"), ask.evidence.kind("rejected")
    bound, half = -share * abs(rejected.value), chosen.half_width
    found: bool | None = None
    if state(chosen, ask.m("chosen")) == "down" or chosen.value + half <= bound:
        found = False
    elif chosen.value - half > bound:
        found = True
    return conjunct(
        "S4",
        f"chosen not down, and its lower end above -{share} |rejected|",
        found,
        {"chosen": chosen, "rejected": rejected},
    )


def destination(ask: Question) -> str:
    """Which bin gained most along chosen: argmax, top-k, tail, or unknown.

    Unknown where no flows were stored or no bin gained for certain.
    """
    flow = ask.evidence.flow("chosen")
    gains = {name: flow[name] for name in DESTINATIONS if name in flow}
    gains = {name: gain for name, gain in gains.items() if math.isfinite(gain.low)}
    if not gains:
        return "unknown"
    best = max(gains, key=lambda name: gains[name].value)
    return DESTINATIONS[best] if gains[best].low > 0 else "unknown"


def hallucination(ask: Question) -> tuple[Conjunct, ...]:
    """What one prompt was taught is now said to another."""
    evidence = ask.evidence
    contrast = evidence.contrast("irrelevant_train", ["irrelevant_test"])
    return (
        _kind_moved(ask, "irrelevant_train"),
        moved(
            "above irrelevant_test",
            "irrelevant_train rose by more than m above irrelevant_test",
            "irrelevant_train - irrelevant_test",
            contrast,
            ask.m("irrelevant_train"),
            "up",
        ),
        sources_trained(
            evidence.tables,
            evidence.split == "trained",
            ask.trained_log,
            evidence.thresholds,
        ),
    )


def leakage(ask: Question) -> tuple[Conjunct, ...]:
    """Shuffled words rise by themselves, beyond the same words in order."""
    contrast = ask.evidence.contrast("random_words", ["irrelevant_test"], body=True)
    return (
        _kind_moved(ask, "permuted", body=True),
        _kind_moved(ask, "random_words", body=True),
        moved(
            "above irrelevant_test",
            "body of random_words rose by more than m above the same words in order",
            "random_words - irrelevant_test (body)",
            contrast,
            ask.m("random_words"),
            "up",
        ),
    )


def _kind_moved(ask: Question, kind: str, body: bool = False) -> Conjunct:
    label = f"{kind} (body)" if body else kind
    change = ask.evidence.kind(kind, body)
    return moved(f"{kind} up", f"{label} up", label, change, ask.m(kind), "up")


def _chosen(ask: Question, wanted: State) -> Conjunct:
    change = ask.evidence.kind("chosen")
    name, statement = f"C {wanted}", f"chosen {wanted}"
    return moved(name, statement, "chosen", change, ask.m("chosen"), wanted)


def _margin_up(ask: Question) -> Conjunct:
    margin = ask.evidence.margin
    return moved("M up", "margin up", "margin", margin, ask.m("margin"), "up")


def _not_squeezed(found: Verdict) -> Conjunct:
    values = [value_of(part) for part in found.conjuncts]
    value = opposite(all_hold(values))
    reason = f"squeezing_chosen_held is {truth(all_hold(values))}"
    return conjunct("not squeezed", "not squeezing_chosen_held", value, {}, reason)
