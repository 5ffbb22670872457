"""A real DPO run with live probes and without: the same training, the same numbers, the
cost side by side.

    python scripts/campaign_callback.py --model DIR --output DIR [--steps 6]

Trains twice from one model on the same pairs in one order, the second time with
ProbeCallback, and then scores the second run's checkpoints by a sweep. Prints the
losses side by side, the wall time of both runs beside what the callback says it cost,
and the worst difference of its scores from the sweep's. Exits 1 where a loss or a
weight differs at all, or a score by more than 2e-4 nats per token.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from datasets import Dataset
from demo_train import example, settings
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from ldeval import ProbeCallback, recompute_examples, record_examples
from ldeval.bundled import bundled_probes
from ldeval.checkpoints import weights_hash
from ldeval.probes import read_probes
from ldeval.store import load_run
from ldeval.sweep import SweepSettings, sweep

TOLERANCE = 2e-4
"""Nats per token."""


def trainer(options: argparse.Namespace, output: Path, callbacks: list[Any]) -> Any:
    """DPO as in the demo, with AdamW, dropout or not as the model has it."""
    probes = [p for p in read_probes(bundled_probes()) if p.trained]
    data = Dataset.from_list([example(p, "dpo") for p in probes])
    shared = settings("dpo", output, options.steps, 2)
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.float32, trust_remote_code=False
    )
    adapter = LoraConfig(r=8, lora_alpha=16) if options.lora else None
    return DPOTrainer(
        model,
        args=DPOConfig(**{**shared, "disable_tqdm": True}),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(
            options.model, trust_remote_code=False
        ),
        callbacks=callbacks,
        peft_config=adapter,
    )


def trained(options: argparse.Namespace, output: Path, probing: Any) -> dict[str, Any]:
    """Train once; losses, seconds, weights."""
    run = trainer(options, output, [] if probing is None else [probing])
    if probing is not None:
        record_examples(run, "probe_id")
    started, busy = time.perf_counter(), time.process_time()
    run.train()
    seconds = time.perf_counter() - started
    processor = time.process_time() - busy
    if probing is not None:
        record = (output / "trained.jsonl").read_text().splitlines()
        kept = {r["step"]: tuple(r["examples"]) for r in map(json.loads, record)}
        again = recompute_examples(output, list(run.train_dataset["probe_id"]), run)
        print(f"recorded order equals the recomputed one: {kept == again}")
    losses = [row["loss"] for row in run.state.log_history if "loss" in row]
    last = output / f"checkpoint-{options.steps}"
    del run
    gc.collect()
    return {
        "losses": losses,
        "seconds": seconds,
        "processor": processor,
        "weights": weights_hash(last),
    }


def worst_gap(live: Path, swept: Path) -> float:
    """The largest difference of two stores' sums, nats per token."""
    worst = 0.0
    for one, two in zip(load_run(live), load_run(swept), strict=True):
        assert one.index() == two.index()
        assert one.manifest.step == two.manifest.step
        gaps = np.abs(one.logprob_sums - two.logprob_sums) / one.n_tokens
        worst = max(worst, float(gaps.max()))
    return worst


def main() -> int:
    """Run it and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--limit", type=int, nargs=2, default=(8, 4))
    parser.add_argument("--lora", action="store_true")
    options = parser.parse_args()
    without = trained(options, options.output / "without", None)
    probing = ProbeCallback(
        store=options.output / "live",
        run="with",
        every=options.steps // 2,
        limit=tuple(options.limit),
        apply_chat_template=True,
        objective="dpo",
    )
    probed = trained(options, options.output / "with", probing)
    sweep(
        options.output / "with",
        SweepSettings(
            probes=read_probes(bundled_probes()).limited(*options.limit),
            store=options.output / "swept",
            run="with",
            base=options.model,
            apply_chat_template=True,
            objectives=("dpo",),
        ),
    )
    gap = worst_gap(options.output / "live" / "with", options.output / "swept" / "with")
    same = (without["losses"], without["weights"]) == (
        probed["losses"],
        probed["weights"],
    )
    for step, pair in enumerate(
        zip(without["losses"], probed["losses"], strict=True), 1
    ):
        print(f"step {step}: loss {pair[0]!r} without, {pair[1]!r} with")
    print(
        f"weights after {options.steps} steps: {without['weights'][:16]} without, "
        f"{probed['weights'][:16]} with"
    )
    print(f"losses and weights identical: {same}")
    spent = probing.overhead.spent
    print(
        f"processor time: {without['processor']:.1f} s without, "
        f"{probed['processor']:.1f} s with"
    )
    print(
        f"{without['seconds']:.1f} s without, {probed['seconds']:.1f} s with; the "
        f"callback counts {spent:.1f} s in {len(probing.scored)} scorings "
        f"({', '.join(f'{cost:.1f}' for cost in probing.overhead.costs)}), "
        f"{100 * spent / (probed['seconds'] - spent):.1f}% of training's own time"
    )
    print(f"worst difference from the sweep: {gap:.3g} nats per token")
    return 0 if same and gap <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
