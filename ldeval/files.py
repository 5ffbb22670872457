"""Files written whole or not at all, on a disk or in a store at a URL.

Every file that ldeval leaves behind is written here. On a disk: under a temporary name,
flushed, renamed, and the folder flushed too, so that a power cut leaves the old file or
the new one. At a URL (any fsspec file system, such as ``s3://``): into a temporary file
of this machine first, then uploaded in one piece, since an object store has no rename
and shows an object once its upload has ended.

A *place* is a :class:`pathlib.Path`; for a URL it is universal_pathlib's ``UPath``,
which has the same methods. What goes wrong at either is a :class:`StoreError`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from ldeval.errors import LdevalError, MissingExtraError, StoreError
from ldeval.redact import redact_text, redact_url

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Of each upload and download, beyond what the file system's own client tries again."""
PAUSE = 1.0
"""Seconds before the second attempt; each further pause is four times as long."""
TIMEOUTS = {"connect_timeout": 10, "read_timeout": 20}
"""Seconds that the client of S3 waits for each answer; FSSPEC_S3 in the environment,
``{"config_kwargs": {"read_timeout": 60}}`` say, sets others."""
ROOM = (
    "Free space, or choose another place; what was finished before is kept, and the "
    "same command goes on from it."
)
REACH = (
    "Can it be reached, and may it be written to? What was finished before is kept, "
    "and the same command goes on from it."
)
"""The remedy where space is not the likely reason: at a URL, and for deletions."""

_Result = TypeVar("_Result")


# ----------------------------------------------------------------------------- places


def place(path: str | Path) -> Path:
    """A path on this machine, or of a URL such as ``s3://bucket/store``.

    Raises:
        MissingExtraError: a URL, without the packages that read it.
        StoreError: a URL of a kind that no installed package knows.
    """
    if not isinstance(path, str):
        return path
    scheme, mark, rest = path.partition("://")
    if not mark:
        return Path(path)
    if scheme in ("file", "local"):
        return Path(rest)
    try:
        from upath import UPath

        # a listing that another process made stale would hide its finished steps
        found = UPath(path, use_listings_cache=False, **_patience(scheme))
        _end_waits(found.fs)
    except ImportError as error:
        raise MissingExtraError(error.name or _package(scheme), "remote") from error
    except ValueError as error:
        raise StoreError(f"{redact_url(path)}: {error}. Give a folder.") from error
    return cast(Path, found)


def _patience(scheme: str) -> dict[str, Any]:
    """How long the client of S3 waits, unless fsspec is configured otherwise.

    Three layers would try again: botocore 5 times, s3fs 5 times, and uploads 3 times
    here. With the minute that botocore waits, a server that accepts and never answers
    would be waited for over an hour; s3fs's layer is taken out, the wait shortened.
    """
    if scheme not in ("s3", "s3a"):
        return {}
    from fsspec.config import conf  # type: ignore[import-untyped]  # has none

    return {
        "config_kwargs": {**TIMEOUTS, **conf.get(scheme, {}).get("config_kwargs", {})}
    }


def _end_waits(filesystem: Any) -> None:
    """Make the client of S3 end its waits: s3fs's retries are left out, and an upload
    is not announced first, since aiohttp would wait for leave to send it for ever.

    Source: ``Expect: 100-continue`` of botocore's ``add_expect_header``, which aiohttp
    3.14 awaits outside of its timeouts.
    """
    if type(filesystem).__name__ != "S3FileSystem":
        return
    filesystem.retries = 1
    if filesystem.session is None:
        from aiobotocore.session import AioSession  # type: ignore[import-untyped]
        from botocore.handlers import (  # type: ignore[import-untyped]
            add_expect_header,
        )

        filesystem.session = AioSession(**filesystem.kwargs)
        filesystem.session.unregister("before-call.s3", add_expect_header)


def _package(scheme: str) -> str:
    return {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}.get(
        scheme, f"an fsspec file system for {scheme}://"
    )


def is_remote(path: Path) -> bool:
    """Whether a place is at a URL."""
    return not isinstance(path, Path)


def own_name(path: Path) -> str:
    """The last name of a place, also of ``.``."""
    return path.name if is_remote(path) else path.resolve().name


# ----------------------------------------------------------------------------- errors


@contextlib.contextmanager
def named(path: Path, remedy: str = ROOM, *, doing: str = "written") -> Iterator[None]:
    """Turn what a disk or a network raises into an error that names the place.

    Raises:
        StoreError: from any error of a file system; an error of ours passes, also one
            that is an OSError.
    """
    try:
        yield
    except LdevalError:
        raise
    except _storage_errors() as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if remedy is ROOM and is_remote(path):
            remedy = REACH
        raise StoreError(
            f"{redact_url(str(path))}: cannot be {doing} ({redact_text(reason)}). "
            f"{remedy}"
        ) from error


def _storage_errors() -> tuple[type[Exception], ...]:
    """OSError, and what SQLite and the clients of object stores raise that is none."""
    found: list[type[Exception]] = [OSError]
    for module, name in (
        ("sqlite3", "Error"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("azure.core.exceptions", "AzureError"),
    ):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _tried(path: Path, action: Callable[[], _Result]) -> _Result:
    """The result of an upload or download, tried again where the network failed."""
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except FileNotFoundError:
            raise
        except _storage_errors() as error:
            pause = PAUSE * 4 ** (attempt - 1)
            log.warning(
                "%s: %s; attempt %d of %d follows in %g s",
                redact_url(str(path)),
                str(error) or type(error).__name__,
                attempt + 1,
                ATTEMPTS,
                pause,
            )
            time.sleep(pause)
    return action()


# ---------------------------------------------------------------------------- writing


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
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
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
        _flush_folder(path.parent)


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
    _tried(path, lambda: remote.fs.put_file(str(local), remote.path))


def _flush_folder(folder: Path) -> None:
    """Make a rename last; not every file system lets a folder be flushed."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------------------- reading


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
        return _tried(path, path.read_bytes).decode("utf-8")
    except FileNotFoundError:
        raise
    except _storage_errors() as error:
        raise StoreError(
            f"{redact_url(str(path))}: cannot be read ({error or type(error)})."
        ) from error


def local_copy(path: Path, version: str = "") -> Path:
    """The file on this machine: itself, or for a URL a copy that goes when the process
    ends.

    Args:
        version: tells apart what stood at one URL at different times.

    Raises:
        StoreError: it cannot be fetched.
    """
    if not is_remote(path):
        return path
    key = hashlib.sha256(f"{path}\0{version}".encode()).hexdigest()
    target = _downloads() / key
    if not target.exists():
        remote = cast(Any, path)
        partial = target.with_suffix(".partial")
        with named(path, "Is it there, and can it be reached?", doing="read"):
            _tried(path, lambda: remote.fs.get_file(remote.path, str(partial)))
        partial.replace(target)
    return target


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
    except _MALFORMED as error:
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

_MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


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


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:40]!r} stands twice in one object")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else cast(float, _no_number(text))


# ------------------------------------------------------------------- removing, moving


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
        _flush_folder(target.parent)
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
