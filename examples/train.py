"""Train by a recipe, with probes: SFT, DPO, "extend" or on-policy DPO, then a report.

    python examples/train.py examples/dpo.toml
    python examples/train.py examples/dpo.toml --model DIR --output DIR

A recipe is a list of stages, each starting from the last checkpoint of the one before.
Probes are scored while it trains (ProbeCallback) and what each step trained on is
recorded (record_examples). Interrupted, the same command goes on at the stage that was
not finished; with other settings it needs another output folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tomllib
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import torch
from datasets import Dataset
from demo_train import example, settings
from on_policy import on_policy_probes
from same_settings import hold_to, origin
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import ldeval
from ldeval import ProbeCallback, record_examples
from ldeval.bundled import bundled_probes
from ldeval.probes import ProbeSet, read_probes, write_probes
from ldeval.records import KIND_NAMES
from ldeval.report import write_report
from ldeval.store import list_steps

ROOT = Path(__file__).resolve().parent.parent
IDS = "probe_id"
SHOWN = ("disable_tqdm", "logging_steps", "report_to", "run_name")
"""Arguments of a trainer that change what is shown, and no result."""


@dataclass(frozen=True)
class Stage:
    """One training run."""

    name: str
    objective: str
    """``sft`` or ``dpo``."""
    steps: int
    learning_rate: float
    probe_every: int
    train_on: tuple[str, ...] = ("chosen",)
    """For SFT, the kinds that are trained on, each an example of its own."""
    pairs: str = "data"
    """For DPO: those of the data, or ``on_policy``."""
    samples: int = 3
    """Responses sampled a prompt, on policy."""
    batch: int = 4

    def __post_init__(self) -> None:
        for key, value, known in (
            ("objective", self.objective, ("sft", "dpo")),
            ("pairs", self.pairs, ("data", "on_policy")),
            *(("train_on", kind, KIND_NAMES) for kind in self.train_on),
        ):
            if value not in known:
                raise ValueError(f"{key} names {value!r}. Known: {', '.join(known)}")
        for key in ("steps", "probe_every", "batch", "samples"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; give 1 or more")

    @property
    def scored(self) -> list[int]:
        """The steps that are scored."""
        return [*range(0, self.steps, self.probe_every), self.steps]

    @property
    def decisive(self) -> dict[str, Any]:
        """What its results depend on."""
        unused = {"name"}
        unused |= {"pairs"} if self.objective == "sft" else {"train_on"}
        if self.pairs != "on_policy":
            unused.add("samples")
        named = {**asdict(self), "probe_every": min(self.probe_every, self.steps)}
        return {f"{self.name}.{k}": v for k, v in named.items() if k not in unused}


@dataclass(frozen=True)
class Recipe:
    """What to train, and on what."""

    model: str
    stages: tuple[Stage, ...]
    probes: str = "bundled"
    limit: tuple[int, int] = (24, 8)
    seed: int = 0
    response_tokens: int | None = None
    """Cut every response to so many tokens; None: as they are."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of every trainer."""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two stages are named {twice[0]!r}; name each otherwise")

    @property
    def data(self) -> str:
        """What the probes are, in words."""
        cut = self.response_tokens
        short = "" if cut is None else f", {cut} tokens a response"
        return f"{self.probes}, at most {self.limit[0]} and {self.limit[1]}{short}"

    def decisive(self, probes: ProbeSet) -> dict[str, Any]:
        """What the results depend on.

        Args:
            probes: as they are prepared.
        """
        found = origin(self.model, probes, self.data)
        found["seed"] = self.seed
        found["stages"] = [stage.name for stage in self.stages]
        for stage in self.stages:
            found |= stage.decisive
        extra = {k: v for k, v in self.extra.items() if k not in SHOWN}
        return found | {f"extra.{name}": value for name, value in extra.items()}


