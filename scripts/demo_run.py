"""The demo behind scripts/demo: train, sweep, report. Each step is kept once done."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
ENGINE = "dtype=float32,enforce_eager=True,max_model_len=1024,max_num_seqs=64"
"""Enough context for every bundled probe, in little memory."""


@dataclass(frozen=True)
class Size:
    """How much a demo does."""

    sft_steps: int
    dpo_steps: int
    dpo_saves: int
    trained: int | None
    """Trained probes scored; None for all."""
    heldout: int | None


SIZES = {
    "quick": Size(sft_steps=4, dpo_steps=8, dpo_saves=2, trained=4, heldout=2),
    "default": Size(sft_steps=16, dpo_steps=24, dpo_saves=4, trained=20, heldout=4),
    "full": Size(sft_steps=16, dpo_steps=24, dpo_saves=4, trained=None, heldout=None),
}


def run(*command: str | Path, faults: int = 0) -> None:
    """Run a step, and stop the demo where it fails.

    Args:
        faults: an exit status that means "done, with faults that were listed".
    """
    status = subprocess.run([str(part) for part in command], cwd=ROOT).returncode
    if status not in (0, faults):
        sys.exit(f"scripts/demo: {command[1]} ended with status {status}; see above")


def heading(text: str, started: float) -> None:
    """Say what comes next, and how long it has been."""
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    print(f"\n=== [{minutes}:{seconds:02d}] {text}", flush=True)


def train(
    stage: str, model: Path, output: Path, steps: int, saves: int, first: int
) -> Path:
    """Train one stage, unless its last checkpoint is there.

    Args:
        first: train on so many of the probes before the others.

    Returns:
        The last checkpoint.
    """
    last = output / f"checkpoint-{steps}"
    if not (last / "trainer_state.json").is_file():
        # a stage that was interrupted starts anew: its optimizer state is not kept
        shutil.rmtree(output, ignore_errors=True)
        run(
            *(sys.executable, SCRIPTS / "demo_train.py", stage),
            *("--model", model, "--output", output),
            *("--steps", str(steps), "--saves", str(saves), "--first", str(first)),
        )
    return last


def probes_for(model: Path, digest: str, folder: Path) -> Path:
    """The bundled probes, with ``initial`` sampled from this very model."""
    from ldeval.bundled import bundled_probes
    from ldeval.probes import read_probes

    bundled = bundled_probes()
    origins = {
        str(probe.meta.get("initial_model", {}).get("weights"))
        for probe in read_probes(bundled)
    }
    if origins == {digest}:
        return bundled
    own = folder / "probes.jsonl"
    if not own.is_file():
        print("the bundled 'initial' responses are another model's: sampling them anew")
        ldeval = (sys.executable, "-m", "ldeval.cli")
        run(*ldeval, "probes", "initial", "--model", model, "-o", own)
    return own


def engine_arguments(backend: str) -> str:
    """Model arguments that fit a small CPU machine."""
    if backend == "vllm":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        return ENGINE
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"dtype=float32,device={device}"


def main() -> None:
    """Do what is left to do, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="a handful of probes")
    sizes.add_argument("--full", action="store_true", help="every bundled probe")
    parser.add_argument("--model", type=Path, help="another model to fine-tune")
    parser.add_argument("--output", type=Path, default=ROOT / "demo")
    parser.add_argument("--backend", choices=["vllm", "hf"], default="vllm")
    options = parser.parse_args()
    name = "quick" if options.quick else "full" if options.full else "default"
    size, output = SIZES[name], options.output.resolve()
    started = time.monotonic()
    from ldeval.checkpoints import weights_hash

    heading("the model", started)
    if options.model is None:
        model = ROOT / "models" / "smollm2-135m-instruct"
        run(sys.executable, SCRIPTS / "get_demo_model.py", model)
    else:
        model = options.model.resolve()
    digest = weights_hash(model)
    # what another model or size left behind is not taken for this one's
    work = output / f"{name}-{digest[:8]}"
    work.mkdir(parents=True, exist_ok=True)
    probes = probes_for(model, digest, work)

    runs, first = work / "runs", size.trained or 0
    heading(f"SFT: {size.sft_steps} steps of 4 examples", started)
    tuned = train("sft", model, runs / "sft", size.sft_steps, 2, first)
    heading(f"DPO: {size.dpo_steps} steps of 4 pairs", started)
    train("dpo", tuned, runs / "dpo", size.dpo_steps, size.dpo_saves, first)

    store = work / "store"
    heading(f"scoring step 0 and every checkpoint with {options.backend}", started)
    arguments = [
        *("--store", store, "--probes", probes, "--apply_chat_template"),
        *("--model", options.backend),
        *("--model_args", engine_arguments(options.backend)),
    ]
    if size.trained is not None and size.heldout is not None:
        arguments += ["--limit", str(size.trained), str(size.heldout)]
    run(
        *(sys.executable, "-m", "ldeval.cli", "sweep"),
        *(runs / "sft", "--base", model),
        *("--then", runs / "dpo", "--objective", "sft", "--objective", "dpo"),
        *arguments,
        faults=1,
    )

    heading("comparing", started)
    run(
        *(sys.executable, "-m", "ldeval.cli", "report"),
        *(store / "sft", store / "dpo", "-o", output),
        *("--title", f"What SFT and then DPO did to {model.name}"),
    )


if __name__ == "__main__":
    main()
