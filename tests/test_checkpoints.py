"""Finding checkpoints and reading their weight files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldeval.checkpoints import (
    check_weights,
    describe_checkpoint,
    find_checkpoints,
    stored_dtype,
    tensor_shapes,
    weights_hash,
)
from ldeval.errors import CheckpointError
from ldeval.records import Checkpoint
from ldeval.scoring.models import compare_known, ties_embeddings
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


def test_the_hash_is_of_the_tensors_however_they_are_stored(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "one")
    tensors = load_file(str(folder / "model.safetensors"))
    names = sorted(tensors)
    two = tmp_path / "two"
    two.mkdir()
    half = len(names) // 2
    for number, part in enumerate((names[half:], names[:half])):
        save_file(
            {name: tensors[name] for name in part},
            str(two / f"part-{number}.safetensors"),
            metadata={"saved": "elsewhere"},
        )
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