def read_recipe(path: Path) -> Recipe:
    """A recipe from TOML; a key that is missing or not known is refused."""
    record = read_toml(path)
    items = record.get("stages")
    if not isinstance(items, list) or not all(isinstance(i, dict) for i in items):
        sys.exit(f"{path}: give one [[stages]] or more")
    stages = tuple(built(Stage, item, path) for item in items)
    recipe: Recipe = built(Recipe, {**record, "stages": stages}, path)
    return recipe


def read_toml(path: Path) -> dict[str, Any]:
    """What a file holds; the program ends where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: cannot be read ({error})")


def built(cls: Any, record: dict[str, Any], path: Path) -> Any:
    """An object of keys in a file; the program ends where they are not its own."""
    known = [item.name for item in fields(cls)]
    for name in record:
        if name not in known:
            sys.exit(f"{path}: unknown key {name!r}. Known: {', '.join(known)}")
    for item in fields(cls):
        if item.default is item.default_factory is MISSING and item.name not in record:
            sys.exit(f"{path}: no key {item.name!r} of a {cls.__name__.lower()}")
    lists = {k: tuple(v) for k, v in record.items() if isinstance(v, list)}
    try:
        return cls(**{**record, **lists})
    except (TypeError, ValueError) as error:
        sys.exit(f"{path}: {error}")


def prepared_probes(recipe: Recipe) -> ProbeSet:
    """The recipe's probes, limited and cut as it says."""
    if not Path(recipe.model).is_dir():
        sys.exit(
            f"{recipe.model}: no such folder. Name that of a model (--model), or get "
            "the demo's: python scripts/get_demo_model.py"
        )
    named = bundled_probes() if recipe.probes == "bundled" else recipe.probes
    probes = read_probes(named).limited(*recipe.limit)
    if recipe.response_tokens is None:
        return probes
    tokenizer = AutoTokenizer.from_pretrained(recipe.model, trust_remote_code=False)

    def cut(text: str) -> str:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return str(tokenizer.decode(ids[: recipe.response_tokens])).strip()

    return ProbeSet(
        tuple(
            replace(
                probe,
                responses={
                    kind: replace(response, text=cut(response.text))
                    for kind, response in probe.responses.items()
                },
            )
            for probe in probes
        )
    )


def rows(stage: Stage, probes: ProbeSet) -> Dataset:
    """What a stage trains on: the trained probes, with their ids."""
    found = []
    kinds = ("chosen", "rejected") if stage.objective == "dpo" else stage.train_on
    for probe in probes:
        if not probe.trained:
            continue
        for kind in kinds:
            if kind not in probe.responses:
                sys.exit(
                    f"{stage.name} trains on {kind!r}, which probe {probe.probe_id!r} "
                    "has not. Leave such probes out of the file, or mark them as not "
                    "trained."
                )
        if stage.objective == "dpo":
            found.append(example(probe, "dpo"))
            continue
        for kind in kinds:
            own = {"chosen": probe.responses[kind]}
            found.append(example(replace(probe, responses=own), "sft"))
    return Dataset.from_list(found)


def make_trainer(
    stage: Stage, recipe: Recipe, model: Path, data: Dataset, output: Path
) -> Any:
    """A TRL trainer; the paper's optimizer and β for DPO."""
    shared = settings(stage.objective, output, stage.steps, 1)
    shared.update(
        seed=recipe.seed,
        learning_rate=stage.learning_rate,
        per_device_train_batch_size=stage.batch,
        **recipe.extra,
    )
    tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=False)
    network = AutoModelForCausalLM.from_pretrained(
        str(model), dtype=torch.float32, trust_remote_code=False
    )
    common = {"train_dataset": data, "processing_class": tokenizer}
    if stage.objective == "sft":
        return SFTTrainer(network, args=SFTConfig(**shared), **common)
    arguments = DPOConfig(**shared, beta=0.1, optim="rmsprop")
    return DPOTrainer(network, args=arguments, **common)


