"""TRL's trainer log: ``trainer_state.json``, as context curves.

What a trainer logs at a step is a mean over that step's own examples, so two points of
a curve are means of different texts: the curves are shown and nothing is judged.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ldeval.errors import StoreError
from ldeval.files import lenient_json
from ldeval.integrations.reference import ImportOptions
from ldeval.records import LevelColumn, LevelRun

WARNING = (
    "these means are over the examples of each step, which differ from step to step: "
    "context, not evidence"
)
_NOT_SHOWN = ("step", "epoch")


def import_trl_log(path: str | Path, options: ImportOptions) -> LevelRun:
    """Read a ``trainer_state.json``.

    Raises:
        StoreError: it is no such file, or logs nothing twice.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "trainer_state.json"
    try:
        state = lenient_json(path.read_text(encoding="utf-8"))
        rows = _rows(state["log_history"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise StoreError(
            f"{path}: not a trainer_state.json ({error}). TRL writes one into every "
            "checkpoint folder."
        ) from error
    if len(rows) < 2:
        raise StoreError(f"{path}: logs {len(rows)} steps; at least two are needed.")
    steps = sorted(rows)
    names = sorted({name for row in rows.values() for name in row})
    return LevelRun(
        run=options.run,
        origin="trl",
        file=path.name,
        split="trained",
        steps=tuple(steps),
        step_unit="steps",
        columns=tuple(
            LevelColumn(
                f"logged:{name}",
                "context",
                name,
                tuple(rows[step].get(name, math.nan) for step in steps),
                WARNING,
            )
            for name in names
        ),
        objective=options.objective,
        notes=(WARNING,),
    )


def _rows(history: Any) -> dict[int, dict[str, float]]:
    """Logged numbers by step; entries of one step are put together."""
    found: dict[int, dict[str, float]] = {}
    for entry in history if isinstance(history, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            numbers = {
                str(name): float(value)
                for name, value in entry.items()
                if isinstance(value, (int, float))
                and not isinstance(value, bool)
                and name not in _NOT_SHOWN
            }
            found.setdefault(entry["step"], {}).update(numbers)
    return found
