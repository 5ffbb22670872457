"""The text of token ids, read from a ``tokenizer.json``.

A decoder joins tokens into sentences and drops the space before a word on the way;
here every token keeps its own characters. The file is read as data: no tokenizer runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldeval.errors import CheckpointError
from ldeval.files import MALFORMED, lenient_json

TOKENIZER = "tokenizer.json"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


@dataclass(frozen=True)
class Pieces:
    """What each token id spells."""

    spelled: Mapping[int, bytes]
    """UTF-8 bytes by id; a character may be spread over several tokens."""
    path: str
    """The file they were read from."""

    def joined(self, tokens: Iterable[int]) -> str:
        """Several tokens as one text."""
        whole = b"".join(self.spelled.get(token, b"?") for token in tokens)
        return whole.decode("utf-8", "replace")

    def text(self, token: int) -> str | None:
        """The token as text; a byte that is no whole character becomes the lone
        surrogate U+DC00 + byte. None for an id that the tokenizer has not."""
        found = self.spelled.get(token)
        return None if found is None else found.decode("utf-8", "surrogateescape")


def read_pieces(place: str | Path) -> Pieces:
    """The pieces of a tokenizer.

    Args:
        place: a ``tokenizer.json``, or a folder that holds one.

    Raises:
        CheckpointError: there is none, or it is not a tokenizer.
    """
    path = Path(place)
    path = path / TOKENIZER if path.is_dir() else path
    try:
        rules = lenient_json(path.read_text(encoding="utf-8"))
        return Pieces(_spelled(rules), str(path))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}). Name a tokenizer.json, or a "
            "folder that holds one, with --tokenizer."
        ) from error
    except MALFORMED as error:
        raise CheckpointError(
            f"{path}: not a tokenizer ({error!r}). Name another with --tokenizer; "
            "without any, tokens are shown by their ids."
        ) from error


def _spelled(rules: Mapping[str, Any]) -> dict[int, bytes]:
    vocabulary = rules["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        named = {int(number): str(token) for token, number in vocabulary.items()}
    else:  # Unigram: pairs of token and score
        named = {number: str(pair[0]) for number, pair in enumerate(vocabulary)}
    steps = json.dumps([rules.get("decoder"), rules.get("pre_tokenizer")])
    if "ByteLevel" in steps:
        letters = _byte_of_letter()
        found = {n: _bytes_of_letters(t, letters) for n, t in named.items()}
    else:
        prefix = rules["model"].get("continuing_subword_prefix") or ""
        found = {n: _bytes_of_word(t, prefix) for n, t in named.items()}
    for token in rules.get("added_tokens") or ():
        found[int(token["id"])] = str(token["content"]).encode("utf-8", "replace")
    return found


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for letters
    from U+0100 on, so that every byte has a glyph."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


def _bytes_of_letters(token: str, letters: Mapping[str, int]) -> bytes:
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token)
    return token.encode("utf-8", "replace")


def _bytes_of_word(token: str, prefix: str) -> bytes:
    if match := _BYTE.fullmatch(token):
        return bytes([int(match.group(1), 16)])
    if prefix and token.startswith(prefix):
        token = token.removeprefix(prefix)
    return token.replace(_SPACE, " ").encode("utf-8", "replace")
