"""A sweep over a run's checkpoints against one harness run a checkpoint.

    python scripts/bench_sweep.py --model-type vllm --run RUN_DIR --base DIR
        --probes FILE --limit 8 [--checkpoints 8] [--json FILE]

``ldeval sweep`` on one side; on the other ``lm_eval`` once a checkpoint over the same
prompts and responses as a plain ``loglikelihood`` task. Start-up counts on both sides.
RUN_DIR may hold fewer checkpoints than asked for: they are then taken in turn under
other step numbers, by links. The time of an engine start and of a swap is read off the
sweep's own log.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probe_files import load

from ldeval.checkpoints import find_checkpoints
from ldeval.probes import ProbeSet, write_probes

MODEL_ARGS = {
    "vllm": {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
    },
    "hf": {"dtype": "float32", "device": "cpu"},
}
TASK = """\
task: plain_probes
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{response}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


@dataclass
class SweepTimes:
    """The row of the sweep benchmark."""

    backend: str
    checkpoints: int
    seconds: float
    baseline_seconds: float
    ratio: float
    engine_start_seconds: float
    swap_seconds: float
    per_checkpoint: list[float]
    baseline_per_checkpoint: list[float]


def sweep_benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Called from bench_scoring.py with its options."""
    times = measure(
        "vllm",
        options.checkpoints,
        options.base or options.model,
        load(options.probes, options.limit, full=True),
        8,
    )
    print_times(times)
    return {**asdict(times), "backend": "vllm sweep"}


def main() -> int:
    """Measure both sides, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-type", choices=sorted(MODEL_ARGS), default="vllm")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--probes", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    probes = load(options.probes, options.limit, full=True)
    times = measure(
        options.model_type, options.run, options.base, probes, options.checkpoints
    )
    print_times(times)
    print("repeat: python " + " ".join(sys.argv))
    if options.json:
        options.json.write_text(json.dumps(asdict(times), indent=1))
    return 0


def measure(
    model: str, run: Path, base: str, probes: ProbeSet, count: int
) -> SweepTimes:
    """Sweep once; run the harness once a checkpoint."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        linked = _linked(run, folder / "run", count)
        probe_file = folder / "probes.jsonl"
        write_probes(probe_file, probes)
        log, seconds = _sweep(model, folder, base, probe_file)
        times = _baseline(model, folder, linked, probes)
        stored = sorted((folder / "store" / "run").glob("step_*/manifest.json"))
        each = [json.loads(path.read_text())["seconds"] for path in stored]
    start, swap = _engine_times(log)
    return SweepTimes(
        backend=model,
        checkpoints=count,
        seconds=seconds,
        baseline_seconds=sum(times),
        ratio=sum(times) / seconds,
        engine_start_seconds=start,
        swap_seconds=swap,
        per_checkpoint=each,
        baseline_per_checkpoint=times,
    )


def _linked(run: Path, folder: Path, count: int) -> list[Path]:
    found = [Path(c.folder) for c in find_checkpoints(run)]
    folder.mkdir()
    links = []
    for number in range(count):
        link = folder / f"checkpoint-{number + 1}"
        link.symlink_to(found[number % len(found)].resolve())
        links.append(link)
    return links


def _sweep(model: str, folder: Path, base: str, probes: Path) -> tuple[str, float]:
    command = [sys.executable, "-m", "ldeval.cli", "sweep", str(folder / "run")]
    command += ["--store", str(folder / "store"), "--probes", str(probes)]
    command += ["--model", model, "--model_args", _arguments(MODEL_ARGS[model])]
    # the tokenizer of checkpoints saved without one; base is not scored on either side
    del base
    started = time.perf_counter()
    done = subprocess.run(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"the sweep failed:\n{done.stderr[-3000:]}")
    print(f"ldeval sweep: {seconds:.1f} s", flush=True)
    return done.stderr, seconds


def _engine_times(log: str) -> tuple[float, float]:
    """Seconds of the engine's start and of a swap (median), from the sweep's log."""
    starts = [float(s) for s in re.findall(r"engine started in ([\d.]+) s", log)]
    swaps = sorted(float(s) for s in re.findall(r"tensors in ([\d.]+) s", log))
    nan = float("nan")
    return (starts[0] if starts else nan, swaps[len(swaps) // 2] if swaps else nan)


def _baseline(
    model: str, folder: Path, checkpoints: list[Path], probes: ProbeSet
) -> list[float]:
    tasks = folder / "tasks"
    tasks.mkdir()
    pairs = folder / "pairs.jsonl"
    with pairs.open("w", encoding="utf-8") as handle:
        for probe in probes:
            for response in probe.responses.values():
                row = {"prompt": probe.prompt, "response": response.text}
                handle.write(json.dumps(row) + "\n")
    (tasks / "plain_probes.yaml").write_text(TASK.format(file=pairs))
    times = []
    for checkpoint in checkpoints:
        arguments = {"pretrained": str(checkpoint), **MODEL_ARGS[model]}
        command = [sys.executable, "-m", "lm_eval", "run", "--model", model]
        command += ["--model_args", _arguments(arguments), "--tasks", "plain_probes"]
        command += ["--include_path", str(tasks), "--batch_size", "auto"]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        times.append(time.perf_counter() - started)
        if done.returncode:
            raise SystemExit(f"lm_eval failed:\n{done.stderr[-3000:]}")
        print(f"lm_eval {checkpoint.name}: {times[-1]:.1f} s", flush=True)
    return times


def _arguments(values: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())


def print_times(times: SweepTimes) -> None:
    """The sweep's table."""
    print(
        f"\n{times.checkpoints} checkpoints, --model {times.backend}, start-up counted"
    )
    rows = {
        "seconds, ldeval sweep": f"{times.seconds:.1f}",
        "seconds, lm_eval once a checkpoint": f"{times.baseline_seconds:.1f}",
        "ratio": f"{times.ratio:.2f}",
        "an engine start, seconds": f"{times.engine_start_seconds:.1f}",
        "a swap, seconds (median)": f"{times.swap_seconds:.2f}",
        "starts over swaps": f"{times.engine_start_seconds / times.swap_seconds:.0f}",
        "each checkpoint, ours": " ".join(f"{s:.0f}" for s in times.per_checkpoint),
        "each checkpoint, lm_eval": " ".join(
            f"{s:.0f}" for s in times.baseline_per_checkpoint
        ),
    }
    for title, text in rows.items():
        print(f"{title:<38}{text}")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    sys.exit(main())
