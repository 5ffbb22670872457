"""A sweep over Ray with one worker and with two, beside a local one.

    python scripts/bench_ray.py --run RUN_DIR --base DIR [--probes FILE] [--limit 8]

Each worker has one core and one thread; the local sweep runs with one thread too, in a
process of its own. All seconds are of the whole command: the cluster, which `ldeval`
starts and ends by itself, Python's imports in every worker, and the scores. Those after
the first are from when the first checkpoint was stored to when the last one was, so
that they hold no start-up; the speed is theirs. The last columns say how far the tables
lie from the local sweep's, and whether they are the same to the last byte: the bits of
a matrix product depend on its shape, and shards fill packs otherwise.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldeval.records import ScoreTable
from ldeval.store import MANIFEST, list_steps, load_run


def timed(options: argparse.Namespace, store: Path, more: Sequence[str]) -> float:
    """Seconds of one sweep."""
    command = [sys.executable, "-m", "ldeval.cli", "-q", "sweep", str(options.run)]
    command += ["--run", "run", "--base", str(options.base), "--store", str(store)]
    command += ["--limit", str(options.limit), str(options.limit // 2)]
    command += ["--apply_chat_template", "--model_args", "dtype=float32,device=cpu"]
    if options.probes:
        command += ["--probes", str(options.probes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # Ray lets its workers stand back behind all else that runs on a machine
    environment["RAY_worker_niceness"] = "0"
    started = time.monotonic()
    subprocess.run([*command, *more], check=True, env=environment)
    return time.monotonic() - started


def after_the_first(run: Path) -> float:
    """Seconds from the first stored checkpoint to the last."""
    stored = [(step.folder / MANIFEST).stat().st_mtime for step in list_steps(run)]
    return max(stored) - min(stored)


def gap(found: list[ScoreTable], wanted: list[ScoreTable]) -> float:
    """Largest difference of a response, nats per token."""
    gaps = [
        np.abs(a.logprob_sums - b.logprob_sums) / a.n_tokens
        for a, b in zip(found, wanted, strict=True)
    ]
    return float(np.concatenate(gaps).max())


def main() -> None:
    """Run all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--probes", type=Path)
    parser.add_argument("--limit", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        seconds = {"local": timed(options, store / "local", [])}
        for workers in (1, 2):
            seconds[f"{workers} workers"] = timed(
                options,
                store / f"{workers} workers",
                ["--ray", "--ray-workers", str(workers)],
            )
        local = load_run(store / "local" / "run")
        print(f"{len(local)} checkpoints, {local[0].manifest.n_tokens} tokens each\n")
        print(
            "| sweep | seconds | after the first | speed over 1 worker | "
            "nats/token off | same bytes |"
        )
        print("|---|---|---|---|---|---|")
        rest = {name: after_the_first(store / name / "run") for name in seconds}
        for name, taken in seconds.items():
            tables = load_run(store / name / "run")
            same = [t.manifest.files for t in tables] == [
                t.manifest.files for t in local
            ]
            print(
                f"| {name} | {taken:.1f} | {rest[name]:.1f} | "
                f"{rest['1 workers'] / rest[name]:.2f} | {gap(tables, local):.1e} | "
                f"{'yes' if same else 'no'} |"
            )
        floor = local[0].manifest.noise_floor
        if floor is not None:
            print(f"\nnoise floor: {floor.per_response:.1e} nats/token in a response")
    print("\n" + " ".join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
