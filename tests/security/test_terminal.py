"""What others wrote is shown as text: it moves no cursor and opens no tag."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from ldeval.bundled import bundled_probes
from ldeval.cli import main
from ldeval.printable import quoted
from ldeval.probes import probe_to_record, read_probes
from ldeval.records import Response

ACTS = "\x1b]0;owned\x07\x9b2J\u202e"
TAG = "<script>alert(1)</script><img src=x onerror=alert(1)>"
Output = pytest.CaptureFixture[str]


def still(text: str) -> bool:
    return all(unicodedata.category(c)[0] != "C" or c in "\n\t" for c in text)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A probe file whose every text tries something."""
    probe = read_probes(bundled_probes()).probes[0]
    texts = {kind: Response(kind, TAG + ACTS + kind) for kind in probe.responses}
    probe = dataclasses.replace(
        probe, probe_id=f"id{ACTS}{TAG}", prompt=f"{TAG}{ACTS}", responses=texts
    )
    path = tmp_path / "probes.jsonl"
    path.write_text(json.dumps(probe_to_record(probe)) + "\n")
    return path


@pytest.mark.parametrize("size", [1, 10_000])
def test_a_value_of_a_file_is_quoted_at_no_length(size: int) -> None:
    deep: list[Any] = []
    for _ in range(size):
        deep = [deep]
    for value in (
        "'\x1b" * size,
        [1.5] * size,
        {"a" * size: deep},
        deep,
        7 * size,
        None,
    ):
        shown = quoted(value)
        assert 0 < len(shown) <= 60
        assert size > 1 or isinstance(value, list | dict) or shown == repr(value)
    assert len(quoted("x" * size, 200)) <= 200


def test_probes_are_shown_as_json_that_means_what_it_meant(
    hostile: Path, capsys: Output
) -> None:
    assert main(["probes", "show", str(hostile)]) == 0
    shown = capsys.readouterr().out
    assert still(shown)
    assert json.loads(shown) == json.loads(hostile.read_text())


def test_the_check_of_a_probe_file_shows_text(
    hostile: Path, tmp_path: Path, capsys: Output
) -> None:
    page = tmp_path / "page.html"
    main(["probes", "check", str(hostile), "--html", str(page)])
    assert still(capsys.readouterr().out)
    html = page.read_text(encoding="utf-8")
    assert still(html)
    assert "<script>alert" not in html
    assert "<img src=x" not in html


def test_an_error_that_quotes_a_name_shows_it(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / f"probes{ACTS}.jsonl".replace("/", "")
    path.write_text('{"probe_id": 1}\n')
    assert main(["validate", str(path)]) == 2
    shown = capsys.readouterr().err
    assert still(shown)
    assert "\\x1b]0;owned" in shown


def test_runs_are_listed_by_their_names_as_text(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / f"run{ACTS}" / "step_000001").mkdir(parents=True)
    assert main(["ls", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert still(shown)
    assert "run\\x1b" in shown
