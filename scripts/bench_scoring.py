"""Our scoring against the harness's own, on the same requests, side by side.

    python scripts/bench_scoring.py --model DIR --probes FILE --limit 16
        [--backends hf,vllm] [--rounds 2] [--json FILE]
        [--checkpoints RUN_DIR --base DIR]

For each backend one process loads the model and takes turns: ours, then the harness's
plain ``loglikelihood`` over the same prompts and responses, at batch size 1, 8 and 16
in the first round and at the best of them in the others. Every answer of ours is
compared with a plain transformers forward pass. The rate of a square float32 matrix
product is measured between the turns, and is what fractions are of.

FLOPs are those that the packed tokens need and no more: two per weight and token, two
per weight of the output layer and scored token, four per layer, channel and pair of
tokens that attend. With ``--checkpoints`` the sweep benchmark follows
(scripts/bench_sweep.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from bench_sweep import sweep_benchmark
from machine_rates import children, gemm_rate, seconds_of, watched
from probe_files import load
from tqdm import tqdm

from ldeval.records import Checkpoint, Probe
from ldeval.scoring.batch import ScoreRequest, grouped
from ldeval.scoring.models import RestartedModels
from ldeval.scoring.score import encode_probes, score_probes, score_requests
from ldeval.scoring.vllm_engine import VllmEngine

BATCH_SIZES = (1, 8, 16)
OURS = {
    "hf": {"dtype": "float32"},
    "vllm": {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024},
}
"""Model arguments, the same for both sides."""


@dataclass
class Measured:
    """One backend's table row."""

    backend: str
    seconds: float
    baseline_seconds: float
    ratio: float
    ratio_spread: tuple[float, float]
    baseline_batch_size: int
    gemm_fraction: float
    gflops: float
    gemm_gflops: float
    max_abs_diff_per_token: float
    tokens_asked: int
    tokens_computed: int
    baseline_tokens_computed: int
    peak_gib: float
    baseline_peak_gib: float
    responses: int
    note: str


