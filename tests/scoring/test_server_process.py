"""A child process ends with its parent, and takes its own children with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ldeval.scoring import server_process
from ldeval.scoring.server_process import ServerProcess

FAMILY = """
import os, signal, subprocess, sys, time
{ignore}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("family", os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
IGNORE = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def runs(pid: int) -> bool:
    """Whether a process is there and is not merely unburied."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def family(log: Path) -> list[int]:
    assert eventually(lambda: log.exists() and "family" in log.read_text())
    line = next(x for x in log.read_text().splitlines() if x.startswith("family"))
    return [int(pid) for pid in line.split()[1:]]


@pytest.mark.parametrize("ignore", ["", IGNORE], ids=["obedient", "deaf"])
def test_stopping_ends_the_whole_family(
    tmp_path: Path, ignore: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = FAMILY.format(ignore=ignore)
    process = ServerProcess(
        [sys.executable, "-c", code], dict(os.environ), tmp_path / "log"
    )
    pids = family(tmp_path / "log")
    assert process.status is None
    assert all(map(runs, pids))
    process.stop()
    process.stop()
    assert process.status is not None
    assert eventually(lambda: not any(map(runs, pids)))


def test_a_parent_that_is_killed_takes_the_server_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import os, sys, time; from pathlib import Path; "
        "from ldeval.scoring.server_process import ServerProcess; "
        f"p = ServerProcess([sys.executable, '-c', {FAMILY.format(ignore='')!r}], "
        f"dict(os.environ), Path({str(log)!r})); time.sleep(600)"
    )
    root = str(Path(server_process.__file__).resolve().parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}
    )
    try:
        pids = family(log)
        assert all(map(runs, pids))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert eventually(lambda: not any(map(runs, pids)))


def test_what_a_dead_command_left_behind_is_ended(tmp_path: Path) -> None:
    code = FAMILY.format(ignore="").replace("time.sleep(600)\n", "sys.exit(7)\n")
    process = ServerProcess(
        [sys.executable, "-c", code], dict(os.environ), tmp_path / "log"
    )
    _, child = family(tmp_path / "log")
    assert eventually(lambda: process.status == 7)
    assert eventually(lambda: not runs(child))
    process.stop()


def test_the_end_of_the_log_can_be_read(tmp_path: Path) -> None:
    code = "import sys; [print(i, flush=True) for i in range(99)]; sys.exit('too bad')"
    process = ServerProcess(
        [sys.executable, "-c", code], dict(os.environ), tmp_path / "log"
    )
    assert eventually(lambda: process.status == 1)
    assert process.last_lines(2).splitlines() == ["98", "too bad"]
    process.stop()