def train_stage(
    stage: Stage,
    recipe: Recipe,
    model: Path,
    probes: ProbeSet,
    output: Path,
    *,
    probing: bool = True,
) -> Path:
    """Train one stage, unless its last checkpoint is there and its scores are.

    Args:
        model: what it starts from.
        probes: trained on, where they are marked so, and scored.
        output: gets ``runs/NAME``, and ``store/NAME`` the scores.
        probing: score them while it trains.

    Returns:
        The last checkpoint.
    """
    run = output / "runs" / stage.name
    last = run / f"checkpoint-{stage.steps}"
    if is_trained(stage, output) and (not probing or is_scored(stage, output)):
        return last
    # the optimizer's state is not kept: what was not finished starts anew
    shutil.rmtree(run, ignore_errors=True)
    trainer = make_trainer(stage, recipe, model, rows(stage, probes), run)
    record_examples(trainer, IDS)
    if probing:
        trainer.add_callback(
            ProbeCallback(
                probes,
                output / "store",
                run=stage.name,
                every=stage.probe_every,
                apply_chat_template=True,
                initial_model=recipe.model,
                objective=stage.objective,
            )
        )
    trainer.train()
    if probing and not is_scored(stage, output):
        sys.exit(f"{stage.name}: was trained and not scored at every step")
    return last


def is_trained(stage: Stage, output: Path) -> bool:
    """Whether the last checkpoint is there."""
    last = output / "runs" / stage.name / f"checkpoint-{stage.steps}"
    return (last / "trainer_state.json").is_file()


def is_scored(stage: Stage, output: Path) -> bool:
    """Whether every step that is due was scored: a scoring that failed, or a step that
    was deleted, does not show in the checkpoints."""
    steps = list_steps(output / "store" / stage.name)
    return [item.step for item in steps if item.complete] == stage.scored


def stage_probes(
    stage: Stage, recipe: Recipe, model: Path, probes: ProbeSet, output: Path
) -> ProbeSet:
    """The probes of a stage: on policy, their pairs are the model's own."""
    if stage.pairs != "on_policy":
        return probes
    path = output / f"{stage.name}_probes.jsonl"
    if not path.is_file():
        sampled = on_policy_probes(
            probes, model, samples=stage.samples, seed=recipe.seed
        )
        write_probes(path, sampled)
    return read_probes(path)


def run_recipe(recipe: Recipe, output: Path) -> Path:
    """Do every stage that is left to do, then report.

    Returns:
        The report.
    """
    probes = prepared_probes(recipe)
    hold_to(output, recipe.decisive(probes))
    model = Path(recipe.model)
    for place, stage in enumerate(recipe.stages):
        print(f"=== {stage.name}: {stage.steps} steps", flush=True)
        if not (is_trained(stage, output) and is_scored(stage, output)):
            for later in recipe.stages[place + 1 :]:  # made from weights that go
                for made in ("runs", "store"):
                    shutil.rmtree(output / made / later.name, ignore_errors=True)
                (output / f"{later.name}_probes.jsonl").unlink(missing_ok=True)
        own = stage_probes(stage, recipe, model, probes, output)
        model = train_stage(stage, recipe, model, own, output)
    comparisons = [
        ldeval.diff(output / "store" / stage.name) for stage in recipe.stages
    ]
    title = f"{' → '.join(stage.name for stage in recipe.stages)} of {recipe.model}"
    return write_report(comparisons, output / "report", title=title)


def main() -> None:
    """Train by the recipe that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model", help="instead of the recipe's")
    parser.add_argument("--output", type=Path, help="default: demo/RECIPE")
    parser.add_argument("--steps", type=int, help="at most so many a stage")
    options = parser.parse_args()
    recipe = read_recipe(options.recipe)
    if options.model:
        recipe = replace(recipe, model=options.model)
    if options.steps:
        recipe = replace(
            recipe, stages=tuple(_short(s, options.steps) for s in recipe.stages)
        )
    output = options.output or ROOT / "demo" / options.recipe.stem
    print(f"report: {run_recipe(recipe, output)}")


def _short(stage: Stage, steps: int) -> Stage:
    most = min(stage.steps, steps)
    return replace(stage, steps=most, probe_every=min(stage.probe_every, most))


if __name__ == "__main__":
    main()
