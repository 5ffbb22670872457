"""Sweeps over real tiny checkpoints: resumed, killed, past broken ones."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldeval.checkpoints import weights_hash
from ldeval.checkpoints.tensors import same_weights
from ldeval.cli import main
from ldeval.decodes import run_decodes
from ldeval.errors import (
    CheckpointError,
    MismatchError,
    StoreError,
    UnsupportedBackendError,
)
from ldeval.probes import read_probes
from ldeval.records import Checkpoint, ScoreTable
from ldeval.reuse import Question
from ldeval.scoring.models import RestartedModels
from ldeval.scoring.tables import as_reference
from ldeval.store import list_runs, load_run, read_table, step_folder, write_table
from ldeval.sweep import Sweep, stages, sweep, sweep_stages
from ldeval.sweep import run as run_module
from ldeval.watch import watch
from tests.sweeping import ARGS, sweep_settings
from tests.test_store import table as small_table
from tests.tiny import save_run, save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and run/checkpoint-{10,20,30}."""
    return save_run(tmp_path_factory.mktemp("trained"), [10, 20, 30])


def steps(store: Path, run: str = "run") -> list[int]:
    return [step.step for step in list_runs(store)[run] if step.complete]


def test_every_checkpoint_is_scored_once_in_order(
    trained: Path, tmp_path: Path
) -> None:
    result = sweep(trained / "run", sweep_settings(trained, tmp_path))
    assert result.scored == (0, 10, 20, 30)
    assert (result.kept, result.broken) == ((), ())
    again = sweep(trained / "run", sweep_settings(trained, tmp_path))
    assert again.scored == ()
    assert again.kept == (0, 10, 20, 30)
    tables = load_run(tmp_path / "run")
    assert [t.manifest.step for t in tables] == [0, 10, 20, 30]
    assert {t.manifest.reference_step for t in tables} == {0}


def test_later_tables_hold_the_first_checkpoints_top_tokens_exactly(
    trained: Path, tmp_path: Path
) -> None:
    sweep(trained / "run", sweep_settings(trained, tmp_path))
    first, *later = load_run(tmp_path / "run")
    np.testing.assert_array_equal(first.tokens.ref_ids, first.tokens.top_ids)
    for table in later:
        np.testing.assert_array_equal(table.tokens.ref_ids, first.tokens.top_ids)
        assert table.tokens.ref_logprobs is not None
        assert np.isfinite(table.tokens.ref_logprobs).all()


@pytest.mark.parametrize("broken", [False, True])
def test_a_first_checkpoint_that_a_trainer_deleted_stays_the_reference(
    trained: Path, tmp_path: Path, broken: bool
) -> None:
    """As with ``save_total_limit``; decodes go on from the first ones too."""
    copy = copy_run(trained, tmp_path)
    shutil.move(copy / "run" / "checkpoint-30", tmp_path / "later")
    asked = sweep_settings(copy, tmp_path / "store", base=None, greedy=3)
    assert sweep(copy / "run", asked).scored == (10, 20)
    if broken:
        (copy / "run" / "checkpoint-10" / "model.safetensors").write_bytes(b"")
    else:
        shutil.rmtree(copy / "run" / "checkpoint-10")
    shutil.move(tmp_path / "later", copy / "run" / "checkpoint-30")
    result = sweep(copy / "run", asked)
    assert (result.scored, result.kept) == ((30,), (20,))
    tables = load_run(tmp_path / "store" / "run")
    assert {t.manifest.reference_step for t in tables} == {10}
    decodes = run_decodes(tmp_path / "store" / "run")
    assert [(d.step, d.reference_step) for d in decodes] == [
        (10, 10),
        (20, 10),
        (30, 10),
    ]
    np.testing.assert_array_equal(tables[2].tokens.ref_ids, tables[0].tokens.top_ids)
    assert sum(t.manifest.noise_floor is not None for t in tables) == 1


