"""Which examples each step trained on: recorded, recomputed, or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import Trainer, TrainerCallback

import ldeval
from ldeval import ProbeCallback, recompute_examples, record_examples
from ldeval.cli import main
from ldeval.errors import TrainedRecordError
from ldeval.integrations.live_run import LiveRun
from ldeval.integrations.order import OrderSettings, example_order
from ldeval.integrations.recorder import decoded_ids, encoded_ids, merge_records
from ldeval.store import read_trained, read_trained_tokens
from tests.conftest import ROOT
from tests.training import (
    IDS,
    assert_same_training,
    examples,
    short_probes,
    trainer,
)

PROBES = short_probes()


def recorded(output: Path) -> dict[int, list[str]]:
    lines = (output / "trained.jsonl").read_text().splitlines()
    return {record["step"]: record["examples"] for record in map(json.loads, lines)}


class Witness(TrainerCallback):
    """What really went through the model: the prompts of every training step."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def watch(self, run: Any) -> None:
        step = run.training_step
        tokenizer = run.processing_class

        def training_step(model: Any, inputs: Any, *others: Any) -> Any:
            rows = inputs["input_ids"]
            self.seen.append([tokenizer.decode(ids) for ids in rows.tolist()])
            return step(model, inputs, *others)

        run.training_step = training_step


# ------------------------------------------------------- recorder against recomputation


UNEVEN = {"per_device_train_batch_size": 5, "data_seed": 3}


@pytest.mark.parametrize(
    ("stage", "lora", "changes"),
    [
        ("sft", False, {}),
        ("dpo", True, {}),
        ("sft", True, UNEVEN),
        ("dpo", False, UNEVEN),
        ("dpo", False, {"gradient_accumulation_steps": 2, "seed": 7}),
        ("sft", False, {**UNEVEN, "dataloader_drop_last": True}),
        (
            "sft",
            False,
            {"train_sampling_strategy": "sequential", "dataloader_num_workers": 2},
        ),
    ],
)
def test_what_is_recorded_is_what_is_recomputed(
    model: Path, tmp_path: Path, stage: str, lora: bool, changes: Mapping[str, Any]
) -> None:
    """Over more than one epoch, whose last batch may be smaller."""
    data = examples(PROBES, stage)
    output = tmp_path / "run"
    run = trainer(
        model, output, data, stage, lora=lora, max_steps=9, save_steps=9, **changes
    )
    record_examples(run, IDS)
    run.train()
    kept = recorded(output)
    assert list(kept) == list(range(1, 10))
    (output / "trained.jsonl").unlink()
    fresh = trainer(model, tmp_path / "x", data, stage, lora=lora, **changes)
    found = recompute_examples(output, list(data[IDS]), fresh)
    assert {step: list(ids) for step, ids in found.items()} == kept
    assert recorded(output) == kept


