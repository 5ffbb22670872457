"""One writer a run: the right to write ``STORE/RUN``, which a killed process loses.

Two sweeps that write one run would replace each other's tables. On a disk the right is
a lock of the operating system, which goes with the process, however it ends. At a URL
it is an object with a counter that its holder raises every few seconds; who finds one
watches it by his own stopwatch, and takes it over once it has stood still for long
enough. No clock of day is compared, so clocks may jump or disagree.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from ldeval.errors import StoreError
from ldeval.files import (
    is_remote,
    lenient_json,
    named,
    read_text,
    refuse_link,
    remove,
    write_whole,
)

log = logging.getLogger(__name__)

LOCK = ".writer.lock"
LEASE = ".writer.json"
BEAT = 10.0
"""Seconds between two signs of life at a URL."""
PATIENCE = 60.0
"""Seconds without one after which a lease at a URL is taken over."""
SETTLE = 1.0
"""Seconds after which a lease that was written at a URL is read again: whoever wrote
one at the same time has done so by then."""


@contextlib.contextmanager
def writing(run: Path, *, patience: float = PATIENCE) -> Iterator[Callable[[], None]]:
    """Be the only process that writes a run, as long as the block lasts.

    Args:
        run: ``STORE/RUN``; made on a disk where it is not there.
        patience: seconds to watch a lease at a URL before it is taken over.

    Yields:
        To be called before each write: raises :class:`StoreError` where a process that
        was out of reach for long finds that another has taken the run over.

    Raises:
        StoreError: another process writes it, it is a link, or the store cannot be
            written.
    """
    refuse_link(run)
    if is_remote(run):
        with _leased(run / LEASE, patience) as lease:
            yield lease.check
        return
    with named(run):
        run.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise _taken(run, _holder(run / LEASE)) from None
    try:
        write_whole(run / LEASE, json.dumps(_myself()))
        yield lambda: None
        remove(run / LEASE)
    finally:
        lock.release()


def _taken(run: Path, holder: str) -> StoreError:
    return StoreError(
        f"{run}: is being written by {holder}. Wait until that has ended (the same "
        "command then goes on from what is finished), or use another --run."
    )


def _holder(lease: Path) -> str:
    try:
        record = lenient_json(read_text(lease))
        if _myself().items() <= record.items():
            return "another thread of this process"
        return f"process {record['process']} on {record['host']}"
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return "another process"


def _myself() -> dict[str, Any]:
    return {"process": os.getpid(), "host": platform.node()}


# ------------------------------------------------------------------------------ a URL


@dataclass
class _Lease:
    """A counter at a URL and what identifies its holder."""

    path: Path
    token: str
    count: int = 0
    lost: bool = False

    def check(self) -> None:
        """Raise where the lease is lost, by what stands in the store now: a machine
        that slept wakes before its next sign of life is due."""
        self.lost = self.lost or _token(self.path) not in (self.token, None)
        if self.lost:
            raise _taken(self.path.parent, _holder(self.path))

    @property
    def content(self) -> str:
        return json.dumps({**_myself(), "token": self.token, "count": self.count})


@contextlib.contextmanager
def _leased(path: Path, patience: float) -> Iterator[_Lease]:
    mine = _Lease(path, uuid.uuid4().hex)
    _take(mine, patience)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(mine, ended), daemon=True)
    beats.start()
    try:
        yield mine
    finally:
        ended.set()
        beats.join()
        if _token(path) == mine.token:
            remove(path)


def _take(mine: _Lease, patience: float) -> None:
    """Write the lease; where there is one, only if it stands still.

    Raises:
        StoreError: it is held, or another process took it at the same time.
    """
    with named(mine.path):
        # read first: a store that cannot create only where there is none overwrites
        found = _content(mine.path)
        if found is not None or not _create(mine):
            _take_over(mine, found or _content(mine.path), patience)
        time.sleep(min(patience, SETTLE))
        if _token(mine.path) != mine.token:
            raise _taken(mine.path.parent, _holder(mine.path))


def _take_over(mine: _Lease, found: str | None, patience: float) -> None:
    """Write the lease in the place of one that stands still."""
    log.info(
        "%s: held by %s; watching for %g s whether it is alive",
        mine.path.parent,
        _holder(mine.path),
        patience,
    )
    if _changes(lambda: _content(mine.path), found, patience):
        raise _taken(mine.path.parent, _holder(mine.path))
    log.warning(
        "%s: its writer gave no sign of life for %g s and is taken for dead",
        mine.path.parent,
        patience,
    )
    write_whole(mine.path, mine.content)


def _create(mine: _Lease) -> bool:
    """Write the lease unless there is one; atomically where the store can do that."""
    remote = cast(Any, mine.path)
    try:
        remote.fs.pipe_file(remote.path, mine.content.encode(), mode="create")
    except FileExistsError:
        return False
    return True


def _changes(read: Callable[[], str | None], first: str | None, seconds: float) -> bool:
    """Whether something else is read within some seconds of this machine's stopwatch;
    that nothing is left is no sign of life."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(min(BEAT / 4, seconds / 8))
        if read() not in (first, None):
            return True
    return False


def _beat(mine: _Lease, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        mine.count += 1
        try:
            if _token(mine.path) not in (mine.token, None):
                mine.lost = True
                return
            write_whole(mine.path, mine.content)
        except StoreError as error:
            log.warning("no sign of life could be given: %s", error)


def _content(path: Path) -> str | None:
    try:
        return read_text(path)
    except FileNotFoundError:
        return None


def _token(path: Path) -> str | None:
    try:
        return str(lenient_json(_content(path) or "null")["token"])
    except (ValueError, KeyError, TypeError):
        return None
