"""Every recipe and the lab, run as their readme says, on a tiny model."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ldeval.records import Probe, Response
from ldeval.store import list_runs, load_run, read_trained, step_folder
from tests.conftest import ROOT
from tests.tiny import save_tiny

EXAMPLES = ROOT / "examples"
RECIPES = sorted(path.stem for path in EXAMPLES.glob("*.toml"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def python(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("name", ["sft", "dpo", "extend", "on_policy_dpo"])
def test_a_recipe_trains_its_stages_scores_them_and_reports(
    model: Path, tmp_path: Path, name: str
) -> None:
    assert name in RECIPES
    done = python(
        "train.py",
        EXAMPLES / f"{name}.toml",
        "--model",
        model,
        "--output",
        tmp_path,
        "--steps",
        2,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "report" / "report.md").is_file()
    runs = list_runs(tmp_path / "store")
    assert len(runs) == (1 if name == "sft" else 2)
    for run in runs:
        tables = load_run(tmp_path / "store" / run)
        assert [table.manifest.step for table in tables] == [0, 2]
        trained = read_trained(tmp_path / "store" / run)
        assert trained is not None
        assert [len(trained[step]) for step in (1, 2)] == [4, 4]
    again = python(
        "train.py",
        EXAMPLES / f"{name}.toml",
        "--model",
        model,
        "--output",
        tmp_path,
        "--steps",
        2,
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert "train_runtime" not in again.stdout


class WentOnError(Exception):
    """Past the settings, before any training."""


def went_on(*_: Any, **__: Any) -> None:
    raise WentOnError


def imported(monkeypatch: pytest.MonkeyPatch, name: str, stopped_at: str) -> Any:
    """An example's module, a function of which ends it."""
    for folder in (EXAMPLES, EXAMPLES / "squeezing_lab"):
        monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module(name)
    monkeypatch.setattr(module, stopped_at, went_on)
    return module


