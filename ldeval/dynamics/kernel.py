"""‖K‖_F between two responses: the empirical neural tangent kernel, estimated.

K(o, u) = J_o J_uᵀ holds, for every logit of response o and every logit of example u,
the inner product of their gradients: far too many to write down for a language model.
For a random vector v of signs over u's logits E‖K v‖² = ‖K‖_F² (Hutchinson, 1989), and
K v is one backward pass through u and one forward-mode pass through all responses at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldeval.dynamics.causal_lm import CausalLM
from ldeval.dynamics.sequences import TOKENS, logits, sequences
from ldeval.dynamics.training import backward
from ldeval.errors import TheoryError
from ldeval.records import FloatArray
from ldeval.scoring.batch import ScoreRequest


@dataclass(frozen=True)
class KernelNorms:
    """Estimated norms between R responses and one example."""

    norm: FloatArray
    """[R] √ of the estimate of ‖K‖_F²."""
    se: FloatArray
    """[R] its standard error over the draws (delta method); NaN with one draw."""


def kernel_norms(
    lm: CausalLM,
    requests: Sequence[ScoreRequest],
    example: ScoreRequest,
    *,
    draws: int = 8,
    seed: int = 0,
    tokens: int = TOKENS,
) -> KernelNorms:
    """Estimate ‖K(o, u)‖_F of every response o with one trained response u.

    Args:
        example: u.
        draws: random vectors; the error falls with their root.

    Raises:
        TheoryError: with fewer than one draw.
    """
    if draws < 1:
        raise TheoryError(f"{draws} draws: at least one is needed.")
    generator = torch.Generator().manual_seed(seed)
    squares = np.stack(
        [
            _one_draw(lm, requests, _pulled_back(lm, example, generator), tokens)
            for _ in range(draws)
        ]
    )
    mean = squares.mean(axis=0)
    norm = np.sqrt(mean)
    if draws == 1:
        return KernelNorms(norm, np.full(len(requests), np.nan))
    spread = squares.std(axis=0, ddof=1) / np.sqrt(draws)
    return KernelNorms(norm, spread / (2 * norm))


def _pulled_back(
    lm: CausalLM, example: ScoreRequest, generator: torch.Generator
) -> dict[str, Tensor]:
    """J_uᵀ v for a fresh v of signs."""
    found: dict[str, Tensor] = {}
    (one,) = sequences(lm, [example])

    def weighed() -> Tensor:
        rows = logits(lm, one)
        signs = torch.randint(0, 2, rows.shape, generator=generator) * 2 - 1
        return (rows * signs.to(rows)).sum()

    def keep(name: str, gradient: Tensor) -> None:
        found[name] = gradient.clone()

    backward(lm, weighed, keep, names=lm.selected)
    return found


def _one_draw(
    lm: CausalLM,
    requests: Sequence[ScoreRequest],
    along: dict[str, Tensor],
    tokens: int,
) -> FloatArray:
    """‖J_o w‖² of every response, [R]."""
    found = torch.zeros(len(requests), dtype=torch.float64)
    at = {name: lm.trainable[name].detach() for name in along}
    with torch.no_grad():
        for one in sequences(lm, requests, tokens=tokens):

            def function(values: dict[str, Tensor], one: Any = one) -> Tensor:
                return logits(lm, one, values)

            change = torch.func.jvp(function, (at,), (along,))[1]
            each = change.double().square().sum(-1)
            total = each.new_zeros(len(one.requests)).index_add(0, one.owner, each)
            found[list(one.requests)] = total.cpu()
    return found.numpy()
