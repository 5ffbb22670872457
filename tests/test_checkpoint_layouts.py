"""Real checkpoint folders of every layout: found and scored, or refused with the
command that converts them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.trainer_utils import IntervalStrategy

from ldeval.checkpoints import (
    check_weights,
    describe_checkpoint,
    find_checkpoints,
    weights_hash,
)
from ldeval.errors import CheckpointError
from ldeval.store import load_run
from ldeval.sweep import SweepSettings, sweep
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.training import examples, short_probes, trainer

PROBES = short_probes(12, 2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny_model("llama", len(tiny_tokenizer()), 4)


def scored(run: Path, base: Path, store: Path) -> list[int]:
    settings = SweepSettings(
        probes=PROBES.limited(2, 1),
        store=store,
        run="run",
        base=str(base),
        model_args={"dtype": "float32"},
        apply_chat_template=True,
        progress=False,
    )
    assert sweep(run, settings).broken == ()
    return [table.manifest.step for table in load_run(store / "run")]


# ------------------------------------------------------------------------ found, scored


@pytest.mark.parametrize("lora", [False, True])
def test_what_trl_saves_is_found_full_or_adapter(
    base: Path, tmp_path: Path, lora: bool
) -> None:
    run = tmp_path / "run"
    trainer(
        base, run, examples(PROBES, "dpo"), lora=lora, max_steps=2, save_steps=1
    ).train()
    found = find_checkpoints(run)
    assert [c.step for c in found] == [1, 2]
    assert {c.layout for c in found} == {"adapter" if lora else "full"}
    assert scored(run, base, tmp_path / "store") == [0, 1, 2]


@pytest.mark.parametrize("lora", [False, True])
def test_llama_factory_and_axolotl_leave_the_end_in_the_runs_own_folder(
    base: Path, tmp_path: Path, lora: bool
) -> None:
    """Both save the model and the trainer's state there after the last checkpoint, and
    more files of their own beside them."""
    run = tmp_path / "run"
    training = trainer(
        base, run, examples(PROBES, "sft"), "sft", lora=lora, max_steps=3, save_steps=2
    )
    training.train()
    training.save_model()
    training.save_state()
    shutil.rmtree(run / "checkpoint-3", ignore_errors=True)
    (run / "trainer_log.jsonl").write_text("{}\n")
    (run / "all_results.json").write_text("{}")
    (run / "merged").mkdir()
    (run / "tokens_state.json").write_text("{}")
    found = find_checkpoints(run)
    assert [(Path(c.path).name, c.step) for c in found] == [
        ("checkpoint-2", 2),
        ("run", 3),
    ]
    assert scored(run, base, tmp_path / "store") == [0, 2, 3]


def test_an_end_that_is_the_last_checkpoint_is_not_scored_twice(
    base: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    training = trainer(
        base, run, examples(PROBES, "sft"), "sft", max_steps=2, save_steps=2
    )
    training.train()
    training.save_model()
    training.save_state()
    assert [c.step for c in find_checkpoints(run)] == [2]


def test_a_run_that_saved_only_its_end_is_found(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(base, run)
    (run / "trainer_state.json").write_text('{"global_step": 40, "max_steps": 40}')
    assert [(c.path, c.step) for c in find_checkpoints(run)] == [(str(run), 40)]
    (run / "trainer_state.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint-N folders"):
        find_checkpoints(run)


def test_an_end_that_went_back_to_the_best_checkpoint_is_left_out(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """``load_best_model_at_end`` with ``save_total_limit=1``: the last checkpoint is
    deleted, and the run's own folder holds the best one's weights."""
    run = tmp_path / "run"
    training = trainer(
        base, run, examples(PROBES, "sft"), "sft", max_steps=3, save_steps=1
    )
    training.eval_dataset = training.train_dataset
    wanted = {
        "eval_strategy": IntervalStrategy.STEPS,
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": True,  # so that the first is the best
        "save_total_limit": 1,
    }
    for name, value in wanted.items():
        setattr(training.args, name, value)
    training.train()
    training.save_model()
    training.save_state()
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]
    state = json.loads((run / "trainer_state.json").read_text())
    assert (state["global_step"], state["best_global_step"]) == (3, 1)
    for _ in range(2):
        assert [c.step for c in find_checkpoints(run)] == [1]
    assert caplog.text.count("weights are those of checkpoint-1") == 1


def test_an_end_that_did_not_go_back_to_the_best_checkpoint_is_found(
    network: Any, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    network.save_pretrained(run)
    shutil.copytree(base, run / "checkpoint-40")
    state = {"global_step": 100, "best_model_checkpoint": "elsewhere/checkpoint-40"}
    (run / "trainer_state.json").write_text(json.dumps(state))
    assert [c.step for c in find_checkpoints(run)] == [40, 100]
    assert not caplog.records
    shutil.rmtree(run / "checkpoint-40")
    network.save_pretrained(run)
    assert [c.step for c in find_checkpoints(run)] == [100]
    assert "may be those of checkpoint-40" in caplog.text
    assert "is gone" in caplog.text


def test_sharded_safetensors_are_found_and_hash_as_one_file(
    network: Any, base: Path, tmp_path: Path
) -> None:
    whole, shards = tmp_path / "whole", tmp_path / "run" / "checkpoint-5"
    network.save_pretrained(whole)
    network.save_pretrained(shards, max_shard_size="20KB")
    assert (shards / "model.safetensors.index.json").is_file()
    assert len(list(shards.glob("model-*-of-*.safetensors"))) > 2
    assert weights_hash(whole) == weights_hash(shards)
    assert scored(tmp_path / "run", base, tmp_path / "store") == [0, 5]


def test_one_file_goes_before_an_index_as_transformers_loads_them(
    network: Any, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint-5"
    network.save_pretrained(folder, max_shard_size="20KB")
    shards = {path.name: path.read_bytes() for path in folder.glob("model-*-of-*")}
    shutil.copyfile(base / "model.safetensors", folder / "model.safetensors")
    for name in shards:
        (folder / name).unlink()
    check_weights(describe_checkpoint(folder, 5))
    assert weights_hash(folder) == weights_hash(base)
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    assert weights_hash(folder) == weights_hash(base)
    loaded = AutoModelForCausalLM.from_pretrained(str(folder)).state_dict()
    stored = load_file(str(base / "model.safetensors"))
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)


def test_the_file_that_a_configuration_names_is_read_as_transformers_reads_it(
    network: Any, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint-5"
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())

    def name(file: str) -> None:
        record = json.dumps({**config, "transformers_weights": file})
        (folder / "config.json").write_text(record)

    stored = load_file(str(base / "model.safetensors"))
    shutil.copyfile(base / "model.safetensors", folder / "other.safetensors")
    name("other.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(str(folder)).state_dict()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)
    assert weights_hash(folder) == weights_hash(base)
    index = {"weight_map": dict.fromkeys(stored, "other.safetensors")}
    (folder / "other.safetensors.index.json").write_text(json.dumps(index))
    name("other.safetensors.index.json")
    assert weights_hash(folder) == weights_hash(base)
    name("gone.safetensors")
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: is gone"):
        check_weights(describe_checkpoint(folder, 5))
    name("../base/model.safetensors")
    with pytest.raises(CheckpointError, match="outside its folder"):
        check_weights(describe_checkpoint(folder, 5))


# ------------------------------------------------------------------ refused, converted


def named_command(error: CheckpointError) -> list[str]:
    """The command that a refusal names."""
    (line,) = [text for text in str(error).splitlines() if text.startswith("    ")]
    return shlex.split(line)


def refusal(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        find_checkpoints(folder)
    return caught.value


def complete(checkpoint: Path, base: Path) -> None:
    """What a refusal asks for beside the command."""
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, checkpoint / path.name)


def fsdp_shards(network: Any, folder: Path) -> None:
    """As accelerate writes them: torch's own distributed checkpoint."""
    import torch.distributed.checkpoint as dcp

    state = {"model": network.state_dict()}
    dcp.save(state, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
    dcp.save({"optim": {}}, checkpoint_id=folder / "optimizer_0", no_dist=True)


def test_fsdp_shards_are_refused_and_the_named_command_converts_them(
    network: Any, base: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fsdp_shards(network, run / "step_40")
    error = refusal(run)
    assert "FSDP shards (pytorch_model_fsdp_0/*.distcp)" in str(error)
    command = named_command(error)
    assert command[:2] == ["accelerate", "merge-weights"]
    tool = [sys.executable, "-m", "accelerate.commands.accelerate_cli"]
    done = subprocess.run([*tool, *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    complete(run / "checkpoint-40", base)
    network.save_pretrained(tmp_path / "expected")
    assert weights_hash(run / "checkpoint-40") == weights_hash(tmp_path / "expected")
    assert scored(run, base, tmp_path / "store") == [0, 40]


def test_fsdp_shards_in_a_checkpoint_of_the_trainers_are_refused_too(
    network: Any, tmp_path: Path
) -> None:
    """transformers' trainer, and axolotl, with SHARDED_STATE_DICT."""
    folder = tmp_path / "run" / "checkpoint-40"
    fsdp_shards(network, folder)
    (folder / "trainer_state.json").write_text('{"global_step": 40}')
    (checkpoint,) = find_checkpoints(tmp_path / "run")
    with pytest.raises(CheckpointError, match="accelerate merge-weights"):
        check_weights(checkpoint)
    sharded = describe_checkpoint(folder / "pytorch_model_fsdp_0", 40)
    with pytest.raises(CheckpointError, match="accelerate merge-weights"):
        check_weights(sharded)


def test_open_instructs_accelerate_folders_are_refused_and_converted(
    network: Any, base: Path, tmp_path: Path
) -> None:
    """``accelerator.save_state(output_dir/step_N)``: weights, pickled states, no
    configuration."""
    from accelerate import Accelerator

    run = tmp_path / "run"
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(network)
    for step in (20, 40):
        accelerator.save_state(str(run / f"step_{step}"))
        (run / f"step_{step}" / "COMPLETED").write_text("")
    prepared.zero_grad()
    error = refusal(run)
    assert "(and 1 more like it)" in str(error)
    assert "without a configuration" in str(error)
    assert str(run / "checkpoint-20") in str(error)
    (line,) = [text for text in str(error).splitlines() if text.startswith("    ")]
    subprocess.run(line, shell=True, check=True)  # noqa: S602  our own advice
    complete(run / "checkpoint-20", base)
    assert scored(run, base, tmp_path / "store") == [0, 20]


@pytest.mark.parametrize("place", ["checkpoint-40", "step_40", "epoch_1"])
@pytest.mark.parametrize(
    "inner",
    [
        "global_step40/bf16_zero_pp_rank_0_mp_rank_00",
        "pytorch_model/zero_pp_rank_0_mp_rank_00",
    ],
)
def test_zero_partitions_are_refused_with_deepspeeds_own_converter(
    tmp_path: Path, place: str, inner: str
) -> None:
    """Files by DeepSpeed's names; DeepSpeed itself does not run here."""
    folder = tmp_path / "run" / place
    shard = folder / f"{inner}_optim_states.pt"
    shard.parent.mkdir(parents=True)
    torch.save({"optimizer_state_dict": {}}, shard)
    torch.save({"module": None}, shard.parent / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text(shard.parent.name)
    (folder / "zero_to_fp32.py").write_text("# DeepSpeed puts its script here\n")
    try:
        (checkpoint,) = find_checkpoints(tmp_path / "run")
    except CheckpointError as error:
        assert place != "checkpoint-40"
        message = error
    else:
        with pytest.raises(CheckpointError) as caught:
            check_weights(checkpoint)
        message = caught.value
    command = named_command(message)
    converter = ["python", "-m", "deepspeed.utils.zero_to_fp32", str(folder)]
    assert command[:4] == converter
    assert command[-1] == "--safe_serialization"
    assert "ZeRO partitions" in str(message)


def test_zero_3_with_gathered_weights_is_an_ordinary_checkpoint(
    network: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "checkpoint-40"
    network.save_pretrained(folder)
    (folder / "global_step40").mkdir()
    torch.save(
        {}, folder / "global_step40" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    )
    (checkpoint,) = find_checkpoints(tmp_path / "run")
    check_weights(checkpoint)


def test_a_pickled_full_state_of_fsdp_is_refused_as_pickled(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint-40"
    folder.mkdir(parents=True)
    torch.save({}, folder / "pytorch_model_fsdp.bin")
    (checkpoint,) = find_checkpoints(tmp_path / "run")
    with pytest.raises(CheckpointError, match="only pickled weights"):
        check_weights(checkpoint)


def test_commands_quote_what_a_shell_would_read(network: Any, tmp_path: Path) -> None:
    run = tmp_path / "my run; rm -rf"
    fsdp_shards(network, run / "step_1")
    command = named_command(refusal(run))
    assert command[-1] == str(run / "checkpoint-1")
    assert json.dumps(command)  # one word a path
    assert len(command) == 4
