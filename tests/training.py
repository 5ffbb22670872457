"""Small real trainers: TRL's SFT and DPO on a tiny model, full or LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from ldeval.bundled import bundled_probes
from ldeval.probes import ProbeSet, read_probes
from ldeval.records import Probe

IDS = "probe_id"


def short_probes(trained: int = 12, heldout: int = 4, letters: int = 60) -> ProbeSet:
    """Bundled probes, every response cut to a few words: a tiny model's context is
    short."""
    from dataclasses import replace

    def cut(probe: Probe) -> Probe:
        responses = {
            kind: replace(response, text=response.text[:letters].strip())
            for kind, response in probe.responses.items()
        }
        return replace(probe, responses=responses, meta={})

    bundled = read_probes(bundled_probes()).limited(trained, heldout)
    return ProbeSet(tuple(cut(probe) for probe in bundled))


def examples(probes: ProbeSet, stage: str) -> Dataset:
    """The trained probes as conversational rows, with their ids."""

    def answer(probe: Probe, kind: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": probe.responses[kind].text}]

    rows = []
    for probe in probes:
        if not probe.trained:
            continue
        row: dict[str, Any] = {IDS: probe.probe_id}
        row["prompt"] = [{"role": "user", "content": str(probe.prompt)}]
        if stage == "sft":
            row["completion"] = answer(probe, "chosen")
        else:
            row["chosen"] = answer(probe, "chosen")
            row["rejected"] = answer(probe, "rejected")
        rows.append(row)
    return Dataset.from_list(rows)


def trainer(
    model: Path,
    output: Path,
    data: Dataset,
    stage: str = "dpo",
    *,
    lora: bool = False,
    callbacks: list[Any] | None = None,
    kind: Any = None,
    eval_dataset: Dataset | None = None,
    **changes: Any,
) -> Any:
    """A trainer that is ready to train, in the file's own precision, on the CPU."""
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    network = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 3,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": 128,
        "disable_tqdm": True,
        **changes,
    }
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora else None
    shared: dict[str, Any] = {
        "train_dataset": data,
        "eval_dataset": eval_dataset,
        "processing_class": tokenizer,
        "callbacks": callbacks,
        "peft_config": adapter,
    }
    if stage == "sft":
        cls = kind or SFTTrainer
        return cls(network, args=SFTConfig(**settings), **shared)
    return (kind or DPOTrainer)(network, args=DPOConfig(**settings), **shared)


def losses(finished: Any) -> list[float]:
    """What was logged, step by step."""
    return [row["loss"] for row in finished.state.log_history if "loss" in row]


def weights(finished: Any) -> dict[str, torch.Tensor]:
    """Every weight after training."""
    state = finished.model.state_dict()
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def assert_same_training(one: Any, two: Any) -> None:
    """The same losses and the same weights, to the last bit."""
    assert losses(one)
    assert losses(one) == losses(two)
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
