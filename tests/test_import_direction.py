"""Modules import only what stands before them, and nothing heavy too early."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ldeval"

LEVELS = {
    "errors": 0,
    "printable": 0,
    "redact": 0,
    "room": 0,
    "files": 1,
    "logs": 1,
    "parquet": 1,
    "bundled": 1,
    "records": 1,
    "probes": 2,
    "checkpoints": 2,
    "store": 2,
    "decodes": 2,
    "imported": 3,
    "doctor": 2,
    "lease": 2,
    "texts": 3,
    "scoring": 3,
    "compare": 3,
    "reuse": 3,
    "run_checks": 3,
    "harness": 4,
    "dynamics": 4,
    "sweep": 5,
    "integrations": 5,
    "report": 5,
    "shards": 4,
    "ray_worker": 7,
    "ray_cluster": 6,
    "ray_pool": 8,
    "ray_sweep": 9,
    "plan": 6,
    "watch": 6,
    "ldeval": 10,
    "commands": 11,
    "cli": 12,
}
"""Leftmost lowest; rooms of one level do not import each other."""

TORCHLESS = ("records", "probes", "store", "checkpoints", "compare", "report")


def room(name: str) -> str:
    parts = name.split(".")
    return "ldeval" if len(parts) == 1 else parts[1]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "ldeval.scoring":
                found |= {f"ldeval.scoring.{alias.name}" for alias in node.names}
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_lower_rooms(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    own = "ldeval" if relative.name == "__init__.py" else relative.stem
    own = own if len(relative.parts) == 1 else relative.parts[0]
    for name in imports(path):
        if name.split(".")[0] != "ldeval" or room(name) == own:
            continue
        assert LEVELS[room(name)] < LEVELS[own], f"{own} imports {name}"


@pytest.mark.parametrize("name", TORCHLESS)
def test_no_torch_below_scoring_nor_in_analysis(name: str) -> None:
    folder = PACKAGE / name
    paths = folder.rglob("*.py") if folder.is_dir() else [PACKAGE / f"{name}.py"]
    for path in paths:
        heavy = {m.split(".")[0] for m in imports(path)} & {"torch", "transformers"}
        assert not heavy, path


def test_importing_ldeval_imports_nothing_heavy() -> None:
    code = (
        "import sys, ldeval, ldeval.cli; heavy = {'torch', 'transformers', 'lm_eval', "
        "'vllm', 'matplotlib', 'pandas', 'pyarrow', 'scipy'} & set(sys.modules); "
        "print(sorted(heavy)); sys.exit(bool(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
