"""The paper's claims that set one run against another: D3, D5 and E1.

Each is about the difference B − A in Δtok at the last place that both runs reach, at
the 99% level, on trained probes. What the runs are must be declared: a claim about
preference training says nothing of two runs of unknown objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ldeval.compare.logic import all_hold, is_above, is_below, truth, unsettled
from ldeval.compare.squeeze import OTHERS
from ldeval.compare.thresholds import Thresholds
from ldeval.records import Claim, Estimate

UNRELATED = ("irrelevant_test", "random_sentence", "permuted", "random_words")
TWO_PREFERENCES = "asks for two declared runs of preference training"

Difference = Callable[[Sequence[str]], Estimate]
"""Mean over kinds of B − A, nats/token."""
Negative = tuple[bool | None, bool | None]
"""Whether the objective of A, and of B, has a negative term; None: not declared."""


def run_claims(
    difference: Difference, negative: Negative, limits: Thresholds
) -> tuple[Claim, ...]:
    """D3, D5 and E1 with A taken as the baseline."""
    m = limits.change_nats
    unrelated, chosen = difference(UNRELATED), difference(["chosen"])
    others, top = difference(OTHERS), difference(["argmax:rejected"])
    preferences = None if negative == (True, True) else TWO_PREFERENCES
    return (
        _claim(
            "D3",
            "DPO takes unrelated text down much faster than SFT does",
            "mean of unrelated and shuffled kinds, B − A below −m",
            is_below(unrelated, -m),
            {"unrelated, B - A": unrelated},
            None
            if negative == (False, True)
            else "asks for SFT as run A and preference training as run B, declared",
            limits,
        ),
        _claim(
            "D5",
            "More SFT before DPO worsens squeezing (B taken as the run with more)",
            "chosen, B − A below −m",
            is_below(chosen, -m),
            {"chosen, B - A": chosen},
            preferences,
            limits,
        ),
        _claim(
            "E1",
            "After SFT on both responses DPO takes the others down more slowly (B taken"
            " as that run)",
            "mean of the others, B − A above m; argmax along rejected, B − A below 0",
            all_hold((is_above(others, m), is_below(top, 0.0))),
            {"others, B - A": others, "argmax:rejected, B - A": top},
            preferences,
            limits,
        ),
    )


def _claim(
    name: str,
    statement: str,
    test: str,
    value: bool | None,
    effect: Mapping[str, Estimate],
    barred: str | None,
    limits: Thresholds,
) -> Claim:
    """Undecided where the runs are not those that the claim is about (``barred``)."""
    clusters = max(e.clusters for e in effect.values())
    reason = barred
    if reason is None and clusters < limits.min_clusters:
        reason = (
            f"{clusters} clusters of prompts; at least {limits.min_clusters} are needed"
        )
    if reason is not None:
        value = None
    elif value is None:
        reason = unsettled(effect)
    return Claim(name, statement, test, truth(value), "trained", effect, reason)
