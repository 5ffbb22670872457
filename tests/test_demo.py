"""The demo's own path on a tiny model: real TRL training, a sweep, a report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ldeval.store import load_run, read_trained
from tests.conftest import ROOT
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def demo(model: Path, output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "demo_run.py"), "--quick"),
            *("--backend", "hf", "--model", str(model), "--output", str(output)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_demo_trains_scores_and_reports_and_then_keeps_everything(
    model: Path, tmp_path: Path
) -> None:
    first = demo(model, tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    assert first.stdout.rstrip().splitlines()[-1] == f"report: {tmp_path / 'report.md'}"
    (store,) = tmp_path.glob("quick-*/store")
    sft, dpo = load_run(store / "sft"), load_run(store / "dpo")
    assert [t.manifest.step for t in sft] == [0, 2, 4]
    assert [t.manifest.step for t in dpo] == [0, 4, 8]
    assert sft[-1].manifest.weights_hash == dpo[0].manifest.weights_hash
    assert sft[0].manifest.excluded == ()
    trained = read_trained(store / "dpo")
    assert trained is not None
    assert [len(ids) for ids in trained.values()] == [4] * 8
    seen = frozenset().union(*trained.values())
    scored = set(dpo[0].probe_ids[dpo[0].trained].tolist())
    assert scored
    assert scored <= seen
    assert {table.manifest.objective for table in dpo} == {"dpo"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert [run["run"] for run in report["runs"]] == ["sft", "dpo"]
    assert (tmp_path / "curves_trained.png").is_file()

    again = demo(model, tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "scored 0 checkpoints, kept 3 finished ones" in again.stdout
    assert "train_runtime" not in again.stdout + again.stderr


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_order_that_is_written_is_the_order_that_is_trained(
    model: Path, tmp_path: Path, stage: str
) -> None:
    """The trainer's batches, against trained.jsonl."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import demo_train
    finally:
        sys.path.pop(0)
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, SFTConfig

    from ldeval.bundled import bundled_probes
    from ldeval.probes import read_probes

    probes = [probe for probe in read_probes(bundled_probes()) if probe.trained]
    order = demo_train.in_order(probes, 12, 4)
    assert len({probe.probe_id for probe in order}) == 12
    assert {p.probe_id for p in order[:4]} == {p.probe_id for p in probes[:4]}
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    network = AutoModelForCausalLM.from_pretrained(str(model))
    data = Dataset.from_list([demo_train.example(p, stage) for p in order])
    shared = demo_train.settings(stage, tmp_path, 3, 1)
    if stage == "sft":
        trainer = demo_train.OrderedSFT(
            network, SFTConfig(**shared), train_dataset=data, processing_class=tokenizer
        )
    else:
        trainer = demo_train.OrderedDPO(
            network,
            AutoModelForCausalLM.from_pretrained(str(model)),
            DPOConfig(**shared),
            train_dataset=data,
            processing_class=tokenizer,
        )
    seen = []
    for batch in trainer.get_train_dataloader():
        for ids in batch["input_ids"][: demo_train.BATCH].tolist():
            seen.append(tokenizer.decode(ids))
    for text, probe in zip(seen, order, strict=True):
        assert probe.responses["chosen"].text in text
