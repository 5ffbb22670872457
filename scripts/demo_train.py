"""Fine-tune the demo model for real with TRL: SFT, or DPO.

    python scripts/demo_train.py sft --model DIR --output RUN --steps 16 --saves 2
    python scripts/demo_train.py dpo --model RUN/checkpoint-16 --output RUN2 …

Trains on the trained half of a probe set, four examples a step, in an order that is
written beside the checkpoints (trained.jsonl: step, example ids, tokens).
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from ldeval import record_examples
from ldeval.bundled import bundled_probes
from ldeval.probes import read_probes
from ldeval.records import Probe

BATCH = 4
SEED = 0
LEARNING_RATES = {"sft": 1e-5, "dpo": 2e-6}


class InOrder:
    """Mixed into a trainer: takes the examples in the order of the dataset."""

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[attr-defined]


class OrderedSFT(InOrder, SFTTrainer):
    """SFT in dataset order."""


class OrderedDPO(InOrder, DPOTrainer):
    """DPO in dataset order."""


def in_order(probes: list[Probe], examples: int, first: int = 0) -> list[Probe]:
    """The probes of every step: whole passes, each shuffled anew.

    The first pass begins with the first ``first`` probes, so that a short run trains on
    those that will be scored.
    """
    rng = random.Random(SEED)
    order = rng.sample(probes[:first], len(probes[:first]))
    order += rng.sample(probes[first:], len(probes[first:]))
    while len(order) < examples:
        order.extend(rng.sample(probes, len(probes)))
    return order[:examples]


def example(probe: Probe, stage: str) -> dict[str, Any]:
    """A probe as TRL's conversational example."""
    messages = (
        [{"role": "user", "content": probe.prompt}]
        if isinstance(probe.prompt, str)
        else [dict(message) for message in probe.prompt]
    )

    def answer(kind: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": probe.responses[kind].text}]

    if stage == "sft":
        return {
            "probe_id": probe.probe_id,
            "prompt": messages,
            "completion": answer("chosen"),
        }
    return {
        "probe_id": probe.probe_id,
        "prompt": messages,
        "chosen": answer("chosen"),
        "rejected": answer("rejected"),
    }


def settings(stage: str, output: Path, steps: int, saves: int) -> dict[str, Any]:
    """What both trainers share."""
    return {
        "output_dir": str(output),
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": max(1, steps // saves),
        "save_only_model": True,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LEARNING_RATES[stage],
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "seed": SEED,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": 512,
        "disable_tqdm": False,
    }


def main() -> None:
    """Train one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["sft", "dpo"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--saves", type=int, required=True)
    parser.add_argument("--probes", type=Path, default=None)
    parser.add_argument(
        "--first", type=int, default=0, help="begin with this many of the probes"
    )
    options = parser.parse_args()

    probes = read_probes(options.probes or bundled_probes())
    kinds = ("chosen",) if options.stage == "sft" else ("chosen", "rejected")
    usable = [p for p in probes if p.trained and all(k in p.responses for k in kinds)]
    order = in_order(usable, options.steps * BATCH, options.first)
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.float32, trust_remote_code=False
    )
    data = Dataset.from_list([example(probe, options.stage) for probe in order])
    shared = settings(options.stage, options.output, options.steps, options.saves)
    trainer: Any
    if options.stage == "sft":
        trainer = OrderedSFT(
            model, SFTConfig(**shared), train_dataset=data, processing_class=tokenizer
        )
    else:
        # the paper's optimizer and β; its learning rates were not published
        arguments = DPOConfig(**shared, beta=0.1, optim="rmsprop")
        reference = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=torch.float32, trust_remote_code=False
        )
        trainer = OrderedDPO(
            model,
            reference,
            arguments,
            train_dataset=data,
            processing_class=tokenizer,
        )
    record_examples(trainer, ids="probe_id")
    trainer.train()


if __name__ == "__main__":
    main()
