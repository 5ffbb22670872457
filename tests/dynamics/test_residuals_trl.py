"""Residuals against the trainers of TRL: same batch, same parameter gradients.

Each trainer computes its loss on a batch of its own making and backpropagates it.
Beside it, our residuals are put in at the logits of an untouched copy of the model.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from ldeval.dynamics.residuals import (
    CDPO,
    DPO,
    IGNORED,
    IPO,
    KTO,
    ORPO,
    SFT,
    SPPO,
    Hinge,
    Labelled,
    Loss,
    SimPO,
    residuals,
    score,
)
from tests.tiny import tiny_model, tiny_tokenizer

PAIRS = [
    {
        "prompt": f"Question {n}: what is rice?",
        "chosen": " It is a grain" + " of some kind" * n,
        "rejected": " Nobody knows" + " that" * (3 - n),
    }
    for n in range(4)
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer(template=None)


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        **more,
    }


def models(tokenizer: Any) -> tuple[Any, Any, Any]:
    """A policy, an untouched copy of it, and a reference that differs."""
    model = tiny_model("llama", len(tokenizer), 0)
    reference = tiny_model("llama", len(tokenizer), 0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in reference.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return model, copy.deepcopy(model), reference


def gradients(model: Any) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found: Any, wanted: Any) -> None:
    ours, theirs = gradients(found), gradients(wanted)
    assert ours.keys() == theirs.keys()
    scale = max(float(g.abs().max()) for g in theirs.values())
    assert scale > 1e-6
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() < 3e-5 * scale, name


def logits_of(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=mask).logits[:, :-1]


def labels_of(ids: Tensor, completion: Tensor) -> Tensor:
    return ids.masked_fill(completion == 0, IGNORED)[:, 1:]


def halves(logits: Tensor, labels: Tensor) -> tuple[Labelled, Labelled]:
    middle = len(logits) // 2
    return (
        Labelled(logits[:middle].detach(), labels[:middle]),
        Labelled(logits[middle:].detach(), labels[middle:]),
    )


def push(
    loss: Loss, model: Any, reference: Any, ids: Tensor, mask: Tensor, labels: Tensor
) -> None:
    """Put the residuals of chosen-then-rejected rows in at the logits, mean over B."""
    logits = logits_of(model, ids, mask)
    chosen, rejected = halves(logits, labels)
    with torch.no_grad():
        sums = score(logits_of(reference, ids, mask), labels)[0].chunk(2)
    found = residuals(
        loss,
        chosen=chosen,
        rejected=rejected,
        ref_chosen=sums[0],
        ref_rejected=sums[1],
    )
    rejected_part = found.rejected
    if rejected_part is None:
        rejected_part = torch.zeros_like(rejected.logits)
    assert found.chosen is not None
    batch = len(labels) // 2
    logits.backward(torch.cat([found.chosen, rejected_part]) / batch)


DPO_FORMS: dict[str, tuple[str, Loss]] = {
    "DPO is sigmoid": ("sigmoid", DPO(0.3)),
    "Hinge is hinge": ("hinge", Hinge(0.3)),
    "IPO on means is ipo": ("ipo", IPO(0.3, mean=True)),
    "SPPO is sppo_hard": ("sppo_hard", SPPO(1 / 0.3)),
}


def dpo_step(
    tokenizer: Any, folder: Path, loss_type: str, **more: Any
) -> tuple[Any, Any, Any, dict[str, Tensor]]:
    """TRL's gradients in the first model; the copy, the reference and the batch."""
    from trl import DPOConfig, DPOTrainer

    model, untouched, reference = models(tokenizer)
    kept = copy.deepcopy(reference)
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(**settings(folder, beta=0.3, loss_type=loss_type, **more)),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch).backward()
    return trainer.model, untouched, kept, batch


@pytest.mark.parametrize("name", DPO_FORMS)
def test_parameter_gradients_are_those_of_trls_dpo_trainer(
    name: str, tokenizer: Any, tmp_path: Path
) -> None:
    loss_type, loss = DPO_FORMS[name]
    theirs, ours, reference, batch = dpo_step(tokenizer, tmp_path, loss_type)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = labels_of(ids, batch["completion_mask"])
    push(loss, ours, reference, ids, mask, labels)
    assert_same(ours, theirs)