def test_what_is_recorded_is_what_goes_through_the_model(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    run = trainer(
        model, tmp_path / "run", pairs, gradient_accumulation_steps=2, max_steps=4
    )
    witness = Witness()
    witness.watch(run)
    record_examples(run, IDS)
    run.train()
    texts = {p.probe_id: str(p.prompt) for p in PROBES}
    kept = recorded(tmp_path / "run")
    seen = [text for batch in witness.seen for text in batch[: len(batch) // 2]]
    ids = [name for step in kept.values() for name in step]
    assert len(seen) == len(ids)
    for name, text in zip(ids, seen, strict=True):
        assert texts[name] in text


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_tokens_that_the_loss_counts_are_recorded(
    model: Path, tmp_path: Path, stage: str
) -> None:
    data = examples(PROBES, stage)
    run = trainer(
        model, tmp_path / "run", data, stage, gradient_accumulation_steps=2, max_steps=3
    )
    record_examples(run, IDS)
    run.train()
    length = {
        row[IDS]: sum(label != -100 for label in row["labels"])
        if stage == "sft"
        else len(row["chosen_ids"]) + len(row["rejected_ids"])
        for row in run.train_dataset
    }
    kept = recorded(tmp_path / "run")
    assert read_trained_tokens(tmp_path / "run") == {
        step: sum(length[name] for name in ids) for step, ids in kept.items()
    }


@pytest.mark.parametrize("padding_free", [False, True])
def test_the_first_token_of_a_text_is_predicted_by_nothing_and_not_counted(
    model: Path, tmp_path: Path, padding_free: bool
) -> None:
    """Held against what the trainer itself divides the loss by."""
    data = Dataset.from_list(
        [{"text": f"number {n} of six", IDS: str(n)} for n in range(6)]
    )
    settings = {"padding_free": padding_free, "max_length": None}
    run = trainer(
        model, tmp_path / "run", data, "sft", **settings, max_steps=3, save_steps=3
    )
    record_examples(run, IDS)
    counted: list[int] = []
    loss = run.compute_loss

    def compute_loss(*inputs: Any, **named: Any) -> Any:
        counted.append(int(named["num_items_in_batch"]))
        return loss(*inputs, **named)

    run.compute_loss = compute_loss
    run.train()
    tokens = read_trained_tokens(tmp_path / "run")
    assert tokens == dict(enumerate(counted, 1))


def test_a_record_without_tokens_has_none(tmp_path: Path) -> None:
    (tmp_path / "trained.jsonl").write_text(
        '{"step": 1, "examples": ["a"], "tokens": 3}\n{"step": 2, "examples": ["a"]}\n'
    )
    assert read_trained_tokens(tmp_path) is None
    assert read_trained_tokens(tmp_path / "nowhere") is None


def test_recording_leaves_training_and_evaluation_alone(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    runs = []
    for name in ("without", "with"):
        run = trainer(model, tmp_path / name, pairs, save_strategy="no")
        run.eval_dataset = run.train_dataset
        run.args.eval_strategy, run.args.eval_steps = "steps", 2
        if name == "with":
            record_examples(run, IDS)
        run.train()
        run.evaluate()
        runs.append(run)
    assert_same_training(*runs)
    assert sum(map(len, recorded(tmp_path / "with").values())) == 12


def test_ids_may_be_given_beside_the_data(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    run = trainer(model, tmp_path / "run", pairs.remove_columns([IDS]))
    record_examples(run, list(pairs[IDS]))
    run.train()
    assert {i for ids in recorded(tmp_path / "run").values() for i in ids} <= set(
        pairs[IDS]
    )


def plain_trainer(model: Path, output: Path, data: Any) -> Trainer:
    """A trainer of transformers over six rows, two a step."""
    from transformers import AutoModelForCausalLM, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=3,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_steps=3,
    )
    network = AutoModelForCausalLM.from_pretrained(str(model))
    return Trainer(network, arguments, train_dataset=data)


def test_a_plain_trainer_and_a_plain_dataset_are_recorded_too(
    model: Path, tmp_path: Path
) -> None:
    import torch

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> dict[str, Any]:
            ids = torch.tensor([index + 1] * 5)
            return {"input_ids": ids, "labels": ids}

    run = plain_trainer(model, tmp_path / "run", Rows())
    record_examples(run, [f"row {n}" for n in range(6)])
    run.train()
    kept = recorded(tmp_path / "run")
    assert sorted(i for ids in kept.values() for i in ids) == [
        f"row {n}" for n in range(6)
    ]


def test_ids_that_are_numbers_are_their_digits_in_data_of_tensors_too(
    model: Path, tmp_path: Path
) -> None:
    rows = [
        {"input_ids": [n + 1] * 5, "labels": [n + 1] * 5, "id": n} for n in range(6)
    ]
    data = Dataset.from_list(rows).with_format("torch")
    run = plain_trainer(model, tmp_path / "run", data)
    record_examples(run, "id")
    run.train()
    kept = recorded(tmp_path / "run")
    assert sorted(name for ids in kept.values() for name in ids) == list("012345")
    fresh = plain_trainer(model, tmp_path / "run", data)
    for ids in ("id", list(data["id"])):
        (tmp_path / "run" / "trained.jsonl").unlink()
        recompute_examples(tmp_path / "run", ids, fresh)
        assert recorded(tmp_path / "run") == kept


# ------------------------------------------------------------------- crashes, resuming


def test_a_killed_run_keeps_its_lines_and_a_resumed_one_goes_on_from_them(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    whole = trainer(model, tmp_path / "whole", pairs, max_steps=8)
    record_examples(whole, IDS)
    whole.train()

    class Killed(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    output = tmp_path / "run"
    first = trainer(model, output, pairs, max_steps=8, callbacks=[])
    record_examples(first, IDS)
    first.add_callback(Killed())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    path = output / "trained" / "rank_00000.jsonl"
    assert len(path.read_text().splitlines()) == 5
    assert list(recorded(output)) == [1, 2, 3]  # merged with checkpoint 3
    with path.open("a") as handle:
        handle.write('{"step": 6, "exam')  # cut short by a kill
    second = trainer(model, output, pairs, max_steps=8)
    record_examples(second, IDS)
    second.train(resume_from_checkpoint=True)
    assert recorded(output) == recorded(tmp_path / "whole")


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "rank_00000.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(TrainedRecordError, match=r"rank_00000.jsonl:1"):
        merge_records(tmp_path)


def test_a_step_counts_once_every_process_has_written_it(tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    folder.mkdir()
    lines = [
        '{"step": 1, "examples": ["a"], "world": 2}\n',
        '{"step": 2, "examples": ["b"], "world": 2}\n',
    ]
    (folder / "rank_00000.jsonl").write_text("".join(lines))
    (folder / "rank_00001.jsonl").write_text(lines[0].replace('"a"', '"c"'))
    assert merge_records(tmp_path) == 1
    assert read_trained(tmp_path) == {1: frozenset("ac")}


def test_lines_of_more_processes_before_are_not_counted(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    """Two processes trained into this folder once, now one does."""
    folder = tmp_path / "run" / "trained"
    folder.mkdir(parents=True)
    for rank in range(2):
        line = {"step": 1, "examples": [f"old{rank}"], "world": 2}
        (folder / f"rank_0000{rank}.jsonl").write_text(json.dumps(line) + "\n")
    run = trainer(model, tmp_path / "run", pairs, max_steps=1, save_strategy="no")
    record_examples(run, IDS)
    run.train()
    kept = recorded(tmp_path / "run")
    assert len(kept[1]) == 2
    assert not {"old0", "old1"} & set(kept[1])
    assert (folder / "rank_00001.jsonl").read_text() == ""
    (folder / "rank_00001.jsonl").write_text(json.dumps(line) + "\n")
    assert merge_records(tmp_path / "run") == 1
    assert recorded(tmp_path / "run") == kept


def test_a_line_that_was_cut_inside_a_letter_is_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    folder.mkdir()
    line = '{"step": %d, "examples": ["ü"], "world": 1}\n'
    content = (line % 1 + line % 2).encode()
    cut = content.rindex("ü".encode()) + 1
    (folder / "rank_00000.jsonl").write_bytes(content[:cut])
    assert merge_records(tmp_path) == 1


# ------------------------------------------------------------- the join with the scores


def test_diff_reads_who_was_trained_between_two_live_scorings(
    model: Path, pairs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Direct against spill-over needs the record, and finds it in the store."""
    probing = ProbeCallback(
        PROBES, tmp_path / "store", every=3, apply_chat_template=True, objective="dpo"
    )
    seen: list[list[int]] = []
    compare = LiveRun.compare

    def compared(live: LiveRun) -> Any:
        seen.append(sorted(read_trained(live.folder) or ()))
        return compare(live)

    monkeypatch.setattr(LiveRun, "compare", compared)
    run = trainer(model, tmp_path / "run", pairs, callbacks=[probing])
    record_examples(run, IDS)
    run.train()
    # each scoring knows the step that it comes after
    assert seen == [[], [1, 2, 3], [1, 2, 3, 4, 5, 6]]
    assert read_trained(tmp_path / "store" / "run") == {
        step: frozenset(ids) for step, ids in recorded(tmp_path / "run").items()
    }
    comparison = ldeval.diff(tmp_path / "store" / "run")
    (trained,) = [c for c in comparison.cross if c.split == "trained"]
    assert {spill.kind for spill in trained.spill} >= {"chosen", "rejected"}


@pytest.mark.parametrize("recorded_steps", [(1, 2), (3, 4)])
def test_what_was_recorded_of_a_part_of_a_run_counts_as_not_known(
    model: Path,
    pairs: Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recorded_steps: tuple[int, int],
) -> None:
    """The rest would count as training on nothing."""
    store = tmp_path / "store"
    for last in (2, 4):
        probing = ProbeCallback(
            PROBES, store, every=2, limit=(4, 2), apply_chat_template=True
        )
        run = trainer(
            model,
            tmp_path / "run",
            pairs,
            callbacks=[probing],
            max_steps=last,
            save_steps=2,
        )
        if last in recorded_steps:
            record_examples(run, IDS)
        run.train(resume_from_checkpoint=last > 2)
    assert tuple(read_trained(store / "run") or ()) == recorded_steps
    comparison = ldeval.diff(store / "run")
    assert not any(part.spill for part in comparison.cross)
    missing = {(1, 2): 3, (3, 4): 1}[recorded_steps]
    assert f"2 of the steps after 0 (the first is {missing})" in caplog.text


def test_the_record_of_training_that_was_begun_anew_is_not_taken_for_its_own(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    """Nor is it where the new training is not recorded."""
    first = trainer(model, tmp_path / "run", pairs, max_steps=2, save_strategy="no")
    record_examples(first, IDS)
    first.train()
    assert list(recorded(tmp_path / "run")) == [1, 2]
    probing = ProbeCallback(
        PROBES, tmp_path / "store", every=2, limit=(4, 2), apply_chat_template=True
    )
    again = trainer(
        model,
        tmp_path / "run",
        pairs,
        callbacks=[probing],
        max_steps=2,
        save_strategy="no",
    )
    again.train()
    assert not read_trained(tmp_path / "store" / "run")


# ----------------------------------------------------------------------------- refusals


def test_what_is_not_sound_is_refused_with_its_reason(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    grouped = trainer(
        model,
        tmp_path / "x",
        examples(PROBES, "sft"),
        "sft",
        train_sampling_strategy="group_by_length",
    )
    with pytest.raises(TrainedRecordError, match="LengthGroupedSampler"):
        OrderSettings.of(grouped)
    unseeded = trainer(
        model,
        tmp_path / "x",
        pairs,
        accelerator_config={"use_seedable_sampler": False},
    )
    with pytest.raises(TrainedRecordError, match="use_seedable_sampler=False"):
        OrderSettings.of(unseeded)
    stream = trainer(model, tmp_path / "x", pairs.to_iterable_dataset(), max_steps=2)
    with pytest.raises(TrainedRecordError, match="a stream"):
        OrderSettings.of(stream)
    packed = trainer(
        model, tmp_path / "x", examples(PROBES, "sft"), "sft", packing=True
    )
    with pytest.raises(TrainedRecordError, match="packed"):
        OrderSettings.of(packed)
    with pytest.raises(TrainedRecordError, match="packing"):
        record_examples(packed, IDS)
    hasty = trainer(
        model,
        tmp_path / "x",
        pairs,
        dataloader_num_workers=2,
        dataloader_in_order=False,
    )
    with pytest.raises(TrainedRecordError, match="dataloader_in_order=False"):
        OrderSettings.of(hasty)
    skipped = trainer(model, tmp_path / "x", pairs, ignore_data_skip=True)
    with pytest.raises(TrainedRecordError, match="ignore_data_skip"):
        OrderSettings.of(skipped)


def test_settings_that_the_trainers_own_state_contradicts_are_refused(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    trainer(model, output, pairs, gradient_accumulation_steps=2).train()
    ids = list(pairs[IDS])
    right = OrderSettings(batch=2, accumulation=2)
    assert len(recompute_examples(output, ids, right)) == 6
    with pytest.raises(TrainedRecordError, match="batches of 2, the settings say 4"):
        recompute_examples(output, ids, OrderSettings(batch=4))
    with pytest.raises(TrainedRecordError, match="another accumulation"):
        recompute_examples(output, ids, OrderSettings(batch=2))
    with pytest.raises(TrainedRecordError, match="with 8 examples"):
        recompute_examples(output, ids[:8], right)
    like = trainer(model, tmp_path / "x", pairs, gradient_accumulation_steps=2)
    with pytest.raises(TrainedRecordError, match="11 ids were given for 12 rows"):
        recompute_examples(output, ids[:-1], like)


def test_the_command_computes_the_order_of_a_finished_run_again(
    model: Path, pairs: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, data = tmp_path / "run", tmp_path / "data.jsonl"
    run = trainer(model, output, pairs, seed=9, gradient_accumulation_steps=2)
    record_examples(run, IDS)
    run.train()
    kept = recorded(output)
    pairs.to_json(str(data))
    command = ["trained", str(output), "--data", str(data), "--seed", "9"]
    assert main([*command, "--accumulation", "2"]) == 2
    assert "is there already" in capsys.readouterr().err
    (output / "trained.jsonl").unlink()
    assert main(command) == 2
    assert "another accumulation" in capsys.readouterr().err
    assert main([*command, "--accumulation", "2", "--id-field", "uid"]) == 2
    assert "data.jsonl:1: no field 'uid'" in capsys.readouterr().err
    assert main([*command, "--accumulation", "2"]) == 0
    assert recorded(output) == kept


def test_ids_that_cannot_be_matched_to_rows_are_refused(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    run = trainer(model, tmp_path / "run", pairs)
    with pytest.raises(TrainedRecordError, match="no column 'uid'"):
        record_examples(run, "uid")
    with pytest.raises(TrainedRecordError, match="2 ids were given for 12 rows"):
        record_examples(run, ["a", "b"])


def test_a_list_of_ids_is_refused_where_the_trainer_shuffled_its_rows(
    model: Path, tmp_path: Path
) -> None:
    """A column goes with the rows, recorded and recomputed."""
    data = examples(PROBES, "sft")
    settings: dict[str, Any] = {"stage": "sft", "shuffle_dataset": True}

    def shuffled() -> Any:
        return trainer(model, tmp_path / "run", data, **settings)

    run = shuffled()
    assert list(run.train_dataset[IDS]) != list(data[IDS])
    with pytest.raises(TrainedRecordError, match="shuffle_dataset=True"):
        record_examples(run, list(data[IDS]))
    record_examples(run, IDS)
    run.train()
    kept = recorded(tmp_path / "run")
    (tmp_path / "run" / "trained.jsonl").unlink()
    with pytest.raises(TrainedRecordError, match="shuffle_dataset=True"):
        recompute_examples(tmp_path / "run", list(data[IDS]), shuffled())
    with pytest.raises(TrainedRecordError, match="no column 'uid'"):
        recompute_examples(tmp_path / "run", "uid", shuffled())
    with pytest.raises(TrainedRecordError, match="which only a trainer has"):
        recompute_examples(tmp_path / "run", IDS, OrderSettings(batch=2))
    again = recompute_examples(tmp_path / "run", IDS, shuffled())
    assert {step: list(ids) for step, ids in again.items()} == kept


def test_ids_survive_the_way_through_a_batch() -> None:
    names = ["a", "train-003", "ü" * 32, "x" * 64]
    assert decoded_ids(encoded_ids(names)) == names
    for bad in ("", "x" * 65, "a\0b"):
        with pytest.raises(TrainedRecordError, match="bytes"):
            encoded_ids([bad])


def test_an_epoch_takes_every_example_once() -> None:
    settings = OrderSettings(batch=3, accumulation=2, seed=1)
    steps = list(example_order(settings, 10, 4))
    assert [len(rows) for _, rows in steps] == [6, 4, 6, 4]
    first = [row for _, rows in steps[:2] for row in rows]
    second = [row for _, rows in steps[2:] for row in rows]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


# ---------------------------------------------------------------------------- processes


def test_two_processes_train_as_without_probes_and_only_one_writes(
    model: Path, tmp_path: Path
) -> None:
    """torchrun, gloo, plain data parallelism."""
    script = ROOT / "tests" / "integrations" / "two_processes.py"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
            *("--master_port", "0", "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", "localhost:0", str(script)),
            *(str(model), str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["without"] == found["with"]
    assert found["scored"] == [0, 2, 4]
    assert found["stopped_at"] == [2, 2]
    kept = recorded(tmp_path / "with")
    assert [len(ids) for ids in kept.values()] == [4, 4, 4, 4]
    assert len({i for ids in list(kept.values())[:3] for i in ids}) == 12
    steps = (tmp_path / "store" / "with").glob("step_*/manifest.json")
    assert len(list(steps)) == 3
