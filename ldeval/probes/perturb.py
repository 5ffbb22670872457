"""Offline variations of responses: permutations, derangements, sentence joins.

Everything here is text in, text out, seeded and without a model, so that a probe set
can be rebuilt byte for byte.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence


def permute_words(text: str, rng: random.Random) -> str | None:
    """The words of ``text`` in a truly different order.

    Words are what whitespace separates; runs of whitespace become one space, and
    leading whitespace is kept, so that the first token is reached the same way.

    Returns:
        The permutation, or None where no different order exists (one word, or all
        words alike).
    """
    words = text.split()
    if len(set(words)) < 2:
        return None
    lead = text[: len(text) - len(text.lstrip())]
    shuffled = list(words)
    while shuffled == words:
        rng.shuffle(shuffled)
    return lead + " ".join(shuffled)


def derangement(size: int, rng: random.Random) -> list[int]:
    """A random permutation without a fixed point: each index once, never its own.

    Drawn uniformly by rejection (about e tries).

    Raises:
        ValueError: for ``size`` 1, which has none.
    """
    if size == 1:
        raise ValueError("one item cannot be deranged; at least two are needed")
    order = list(range(size))
    while any(place == item for place, item in enumerate(order)):
        rng.shuffle(order)
    return order


class SentencePool:
    """Unconnected sentences, each handed out once, joined to a wanted length."""

    def __init__(self, sentences: Sequence[str], rng: random.Random) -> None:
        self._left = list(sentences)
        rng.shuffle(self._left)

    def take(self, words: int) -> str:
        """Sentences of about ``words`` words in all, taken out of the pool.

        While a longest sentence still fits, the next of the shuffled pool is taken;
        the rest is filled with the sentence of the nearest length.

        Raises:
            ValueError: when the pool runs out.
        """
        picked: list[str] = []
        missing = words
        while missing > 0:
            if not self._left:
                raise ValueError("the sentence pool has run out; add sentences to it")
            longest = max(len(sentence.split()) for sentence in self._left)
            if missing > longest:
                sentence = self._left[0]
            else:
                sentence = min(self._left, key=lambda s: abs(missing - len(s.split())))
                if picked and abs(missing - len(sentence.split())) >= missing:
                    break
            self._left.remove(sentence)
            picked.append(sentence)
            missing -= len(sentence.split())
        return " ".join(picked)


_GRAMMAR = """
    a an the this that these those my your his her its our their some any no every
    each all both few many much more most other another such i you he she it we they
    me him us them who whom whose which what where when why how and or but nor so
    yet if then than because although though while until unless since as of in on at
    by for with about against between into through during before after above below
    to from up down out off over under again further once here there not only own
    same too very just also even am is are was were be been being have has had do
    does did will would shall should can could may might must let don't doesn't
    didn't can't isn't aren't wasn't won't it's that's i'm you're we're they're i've
    you've
"""
FUNCTION_WORDS = frozenset(_GRAMMAR.split())
"""Words that carry the grammar of a sentence: kept where meaning is exchanged."""

_TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d|\s+|.", re.DOTALL)
_ENDINGS = ("ing", "tion", "ness", "ment", "able", "est", "ed", "ly", "er", "es", "s")


def exchange_content_words(text: str, donor: str, rng: random.Random) -> str | None:
    """The text's form with other content: a *rule's* stand-in for a format rephrase.

    Function words, punctuation, spacing and capitals stay. Each content word gives way
    to a word of ``donor`` with the same ending and of about the same length, the same
    word always to the same; digits become other digits. The result keeps the form, but
    nobody checked its sense: mark it as made by a rule.

    Returns:
        The new text; None where fewer than half of the content words can be exchanged.
    """
    pool = sorted({w.lower() for w in _TOKEN.findall(donor) if _is_content(w)})
    given: dict[str, str] = {}
    exchanged = total = 0
    parts = []
    for token in _TOKEN.findall(text):
        if token.isdigit():
            token = rng.choice([d for d in "123456789" if d != token])
        elif _is_content(token):
            total += 1
            key = token.lower()
            if key not in given:
                given[key] = _alike(key, pool, rng)
            exchanged += given[key] != key
            token = _capitalised_as(given[key], token)
        parts.append(token)
    return "".join(parts) if total and exchanged * 2 >= total else None


def _is_content(token: str) -> bool:
    return (
        token[:1].isalpha() and len(token) > 1 and token.lower() not in FUNCTION_WORDS
    )


def _ending(word: str) -> str:
    found = (e for e in _ENDINGS if word.endswith(e) and len(word) > len(e) + 2)
    return next(found, "")


def _alike(word: str, pool: Sequence[str], rng: random.Random) -> str:
    """A word of the pool with the same ending, one of the three nearest in length."""
    same = [w for w in pool if w != word and _ending(w) == _ending(word)]
    nearest = sorted(same, key=lambda w: (abs(len(w) - len(word)), w))[:3]
    return rng.choice(nearest) if nearest else word


def _capitalised_as(word: str, model: str) -> str:
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word