def test_trls_sigmoid_ignores_the_smoothing_of_cdpo(
    tokenizer: Any, tmp_path: Path
) -> None:
    theirs, ours, reference, batch = dpo_step(
        tokenizer, tmp_path, "sigmoid", label_smoothing=0.3
    )
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = labels_of(ids, batch["completion_mask"])
    smoothed = copy.deepcopy(ours)
    push(DPO(0.3), ours, reference, ids, mask, labels)
    assert_same(ours, theirs)
    push(CDPO(0.3, 0.3), smoothed, reference, ids, mask, labels)
    with pytest.raises(AssertionError):
        assert_same(smoothed, theirs)


def test_sft_over_the_batchs_tokens_is_trls_sft(tokenizer: Any, tmp_path: Path) -> None:
    theirs, ours, reference, batch = dpo_step(tokenizer, tmp_path, "sft")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = labels_of(ids, batch["completion_mask"])
    tokens = int((labels[: len(labels) // 2] != IGNORED).sum())
    # TRL's mean is over tokens, so the mean over examples has to be taken back
    push(SFT(tokens / 4), ours, reference, ids, mask, labels)
    assert_same(ours, theirs)


def test_parameter_gradients_are_those_of_trls_kto_trainer(
    tokenizer: Any, tmp_path: Path
) -> None:
    from trl import KTOConfig, KTOTrainer

    model, ours, reference = models(tokenizer)
    kept = copy.deepcopy(reference)
    rows = [
        {
            "prompt": pair["prompt"],
            "completion": pair["chosen" if i % 2 else "rejected"],
            "label": bool(i % 2),
        }
        for i, pair in enumerate(PAIRS)
    ]
    weights = {"desirable_weight": 0.8, "undesirable_weight": 1.4}
    trainer = KTOTrainer(
        model=model,
        ref_model=reference,
        args=KTOConfig(**settings(tmp_path, beta=0.3, **weights)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch).backward()
    z0 = trainer._metrics["train"]["kl"][-1]
    loss = KTO(0.3, z0, 0.8, 1.4)
    order = torch.argsort(torch.as_tensor(batch["label"]).int(), descending=True)
    ids, mask = batch["input_ids"][order], batch["attention_mask"][order]
    labels = labels_of(ids, batch["completion_mask"][order])
    push(loss, ours, kept, ids, mask, labels)
    for parameter in ours.parameters():
        parameter.grad /= 2  # a pair counts as two examples there
    assert_same(ours, trainer.model)


def concatenated(trainer: Any, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and shifted labels of the rows, chosen first."""
    rows = trainer.concatenated_inputs(
        batch,
        is_encoder_decoder=False,
        device="cpu",
        padding_value=getattr(trainer, "pad_token_id", None)
        or getattr(trainer, "padding_value", 0),
    )
    labels = rows["concatenated_labels"][:, 1:]
    return rows["concatenated_input_ids"], rows["concatenated_attention_mask"], labels


def test_parameter_gradients_are_those_of_trls_simpo(
    tokenizer: Any, tmp_path: Path
) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    model, ours, reference = models(tokenizer)
    more = {"beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0, "loss_type": "simpo"}
    trainer = CPOTrainer(
        model=model,
        args=CPOConfig(**settings(tmp_path, **more)),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch).backward()
    ids, mask, labels = concatenated(trainer, batch)
    push(SimPO(2.0, 0.5), ours, reference, ids, mask, labels)
    assert_same(ours, trainer.model)


def test_parameter_gradients_are_those_of_trls_orpo_but_for_the_prompts_likelihood(
    tokenizer: Any, tmp_path: Path
) -> None:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    model, ours, reference = models(tokenizer)
    trainer = ORPOTrainer(
        model=model,
        args=ORPOConfig(**settings(tmp_path, beta=0.4)),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch).backward()
    ids, mask, labels = concatenated(trainer, batch)
    push(ORPO(0.4), ours, reference, ids, mask, labels)
    with pytest.raises(AssertionError):
        assert_same(ours, trainer.model)
    # exchange the likelihood of chosen for TRL's, which covers prompts as well
    for row in range(4):
        tokens = int((labels[row] != IGNORED).sum())
        part = labels[[row, row + 4]]
        push(
            SFT(-tokens * 4),
            ours,
            reference,
            ids[[row, row + 4]],
            mask[[row, row + 4]],
            part,
        )
    whole = ids.masked_fill(mask == 0, IGNORED)[:, 1:]
    tokens = int((whole[:4] != IGNORED).sum())
    push(SFT(tokens / 4), ours, reference, ids, mask, whole)
    assert_same(ours, trainer.model)
