"""Probes while a real TRL trainer trains: undisturbed, stored as a sweep's, logged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    TrainerCallback,
)

import ldeval
from ldeval import ProbeCallback
from ldeval.errors import MismatchError, StoreError, UnsupportedBackendError
from ldeval.integrations.live_run import LiveRun, LiveSettings
from ldeval.lease import writing
from ldeval.scoring.live import check_live
from ldeval.store import list_steps, load_run, read_manifest, step_folder
from ldeval.sweep import SweepSettings, sweep
from tests.tiny import save_tiny
from tests.training import (
    assert_same_training,
    examples,
    losses,
    short_probes,
    trainer,
)

PROBES = short_probes()


def callback(store: Path, **changes: Any) -> ProbeCallback:
    settings: dict[str, Any] = {
        "every": 3,
        "apply_chat_template": True,
        "limit": (4, 2),
        "objective": "dpo",
        "verdicts": False,
        **changes,
    }
    return ProbeCallback(PROBES, store, **settings)


class Reporter(TrainerCallback):
    """Stands where a reporter stands: before any callback of the user's."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self.logged.append({**objects["logs"], "step": state.global_step})


# ------------------------------------------------------------------------- undisturbed


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize("lora", [False, True])
def test_training_is_the_same_to_the_last_bit(
    model: Path, tmp_path: Path, stage: str, lora: bool
) -> None:
    """With dropout, so that every random number counts."""
    data = examples(PROBES, stage)
    settings: dict[str, Any] = {"lora": lora, "save_strategy": "no", "seed": 5}
    if stage == "dpo":
        settings["disable_dropout"] = False
    runs = []
    for name, probing in [
        ("without", []),
        ("with", [callback(tmp_path / "store", verdicts=True)]),
    ]:
        run = trainer(
            model, tmp_path / name, data, stage, callbacks=probing, **settings
        )
        run.model.config.attention_dropout = 0.1
        for module in run.model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.1
        run.train()
        runs.append(run)
    assert_same_training(*runs)
    assert [t.manifest.step for t in load_run(tmp_path / "store" / "with")] == [0, 3, 6]


def test_with_gradient_checkpointing_and_accumulation_too(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "save_strategy": "no",
    }
    runs = []
    for name, probing in [
        ("without", []),
        ("with", [callback(tmp_path / "store", every=2)]),
    ]:
        run = trainer(model, tmp_path / name, pairs, callbacks=probing, **settings)
        run.train()
        runs.append(run)
    assert_same_training(*runs)


# --------------------------------------------------------------- the same as a sweep's


@pytest.mark.parametrize("lora", [False, True])
def test_the_store_is_that_of_a_sweep_over_the_checkpoints(
    model: Path, pairs: Dataset, tmp_path: Path, lora: bool
) -> None:
    run = trainer(
        model, tmp_path / "run", pairs, lora=lora, callbacks=[callback(tmp_path / "a")]
    )
    run.train()
    probes = PROBES.limited(4, 2)
    settings = SweepSettings(
        probes=probes,
        store=tmp_path / "b",
        run="run",
        base=str(model),
        apply_chat_template=True,
        objectives=("dpo",),
        progress=False,
    )
    sweep(tmp_path / "run", settings)
    live, swept = load_run(tmp_path / "a" / "run"), load_run(tmp_path / "b" / "run")
    assert [t.manifest.step for t in live] == [t.manifest.step for t in swept]
    for one, two in zip(live, swept, strict=True):
        assert one.manifest.settings == two.manifest.settings
        assert one.manifest.stored_dtype == two.manifest.stored_dtype
        assert one.manifest.tokenizer_hash == two.manifest.tokenizer_hash
        assert one.manifest.template_hash == two.manifest.template_hash
        assert one.manifest.context_hash == two.manifest.context_hash
        assert one.manifest.weights_hash == two.manifest.weights_hash
        assert one.index() == two.index()
        gap = np.abs(one.logprob_sums - two.logprob_sums) / one.n_tokens
        assert gap.max() < 2e-4
        assert np.array_equal(one.tokens.ref_ids, two.tokens.ref_ids)
    assert live[0].manifest.noise_floor is not None
    assert [t.manifest.noise_floor for t in live[1:]] == [None, None]
    comparison = ldeval.diff(tmp_path / "a" / "run")
    assert comparison.steps == (0, 3, 6)
    again = sweep(tmp_path / "run", replace(settings, store=tmp_path / "a"))
    assert (again.kept, again.scored) == ((0, 3, 6), ())


