"""Small worlds to look at: the squeeze panels A–E and the residuals of every loss.

The squeeze panels follow the toy notebook that the paper's appendix E describes
(arXiv 2407.10490; the draws here are numpy's, so their numbers are not): a fixed input
x, p = softmax(Wᵀx), one step W ← W + η₋ x(p − e₋)ᵀ − η₊ x(p − e₊)ᵀ, which moves the
logits by s = η‖x‖² times the residual.

The residual panels follow the paper's figure 2: a prediction with a few likely tokens
and a long tail, a chosen and a rejected token, and −G, what each loss asks of the
logits. There are two rejected tokens: one that the model likes (on-policy) and one
that it would never say (off-policy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ldeval.dynamics.first_order import log_softmax
from ldeval.dynamics.residuals import (
    CDPO,
    DPO,
    IPO,
    KTO,
    NPO,
    ORPO,
    SFT,
    SPPO,
    Labelled,
    Loss,
    PaperIPO,
    PaperSLiC,
    PaperSPPO,
    SimPO,
    SLiC,
    residuals,
    score,
)
from ldeval.dynamics.squeezing import Pressure, stepped, threshold
from ldeval.errors import TheoryError
from ldeval.records import FloatArray, ResidualPanel, SqueezePanel

SEED = 17
"""A draw in which class 11 is a peak, not the highest, and 42 lies in a valley."""
PEAKS = range(5, 13)
"""The classes that a peaked prediction likes."""


# ----------------------------------------------------------------- squeeze panels A–E


def squeeze_panels(seed: int = SEED) -> tuple[SqueezePanel, ...]:
    """A positive; negatives on flat, on a peak, in a valley; and one of 1,000.

    D's positive and negative gradient are equally strong on one input, so everything
    but their two classes cancels: z moves by s(e₊ − e₋), and all other classes change
    alike. D0, the negative alone, shows what the paper's panel D leaves out.

    Raises:
        TheoryError: the seed is below 0.
    """
    if seed < 0:
        raise TheoryError(f"seed {seed}: give 0 or more.")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(4)
    plain = x @ rng.standard_normal((4, 50))
    flat = x @ (1 + 0.05 * rng.standard_normal((4, 50)))
    peaked = _peaked(rng, x)
    wide_x = rng.standard_normal(50)
    wide = wide_x @ (0.5 * rng.standard_normal((50, 1000)))
    return (
        _panel("A", "positive gradient alone", plain, x, up=(21, 0.5)),
        _panel("B", "negative gradient, flat prediction", flat, x, down=(42, 0.3)),
        _panel("C", "negative on a peak (on-policy)", peaked, x, down=(11, 0.5)),
        _panel("D0", "negative in a valley (off-policy)", peaked, x, down=(42, 0.5)),
        _panel(
            "D",
            "the same, with an equal positive gradient",
            peaked,
            x,
            up=(25, 0.5),
            down=(42, 0.5),
        ),
        _panel("E", "negative, 1,000 classes", wide, wide_x, down=(100, 1.0)),
    )


def _peaked(rng: np.random.Generator, x: FloatArray) -> FloatArray:
    """Logits after one step at rate 1 towards an unnormalised target on the peaks."""
    logits = x @ rng.standard_normal((4, 50))
    target = np.zeros(50)
    target[list(PEAKS)] = 1
    result: FloatArray = logits + (x @ x) * (target - np.exp(log_softmax(logits)))
    return result


def _panel(
    name: str,
    caption: str,
    logits: FloatArray,
    x: FloatArray,
    *,
    up: tuple[int, float] | None = None,
    down: tuple[int, float] | None = None,
) -> SqueezePanel:
    log_p, reach = log_softmax(logits), float(x @ x)
    pressures, strengths, edge = [], [0.0, 0.0], math.nan
    if up is not None:
        strengths[0] = up[1] * reach
        pressures.append(Pressure(up[0], strengths[0]))
    if down is not None:
        strengths[1] = down[1] * reach
        pressures.append(Pressure(down[0], -strengths[1]))
        if up is None:
            edge = float(threshold(log_p, down[0], strengths[1]))
    return SqueezePanel(
        name=name,
        caption=caption,
        before=np.exp(log_p),
        after=np.exp(stepped(log_p, pressures)),
        pulled=None if up is None else up[0],
        pushed=None if down is None else down[0],
        strengths=(strengths[0], strengths[1]),
        threshold=edge,
    )


# -------------------------------------------------------------------- residual panels

TOKENS = 30
CHOSEN, ON_POLICY, OFF_POLICY = 8, 15, 22


def prediction() -> FloatArray:
    """[V] ln π of the panels: two broad hills, and a tail."""
    place = np.arange(TOKENS)
    hills = 4.5 * np.exp(-(((place - 15) / 2.2) ** 2)) + 2.8 * np.exp(
        -(((place - 6) / 2.5) ** 2)
    )
    return log_softmax(hills)


def residual_panels(
    beta: float = 0.1, margin: float = 0.0
) -> tuple[ResidualPanel, ...]:
    """−G of every loss on one token.

    Args:
        beta: Of the losses that have it; SPPO's η is 1/β.
        margin: r⁺ = margin/2, r⁻ = −margin/2: how far training has come, nats.
    """
    plan: Sequence[tuple[str, Loss, int, str]] = (
        ("SFT", SFT(), OFF_POLICY, "pulls chosen up, all else down by its probability"),
        ("DPO, off-policy", DPO(beta), OFF_POLICY, "pushes a valley: squeezing"),
        ("DPO, on-policy", DPO(beta), ON_POLICY, "pushes a peak: mass spreads"),
        ("cDPO, ε = 0.1", CDPO(beta, 0.1), OFF_POLICY, "DPO less its doubt"),
        ("IPO", IPO(beta), OFF_POLICY, "a stronger pull at the same β"),
        ("IPO, the paper's", PaperIPO(beta), OFF_POLICY, "scaled by β(1 − a)"),
        ("SLiC", SLiC(10.0, beta), OFF_POLICY, "a hinge: full strength, or none"),
        ("SLiC, the paper's", PaperSLiC(10.0, beta), OFF_POLICY, "scaled as in DPO"),
        ("SimPO", SimPO(20 * beta, 0.5), OFF_POLICY, "by length, no reference"),
        ("SPPO", SPPO(1 / beta), OFF_POLICY, "pushes rejected down, like the rest"),
        ("SPPO, the paper's", PaperSPPO(1 / beta), OFF_POLICY, "signs turned"),
        ("KTO", KTO(beta), OFF_POLICY, "each response by itself"),
        ("ORPO", ORPO(beta), OFF_POLICY, "SFT with a small push down"),
        ("NPO", NPO(beta), OFF_POLICY, "a push down alone: unlearning"),
    )
    return tuple(_residual_panel(*item, margin) for item in plan)


def _residual_panel(
    name: str, loss: Loss, rejected: int, note: str, margin: float
) -> ResidualPanel:
    logits = torch.from_numpy(prediction()).expand(1, 1, TOKENS)
    parts = {
        part: Labelled(logits, torch.tensor([[label]]))
        for part, label in (
            ("chosen", CHOSEN),
            ("rejected", rejected),
            ("regulariser", CHOSEN),
        )
    }
    reference = {
        f"ref_{part}": score(parts[part].logits, parts[part].labels)[0] - ratio
        for part, ratio in (("chosen", margin / 2), ("rejected", -margin / 2))
    }
    found = residuals(loss, **parts, **reference)  # type: ignore[arg-type]
    up = found.chosen
    if up is not None and found.regulariser is not None:
        up = up + found.regulariser  # SLiC's own choice: it regularises with chosen
    return ResidualPanel(
        name=name,
        note=note,
        chosen=None if up is None else -up[0, 0].numpy(),
        rejected=None if found.rejected is None else -found.rejected[0, 0].numpy(),
        chosen_id=CHOSEN,
        rejected_id=rejected,
        approximation="the paper's" in name,
    )
