"""predict, influence and risk from the command line, on a tiny model on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ldeval.cli import main
from ldeval.dynamics.results import (
    ROWS,
    read_influence,
    read_prediction,
    read_risk,
    write_influence,
    write_prediction,
    write_risk,
)
from ldeval.errors import IncompleteError, StoreError
from ldeval.probes import ProbeSet, write_probes
from ldeval.report.dynamics_report import (
    influence_text,
    prediction_text,
    risk_text,
    write_influence_report,
    write_prediction_report,
)
from tests.dynamics.tiny_lm import some_probes
from tests.tiny import save_run, tiny_tokenizer

HOSTILE = "<script>alert(1)</script>|$x$\n# y"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model, a probe file and preference data beside each other."""
    folder = tmp_path_factory.mktemp("dynamics")
    save_run(folder, [1])
    trained = [replace(p, trained=True) for p in some_probes(6)]
    held = [replace(p, trained=False) for p in some_probes(3, skip=20)]
    write_probes(folder / "probes.jsonl", ProbeSet((*trained, *held)))
    rows = [
        {
            "prompt": p.prompt,
            "chosen": p.responses["chosen"].text,
            "rejected": p.responses["rejected"].text,
            "note": HOSTILE,
        }
        for p in trained
    ]
    rows.insert(2, {"prompt": "x", "chosen": "", "rejected": "y", "note": ""})
    lines = [json.dumps(row) for row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def step_of(place: Path, *more: str) -> list[str]:
    """Options of a step on four pairs, in float64."""
    return [
        "--model",
        str(place / "base"),
        "--dtype",
        "float64",
        "--data",
        str(place / "pairs.jsonl"),
        "--probes",
        str(place / "probes.jsonl"),
        "--limit",
        "0",
        "3",
        *more,
    ]


def test_predict_prints_stores_and_draws_what_agrees(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--sizes", "0.5", "1", "2"]
    options = step_of(place, "--lr", "1e-4", *sizes, "-o", str(tmp_path))
    assert main(["-q", "predict", *options]) == 0
    found = read_prediction(tmp_path)
    assert len(found.responses) == 36
    assert found.agreements[0].r2 > 0.99
    assert found.error_slope == pytest.approx(2, abs=0.1)
    assert found.settings["responses_left_out"] == []
    out = capsys.readouterr().out
    assert "By kind" in out
    assert (tmp_path / "prediction.md").is_file()
    assert (tmp_path / "prediction.png").read_bytes().startswith(b"\x89PNG")


def test_predict_between_two_checkpoints(place: Path, tmp_path: Path) -> None:
    options = step_of(place, "-o", str(tmp_path))
    data = options.index("--data")
    del options[data : data + 2]
    later = str(place / "run" / "checkpoint-1")
    assert main(["-q", "predict", *options, "--to", later, "--sizes", "0.1"]) == 0
    found = read_prediction(tmp_path)
    assert list(found.parts) == ["change"]
    assert found.agreements[0].sign > 0.9


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("predict", ["--sizes", "1", "0"], "size 0.0 of the step"),
        ("predict", ["--sizes", "-1"], "size -1.0 of the step"),
        ("predict", ["--sizes", "nan"], "size nan of the step"),
        ("predict", ["--batch", "0"], "batch 0: give at least 1"),
        ("predict", ["--batch", "-1"], "batch -1: give at least 1"),
        ("predict", ["--first", "-1"], "first -1: give at least 0"),
        ("predict", ["--replay", "-1"], "replayed -1: give at least 0"),
        ("predict", ["--lr", "nan"], "learning rate nan"),
        ("predict", ["--loss", "ipo", "--beta", "0"], "beta 0.0: give a number"),
        ("predict", ["--optimizer", "rmsprop", "--momentum", "0.9"], "rmsprop with"),
        ("predict", ["--optimizer", "adamw", "--momentum", "0.9"], "adamw with"),
        ("influence", ["--project", "0"], "projected to 0 numbers"),
    ],
)
def test_numbers_that_a_step_cannot_have_are_refused_by_name(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    options: list[str],
    said: str,
) -> None:
    step = step_of(place, "--lr", "1e-4", "-o", str(tmp_path), *options)
    assert main(["-q", command, *step]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_a_limit_below_one_pair_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], limit: str
) -> None:
    options = [str(place / "pairs.jsonl"), "--model", str(place / "base")]
    assert main(["-q", "risk", *options, "--limit", limit]) == 2
    assert f"limit {limit}: give at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--project", "512"]])
