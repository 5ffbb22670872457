"""No pickle is ever opened, wherever it lies, and the refusal names the cure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ldeval.checkpoints import check_weights, describe_checkpoint, find_checkpoints
from ldeval.cli import main
from ldeval.dynamics.causal_lm import open_causal_lm
from ldeval.dynamics.images import read_mnist
from ldeval.dynamics.optimizer_state import read_state
from ldeval.errors import CheckpointError, StoreError, TheoryError
from ldeval.imported import LEVELS, PROMPTS, read_levels
from ldeval.integrations.reference import ImportOptions, import_reference_results
from ldeval.records import LEVELS_VERSION, LevelColumn, LevelRun
from tests.security.bombs import PICKLED_NAMES, as_array, as_torch, pickled, plant
from tests.tiny import save_run

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("pickles"), [1]) / "run"


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def test_the_bombs_of_these_tests_go_off(marker: Path, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(as_torch(marker))
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert marker.exists()
    marker.unlink()
    (tmp_path / "x.npy").write_bytes(as_array(marker))
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert marker.exists()


@pytest.mark.parametrize("name", PICKLED_NAMES[:2])
@pytest.mark.parametrize("config", ["config.json", "adapter_config.json"])
def test_pickled_weights_are_refused_with_the_cure(
    marker: Path, tmp_path: Path, name: str, config: str
) -> None:
    folder = tmp_path / "run" / "checkpoint-1"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(as_torch(marker))
    (folder / config).write_text("{}")
    for found in find_checkpoints(folder.parent):
        with pytest.raises(CheckpointError, match="Save as safetensors"):
            check_weights(found)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("sound", "pickle", "config"),
    [
        ("model.safetensors", "adapter_model.bin", "adapter_config.json"),
        ("adapter_model.safetensors", "pytorch_model.bin", "config.json"),
    ],
)
def test_safetensors_that_are_not_loaded_do_not_vouch_for_a_pickle(
    run: Path, marker: Path, tmp_path: Path, sound: str, pickle: str, config: str
) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    shutil.copyfile(run / "checkpoint-1" / "model.safetensors", folder / sound)
    (folder / pickle).write_bytes(as_torch(marker))
    (folder / config).write_text("{}")
    with pytest.raises(CheckpointError, match="only pickled weights"):
        check_weights(describe_checkpoint(folder, 1))


def test_a_pickle_that_the_configuration_names_is_refused(
    run: Path, marker: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    shutil.copyfile(
        run / "checkpoint-1" / "model.safetensors", folder / "model.safetensors"
    )
    (folder / "adapter_model.bin").write_bytes(as_torch(marker))
    named = {"transformers_weights": "adapter_model.bin"}
    (folder / "config.json").write_text(json.dumps(named))
    with pytest.raises(CheckpointError, match="only pickled weights"):
        check_weights(describe_checkpoint(folder, 1))


def test_a_sweep_passes_every_pickle_of_a_checkpoint_by(
    run: Path, marker: Path, tmp_path: Path, capsys: Output
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    plant(copy / "checkpoint-1", marker)
    plant(copy, marker)
    (copy / "checkpoint-2").mkdir()
    plant(copy / "checkpoint-2", marker)
    command = ["-q", "sweep", str(copy), "--store", str(tmp_path / "store")]
    status = main([*command, "--limit", "1", "1", "--model_args", "device=cpu"])
    assert status == 1
    assert "Save it with safe_serialization=True" in capsys.readouterr().out
    assert (tmp_path / "store" / "run" / "step_000001" / "manifest.json").is_file()
    assert not marker.exists()


def test_a_cure_names_no_script_that_lies_in_the_folder(
    marker: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint-1"
    (folder / "global_step1").mkdir(parents=True)
    shard = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    (folder / "global_step1" / shard).write_bytes(as_torch(marker))
    (folder / "zero_to_fp32.py").write_text("the sender's code")
    with pytest.raises(CheckpointError, match="only if you trust") as caught:
        check_weights(describe_checkpoint(folder, 1))
    assert "python -m deepspeed.utils.zero_to_fp32" in str(caught.value)
    assert "zero_to_fp32.py" not in str(caught.value)
    assert not marker.exists()


def test_an_optimizer_state_is_read_as_numbers_or_not_at_all(
    run: Path, marker: Path, tmp_path: Path
) -> None:
    lm = open_causal_lm(str(run / "checkpoint-1"))
    for content in (as_torch(marker), pickled(marker)):
        (tmp_path / "optimizer.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
            read_state(tmp_path, lm)
    assert not marker.exists()


def test_arrays_of_objects_are_refused(marker: Path, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(as_array(marker))
    with pytest.raises(StoreError, match="never unpickled"):
        import_reference_results(
            tmp_path / "a.npy", ImportOptions("run", None, None, None)
        )
    bomb = np.load(tmp_path / "a.npy", allow_pickle=True)
    marker.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.savez(tmp_path / "d.npz", x_train=bomb, y_train=bomb)
        np.savez(tmp_path / PROMPTS, x=bomb)
    marker.unlink(missing_ok=True)
    with pytest.raises(TheoryError, match="not an npz of plain arrays"):
        read_mnist(tmp_path / "d.npz")
    _hand_over(tmp_path)
    with pytest.raises(
        StoreError, match=r"x\.npy holds objects.*Import the file again"
    ):
        read_levels(tmp_path)
    assert not marker.exists()


def _hand_over(run: Path) -> None:
    """A store of somebody else, its hashes right, an array of objects in it."""
    column = LevelColumn("x", "kind", "x", (-1.0,))
    levels = LevelRun("r", "trl", "f", "trained", (0,), "steps", (column,))
    record = dataclasses.asdict(levels)
    del record["prompts"]
    digest = hashlib.sha256((run / PROMPTS).read_bytes()).hexdigest()
    record |= {"levels_version": LEVELS_VERSION, "prompts_sha256": digest}
    (run / LEVELS).write_text(json.dumps(record))