def test_a_recipe_is_refused_where_results_of_other_settings_are(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = imported(monkeypatch, "train", "train_stage")
    recipe = train.read_recipe(EXAMPLES / "dpo.toml")
    recipe = replace(recipe, model=str(model), limit=(4, 2))
    output = tmp_path / "output"

    def taken(**changes: Any) -> None:
        with pytest.raises(WentOnError):
            train.run_recipe(replace(recipe, **changes), output)

    def refused(**changes: Any) -> str:
        with pytest.raises(SystemExit) as caught:
            train.run_recipe(replace(recipe, **changes), output)
        message = str(caught.value)
        assert f"Give another --output, or delete {output}" in message
        return message

    def stages(place: int, **changes: Any) -> dict[str, Any]:
        changed = list(recipe.stages)
        changed[place] = replace(changed[place], **changes)
        return {"stages": tuple(changed)}

    taken(seed=7)
    taken()  # nothing was made with the other seed
    (output / "runs").mkdir()
    taken()
    other = save_tiny(tmp_path / "other", seed=1)
    for message, changes in (
        (f"model: {model} (", {"model": str(other)}),
        ("dpo.learning_rate: 2e-06 there, 0.1 now", stages(1, learning_rate=0.1)),
        ("sft.steps: 16 there, 17 now", stages(0, steps=17)),
        ("seed: 0 there, 1 now", {"seed": 1}),
        ("probes: bundled, at most 4 and 2 (", {"limit": (3, 2)}),
        ("probes: bundled, at most 4 and 2 (", {"response_tokens": 3}),
        ("extra.weight_decay: none there, 0.1 now", {"extra": {"weight_decay": 0.1}}),
        (
            'extra.lr_scheduler_kwargs: none there, {"num_cycles": 1} now',
            {"extra": {"lr_scheduler_kwargs": {"num_cycles": 1}}},
        ),
        ('stages: ["sft", "dpo"] there, ["sft"] now', {"stages": recipe.stages[:1]}),
    ):
        assert message in refused(**changes)
    kwargs = {"extra": {"lr_scheduler_kwargs": {"num_cycles": 1}}}
    fresh = tmp_path / "fresh"
    with pytest.raises(WentOnError):
        train.run_recipe(replace(recipe, **kwargs), fresh)
    (fresh / "runs").mkdir()
    kwargs["extra"]["lr_scheduler_kwargs"]["num_cycles"] = 9
    with pytest.raises(SystemExit, match=r'"num_cycles": 1} there'):
        train.run_recipe(replace(recipe, **kwargs), fresh)
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    taken(model=str(moved))
    taken(extra={"report_to": "none"}, **stages(1, samples=5))
    (output / "settings.json").write_text("{")
    assert "settings.json: cannot be read" in refused()
    (output / "settings.json").unlink()
    assert "holds runs and no settings.json" in refused()


def test_a_stage_whose_scores_are_not_all_there_is_trained_again_and_all_after_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = imported(monkeypatch, "train", "make_trainer")
    recipe = train.read_recipe(EXAMPLES / "dpo.toml")
    recipe = replace(recipe, model=str(model), limit=(4, 2))
    probes = train.prepared_probes(recipe)
    train.hold_to(tmp_path, recipe.decisive(probes))
    last = [
        tmp_path / "runs" / stage.name / f"checkpoint-{stage.steps}"
        for stage in recipe.stages
    ]
    for stage, folder in zip(recipe.stages, last, strict=True):
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        for step in stage.scored:
            scores = step_folder(tmp_path / "store", stage.name, step)
            scores.mkdir(parents=True)
            (scores / "manifest.json").write_text("{}")
    sampled = tmp_path / "dpo_probes.jsonl"
    sampled.touch()
    for stage, folder in zip(recipe.stages, last, strict=True):
        assert train.train_stage(stage, recipe, model, probes, tmp_path) == folder
    (step_folder(tmp_path / "store", "sft", 16) / "manifest.json").unlink()
    with pytest.raises(WentOnError):
        train.run_recipe(recipe, tmp_path)
    assert not any(folder.exists() for folder in (*last, sampled))


def test_the_lab_is_refused_where_results_of_other_settings_are(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = imported(monkeypatch, "lab", "run_arm").main
    config, output = tmp_path / "lab.toml", tmp_path / "output"
    text = (EXAMPLES / "squeezing_lab" / "lab.toml").read_text()

    def called(old: str = "", new: str = "", *more: str) -> None:
        config.write_text(text.replace(old, new, 1))
        given = ["--config", str(config), "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["lab.py", *given, *more])
        main()

    tiny = ("--model", str(model))
    with pytest.raises(WentOnError):
        called("", "", *tiny)
    (output / "store").mkdir()
    with pytest.raises(WentOnError):  # a seed more
        called("seeds = [0, 1, 2]", "seeds = [0, 1, 2, 3]", *tiny)
    with pytest.raises(SystemExit, match=r"lab\.toml: unknown key 'batches'"):
        called("batch = 4", "batches = 8", *tiny)
    with pytest.raises(SystemExit, match="batch: 4 there, 8 now"):
        called("batch = 4", "batch = 8", *tiny)
    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(SystemExit, match=r"model: .*tiny \(.*other \("):
        called("", "", "--model", str(other))


def test_dpo_starts_from_the_weights_that_sft_ended_with(
    model: Path, tmp_path: Path
) -> None:
    done = python(
        "train.py",
        EXAMPLES / "dpo.toml",
        "--model",
        model,
        "--output",
        tmp_path,
        "--steps",
        1,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sft, dpo = load_run(tmp_path / "store/sft"), load_run(tmp_path / "store/dpo")
    assert sft[-1].manifest.weights_hash == dpo[0].manifest.weights_hash


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 0", "sed = 0", "unknown key 'sed'. Known: model, stages"),
        ("model =", "# model =", "no key 'model' of a recipe"),
        ("steps = 16", "# steps", "no key 'steps' of a stage"),
        ("probe_every = 8", "probe_every = 0", "probe_every is 0; give 1 or more"),
        ("probe_every = 8", 'probe_every = "8"', "'<' not supported"),
        ('train_on = ["chosen"]', 'train_on = ["won"]', "train_on names 'won'. Known"),
        ('objective = "dpo"', 'objective = "ipo"', "objective names 'ipo'. Known: sft"),
        ('pairs = "on_policy"', 'pairs = "onpolicy"', "names 'onpolicy'. Known: data"),
        ('name = "dpo_on_policy"', 'name = "sft"', "two stages are named 'sft'"),
        ("[[stages]]", "[[stage]]", "give one [[stages]] or more"),
        ("[[stages]]", "[[stages", "cannot be read ("),
    ],
)
def test_a_recipe_that_does_not_say_what_to_train_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    """A word that is not known would train something else."""
    train = imported(monkeypatch, "train", "train_stage")
    text = (EXAMPLES / "on_policy_dpo.toml").read_text()
    assert old in text
    path = tmp_path / "wrong.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(SystemExit) as caught:
        train.read_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_recipe_or_a_model_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = imported(monkeypatch, "train", "train_stage")
    with pytest.raises(SystemExit, match=r"none\.toml: cannot be read"):
        train.read_recipe(tmp_path / "none.toml")
    recipe = train.read_recipe(EXAMPLES / "sft.toml")
    with pytest.raises(SystemExit, match=r"none: no such folder\. .*get_demo_model"):
        train.run_recipe(replace(recipe, model=str(tmp_path / "none")), tmp_path)


def test_a_probe_without_what_a_stage_trains_on_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = imported(monkeypatch, "train", "train_stage")
    recipe = train.read_recipe(EXAMPLES / "dpo.toml")
    probe = Probe("rice", "Rice?", {"chosen": Response("chosen", "Boil it.")}, True)
    sft, dpo = recipe.stages
    assert len(train.rows(sft, [probe])) == 1
    with pytest.raises(
        SystemExit, match="dpo trains on 'rejected', which probe 'rice'"
    ):
        train.rows(dpo, [probe])


def lab(model: Path, folder: Path, seeds: list[int]) -> str:
    config = folder / "lab.toml"
    text = (EXAMPLES / "squeezing_lab" / "lab.toml").read_text()
    for old, new in (
        ("limit = [24, 24]", "limit = [4, 4]"),
        ("response_tokens = 64", "response_tokens = 12"),
        ("dpo_steps = 24", "dpo_steps = 3"),
        ("probe_every = 8", "probe_every = 1"),
        ("dpo_learning_rate = 2e-6", "dpo_learning_rate = 1e-3"),
    ):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    done = python(
        "squeezing_lab/lab.py",
        "--config",
        config,
        "--model",
        model,
        "--output",
        folder / "lab",
        "--seeds",
        *seeds,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_lab_trains_both_arms_goes_on_and_reports_prompts_and_seeds_apart(
    model: Path, tmp_path: Path
) -> None:
    first = lab(model, tmp_path, [0])
    assert "baseline_seed_0: complete" not in first
    assert "cannot be told from one seed" in first
    # a run that was killed in the middle: its last scores are missing
    store = tmp_path / "lab" / "store"
    (store / "extend_seed_0" / "step_000003" / "manifest.json").unlink()
    # and one that was killed before its weights were deleted
    (tmp_path / "lab" / "runs" / "baseline_seed_0" / "checkpoint-3").mkdir()
    text = lab(model, tmp_path, [0, 1])
    assert "baseline_seed_0: complete" in text
    assert "extend_seed_0: complete" not in text
    runs = list_runs(store)
    assert sorted(runs) == [
        "baseline_seed_0",
        "baseline_seed_1",
        "extend_seed_0",
        "extend_seed_1",
    ]
    for run in runs:
        tables = load_run(store / run)
        assert [table.manifest.step for table in tables] == [0, 1, 2, 3]
        assert tables[0].n_tokens.max() <= 12 + 2  # and the template's end
        assert {table.manifest.objective for table in tables} == {"dpo"}
    assert not list((tmp_path / "lab" / "runs").glob("*/checkpoint-*"))
    evidence = json.loads((tmp_path / "lab" / "evidence.json").read_text())
    assert [len(claims) for claims in evidence["claims"].values()] == [2, 2]
    part = next(
        p
        for p in evidence["parts"]
        if (p["scale"], p["split"], p["quantity"]) == ("steps", "trained", "others")
    )
    assert part["reached"] == 3.0
    means = [sum(part[f"values_{arm}"]) / 2 for arm in ("baseline", "extend")]
    assert part["seeds"]["value"] == pytest.approx(means[1] - means[0])
    assert part["seeds"]["low"] < part["seeds"]["value"] < part["seeds"]["high"]
    # the mean over kinds is what the claim's own difference says, prompt by prompt
    claim = evidence["claims"]["steps"][0]["effect"]["others, B - A"]
    difference = part["values_extend"][0] - part["values_baseline"][0]
    assert claim["value"] == pytest.approx(difference, rel=1e-3, abs=1e-6)
    assert "At equal margin: E1" in (tmp_path / "lab" / "report.md").read_text()
