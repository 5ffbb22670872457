"""What goes wrong around ldeval: kills, full disks, two at once, clocks, networks.

The kills are a sample of ``scripts/campaign_faults.py``. Every command runs in a real
process, with real limits, locks and sockets.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ldeval
from ldeval.errors import StoreError
from ldeval.probes.answers import Answer, AnswerCache
from scripts.campaign_faults import Part, campaign, evenly
from scripts.fault_commands import COMMANDS, Build, Dataset, Sweep, files_of
from scripts.fault_injection import Ended, Faults, Running, ended, jumping

NOBODY = 65534
"""A user that is not root."""


@pytest.fixture(scope="module")
def swept() -> Iterator[Sweep]:
    """A sweep that ran undisturbed, in a place that other users can read."""
    with tempfile.TemporaryDirectory(prefix="ldeval-faults-") as place:
        os.chmod(place, 0o755)  # noqa: S103  another user reads it in a test
        command = Sweep(Path(place))
        command.learn()
        yield command


@pytest.fixture
def sweep(swept: Sweep) -> Sweep:
    """The same, with nothing left of it."""
    swept.start(older=False)
    return swept


def as_undisturbed(command: Sweep | Build) -> bool:
    """Whether what is there now is what an undisturbed run leaves."""
    return list(command.damage()) == [] == list(command.differences())


# ----------------------------------------------------------------------------- kill -9


@pytest.mark.parametrize(
    ("name", "uniform", "at_events"),
    [("build", 1, 2), ("dataset", 1, 2), ("sweep", 1, 2), ("report", 0, 1)],
)
def test_a_killed_command_loses_nothing_and_goes_on(
    tmp_path: Path, name: str, uniform: int, at_events: int
) -> None:
    tally = campaign(COMMANDS[name](tmp_path), uniform, at_events, random.Random(0))
    assert tally.findings == []
    assert tally.kills.total() >= uniform + at_events - 1


def test_the_campaign_sees_what_is_lost_wrong_and_unclear(tmp_path: Path) -> None:
    command = Build(tmp_path)
    command.learn()
    command.start(older=True)
    assert list(command.damage()) == []
    (command.out / "probes.jsonl").write_text("half a li")
    assert [finding.kind for finding in command.damage()] == ["wrong"]
    assert [finding.kind for finding in command.readers()] == ["wrong"]
    assert {finding.kind for finding in command.differences()} == {"wrong"}
    (command.out / "probes.jsonl").unlink()
    assert [finding.kind for finding in command.damage()] == ["lost"]


def test_a_kill_comes_at_the_event_that_was_named_and_inside_a_write(
    tmp_path: Path,
) -> None:
    command = Build(tmp_path)
    command.learn()
    kinds = command.events[False]
    assert {"write", "fsync", "rename"} <= set(kinds)
    command.start(older=False)
    last = len(kinds) - 1 - kinds[::-1].index("write")
    found = ended(command.arguments(), command.log, Faults((command.out,), last))
    assert found.killed
    (half,) = command.out.glob("*.partial")
    whole = command.new[re.sub(r"\.\w+-\d+\.partial$", "", half.name)]
    assert 0 < half.stat().st_size < len(whole)


def test_events_are_chosen_of_every_kind() -> None:
    kinds = [*["write"] * 90, "fsync", "rename"]
    chosen = evenly(kinds, 12)
    assert len(chosen) == 12
    assert {kinds[at] for at in chosen} == {"write", "fsync", "rename"}
    assert evenly(kinds, 100) == list(range(92))


def test_parts_of_a_campaign_are_all_of_it() -> None:
    parts = [Part.read(f"{number}/3").among(range(10)) for number in (1, 2, 3)]
    assert sorted(itertools.chain(*parts)) == list(range(10))
    assert {len(part) for part in parts} == {3, 4}


# ------------------------------------------------------------------------- a full disk


def test_a_full_disk_ends_a_sweep_with_a_message_and_it_goes_on(sweep: Sweep) -> None:
    room = max(map(len, sweep.new.values())) - 1
    found = ended(sweep.arguments(), sweep.log, Faults(largest_file=room))
    assert found.refused, found.said
    assert re.search(r"cannot be written .*Free space", found.said)
    assert list(sweep.damage()) == []
    assert not list(sweep.out.rglob("*.partial"))
    assert ended(sweep.arguments(), sweep.log).status == 0
    assert as_undisturbed(sweep)


@pytest.mark.parametrize("kind", [Build, Dataset])
@pytest.mark.parametrize("room", [2000, 100_000])
def test_a_full_disk_ends_a_build_with_a_message_and_keeps_the_older_result(
    tmp_path: Path, kind: type[Build], room: int
) -> None:
    command = kind(tmp_path, prompts=400)
    command.learn()
    command.start(older=True)
    found = ended(command.arguments(), command.log, Faults(largest_file=room))
    assert found.refused, found.said
    assert "Free space" in found.said
    assert files_of(command.out) == command.old
    assert ended(command.arguments(), command.log).status == 0
    assert as_undisturbed(command)


def test_an_answer_that_finds_no_room_is_named(tmp_path: Path) -> None:
    import sqlite3

    with AnswerCache(tmp_path / "answers.sqlite") as cache:
        cache._db.execute("PRAGMA max_page_count = 8")
        answer = Answer("word " * 400, True, 1, 1)
        with pytest.raises(StoreError, match=r"answers\.sqlite.*full"):
            list(map(cache.put, map(str, range(1000)), itertools.repeat(answer)))
        kept = len(cache)
        assert kept > 0
    with sqlite3.connect(tmp_path / "answers.sqlite") as again:
        assert again.execute("SELECT count(*) FROM answer").fetchone() == (kept,)


# ------------------------------------------------------------------ a store to be read


def test_a_store_that_may_only_be_read_is_read_and_no_sweep_begins(
    swept: Sweep,
) -> None:
    swept.start(older=False)
    for name, content in swept.new.items():
        (swept.out / name).parent.mkdir(parents=True, exist_ok=True)
        (swept.out / name).write_bytes(content)
    folders = [swept.out, *(p for p in swept.out.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    user = Faults(user=NOBODY if os.geteuid() == 0 else None)
    try:
        assert ended(["-q", "validate", str(swept.out)], swept.log, user).status == 0
        found = ended(swept.arguments(), swept.log, user)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert found.refused, found.said
    assert re.search(r"run.*cannot be written \(Permission denied\)", found.said)
    assert as_undisturbed(swept)


@pytest.mark.parametrize("name", ["build", "sweep", "diff", "report"])
def test_a_place_below_a_file_is_refused_by_name(
    swept: Sweep, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("kept")
    below = str(tmp_path / "file" / "below")
    run = str(tmp_path / "store" / "run")
    source = Build(tmp_path)
    source.inputs()
    commands = {
        "build": [*source.arguments()[:4], "-o", below, *source.arguments()[6:]],
        "sweep": [*swept.arguments(), "--store", below],
        "diff": ["-q", "diff", run, "--json", below],
        "report": ["-q", "report", run, "--html", below],
    }
    for file, content in swept.new.items():
        (tmp_path / "store" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / file).write_bytes(content)
    found = ended(commands[name], tmp_path / "log.txt")
    assert found.refused, found.said
    assert str(tmp_path / "file") in found.said
    assert (tmp_path / "file").read_text() == "kept"


# ------------------------------------------------------------------------- two at once


def test_of_two_sweeps_of_one_run_one_writes_and_the_other_names_it(
    sweep: Sweep, tmp_path: Path
) -> None:
    first = Running(sweep.arguments(), sweep.log)
    while not (sweep.out / "run" / ".writer.json").exists():
        assert first.wait(0.02) is None
    os.kill(first.pid, signal.SIGSTOP)  # it holds the run for as long as it takes
    try:
        second = ended(sweep.arguments(), tmp_path / "second.txt")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert second.refused, second.said
    assert re.search(
        rf"run: is being written by process {first.pid} on \S+\. Wait", second.said
    )
    assert done(first).status == 0
    assert as_undisturbed(sweep)


def test_two_sweeps_of_two_runs_share_a_store(sweep: Sweep, tmp_path: Path) -> None:
    both = [
        Running([*sweep.arguments(), "--run", name], tmp_path / f"{name}.txt")
        for name in ("run", "other")
    ]
    assert [done(one).status for one in both] == [0, 0]
    there = files_of(sweep.out)
    tables = [name for name in sweep.new if name.endswith(".parquet")]
    assert len(tables) > 6
    for name in tables:
        assert there[name] == sweep.new[name]
        assert there[name.replace("run/", "other/", 1)] == sweep.new[name]


def done(running: Running) -> Ended:
    found = running.wait()
    assert found is not None
    return found


# ------------------------------------------------------------------------------ clocks


def test_a_clock_that_leaps_years_changes_nothing(sweep: Sweep) -> None:
    found = ended(sweep.arguments(), sweep.log, Faults(clock=jumping))
    assert found.status == 0, found.said
    assert as_undisturbed(sweep)
    manifests = list(sweep.out.rglob("manifest.json"))
    assert manifests
    for path in manifests:
        assert 0 <= json.loads(path.read_text())["seconds"] < found.seconds


def test_no_duration_is_told_by_the_clock_of_day() -> None:
    package = Path(ldeval.__file__).parent
    for path in package.rglob("*.py"):
        used = re.findall(r"\btime\.time\b|\bdatetime\b|\btime_ns\b", path.read_text())
        assert not used, f"{path} uses {used}"
