"""TRL's trainer_state.json as context curves that nothing is judged by."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ldeval.compare.imported import compare_levels
from ldeval.errors import StoreError
from ldeval.integrations.reference import ImportOptions
from ldeval.integrations.trl_log import import_trl_log
from ldeval.report import print_summary, render_markdown

NAMED = ImportOptions("trained")


def state(tmp_path: Path) -> Path:
    history = [
        {"step": 10, "epoch": 0.1, "loss": 0.69, "logps/chosen": -151.0},
        {"step": 20, "epoch": 0.2, "loss": 0.6, "logps/chosen": -149.0},
        {"step": 20, "epoch": 0.2, "eval_loss": 0.65},
        {"step": 30, "epoch": 0.3, "loss": 0.5},
    ]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": history, "global_step": 30}))
    return path


def test_logged_means_become_context_curves_with_a_warning(tmp_path: Path) -> None:
    levels = import_trl_log(state(tmp_path), NAMED)
    assert levels.steps == (10, 20, 30)
    column = levels.column("logged:logps/chosen")
    assert column is not None
    assert column.role == "context"
    assert column.values[:2] == (-151.0, -149.0)
    assert math.isnan(column.values[2])
    assert "differ from step to step" in levels.notes[0]
    assert import_trl_log(tmp_path, NAMED) == levels


def test_nothing_is_judged_by_a_trainer_s_log(tmp_path: Path) -> None:
    found = compare_levels(import_trl_log(state(tmp_path), NAMED))
    assert found.verdicts == ()
    assert found.overall.changes == ()
    assert {p.kind for p in found.curves} >= {"logged:loss", "logged:logps/chosen"}
    assert print_summary(found)
    assert "context, not evidence" in render_markdown(found, {})


@pytest.mark.parametrize("text", ["{}", "[]", "no", '{"log_history": []}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_text(text)
    with pytest.raises(StoreError, match="trainer_state"):
        import_trl_log(path, NAMED)
