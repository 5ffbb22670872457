"""Look a probe set over: what is missing, what is alike, what differs in form.

Two passes over the file: hashes first (which texts are whose chosen), then probe by
probe. Nothing but counts and hashes is kept, so that a set of any size can be looked
over. Faults that would stop a harness run are errors of :mod:`probe_set`; here are
those that would let it run and mislead.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldeval.errors import ProbeError
from ldeval.probes.assemble import RULE_SOURCE
from ldeval.probes.controls import edit_distance
from ldeval.probes.corpus import text_key
from ldeval.probes.standing import StandingFile, StandingProbe
from ldeval.probes.surface import leading_space, without_ending
from ldeval.probes.tokens import TokenCounter, token_counter
from ldeval.records import (
    DISTANCE_BINS,
    KIND_BY_NAME,
    KIND_NAMES,
    Finding,
    KindQuality,
    QualityReport,
)

LISTED = 20
"""Examples named for each finding."""
COMPARED_CHARS = 20_000
"""Edit distances are taken over so many characters at most."""
NEAR_COPY = 0.1
"""Edit distance below which a rephrase counts as a copy."""
LONG_ENOUGH = 20
"""Characters from which a response that stands in its own prompt is a finding."""
LENGTH_BAND = 1.5
"""A kind that has so many times more, or fewer, tokens than chosen is a finding."""
ENOUGH_PROBES = 64
"""Trained probes for verdicts worth having."""
_DERIVED = ("irrelevant_train", "irrelevant_test")
"""Kinds that are other prompts' chosen by design."""


def check_probes(
    path: str | Path, *, tokenizer: str | Path | None = None
) -> QualityReport:
    """Look over a probe file, a dataset folder or a file in the authors' format.

    Args:
        tokenizer: folder of the tokenizer that counts and splits; words without one.

    Raises:
        ProbeError: when the file is malformed, so that nothing could be scored.
    """
    reading = StandingFile(Path(path))
    counter = token_counter(tokenizer)
    look = _Look(counter, _Index(reading))
    for probe in reading:
        look.at(probe)
    if not look.splits.total():
        raise ProbeError("holds no probes.", path=path, remedy="Give at least one.")
    return QualityReport(
        path=str(path),
        format="reference" if reading.reference else "probes",
        content_hash=reading.content_hash,
        trained=look.splits[True],
        heldout=look.splits[False],
        unit=counter.unit,
        kinds=tuple(look.kinds()),
        findings=tuple(look.findings()),
        skipped_fields=reading.skipped_fields,
    )


class _Index:
    """Sorted hashes of all prompts and chosen responses, by split."""

    def __init__(self, probes: Iterable[StandingProbe]) -> None:
        chosen = {True: array("q"), False: array("q")}
        prompts = {True: array("q"), False: array("q")}
        ids = array("q")
        for probe in probes:
            ids.append(text_key(probe.probe_id))
            prompts[probe.trained].append(text_key(probe.prompt))
            if probe.texts.get("chosen", "").strip():
                chosen[probe.trained].append(text_key(probe.texts["chosen"].strip()))
        self._chosen = {split: np.sort(np.array(k)) for split, k in chosen.items()}
        self._prompts = {split: np.sort(np.array(k)) for split, k in prompts.items()}
        everyone = np.sort(np.array(ids))
        self.repeated_ids = int((everyone[1:] == everyone[:-1]).sum())

    def chosen_of(self, key: int, trained: bool) -> int:
        """How many probes of a split have this chosen response."""
        return _occurrences(self._chosen[trained], key)

    def prompts_of(self, key: int, trained: bool) -> int:
        """How many probes of a split have this prompt."""
        return _occurrences(self._prompts[trained], key)


def _occurrences(keys: Any, key: int) -> int:
    left, right = np.searchsorted(keys, [key, key + 1])
    return int(right - left)


