"""What is wrong with an answer of a rephrasing model, if anything.

A rephrase that is empty, a refusal, an echo of its instruction or a copy measures
something else than its kind says, and would be scored all the same. Each rule has a
name, by which what it caught is counted; the thresholds are arguments.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz.distance import Levenshtein

from ldeval.errors import ProbeError

REASONS: Mapping[str, str] = {
    "empty": "nothing came back",
    "refusal": "the model declined",
    "echo": "it repeats the instruction, or begins with a preface",
    "copy": "it is the reference, or nearly",
    "length": "it is too short or too long",
    "script": "it is written in another script than the reference",
    "loop": "it repeats itself",
    "cut off": "the token limit cut it off",
    "duplicate": "another probe has the same text",
    "refused": "the endpoint refused the request itself, as too long, say",
    "no answer": "the endpoint gave no answer",
}
"""Why an answer is rejected: the name that is counted, and what it means."""

_REFUSAL = re.compile(
    r"\b(?:i['’]?m sorry|i am sorry|i apologi[sz]e|(?:as|i am|i['’]m) an ai\b"
    r"|as a language model"
    r"|i (?:can['’]?t|cannot|can not|won['’]?t|am unable to|['’]?m unable to"
    r"|am not able to|['’]?m not able to) (?:assist|help|fulfil|comply|provide"
    r"|generate|create|rephrase|write|do that|answer|engage))",
    re.IGNORECASE,
)
_LABEL = re.compile(r"\b(?:reference|output) sentence\b|^\s*output\s*:", re.IGNORECASE)
_PREFACE = re.compile(
    r"\A\s*(?:sure|certainly|of course|absolutely|here(?:['’]s| is| are))\b"
    r"[^\n.:]{0,80}:\s"
    r"|\bhere(?:['’]s| is) (?:a|an|the|one|your)\b[^\n.:]{0,60}"
    r"\b(?:sentence|version|rephrase|paraphrase|output|words)\b[^\n.:]{0,20}:"
    r"|\bhope (?:this|that) helps\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")
_SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff"
_UNIT = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")
"""A word; Chinese, Japanese, Thai and Lao by the character."""


@dataclass(frozen=True)
class Controls:
    """The thresholds."""

    min_distance: float = 0.1
    """Edit distance to the reference, divided by the longer length, below which an
    answer counts as a copy."""
    min_ratio: float = 0.5
    """Fewest words, as a share of the reference's."""
    max_ratio: float = 2.0
    """Most words, likewise."""
    slack_words: int = 3
    """So many words more or fewer are always allowed: short texts jump in ratio."""
    max_other_script: float = 0.2
    """Share of letters in scripts that the reference does not use."""
    max_repeated: float = 0.3
    """Share of word 4-grams that occurred before in the same answer."""
    echo_words: int = 6
    """Consecutive words of the instruction that make an echo."""

    def __post_init__(self) -> None:
        """Raises:
        ProbeError: when the length band leaves out the reference's own length.
        """
        if not 0 < self.min_ratio <= 1 <= self.max_ratio:
            raise ProbeError(
                f"a length band from {self.min_ratio} to {self.max_ratio} of the "
                "reference; it must hold 1.",
                remedy="Give --length-band LOW HIGH, as 0.5 2.",
            )


def fault(
    answer: str,
    *,
    reference: str,
    instruction: str,
    words: int,
    finished: bool,
    controls: Controls,
) -> str | None:
    """The name of the first rule that an answer breaks; None where it breaks none.

    Args:
        answer: what came back, cleaned by :func:`cleaned`.
        reference: the text that it was to rephrase, or that it stands beside.
        instruction: the request without the reference.
        words: how many words were wanted.
        finished: whether the model stopped by itself.
    """
    if not answer.strip():
        return "empty"
    if _REFUSAL.search(answer[:300]) and not _REFUSAL.search(reference[:300]):
        return "refusal"
    if _echoes(answer, reference, instruction, controls.echo_words):
        return "echo"
    if not finished:
        return "cut off"
    count = word_count(answer)
    low, high = controls.min_ratio * words, controls.max_ratio * words
    if not low <= count <= high and abs(count - words) > controls.slack_words:
        return "length"
    if other_script_share(answer, reference) > controls.max_other_script:
        return "script"
    own = repeated_share(answer)
    if own > controls.max_repeated and own > repeated_share(reference) + 0.1:
        return "loop"
    if edit_distance(answer, reference, controls.min_distance) < controls.min_distance:
        return "copy"
    return None


def cleaned(answer: str, reference: str) -> str:
    """An answer without a leading "Output:" and without quotes put around it whole."""
    text = re.sub(r"\A\s*output\s*:\s*", "", answer, flags=re.IGNORECASE).strip()
    for left, right in (('"', '"'), ("“", "”"), ("'", "'"), ("`", "`")):
        bare = text[1:-1]
        if (
            len(text) > 2
            and text.startswith(left)
            and text.endswith(right)
            and not {left, right} & set(bare)
            and not reference.strip().startswith(left)
        ):
            return bare.strip()
    return text


def _echoes(answer: str, reference: str, instruction: str, size: int) -> bool:
    for pattern in (_LABEL, _PREFACE):
        if pattern.search(answer) and not pattern.search(reference):
            return True
    told = _grams(_words(instruction), size) - _grams(_words(reference), size)
    return bool(told & _grams(_words(answer), size))


def word_count(text: str) -> int:
    """Words between spaces; each character of a script that sets none counts as one."""
    return len(_UNIT.findall(text))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(items: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(items[n : n + size]) for n in range(len(items) - size + 1)}


def edit_distance(text: str, other: str, cutoff: float = 1.0) -> float:
    """Levenshtein distance over the longer length, in [0, 1]; outer whitespace aside.

    Distances above ``cutoff`` come back as 1, in less time.
    """
    return float(
        Levenshtein.normalized_distance(
            text.strip(), other.strip(), score_cutoff=cutoff
        )
    )


def repeated_share(text: str) -> float:
    """Share of word 4-grams that occurred before; of characters, 12-grams, where a
    script sets no spaces. 0 for texts too short to tell."""
    words = _words(text)
    if len(words) >= 12:
        grams = Counter(tuple(words[n : n + 4]) for n in range(len(words) - 3))
    elif len(text) >= 60:
        grams = Counter((text[n : n + 12],) for n in range(len(text) - 11))
    else:
        return 0.0
    return 1 - len(grams) / grams.total()


def other_script_share(text: str, reference: str) -> float:
    """Share of the text's letters in scripts that hold under 5% of the reference's.

    0 where either has no letters.
    """
    own, wanted = _scripts(text), _scripts(reference)
    if not own.total() or not wanted.total():
        return 0.0
    used = {name for name, n in wanted.items() if n >= 0.05 * wanted.total()}
    return sum(n for name, n in own.items() if name not in used) / own.total()


def _scripts(text: str) -> Counter[str]:
    return Counter(_script(c) for c in text if c.isalpha())


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """The first word of a letter's Unicode name; Japanese and Chinese writing mix, so
    they count as one."""
    name = unicodedata.name(letter, "unnamed").split()[0].split("-")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "CJK") else name