@pytest.mark.parametrize("lora", [False, True])
def test_a_base_stored_in_a_lower_precision_is_told_by_how_it_was_loaded(
    model: Path, pairs: Dataset, tmp_path: Path, lora: bool
) -> None:
    """Loaded in float32, as most training is: steps compare, and a sweep that loads it
    so goes on from them."""
    base = tmp_path / "base"
    shutil.copytree(model, base)
    low = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16)
    low.save_pretrained(str(base))
    store = tmp_path / "store"
    probing = callback(store, every=1, verdicts=True, objective="dpo")
    run = trainer(
        base,
        tmp_path / "run",
        pairs,
        lora=lora,
        callbacks=[probing],
        max_steps=2,
        save_steps=1,
    )
    run.train()
    assert probing.failures == {}
    found = [read_manifest(item.folder) for item in list_steps(store / "run")]
    assert {m.stored_dtype for m in found} == {"BF16" if lora else "F32"}
    assert {m.dtype for m in found} == {"float32"}
    assert ldeval.diff(store / "run").steps == (0, 1, 2)
    settings = SweepSettings(
        probes=PROBES.limited(4, 2),
        store=store,
        run="run",
        base=str(base),
        apply_chat_template=True,
        progress=False,
    )
    with pytest.raises(
        MismatchError,
        match=r"with settings model_args.dtype='float32', this sweep has "
        r"model_args.dtype=None",
    ):
        sweep(tmp_path / "run", settings)
    alike = replace(settings, model_args={"dtype": "float32"})
    shutil.rmtree(store / "run" / "step_000002")
    kept = sweep(tmp_path / "run", alike)
    assert (kept.kept, kept.scored) == ((0, 1), (2,))
    assert ldeval.diff(store / "run").steps == (0, 1, 2)


def test_scores_of_a_quantized_base_say_so(model: Path, tmp_path: Path) -> None:
    """A sweep loads the base unquantized, and must not go on from them."""
    network = get_peft_model(
        AutoModelForCausalLM.from_pretrained(str(model)),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )
    live = LiveRun(LiveSettings(PROBES.limited(1, 0), tmp_path / "store", "run"))
    live.begin(network, 0)
    live.end()
    assert live.asked["model_args"] == {}
    network.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    live.begin(network, 0)
    live.end()
    assert live.asked["model_args"] == {"quantization": "bitsandbytes"}


# ------------------------------------------------------------------------------ logged


