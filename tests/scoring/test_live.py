"""A model in training is scored as its checkpoint would be, and is left as it was."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldeval.checkpoints import stored_dtype, weights_hash
from ldeval.errors import ScoringError, UnsupportedBackendError
from ldeval.scoring.live import (
    LiveModel,
    check_live,
    live_weights,
    undisturbed,
    unwrapped,
)
from ldeval.scoring.score import score_probes
from tests.scoring.conftest import open_hf
from tests.tiny import ARCHITECTURES, save_tiny, tiny_model, tiny_tokenizer
from tests.training import short_probes

PROBES = short_probes(3, 1)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def scores(lm: Any) -> dict[Any, float]:
    found = score_probes(
        lm, PROBES.probes, apply_chat_template=True, progress=False
    ).scores
    return {key: score.logprob_sum for key, score in found.items()}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "bloom", "mamba"])
def test_scores_are_those_of_the_saved_checkpoint(
    tmp_path: Path, tokenizer: Any, architecture: str
) -> None:
    model = tiny_model(architecture, len(tokenizer), 3)
    model.train()
    with undisturbed(model):
        model.eval()
        live = scores(LiveModel(model, tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    saved = scores(open_hf(tmp_path))
    assert live.keys() == saved.keys()
    for key, value in live.items():
        assert value == pytest.approx(saved[key], abs=1e-3), key


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_hash_is_that_of_the_saved_checkpoint(
    tmp_path: Path, tokenizer: Any, architecture: str
) -> None:
    model = tiny_model(architecture, len(tokenizer), 5)
    found = live_weights(model)
    model.save_pretrained(tmp_path)
    assert found.digest == weights_hash(tmp_path)
    assert found.dtype == stored_dtype(tmp_path)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert live_weights(model).digest != found.digest


def test_the_hash_of_bfloat16_and_of_an_adapter_are_those_of_their_files(
    tmp_path: Path, tokenizer: Any
) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama", len(tokenizer), 5).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "low")
    assert live_weights(model).digest == weights_hash(tmp_path / "low")
    assert live_weights(model).dtype == "BF16"
    adapted = get_peft_model(
        tiny_model("llama", len(tokenizer), 5),
        LoraConfig(r=2, target_modules=["q_proj"]),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    assert live_weights(adapted).digest == weights_hash(tmp_path / "adapter")


def test_nothing_that_training_goes_on_with_is_changed(tokenizer: Any) -> None:
    model = tiny_model("llama", len(tokenizer))
    model.gradient_checkpointing_enable()
    model.config.use_cache = True
    model.train()
    frozen = model.model.layers[0].mlp
    frozen.eval()  # as a trainer may hold one part
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    torch.rand(5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attention = model.config._attn_implementation
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state())
    with undisturbed(model):
        model.eval()
        scores(LiveModel(model, tokenizer))
        torch.rand(7), random.random(), np.random.rand()
        model.config.use_cache = False
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2][1])
    assert model.training
    assert model.model.layers[1].mlp.training
    assert not frozen.training
    assert not any(part.training for part in frozen.modules())
    assert model.is_gradient_checkpointing
    assert model.config.use_cache is True
    assert model.config._attn_implementation == attention
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_gradients_that_wait_for_a_step_are_kept(tokenizer: Any) -> None:
    model = tiny_model("llama", len(tokenizer))
    ids = torch.randint(0, 50, (1, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    waiting = {name: p.grad.clone() for name, p in model.named_parameters()}
    with undisturbed(model):
        model.eval()
        scores(LiveModel(model, tokenizer))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, waiting[name])
    model(input_ids=ids, labels=ids).loss.backward()


def test_a_failure_inside_leaves_the_model_as_it_was(tokenizer: Any) -> None:
    model = tiny_model("llama", len(tokenizer))
    model.train()
    lm = LiveModel(model, tokenizer)
    with pytest.raises(TypeError), undisturbed(model):
        lm.model.eval()(input_ids="no ids")
    assert all(module.training for module in model.modules())


def test_a_scoring_that_writes_to_the_weights_is_refused(tokenizer: Any) -> None:
    model = tiny_model("llama", len(tokenizer))
    with (
        pytest.raises(ScoringError, match=r"embed_tokens.weight"),
        undisturbed(model),
        torch.no_grad(),
    ):
        model.model.embed_tokens.weight.mul_(1.0)


def test_a_buffer_that_was_replaced_is_put_back(tokenizer: Any) -> None:
    model = tiny_model("llama", len(tokenizer))
    rotary = model.model.rotary_emb
    before = rotary.inv_freq
    with undisturbed(model):
        rotary.register_buffer("inv_freq", before.clone() * 2, persistent=False)
    assert rotary.inv_freq is before


def test_mixed_precision_training_is_scored_in_the_weights_own(
    tmp_path: Path, tokenizer: Any
) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    folder = save_tiny(tmp_path / "m", tokenizer=tokenizer)
    model = open_hf(folder).model
    expected = scores(open_hf(folder))
    AcceleratorState._reset_state(True)  # of the models opened above
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    AcceleratorState._reset_state(True)
    forward = prepared.forward
    with undisturbed(prepared):
        prepared.eval()
        live = scores(LiveModel(unwrapped(prepared), tokenizer))
    assert prepared.forward == forward
    with torch.no_grad():
        rough = prepared(input_ids=torch.arange(9)[None]).logits
        exact = open_hf(folder).model(input_ids=torch.arange(9)[None]).logits
    assert not torch.allclose(rough, exact, atol=1e-4), "autocast is back"
    for key, value in live.items():
        assert value == pytest.approx(expected[key], abs=1e-3)


def test_sharded_models_are_refused_by_name(tokenizer: Any) -> None:
    model = tiny_model("llama", len(tokenizer))
    check_live(model)

    class FullyShardedDataParallel(torch.nn.Module):
        """What FSDP wraps modules in, by its name."""

    model.model.layers[0] = FullyShardedDataParallel()
    with pytest.raises(UnsupportedBackendError, match=r"FSDP.*sweep --watch"):
        check_live(model)
    partitioned = tiny_model("llama", len(tokenizer))
    next(partitioned.parameters()).ds_id = 0
    with pytest.raises(UnsupportedBackendError, match="ZeRO-3"):
        check_live(partitioned)
    with pytest.raises(UnsupportedBackendError, match="not a causal language model"):
        check_live(torch.nn.Linear(2, 2))
