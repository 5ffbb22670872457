"""Make the kinds of a probe comparable in length: trim, or leave out.

Sums of log-probabilities are not comparable between lengths, and even means are not
quite: later tokens are easier. Chosen and rejected are what is trained, so they are
never cut; the other kinds are brought into a band around the one that they stand
beside.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

_WORD = re.compile(r"\S+")
_CLOSERS = "\"'”’)]»"


@dataclass(frozen=True)
class LengthBand:
    """How far a token count may be from the one that it is matched to."""

    ratio: float = 1.25
    """Between n / ratio and n · ratio; above 1."""

    def low(self, target: int) -> float:
        """The fewest tokens allowed."""
        return target / self.ratio

    def high(self, target: int) -> float:
        """The most tokens allowed."""
        return target * self.ratio


def match_length(
    text: str, target: int, band: LengthBand, count: Callable[[str], int]
) -> str | None:
    """A text within the band around ``target`` tokens.

    A longer text is cut at the end of a sentence where one lies within the band, or
    else after a word.

    Returns:
        The text; None where it is too short, or no cut lies within the band.
    """
    low, high = band.low(target), band.high(target)
    if count(text) <= high:
        return text if count(text) >= low else None
    ends = [match.end() for match in _WORD.finditer(text)]
    kept = bisect_right(ends, high, key=lambda end: count(text[:end]))
    best: str | None = None
    for end in reversed(ends[:kept]):
        cut = text[:end]
        if count(cut) < low:
            break
        if best is None:
            best = cut
        if cut.rstrip(_CLOSERS).endswith((".", "!", "?")):
            return cut
    return best
