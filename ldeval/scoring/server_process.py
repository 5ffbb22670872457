"""A child process that ends with its parent, whatever ends the parent.

The command runs under a small watcher in a session of its own, so that Ctrl-C in the
terminal reaches the parent alone, which then stops it in order. The watcher reads from
a pipe that the parent holds open: when that closes, because the parent asks or because
it was killed, the command's whole process group is terminated, and killed if need be.

Run as a program, this module is the watcher.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

GRACE = 15.0
"""Seconds for a command to end by itself after SIGTERM."""


class ServerProcess:
    """A running command; what it prints goes to a file."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self._log = log
        root = str(Path(__file__).resolve().parents[2])  # also in a bare checkout
        paths = [root, *filter(None, [environment.get("PYTHONPATH")])]
        with log.open("wb") as output:
            self._watcher = subprocess.Popen(
                [sys.executable, "-m", "ldeval.scoring.server_process", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs."""
        return self._watcher.poll()

    def stop(self) -> None:
        """End it and everything that it started; safe to call again."""
        if self._watcher.stdin is not None:
            self._watcher.stdin.close()
        try:
            self._watcher.wait(3 * GRACE)
        except subprocess.TimeoutExpired:
            self._watcher.kill()
            self._watcher.wait()

    def last_lines(self, count: int) -> str:
        """The end of what it printed."""
        text = self._log.read_bytes().decode("utf-8", "replace")
        return "\n".join(text.splitlines()[-count:])


def watch(command: Sequence[str]) -> int:
    """Run a command in a process group of its own until it ends or stdin does.

    Returns:
        Its exit status; 128 + signal where a signal ended it.
    """
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the pipe says when to stop

    def stop_with_parent() -> None:
        while os.read(0, 4096):  # unbuffered: nothing is locked when the watcher ends
            pass
        _signal_group(child.pid, signal.SIGTERM)

        def kill() -> None:
            _signal_group(child.pid, signal.SIGKILL)

        last = threading.Timer(GRACE, kill)
        last.daemon = True
        last.start()

    threading.Thread(target=stop_with_parent, daemon=True).start()
    status = child.wait()
    _end_group(child.pid)
    return status if status >= 0 else 128 - status


def _end_group(group: int) -> None:
    """What a command left behind: a moment to end by itself, then the end."""
    deadline = time.monotonic() + GRACE / 3
    _signal_group(group, signal.SIGTERM)
    while time.monotonic() < deadline:
        if not _signal_group(group, 0):
            return
        time.sleep(0.05)
    _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: int) -> bool:
    """Whether there was anything left to signal."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(watch(sys.argv[1:]))
