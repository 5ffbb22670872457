"""Baseline against "extend", over seeds: does SFT on both responses slow squeezing?

    python examples/squeezing_lab/lab.py
    python examples/squeezing_lab/lab.py --model DIR --output DIR --seeds 0 1 2

For each seed two runs: SFT on the chosen responses, then DPO; and SFT on chosen and
rejected (the paper's "extend"), then the same DPO. Probes are scored at the SFT
checkpoint and three times in DPO, by the transformers scorer, in the trainer's memory.
Interrupted, the same command goes on: a run whose scores are complete is not trained
again, and its weights are deleted. The report is written over what is complete. Seeds
may be added; other settings need another output folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evidence import Evidence, gather, markdown
from same_settings import hold_to, origin
from train import (
    ROOT,
    Recipe,
    Stage,
    built,
    is_scored,
    prepared_probes,
    read_toml,
    train_stage,
)

from ldeval.files import write_together
from ldeval.probes import ProbeSet

HERE = Path(__file__).resolve().parent
ARMS: dict[str, tuple[str, ...]] = {
    "baseline": ("chosen",),
    "extend": ("chosen", "rejected"),
}
"""What each arm's SFT trains on."""


@dataclass(frozen=True)
class Lab:
    """One experiment."""

    model: str
    limit: tuple[int, int]
    seeds: tuple[int, ...]
    response_tokens: int
    batch: int
    sft_passes: int
    sft_learning_rate: float
    dpo_steps: int
    dpo_learning_rate: float
    probe_every: int
    probes: str = "bundled"

    def decisive(self, probes: ProbeSet) -> dict[str, Any]:
        """What the results of a seed depend on; seeds may be added.

        Args:
            probes: as they are prepared.
        """
        by_content = ("model", "probes", "limit", "response_tokens", "seeds")
        own = {k: v for k, v in asdict(self).items() if k not in by_content}
        found = origin(self.model, probes, self.recipe(0).data)
        return {**found, "trained probes": self.limit[0], **own}

    def recipe(self, seed: int) -> Recipe:
        """What every run of a seed shares."""
        return Recipe(
            model=self.model,
            stages=(),
            probes=self.probes,
            limit=self.limit,
            seed=seed,
            response_tokens=self.response_tokens,
        )

    def stages(self, arm: str, seed: int) -> tuple[Stage, Stage]:
        """SFT and DPO of a run. Both arms pass equally often over each example, so that
        "extend" takes twice as many steps of SFT."""
        kinds = ARMS[arm]
        name = run_name(arm, seed)
        examples = self.limit[0] * len(kinds) * self.sft_passes
        sft = Stage(
            name=f"{name}_sft",
            objective="sft",
            steps=max(1, examples // self.batch),
            learning_rate=self.sft_learning_rate,
            probe_every=1,
            train_on=kinds,
            batch=self.batch,
        )
        dpo = Stage(
            name=name,
            objective="dpo",
            steps=self.dpo_steps,
            learning_rate=self.dpo_learning_rate,
            probe_every=self.probe_every,
            batch=self.batch,
        )
        return sft, dpo


def run_name(arm: str, seed: int) -> str:
    """Of a run in the store."""
    return f"{arm}_seed_{seed}"


def is_complete(lab: Lab, output: Path, arm: str, seed: int) -> bool:
    """Whether a run was scored at every step."""
    return is_scored(lab.stages(arm, seed)[1], output)


def run_arm(lab: Lab, output: Path, arm: str, seed: int, probes: ProbeSet) -> None:
    """SFT and DPO of one run, unless it is complete; its weights go at the end."""
    sft, dpo = lab.stages(arm, seed)
    if is_complete(lab, output, arm, seed):
        print(f"{run_name(arm, seed)}: complete", flush=True)
        _delete_weights(output, sft, dpo)  # a killed run left them
        return
    started = time.monotonic()
    recipe = lab.recipe(seed)
    tuned = train_stage(sft, recipe, Path(lab.model), probes, output, probing=False)
    train_stage(dpo, recipe, tuned, probes, output)
    _delete_weights(output, sft, dpo)
    minutes = (time.monotonic() - started) / 60
    print(f"{run_name(arm, seed)}: {minutes:.1f} minutes", flush=True)


def _delete_weights(output: Path, *stages: Stage) -> None:
    for stage in stages:
        for folder in (output / "runs" / stage.name).glob("checkpoint-*"):
            shutil.rmtree(folder)


def report(lab: Lab, output: Path) -> Evidence | None:
    """Compare what is complete; None before one seed of both arms is."""
    seeds = [
        seed
        for seed in lab.seeds
        if all(is_complete(lab, output, arm, seed) for arm in ARMS)
    ]
    if not seeds:
        return None
    store = output / "store"
    found = gather(
        [store / run_name("baseline", seed) for seed in seeds],
        [store / run_name("extend", seed) for seed in seeds],
    )
    text = markdown(found, seeds, lab.model)
    write_together(
        {
            output / "evidence.json": json.dumps(found.to_json(), indent=1),
            output / "report.md": text,
        }
    )
    print(text)
    print(f"report: {output / 'report.md'}")
    return found


def main() -> None:
    """Do what is left to do, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=HERE / "lab.toml")
    parser.add_argument("--model", help="instead of the configuration's")
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "squeezing_lab")
    parser.add_argument("--seeds", type=int, nargs="+")
    options = parser.parse_args()
    lab: Lab = built(Lab, read_toml(options.config), options.config)
    if options.model:
        lab = replace(lab, model=options.model)
    if options.seeds:
        lab = replace(lab, seeds=tuple(options.seeds))
    options.output.mkdir(parents=True, exist_ok=True)
    probes = prepared_probes(lab.recipe(0))
    hold_to(options.output, lab.decisive(probes))
    for seed in lab.seeds:
        for arm in ARMS:
            run_arm(lab, options.output, arm, seed, probes)
        report(lab, options.output)


if __name__ == "__main__":
    main()
