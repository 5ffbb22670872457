"""Blocks of a long computation, kept as they finish, so that a kill costs one block.

One JSON object a line. The first says what the numbers depend on; a journal of anything
else is refused, not mixed in. A line that a kill cut short is dropped and done again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ldeval.errors import StoreError
from ldeval.files import lenient_json, named, remove

_NO_LINE = (ValueError, KeyError, TypeError, AttributeError, OverflowError)
"""What a line of another shape raises."""


class Journal:
    """Finished blocks by name; to be used in a ``with`` statement."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Args:
        path: the file; None keeps nothing.
        settings: what the numbers depend on, as JSON.

        Raises:
            StoreError: when the file is of other settings, naming one that differs.
        """
        self._path = path
        self._settings = json.loads(json.dumps(dict(settings)))
        self._blocks: dict[str, list[float]] = {}
        self._handle: Any = None

    def __enter__(self) -> Self:
        if self._path is None:
            return self
        with named(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._read() if self._path.is_file() else 0
            self._handle = self._path.open("ab")
            self._handle.truncate(whole)
        if not whole:
            self._append({"settings": self._settings})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            # what a full disk refused is still in the buffer, and refused again
            with contextlib.suppress(OSError):
                self._handle.close()

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, name: str) -> list[float] | None:
        """A finished block."""
        return self._blocks.get(name)

    def put(self, name: str, values: Sequence[float]) -> None:
        """Keep a finished block: it is on disk when this returns.

        Raises:
            StoreError: the disk is full, say; blocks that were kept stay.
        """
        self._blocks[name] = list(values)
        if self._handle is not None:
            self._append({"block": name, "values": self._blocks[name]})

    def delete(self) -> None:
        """Away with the file: everything in it is stored elsewhere."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
        if self._path is not None:
            remove(self._path)

    def _append(self, record: Mapping[str, Any]) -> None:
        assert self._path is not None
        with named(self._path):
            self._handle.write(json.dumps(record).encode() + b"\n")
            self._handle.flush()
            os.fsync(self._handle.fileno())

    def _read(self) -> int:
        """Take up what is there; returns the length of its whole lines in bytes."""
        assert self._path is not None
        whole = 0
        with self._path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = lenient_json(line)
                    if number == 1:
                        self._check(record["settings"])
                    else:
                        self._blocks[record["block"]] = [
                            float(v) for v in record["values"]
                        ]
                except _NO_LINE as error:
                    raise StoreError(
                        f"{self._path}:{number}: not a line of a journal ({error}). "
                        "Delete the file to begin anew."
                    ) from error
                whole += len(line)
        return whole

    def _check(self, found: Mapping[str, Any]) -> None:
        for name in sorted(found.keys() | self._settings.keys()):
            if found.get(name) != self._settings.get(name):
                raise StoreError(
                    f"{self._path}: holds a computation with {name} = "
                    f"{str(found.get(name))[:80]}, not {name} = "
                    f"{str(self._settings.get(name))[:80]}. Give another --output, or "
                    "delete the file to begin anew."
                )
