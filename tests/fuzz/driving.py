"""How a reader is driven: where its bytes are put, and how several files are one input.

Bytes are kept in a folder in memory where the system has one.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldeval.errors import LdevalError
from tests.fuzz.oracle import refused

Form = Literal[
    "json",
    "lines",
    "parquet",
    "bytes",
    "header",
    "two parquet",
    "json and parquet",
    "json and bytes",
]
"""How a target's bytes are laid out, for mutations that keep to it. ``header``: JSON
after its length in 8 bytes, as in safetensors; the last three are of two files."""


@dataclass(frozen=True)
class Target:
    """One reader."""

    name: str
    form: Form
    seeds: Callable[[], list[bytes]]
    """Files as the real writers make them."""
    check: Callable[[bytes], bool]
    """Whether the reader accepts the bytes; raises whatever it must not raise."""


@functools.cache
def _folder() -> Path:
    memory = Path("/dev/shm")
    root = memory if memory.is_dir() else None
    holder = tempfile.TemporaryDirectory(prefix="ldeval-fuzz-", dir=root)
    _KEPT.append(holder)
    return Path(holder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []
"""Goes when the process ends."""


def file_of(name: str) -> Path:
    """A file of a target's own folder, which is made."""
    path = _folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def given(path: Path, reader: Callable[[], Any], *beside: str) -> Any:
    """What the reader gives; None where it refuses as it should.

    Args:
        beside: other files that an error may name.
    """
    try:
        return reader()
    except LdevalError as error:
        refused(error, path.name, *beside)
        return None


def json_lines(records: list[dict[str, Any]]) -> bytes:
    """Records as a JSON Lines file."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def joined(first: bytes, second: bytes) -> bytes:
    """Two files as one input: the length of the first in 4 bytes, then both."""
    return len(first).to_bytes(4, "little") + first + second


def parted(data: bytes) -> tuple[bytes, bytes]:
    """The two files of :func:`joined`."""
    size = int.from_bytes(data[:4], "little")
    return data[4 : 4 + size], data[4 + size :]
