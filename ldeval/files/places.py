"""Places: paths on a disk or at a URL of any fsspec file system, such as ``s3://``.

A *place* is a :class:`pathlib.Path`; for a URL it is universal_pathlib's ``UPath``,
which has the same methods. What goes wrong at either is a :class:`StoreError`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

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


def place(path: str | Path) -> Path:
    """A path on this machine, or of a URL such as ``s3://bucket/store``.

    Args:
        path: a place too, which may come from another process: that pickles no client,
            so that it has a new one here.

    Raises:
        MissingExtraError: a URL, without the packages that read it.
        StoreError: a URL of a kind that no installed package knows.
    """
    if not isinstance(path, str):
        if is_remote(path):
            _end_waits(cast(Any, path).fs)
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
    except storage_errors() as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if remedy is ROOM and is_remote(path):
            remedy = REACH
        raise StoreError(
            f"{redact_url(str(path))}: cannot be {doing} ({redact_text(reason)}). "
            f"{remedy}"
        ) from error


def storage_errors() -> tuple[type[Exception], ...]:
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


def tried(path: Path, action: Callable[[], _Result]) -> _Result:
    """The result of an upload or download, tried again where the network failed."""
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except FileNotFoundError:
            raise
        except storage_errors() as error:
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
