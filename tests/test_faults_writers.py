"""Each writer at its worst moment: sets of files, texts, journals, caches, output.

Apart from ``test_faults``, where whole commands are killed: here a fault is put at the
one place where it would do harm.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldeval.commands.output import say
from ldeval.dynamics.journal import Journal
from ldeval.errors import StoreError
from ldeval.files import write_together
from ldeval.integrations.recorder import ExampleRecorder
from ldeval.probes.answers import Answer, AnswerCache
from ldeval.store import step_folder
from ldeval.sweep import sweep
from tests.sweeping import sweep_settings
from tests.tiny import save_run


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The operating system refuses to let a file grow beyond some bytes; Python ignores
    the signal that comes with it, so that a write raises."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ----------------------------------------------------------- files that belong together


def test_an_older_set_of_files_stays_where_a_new_one_finds_no_room(
    tmp_path: Path,
) -> None:
    names = [tmp_path / name for name in ("numbers.json", "figure.png", "report.md")]
    write_together({path: f"old {path.name}" for path in names})
    new = dict.fromkeys(names[:2], "new" * 1000) | {names[2]: "new"}
    with no_file_above(2000), pytest.raises(StoreError, match="Free space"):
        write_together(new)
    assert [path.read_text() for path in names] == [f"old {p.name}" for p in names]
    assert len(list(tmp_path.iterdir())) == 3
    write_together(new)
    assert [path.read_text() for path in names] == list(new.values())


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_never_leaves_an_older_report_beside_newer_numbers(
    tmp_path: Path, renames: int
) -> None:
    names = [tmp_path / name for name in ("a.json", "b.png", "report.md")]
    write_together(dict.fromkeys(names, "old"))
    code = f"""
import os, pathlib, signal
from ldeval.files import write_together
names = [pathlib.Path({str(tmp_path)!r}, n) for n in ("a.json", "b.png", "report.md")]
rename, left = pathlib.Path.replace, [{renames}]
def counted(path, target):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return rename(path, target)
pathlib.Path.replace = counted
write_together({{path: "new" for path in names}})
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    found = {path.name: path.read_text() for path in names if path.exists()}
    assert list(found.values()).count("new") == renames
    assert "report.md" not in found
    write_together(dict.fromkeys(names, "new"))
    assert {path.read_text() for path in names} == {"new"}


# ------------------------------------------------------------------------------- sweeps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("trained"), [10])


def test_texts_that_a_kill_kept_from_being_stored_are_stored_by_the_next_run(
    trained: Path, tmp_path: Path
) -> None:
    wanted = sweep_settings(trained, tmp_path, base=None)
    assert sweep(trained / "run", wanted).scored == (10,)
    texts = [tmp_path / "run" / name for name in ("probes.jsonl", "tokenizer.json")]
    before = [path.read_bytes() for path in texts]
    for path in texts:
        path.unlink()
    assert sweep(trained / "run", wanted).kept == (10,)
    assert [path.read_bytes() for path in texts] == before


