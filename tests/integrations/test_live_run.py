"""One live scoring at a time, without a trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from ldeval.errors import StoreError
from ldeval.integrations.live_run import LiveRun, LiveSettings
from ldeval.store import list_steps
from tests.tiny import save_tiny
from tests.training import short_probes


def test_scores_of_a_run_that_was_lost_while_they_were_made_are_not_written(
    tmp_path: Path,
) -> None:
    folder = save_tiny(tmp_path / "model")
    live = LiveRun(LiveSettings(short_probes(1, 1), tmp_path, "run"))
    asked = []

    def still_held() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise StoreError("is another's")

    live._still_held = still_held
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(StoreError, match="is another's"):
        live.score(model, AutoTokenizer.from_pretrained(folder), 1, "nowhere")
    assert list_steps(tmp_path / "run") == []
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "trained.jsonl").write_text("")
    with pytest.raises(StoreError, match="is another's"):
        live.keep_record(tmp_path)
    assert not (tmp_path / "run" / "trained.jsonl").exists()