def main() -> int:
    """Run each backend in a process of its own; print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--probes", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--backends", default="hf,vllm")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--checkpoints", type=Path, help="a run, for the sweep")
    parser.add_argument("--base", help="of that run, scored as step 0")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measured = measure(options.one, options)
        options.json.write_text(json.dumps(asdict(measured)))
        return 0
    rows = [_in_its_own_process(name, options) for name in options.backends.split(",")]
    print_rows(rows, options)
    result: list[dict[str, Any]] = rows
    if options.checkpoints:
        result = [*rows, sweep_benchmark(options)]
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    return 0


def _in_its_own_process(backend: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--one", backend, "--json", str(path)]
        command += ["--model", options.model, "--probes", str(options.probes)]
        command += ["--limit", str(options.limit), "--rounds", str(options.rounds)]
        subprocess.run(command, check=True)
        row: dict[str, Any] = json.loads(path.read_text())
    return row


def measure(backend: str, options: argparse.Namespace) -> Measured:
    """Ours and the harness's own, in turns."""
    probes = load(options.probes, options.limit, full=True).probes
    ours, theirs, close = _models(backend, options.model)
    encoding: dict[str, Any] = {"span": "trl", "apply_chat_template": False}
    encoded = encode_probes(ours[0], probes, system_instruction=None, **encoding)
    requests = list(score_requests(encoded, None, {}))
    instances = _instances(probes)
    gemm = [gemm_rate()]
    seconds: list[float] = []
    baseline: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    peaks = {"ours": 0, "theirs": 0}
    scored: Any = None

    _warm_up(backend, ours[0], theirs[0], probes, instances)
    sizes = BATCH_SIZES
    for turn in range(options.rounds):
        for size in sizes:
            if turn == 0 or size == sizes[0]:
                if backend == "vllm":
                    ours[0].model.reset_prefix_cache()
                with watched(ours[1]) as memory:
                    started = time.perf_counter()
                    scored = score_probes(ours[0], probes, progress=False, **encoding)
                    seconds.append(time.perf_counter() - started)
                peaks["ours"] = max(peaks["ours"], memory.peak)
            _set_batch_size(theirs[0], size)
            with watched(theirs[1]) as memory:
                spent = seconds_of(
                    lambda: theirs[0].loglikelihood(instances, disable_tqdm=True)
                )
            baseline[size].append(spent)
            peaks["theirs"] = max(peaks["theirs"], memory.peak)
            gemm.append(gemm_rate())
            print(
                f"{backend}: ours {seconds[-1]:.1f} s, the harness at batch size "
                f"{size} {spent:.1f} s, GEMM {gemm[-1] / 1e9:.0f} GFLOP/s",
                flush=True,
            )
        best = min(baseline, key=lambda s: min(baseline[s] or [np.inf]))
        sizes = (best,)
    close()
    network, expected = plain(options.model, requests)
    worst = max(
        float(np.abs(scored.scores[(r.probe_id, r.kind)].tokens.logprobs - e).mean())
        for r, e in zip(requests, expected, strict=True)
    )
    # a turn of ours stands beside each turn of the best
    pairs = _paired(seconds, baseline, best)
    ratios = sorted(b / a for a, b in pairs)
    flops = packed_flops(network.config, network, requests)
    mine = float(np.median([a for a, _ in pairs]))
    rate = float(np.median(gemm))
    return Measured(
        backend=backend,
        seconds=mine,
        baseline_seconds=float(np.median([b for _, b in pairs])),
        ratio=float(np.median(ratios)),
        ratio_spread=(ratios[0], ratios[-1]),
        baseline_batch_size=best,
        gemm_fraction=flops / mine / rate,
        gflops=flops / mine / 1e9,
        gemm_gflops=rate / 1e9,
        max_abs_diff_per_token=worst,
        tokens_asked=sum(r.n_tokens for r in requests),
        tokens_computed=packed_tokens(requests),
        baseline_tokens_computed=sum(len(r.ids) - 1 for r in requests),
        peak_gib=peaks["ours"] / 2**30,
        baseline_peak_gib=peaks["theirs"] / 2**30,
        responses=len(requests),
        note=next((n for n in scored.notes if "sequences: " in n or "cache" in n), ""),
    )


def _models(backend: str, folder: str) -> tuple[Any, Any, Any]:
    """(model, its processes) of ours and of the harness's, and how to close both."""
    checkpoint = Checkpoint(folder, 0)
    arguments = OURS[backend]
    if backend == "hf":
        source = RestartedModels("hf", arguments, base=None)
        lm = source.open(checkpoint)
        return (lm, None), (lm, None), source.close
    own = {os.getpid()}
    first = VllmEngine(arguments, base=None)
    ours = first.open(checkpoint)
    mine = children()
    second = RestartedModels("vllm", arguments, base=None)
    theirs = second.open(checkpoint)
    others = children() - mine

    def close() -> None:
        first.close()
        second.close()

    return (ours, own | mine), (theirs, own | others), close


