"""Tokens and operations of a plan: those that scoring computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ldeval.bundled import bundled_probes
from ldeval.checkpoints import describe_checkpoint
from ldeval.errors import CheckpointError
from ldeval.plan import plan_sweep
from ldeval.plan.calibration import codec_of_folder, count_probes
from ldeval.plan.shapes import (
    flops_of,
    shape_of_checkpoint,
    shape_of_config,
    shape_of_size,
)
from ldeval.plan.work import work_of
from ldeval.probes import read_probes
from ldeval.scoring.encode import codec_of
from ldeval.scoring.models import RestartedModels
from ldeval.scoring.score import score_requests
from ldeval.store import read_table, step_folder
from tests.sweeping import ARGS, sweep_settings
from tests.tiny import save_tiny

LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def test_tokens_are_those_that_scoring_stores(trained: Path, scored: Path) -> None:
    wanted = sweep_settings(trained, scored)
    plan = plan_sweep([trained / "run"], wanted)
    table = read_table(step_folder(scored, "run", 10))
    assert plan.work.asked == table.manifest.n_tokens == len(table.tokens)
    assert plan.work.responses == table.manifest.n_responses
    assert plan.work.excluded == len(table.manifest.excluded) == 5


def test_a_tokenizer_alone_encodes_as_the_open_model(trained: Path) -> None:
    for changes in ({}, {"model_args": {**ARGS, "max_length": 64}}):
        wanted = sweep_settings(trained, Path("nowhere"), **changes)
        source = RestartedModels("hf", wanted.model_args, base=None)
        folder = trained / "base"
        lm = source.open(describe_checkpoint(folder, 0))
        own = count_probes(wanted.probes, codec_of(lm), wanted, None, lm)
        alone = count_probes(
            wanted.probes, codec_of_folder(folder, wanted), wanted, None
        )
        assert alone.encoded == own.encoded
    assert any(probe.excluded for probe in own.encoded)


def test_packing_computes_fewer_tokens_than_sending_every_response_alone(
    trained: Path,
) -> None:
    wanted = sweep_settings(trained, Path("nowhere"))
    codec = codec_of_folder(trained / "base", wanted)
    encoded = count_probes(wanted.probes, codec, wanted, None).encoded
    counts = {
        layout: work_of(encoded, layout)
        for layout in ("packed", "shared", "cached", "whole")
    }
    requests = list(score_requests(encoded, None, {}))
    whole = sum(len(request.ids) for request in requests)
    assert counts["whole"].computed == counts["whole"].separate == whole
    # every prompt once, and all but the last token of each response
    once = counts["packed"].prompt + counts["packed"].asked - len(requests)
    assert counts["shared"].computed == once
    # a prompt is there again where a pack is full
    assert once <= counts["packed"].computed < 1.02 * once
    assert once < counts["cached"].computed < whole
    assert len({work.asked for work in counts.values()}) == 1


def test_what_is_counted_is_what_packs_hold(trained: Path) -> None:
    from ldeval.scoring.packed import ALIKE, packs

    wanted = sweep_settings(trained, Path("nowhere"))
    codec = codec_of_folder(trained / "base", wanted)
    encoded = count_probes(wanted.probes, codec, wanted, None).encoded
    tokens = pairs = 0
    requests = list(score_requests(encoded, None, {}))
    for pack in packs(requests, tokens=2048, alike=ALIKE["cpu"]):
        tokens += pack.ids.numel()
        for part in pack.segments:
            prompt = part.stop - part.start
            pairs += prompt**2
            masks = [(branch.places, branch.allowed) for branch in part.branches]
            pairs += sum(len(places) * allowed.numel() for places, allowed in masks)
    work = work_of(encoded, "packed")
    assert (work.computed, work.pairs) == (tokens, pairs)


@pytest.mark.parametrize("architecture", ["llama", "llama_tied", "gpt2", "qwen2"])
def test_operations_are_those_that_torch_counts(
    tmp_path: Path, architecture: str
) -> None:
    from ldeval.scoring import hf

    folder = save_tiny(tmp_path / "model", architecture=architecture)
    some = read_probes(bundled_probes()).limited(1, 1)
    wanted = sweep_settings(tmp_path, tmp_path, base=str(folder), probes=some)
    codec = codec_of_folder(folder, wanted)
    encoded = count_probes(wanted.probes, codec, wanted, None).encoded
    requests = list(score_requests(encoded, None, {}))
    source = RestartedModels("hf", ARGS, base=None)
    lm = source.open(describe_checkpoint(folder, 0))
    # kernels of fused attention are not in torch's count
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        found = dict(hf.score(lm, requests, top_k=20, layout="packed"))
    assert len(found) == len(requests)
    flops = flops_of(shape_of_checkpoint(folder), work_of(encoded, "packed"))
    assert flops.total == pytest.approx(counter.get_total_flops(), rel=0.002)
    assert min(flops.matrices, flops.attention, flops.output) > 0.02 * flops.total


@pytest.mark.parametrize(
    "architecture", ["llama", "llama_tied", "gpt2", "qwen2", "gpt_neox", "gemma2"]
)
def test_a_configuration_has_the_shape_of_its_tensors(
    tmp_path: Path, architecture: str
) -> None:
    folder = save_tiny(tmp_path / "model", architecture=architecture)
    tensors = shape_of_checkpoint(folder)
    config = shape_of_config(folder / "config.json")
    assert replace(config, name="", origin="tensors") == replace(tensors, name="")


def test_llama_3_70b_has_its_parameters_by_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_70B))
    shape = shape_of_config(path)
    assert shape.parameters == 70_553_706_496
    made_up = shape_of_size(70_553_706_496, 128_256)
    assert made_up.layers == shape.layers
    assert made_up.hidden == pytest.approx(shape.hidden, rel=0.01)
    assert made_up.matrix_parameters == pytest.approx(shape.matrix_parameters, rel=0.01)


MIXTRAL_8X7B = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
}
GEMMA_2_2B = {  # as transformers 4 wrote it: what is tied by default goes unsaid
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
}
APERTUS_70B = {  # no gate in its feed-forward layers
    "model_type": "apertus",
    "hidden_size": 8192,
    "intermediate_size": 43008,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 131072,
}


@pytest.mark.parametrize(
    ("config", "billions", "in_matrices", "width"),
    [
        (
            MIXTRAL_8X7B,
            46.703,
            32 * (41.94304 + 2 * 176.160768 + 0.032768) / 1000,
            2 * 14336,
        ),
        (GEMMA_2_2B, 2.614, 26 * (14.155776 + 63.700992) / 1000, 9216),
        (APERTUS_70B, 70.60, 80 * (150.994944 + 704.643072) / 1000, 43008),
    ],
)
def test_a_configuration_has_the_parameters_of_its_architecture(
    tmp_path: Path,
    config: dict[str, Any],
    billions: float,
    in_matrices: float,
    width: int,
) -> None:
    """By hand, in millions a layer: attention; feed-forward or two experts; a gate."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    shape = shape_of_config(path)
    assert shape.parameters == pytest.approx(billions * 1e9, rel=5e-4)
    assert shape.matrix_parameters == pytest.approx(in_matrices * 1e9, rel=1e-6)
    assert shape.intermediate == width


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": None}, "no hidden_size"),
        ({"model_type": "none_such"}, "none_such"),
    ],
)
def test_a_configuration_of_no_model_is_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA_70B, **change}))
    with pytest.raises(CheckpointError, match=reason):
        shape_of_config(path)


def test_of_experts_those_are_counted_that_a_token_goes_through(
    tmp_path: Path,
) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=1,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    shape = shape_of_checkpoint(tmp_path)
    attention = 32 * 32 * 2 + 32 * 16 * 2
    router, expert = 32 * 4, 3 * 32 * 64
    assert shape.matrix_parameters == 2 * (attention + router + expert)
    assert shape.parameters > 2 * 4 * expert
