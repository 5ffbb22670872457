"""A command of ldeval in a process of its own, killed or starved where one says.

Apart from the campaign, which says what must hold afterwards. Loading PyTorch takes
seconds, so all processes are forked from one server that has loaded it and computed
nothing: hundreds of them are then affordable. What a process writes is counted from
inside: every write, fsync, rename and deletion below the folders that are watched is an
event, and a plan may name the event at which the process kills itself, half way through
a write where it is one.
"""

from __future__ import annotations

import builtins
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

EVENTS = ("write", "fsync", "rename", "remove")
LOADED = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "lm_eval.models.huggingface",
    "lm_eval.utils",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.pyplot",
    "pyarrow.parquet",
    "ldeval.cli",
    "ldeval.compare",
    "ldeval.probes.build",
    "ldeval.report",
    "ldeval.sweep",
    "ldeval.watch",
)
"""What the server loads before it forks; none of it starts a thread."""
PATIENCE = 600.0
"""Seconds after which a process counts as hung."""


@dataclass(frozen=True)
class Faults:
    """What is done to a process."""

    watched: tuple[Path, ...] = ()
    """Folders below which events are counted."""
    kill_at: int | None = None
    """The event, counted from 0, at which it kills itself."""
    trace: Path | None = None
    """Where it lists its events when it ends."""
    largest_file: int | None = None
    """Bytes after which the operating system refuses to let a file grow, as on a full
    disk."""
    clock: Callable[[float], float] | None = None
    """The time of day that it is told, from the true one; a function of a module."""
    user: int | None = None
    """The user it becomes: permissions do not hold for root."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    """Exit status; the negative signal that ended it."""
    said: str
    """Its output and errors."""
    seconds: float

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL

    @property
    def refused(self) -> bool:
        """Whether it ended as documented where something cannot be done: status 2,
        one message, no traceback."""
        return (
            self.status == 2
            and "ldeval: error: " in self.said
            and "Traceback" not in self.said
        )


class Running:
    """A command that was started."""

    def __init__(
        self, arguments: list[str], log: Path, faults: Faults | None = None
    ) -> None:
        self._log = log
        self._started = time.monotonic()
        self._process = _server().Process(
            target=_run, args=(arguments, log, faults or Faults())
        )
        self._process.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def wait(self, seconds: float = PATIENCE) -> Ended | None:
        """How it ended; None where it still runs."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            return None
        spent = time.monotonic() - self._started
        return Ended(self._process.exitcode, self._log.read_text(), spent)

    def kill(self) -> Ended:
        """``kill -9``."""
        self._process.kill()
        ended = self.wait()
        assert ended is not None
        return ended


def ended(arguments: list[str], log: Path, faults: Faults | None = None) -> Ended:
    """Run a command to its end.

    Raises:
        TimeoutError: it hangs.
    """
    running = Running(arguments, log, faults)
    found = running.wait()
    if found is None:
        running.kill()
        raise TimeoutError(f"ldeval {' '.join(arguments)} still ran after {PATIENCE} s")
    return found


def events(trace: Path) -> list[str]:
    """The events that a process listed, in order."""
    return list(json.loads(trace.read_text()))


def _server() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # what was killed could not give back its semaphores
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    return context


# ------------------------------------------------------------------ inside the process


def _run(arguments: list[str], log: Path, faults: Faults) -> NoReturn:
    """Run one command, with its output in a file, and end at once."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8")
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), "utf-8", line_buffering=True
    )
    status = 70
    try:
        status = _main(arguments, faults)
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001  what would end the interpreter is looked for
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def _main(arguments: list[str], faults: Faults) -> int:
    import torch
    from fsspec.config import conf, set_conf_env

    from ldeval.cli import main

    torch.set_num_threads(1)
    os.environ.update(faults.environment)
    set_conf_env(conf)  # fsspec read its own once, in the server
    if faults.user is not None:
        os.setegid(faults.user)
        os.seteuid(faults.user)
    if faults.clock is not None:
        _set_clock(faults.clock)
    if faults.largest_file is not None:
        # the signal would end the process; without it, a write fails with EFBIG
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (faults.largest_file, resource.RLIM_INFINITY)
        )
    counted = _Counted(faults)
    if faults.watched:
        counted.listen()
    status = main(arguments)
    if faults.trace is not None:
        with io.FileIO(faults.trace, "w") as trace:
            trace.write(json.dumps(counted.seen).encode())
    return status


def jumping(true: float) -> float:
    """A clock that leaps ten years forth or back each millisecond."""
    return true + (1 if int(true * 1000) % 2 else -1) * 5 * 365 * 86400


def _set_clock(told: Callable[[float], float]) -> None:
    true = time.time
    time.time = lambda: told(true())
    time.time_ns = lambda: int(told(true()) * 1e9)


class _Counted:
    """The events of this process, and its end at one of them."""

    def __init__(self, faults: Faults) -> None:
        self.seen: list[str] = []
        self._faults = faults
        self._folders = tuple(
            f"{os.path.abspath(item)}{os.sep}" for item in faults.watched
        )

    def listen(self) -> None:
        """Count what this process does from here on."""
        _open = io.open

        def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            handle = _open(file, mode, *rest, **named)
            writes = any(letter in mode for letter in "wxa+")
            return _Handle(handle, self) if writes and self._mine(file) else handle

        io.open = builtins.open = opened
        for kind, name in (
            ("fsync", "fsync"),
            ("rename", "replace"),
            ("rename", "rename"),
            ("remove", "unlink"),
            ("remove", "remove"),
            ("remove", "rmdir"),
        ):
            setattr(os, name, self._announced(kind, getattr(os, name)))

    def happens(self, kind: str) -> bool:
        """Count an event; whether it is the last one."""
        self.seen.append(kind)
        return len(self.seen) - 1 == self._faults.kill_at

    def _announced(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def announced(first: Any, *rest: Any, **named: Any) -> Any:
            if (kind == "fsync" or self._mine(first, named)) and self.happens(kind):
                end_here()
            return call(first, *rest, **named)

        return announced

    def _mine(self, file: Any, named: Mapping[str, Any] | None = None) -> bool:
        if isinstance(file, int):
            return False
        folder = (named or {}).get("dir_fd")
        path = os.fspath(file)
        if folder is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        return os.path.abspath(path).startswith(self._folders)


class _Handle:
    """A file open for writing whose writes are events."""

    def __init__(self, handle: Any, counted: _Counted) -> None:
        self._handle = handle
        self._counted = counted

    def write(self, content: Any) -> Any:
        if self._counted.happens("write"):
            # half of it reaches the operating system, which outlives the process
            half = content if isinstance(content, str) else bytes(content)
            self._handle.write(half[: len(half) // 2])
            self._handle.flush()
            end_here()
        return self._handle.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __enter__(self) -> _Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()


def end_here() -> NoReturn:
    """``kill -9`` of this process by itself."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")
