"""Residuals against autograd, finite differences and each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldeval.dynamics.residuals import (
    CDPO,
    DPO,
    IGNORED,
    IPO,
    KTO,
    LOSSES,
    NPO,
    ORPO,
    SFT,
    SPPO,
    Hinge,
    Labelled,
    Loss,
    PaperIPO,
    PaperSLiC,
    PaperSPPO,
    Scores,
    SimPO,
    SLiC,
    residual,
    residuals,
    score,
)
from ldeval.errors import TheoryError

EXACT: dict[str, Loss] = {
    "sft": SFT(),
    "sft_mean": SFT(tokens=37.0),
    "dpo": DPO(0.3),
    "cdpo": CDPO(0.3, 0.2),
    "ipo": IPO(0.3),
    "ipo_mean": IPO(0.3, mean=True),
    "hinge": Hinge(0.3),
    "slic": SLiC(1.5, 0.2),
    "simpo": SimPO(2.0, 0.5),
    "sppo": SPPO(4.0),
    "kto": KTO(0.3, 0.7, 1.5, 0.8),
    "kto_negative_z0": KTO(0.3, -0.7),
    "orpo": ORPO(0.4),
    "npo": NPO(0.3),
}
PAPER = {"ipo_paper": PaperIPO(), "slic_paper": PaperSLiC(), "sppo_paper": PaperSPPO()}
FIELDS = ("chosen", "rejected", "regulariser")


def batch(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Three pairs of unequal lengths over 11 tokens, with their prompts ignored."""
    generator = torch.Generator().manual_seed(seed)

    def part(length: int) -> Labelled:
        logits = 2 * torch.randn(3, length, 11, generator=generator, dtype=dtype)
        labels = torch.randint(0, 11, (3, length), generator=generator)
        for row, start in enumerate((0, 1, 2)):
            labels[row, :start] = IGNORED
        labels[0, length - 1] = IGNORED
        return Labelled(logits, labels)

    parts = {name: part(n) for name, n in zip(FIELDS, (5, 7, 4), strict=True)}
    reference = {
        f"ref_{name}": score(parts[name].logits, parts[name].labels)[0]
        + torch.randn(3, generator=generator, dtype=torch.float64)
        for name in ("chosen", "rejected")
    }
    return {**parts, **reference}


def loss_of(loss: Loss, logits: dict[str, Tensor], given: dict[str, Any]) -> Tensor:
    """[3] the loss, from logits; an independent way to the scores."""
    sums: dict[str, Tensor] = {}
    for name in FIELDS:
        labels = given[name].labels
        kept = labels != IGNORED
        log_p = logits[name] - torch.logsumexp(logits[name], -1, keepdim=True)
        rows = [
            sum(log_p[b, i, labels[b, i]] for i in range(len(labels[b])) if kept[b, i])
            for b in range(len(labels))
        ]
        sums[name] = torch.stack(rows)
        if name != "regulariser":
            sums[f"n_{name}"] = kept.sum(1).double()
    reference = {name: given[f"ref_{name}"] for name in ("chosen", "rejected")}
    return loss.value(
        Scores(
            **sums, ref_chosen=reference["chosen"], ref_rejected=reference["rejected"]
        )
    )


@pytest.mark.parametrize("name", EXACT)
def test_residuals_are_the_gradient_that_autograd_finds(name: str) -> None:
    for seed in range(30):
        given = batch(seed)
        logits = {n: given[n].logits.clone().requires_grad_() for n in FIELDS}
        loss_of(EXACT[name], logits, given).sum().backward()
        found = residuals(EXACT[name], **given)
        for part in FIELDS:
            wanted = logits[part].grad
            value = getattr(found, part)
            if value is None:
                assert wanted is None, part
            else:
                assert torch.allclose(value, wanted, rtol=1e-10, atol=1e-12), part


