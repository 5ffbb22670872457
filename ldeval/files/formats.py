"""Records and numbers out of files that others may have written."""

from __future__ import annotations

import contextlib
import json
import math
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from ldeval.errors import LdevalError, StoreError
from ldeval.redact import redact_url


@contextlib.contextmanager
def understood(path: Path, remedy: str) -> Iterator[None]:
    """Turn what a record of a wrong shape raises into an error that names the file.

    Raises:
        StoreError: a field is missing, of another type, out of range or nested without
            end; an error of ours passes.
    """
    try:
        yield
    except LdevalError:
        raise
    except MALFORMED as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else repr(error)
        raise StoreError(
            f"{redact_url(str(path))}: does not hold what it should ({reason}). "
            f"{remedy}"
        ) from error


DAMAGED_ARRAY: tuple[type[Exception], ...] = (
    OSError,
    AttributeError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy raises at a damaged ``.npy`` or ``.npz``: it reads the header as Python,
and makes room for as much as the header says."""

MALFORMED: tuple[type[Exception], ...] = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What code raises that takes from a file what its kind holds, where this one does not:
an id that is Infinity among it."""


def strict_json(
    text: str | bytes, *, undefined: bool = False, surrogates: bool = False
) -> Any:
    """A JSON value without NaN and Infinity, which are none of JSON's, and without what
    Python would let pass: a name twice in an object, and halves of characters.

    Args:
        text: bytes are UTF-8.
        undefined: take NaN and Infinity, where a writer uses them for the unknown.
        surrogates: take halves of characters, where they are looked for later.

    Raises:
        ValueError: it is not JSON, or nested without end.
    """
    text = text if isinstance(text, str) else text.decode("utf-8")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_each_name_once,
            parse_constant=None if undefined else _no_number,
            parse_float=None if undefined else _finite,
        )
        if "\\u" in text and not surrogates:  # only an escape can be half a character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("holds a lone surrogate, which is not text") from error
    return value


def lenient_json(text: str | bytes) -> Any:
    """A value as Python reads it: with NaN and Infinity, with the last of a name that
    stands twice, and with halves of characters, which other writers let through.

    Raises:
        ValueError: it is not JSON, or nested without end.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the name {twice[:40]!r} stands twice in one object")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else cast(float, _no_number(text))
