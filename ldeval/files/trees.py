"""Removing files, and moving folders as a whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, cast

from ldeval.files.places import REACH, is_remote, named


def remove(path: Path) -> None:
    """Delete a file, if it is there.

    Raises:
        StoreError: it cannot be deleted.
    """
    with named(path, REACH, doing="deleted"):
        path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Delete a folder and all in it, if it is there.

    Raises:
        StoreError: it cannot be deleted.
    """
    with named(path, REACH, doing="deleted"):
        if not path.exists():
            return
        if is_remote(path):
            remote = cast(Any, path)
            remote.fs.rm(remote.path, recursive=True)
        else:
            shutil.rmtree(path)


def replace_tree(source: Path, target: Path) -> None:
    """Put a folder in the place of another, on a disk. No file system here swaps two
    folders at once, so the old one stands aside, whole, until the new one is there.

    Raises:
        StoreError: it cannot be moved.
    """
    with named(target):
        aside = _aside(target)
        if target.exists():
            remove_tree(aside)  # of a process that was killed while it cleaned up
            target.rename(aside)
        source.rename(target)
        flush_folder(target.parent)
        remove_tree(aside)


def restore_tree(target: Path) -> None:
    """Bring back the folder that a process which was killed in :func:`replace_tree`
    left aside.

    Raises:
        StoreError: it cannot be moved.
    """
    with named(target):
        if not target.exists() and _aside(target).exists():
            _aside(target).rename(target)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.ldeval-replaced")


def move_tree(source: Path, target: Path) -> None:
    """Move a folder to a place where there is none; at a URL by copy and deletion.

    Raises:
        StoreError: it cannot be moved.
    """
    with named(target):
        if is_remote(source):
            remote = cast(Any, source)
            for name in remote.fs.find(remote.path):
                inside = name.removeprefix(remote.path.strip("/")).lstrip("/")
                remote.fs.copy(name, cast(Any, target / inside).path)
            remove_tree(source)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)


def flush_folder(folder: Path) -> None:
    """Make a rename last; not every file system lets a folder be flushed."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
