"""Peak memory of scoring against the token budget, for two vocabularies.

    python scripts/bench_memory.py [--budgets 512,1024,2048,4096] [--layers 4]

A randomly initialised Llama is scored on made-up prompts and responses, each case in a
process of its own. What scoring took is the peak of resident memory less what was
resident with the model loaded. The last column is what the logits of all scored tokens
would take at once in float32: memory must not grow with it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from machine_rates import watched

from ldeval.scoring import hf
from ldeval.scoring.batch import ScoreRequest

VOCABULARIES = (32_000, 256_000)
LENGTHS = (128, 512)
"""Tokens of a response; a prompt has twice as many."""


class Loaded:
    """What the scorer reads of a harness model."""

    device = torch.device("cpu")
    mixed_precision_dtype = None
    batch_size = 1

    def __init__(self, model: Any) -> None:
        self.model = model


def model(vocabulary: int, layers: int) -> Any:
    """A small Llama; its width is of no matter here."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    ).eval()


def requests(length: int) -> list[ScoreRequest]:
    """Four prompts with six responses each."""
    rng = np.random.default_rng(0)
    found = []
    for prompt in range(4):
        context = rng.integers(0, 30_000, 2 * length).tolist()
        for response in range(6):
            own = rng.integers(0, 30_000, length).tolist()
            ids = (*context, *own)
            found.append(
                ScoreRequest(str(prompt), str(response), ids, len(context), len(ids))
            )
    return found


def measure(vocabulary: int, budget: int, length: int, layers: int) -> dict[str, float]:
    """MiB that scoring took, and MiB of all logits."""
    lm = Loaded(model(vocabulary, layers))
    asked = requests(length)
    for _ in hf.score(lm, asked[:1], top_k=20, layout="packed", tokens=64):
        pass
    with watched() as memory:
        for _ in hf.score(lm, asked, top_k=20, layout="packed", tokens=budget):
            pass
    rows = sum(r.n_tokens for r in asked)
    return {
        "mib": (memory.peak - memory.before) / 2**20,
        "logits_mib": 4 * rows * vocabulary / 2**20,
    }


def main() -> int:
    """Each case in a process of its own; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budgets", default="512,1024,2048,4096")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--one", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.layers)))
        return 0
    print(f"{'vocabulary':>10}{'response':>10}", end="")
    budgets = [int(b) for b in options.budgets.split(",")]
    print("".join(f"{f'{b} tokens':>14}" for b in budgets) + f"{'all logits':>14}")
    for vocabulary in VOCABULARIES:
        for length in LENGTHS:
            print(f"{vocabulary:>10}{length:>10}", end="", flush=True)
            for budget in budgets:
                case = [str(vocabulary), str(budget), str(length)]
                command = [sys.executable, __file__, "--one", *case]
                command += ["--layers", str(options.layers)]
                done = subprocess.run(command, check=True, capture_output=True)
                row = json.loads(done.stdout.splitlines()[-1])
                text = f"{row['mib']:.0f} MiB"
                print(f"{text:>14}", end="", flush=True)
            text = f"{row['logits_mib']:.0f} MiB"
            print(f"{text:>14}")
    print("repeat: python " + " ".join(sys.argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
