"""Directions in memory, met by one response's gradient after the other.

A response's gradient exists parameter by parameter during its backward pass; each piece
is multiplied with that parameter's share of every held direction and dropped. Apart
from :mod:`predict`, whose forward-mode passes go the other way: one direction, all
responses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldeval.dynamics.causal_lm import CausalLM
from ldeval.dynamics.predict import directional
from ldeval.dynamics.residuals import Loss
from ldeval.dynamics.sequences import TOKENS
from ldeval.dynamics.training import (
    TrainingExample,
    example_gradient,
    response_gradient,
)
from ldeval.dynamics.update import Direction, Step
from ldeval.records import FloatArray
from ldeval.scoring.batch import ScoreRequest

BLOCK = 2**18
"""Numbers that are multiplied and summed in the model's own precision before the sums
go on in float64."""


class HeldDirections:
    """K directions, one row each of a matrix a parameter."""

    def __init__(self, lm: CausalLM, count: int) -> None:
        """Room for ``count`` directions, all zero."""
        self._lm = lm
        self._count = count
        self._held = {
            name: torch.zeros(
                (count, lm.trainable[name].numel()), dtype=lm.dtype, device=lm.device
            )
            for name in lm.selected
        }

    def put(self, row: int, direction: Direction) -> None:
        """Hold a direction; parameters that are absent in it do not move."""
        for name, tensor in direction.items():
            self._held[name][row] = tensor.flatten()

    def put_example(
        self, row: int, example: TrainingExample, loss: Loss, step: Step
    ) -> None:
        """Hold d_i = −η κ ω_i a P ∘ ∇ℓ_i."""
        weight = step.clip * example.weight

        def keep(name: str, gradient: Tensor) -> None:
            scaled = gradient * step.scale[name]
            self._held[name][row] = scaled.flatten().mul_(weight)

        example_gradient(self._lm, example, loss, keep, names=self._lm.selected)

    def against(self, request: ScoreRequest) -> FloatArray:
        """⟨∇ ln π, d⟩ of one response with every direction, [K] nats."""
        found = torch.zeros(self._count, dtype=torch.float64)

        def add(name: str, gradient: Tensor) -> None:
            found.add_(self.meet(name, gradient))

        response_gradient(self._lm, request, add, names=self._lm.selected)
        return found.numpy()

    def meet(self, name: str, gradient: Tensor) -> Tensor:
        """One parameter's share of those products, [K] float64."""
        return inner(self._held[name], gradient.flatten())


def inner(rows: Tensor, column: Tensor) -> Tensor:
    """rows · column, [K] float64, from [K, n] and [n]: products in blocks, so that the
    sum over millions of float32 numbers keeps its digits."""
    total = torch.zeros(len(rows), dtype=torch.float64)
    for start in range(0, rows.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        total += torch.mv(rows[:, block], column[block]).double().cpu()
    return total


def step_parts(
    lm: CausalLM,
    requests: Sequence[ScoreRequest],
    step: Step,
    *,
    tokens: int = TOKENS,
    progress: bool = False,
) -> dict[str, FloatArray]:
    """The predicted change, [R] each, by what moves the weights: this batch's gradient,
    the optimizer's history, weight decay.

    One part alone takes a forward-mode pass; several are held, and one backward pass a
    response meets them all.
    """
    parts = {"gradient": step.own(), "history": step.history, "decay": step.decay}
    directions: dict[str, Direction] = {k: v for k, v in parts.items() if v}
    if len(directions) == 1:
        ((name, along),) = directions.items()
        found = directional(lm, requests, along, tokens=tokens, progress=progress)
        return {name: found}
    held = HeldDirections(lm, len(directions))
    for row, along in enumerate(directions.values()):
        held.put(row, along)
    bar = tqdm(requests, disable=not progress, desc="predicted")
    table = np.stack([held.against(request) for request in bar], axis=1)
    return dict(zip(directions, table, strict=True))
