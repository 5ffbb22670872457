"""One probe out of an entry: its twelve kinds, alike in form and, if wanted, in length.

The order matters and is kept here: another prompt's text is brought into form and
length first, and only then shuffled, so that ``random_words`` holds the very words of
this probe's ``irrelevant_test``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldeval.probes.corpus import Corpus, Donor, Entry
from ldeval.probes.lengths import LengthBand, match_length
from ldeval.probes.perturb import (
    SentencePool,
    exchange_content_words,
    permute_words,
)
from ldeval.probes.rephrase import Outcome
from ldeval.probes.surface import (
    leading_space,
    matched_form,
    until_next_turn,
    without_ending,
)
from ldeval.probes.tokens import TokenCounter
from ldeval.records import KIND_BY_NAME, KIND_NAMES, Probe, Response

RULE_SOURCE = "rule: content words exchanged"
"""The ``source`` of a format variant that no model wrote."""
_NEVER_CUT = ("chosen", "rejected", "permuted", "random_words")
"""Kinds whose length is not matched: what is trained, and what is made of it."""


@dataclass
class AssemblyTally:
    """What the kinds became, counted over all probes."""

    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Responses, by split and kind."""
    missing: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Responses that are not there, by kind and reason."""
    reformed: Counter[str] = field(default_factory=Counter)
    """Responses whose beginning or end was changed, by kind."""
    trimmed: Counter[str] = field(default_factory=Counter)
    """Responses that were cut to match lengths, by kind."""


@dataclass(frozen=True)
class Extras:
    """What others contribute to one probe."""

    outcomes: Mapping[str, Outcome] | None = None
    """Rephrases, by kind; None where no model was asked."""
    rephraser: str | None = None
    """The model that was."""
    initial: Probe | None = None
    """The probe with its sampled ``initial``; None where none was sampled."""


@dataclass
class Assembler:
    """How probes are put together; the same for all of a build."""

    seed: int
    counter: TokenCounter
    band: LengthBand | None = None
    sentences: SentencePool | None = None
    rule_format: bool = False
    tally: AssemblyTally = field(default_factory=AssemblyTally)

    def assemble(self, entry: Entry, extras: Extras, corpus: Corpus) -> Probe:
        """The probe, with the reasons for what it lacks in ``meta.missing``."""
        draft = _Draft(entry, self)
        example = entry.example
        draft.offer("chosen", example.chosen, example.place)
        draft.missing.update(example.missing)
        if example.rejected is not None:
            draft.offer("rejected", example.rejected, example.place)
        for kind, donor in (
            ("irrelevant_train", entry.irrelevant_train),
            ("irrelevant_test", entry.irrelevant_test),
        ):
            self._irrelevant(draft, kind, donor, corpus)
        self._written(draft, extras)
        self._initial(draft, extras.initial)
        self._shuffled(draft, entry)
        return self._finished(draft, entry, extras)

    def _irrelevant(
        self, draft: _Draft, kind: str, donor: Donor | None, corpus: Corpus
    ) -> None:
        of_trained = kind == "irrelevant_train"
        if donor is None:
            split = "trained" if of_trained else "held-out"
            draft.missing[kind] = f"no {split} text is left for it"
            return
        draft.offer(kind, donor.text, donor.name)
        text = draft.texts.get(kind)
        if text is None:
            return
        cut = text.strip() != without_ending(donor.text).strip()
        within = of_trained == draft.entry.trained
        if text.strip() == draft.texts["chosen"].strip():
            draft.withdraw(kind, "the text drawn is its own")
        elif cut and not of_trained and corpus.is_trained_chosen(text):
            draft.withdraw(kind, "cut, it is a trained prompt's chosen")
        elif cut and within and not corpus.claim(f"{kind}/{of_trained}/{text.strip()}"):
            draft.withdraw(kind, "cut, it is another probe's")

    def _written(self, draft: _Draft, extras: Extras) -> None:
        """Rephrases and the random sentence; rules and a pool where no model was
        asked."""
        for kind, outcome in (extras.outcomes or {}).items():
            if outcome.text is None:
                draft.missing[kind] = outcome.rejected[-1]
                continue
            own = KIND_BY_NAME[kind].rephrase_of is not None
            source = draft.entry.probe_id if own else str(extras.rephraser)
            draft.offer(kind, outcome.text, source)
            if outcome.similarity is not None:
                draft.similarity[kind] = round(outcome.similarity, 6)
        if self.rule_format and extras.outcomes is None:
            self._by_rule(draft)
        if self.sentences is not None and extras.outcomes is None:
            try:
                text = self.sentences.take(len(draft.texts["chosen"].split()))
            except ValueError:
                draft.missing["random_sentence"] = "the pool of sentences is used up"
            else:
                draft.offer("random_sentence", text, "sentences")

    def _by_rule(self, draft: _Draft) -> None:
        donor = draft.entry.irrelevant_test
        for base in ("chosen", "rejected"):
            if base not in draft.texts:
                continue
            kind = f"{base}_format"
            rng = random.Random(f"{self.seed}/{kind}/{draft.entry.key}")
            words = "" if donor is None else donor.text
            text = exchange_content_words(draft.texts[base], words, rng)
            if text is None:
                draft.missing[kind] = "the rule finds too few words to exchange"
            else:
                draft.offer(kind, text, RULE_SOURCE)

    def _initial(self, draft: _Draft, sampled: Probe | None) -> None:
        if sampled is None:
            return
        draft.meta.update(
            {k: v for k, v in sampled.meta.items() if k.startswith("initial_")}
        )
        if "initial" in sampled.responses:
            text = until_next_turn(sampled.responses["initial"].text)
            draft.offer("initial", text, "sampled")
        else:
            draft.missing["initial"] = "the model gave only empty samples"

    def _shuffled(self, draft: _Draft, entry: Entry) -> None:
        for kind, base in (("permuted", "chosen"), ("random_words", "irrelevant_test")):
            if base not in draft.texts:
                draft.missing[kind] = f"it has no {base}"
                continue
            rng = random.Random(f"{self.seed}/{kind}/{entry.key}")
            text = permute_words(draft.texts[base], rng)
            if text is None:
                draft.missing[kind] = "its words have no other order"
            else:
                source = draft.sources[base] if base != "chosen" else entry.probe_id
                draft.offer(kind, text, source)

    def _finished(self, draft: _Draft, entry: Entry, extras: Extras) -> Probe:
        split = "trained" if entry.trained else "heldout"
        kinds = [kind for kind in KIND_NAMES if kind in draft.texts]
        self.tally.kinds.update((split, kind) for kind in kinds)
        self.tally.missing.update(draft.missing.items())
        meta: dict[str, Any] = {"row": entry.example.place, **draft.meta}
        if extras.outcomes is not None:
            meta["rephraser"] = extras.rephraser
        if draft.similarity:
            meta["similarity"] = draft.similarity
        missing = {k: draft.missing[k] for k in KIND_NAMES if k in draft.missing}
        if missing:
            meta["missing"] = missing
        responses = {k: Response(k, draft.texts[k], draft.sources[k]) for k in kinds}
        return Probe(
            entry.probe_id, entry.example.prompt, responses, entry.trained, meta
        )


class _Draft:
    """A probe in the making."""

    def __init__(self, entry: Entry, how: Assembler) -> None:
        self.entry = entry
        self.texts: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.similarity: dict[str, float] = {}
        self.meta: dict[str, Any] = {}
        self._how = how
        self._lead = leading_space(entry.example.chosen)

    def offer(self, kind: str, text: str, source: str) -> None:
        """Take a response in the common form and length, or say why not."""
        formed = matched_form(text, self._lead)
        if not formed:
            self.missing[kind] = "empty"
            return
        self._how.tally.reformed[kind] += formed != text
        if self._how.band is not None and kind not in _NEVER_CUT:
            fitting = self._fitting(kind, formed, self._how.band)
            if fitting is None:
                self.missing[kind] = "outside the length band"
                return
            self._how.tally.trimmed[kind] += fitting != formed
            formed = fitting
        self.texts[kind] = formed
        self.sources[kind] = source

    def withdraw(self, kind: str, reason: str) -> None:
        """Take a response back."""
        del self.texts[kind], self.sources[kind]
        self.missing[kind] = reason

    def _fitting(self, kind: str, text: str, band: LengthBand) -> str | None:
        base = KIND_BY_NAME[kind].rephrase_of or "chosen"
        target = self._how.counter.count(self.texts[base])
        return match_length(text, target, band, self._how.counter.count)
