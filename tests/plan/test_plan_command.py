"""``ldeval sweep --plan``, as it is typed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ldeval.cli import main
from ldeval.plan.fleet import Machine
from ldeval.report.plan_tables import (
    amount,
    duration,
    many,
    size,
)


def test_the_command_prints_the_plan_and_writes_it_unrounded(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "plan.json"
    command = ["sweep", str(tmp_path / "none"), "--base", str(trained / "base")]
    command += ["--store", str(tmp_path / "store"), "--plan"]
    command += ["--plan-parameters", "70B", "--plan-probes", "1M"]
    command += ["--plan-checkpoints", "100", "--plan-flops", "400T"]
    command += ["--plan-workers", "64", "--plan-memory", "80G"]
    assert main([*command, "--plan-json", str(target)]) == 0
    text = capsys.readouterr().out
    assert "100 checkpoints to score, 0 finished" in text
    assert "given, not measured" in text
    assert "The bottleneck is" in text
    record = json.loads(target.read_text("utf-8"))
    assert record["rates"]["scoring"] == {
        "value": 4e14,
        "source": "given",
        "where": "",
    }
    parts = {part["name"]: part["seconds"] for part in record["parts"]}
    engines = sum(parts[n] for n in ("encoding", "loading", "scoring", "writing"))
    assert engines > parts["joining"]
    # a step is joined when the engines are through with it, but the first before
    joins = 2 * parts["joining"] / 100
    assert record["sweep_seconds"] == pytest.approx(engines + joins)
    assert not (tmp_path / "store").exists()


def test_the_command_plans_ray_workers_as_engines(
    trained: Path, tmp_path: Path
) -> None:
    target = tmp_path / "plan.json"
    command = ["sweep", str(tmp_path / "none"), "--base", str(trained / "base")]
    command += ["--store", str(tmp_path / "store"), "--plan"]
    command += ["--plan-parameters", "70B", "--plan-checkpoints", "3"]
    command += ["--plan-flops", "400T", "--plan-memory", "80G"]
    command += ["--plan-json", str(target), "--ray-gpus", "2"]
    for more in (["--ray-workers", "32"], ["--plan-workers", "64"]):
        assert main([*command, *more]) == 0
        record = json.loads(target.read_text("utf-8"))
        assert (record["engines"], record["devices_per_engine"]) == (32, 2)
        assert record["shortfalls"] == []


def test_the_command_asks_no_cluster_and_says_so(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "plan.json"
    command = ["sweep", str(trained / "run"), "--base", str(trained / "base")]
    command += ["--store", str(tmp_path / "store"), "--plan", "--plan-flops", "1T"]
    command += ["--plan-json", str(target), "--ray"]
    assert main([*command, "192.0.2.1:6379"]) == 0
    assert "the cluster at 192.0.2.1:6379 has room for" in capsys.readouterr().out
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.2:6379")
    assert main(command) == 0
    assert "the cluster at 192.0.2.2:6379 has room for" in capsys.readouterr().out
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("ldeval.plan.sweep_plan.this_machine", lambda: Machine(64, 8))
    assert main(command) == 0
    assert json.loads(target.read_text("utf-8"))["engines"] == 8


@pytest.mark.parametrize(
    "options",
    [["--plan-probes", "1M"], ["--plan-workers", "4"], ["--plan-flops", "1T"]],
)
def test_options_of_a_plan_do_nothing_without_one(
    trained: Path,
    tmp_path: Path,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["sweep", str(trained / "run"), "--store", str(tmp_path / "store")]
    assert main([*command, *options]) == 2
    assert "without --plan" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--plan-parameters", "many"),
        ("--plan-parameters", "0B"),
        ("--plan-parameters", "nan"),
        ("--plan-checkpoints", "1.5"),
        ("--plan-memory", "80 apples"),
        ("--plan-workers", "0"),
    ],
)
def test_a_size_that_is_none_is_refused(
    tmp_path: Path, option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", str(tmp_path), "--store", "store", option, text])
    assert repr(text) in capsys.readouterr().err


def test_sizes_read_as_they_are_written() -> None:
    assert (many(96), many(111_193), many(70e9)) == ("96", "111,193", "70 B")
    assert amount(9.06e21, "FLOP") == "9.06 ZFLOP"
    assert (size(2**30), size(140e9), size(12)) == ("1 GiB", "130 GiB", "12 B")
    assert (duration(0), duration(119), duration(7200)) == ("0 s", "119 s", "2 h")
    assert (duration(3 * 86400), duration(86400 * 5000)) == ("3 days", "13.7 years")
    assert {amount(math.nan, "B"), size(math.nan), duration(math.inf)} == {"–"}
