"""Do the risk scores foretell which chosen responses fall in a real DPO run?

    python scripts/campaign_risk.py --model DIR [--pairs 48] [--passes 1] [--json FILE]

Every pair is judged before training. Then the model is trained by DPO on all of them
(AdamW, four pairs a step, whole passes in a seeded order), and ln π of every chosen and
rejected response is measured again. Printed: Spearman's ρ between each score and the
measured change, with its 95% interval over pairs, and how often "both fall" came true.

A score speaks of a pair trained alone, by gradient steps; in the run every pair is
moved by the others too. A weak correlation is a finding, not a fault of the script.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from probe_files import first_words
from tqdm import tqdm

from ldeval.bundled import bundled_probes
from ldeval.compare.ranks import rank_estimate
from ldeval.dynamics.causal_lm import open_causal_lm
from ldeval.dynamics.data import read_training
from ldeval.dynamics.optimizer_state import fresh_state
from ldeval.dynamics.risk import RANKINGS, pair_risks
from ldeval.dynamics.sequences import encode, scored
from ldeval.dynamics.training import objective, training_batch
from ldeval.dynamics.update import replay
from ldeval.records import PairRisk

BATCH = 4


def main() -> None:
    """Judge, train, measure, correlate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default=str(bundled_probes()))
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-6)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--words", type=int, help="cut responses to their first words")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    data = read_training(options.data)
    pairs = [
        first_words(p, options.words)
        for p in data.examples
        if "rejected" in p.responses
    ]
    pairs = pairs[: options.pairs]
    wanted = objective("dpo", beta=options.beta)
    lm = open_causal_lm(options.model)
    started = time.monotonic()
    risks, left_out = pair_risks(lm, pairs, wanted, progress=True)
    judging = time.monotonic() - started
    assert not left_out, left_out
    requests, _ = encode(lm, pairs, kinds=("chosen", "rejected"))
    before = scored(lm, requests).numpy()

    # references are those before training: batches are made before the first step
    reference = open_causal_lm(options.model)
    order = list(pairs)
    rng = random.Random(options.seed)
    state = fresh_state(lm, "adamw", options.lr)
    started = time.monotonic()
    for _ in range(options.passes):
        rng.shuffle(order)
        for start in tqdm(range(0, len(order), BATCH), desc="steps"):
            some = order[start : start + BATCH]
            batch, _ = training_batch(lm, some, wanted, reference=reference)
            state = replay(lm, [batch], wanted.loss, state, max_norm=1.0)
    training = time.monotonic() - started
    change = scored(lm, requests).numpy() - before
    by_pair: dict[str, dict[str, float]] = {}
    tokens: dict[str, int] = {}
    for request, moved in zip(requests, change, strict=True):
        by_pair.setdefault(request.probe_id, {})[request.kind] = float(moved)
        if request.kind == "chosen":
            tokens[request.probe_id] = request.n_tokens
    report(risks, by_pair, tokens, options, judging, training)


def report(
    risks: list[PairRisk],
    by_pair: dict[str, dict[str, float]],
    tokens: dict[str, int],
    options: argparse.Namespace,
    judging: float,
    training: float,
) -> None:
    """Print the correlations."""
    chosen = np.asarray([by_pair[r.example_id]["chosen"] for r in risks])
    rejected = np.asarray([by_pair[r.example_id]["rejected"] for r in risks])
    sizes = np.asarray([tokens[r.example_id] for r in risks])
    outcomes = {
        "fall of chosen": -chosen,
        "fall of chosen per token": -chosen / sizes,
        "fall of rejected": -rejected,
    }
    print(
        f"{len(risks)} pairs, {options.passes} passes of AdamW at {options.lr:g}: "
        f"chosen moved {chosen.mean():+.3f} nats on average ({(chosen < 0).mean():.0%} "
        f"fell), rejected {rejected.mean():+.3f} ({(rejected < 0).mean():.0%} fell); "
        f"judged in {judging:.0f} s, trained in {training:.0f} s"
    )
    foretold = np.asarray([bool(r.both_fall) for r in risks])
    fell = (chosen < 0) & (rejected < 0)
    print(
        f"both fall: foretold for {foretold.sum()}, happened for {fell.sum()}, both "
        f"for {(foretold & fell).sum()}"
    )
    print("score             outcome                     rho    95% interval")
    rows: list[dict[str, Any]] = []
    for name, score in RANKINGS.items():
        values = np.asarray([score(r) for r in risks])
        known = np.isfinite(values)
        for outcome, moved in outcomes.items():
            found = rank_estimate(values[known], moved[known], int(known.sum()))
            rows.append({"score": name, "outcome": outcome, **asdict(found)})
            print(
                f"{name:<17} {outcome:<26} {found.value:+.2f}   "
                f"{found.low:+.2f} to {found.high:+.2f}  (n = {found.n})"
            )
    if options.json is not None:
        record = {
            "rows": rows,
            "chosen": chosen.tolist(),
            "rejected": rejected.tolist(),
            "risks": [asdict(r) for r in risks],
        }
        options.json.write_text(json.dumps(record, indent=1), "utf-8")


if __name__ == "__main__":
    main()