def test_a_damaged_table_of_another_run_does_not_stop_a_sweep(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = sweep_settings(trained, tmp_path, base=None)
    sweep(trained / "run", wanted)
    damaged = step_folder(tmp_path, "run", 10) / "tokens.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    again = sweep_settings(trained, tmp_path, base=None, run="again")
    assert sweep(trained / "run", again).scored == (10,)
    assert f"not looked into: {damaged}" in caplog.text


# ------------------------------------------------------------ journals, records, caches


def test_a_journal_that_finds_no_room_says_so_and_goes_on_from_what_it_kept(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.jsonl"
    kept = []

    def fill() -> None:
        with Journal(path, {"seed": 1}) as journal:
            for number in range(100):
                journal.put(str(number), [0.5] * 20)
                kept.append(number)

    with no_file_above(1000), pytest.raises(StoreError) as caught:
        fill()
    assert f"{path}: cannot be written" in str(caught.value)
    assert "Free space" in str(caught.value)
    assert 0 < len(kept) < 100
    with Journal(path, {"seed": 1}) as journal:
        assert len(journal) == len(kept)
        journal.put("more", [1.0])
    with Journal(path, {"seed": 1}) as journal:
        assert journal.get("0") == [0.5] * 20
        assert journal.get("more") == [1.0]


def test_a_record_of_examples_that_finds_no_room_is_named(tmp_path: Path) -> None:
    from types import SimpleNamespace

    args = SimpleNamespace(output_dir=tmp_path, process_index=0, world_size=1)
    recorder = ExampleRecorder()
    recorder.on_train_begin(args, SimpleNamespace(global_step=0), None)
    with (
        no_file_above(0),
        pytest.raises(StoreError, match=r"rank_00000\.jsonl: cannot be written"),
    ):
        recorder.on_step_end(args, SimpleNamespace(global_step=1), None)
    recorder.on_step_end(args, SimpleNamespace(global_step=1), None)


def test_a_cache_that_cannot_be_opened_is_not_to_be_deleted(tmp_path: Path) -> None:
    place = tmp_path / "answers.sqlite"
    place.mkdir()
    with pytest.raises(StoreError, match="cannot be written") as caught:
        AnswerCache(place)
    assert "Delete" not in str(caught.value)
    place.rmdir()
    place.write_text("someone's notes, " * 100)
    with pytest.raises(StoreError, match="not a cache of answers"):
        AnswerCache(place)


def test_answers_outlive_the_process_that_was_killed(tmp_path: Path) -> None:
    place = tmp_path / "answers.sqlite"
    code = f"""
import os, signal
from ldeval.probes.answers import Answer, AnswerCache
cache = AnswerCache({str(place)!r})
for number in range(50):
    cache.put(str(number), Answer("text", True, 1, 1))
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    with AnswerCache(place) as cache:
        assert len(cache) == 50
        assert cache.get("49") == Answer("text", True, 1, 1)


# ------------------------------------------------------------------------ the terminal


def test_output_onto_a_full_disk_ends_with_a_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open("/dev/full", "w") as full:
        code = "from ldeval.cli import run; import sys; "
        code += "sys.argv = ['ldeval', 'tasks']; run()"
        found = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert found.returncode == 2
    assert found.stderr.startswith("ldeval: error: standard output: cannot be written")
    assert len(found.stderr.splitlines()) == 1
    with open("/dev/full", "w", buffering=1) as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        with pytest.raises(StoreError, match="No space left"):
            say("a line")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # so that it closes


# ----------------------------------------------------------------- disks of their own


@functools.cache
def may_mount() -> bool:
    """Whether this user may mount a file system in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    command = "d=$(mktemp -d); mount -t tmpfs none $d && umount $d; rmdir $d"
    found = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], capture_output=True, check=False
    )
    return found.returncode == 0


def test_a_build_meets_a_disk_that_is_full_and_one_that_is_read_only(
    tmp_path: Path,
) -> None:
    # where nothing can be mounted, a limit on files and a place below a file stand in
    mounts = may_mount()
    disk = tmp_path / "disk"
    disk.mkdir()
    source = tmp_path / "pairs.jsonl"
    row = '{"prompt": "Question N?", "chosen": "The answer to N is this.", '
    row += '"rejected": "Nobody knows N."}'
    source.write_text("".join(row.replace("N", str(n)) + "\n" for n in range(300)))
    python = f"{sys.executable} -m ldeval.cli -q"
    build = f"{python} probes build {source} -o {disk}/probes.jsonl"
    full = f"mount -t tmpfs -o size=64k none {disk}" if mounts else "ulimit -S -f 64"
    room = f"mount -o remount,size=50m {disk}" if mounts else "ulimit -S -f unlimited"
    locked = f"mount -o remount,ro {disk}" if mounts else "true"
    below = build if mounts else build.replace("probes.jsonl", "probes.jsonl/below")
    script = f"""
{full}
{build} --limit 4 4; echo "small $?"; cp {disk}/probes.jsonl {tmp_path}/small
{build}; echo "full $?"; cmp {disk}/probes.jsonl {tmp_path}/small && echo same
ls -A {disk}
{room}; {build}; echo "room $?"
{locked}; {below} --seed 1; echo "locked $?"
{python} validate {disk}/probes.jsonl; echo "read $?"
"""
    shell = ["unshare", "-rm", "bash", "-c"] if mounts else ["bash", "-c"]
    found = subprocess.run(
        [*shell, script], capture_output=True, text=True, check=False
    )
    said = found.stdout + found.stderr
    assert "Traceback" not in said, said
    for line in ("small 0", "full 2", "same", "room 0", "locked 2", "read 0"):
        assert line in found.stdout.splitlines(), said
    errors = [e for e in found.stderr.splitlines() if e.startswith("ldeval: error:")]
    assert len(errors) == 2, said
    assert str(disk) in errors[0]
    assert "Free space" in errors[0]
    assert str(disk) in errors[1]
