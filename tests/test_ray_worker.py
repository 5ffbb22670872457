"""What one worker does, in this process."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from ldeval.bundled import bundled_probes
from ldeval.errors import ClusterError
from ldeval.probes import read_probes
from ldeval.ray_sweep import check_all
from ldeval.ray_worker import Outcome, ShardWorker
from ldeval.records import Checkpoint
from ldeval.shards import Shard, cut
from ldeval.store import read_table, step_folder
from ldeval.sweep import SweepSettings
from tests.tiny import save_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/checkpoint-{10,20}."""
    return save_run(tmp_path_factory.mktemp("trained"), [10, 20])


def started() -> ShardWorker:
    worker = ShardWorker()
    worker.ready(
        "no such folder", "hf", {"dtype": "float32", "device": "cpu"}, None, []
    )
    return worker


def of(shard: Shard, store: Path) -> SweepSettings:
    return SweepSettings(
        probes=shard.probes, store=store, run=shard.name, progress=False, noise=False
    )


def test_what_a_worker_logs_acts_on_no_terminal_and_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a process of its own
    started()
    logging.getLogger("a_library").warning("\x1b[2J user:%s@host", "pa55word-of-it")
    said = capsys.readouterr().err
    assert said.startswith("WARNING ")
    assert "\x1b" not in said
    assert "pa55word" not in said


def test_a_worker_never_holds_two_models(trained: Path, tmp_path: Path) -> None:
    def models() -> int:
        gc.collect()
        return sum(isinstance(item, LlamaForCausalLM) for item in gc.get_objects())

    before = models()
    worker = started()
    first, second = (
        Checkpoint(str(trained / "run" / f"checkpoint-{step}"), step)
        for step in (10, 20)
    )
    shards = cut(read_probes(bundled_probes()).limited(2, 1), 2)
    run = str(trained / "run")
    for checkpoint in (first, second):
        for shard in shards:
            done = worker.take(of(shard, tmp_path), run, checkpoint, first)
            assert done.broken is None
            table = read_table(step_folder(tmp_path, shard.name, checkpoint.step))
            assert done.tokens == len(table.tokens)
            assert models() == before + 1


def test_a_worker_that_cannot_see_the_first_scores_says_so(
    trained: Path, tmp_path: Path
) -> None:
    shard = cut(read_probes(bundled_probes()).limited(2, 1), 1)[0]
    first, second = (
        Checkpoint(str(trained / "run" / f"checkpoint-{step}"), step)
        for step in (10, 20)
    )
    asked = of(shard, tmp_path)
    with pytest.raises(ClusterError, match="no such step there"):
        started().take(asked, str(trained / "run"), second, first)
    gone = replace(first, path=str(trained / "elsewhere" / "checkpoint-10"))
    with pytest.raises(ClusterError, match="same names on all machines"):
        started().take(asked, str(trained / "run"), second, gone)
    missing = started().take(asked, str(trained / "run"), gone, gone)
    assert missing.missing


def test_a_checkpoint_that_is_here_and_not_there_is_no_broken_one(
    tmp_path: Path,
) -> None:
    outcome = Outcome("no weight files", 0, "node-7", missing=True)
    with pytest.raises(ClusterError, match="not to be seen on node-7"):
        check_all([outcome], Checkpoint(str(tmp_path), 10))