@dataclass
class _KindLook:
    """What is counted of one kind."""

    splits: Counter[bool] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    tokens: int = 0
    chosen_tokens: int = 0
    distances: list[int] = field(default_factory=lambda: [0] * DISTANCE_BINS)
    distance_sum: float = 0.0
    same_first: int = 0
    keys: dict[bool, array[int]] = field(
        default_factory=lambda: {True: array("q"), False: array("q")}
    )


class _Look:
    """Counts, probe by probe."""

    def __init__(self, counter: TokenCounter, index: _Index) -> None:
        self.splits: Counter[bool] = Counter()
        self._counter = counter
        self._index = index
        self._kinds = {kind: _KindLook() for kind in KIND_NAMES}
        self._found: dict[str, Counter[str]] = defaultdict(Counter)
        self._examples: dict[str, list[str]] = defaultdict(list)

    def _note(self, code: str, probe: StandingProbe, kind: str = "") -> None:
        self._found[code][kind] += 1
        if len(self._examples[code]) < LISTED:
            self._examples[code].append(f"{probe.probe_id} {kind}".rstrip())

    def at(self, probe: StandingProbe) -> None:
        """Look at one probe."""
        self.splits[probe.trained] += 1
        self._prompt(probe)
        texts = {k: t for k, t in probe.texts.items() if t.strip()}
        chosen = texts.get("chosen", "")
        length = self._counter.count(chosen) if chosen else 0
        first = self._counter.first(chosen)
        keys = {kind: text_key(text.strip()) for kind, text in texts.items()}
        for kind, look in self._kinds.items():
            if kind not in texts:
                empty = kind in probe.texts
                if empty:
                    self._note("empty", probe, kind)
                reason = "empty" if empty else probe.missing.get(kind, "not given")
                look.missing[str(reason)] += 1
                continue
            text = texts[kind]
            look.splits[probe.trained] += 1
            tokens = self._counter.count(text)
            look.lengths[tokens] += 1
            look.tokens += tokens
            look.chosen_tokens += length
            look.same_first += self._counter.first(text) == first
            look.keys[probe.trained].append(keys[kind])
            if kind != "chosen" and chosen:
                self._beside_chosen(probe, kind, text, chosen)
                self._duplicates(probe, kind, keys)
            self._alone(probe, kind, text)
        self._between(probe, texts, keys)

    def _prompt(self, probe: StandingProbe) -> None:
        key = text_key(probe.prompt)
        if self._index.prompts_of(key, probe.trained) > 1:
            self._note("prompt repeated", probe)
        if not probe.trained and self._index.prompts_of(key, True):
            self._note("held-out prompt trained", probe)

    def _beside_chosen(
        self, probe: StandingProbe, kind: str, text: str, chosen: str
    ) -> None:
        """Form and distance, against the probe's own chosen response."""
        if leading_space(text) != leading_space(chosen):
            self._note("leading whitespace", probe, kind)
        if _ending(text) != _ending(chosen):
            self._note("ending", probe, kind)
        look = self._kinds[kind]
        distance = _distance(text, chosen)
        look.distance_sum += distance
        look.distances[min(int(distance * DISTANCE_BINS), DISTANCE_BINS - 1)] += 1

    def _duplicates(
        self, probe: StandingProbe, kind: str, keys: Mapping[str, int]
    ) -> None:
        """Texts that are some chosen response, and should not be."""
        trained = self._index.chosen_of(keys[kind], True)
        heldout = self._index.chosen_of(keys[kind], False)
        if kind == "irrelevant_test" and trained:
            self._note("unseen text is trained", probe, kind)
        if keys[kind] == keys["chosen"]:
            self._note("same as chosen", probe, kind)
        elif kind not in _DERIVED and trained + heldout:
            self._note("another probe's chosen", probe, kind)

    def _alone(self, probe: StandingProbe, kind: str, text: str) -> None:
        body = text.strip()
        if len(body) >= LONG_ENOUGH and body in probe.said:
            self._note("in its own prompt", probe, kind)
        if any(_is_control(c) for c in body):
            self._note("control characters", probe, kind)
        if probe.sources.get(kind) == RULE_SOURCE:
            self._note("made by a rule", probe, kind)

    def _between(
        self, probe: StandingProbe, texts: Mapping[str, str], keys: Mapping[str, int]
    ) -> None:
        """Between the kinds of one probe, chosen aside."""
        seen: dict[int, str] = {}
        for kind in KIND_NAMES:
            if kind == "chosen" or kind not in texts:
                continue
            if keys[kind] in seen and keys[kind] != keys.get("chosen"):
                self._note("two kinds alike", probe, kind)
            seen.setdefault(keys[kind], kind)
            base = KIND_BY_NAME[kind].rephrase_of
            if base is not None and base in texts and keys[kind] != keys[base]:
                near = _distance(texts[kind], texts[base], NEAR_COPY)
                if near < NEAR_COPY:
                    self._note("near copy", probe, kind)
        if {"random_words", "irrelevant_test"} <= set(texts):
            words = sorted(texts["random_words"].split())
            if words != sorted(texts["irrelevant_test"].split()):
                self._note("other words", probe, "random_words")

    # ------------------------------------------------------------------- results

    def kinds(self) -> Iterator[KindQuality]:
        """Every kind that is there, or said to be missing."""
        for kind, look in self._kinds.items():
            count = look.splits.total()
            if not count and set(look.missing) == {"not given"}:
                continue
            compared = sum(look.distances)
            yield KindQuality(
                kind=kind,
                trained=look.splits[True],
                heldout=look.splits[False],
                missing=dict(sorted(look.missing.items())),
                lengths=tuple(sorted(look.lengths.items())),
                tokens_ratio=_ratio(look.tokens, look.chosen_tokens),
                distances=() if kind == "chosen" else tuple(look.distances),
                mean_distance=_ratio(look.distance_sum, compared),
                same_first_token=look.same_first,
                distinct=sum(len(np.unique(np.array(k))) for k in look.keys.values()),
            )

    def findings(self) -> Iterator[Finding]:
        """What was found, the gravest first."""
        kinds = list(self.kinds())
        found = dict(self._found)
        found["repeated text"] = Counter(
            {q.kind: q.count - q.distinct for q in kinds if q.count > q.distinct}
        )
        found["length"] = Counter(
            {
                q.kind: q.count
                for q in kinds
                if q.kind != "chosen"
                and q.count
                and not 1 / LENGTH_BAND <= q.tokens_ratio <= LENGTH_BAND
            }
        )
        probes = self.splits.total()
        found["kind missing"] = Counter(
            {kind: probes - look.splits.total() for kind, look in self._kinds.items()}
        )
        if self._index.repeated_ids:
            found["id repeated"] = Counter({"": self._index.repeated_ids})
        if self.splits[True] < ENOUGH_PROBES:
            found["few probes"] = Counter({"": self.splits[True]})
        for code in FINDINGS:
            by_kind = {k: n for k, n in found.get(code, {}).items() if n}
            if by_kind:
                named = {k: by_kind[k] for k in KIND_NAMES if k in by_kind}
                examples = tuple(self._examples.get(code, ()))
                yield Finding(code, sum(by_kind.values()), named, examples)


FINDINGS = (
    "id repeated",
    "held-out prompt trained",
    "unseen text is trained",
    "same as chosen",
    "another probe's chosen",
    "two kinds alike",
    "repeated text",
    "prompt repeated",
    "near copy",
    "in its own prompt",
    "other words",
    "leading whitespace",
    "ending",
    "length",
    "empty",
    "kind missing",
    "made by a rule",
    "control characters",
    "few probes",
)
"""The codes of findings, the gravest first."""


def _ending(text: str) -> str:
    return text[len(without_ending(text)) :]


def _distance(text: str, other: str, cutoff: float = 1.0) -> float:
    return edit_distance(text[:COMPARED_CHARS], other[:COMPARED_CHARS], cutoff)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _is_control(character: str) -> bool:
    return (
        character < " " and character not in "\t\n\r"
    ) or "\x7f" <= character < "\xa0"
