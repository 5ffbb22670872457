"""What killed processes left is cleared; what others are writing is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from ldeval.cli import main
from ldeval.files import clear_litter, temporary_folder, temporary_name, write_whole

KILLED = """
import os, pathlib, signal, sys
from ldeval.files import temporary_folder, written
folder = pathlib.Path(sys.argv[1])
with temporary_folder(folder, ".work-") as inner, written(folder / "file") as handle:
    (inner / "data").write_text("much")
    handle.write(b"half")
    handle.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_it_wrote(folder: Path) -> list[str]:
    """Names of what it left."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    return sorted(path.name for path in folder.iterdir())


def test_the_next_writer_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    folder, file = killed_while_it_wrote(tmp_path)
    assert folder.startswith(".work-")
    assert file.startswith("file.")
    write_whole(tmp_path / "file", "whole")
    with temporary_folder(tmp_path, ".work-"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "whole"


def test_what_may_be_in_use_or_is_someone_elses_stays(tmp_path: Path) -> None:
    mine = temporary_name("file")
    number = str(os.getpid())
    others = [
        mine,  # of a process that runs
        mine.replace("file", "another"),
        f"file.00000000-{number}.partial",  # of another machine
        "file.17.partial",
        "file.txt",
    ]
    for name in others:
        (tmp_path / name).write_text("kept")
    clear_litter(tmp_path, "file.")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    clear_litter(tmp_path / "absent", "file.")


def test_a_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    (gone,) = [n for n in killed_while_it_wrote(tmp_path) if n.startswith("file.")]
    (tmp_path / gone).unlink()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").write_text("kept")
    (tmp_path / gone).symlink_to(tmp_path / "precious")
    clear_litter(tmp_path, "file.")
    assert not (tmp_path / gone).is_symlink()
    assert (tmp_path / "precious" / "data").read_text() == "kept"


def test_a_build_clears_the_dataset_folder_of_a_killed_one(tmp_path: Path) -> None:
    (left,) = [n for n in killed_while_it_wrote(tmp_path) if n.startswith("file.")]
    half = tmp_path / left.replace("file.", "probes.")
    (half / "data").mkdir(parents=True)
    (half / "data" / "probes-00000.parquet").write_bytes(b"half")
    rows = [
        {"q": f"Question {n}?", "good": f"Good answer {n}.", "bad": f"Bad one {n}."}
        for n in range(30)
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = [
        "--prompt-field",
        "q",
        "--chosen-field",
        "good",
        "--rejected-field",
        "bad",
    ]
    assert (
        main(
            [
                *("-q", "probes", "build", str(source), "-o", str(tmp_path / "probes")),
                *(*fields, "--heldout-fraction", "0.3", "--rule-format"),
            ]
        )
        == 0
    )
    assert not half.exists()
    assert (tmp_path / "probes" / "README.md").exists()
