"""Optimizer states of real trainers, under the names of a model's parameters."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from ldeval.dynamics.causal_lm import CausalLM, open_causal_lm
from ldeval.dynamics.optimizer_state import decayed_names, fresh_state, read_state
from ldeval.dynamics.predict import between
from ldeval.dynamics.sequences import encode
from ldeval.dynamics.training import objective, training_batch
from ldeval.dynamics.update import plan_step, torch_optimizer
from ldeval.errors import CheckpointError, TheoryError
from tests.dynamics.tiny_lm import some_probes, tiny_lm
from tests.tiny import tiny_model, tiny_tokenizer

BATCH = 2


class InOrder(Trainer):
    """Takes the examples in the order of the dataset."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def rows(lm: CausalLM, count: int) -> list[dict[str, list[int]]]:
    """Prompt and chosen, the prompt not trained on."""
    requests, _ = encode(lm, some_probes(count), kinds=("chosen",))
    return [
        {
            "input_ids": list(r.ids),
            "labels": [-100] * r.start + list(r.ids[r.start :]),
        }
        for r in requests
    ]


def collate(items: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Right-padded, padding not attended to."""
    longest = max(len(item["input_ids"]) for item in items)

    def padded(name: str, filler: int) -> torch.Tensor:
        return torch.tensor(
            [item[name] + [filler] * (longest - len(item[name])) for item in items]
        )

    ones = [[1] * len(i["input_ids"]) for i in items]
    mask = torch.tensor([row + [0] * (longest - len(row)) for row in ones])
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", -100),
        "attention_mask": mask,
    }


def trained(folder: Path, model: Any, **settings: Any) -> Path:
    """Two steps of a real trainer, a checkpoint after each."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    data = rows(tiny_lm(model=tiny_model("gpt_neox", len(tokenizer))), 2 * BATCH)
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        weight_decay=0.1,
        max_grad_norm=0.5,
        # gradients that are zero but for rounding must not become whole steps
        adam_epsilon=1e-4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=0,
        **settings,
    )
    trainer = InOrder(model, arguments, data_collator=collate, train_dataset=data)  # type: ignore[arg-type]
    trainer.train()
    return folder / "run"


@pytest.mark.parametrize("optimizer", ["adamw_torch", "rmsprop", "sgd"])
def test_a_trainers_next_step_is_foretold_from_its_checkpoint(
    tmp_path: Path, optimizer: str
) -> None:
    # without biases: that of the keys has no gradient but rounding, which a
    # normalised step makes as large as any other
    model = tiny_model("llama", len(tiny_tokenizer()))
    run = trained(tmp_path, model, optim=optimizer)
    lm = open_causal_lm(str(run / "checkpoint-1"), base=str(tmp_path / "tokenizer"))
    later = open_causal_lm(str(run / "checkpoint-2"), base=str(tmp_path / "tokenizer"))
    state = read_state(run / "checkpoint-1", lm)
    assert {g.lr for g in state.settings.values()} == {5e-3}
    batch, _ = training_batch(lm, some_probes(BATCH, skip=BATCH), objective("sft"))
    step = plan_step(lm, batch, objective("sft").loss, state, max_norm=0.5)
    assert step.clip < 1
    real = between(lm, later)
    for name, direction in step.total().items():
        scale = float(real[name].abs().max())
        assert torch.allclose(direction, real[name], rtol=0, atol=2e-3 * scale), name
    if optimizer == "adamw_torch":
        assert (state.family, state.steps) == ("adamw", 1)
        assert step.history


def test_an_adapters_checkpoint_is_read_too(tmp_path: Path) -> None:
    base = tiny_model("gpt_neox", len(tiny_tokenizer()))
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    settings = LoraConfig(
        r=2, target_modules=["query_key_value"], init_lora_weights=False
    )
    adapted = get_peft_model(base, settings)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    run = trained(tmp_path, adapted)
    first, second = (
        open_causal_lm(str(run / f"checkpoint-{n}"), base=str(tmp_path / "tokenizer"))
        for n in (1, 2)
    )
    assert all("lora" in name for name in first.trainable)
    batch, _ = training_batch(first, some_probes(BATCH, skip=BATCH), objective("sft"))
    state = read_state(run / "checkpoint-1", first)
    step = plan_step(first, batch, objective("sft").loss, state, max_norm=0.5)
    real = between(first, second)
    for name, direction in step.total().items():
        scale = float(real[name].abs().max())
        assert torch.allclose(direction, real[name], rtol=0, atol=2e-3 * scale), name


def test_biases_and_norms_are_not_decayed() -> None:
    lm = tiny_lm("gpt_neox")
    decayed = decayed_names(lm.model)
    assert not any("bias" in name or "norm" in name for name in decayed)
    state = fresh_state(lm, "adamw", 1e-3, weight_decay=0.1)
    by_decay = {n for n, g in state.settings.items() if g.weight_decay}
    assert by_decay == set(lm.trainable) & decayed


def test_an_optimizer_outside_a_trainer_is_read_in_the_models_order(
    tmp_path: Path,
) -> None:
    lm = tiny_lm()
    optimizer = torch.optim.AdamW(lm.trainable.values(), lr=1e-3)
    for parameter in lm.trainable.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    state = read_state(tmp_path, lm)
    for name, parameter in lm.trainable.items():
        held = optimizer.state[parameter]["exp_avg"]
        assert torch.equal(state.moments["exp_avg"][name], held)


# ---------------------------------------------------------------------------- refusals


class Evil:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("loaded",))


def test_a_pickle_that_could_run_code_is_not_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "optimizer.pt"
    torch.save({"state": Evil(), "param_groups": []}, path)
    with pytest.raises(CheckpointError, match="can run code"):
        read_state(path, tiny_lm())
    assert "loaded" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read"), (pickle.dumps([1]), "cannot be read"), (None, "no such")],
)
def test_a_file_that_is_no_state_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "optimizer.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_state(path, tiny_lm())


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "optimizer.pt"
    other = tiny_lm("gpt2")
    torch.save(
        torch_optimizer(other, fresh_state(other, "sgd", 1e-3)).state_dict(), path
    )
    with pytest.raises(CheckpointError, match="Is it of this checkpoint"):
        read_state(path, tiny_lm())


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        (torch.optim.Adam, {"amsgrad": True}, "amsgrad"),
        (torch.optim.RMSprop, {"momentum": 0.9}, "momentum"),
        (torch.optim.Adagrad, {}, "not known"),
        (torch.optim.NAdam, {}, "not known"),
    ],
)
def test_an_optimizer_whose_step_is_not_computed_is_refused_by_name(
    tmp_path: Path, optimizer: Any, options: dict[str, Any], message: str
) -> None:
    lm = tiny_lm()
    path = tmp_path / "optimizer.pt"
    torch.save(optimizer(lm.trainable.values(), **options).state_dict(), path)
    with pytest.raises(TheoryError, match=message):
        read_state(path, lm)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(TheoryError, match="lion"):
        fresh_state(tiny_lm(), "lion", 1e-3)  # type: ignore[arg-type]