def test_curves_verdicts_and_cost_reach_every_reporter(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    """Also one that stands before the callback, and TensorBoard."""
    reporter = Reporter()
    run = trainer(
        model,
        tmp_path / "run",
        pairs,
        callbacks=[reporter, callback(tmp_path / "store", verdicts=True)],
        report_to=["tensorboard"],
        save_strategy="no",
    )
    run.train()
    comparison = ldeval.diff(tmp_path / "store" / "run")
    change = next(
        c
        for c in comparison.overall.changes
        if (c.kind, c.split) == ("rejected", "trained")
    )
    last = [row for row in reporter.logged if "probes/seconds" in row][-1]
    assert last["step"] == 6
    assert last["probes/trained/rejected"] == pytest.approx(change.delta_tok.value)
    assert last["probes/verdict/squeezing"] in (-1.0, 0.0, 1.0)
    assert last["probes/overhead"] > 0
    assert [row["step"] for row in reporter.logged if "probes/seconds" in row] == [
        0,
        3,
        6,
    ]
    # the trainer's own lines are complete: its metrics were not taken by ours
    own = [row for row in reporter.logged if "loss" in row]
    assert [row["step"] for row in own] == [1, 2, 3, 4, 5, 6]
    assert all("rewards/chosen" in row for row in own)
    assert not any("rewards/chosen" in r for r in reporter.logged if "loss" not in r)
    assert _tensorboard(tmp_path, "train/probes/trained/rejected") == [3, 6]
    history = run.state.log_history
    assert sum("probes/trained/margin" in row for row in history) == 2
    json.dumps(history, allow_nan=False)


def _tensorboard(folder: Path, tag: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = folder.rglob("events.out.tfevents*")
    events = EventAccumulator(str(path))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_logging_less_often_than_scoring_keeps_the_loss_lines(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    run = trainer(
        model,
        tmp_path / "run",
        pairs,
        callbacks=[callback(tmp_path / "store", every=2)],
        logging_steps=2,
        save_strategy="no",
    )
    run.train()
    assert len(losses(run)) == 3


# ---------------------------------------------------------------------------- verdicts


def _holding(name: str) -> Callable[..., Any]:
    """A comparison of the run in which one verdict holds on trained probes."""
    compare = LiveRun.compare

    def changed(self: LiveRun) -> Any:
        found = compare(self)
        if found is None:
            return None
        verdicts = tuple(
            replace(v, state="holds") if (v.name, v.split) == (name, "trained") else v
            for v in found.verdicts
        )
        return replace(found, verdicts=verdicts)

    return changed


def test_a_verdict_stops_training_and_saves_its_checkpoint(
    model: Path, pairs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ldeval.integrations.live_run.LiveRun.compare", _holding("squeezing")
    )
    probing = callback(tmp_path / "store", every=2, on_verdict={"squeezing": "stop"})
    run = trainer(
        model,
        tmp_path / "run",
        pairs,
        callbacks=[probing],
        save_steps=100,
    )
    run.train()
    assert run.state.global_step == 2
    assert (tmp_path / "run" / "checkpoint-2" / "model.safetensors").is_file()
    assert probing.scored == [0, 2]


def test_a_verdict_warns_once_a_training(
    model: Path,
    pairs: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(
        "ldeval.integrations.live_run.LiveRun.compare", _holding("learning")
    )
    probing = callback(tmp_path / "store", every=2, on_verdict={"learning": "warn"})
    for stage in ("one", "two"):
        run = trainer(
            model, tmp_path / stage, pairs, callbacks=[probing], save_strategy="no"
        )
        run.train()
        assert run.state.global_step == 6
        told = [r for r in caplog.records if "learning holds at step 2" in r.message]
        assert len(told) == 1
        caplog.clear()


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="Verdicts: squeezing"):
        callback(tmp_path, on_verdict={"squeeze": "stop"})
    with pytest.raises(MismatchError, match="Actions: warn, stop"):
        callback(tmp_path, on_verdict={"squeezing": "explode"})
    with pytest.raises(MismatchError, match="objective 'ppo'"):
        callback(tmp_path, objective="ppo")
    for mixed in ("bf16", "float32", torch.bfloat16):
        with pytest.raises(MismatchError, match="Valid: bfloat16, float16; None"):
            callback(tmp_path, mixed_precision_dtype=mixed)
    with pytest.raises(MismatchError, match="every=0"):
        callback(tmp_path, every=0)


# ------------------------------------------------------------------- failures, resuming


def test_a_scoring_that_fails_later_does_not_end_training(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    """The store cannot be written from step 3 on."""
    store = tmp_path / "store"

    class Spoil(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                (store / "run" / "step_000003").write_text("not a folder")

    probing = callback(store)
    run = trainer(
        model,
        tmp_path / "run",
        pairs,
        callbacks=[Spoil(), probing],
        save_strategy="no",
    )
    run.train()
    assert run.state.global_step == 6
    assert list(probing.failures) == [3]
    assert "step_000003" in probing.failures[3]
    assert probing.scored == [0, 6]


@pytest.mark.parametrize("error", [MemoryError("no room"), ValueError("a bug")])
def test_a_failure_of_any_sort_does_not_end_training(
    model: Path,
    pairs: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """Nor does one of the comparison, whose scores are stored all the same."""

    def fails(live: LiveRun) -> None:
        raise error

    monkeypatch.setattr(LiveRun, "compare", fails)
    settings: dict[str, Any] = {"max_steps": 1, "save_steps": 1}
    probing = callback(tmp_path / "store", every=1, verdicts=True)
    run = trainer(model, tmp_path / "run", pairs, callbacks=[probing], **settings)
    run.train()
    assert probing.failures == {0: str(error), 1: str(error)}
    assert [s.step for s in list_steps(tmp_path / "store" / "run")] == [0, 1]
    again = callback(tmp_path / "store", every=1, verdicts=True)
    settings["max_steps"] = 2
    more = trainer(model, tmp_path / "run", pairs, callbacks=[again], **settings)
    more.train(resume_from_checkpoint=True)
    assert more.state.global_step == 2
    assert again.scored == [2]


class Stops(TrainerCallback):
    """Ends training in an evaluation, as early stopping does."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= 4


@pytest.mark.parametrize(
    "when",
    [
        {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "no"},
        {"eval_strategy": "epoch", "save_strategy": "no"},
        {
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
        },
    ],
)
def test_what_training_ends_with_is_scored_where_an_evaluation_ended_it(
    model: Path, pairs: Dataset, tmp_path: Path, when: dict[str, Any]
) -> None:
    """Twelve pairs, three a step: an epoch ends at the fourth."""
    probing = callback(tmp_path / "store")
    run = trainer(
        model,
        tmp_path / "run",
        pairs,
        callbacks=[probing, Stops()],
        eval_dataset=pairs.select(range(2)),
        per_device_train_batch_size=3,
        **when,
    )
    run.train()
    assert run.state.global_step == 4
    assert probing.scored == [0, 3, 4]
    assert probing.failures == {}


def test_a_first_scoring_that_fails_ends_training_before_it_began(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    done = trainer(
        model,
        tmp_path / "run",
        pairs,
        callbacks=[callback(tmp_path / "store")],
        max_steps=1,
        save_strategy="no",
    )
    done.train()
    other = callback(tmp_path / "store", limit=(3, 2))
    run = trainer(model, tmp_path / "run", pairs, callbacks=[other])
    with pytest.raises(MismatchError, match="probe_set_hash"):
        run.train()
    assert run.state.global_step == 0
    with writing(tmp_path / "store" / "run"):  # and no longer holds the run
        pass


def test_a_resumed_run_keeps_what_was_scored_and_sets_lost_steps_aside(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    store, output = tmp_path / "store", tmp_path / "run"
    whole = trainer(
        model,
        tmp_path / "other",
        pairs,
        callbacks=[callback(tmp_path / "s2", run="run")],
    )
    whole.train()

    class Killed(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    probing = callback(store, every=1)
    first = trainer(model, output, pairs, callbacks=[probing, Killed()])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert [s.step for s in list_steps(store / "run")] == [0, 1, 2, 3, 4, 5]
    again = callback(store)
    second = trainer(model, output, pairs, callbacks=[again])
    second.train(resume_from_checkpoint=True)
    # what was stored before cost a look, but tells what a scoring takes
    stored = read_manifest(step_folder(store, "run", 3))
    assert again.overhead.expected == stored.seconds
    assert len(again.overhead.costs) == 1
    assert [s.step for s in list_steps(store / "run")] == [0, 1, 2, 3, 6]
    assert sorted(p.name for p in (store / "run" / "replaced_1").iterdir()) == [
        "step_000004",
        "step_000005",
    ]
    assert again.scored == [6]
    # the first would go on, though the second has taken the run over
    with pytest.raises(StoreError, match="a later training of this process"):
        probing._run.score(first.model, None, 7, "checkpoint-7")
    last = read_manifest(step_folder(store, "run", 6))
    assert last.reference_step == 0
    assert (
        last.weights_hash
        == read_manifest(step_folder(tmp_path / "s2", "run", 6)).weights_hash
    )


def test_scores_of_another_model_are_not_gone_on_with(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    settings: dict[str, Any] = {"max_steps": 1, "save_strategy": "no"}
    trainer(
        model, tmp_path / "run", pairs, callbacks=[callback(store)], **settings
    ).train()
    other = save_tiny(tmp_path / "other", seed=9)
    run = trainer(
        other, tmp_path / "run", pairs, callbacks=[callback(store)], **settings
    )
    with pytest.raises(MismatchError, match="another run name"):
        run.train()


# ---------------------------------------------------------------------------- overhead


def test_scorings_that_would_pass_the_bound_are_left_out_and_counted(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    """A share of one in a million pays for nothing but the first."""
    probing = callback(tmp_path / "store", every=1, max_overhead=1e-6)
    run = trainer(
        model, tmp_path / "run", pairs, callbacks=[probing], save_strategy="no"
    )
    run.train()
    assert probing.scored == [0]
    assert probing.left_out == [1, 2, 3, 4, 5, 6]


# --------------------------------------------------------------------------- processes


def test_a_model_that_is_sharded_is_refused_before_training(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    run = trainer(
        model, tmp_path / "run", pairs, callbacks=[callback(tmp_path / "store")]
    )
    next(run.model.parameters()).ds_id = 0
    with pytest.raises(UnsupportedBackendError, match="ZeRO-3"):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_that_gives_no_next_token_is_refused_by_name(
    model: Path, lora: bool
) -> None:
    """As a reward model in training is."""
    reward = AutoModelForSequenceClassification.from_pretrained(str(model))
    causal = AutoModelForCausalLM.from_pretrained(str(model))
    if lora:
        adapter = LoraConfig(r=4, target_modules=["q_proj"])
        reward, causal = (get_peft_model(m, adapter) for m in (reward, causal))
    check_live(causal)
    with pytest.raises(UnsupportedBackendError, match="not a causal language model"):
        check_live(reward)
