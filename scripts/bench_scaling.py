"""The cost of scoring against the number of prompts, and of checkpoints.

    python scripts/bench_scaling.py --model DIR --probes FILE [--prompts 4,8,16,32]
        [--checkpoints 1,2,4]

Prompts are taken from the file in order, each number of them twice in turns; the least
time counts. A checkpoint is the model under another step number. Seconds for each
token should stay what they are as either number grows.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from bench_scoring import packed_tokens
from probe_files import load

from ldeval.probes import ProbeSet
from ldeval.records import Checkpoint
from ldeval.scoring.models import RestartedModels
from ldeval.scoring.score import encode_probes, score_probes, score_requests
from ldeval.sweep import SweepSettings, sweep


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--probes", type=Path, required=True)
    parser.add_argument("--prompts", default="4,8,16,32")
    parser.add_argument("--checkpoints", default="1,2,4")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    prompts = [int(n) for n in options.prompts.split(",")]
    probes = load(options.probes, max(prompts), full=True)
    _by_prompts(options.model, probes, prompts)
    few = ProbeSet(probes.probes[: prompts[0]])
    _by_checkpoints(
        options.model, few, [int(n) for n in options.checkpoints.split(",")]
    )
    print("repeat: python " + " ".join(sys.argv))
    return 0


def _by_prompts(model: str, probes: ProbeSet, counts: list[int]) -> None:
    source = RestartedModels("hf", {"dtype": "float32"}, base=None)
    lm = source.open(Checkpoint(model, 0))
    best: dict[int, float] = {}
    score_probes(lm, probes.probes[:1], progress=False)
    for _ in range(2):
        for count in counts:
            started = time.perf_counter()
            score_probes(lm, probes.probes[:count], progress=False)
            spent = time.perf_counter() - started
            best[count] = min(best.get(count, spent), spent)
    print(f"{'prompts':>12}{'tokens':>10}{'seconds':>10}{'ms a token':>12}")
    for count in counts:
        encoded = encode_probes(
            lm,
            probes.probes[:count],
            span="trl",
            apply_chat_template=False,
            system_instruction=None,
        )
        tokens = packed_tokens(list(score_requests(encoded, None, {})))
        each = 1e3 * best[count] / tokens
        print(f"{count:>12}{tokens:>10}{best[count]:>10.1f}{each:>12.2f}")
    source.close()


def _by_checkpoints(model: str, probes: ProbeSet, counts: list[int]) -> None:
    print(f"{'checkpoints':>12}{'':>10}{'seconds':>10}{'s each':>12}")
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            run = Path(name) / "run"
            run.mkdir()
            for step in range(1, count + 1):
                (run / f"checkpoint-{step}").symlink_to(Path(model).resolve())
            settings = SweepSettings(
                probes=probes,
                store=Path(name) / "store",
                run="run",
                model_args={"dtype": "float32"},
                progress=False,
            )
            started = time.perf_counter()
            result = sweep(run, settings)
            spent = time.perf_counter() - started
        assert len(result.scored) == count, result
        print(f"{count:>12}{'':>10}{spent:>10.1f}{spent / count:>12.1f}")


if __name__ == "__main__":
    sys.exit(main())
