"""The paper's claims as a checklist, each tested on the user's run.

Claims S are about fine-tuning on chosen (SFT), D about preference training off policy
(DPO), E about SFT on both responses before it (arXiv 2407.10490, section 4). Each is a
three-valued conjunction of end values, slopes and peaks at the 99% level, per token
unless it says otherwise; it speaks of this run, and a run whose declared objective is
of the other sort does not test the claim. D3, D5 and E1 set one run against another
(:mod:`versus`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ldeval.compare.logic import (
    all_hold,
    is_above,
    is_below,
    is_state,
    opposite,
    truth,
    unsettled,
    value_of,
)
from ldeval.compare.squeeze import (
    OTHERS,
    Question,
    mass_to_the_top,
    most_fell,
    others_fall,
)
from ldeval.compare.stats import state
from ldeval.records import KIND_NAMES, OBJECTIVES, Claim, Estimate

SIMILAR = (
    "chosen_semantic",
    "chosen_format",
    "rejected_semantic",
    "rejected_format",
    "initial",
)
"""Kinds near the trained response."""
SHUFFLED = ("permuted", "random_words")
NO_OTHERS = "no other kind was scored"

Found = tuple[bool | None, Mapping[str, Estimate], str | None]
"""Three-valued truth, estimates, and a reason."""


@dataclass(frozen=True)
class _Test:
    name: str
    statement: str
    test: str
    run: Callable[[Question], Found]


def claims(ask: Question, objective: str | None) -> tuple[Claim, ...]:
    """All claims on one split; none where the split has no probes.

    Args:
        objective: as declared; None where it was not.
    """
    if not ask.evidence.kinds:
        return ()
    little = ask.evidence.too_little()
    return tuple(_claim(item, ask, objective, little) for item in TESTS)


def _claim(
    item: _Test, ask: Question, objective: str | None, little: str | None
) -> Claim:
    split = ask.evidence.split
    off_topic = _not_about(item.name, objective)
    if off_topic is not None:
        return Claim(
            item.name, item.statement, item.test, "undecided", split, {}, off_topic
        )
    value, effect, reason = item.run(ask)
    if little is not None:
        value, reason = None, little
    elif value is None and reason is None:
        reason = unsettled(effect)
    found = truth(value)
    return Claim(item.name, item.statement, item.test, found, split, effect, reason)


def _not_about(name: str, objective: str | None) -> str | None:
    if objective is None:
        return None
    about_negative = not name.startswith("S")
    if OBJECTIVES[objective] == about_negative:
        return None
    kind = "preference training" if about_negative else "SFT"
    return f"the claim is about {kind}; the declared objective is {objective}"


# ------------------------------------------------------------------------ SFT: S1 … S4


def _s1(ask: Question) -> Found:
    end, fall = ask.evidence.kind("chosen"), ask.evidence.form("chosen")["fall"]
    rose = is_state(end, ask.m("chosen"), "up")
    steady = opposite(is_above(fall, ask.m("chosen")))
    return all_hold((rose, steady)), {"chosen": end, "fall from its peak": fall}, None


def _s2(ask: Question) -> Found:
    effect: dict[str, Estimate] = {}
    if ask.evidence.checkpoints < 3:
        return None, effect, "a peak inside the run needs three checkpoints"
    values = []
    for kind in SIMILAR:
        if kind in ask.evidence.kinds:
            form = ask.evidence.form(kind)
            effect |= {f"{kind} {name}": form[name] for name in ("rise", "fall")}
            values.append(
                all_hold(is_above(form[name], ask.m(kind)) for name in ("rise", "fall"))
            )
    if not values:
        return None, effect, "no similar kind was scored"
    bells, flat = values.count(True), values.count(False)
    counted = f"{bells} of {len(values)} similar kinds rose and fell again"
    if 2 * bells >= len(values):
        return True, effect, counted
    return (False if 2 * flat > len(values) else None), effect, counted


def _s3(ask: Question) -> Found:
    slope = ask.evidence.form("irrelevant_train")["slope"]
    contrast = ask.evidence.contrast("irrelevant_train", ["irrelevant_test"])
    effect = {
        "slope of irrelevant_train": slope,
        "irrelevant_train - irrelevant_test": contrast,
    }
    rising = is_above(slope, 0.0), is_state(contrast, ask.m("irrelevant_train"), "up")
    return all_hold(rising), effect, None


def _s4(ask: Question) -> Found:
    effect = {f"slope of {kind}": ask.evidence.form(kind)["slope"] for kind in SHUFFLED}
    return all_hold(is_below(e, 0.0) for e in effect.values()), effect, None


# ------------------------------------------------------------- preferences: D1 … D6, E1


def _d1(ask: Question) -> Found:
    kinds = [kind for kind in KIND_NAMES if kind in ask.evidence.kinds]
    changes = {kind: ask.evidence.kind(kind) for kind in kinds}
    effect = {"mean of all kinds": ask.evidence.mean(kinds)} | changes
    falling = sum(change.value < -ask.m(kind) for kind, change in changes.items())
    reason = f"{falling} of {len(changes)} kinds fell"
    return most_fell(ask, effect["mean of all kinds"], changes), effect, reason


def _d2(ask: Question) -> Found:
    evidence = ask.evidence
    effect = {
        "rejected - chosen": evidence.contrast("rejected", ["chosen"]),
        "rejected_semantic - chosen_semantic": evidence.contrast(
            "rejected_semantic", ["chosen_semantic"]
        ),
        "margin": evidence.margin,
    }
    first, second, margin = effect.values()
    values = is_below(first, 0.0), is_below(second, 0.0), _up(margin, ask.m("margin"))
    return all_hold(values), effect, None


def _d4(ask: Question) -> Found:
    if not {"chosen", "rejected"} & set(ask.evidence.argmax_along):
        return None, {}, "no argmax along chosen or rejected is known"
    kinds = _scored(ask)
    if not kinds:
        return None, {}, NO_OTHERS
    top, others = mass_to_the_top(ask), others_fall(ask)
    effect = {**top.evidence, "mean of others": ask.evidence.mean(kinds)}
    value = all_hold((value_of(top), value_of(others)))
    reason = "its pace against SFT needs a second run: ldeval compare"
    return value, effect, f"{reason}{f'; {top.reason}' if top.reason else ''}"


def _d6(ask: Question) -> Found:
    kinds = _scored(ask)
    changes = [ask.evidence.kind(kind) for kind in kinds]
    chosen = ask.evidence.kind("chosen")
    effect = {"chosen": chosen} | dict(zip(kinds, changes, strict=True))
    limits = ask.evidence.thresholds
    if not kinds:
        return None, effect, NO_OTHERS
    down = [
        is_state(change, ask.m(kind), "down")
        for kind, change in zip(kinds, changes, strict=True)
    ]
    up = sum(
        state(change, ask.m(kind)) == "up"
        for kind, change in zip(kinds, changes, strict=True)
    )
    needed = limits.others_falling * len(kinds)
    enough: bool | None = None
    if down.count(True) >= needed:
        enough = True
    elif len(kinds) - down.count(False) < needed:
        enough = False
    few_up = up <= limits.others_rising * len(kinds)
    value = all_hold((is_state(chosen, ask.m("chosen"), "up"), enough, few_up))
    return value, effect, f"{down.count(True)} of {len(kinds)} others clearly down"


def _scored(ask: Question) -> Sequence[str]:
    return [kind for kind in OTHERS if kind in ask.evidence.kinds]


def _up(estimate: Estimate, margin: float) -> bool | None:
    return is_state(estimate, margin, "up")


def _second_run(ask: Question) -> Found:
    return None, {}, "needs a second run: ldeval compare RUN_A RUN_B"


TESTS: tuple[_Test, ...] = (
    _Test(
        "S1",
        "SFT: the chosen response rises throughout",
        "Δtok of chosen up, and no fall from its peak above m",
        _s1,
    ),
    _Test(
        "S2",
        "SFT: similar responses rise, then fall",
        "rise > m and fall > m for at least half of the rephrases and initial",
        _s2,
    ),
    _Test(
        "S3",
        "SFT: the chosen responses of other trained prompts keep rising",
        "slope of irrelevant_train > 0; irrelevant_train − irrelevant_test > m",
        _s3,
    ),
    _Test(
        "S4",
        "SFT: shuffled words fall throughout",
        "slopes of permuted and random_words < 0",
        _s4,
    ),
    _Test(
        "D1",
        "DPO: almost every probed kind falls",
        "mean over all kinds down, at least 70% of them below −m, at most 10% up",
        _d1,
    ),
    _Test(
        "D2",
        "DPO: rejected falls faster than chosen, its rephrase faster than chosen's, "
        "and the margin grows",
        "rejected − chosen < 0; rejected_semantic − chosen_semantic < 0; margin up",
        _d2,
    ),
    _Test(
        "D3",
        "DPO takes unrelated text down much faster than SFT does",
        "decay of the off-topic kinds and shuffled words, DPO against SFT, at equal "
        "examples",
        _second_run,
    ),
    _Test(
        "D4",
        "DPO: the mass goes to the argmax while the others fall",
        "flow into the reference's argmax up at the off-label positions along "
        "rejected; the other kinds fall",
        _d4,
    ),
    _Test(
        "D5",
        "More SFT before DPO worsens squeezing",
        "decay of chosen against the length of SFT",
        _second_run,
    ),
    _Test(
        "D6",
        "DPO: almost every kind moves strongly down, only chosen up",
        "Δtok of the labels (SignDelta says nothing about them): chosen up, at least "
        "70% of the others down, at most 10% up",
        _d6,
    ),
    _Test(
        "E1",
        "After SFT on both responses DPO takes the others down more slowly",
        "decay of the other kinds against a baseline run",
        _second_run,
    ),
)
