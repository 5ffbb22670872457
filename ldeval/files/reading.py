"""Reading files, and fetching those at URLs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

from ldeval.errors import StoreError
from ldeval.files.places import is_remote, named, storage_errors, tried
from ldeval.redact import redact_url


def read_text(path: Path) -> str:
    """The content of a file, as UTF-8.

    Raises:
        FileNotFoundError: there is none.
        UnicodeDecodeError: it is no UTF-8.
        StoreError: it cannot be read.
    """
    try:
        if not is_remote(path):
            return path.read_text(encoding="utf-8")
        return tried(path, path.read_bytes).decode("utf-8")
    except FileNotFoundError:
        raise
    except storage_errors() as error:
        raise StoreError(
            f"{redact_url(str(path))}: cannot be read ({error or type(error)})."
        ) from error


def local_copy(path: Path, version: str = "") -> Path:
    """The file on this machine: itself, or for a URL a copy that goes when the process
    ends, or the innermost block of :func:`passing_downloads`.

    Args:
        version: tells apart what stood at one URL at different times.

    Raises:
        StoreError: it cannot be fetched.
    """
    if not is_remote(path):
        return path
    key = hashlib.sha256(f"{path}\0{version}".encode()).hexdigest()
    folders = (_downloads(), *_passing.get())
    target = next((f / key for f in folders if (f / key).exists()), folders[-1] / key)
    if not target.exists():
        remote = cast(Any, path)
        partial = target.with_suffix(".partial")
        with named(path, "Is it there, and can it be reached?", doing="read"):
            tried(path, lambda: remote.fs.get_file(remote.path, str(partial)))
        partial.replace(target)
    return target


@contextlib.contextmanager
def passing_downloads() -> Iterator[None]:
    """Let go, when the block ends, of the copies that it fetched: a sweep reads tables
    of every step, each for a while."""
    with tempfile.TemporaryDirectory(prefix="ldeval-") as folder:
        before = _passing.set((*_passing.get(), Path(folder)))
        try:
            yield
        finally:
            _passing.reset(before)


_passing: ContextVar[tuple[Path, ...]] = ContextVar("passing", default=())
"""Folders of the blocks that this thread is in, the innermost last."""


@functools.cache
def _downloads() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="ldeval-")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[Any] = []
"""Keeps the folder of downloads until the process ends."""


def file_size(path: Path) -> int:
    """Bytes."""
    return int(path.stat().st_size)
