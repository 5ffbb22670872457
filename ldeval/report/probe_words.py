"""What a fault of a probe set endangers, in words.

Apart from the tables and the page that show it, so that both say the same. Each finding
names the conclusion that would be wrong, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ldeval.records import Distribution, Finding


@dataclass(frozen=True)
class Wording:
    """How one finding reads."""

    title: str
    danger: str
    """The conclusion that it endangers."""
    remedy: str


_REBUILD = "Build the set anew with 'ldeval probes build'."
_REIMPORT = "'ldeval probes import' mends it; 'ldeval probes build' avoids it."

WORDINGS: Mapping[str, Wording] = {
    "id repeated": Wording(
        "probe ids that repeat",
        "The harness and every diff tell responses apart by id: none would run.",
        "Give each probe its own id.",
    ),
    "held-out prompt trained": Wording(
        "held-out prompts that are trained, too",
        "What training on a prompt does would be read as generalisation.",
        "Leave them out of one split; 'ldeval probes build' does.",
    ),
    "unseen text is trained": Wording(
        "irrelevant_test texts that are a trained probe's chosen response",
        "The contrast with irrelevant_train, by which a hallucination pull is told, "
        'shrinks: the "unseen" text is trained.',
        "Take irrelevant_test from held-out prompts only; 'ldeval probes build' does.",
    ),
    "same as chosen": Wording(
        "responses that equal their own probe's chosen response",
        "They rise with chosen for no reason of their kind; a permutation that "
        "permutes nothing reads as ungrammatical leakage.",
        _REBUILD,
    ),
    "another probe's chosen": Wording(
        "responses that equal another probe's chosen response",
        "They may be trained on, so that their change is memorisation.",
        _REBUILD,
    ),
    "two kinds alike": Wording(
        "responses that equal another kind of the same probe",
        "Two kinds that share texts move together: their contrast is nearer to nothing "
        "than it should be.",
        _REBUILD,
    ),
    "repeated text": Wording(
        "texts that several probes of a split share within a kind",
        "Probes count as independent; repeated texts make standard errors too small "
        "(drawn with replacement, about 1.3 times).",
        "Use each text once; 'ldeval probes build' deals them out without repeats.",
    ),
    "prompt repeated": Wording(
        "prompts that repeat",
        "Prompts count as independent clusters; repeats make intervals too narrow.",
        "Keep one probe a prompt.",
    ),
    "near copy": Wording(
        "rephrases that are nearly the text they rephrase",
        "A copy moves with its original: squeezing asks whether rejected falls further "
        "than its rephrases.",
        "Build them anew with a stronger rephraser, or a larger --min-distance.",
    ),
    "in its own prompt": Wording(
        "responses that stand word for word in their own prompt",
        "Copying from the context makes them likely whatever was trained.",
        "Choose another text for them, or leave the kind out of these probes.",
    ),
    "other words": Wording(
        "random_words that are not the words of irrelevant_test",
        "The two should differ in order alone; otherwise an ungrammatical leakage "
        "cannot be told from a change of these words.",
        _REBUILD,
    ),
    "leading whitespace": Wording(
        "responses whose leading whitespace differs from chosen's",
        "The first scored token differs for no reason of content: a shift of the first "
        "token reads as a difference between kinds.",
        _REIMPORT,
    ),
    "ending": Wording(
        "responses that end otherwise than chosen (whitespace, end-of-turn marker)",
        "The last scored tokens differ for no reason of content: training to stop "
        "reads as a difference between kinds.",
        _REIMPORT,
    ),
    "length": Wording(
        "responses of kinds more than 1.5 times longer or shorter than chosen",
        "Sums are not comparable at all; per-token means favour the longer kind, whose "
        "later tokens are easier.",
        "Compare per token and first-n, or build with --match-length.",
    ),
    "empty": Wording(
        "responses that are empty",
        "Only their end would be scored: a belief about stopping, not about a "
        "response.",
        "Leave the kind out of these probes; 'ldeval probes import' does.",
    ),
    "kind missing": Wording(
        "responses that are not there",
        "Kinds are compared over different prompts where some lack them; a verdict "
        "needs five kinds of two regions.",
        "See the reasons in the table of kinds.",
    ),
    "made by a rule": Wording(
        "format variants made by a rule, not by a writer",
        "Nobody checked their sense: read them as near nonsense, not as a rephrase, in "
        "the squeezing verdict.",
        "Build with --rephraser.",
    ),
    "control characters": Wording(
        "responses with control characters",
        "They are rare tokens that no answer would hold.",
        "Clean the source, unless they are meant.",
    ),
    "few probes": Wording(
        "trained probes; fewer than 64",
        "Below 20 every verdict is undecided; at 32 squeezing is found in six cases of "
        "ten.",
        "Give more prompts.",
    ),
}
"""By the code of the finding."""


def wording(finding: Finding) -> Wording:
    """The words of a finding."""
    return WORDINGS[finding.code]


def percentile(lengths: Distribution, share: float) -> float:
    """The smallest value that so large a share does not exceed; NaN for none."""
    total = sum(count for _, count in lengths)
    passed = 0
    for value, count in lengths:
        passed += count
        if passed >= share * total:
            return float(value)
    return math.nan
