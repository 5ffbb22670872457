"""The README's commands, run as they stand.

Blocks marked ``bash`` run here, in order, in one folder with a tiny base model and
two tiny runs under the names that the README uses. Blocks marked ``sh`` install things
or need vLLM: the demo and the test command run in CI and by hand, vLLM in
``tests/scoring/test_vllm.py``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ldeval.cli import parser
from tests.conftest import ROOT
from tests.tiny import save_run

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    made = save_run(folder / "made", [10, 20])
    (folder / "models").mkdir()
    shutil.move(str(made / "base"), folder / "models" / "base")
    shutil.copytree(made / "run", folder / "runs" / "sft")
    shutil.copytree(made / "run" / "checkpoint-10", folder / "runs/dpo/checkpoint-5")
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    pairs = [
        {
            "prompt": f"Question {n}?",
            "chosen": f"The answer to {n} is long enough, I think, to be told apart.",
            "rejected": f"Nobody knows the answer to question {n}, or ever will.",
        }
        for n in range(150)
    ]
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    (folder / "preferences.jsonl").write_text(lines)
    return folder


def test_every_command_of_the_readme_works(folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    assert len(blocks("bash")) >= 4
    for block in blocks("bash"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (
            f"{block}\n{done.stdout[-500:]}{done.stderr[-2500:]}"
        )
    assert (folder / "report" / "curves_trained.png").is_file()


def test_the_python_example_works(folder: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2500:]


def test_the_commands_that_are_not_run_here_parse() -> None:
    commands = [
        line.strip()
        for block in blocks("sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("ldeval ")
    ]
    assert commands
    for command in commands:
        parser().parse_args(command.split()[1:])


def test_every_command_is_in_the_reference() -> None:
    table = README[README.index("## Command line") :]
    for name in (
        *("sweep", "ls", "diff", "report", "compare", "import"),
        *(
            "predict",
            "influence",
            "risk",
            "validate",
            "tasks",
            "doctor",
            "theory",
            "trained",
        ),
    ):
        assert f"`ldeval {name}" in table
    assert "`ldeval probes check" in table


def test_the_file_tree_names_what_exists() -> None:
    start = README.index("```\nldeval/\n")
    tree = README[start + 4 : README.index("```", start + 4)]
    for line in tree.splitlines():
        name = line.split()[0]
        base = ROOT / "ldeval" if line.startswith("  ") else ROOT
        assert (base / name).exists(), name


def test_every_link_to_a_file_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
