"""``ldeval theory``: what is printed, drawn and written; what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ldeval.cli import main, parser
from tests.conftest import ROOT


@pytest.mark.parametrize("toy", ["residuals", "squeezing", "bigram"])
def test_a_toy_prints_a_table_draws_a_figure_and_writes_its_numbers(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        figure, numbers = tmp_path / "new" / f"a{suffix}", tmp_path / "a.json"
        assert main(["theory", toy, "-o", str(figure), "--json", str(numbers)]) == 0
        assert figure.read_bytes().startswith(start)
        assert json.loads(numbers.read_text())
        assert "──" in capsys.readouterr().out


def test_without_an_output_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["theory", "squeezing", "--seed", "3"]) == 0
    assert "negative in a valley" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_digits_from_a_local_mnist_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(10).repeat(130)
    means = rng.integers(0, 255, (10, 8, 8))
    noise = rng.integers(-20, 20, (1300, 8, 8))
    images = np.clip(means[labels] + noise, 0, 255).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels.astype(np.uint8))
    arguments = ["-q", "theory", "digits", "--epochs", "1", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--mnist", str(tmp_path / "mnist.npz")]) == 0
    assert "MNIST (mnist.npz)" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"digits_step.png", "digits_influence.png", "digits_kernel.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["residuals", "--beta", "0"], "must be above 0"),
        (["residuals", "--beta", "nan"], "--beta nan"),
        (["residuals", "--margin", "inf"], "--margin inf: it must be finite"),
        (["squeezing", "--seed", "-1"], "seed -1: give 0 or more"),
        (["digits", "--seed", "-1"], "seed -1: give 0 or more"),
        (["bigram", "--steps", "0"], "at least one step"),
        (["bigram", "-o", "map.gif"], ".png or .svg"),
        (["digits", "--mnist", "absent.npz"], "no such file"),
        (["digits", "--epochs", "0"], "at least 1"),
    ],
)
def test_nonsense_is_refused_by_name(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-q", "theory", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_commands_of_the_document_parse_and_its_files_are_there() -> None:
    text = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    commands = re.findall(r"^ldeval (.+?)(?: +#.*)?$", text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        parser().parse_args(command.split())
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