@pytest.mark.parametrize("name", EXACT)
def test_residuals_are_the_gradient_that_finite_differences_find(name: str) -> None:
    given = batch(7)
    found = residuals(EXACT[name], **given)
    generator = torch.Generator().manual_seed(1)
    logits = {n: given[n].logits for n in FIELDS}
    for _ in range(5):
        direction = {
            n: torch.randn(logits[n].shape, generator=generator, dtype=torch.float64)
            for n in FIELDS
        }
        ends = [
            loss_of(
                EXACT[name],
                {n: logits[n] + sign * 1e-5 * direction[n] for n in FIELDS},
                given,
            ).sum()
            for sign in (1, -1)
        ]
        slope = sum(
            (getattr(found, n) * direction[n]).sum()
            for n in FIELDS
            if getattr(found, n) is not None
        )
        assert torch.isclose((ends[0] - ends[1]) / 2e-5, slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [*EXACT, *PAPER])
def test_residuals_sum_to_zero_over_the_vocabulary_and_skip_prompts(name: str) -> None:
    largest = 0.0
    for seed in range(10):
        given = batch(seed)
        found = residuals({**EXACT, **PAPER}[name], **given)
        for part in FIELDS:
            value = getattr(found, part)
            if value is not None:
                largest = max(largest, float(value.abs().max()))
                assert value.sum(-1).abs().max() < 1e-12
                assert not value[given[part].labels == IGNORED].any()
    assert largest > 1e-3  # a hinge is 0 for some pairs, not for all


def test_every_loss_has_a_name_and_exact_ones_are_tested() -> None:
    tested = {type(loss) for loss in (*EXACT.values(), *PAPER.values())}
    assert set(LOSSES.values()) == tested


def test_the_papers_forms_are_no_gradients_and_say_so() -> None:
    given = Scores(
        chosen=torch.zeros(1),
        rejected=torch.zeros(1),
        ref_chosen=torch.zeros(1),
        ref_rejected=torch.zeros(1),
    )
    for loss in PAPER.values():
        with pytest.raises(TheoryError, match="approximation"):
            loss.value(given)


# ------------------------------------------------------------------ what the forms say

nats = st.floats(-40, 40)


def pair(chosen: float, rejected: float) -> Scores:
    """Scores under a reference that gives 0 to both; two and three tokens."""

    def vector(value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64)

    return Scores(
        chosen=vector(chosen),
        rejected=vector(rejected),
        ref_chosen=vector(0.0),
        ref_rejected=vector(0.0),
        n_chosen=vector(2.0),
        n_rejected=vector(3.0),
        regulariser=vector(chosen),
    )


@given(nats, nats, st.floats(0.01, 2.0))
def test_cdpo_without_smoothing_is_dpo(up: float, down: float, beta: float) -> None:
    scores = pair(up, down)
    found, wanted = CDPO(beta, 0.0).pulls(scores), DPO(beta).pulls(scores)
    assert found.chosen == wanted.chosen
    assert found.rejected == wanted.rejected


@given(nats, nats, st.floats(0.05, 2.0))
def test_exact_ipo_turns_round_at_its_target_and_the_papers_one_nat_later(
    up: float, down: float, beta: float
) -> None:
    scores, margin = pair(up, down), up - down
    exact = float(IPO(beta).pulls(scores).chosen)
    paper = float(PaperIPO(beta).pulls(scores).chosen)
    assert (exact > 0) == (margin < 1 / (2 * beta)) or abs(exact) < 1e-9
    assert (paper > 0) == (margin < 1 + 1 / (2 * beta)) or abs(paper) < 1e-9


@given(nats, nats, st.floats(0.1, 20.0))
def test_sppo_pushes_rejected_down_until_its_target_not_up(
    up: float, down: float, eta: float
) -> None:
    exact, paper = SPPO(eta).pulls(pair(up, down)), PaperSPPO(eta).pulls(pair(up, down))
    assert exact.chosen == -paper.chosen
    assert exact.rejected == -paper.rejected
    assert (float(exact.rejected) < 0) == (down > -eta / 2) or abs(
        down + eta / 2
    ) < 1e-9


