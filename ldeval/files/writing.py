"""Writing files whole.

On a disk: under a temporary name, flushed, renamed, and the folder flushed too, so that
a power cut leaves the old file or the new one. At a URL: into a temporary file of this
machine first, then uploaded in one piece, since an object store has no rename and shows
an object once its upload has ended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from ldeval.errors import StoreError
from ldeval.files.litter import clear_litter, temporary_name
from ldeval.files.places import is_remote, named, tried
from ldeval.files.trees import flush_folder, remove


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A handle whose content becomes the file ``path`` when the block ends.

    Folders above it are made. When the block raises, what was there before stays.

    Raises:
        StoreError: it cannot be written.
    """
    with named(path):
        if is_remote(path):
            with tempfile.NamedTemporaryFile(prefix="ldeval-") as handle:
                yield cast(BinaryIO, handle)
                handle.flush()
                _upload(Path(handle.name), path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_litter(path.parent, f"{path.name}.")
        partial = path.with_name(temporary_name(path.name))
        try:
            # a link that someone left there must not be followed
            partial.unlink(missing_ok=True)
            with partial.open("xb+") as local:
                yield local
                local.flush()
                os.fsync(local.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)


def refuse_link(folder: Path) -> None:
    """Look, before files are written into a folder of a store, that it is none of
    another place: a store of somebody else could send them anywhere. The store itself
    was named by whoever writes, and may be a link.

    Raises:
        StoreError: the folder is a link.
    """
    with named(folder):
        if not is_remote(folder) and folder.is_symlink():
            raise StoreError(
                f"{folder}: is a link, and nothing in a store is written through one. "
                "Put the folder that it leads to in its place, or delete the link."
            )


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, whole or not at all.

    Args:
        content: text becomes UTF-8; a lone surrogate in someone's text is written as
            an escape, so that it does not cost the file.

    Raises:
        StoreError: it cannot be written.
    """
    with written(path) as handle:
        handle.write(_encoded(content))


def write_together(contents: Mapping[Path, bytes | str]) -> None:
    """Write files that tell one story, the last of which says that all are there.

    None gets its name before all are written, and an older last one goes before the
    first of the others is replaced: it would speak of files that are new.

    Args:
        contents: in order; as for :func:`write_whole`.

    Raises:
        StoreError: one cannot be written; older ones stay where the disk was full.
    """
    last = list(contents)[-1]
    with contextlib.ExitStack() as stack:
        # closed, which renames, in the opposite order
        for path, content in reversed(list(contents.items())):
            handle = stack.enter_context(written(path))
            handle.write(_encoded(content))
            handle.flush()
        remove(last)


def _encoded(content: bytes | str) -> bytes:
    if isinstance(content, str):
        return content.encode("utf-8", "backslashreplace")
    return content


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all.

    Raises:
        StoreError: the target cannot be written, or the source not be read.
    """
    with (
        named(source, doing="read"),
        source.open("rb") as content,
        written(target) as handle,
    ):
        shutil.copyfileobj(content, handle)


def _upload(local: Path, path: Path) -> None:
    remote = cast(Any, path)
    tried(path, lambda: remote.fs.put_file(str(local), remote.path))
