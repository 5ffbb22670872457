"""Were the irrelevant responses' sources trained on between two checkpoints?

An irrelevant response is the chosen response of another prompt. Only if the prompts
behind ``irrelevant_train`` were trained in between, and those behind
``irrelevant_test`` were not, does a rise of the first over the second say that what
was learnt for one prompt is now said to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ldeval.compare.logic import conjunct
from ldeval.compare.pairing import Rows, split_rows
from ldeval.compare.thresholds import Thresholds
from ldeval.records import Conjunct

TrainedLog = Mapping[int, frozenset[str]]
"""Probe ids that the run trained on, by optimizer step."""


@dataclass(frozen=True)
class SourceCount:
    """How many distinct texts of one kind come from probes that were trained on."""

    texts: int
    trained: int
    """Texts whose source probe was trained on between the two checkpoints."""
    unknown: int
    """Texts that are the chosen response of no probe in the set."""

    def at_least(self, share: float) -> bool | None:
        """Whether the trained share reaches ``share``; None where it is not known."""
        if self.trained >= share * self.texts:
            return True
        return False if self.trained + self.unknown < share * self.texts else None

    def at_most(self, share: float) -> bool | None:
        """Whether the trained share stays within ``share``; None if not known."""
        if self.trained + self.unknown <= share * self.texts:
            return True
        return False if self.trained > share * self.texts else None

    def __str__(self) -> str:
        unknown = f", {self.unknown} of unknown source" if self.unknown else ""
        return f"{self.trained} of {self.texts} source texts trained{unknown}"


def count_sources(
    table: Rows, kind: str, trained: bool, ids: frozenset[str]
) -> SourceCount:
    """Count the sources of the texts of ``kind`` on one split.

    Args:
        trained: the split.
        ids: probe ids trained on in between. A text's source is any probe whose chosen
            text has the same hash.
    """
    chosen = table.kinds == "chosen"
    sources: dict[str, list[str]] = {}
    for text, probe in zip(
        table.text_hashes[chosen].tolist(),
        table.probe_ids[chosen].tolist(),
        strict=True,
    ):
        sources.setdefault(text, []).append(probe)
    texts = np.unique(table.text_hashes[split_rows(table, kind, trained)]).tolist()
    known = [text for text in texts if text in sources]
    hits = [text for text in known if not ids.isdisjoint(sources[text])]
    return SourceCount(len(texts), len(hits), len(texts) - len(known))


def sources_trained(
    tables: Sequence[Rows],
    trained: bool,
    log: TrainedLog | None,
    thresholds: Thresholds,
) -> Conjunct:
    """The provenance condition of ``hallucination_pull``.

    Known to be false it leaves the verdict undecided: the contrast then says nothing
    either way. Not known (an import without a log) it passes, and says so.
    """
    name = "sources trained"
    statement = (
        f"at least {thresholds.sources_trained:.0%} of irrelevant_train's source texts "
        f"trained between the two checkpoints, at most "
        f"{thresholds.controls_trained:.0%} of irrelevant_test's"
    )
    if log is None:
        reason = "not known: no record of which probes were trained at which step"
        return conjunct(name, statement, True, {}, reason)
    first, last = tables[0], tables[-1]
    steps = [s for s in log if first.manifest.step < s <= last.manifest.step]
    ids = frozenset[str]().union(*(log[step] for step in steps))
    pulled = count_sources(first, "irrelevant_train", trained, ids)
    control = count_sources(first, "irrelevant_test", trained, ids)
    found = (
        pulled.at_least(thresholds.sources_trained),
        control.at_most(thresholds.controls_trained),
    )
    counts = f"irrelevant_train: {pulled}; irrelevant_test: {control}"
    if False in found:
        reason = f"the contrast does not separate trained text ({counts})"
        return conjunct(name, statement, None, {}, reason)
    reason = f"not known for every text ({counts})" if None in found else counts
    return conjunct(name, statement, True, {}, reason)