def test_scores_of_a_deleted_checkpoint_bind_those_after_it(
    trained: Path, tmp_path: Path
) -> None:
    copy = copy_run(trained, tmp_path)
    shutil.rmtree(copy / "run" / "checkpoint-20")
    asked = sweep_settings(copy, tmp_path / "store", base=None)
    sweep(copy / "run", replace(asked, probes=asked.probes.limited(1, 1)))
    shutil.copytree(trained / "run" / "checkpoint-20", copy / "run" / "checkpoint-20")
    for step in (10, 30):
        shutil.rmtree(copy / "run" / f"checkpoint-{step}")
    with pytest.raises(MismatchError, match="step_000010 holds scores with probe_set"):
        sweep(copy / "run", asked)
    fewer = replace(asked, probes=asked.probes.limited(1, 1), greedy=3)
    with pytest.raises(MismatchError, match="has no greedy decodes"):
        sweep(copy / "run", fewer)


def test_a_foreign_initial_is_excluded_and_listed(
    trained: Path, tmp_path: Path
) -> None:
    sweep(trained / "run", sweep_settings(trained, tmp_path))
    table = read_table(step_folder(tmp_path, "run", 10))
    assert "initial" not in table.kinds
    assert {item.kind for item in table.manifest.excluded} == {"initial"}
    assert len(table.manifest.excluded) == 5
    assert "ldeval probes initial" in table.manifest.excluded[0].reason


def test_an_initial_of_this_very_model_is_scored(trained: Path, tmp_path: Path) -> None:
    wanted = sweep_settings(trained, tmp_path)
    origin = {"weights": weights_hash(trained / "base"), "tokenizer": "any"}
    own = tuple(
        replace(probe, meta={**probe.meta, "initial_model": origin})
        for probe in wanted.probes
    )
    first = sweep(
        trained / "run",
        replace(wanted, probes=replace(wanted.probes, probes=own)),
    )
    assert first.broken == ()
    # the tokenizer named in the file is another: excluded all the same
    table = read_table(step_folder(tmp_path, "run", 0))
    assert {item.reason for item in table.manifest.excluded} == {
        "sampled from a model with another tokenizer; sample it anew: ldeval probes "
        "initial --model DIR"
    }
    tokenizer = table.manifest.tokenizer_hash
    own = tuple(
        replace(p, meta={**p.meta, "initial_model": {**origin, "tokenizer": tokenizer}})
        for p in own
    )
    sweep(
        trained / "run",
        replace(
            wanted, probes=replace(wanted.probes, probes=own), store=tmp_path / "two"
        ),
    )
    table = read_table(step_folder(tmp_path / "two", "run", 0))
    assert "initial" in table.kinds
    assert table.manifest.excluded == ()


