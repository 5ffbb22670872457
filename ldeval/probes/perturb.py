"""Offline variations of responses: permutations, derangements, sentence joins.

Everything here is text in, text out, seeded and without a model, so that a probe set
can be rebuilt byte for byte.
"""

from __future__ import annotations

import random
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