def _instances(probes: tuple[Probe, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance("loglikelihood", {}, (p.prompt, r.text), 0, metadata=(None, None, 1))
        for p in probes
        for r in p.responses.values()
    ]


def _set_batch_size(lm: Any, size: int) -> None:
    if hasattr(lm, "batch_size_per_gpu"):
        lm.batch_size_per_gpu = size
    else:
        lm.batch_size = size


def _warm_up(
    backend: str, ours: Any, theirs: Any, probes: tuple[Probe, ...], instances: Any
) -> None:
    """An engine compiles in its first call."""
    if backend == "vllm":
        score_probes(ours, probes[:1], progress=False)
        theirs.loglikelihood(instances[:8], disable_tqdm=True)


def _paired(
    seconds: list[float], baseline: dict[int, list[float]], best: int
) -> list[tuple[float, float]]:
    """Ours and theirs from the same turn, for the best batch size."""
    first = (seconds[BATCH_SIZES.index(best)], baseline[best][0])
    rest = list(zip(seconds[len(BATCH_SIZES) :], baseline[best][1:], strict=True))
    return [first, *rest]


def plain(model: str, requests: list[ScoreRequest]) -> tuple[Any, list[np.ndarray]]:
    """ln p of each request's tokens, by one plain forward pass each."""
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
        found.append(rows.gather(1, labels[:, None])[:, 0].numpy())
    return network, found


def packed_tokens(requests: list[ScoreRequest]) -> int:
    """Each prompt once, each response but its last token."""
    return sum(
        requests[group[0]].start + sum(requests[i].n_tokens - 1 for i in group)
        for group in grouped(requests)
    )


def packed_flops(config: Any, network: Any, requests: list[ScoreRequest]) -> float:
    """FLOPs that the packed tokens need."""
    head = network.get_output_embeddings().weight
    embedding = network.get_input_embeddings().weight
    every = sum(p.numel() for p in network.parameters())
    tied = head is embedding or head.data_ptr() == embedding.data_ptr()
    body = every - embedding.numel() - (0 if tied else head.numel())
    pairs = 0.0
    for group in grouped(requests):
        start = requests[group[0]].start
        pairs += start * (start + 1) / 2
        for index in group:
            own = requests[index].n_tokens - 1
            pairs += own * start + own * (own + 1) / 2
    channels = config.num_attention_heads * (
        getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads
    )
    return (
        2.0 * body * packed_tokens(requests)
        + 2.0 * head.numel() * sum(r.n_tokens for r in requests)
        + 4.0 * channels * config.num_hidden_layers * pairs
    )


def print_rows(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The table, and the command that repeats it."""
    print(
        f"\n{options.limit} prompts of {options.probes.name}, {options.model}, "
        f"{torch.get_num_threads()} threads"
    )
    titles = [row["backend"] for row in rows]
    print(f"{'':<42}" + "".join(f"{title:>22}" for title in titles))
    lines = {
        "seconds, ours": lambda r: f"{r['seconds']:.1f}",
        "seconds, the harness's own": lambda r: f"{r['baseline_seconds']:.1f}",
        "  at its best batch size": lambda r: f"{r['baseline_batch_size']}",
        "ratio (least to most)": lambda r: (
            f"{r['ratio']:.2f} ({r['ratio_spread'][0]:.2f} to "
            f"{r['ratio_spread'][1]:.2f})"
        ),
        "responses": lambda r: f"{r['responses']}",
        "tokens asked for": lambda r: f"{r['tokens_asked']}",
        "tokens computed, ours at best": lambda r: f"{r['tokens_computed']}",
        "tokens computed, the harness's own": lambda r: (
            f"{r['baseline_tokens_computed']}"
        ),
        "GFLOP/s of the packed tokens": lambda r: f"{r['gflops']:.1f}",
        "GFLOP/s of a matrix product": lambda r: f"{r['gemm_gflops']:.1f}",
        "fraction of it": lambda r: f"{r['gemm_fraction']:.2f}",
        "peak memory, ours, GiB": lambda r: f"{r['peak_gib']:.2f}",
        "peak memory, the harness's own, GiB": lambda r: (
            f"{r['baseline_peak_gib']:.2f}"
        ),
        "worst difference, nats per token": lambda r: (
            f"{r['max_abs_diff_per_token']:.1e}"
        ),
    }
    for title, text in lines.items():
        print(f"{title:<42}" + "".join(f"{text(row):>22}" for row in rows))
    for row in rows:
        print(f"{row['backend']}: {row['note']}")
    print(
        f"\nrepeat: python scripts/bench_scoring.py --model {options.model} --probes "
        f"{options.probes} --limit {options.limit} --backends {options.backends} "
        f"--rounds {options.rounds}"
    )


if __name__ == "__main__":
    sys.exit(main())
