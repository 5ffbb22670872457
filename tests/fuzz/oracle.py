"""What must hold of a reader, whatever bytes it is given.

It gives valid records, each field of the type that the record declares, and these can
be written and read back alike; or it raises an error of ldeval's that names the file.
Apart from :mod:`tests.fuzz.targets`, which say how each reader is driven.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ldeval.errors import LdevalError


class BrokenRule(AssertionError):
    """A reader gave what it must not give."""


def refused(error: LdevalError, *names: str) -> None:
    """Hold an error against the rule that it names the file.

    Raises:
        BrokenRule: it names none of them, or its text cannot be shown.
    """
    text = str(error)
    if not any(name in text for name in names):
        raise BrokenRule(f"the error names no file of {names}: {text!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BrokenRule(f"the error cannot be printed: {text!r}") from None


def alike(one: Any, other: Any, where: str = "record") -> None:
    """Hold what was read against what was written and read again; NaN equals NaN.

    Raises:
        BrokenRule: naming the first difference.
    """
    if type(one) is not type(other):
        raise BrokenRule(f"{where}: {type(one)} became {type(other)}")
    if dataclasses.is_dataclass(one):
        for item in dataclasses.fields(one):
            name = item.name
            alike(getattr(one, name), getattr(other, name), f"{where}.{name}")
    elif isinstance(one, np.ndarray):
        same = one.dtype.kind == other.dtype.kind and np.array_equal(
            one, other, equal_nan=one.dtype.kind == "f"
        )
        if not same:
            raise BrokenRule(f"{where}: {one!r} became {other!r}")
    elif isinstance(one, Mapping):
        if one.keys() != other.keys():
            raise BrokenRule(f"{where}: {list(one)} became {list(other)}")
        for name in one:
            alike(one[name], other[name], f"{where}[{name!r}]")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            raise BrokenRule(f"{where}: {len(one)} items became {len(other)}")
        for number, pair in enumerate(zip(one, other, strict=True)):
            alike(*pair, f"{where}[{number}]")
    elif isinstance(one, float) and math.isnan(one) and math.isnan(other):
        return
    elif one != other:
        raise BrokenRule(f"{where}: {one!r} became {other!r}")


def valid(value: Any, hint: Any = None, where: str = "record") -> None:
    """Hold a record against its own annotations.

    Raises:
        BrokenRule: a field is of another type than it declares.
    """
    hint = type(value) if hint is None else hint
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    good = True
    if hint is Any:
        return
    if origin in (typing.Union, types.UnionType):
        good = any(_holds(value, item, where) for item in inner)
    elif origin is Literal:
        good = any(value is not True and value == item for item in inner)
    elif origin is np.ndarray:
        good = isinstance(value, np.ndarray) and _dtype_holds(value, inner[1])
    elif origin is tuple:
        good = isinstance(value, tuple)
        for number, item in enumerate(value if good else ()):
            valid(item, inner[0], f"{where}[{number}]")
    elif origin is not None:
        good = isinstance(value, Mapping)
        for name, item in value.items() if good else ():
            valid(name, inner[0], f"{where} (a name)")
            valid(item, inner[1], f"{where}[{name!r}]")
    elif dataclasses.is_dataclass(hint):
        good = isinstance(value, typing.cast(type, hint))
        hints = typing.get_type_hints(hint)
        for item in dataclasses.fields(hint) if good else ():
            valid(getattr(value, item.name), hints[item.name], f"{where}.{item.name}")
    elif hint in (None, type(None)):
        good = value is None
    elif hint is float:
        good = type(value) in (int, float)
    elif hint is str:
        good = isinstance(value, str) and _is_text(value)
    else:
        good = type(value) is hint
    if not good:
        raise BrokenRule(f"{where} is {value!r}, not {hint}")


def _holds(value: Any, hint: Any, where: str) -> bool:
    try:
        valid(value, hint, where)
    except BrokenRule:
        return False
    return True


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _dtype_holds(value: np.ndarray, hint: Any) -> bool:
    scalar = typing.get_args(hint)[0]
    scalar = typing.get_origin(scalar) or scalar
    return np.issubdtype(value.dtype, scalar)
