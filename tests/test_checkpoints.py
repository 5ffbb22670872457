"""Finding checkpoints and reading their weight files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from ldeval.checkpoints import (
    base_of,
    check_weights,
    describe_checkpoint,
    find_checkpoints,
    is_saved,
    stored_dtype,
    tensor_shapes,
    weights_hash,
)
from ldeval.checkpoints.tensors import TIED_UNSAID
from ldeval.errors import CheckpointError
from ldeval.records import Checkpoint
from ldeval.scoring.known_answers import compare_known
from ldeval.scoring.vllm_engine import ties_embeddings
from ldeval.scoring.vllm_worker import checkpoint_tensors
from tests.tiny import save_tiny


def test_checkpoints_are_ordered_by_step_not_by_name(tmp_path: Path) -> None:
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3", "checkpoint-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [c.step for c in find_checkpoints(tmp_path)] == [3, 20, 100]


def test_an_adapter_is_told_from_full_weights(tmp_path: Path) -> None:
    assert describe_checkpoint(tmp_path, 1).layout == "full"
    config = {"base_model_name_or_path": "somewhere/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = describe_checkpoint(tmp_path, 1)
    assert (found.layout, found.base) == ("adapter", "somewhere/base")


def test_an_adapter_stands_upon_the_base_it_names_or_else_upon_the_one_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    named, given = (save_tiny(tmp_path / name) for name in ("named", "given"))
    adapter = Checkpoint("adapter", 10, "adapter", str(named))
    assert base_of(adapter, str(given)) == str(named)
    assert not caplog.records
    shutil.rmtree(named)  # or a name on a hub
    assert base_of(adapter, str(given)) == base_of(adapter, str(given)) == str(given)
    [told] = caplog.messages
    assert str(named) in told
    assert base_of(adapter, None) == str(named)
    # the stage before, when that was an adapter too
    (given / "adapter_config.json").write_text("{}")
    assert base_of(adapter, str(given)) == str(named)
    with pytest.raises(CheckpointError, match="does not say upon which base"):
        base_of(replace(adapter, base=None), None)


def test_the_hash_is_of_the_tensors_however_they_are_stored(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "one")
    tensors = load_file(str(folder / "model.safetensors"))
    names = sorted(tensors)
    two = tmp_path / "two"
    two.mkdir()
    half = len(names) // 2
    where = {}
    for number, part in enumerate((names[half:], names[:half])):
        file = f"model-{number}.safetensors"
        where |= dict.fromkeys(part, file)
        save_file(
            {name: tensors[name] for name in part},
            str(two / file),
            metadata={"saved": "elsewhere"},
        )
    index = {"metadata": {}, "weight_map": where}
    (two / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"other": torch.zeros(1)}, str(two / "unrelated.safetensors"))
    assert weights_hash(two) == weights_hash(folder)
    assert tensor_shapes(two) == tensor_shapes(folder)
    changed = dict(tensors)
    changed[names[0]] = tensors[names[0]] + 1e-6
    save_file(changed, str(folder / "model.safetensors"))
    assert weights_hash(two) != weights_hash(folder)


def test_the_stored_type_is_that_of_most_bytes(tmp_path: Path) -> None:
    save_file(
        {
            "a": torch.zeros(100, dtype=torch.bfloat16),
            "b": torch.zeros(3, dtype=torch.float32),
        },
        str(tmp_path / "model.safetensors"),
    )
    assert stored_dtype(tmp_path) == "BF16"


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_file_cut_anywhere_is_named_with_its_size(tmp_path: Path, keep: int) -> None:
    folder = save_tiny(tmp_path)
    path = folder / "model.safetensors"
    content = path.read_bytes()[:keep]
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        check_weights(Checkpoint(str(folder), 1))
    assert str(path) in str(caught.value)
    assert f"{len(content)} bytes" in str(caught.value)


def test_a_tied_embedding_is_given_a_second_time(tmp_path: Path) -> None:
    tied = save_tiny(tmp_path / "tied", architecture="llama_tied")
    untied = save_tiny(tmp_path / "untied")
    assert ties_embeddings(tied)
    assert not ties_embeddings(untied)
    given = dict(checkpoint_tensors(str(tied), True))
    assert torch.equal(given["lm_head.weight"], given["model.embed_tokens.weight"])
    assert "lm_head.weight" not in dict(checkpoint_tensors(str(tied), False))
    names = [name for name, _ in checkpoint_tensors(str(untied), True)]
    assert names.count("lm_head.weight") == 1


def test_the_known_answer_check_allows_what_the_dtype_explains() -> None:
    assert compare_known([-10.0], [-10.001], [10], "float32") == pytest.approx(1e-4)
    compare_known([-10.0], [-10.2], [10], "bfloat16")
    for scored in (-10.2, float("nan")):
        with pytest.raises(Exception, match="known-answer check"):
            compare_known([-10.0], [scored], [10], "float32")


def test_weights_under_another_name_do_not_hide_a_pickle(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, str(tmp_path / "extra.safetensors"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="only pickled weights"):
        check_weights(Checkpoint(str(tmp_path), 1))


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        check_weights(Checkpoint(str(tmp_path), 1))


def test_a_missing_shard_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-1.safetensors: is gone"):
        check_weights(Checkpoint(str(tmp_path), 1))
    with pytest.raises(CheckpointError, match="Give a local folder"):
        check_weights(Checkpoint("organisation/model", 1))


def test_a_damaged_adapter_configuration_is_named_when_it_is_used(
    tmp_path: Path,
) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    found = describe_checkpoint(tmp_path, 1)
    assert found.layout == "adapter"
    with pytest.raises(CheckpointError, match=r"adapter_config.json: cannot be read"):
        check_weights(found)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_damaged_file_beside_the_weights_costs_no_other_checkpoint(
    tmp_path: Path, name: str
) -> None:
    state = {"global_step": 9, "best_global_step": 3}
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("{")
        (folder / "trainer_state.json").write_text(json.dumps(state))
    found = find_checkpoints(tmp_path)
    assert [checkpoint.step for checkpoint in found] == [3, 9]
    for checkpoint in found:
        assert is_saved(checkpoint)
        with pytest.raises(CheckpointError, match=f"{name}: cannot be read"):
            check_weights(checkpoint)


def test_a_pickled_base_of_an_adapter_is_refused(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    config = {"base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(2)}, str(adapter / "adapter_model.safetensors"))
    with pytest.raises(CheckpointError, match="only pickled weights"):
        check_weights(describe_checkpoint(adapter, 1))


@pytest.mark.parametrize("model_type", TIED_UNSAID)
def test_what_goes_unsaid_is_tied_as_transformers_has_it(model_type: str) -> None:
    assert CONFIG_MAPPING[model_type]().get_text_config().tie_word_embeddings


def test_an_output_layer_counts_unless_the_configuration_ties_it(
    tmp_path: Path,
) -> None:
    untied = save_tiny(tmp_path / "untied")
    assert "lm_head.weight" in tensor_shapes(untied)
    config = json.loads((untied / "config.json").read_text())
    (untied / "config.json").write_text(
        json.dumps({**config, "tie_word_embeddings": True})
    )
    assert "lm_head.weight" not in tensor_shapes(untied)
    # as transformers 4 wrote those that tie by default, and not those that do not
    del config["tie_word_embeddings"]
    for model_type, counts in (("gemma2", False), ("llama", True), ("own_code", True)):
        (untied / "config.json").write_text(
            json.dumps({**config, "model_type": model_type})
        )
        assert ("lm_head.weight" in tensor_shapes(untied)) is counts
    (untied / "config.json").write_text('{"text_config": [1], "model_type": [2]}')
    assert "lm_head.weight" in tensor_shapes(untied)
