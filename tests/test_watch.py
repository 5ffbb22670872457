"""A sweep that waits for checkpoints while a trainer writes and deletes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ldeval.scoring.models import RestartedModels
from ldeval.store import load_run, read_table, step_folder
from ldeval.watch import watch
from tests.sweeping import sweep_settings
from tests.tiny import save_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and run/checkpoint-{10,20,30}."""
    return save_run(tmp_path_factory.mktemp("trained"), [10, 20, 30])


def test_watching_scores_checkpoints_as_they_appear_and_stops_at_the_last(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "live"
    source = trained / "run"
    arriving = iter(["checkpoint-10", "checkpoint-20", "checkpoint-30"])

    def train(_: float) -> None:
        """A trainer that keeps one checkpoint (save_total_limit=1)."""
        name = next(arriving)
        shutil.rmtree(run, ignore_errors=True)
        # half a checkpoint: weights without the state that is written last
        shutil.copytree(source / name, run / name)

    result = watch(
        run, sweep_settings(trained, tmp_path / "store"), interval=0.0, sleep=train
    )
    assert result.scored == (0, 10, 20, 30)
    whole = load_run(tmp_path / "store" / "run")
    assert [t.manifest.step for t in whole] == [0, 10, 20, 30]


def test_a_checkpoint_being_written_is_left_alone(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "live"
    shutil.copytree(trained / "run" / "checkpoint-30", run / "checkpoint-30")
    state = run / "checkpoint-30" / "trainer_state.json"
    content = state.read_text()
    state.unlink()
    looks: list[int] = []

    def finish(_: float) -> None:
        looks.append(1)
        if len(looks) == 3:
            state.write_text(content)

    result = watch(
        run, sweep_settings(trained, tmp_path / "store"), interval=0.0, sleep=finish
    )
    assert len(looks) == 3
    assert result.scored == (0, 30)


def test_a_checkpoint_that_is_deleted_while_it_is_scored_is_scored(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "live"
    shutil.copytree(trained / "run" / "checkpoint-30", run / "checkpoint-30")
    opened = RestartedModels.open

    def deleting(self: RestartedModels, checkpoint: Any) -> Any:
        if checkpoint.step == 30:
            shutil.rmtree(run / "checkpoint-30")
        return opened(self, checkpoint)

    monkeypatch.setattr(RestartedModels, "open", deleting)
    result = watch(run, sweep_settings(trained, tmp_path / "store"), interval=0.0)
    assert result.scored == (0, 30)
    manifest = read_table(step_folder(tmp_path / "store", "run", 30)).manifest
    assert manifest.checkpoint == str(run / "checkpoint-30")
    assert manifest.stored_dtype == "F32"
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["run"]


def test_watching_ends_when_nothing_comes(trained: Path, tmp_path: Path) -> None:
    result = watch(
        tmp_path / "nothing",
        sweep_settings(trained, tmp_path / "store"),
        interval=0.01,
        idle=0.05,
    )
    assert result.scored == (0,)
