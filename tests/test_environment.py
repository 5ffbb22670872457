"""A fresh environment: the plain harness command after pip install, both ways.

Slow (it installs everything); one environment serves both installs and the clean-up.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ldeval.records import KIND_NAMES
from tests.conftest import ROOT
from tests.tiny import save_tiny

pytestmark = pytest.mark.environment


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files as they are now, apart from the working copy."""
    folder = tmp_path_factory.mktemp("checkout")
    names = run("git", "-C", ROOT, "ls-files").splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with nothing but CPU torch."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "torch==2.13.0")
    return python


def stock_command(python: Path, model: Path, out: Path) -> str:
    return run(
        *(python.parent / "lm_eval", "--model", "hf"),
        *("--model_args", f"pretrained={model}", "--tasks", "ldyn_probes"),
        *("--limit", "1", "--output_path", out, "--log_samples"),
    )


def test_the_plain_command_works_after_either_install_and_is_gone_after_uninstall(
    python: Path, checkout: Path, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "model")
    inside = "import lm_eval; from pathlib import Path; print(Path(lm_eval.__file__)"
    inside += ".parent / 'tasks' / 'ldyn_probes')"
    pip = (python, "-m", "pip", "--quiet")
    for number, install in enumerate(((), ("--editable",))):
        run(*pip, "install", *install, f"{checkout}[hf]")
        printed = stock_command(python, model, tmp_path / f"out{number}")
        for kind in KIND_NAMES:
            if kind != "initial":  # sampled from another model
                assert f"ldyn_{kind} " in printed.replace("|", " "), kind
        assert "ldyn_probes" in run(python, "-m", "ldeval.cli", "doctor")
        folder = Path(run(python, "-c", inside).strip())
        assert folder.is_dir()
        tasks = Path(run(python.parent / "ldeval", "tasks").strip())
        assert (tasks / "probes.jsonl").is_file()
        run(*pip, "uninstall", "--yes", "ldeval")
        assert not folder.exists() or not any(folder.iterdir())

    # beside an editable harness: a stray folder would shadow it
    source = folder.parent.parent
    elsewhere = tmp_path / "harness" / "lm_eval"
    shutil.move(str(source), elsewhere)
    site = source.parent
    finder = "import sys\nsys.meta_path.append(__import__('_editable_lm_eval').Finder)"
    (site / "_editable_lm_eval.pth").write_text(finder.replace("\n", "; "))
    (site / "_editable_lm_eval.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "class Finder:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'lm_eval':\n"
        f"            return PathFinder.find_spec(name, [{str(elsewhere.parent)!r}])\n"
    )
    run(*pip, "install", "--no-deps", checkout)
    done = subprocess.run(
        [str(python), "-m", "ldeval.cli", "doctor"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "LDEVAL_HARNESS_FILES=0" in done.stdout
    # the cure that it names; pip leaves empty folders behind, which shadow as well
    run(*pip, "uninstall", "--yes", "ldeval")
    shutil.rmtree(site / "lm_eval", ignore_errors=True)
    run(*pip, "install", "--no-deps", checkout, LDEVAL_HARNESS_FILES="0")
    assert "FIX" not in run(python, "-m", "ldeval.cli", "doctor")
    tasks = run(python.parent / "ldeval", "tasks").strip()
    listed = run(python, "-m", "lm_eval", "ls", "tasks", "--include_path", tasks)
    assert "ldyn_probes" in listed