@given(st.floats(-40, -1e-9), st.floats(-40, -1e-9))
def test_slic_is_the_papers_without_the_factor_of_dpo(up: float, down: float) -> None:
    scores = pair(up, down)
    exact, paper = SLiC(1.0, 0.1).pulls(scores), PaperSLiC(1.0, 0.1).pulls(scores)
    factor = float(DPO(0.1).pulls(scores).chosen)
    assert float(paper.chosen) == pytest.approx(factor * float(exact.chosen))
    assert float(exact.chosen) == float(up - down < 1.0)
    assert float(exact.regulariser) == float(paper.regulariser) == 0.1


@given(st.floats(-60, -1e-12), st.floats(-60, -1e-12))
@settings(max_examples=300)
def test_orpo_stays_finite_from_near_certain_to_hopeless(
    up: float, down: float
) -> None:
    found = ORPO(0.5).pulls(pair(up, down))
    assert torch.isfinite(found.chosen).all()
    assert torch.isfinite(found.rejected).all()
    assert float(found.chosen) >= 0.5 > 0 >= float(found.rejected)


def test_kto_takes_either_half_alone() -> None:
    both = pair(-3.0, -5.0)
    loss = KTO(0.2, 0.4, 1.3, 0.7)
    whole = loss.pulls(both)
    up = loss.pulls(replace(both, rejected=None))
    down = loss.pulls(replace(both, chosen=None))
    assert up.chosen == whole.chosen
    assert up.rejected is None
    assert down.rejected == whole.rejected
    halves = [replace(both, rejected=None), replace(both, chosen=None)]
    assert sum(float(loss.value(h)) for h in halves) == pytest.approx(
        float(loss.value(both))
    )
    with pytest.raises(TheoryError, match=r"Scores\.chosen or Scores\.rejected"):
        loss.pulls(Scores())


def test_over_a_shared_beginning_chosen_and_rejected_cancel_but_for_two_tokens() -> (
    None
):
    """Before the first token that differs G⁺ = −G⁻; at it only its two labels stay."""
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(1, 4, 9, generator=generator, dtype=torch.float64)
        chosen, rejected = torch.tensor([[3, 1, 5, 0]]), torch.tensor([[3, 1, 7, 2]])
        zero = torch.zeros(1, dtype=torch.float64)
        for loss in (DPO(0.3), CDPO(0.3, 0.2), IPO(0.3)):
            found = residuals(
                loss,
                chosen=Labelled(logits, chosen),
                rejected=Labelled(logits, rejected),
                ref_chosen=zero,
                ref_rejected=zero,
            )
            assert found.chosen is not None
            assert found.rejected is not None
            both = (found.chosen + found.rejected)[0]
            assert both[:2].abs().max() < 1e-12
            assert both[2].abs().sum() == pytest.approx(2 * abs(float(both[2, 5])))
            assert float(both[2, 5]) == pytest.approx(-float(both[2, 7]))
            assert both[3].abs().max() > 1e-3


def test_a_missing_score_is_named() -> None:
    given = batch(0)
    del given["ref_rejected"]
    with pytest.raises(TheoryError, match=r"DPO needs Scores\.ref_rejected"):
        residuals(DPO(), **given)
    with pytest.raises(TheoryError, match=r"SFT needs Scores\.chosen"):
        residuals(SFT(), rejected=given["rejected"])


def test_float32_logits_give_float32_residuals_close_to_float64() -> None:
    given = batch(5)
    wanted = residuals(DPO(), **given)
    single = {
        n: replace(v, logits=v.logits.float()) if isinstance(v, Labelled) else v
        for n, v in given.items()
    }
    found = residuals(DPO(), **single)
    assert found.chosen is not None
    assert wanted.chosen is not None
    assert found.chosen.dtype == torch.float32
    assert torch.allclose(found.chosen.double(), wanted.chosen, atol=1e-6)


def test_logits_are_left_as_they_were() -> None:
    logits = torch.randn(2, 3, 5)
    before = logits.clone()
    residual(logits, torch.tensor([[1, 2, 3], [IGNORED, 0, 4]]), torch.ones(2))
    assert torch.equal(logits, before)
