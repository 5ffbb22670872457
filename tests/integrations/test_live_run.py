"""One live scoring at a time, without a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ldeval.checkpoints import weights_hash
from ldeval.errors import MismatchError, StoreError
from ldeval.integrations.live_run import LiveRun, LiveSettings
from ldeval.records import Manifest
from ldeval.store import list_steps, read_manifest, step_folder
from tests.tiny import save_tiny
from tests.training import short_probes


def test_scores_of_a_run_that_was_lost_while_they_were_made_are_not_written(
    tmp_path: Path,
) -> None:
    folder = save_tiny(tmp_path / "model")
    live = LiveRun(LiveSettings(short_probes(1, 1), tmp_path, "run"))
    asked = []

    def still_held() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise StoreError("is another's")

    live._still_held = still_held
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(StoreError, match="is another's"):
        live.score(model, AutoTokenizer.from_pretrained(folder), 1, "nowhere")
    assert list_steps(tmp_path / "run") == []
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "trained.jsonl").write_text("")
    with pytest.raises(StoreError, match="is another's"):
        live.keep_record(tmp_path)
    assert not (tmp_path / "run" / "trained.jsonl").exists()


def adapted(base: Path, *layers: str) -> Any:
    network = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.bfloat16)
    return get_peft_model(network, LoraConfig(r=4, target_modules=list(layers)))


def scored_live(network: Any, base: Path, store: Path, step: int) -> Manifest:
    """Probes of a run that begins, or goes on, at a step."""
    settings = LiveSettings(short_probes(2, 2), store, "run", apply_chat_template=True)
    live = LiveRun(settings)
    live.begin(network, step)
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    live.score(network, tokenizer, step, f"checkpoint-{step}")
    live.end()
    return read_manifest(step_folder(store, "run", step))


def test_training_that_goes_on_with_an_adapter_starts_from_it(
    model: Path, tmp_path: Path
) -> None:
    """As DPO of an adapter after its SFT: ``initial`` responses must be of the adapter,
    and a low precision is not held against the base without it."""
    network = adapted(model, "q_proj", "v_proj")
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    network.save_pretrained(tmp_path / "sft")
    first = scored_live(network, model, tmp_path / "store", 0)
    origin = weights_hash(tmp_path / "sft")
    assert (first.weights_hash, first.settings["origin_weights"]) == (origin, origin)
    assert first.noise_floor is not None
    assert first.noise_floor.nats_per_token < 0.1
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    later = scored_live(network, model, tmp_path / "store", 3)
    assert later.settings == first.settings


@pytest.mark.parametrize("layer", ["q_proj", "embed_tokens"])
def test_a_new_adapter_has_the_scores_of_its_base(
    model: Path, tmp_path: Path, layer: str
) -> None:
    """Of an embedding it is the other factor that begins as zeros."""
    network = adapted(model, layer)
    first = scored_live(network, model, tmp_path / "store", 0)
    base = weights_hash(model)
    assert (first.weights_hash, first.settings["origin_weights"]) == (base, base)


def test_training_is_gone_on_with_from_a_model_loaded_from_its_checkpoint(
    tmp_path: Path,
) -> None:
    """Where it began is known from its first scores; other settings are refused by
    name."""
    folder = save_tiny(tmp_path / "base")
    later = save_tiny(tmp_path / "checkpoint-3", seed=1)
    store = tmp_path / "store"
    first = scored_live(AutoModelForCausalLM.from_pretrained(folder), folder, store, 0)
    network = AutoModelForCausalLM.from_pretrained(later)
    found = scored_live(network, later, store, 3)
    assert found.settings == first.settings
    assert found.settings["origin_weights"] == weights_hash(folder)
    other = LiveRun(LiveSettings(short_probes(2, 2), store, "run"))
    with pytest.raises(
        MismatchError,
        match=r"settings apply_chat_template=True, this run has "
        r"apply_chat_template=False\.",
    ):
        other.begin(network, 3)
    other.end()
