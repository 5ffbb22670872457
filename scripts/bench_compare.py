"""Time and memory of comparing a stored run, against its number of checkpoints.

    python scripts/bench_compare.py --store bench --probes 5000 --tokens 60 \
        --checkpoints 2 5 10 20 40

Writes synthetic tables of the asked size into the store (those there are kept),
then compares the first N checkpoints, each N in a process of its own, and prints a
table of seconds, seconds of the processor and peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ldeval.compare import compare_run
from ldeval.records import (
    KIND_NAMES,
    TOP_K,
    Manifest,
    ScoreTable,
    TokenScores,
)
from ldeval.store import open_table, step_folder, write_table

RUN = "bench"
VOCABULARY = 32_000
DISTINCT = 5
"""Tables that are written; later steps link to these again, to spare the disk."""


def main() -> int:
    """Parse, write what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--probes", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[2, 5, 10])
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measure(options.store, options.only)))
        return 0
    for step in range(max(options.checkpoints)):
        folder = step_folder(options.store, RUN, step)
        if (folder / "manifest.json").is_file():
            continue
        if step < DISTINCT:
            write_table(folder, synthetic(step, options.probes, options.tokens))
        else:
            link(step_folder(options.store, RUN, 1 + step % (DISTINCT - 1)), folder)
        print(f"wrote {folder}", file=sys.stderr)
    print(
        f"{options.probes} probes x {len(KIND_NAMES)} kinds x {options.tokens} tokens"
    )
    heads = ("checkpoints", "seconds", "CPU s", "CPU s each", "peak MiB")
    print(" ".join(f"{head:>11}" for head in heads))
    for count in options.checkpoints:
        command = [sys.executable, __file__, "--store", str(options.store)]
        done = subprocess.run(
            [*command, "--only", str(count)], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        shown = (found["seconds"], found["cpu"], found["cpu"] / count, found["mib"])
        print(f"{count:>11} " + " ".join(f"{value:>11.1f}" for value in shown))
        sys.stdout.flush()
    return 0


def link(source: Path, folder: Path) -> None:
    """The same scores under another step: as much to read, no more disk."""
    folder.mkdir(parents=True)
    for name in ("responses.parquet", "tokens.parquet"):
        (folder / name).hardlink_to(source / name)
    record = json.loads((source / "manifest.json").read_text("utf-8"))
    record["step"] = int(folder.name.removeprefix("step_"))
    (folder / "manifest.json").write_text(json.dumps(record), "utf-8")


def measure(store: Path, count: int) -> dict[str, float]:
    """Compare the first ``count`` checkpoints in this process."""
    start, cpu = time.perf_counter(), time.process_time()
    tables = [open_table(step_folder(store, RUN, step)) for step in range(count)]
    found = compare_run(tables, run=RUN)
    assert len(found.steps) == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "mib": peak,
    }


def synthetic(step: int, probes: int, tokens: int) -> ScoreTable:
    """A table of random scores that drift with the step; ids are those of step 0."""
    fixed = np.random.default_rng(0)
    rows = probes * len(KIND_NAMES)
    lengths = fixed.integers(tokens // 2, tokens + tokens // 2 + 1, rows)
    count = int(lengths.sum())
    label = fixed.integers(0, VOCABULARY, count).astype(np.int32)
    top = fixed.integers(0, VOCABULARY, (count, TOP_K)).astype(np.int32)
    top += np.arange(TOP_K, dtype=np.int32) * VOCABULARY  # distinct within a position
    on_label = fixed.random(count) < 0.4
    top[on_label, 0] = label[on_label]
    base = -np.sort(fixed.exponential(2.0, (count, TOP_K)).astype(np.float32), axis=1)
    base -= 1.6
    own = np.where(on_label, base[:, 0], base[:, -1] - 1.0).astype(np.float32)
    noise = np.random.default_rng(step + 1)
    drift = (0.01 * step * noise.standard_normal(count)).astype(np.float32)
    shift = (drift[:, None] + 0.01 * step * base).astype(np.float32)
    reference = np.minimum(base + (shift if step else 0.0), -1e-4).astype(np.float32)
    logprobs = np.minimum(own + (drift - 0.002 * step if step else 0.0), -1e-4)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    p = np.exp(reference.astype(np.float64))
    scores = TokenScores(
        token_ids=label,
        logprobs=logprobs.astype(np.float32),
        argmax_ids=top[:, 0],
        argmax_logprobs=reference[:, 0],
        ranks=np.where(on_label, 1, 40).astype(np.int32),
        sq_norms=(p**2).sum(axis=1).astype(np.float32),
        entropies=(-(p * reference).sum(axis=1)).astype(np.float32),
        mean_logprobs=(-12.0 + drift).astype(np.float32),
        top_ids=top,
        top_logprobs=reference,
        ref_ids=top,
        ref_logprobs=reference,
    )
    names = np.array([f"probe-{i:05d}" for i in range(probes)])
    sums = np.add.reduceat(scores.logprobs.astype(np.float64), offsets[:-1])
    manifest = Manifest(
        run=RUN,
        step=step,
        checkpoint=f"checkpoint-{step}",
        weights_hash=str(step),
        probe_set_hash="synthetic",
        tokenizer_hash="synthetic",
        template_hash=None,
        span="trl",
        backend="hf",
        tier="native",
        dtype="float32",
        vocab_size=VOCABULARY * TOP_K,
        versions={},
        n_probes=probes,
        n_responses=rows,
        n_tokens=count,
        reference_step=0,
    )
    kinds = np.tile(np.array(KIND_NAMES), probes)
    ids = np.repeat(names, len(KIND_NAMES))
    return ScoreTable(
        manifest=manifest,
        probe_ids=ids,
        kinds=kinds,
        trained=np.repeat(np.arange(probes) % 2 == 0, len(KIND_NAMES)),
        text_hashes=np.char.add(np.char.add(kinds, "/"), ids),
        offsets=offsets,
        tokens=scores,
        logprob_sums=sums,
    )


if __name__ == "__main__":
    sys.exit(main())
