"""The trainer's own numbers: our sums are what TRL's DPOTrainer reports for the same
pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ldeval.probes import ProbeSet
from ldeval.records import Probe, Response
from ldeval.scoring.score import score_probes
from tests.scoring.conftest import open_hf

TOLERANCE = 2e-4
"""Nats per token."""
PAIRS = [
    ("Name a river.", "The Danube flows through ten countries.", "No."),
    ("What is two and two?", "It is four.", "Five, I should think, or six."),
    ("Say something kind. ", "You are doing well.", "\n\nI would rather not."),
]


def rows(conversational: bool) -> list[dict[str, Any]]:
    if not conversational:
        return [
            {"prompt": prompt, "chosen": " " + chosen, "rejected": " " + rejected}
            for prompt, chosen, rejected in PAIRS
        ]
    return [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in PAIRS
    ]


def as_probes(conversational: bool) -> ProbeSet:
    probes = []
    for number, row in enumerate(rows(conversational)):
        texts = {
            kind: row[kind][0]["content"] if conversational else row[kind]
            for kind in ("chosen", "rejected")
        }
        prompt = row["prompt"]
        probes.append(
            Probe(
                probe_id=str(number),
                prompt=tuple(prompt) if conversational else prompt,
                responses={kind: Response(kind, text) for kind, text in texts.items()},
                trained=True,
            )
        )
    return ProbeSet(tuple(probes))


def trainer_numbers(
    folder: Path, conversational: bool, output: Path
) -> list[dict[str, float]]:
    """``logps/chosen`` and ``logps/rejected`` of each pair, in evaluation: batch 1, no
    dropout, no update."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    found = []
    for row in rows(conversational):
        data = Dataset.from_list([row])
        trainer = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(str(folder), dtype="float32"),
            processing_class=AutoTokenizer.from_pretrained(str(folder)),
            args=DPOConfig(
                output_dir=str(output),
                per_device_train_batch_size=1,
                per_device_eval_batch_size=1,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                max_length=None,
                disable_tqdm=True,
            ),
            train_dataset=data,
            eval_dataset=data,
        )
        metrics = trainer.evaluate()
        found.append(
            {kind: metrics[f"eval_logps/{kind}"] for kind in ("chosen", "rejected")}
        )
    return found


def assert_equal(folder: Path, conversational: bool, output: Path) -> None:
    lm = open_hf(folder)
    scored = score_probes(lm, as_probes(conversational).probes, progress=False).scores
    theirs = trainer_numbers(folder, conversational, output)
    for number, sums in enumerate(theirs):
        for kind, expected in sums.items():
            score = scored[(str(number), kind)]
            gap = abs(score.logprob_sum - expected) / len(score.token_ids or ())
            assert gap < TOLERANCE, (number, kind, score.logprob_sum, expected)


@pytest.mark.parametrize("conversational", [False, True])
def test_our_sums_are_those_of_a_dpo_trainer(
    tiny: Path, tmp_path: Path, conversational: bool
) -> None:
    assert_equal(tiny, conversational, tmp_path)


@pytest.mark.model
@pytest.mark.parametrize("conversational", [False, True])
def test_our_sums_are_those_of_a_dpo_trainer_on_a_real_model(
    demo_model: Path, tmp_path: Path, conversational: bool
) -> None:
    assert_equal(demo_model, conversational, tmp_path)
