"""Count tokens: with a model's own tokenizer, or as words where none is given.

Apart from ``scoring.encode``, which needs a whole model stack: here a file
``tokenizer.json`` is enough, and no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ldeval.errors import MissingExtraError, ProbeError

_PIECE = re.compile(r"\s*(?:\w+|[^\w\s])")


@dataclass(frozen=True)
class TokenCounter:
    """How the length of a text is measured."""

    unit: str
    """What is counted, for tables: ``tokens of NAME`` or ``words``."""
    count: Callable[[str], int]
    """Text to its number of tokens, special ones aside."""
    first: Callable[[str], str]
    """The first token of a text, with the whitespace before it."""


def token_counter(folder: str | Path | None = None) -> TokenCounter:
    """The tokenizer of a model folder; words and punctuation marks without one.

    Raises:
        ProbeError: when the folder holds no ``tokenizer.json`` that can be read.
        MissingExtraError: when the ``tokenizers`` package is absent.
    """
    if folder is None:
        return TokenCounter("words", _count_words, _first_word)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("tokenizers", "hf") from error
    path = Path(folder)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ProbeError(
            "is not there.",
            path=path,
            remedy="Give the folder of a model with a fast tokenizer.",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception on a bad file
        raise ProbeError(
            f"is not a tokenizer that can be read ({error}).",
            path=path,
            remedy="Save the tokenizer again.",
        ) from error

    # a tokenizer that was saved while it trained may cut texts, or fill them up
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    def first(text: str) -> str:
        offsets = tokenizer.encode(text[:200], add_special_tokens=False).offsets
        return text[: offsets[0][1]] if offsets else ""

    name = path.parent.name if path.name == "tokenizer.json" else path.name
    return TokenCounter(f"tokens of {name}", count, first)


def _count_words(text: str) -> int:
    return len(_PIECE.findall(text))


def _first_word(text: str) -> str:
    match = _PIECE.match(text)
    return match.group() if match else text
