"""Whether a record that was read from a file has the types that it declares.

Dataclasses do not look; what came from others' JSON must be looked at once, where it is
read, so that nothing later trips over a text in place of a number.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from ldeval.printable import quoted


def check_types(record: Any) -> None:
    """Compare every field of a dataclass with its annotation, deeply.

    Understood are the types of JSON: text, numbers, truth, None, tuples, mappings,
    literals, unions, ``Any`` and dataclasses of those; and arrays of numbers. Integers
    have 64 bits at most.

    Raises:
        TypeError: naming the field, what it is and what it should be.
    """
    kind: Any = type(record)
    for name, hint in _hints(kind).items():
        value = getattr(record, name)
        if not _fits(value, hint):
            raise TypeError(f"field {name!r} is {quoted(value)}, not {_called(hint)}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _called(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return value in inner if isinstance(value, str | int) else False
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in inner)
    if origin is np.ndarray:
        scalar = get_args(inner[1])[0]
        number = get_origin(scalar) or scalar
        return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, number)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, inner[0]) for v in value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(item, inner[1])
            for key, item in value.items()
        )
    if dataclasses.is_dataclass(hint):
        kind: Any = hint
        if not isinstance(value, kind):
            return False
        return all(_fits(getattr(value, n), h) for n, h in _hints(kind).items())
    if hint is float and type(value) is float:
        return True
    if hint in (int, float):
        return type(value) is int and abs(value) < 1 << 63
    return type(value) is hint
