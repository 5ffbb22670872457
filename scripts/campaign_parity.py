"""Compare hf, vLLM and a plain forward pass on many probes.

    python scripts/campaign_parity.py --model DIR --probes FILE [--limit 40]

FILE is a probe set or a file in the paper authors' format. Prints, for each backend,
the worst difference from an independent plain forward pass (one unpadded sequence at a
time) in nats per token, the worst first-token difference, and whether all token ids
agree; exits 1 where 2e-4 nats per token, or 5e-4 at a first token, is exceeded.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from probe_files import load
from tqdm import tqdm

from ldeval.records import Checkpoint
from ldeval.scoring.score import encode_probes, score_probes, score_requests
from ldeval.scoring.sources import model_source

TOLERANCE = 2e-4
FIRST_TOKEN = 5e-4
"""Nats; a single token, not averaged over a response."""
ARGUMENTS: dict[str, dict[str, Any]] = {
    "hf": {"dtype": "float32"},
    "vllm": {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 2048,
        "max_num_seqs": 64,
    },
}


def plain(model: str, requests: list[Any]) -> list[torch.Tensor]:
    """ln p of each request's tokens, by one plain forward pass each: float64 [n]."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, trust_remote_code=False
    ).eval()
    found = []
    for request in tqdm(requests, desc="plain forward passes"):
        with torch.inference_mode():
            logits = network(torch.tensor([request.ids])).logits[0].float()
        rows = torch.log_softmax(logits[request.start - 1 : request.stop - 1], dim=-1)
        labels = torch.tensor(request.ids[request.start : request.stop])
        found.append(rows.gather(1, labels[:, None])[:, 0].double())
    return found


def main() -> int:
    """Score with each backend, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--probes", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--backends", default="hf,vllm")
    parser.add_argument("--apply_chat_template", action="store_true")
    options = parser.parse_args()
    probes = load(options.probes, options.limit)
    template = options.apply_chat_template
    expected: list[torch.Tensor] = []
    rows = []
    for backend in options.backends.split(","):
        source = model_source(backend, ARGUMENTS[backend], base=None)
        lm = source.open(Checkpoint(options.model, 0))
        encoded = encode_probes(
            lm,
            probes.probes,
            span="trl",
            apply_chat_template=template,
            system_instruction=None,
        )
        requests = list(score_requests(encoded, None, {}))
        if not expected:
            first_requests = requests
            expected = plain(options.model, requests)
        started = time.monotonic()
        scored = score_probes(lm, probes.probes, apply_chat_template=template)
        seconds = time.monotonic() - started
        source.close()
        worst = first = 0.0
        for request, answer in zip(requests, expected, strict=True):
            score = scored.scores[(request.probe_id, request.kind)]
            assert score.tokens is not None
            gap = abs(score.logprob_sum - float(answer.sum())) / len(answer)
            worst = max(worst, gap)
            first = max(first, abs(float(score.tokens.logprobs[0]) - float(answer[0])))
        same = [r.ids for r in requests] == [r.ids for r in first_requests]
        merged = sum(probe.merged for probe in encoded)
        rows.append((backend, len(requests), merged, same, worst, first, seconds))
    print(f"{len(probes)} probes of {options.probes.name}, {options.model}")
    print("backend  responses  merged  same ids  worst/token  worst first  seconds")
    for name, n, merged, same, worst, first, seconds in rows:
        print(
            f"{name:<8} {n:>9}  {merged:>6}  {same!s:>8}  {worst:>11.2e}  "
            f"{first:>11.2e}  {seconds:>7.1f}"
        )
    good = all(
        same and worst < TOLERANCE and first < FIRST_TOKEN
        for _, _, _, same, worst, first, _ in rows
    )
    print(
        f"within {TOLERANCE:g} nats per token, first tokens within {FIRST_TOKEN:g}: "
        f"{'yes' if good else 'NO'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