def test_influence_tells_who_moved_what(
    place: Path, tmp_path: Path, extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    adamw = ["--optimizer", "adamw", "--weight-decay", "0.1", "--lr", "1e-4"]
    options = step_of(
        place, *adamw, "--batch", "3", "--replay", "1", "-o", str(tmp_path)
    )
    assert main(["-q", "influence", *options, "--kernel", "2", *extra]) == 0
    found = read_influence(tmp_path)
    assert found.influence.shape == (36, 3)
    assert found.kernel is not None
    assert found.kernel.shape == (36, 3)
    assert found.exact == (not extra)
    if found.exact:
        assert found.gap < 1e-6
    else:
        assert found.projection["relative"] > 0
    assert np.abs(found.history).max() > 0
    assert not (tmp_path / ROWS).exists()
    assert "pushed up by" in capsys.readouterr().out


def test_a_killed_influence_goes_on_where_it_stopped(
    place: Path, tmp_path: Path
) -> None:
    options = step_of(place, "--lr", "1e-4", "-o", str(tmp_path))
    command = [sys.executable, "-m", "ldeval.cli", "-q", "influence", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    rows = tmp_path / ROWS
    while process.poll() is None:
        if rows.is_file() and rows.read_bytes().count(b"\n") > 5:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
    kept = rows.read_bytes()
    with pytest.raises(IncompleteError, match="goes on with it"):
        read_influence(tmp_path)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    again = tmp_path / "again"
    whole = [*options[:-1], str(again)]
    assert main(["-q", "influence", *whole]) == 0
    resumed = read_influence(tmp_path)
    assert kept.count(b"\n") > 5
    assert np.allclose(resumed.influence, read_influence(again).influence, rtol=1e-9)


def test_risk_ranks_filters_and_lists_what_it_skips(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, kept = tmp_path / "risk.json", tmp_path / "kept.jsonl"
    data = str(place / "pairs.jsonl")
    options = ["--model", str(place / "base"), "--json", str(numbers)]
    options += ["--filtered", str(kept), "--keep", "0.5"]
    assert main(["-q", "risk", data, *options]) == 0
    found = read_risk(numbers)
    changes = [pair.chosen_change for pair in found.pairs]
    assert changes == sorted(changes)
    assert len(found.skipped) == 1
    assert "chosen response is empty" in capsys.readouterr().out
    originals = [json.loads(line) for line in Path(data).read_text().splitlines()]
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(rows) == 3
    assert all(row in originals for row in rows)
    risky = {int(p.example_id.rpartition(":")[2]) for p in found.pairs[:3]}
    assert all(originals[line - 1] not in rows for line in risky)


def test_risk_without_gradients_ranks_by_ches(place: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "risk.json"
    options = ["--model", str(place / "base"), "--no-gradients", "--json", str(numbers)]
    assert main(["-q", "risk", str(place / "probes.jsonl"), *options]) == 0
    found = read_risk(numbers)
    assert found.ranked_by == "ches_normalised"
    assert len(found.pairs) == 6
    assert all(pair.both_fall is None for pair in found.pairs)
    scores = [pair.ches_normalised for pair in found.pairs]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no learning rate"),
        (["--lr", "1", "--first", "5", "--replay", "1"], "too few"),
        (["--lr", "1", "--loss", "sfft"], "Valid: sft"),
        (["--lr", "1", "--to", "elsewhere"], "Give one of them"),
        (["--lr", "1", "--optimizer-state", "none.pt"], "no such file"),
    ],
)
def test_what_cannot_be_computed_is_said(
    place: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["-q", "predict", *step_of(place, *options, "-o", str(tmp_path))]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_stored_results_come_back_and_damage_is_named(
    place: Path, tmp_path: Path
) -> None:
    options = step_of(place, "--lr", "1e-4", "-o", str(tmp_path))
    assert main(["-q", "influence", *options]) == 0
    found = read_influence(tmp_path)
    write_influence(tmp_path / "copy", found)
    again = read_influence(tmp_path / "copy")
    assert again.responses == found.responses
    assert np.array_equal(again.influence, found.influence)
    path = tmp_path / "influence.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"x": 1'))
    with pytest.raises(StoreError, match=r"influence\.json"):
        read_influence(tmp_path)
    with pytest.raises(StoreError, match="no such file"):
        read_prediction(tmp_path)


def test_text_of_others_cannot_act_in_a_report(place: Path, tmp_path: Path) -> None:
    predicting = step_of(place, "--lr", "1e-4", "-o", str(tmp_path))
    assert main(["-q", "predict", *predicting]) == 0
    assert main(["-q", "influence", *predicting]) == 0
    risky = ["--model", str(place / "base"), "--json", str(tmp_path / "risk.json")]
    assert main(["-q", "risk", str(place / "pairs.jsonl"), *risky]) == 0
    table = read_influence(tmp_path)
    bad = replace(
        table,
        examples=(HOSTILE, *table.examples[1:]),
        responses=tuple(replace(r, probe_id=HOSTILE) for r in table.responses),
        settings={HOSTILE: HOSTILE},
    )
    shown = read_prediction(tmp_path)
    risk = read_risk(tmp_path / "risk.json")
    odd = replace(risk, pairs=tuple(replace(p, example_id=HOSTILE) for p in risk.pairs))
    for text in (influence_text(bad), prediction_text(shown), risk_text(odd)):
        assert "\n# y" not in text
    page = write_influence_report(bad, tmp_path / "bad").read_text()
    assert "<script>" not in page
    write_prediction_report(replace(shown, settings=bad.settings), tmp_path / "bad")
    write_prediction(tmp_path / "bad", shown)
    write_risk(tmp_path / "bad" / "risk.json", odd)


def test_the_tokenizer_of_the_base_is_lent(place: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("model.safetensors", "config.json"):
        (bare / name).write_bytes((place / "base" / name).read_bytes())
    tiny_tokenizer().save_pretrained(tmp_path / "lent")
    options = step_of(place, "--lr", "1e-4", "-o", str(tmp_path / "out"))
    options[1] = str(bare)
    base = ["--base", str(tmp_path / "lent"), "--kinds", "chosen"]
    assert main(["-q", "predict", *options, *base]) == 0
