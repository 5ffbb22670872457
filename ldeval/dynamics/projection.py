"""Influence from projected gradients: fast, small, and wrong by an amount it measures.

⟨∇ ln π(r), P ∘ ∇ℓ_i⟩ = ⟨√P ∘ ∇ ln π(r), √P ∘ ∇ℓ_i⟩ is estimated from random
projections of both sides to k numbers: every coordinate gets a random sign, and
coordinates k apart are added up (a sparse Johnson–Lindenstrauss map with one entry a
column). The estimate is unbiased and its standard deviation is about
‖√P∇ ln π(r)‖ ‖√P∇ℓ_i‖ / √k: of no use for a pair whose cosine is below 1/√k, which is
why k is large here and the error is measured, on examples computed exactly as well.

Each gradient is taken once, M + R backward passes, whatever the memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldeval.compare.ranks import rank_correlation
from ldeval.dynamics.causal_lm import CausalLM
from ldeval.dynamics.held import HeldDirections
from ldeval.dynamics.journal import Journal
from ldeval.dynamics.residuals import Loss
from ldeval.dynamics.training import (
    TrainingExample,
    example_gradient,
    response_gradient,
)
from ldeval.dynamics.update import Step
from ldeval.errors import TheoryError
from ldeval.records import FloatArray
from ldeval.scoring.batch import ScoreRequest

WIDTH = 2**18
"""k: numbers that a gradient is projected to."""
CHECKED = 2
"""Examples that are computed exactly too."""


class Projection:
    """A fixed random map from the selected parameters to k numbers.

    Its signs are kept, one byte a parameter.
    """

    def __init__(self, lm: CausalLM, step: Step, width: int, seed: int) -> None:
        """Args:
        step: whose preconditioner's root is applied first.
        width: k.
        seed: of the signs.
        """
        self.width = width
        self._step = step
        generator = torch.Generator().manual_seed(seed)
        self._signs: dict[str, Tensor] = {}
        self._starts: dict[str, int] = {}
        start = 0
        for name in lm.selected:
            size = lm.trainable[name].numel()
            signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8)
            self._signs[name] = signs.mul_(2).sub_(1).to(lm.device)
            self._starts[name] = start % width
            start += size

    def add(self, name: str, gradient: Tensor, into: Tensor) -> None:
        """Add a parameter's projected gradient.

        Args:
            into: [k] float64, what has been projected so far.
        """
        scale = self._step.scale[name]
        root = scale.abs().sqrt() if isinstance(scale, Tensor) else abs(scale) ** 0.5
        values = (gradient * root).flatten() * self._signs[name]
        start = self._starts[name]
        padded = torch.nn.functional.pad(
            values, (start, -(start + len(values)) % self.width)
        )
        into.add_(padded.view(-1, self.width).sum(0).double().cpu())


@dataclass(frozen=True)
class Projected:
    """An estimated table, and how far off it is."""

    influence: FloatArray
    """[R, M] nats."""
    error: Mapping[str, float]
    """Over the examples that were computed exactly: ``rms_error`` and ``rms_exact`` in
    nats, ``relative`` their ratio, ``rank_correlation`` of the entries, ``expected``
    the rms error that ‖·‖‖·‖/√k foretells; ``width`` and ``checked``."""


def projected_influence(
    lm: CausalLM,
    requests: Sequence[ScoreRequest],
    batch: Sequence[TrainingExample],
    loss: Loss,
    step: Step,
    *,
    width: int = WIDTH,
    checked: int = CHECKED,
    seed: int = 0,
    journal: Journal | None = None,
    progress: bool = False,
) -> Projected:
    """Estimate every entry of the table.

    Args:
        width: k.
        checked: examples, evenly spaced, that are held and computed exactly too.

    Raises:
        TheoryError: with fewer than one number.
    """
    if width < 1:
        raise TheoryError(f"projected to {width} numbers: at least one is needed.")
    kept = Journal(None, {}) if journal is None else journal
    projection = Projection(lm, step, width, seed)
    sketches = np.stack([_example(lm, e, loss, step, projection) for e in batch])
    places = np.unique(np.linspace(0, len(batch) - 1, checked).round().astype(int))
    held = HeldDirections(lm, len(places))
    for slot, place in enumerate(places):
        held.put_example(slot, batch[place], loss, step)
    rows, exact, norms = [], [], []
    for number, request in enumerate(
        tqdm(requests, disable=not progress, desc="projected")
    ):
        done = kept.get(f"response {number}")
        if done is None:
            sketch, known = _response(lm, request, projection, held, len(places))
            # −η, whose root cannot be taken, comes back as the sign
            row = -(sketches @ sketch)
            done = [*row, *known, float(np.linalg.norm(sketch))]
            kept.put(f"response {number}", done)
        rows.append(done[: len(batch)])
        exact.append(done[len(batch) : -1])
        norms.append(done[-1])
    table = np.asarray(rows)
    sizes = np.linalg.norm(sketches[places], axis=1)
    expected = np.outer(norms, sizes) / math.sqrt(width)
    error = _error(table[:, places], np.asarray(exact), expected)
    return Projected(table, {**error, "width": width, "checked": len(places)})


def _example(
    lm: CausalLM,
    example: TrainingExample,
    loss: Loss,
    step: Step,
    projection: Projection,
) -> FloatArray:
    into = torch.zeros(projection.width, dtype=torch.float64)

    def add(name: str, gradient: Tensor) -> None:
        projection.add(name, gradient, into)

    example_gradient(lm, example, loss, add, names=lm.selected)
    return np.asarray(into.numpy() * step.clip * example.weight)


def _response(
    lm: CausalLM,
    request: ScoreRequest,
    projection: Projection,
    held: HeldDirections,
    count: int,
) -> tuple[FloatArray, list[float]]:
    into = torch.zeros(projection.width, dtype=torch.float64)
    known = torch.zeros(count, dtype=torch.float64)

    def add(name: str, gradient: Tensor) -> None:
        projection.add(name, gradient, into)
        known.add_(held.meet(name, gradient))

    response_gradient(lm, request, add, names=lm.selected)
    return into.numpy(), known.tolist()


def _error(
    estimate: FloatArray, exact: FloatArray, expected: FloatArray
) -> dict[str, float]:
    error = float(np.sqrt(np.mean((estimate - exact) ** 2)))
    size = float(np.sqrt(np.mean(exact**2)))
    return {
        "rms_error": error,
        "rms_exact": size,
        "relative": error / size if size else math.nan,
        "rank_correlation": rank_correlation(
            np.asarray(estimate, np.float64).ravel(),
            np.asarray(exact, np.float64).ravel(),
        ),
        "expected": float(np.sqrt(np.mean(expected**2))),
    }