def copy_run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def break_truncated(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def break_pickled(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def break_empty(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()


def break_foreign(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    save_tiny(checkpoint, architecture="gpt2")


def break_tokenizer(checkpoint: Path) -> None:
    other = tiny_tokenizer(512)
    other.add_tokens(["<|extra|>"])
    other.save_pretrained(checkpoint)


def break_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{not json")


def break_output_layer(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = str(checkpoint / "model.safetensors")
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def break_nan(checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(checkpoint))
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    model.save_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_truncated, "cannot be read as safetensors"),
        (break_pickled, "only pickled weights (pytorch_model.bin)"),
        (break_empty, "no *.safetensors in it"),
        (break_foreign, "Is this checkpoint from another model, or incomplete?"),
        (break_tokenizer, "tokenizer_hash is"),
        (break_config, "cannot be read as JSON"),
        (break_output_layer, "tensor 'lm_head.weight' has shape None"),
        (break_nan, "The model's logits are not finite"),
    ],
)
def test_a_broken_checkpoint_is_listed_and_the_rest_is_scored(
    trained: Path, tmp_path: Path, damage: Any, words: str
) -> None:
    copy = copy_run(trained, tmp_path)
    damage(copy / "run" / "checkpoint-20")
    result = sweep(copy / "run", sweep_settings(copy, tmp_path / "store"))
    assert result.scored == (0, 10, 30)
    (broken,) = result.broken
    assert broken.step == 20
    assert words in broken.reason
    assert "checkpoint-20" in broken.reason or "probe " in broken.reason
    assert steps(tmp_path / "store") == [0, 10, 30]


def test_another_probe_set_under_the_same_name_is_refused(
    trained: Path, tmp_path: Path
) -> None:
    wanted = sweep_settings(trained, tmp_path)
    sweep(trained / "run", wanted)
    fewer = replace(wanted, probes=wanted.probes.limited(2, 1))
    with pytest.raises(MismatchError) as caught:
        sweep(trained / "run", fewer)
    assert wanted.probes.content_hash in str(caught.value)
    assert fewer.probes.content_hash in str(caught.value)
    for change in (
        {"apply_chat_template": False},
        {"model_args": {**ARGS, "dtype": "bfloat16"}},
        {"model_args": {**ARGS, "add_bos_token": True}},
        {"system_instruction": "Be brief."},
    ):
        with pytest.raises(MismatchError, match=next(iter(change))):
            sweep(trained / "run", replace(wanted, **change))
    again = sweep(
        trained / "run", replace(wanted, model_args={**ARGS, "batch_size": 2})
    )
    assert again.kept == (0, 10, 20, 30)


def test_a_folder_without_checkpoints_says_so(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint-N folders"):
        sweep(trained / "base", sweep_settings(trained, tmp_path))
    with pytest.raises(CheckpointError, match="no such folder"):
        sweep(trained / "none", sweep_settings(trained, tmp_path))
    with pytest.raises(CheckpointError, match="holds pretrained=x"):
        sweep(
            trained / "run",
            sweep_settings(trained, tmp_path, model_args={"pretrained": "x"}),
        )


def test_a_second_stage_starts_from_the_first_ones_last_checkpoint(
    trained: Path, tmp_path: Path
) -> None:
    copy = copy_run(trained, tmp_path)
    second = copy / "second"
    shutil.copytree(copy / "run" / "checkpoint-10", second / "checkpoint-5")
    results = sweep_stages(
        [copy / "run", second], sweep_settings(copy, tmp_path / "store")
    )
    assert results["run"].scored == (0, 10, 20, 30)
    assert results["second"].scored == (0, 5)
    base, after = load_run(tmp_path / "store" / "second")
    last = read_table(step_folder(tmp_path / "store", "run", 30))
    np.testing.assert_array_equal(base.logprob_sums, last.logprob_sums)
    # not scored a second time: the same weights were
    assert "the same weights were scored as run step 30" in base.manifest.notes
    np.testing.assert_array_equal(base.tokens.ref_ids, last.tokens.top_ids)
    np.testing.assert_array_equal(after.tokens.ref_ids, last.tokens.top_ids)


@pytest.mark.parametrize(
    ("held", "start"),
    [(None, 30), (10, 10), (30, 30), ("base", 30), ("damaged", 30)],
)
def test_a_stage_starts_from_the_weights_that_the_one_before_ended_with(
    trained: Path, tmp_path: Path, held: int | str | None, start: int
) -> None:
    """After ``load_best_model_at_end`` those are not of the last checkpoint."""
    copy = copy_run(trained, tmp_path)
    run, second = copy / "run", copy / "second"
    end = run / "model.safetensors"
    if held == "damaged":
        end.write_bytes(b"damaged")
    elif held is not None:
        own = copy / held if held == "base" else run / f"checkpoint-{held}"
        shutil.copyfile(own / end.name, end)
    settings = sweep_settings(copy, tmp_path / "store")
    (_, first), (_, later) = stages([run, second], settings)
    assert first.base == settings.base
    assert later.base == str(run / f"checkpoint-{start}")


@pytest.mark.parametrize("other", ["checkpoint-10", "checkpoint-20", "checkpoint-30"])
def test_weights_are_the_same_where_their_hashes_are(trained: Path, other: str) -> None:
    one, two = trained / "run" / "checkpoint-10", trained / "run" / other
    assert same_weights(one, two) == (weights_hash(one) == weights_hash(two))
    assert not same_weights(one, trained / "base")


@pytest.mark.parametrize("greedy", [0, 2])
def test_a_sweep_that_lost_its_run_while_it_scored_writes_no_more(
    trained: Path, tmp_path: Path, greedy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the table; nor the decodes, where it lost the run after that."""
    lost = []
    slept = "greedy_decodes" if greedy else "build_table"
    real = getattr(run_module, slept)

    def then_lose(*arguments: Any, **options: Any) -> Any:
        lost.append(1)
        return real(*arguments, **options)

    def still_held() -> None:
        if lost:
            raise StoreError("is another's")

    monkeypatch.setattr(run_module, slept, then_lose)
    settings = sweep_settings(trained, tmp_path, greedy=greedy)
    run = tmp_path / "trained" / "run"
    run.mkdir(parents=True)
    (run / "trained.jsonl").write_text("")
    (tmp_path / "run").mkdir()
    source = RestartedModels("hf", ARGS, base=None)
    with (
        pytest.raises(StoreError, match="is another's"),
        Sweep(settings, run, source, still_held) as work,
    ):
        work.take(Checkpoint(str(trained / "base"), 0))
    assert len(lost) == 1
    assert not (tmp_path / "run" / "trained.jsonl").exists()
    assert not (tmp_path / "run" / "greedy").exists()
    assert (step_folder(tmp_path, "run", 0) / "manifest.json").exists() == bool(greedy)


def test_another_runs_scores_are_taken_over_part_by_part(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a table of any size need not fit in memory."""
    parts = []

    def noted(part: ScoreTable) -> ScoreTable:
        parts.append(len(part))
        return as_reference(part)

    monkeypatch.setattr("ldeval.store.writing._TOKENS_PER_ROW_GROUP", 4)
    monkeypatch.setattr("ldeval.sweep.run.as_reference", noted)
    whole = small_table(7)
    write_table(step_folder(tmp_path, "other", 7), whole)
    found = whole.manifest
    question = Question(found.weights_hash, found.probe_set_hash, found.settings)
    folder = step_folder(tmp_path, "run", 0)
    settings = sweep_settings(trained, tmp_path, base=None)
    work = Sweep(settings, trained / "run", RestartedModels("hf", {}, base=None))
    assert work._reused(folder, question, Checkpoint("again", 0))
    assert parts == [2, 1]
    back = read_table(folder)
    assert (back.manifest.run, back.manifest.step) == ("run", 0)
    assert back.manifest.reference_step == 0
    np.testing.assert_array_equal(back.tokens.ref_ids, whole.tokens.top_ids)
    np.testing.assert_array_equal(back.logprob_sums, whole.logprob_sums)


def test_what_was_trained_goes_into_the_store(trained: Path, tmp_path: Path) -> None:
    copy = copy_run(trained, tmp_path)
    line = json.dumps({"step": 1, "examples": ["train-001"]}) + "\n"
    (copy / "run" / "trained.jsonl").write_text(line)
    sweep(copy / "run", sweep_settings(copy, tmp_path / "store"))
    assert (tmp_path / "store" / "run" / "trained.jsonl").read_text() == line


def test_a_sweep_keeps_its_texts_and_a_page_of_it_spells_every_token(
    trained: Path, tmp_path: Path
) -> None:
    asked = sweep_settings(trained, tmp_path / "store")
    sweep(trained / "run", asked)
    run = tmp_path / "store" / "run"
    assert read_probes(run / "probes.jsonl").content_hash == asked.probes.content_hash
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--html", str(page)]) == 0
    block = page.read_text("utf-8").partition('id="b-prompts-0">')[2]
    data = json.loads(gzip.decompress(base64.b64decode(block.partition("<")[0])))
    assert data["prompts"] == [
        probe.prompt if isinstance(probe.prompt, str) else list(map(dict, probe.prompt))
        for probe in asked.probes
    ]
    assert data["pieces"]
    assert None not in data["pieces"]


def command(trained: Path, store: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "ldeval.cli", "-q", "sweep", str(trained / "run")),
        *("--base", str(trained / "base"), "--store", str(store)),
        *("--model", "hf", "--model_args", "dtype=float32,device=cpu"),
        *("--limit", "3", "2", "--apply_chat_template"),
    ]


def test_a_killed_sweep_goes_on_and_ends_as_an_uninterrupted_one(
    trained: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(trained, whole), check=True)

    process = subprocess.Popen(command(trained, killed))
    second = step_folder(killed, "run", 10)
    deadline = time.monotonic() + 120
    while not second.exists() and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert second.exists()
    finished = {
        step: (step_folder(killed, "run", step) / "manifest.json").stat().st_mtime_ns
        for step in steps(killed)
    }
    assert finished
    assert len(finished) < 4

    subprocess.run(command(trained, killed), check=True)
    for step, stamp in finished.items():
        manifest = step_folder(killed, "run", step) / "manifest.json"
        assert manifest.stat().st_mtime_ns == stamp, "scored again"
    for one, two in zip(load_run(whole / "run"), load_run(killed / "run"), strict=True):
        assert one.index() == two.index()
        np.testing.assert_array_equal(one.logprob_sums, two.logprob_sums)
        np.testing.assert_array_equal(one.tokens.ref_logprobs, two.tokens.ref_logprobs)


def test_an_interrupt_keeps_what_is_finished(trained: Path, tmp_path: Path) -> None:
    # a shell's background job would ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        texts = tmp_path / "run" / "tokenizer.json"  # kept once the step is counted
        while not texts.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        result = watch(
            tmp_path / "nothing-yet", sweep_settings(trained, tmp_path), interval=0.01
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.scored == (0,)


def test_the_command_exits_with_1_where_a_checkpoint_is_broken(
    trained: Path, tmp_path: Path
) -> None:
    copy = copy_run(trained, tmp_path)
    break_truncated(copy / "run" / "checkpoint-20")
    done = subprocess.run(
        command(copy, tmp_path / "store"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "1 broken" in done.stdout
    assert "step 20:" in done.stdout


def test_a_setting_that_no_checkpoint_can_be_scored_with_ends_the_sweep(
    trained: Path, tmp_path: Path
) -> None:
    arguments = {**ARGS, "softmax_dtype": "bfloat16"}
    with pytest.raises(UnsupportedBackendError, match="softmax_dtype"):
        sweep(trained / "run", sweep_settings(trained, tmp_path, model_args=arguments))
    with pytest.raises(UnsupportedBackendError, match="no such model type"):
        sweep(trained / "run", sweep_settings(trained, tmp_path, model="hff"))


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ({"dtyp": "float32"}, "'dtyp'"),
        ({"dtype": "float99"}, "'float99'"),
        ({"max_length": "long"}, "max_length='long'"),
    ],
    ids=["name", "value", "number"],
)
def test_an_argument_that_nothing_takes_ends_the_sweep_by_name(
    trained: Path, tmp_path: Path, mistake: dict[str, str], told: str
) -> None:
    settings = sweep_settings(trained, tmp_path, model_args={**ARGS, **mistake})
    with pytest.raises(UnsupportedBackendError, match=told):
        sweep(trained / "run", settings)


class WrongSwap(RestartedModels):
    """A source whose swaps leave the first checkpoint's weights in place."""

    swapped = True

    def __init__(self, honest_restart: bool) -> None:
        super().__init__("hf", ARGS, base=None)
        self.honest_restart = honest_restart
        self.first: Any = None
        self.restarts = 0

    def open(self, checkpoint: Any) -> Any:
        self.first = self.first or checkpoint
        return super().open(self.first)

    def restart(self, checkpoint: Any) -> Any:
        self.restarts += 1
        return super().open(checkpoint if self.honest_restart else self.first)


@pytest.mark.parametrize("honest", [True, False])
def test_a_swap_that_did_nothing_is_caught_and_the_engine_started_anew(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    source = WrongSwap(honest)
    monkeypatch.setattr("ldeval.sweep.staged.model_source", lambda *_, **__: source)
    result = sweep(trained / "run", sweep_settings(trained, tmp_path))
    if not honest:
        assert result.scored == (0,)
        assert [broken.step for broken in result.broken] == [10, 20, 30]
        assert "known-answer check" in result.broken[0].reason
        return
    assert result.scored == (0, 10, 20, 30)
    assert source.restarts == 3
    notes = read_table(step_folder(tmp_path, "run", 10)).manifest.notes
    assert any("started anew" in note for note in notes)


def test_an_unreadable_run_beside_it_does_not_stop_a_sweep(
    trained: Path, tmp_path: Path
) -> None:
    sweep(trained / "run", sweep_settings(trained, tmp_path, run="old"))
    manifest = step_folder(tmp_path, "old", 0) / "manifest.json"
    manifest.write_text("{")
    result = sweep(trained / "run", sweep_settings(trained, tmp_path))
    assert result.scored == (0, 10, 20, 30)


def test_the_declared_objective_is_stored_by_stage(
    trained: Path, tmp_path: Path
) -> None:
    copy = copy_run(trained, tmp_path)
    second = copy / "second"
    shutil.copytree(copy / "run" / "checkpoint-10", second / "checkpoint-5")
    sweep_stages(
        [copy / "run", second],
        sweep_settings(copy, tmp_path / "store", objectives=("sft", "dpo")),
    )
    for run, objective in (("run", "sft"), ("second", "dpo")):
        for table in load_run(tmp_path / "store" / run):
            assert table.manifest.objective == objective
