"""The response kinds, the splits and the names that every table reads from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Region = Literal["valid", "off-topic", "ungrammatical"]
Split = Literal["trained", "heldout"]
SPLIT_NAMES: Mapping[Split, str] = {"trained": "trained", "heldout": "held-out"}
"""What a reader calls them."""


@dataclass(frozen=True)
class KindInfo:
    """One response kind: its name, its place in the paper, and how it is made."""

    name: str
    """ldeval's spelling, used in every file, task name and table."""
    symbol: str
    """The symbol of the paper (arXiv 2407.10490, section 4)."""
    reference_field: str
    """The field in the paper authors' probe files."""
    region: Region
    """The paper's three-part picture of the response space."""
    summary: str
    """What the response is, in a few words."""
    rephrase_of: str | None = None
    """The kind that this one rephrases, for the four rephrases."""


KINDS: tuple[KindInfo, ...] = (
    KindInfo("chosen", "y+", "chosen", "valid", "the preferred response"),
    KindInfo(
        "chosen_semantic",
        "y_gpts+",
        "chosen_gptsemantic",
        "valid",
        "chosen in other words",
        "chosen",
    ),
    KindInfo(
        "chosen_format",
        "y_gptf+",
        "chosen_gptformat",
        "valid",
        "chosen's form, another meaning",
        "chosen",
    ),
    KindInfo(
        "initial",
        "y_init",
        "chosen_initial",
        "valid",
        "a sample of the model before training",
    ),
    KindInfo("rejected", "y-", "rejected", "valid", "the dispreferred response"),
    KindInfo(
        "rejected_semantic",
        "y_gpts-",
        "reject_gptsemantic",
        "valid",
        "rejected in other words",
        "rejected",
    ),
    KindInfo(
        "rejected_format",
        "y_gptf-",
        "reject_gptformat",
        "valid",
        "rejected's form, another meaning",
        "rejected",
    ),
    KindInfo(
        "irrelevant_train",
        "y_j≠u+",
        "irr_train",
        "off-topic",
        "chosen of another trained prompt",
    ),
    KindInfo(
        "irrelevant_test",
        "y_test+",
        "irr_test",
        "off-topic",
        "chosen of an unseen prompt",
    ),
    KindInfo(
        "random_sentence", "y_hum", "irr_hum", "off-topic", "an unconnected sentence"
    ),
    KindInfo(
        "permuted",
        "y_urnd+",
        "random_permute",
        "ungrammatical",
        "the words of chosen, shuffled",
    ),
    KindInfo(
        "random_words",
        "y_rnd",
        "random_nonhum",
        "ungrammatical",
        "the words of irrelevant_test, shuffled",
    ),
)
"""The twelve stored kinds, in the order in which every table lists them."""

KIND_NAMES: tuple[str, ...] = tuple(kind.name for kind in KINDS)
KIND_BY_NAME: Mapping[str, KindInfo] = {kind.name: kind for kind in KINDS}
REFERENCE_FIELDS: Mapping[str, str] = {k.reference_field: k.name for k in KINDS}
REGIONS: tuple[Region, ...] = ("valid", "off-topic", "ungrammatical")

KIND_GROUPS: Mapping[str, tuple[str, ...]] = {
    "ldyn_rephrased": tuple(k.name for k in KINDS if k.rephrase_of is not None),
    "ldyn_irrelevant": ("irrelevant_train", "irrelevant_test", "random_sentence"),
    "ldyn_random": ("permuted", "random_words"),
}
"""The harness groups below ``ldyn_probes``, and the kinds in each."""


VERDICT_NAMES: tuple[str, ...] = (
    "squeezing",
    "squeezing_chosen_held",
    "likelihood_displacement",
    "learning",
    "hallucination_pull",
    "ungrammatical_leakage",
    "repetition",
)
"""The verdicts, in the order in which every table lists them."""

OBJECTIVES: Mapping[str, bool] = {
    "sft": False,
    "dpo": True,
    "cdpo": True,
    "ipo": True,
    "kto": True,
    "cpo": True,
    "simpo": True,
    "orpo": True,
    "slic": True,
    "sppo": True,
    "npo": True,
}
"""Training objectives, and whether each has a term that pushes a response down."""


def task_name(kind: str) -> str:
    """The lm_eval task of a kind."""
    return f"ldyn_{kind}"


def split_name(trained: bool) -> Split:
    """The split a probe belongs to."""
    return "trained" if trained else "heldout"
