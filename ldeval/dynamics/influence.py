"""Which training example moved which response: one step, taken apart.

    influence[r, i] = −η κ ω_i a ⟨∇ ln π(r), P ∘ ∇ℓ_i⟩ = ⟨∇ ln π(r), d_i⟩

The directions d_i are of :mod:`ldeval.dynamics.update`; history and decay are columns
of their own. There are two exact ways to a table of R responses × M examples, and no
gradient of all of them fits into memory at once (540 MB each for 135 million float32
parameters):

``responses``
    Hold the directions of K examples, as many as the budget takes, and take one
    backward pass a response, whose gradient meets all K parameter by parameter and is
    dropped: M + R·⌈M/K⌉ backward passes of single sequences.
``examples``
    One forward-mode pass over all responses for each example: 1 direction held, and
    prompts are computed once for all their responses, but M passes over everything.

:func:`cheaper` counts both in tokens and takes the smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ldeval.dynamics.causal_lm import CausalLM
from ldeval.dynamics.held import HeldDirections
from ldeval.dynamics.journal import Journal
from ldeval.dynamics.predict import directional
from ldeval.dynamics.residuals import Loss
from ldeval.dynamics.sequences import TOKENS, sequences
from ldeval.dynamics.training import TrainingExample, example_gradient
from ldeval.dynamics.update import Direction, Step
from ldeval.records import FloatArray
from ldeval.scoring.batch import ScoreRequest

Route = Literal["responses", "examples"]

BUDGET = 4 * 2**30
"""Bytes of gradients held at a time."""


@dataclass(frozen=True)
class Plan:
    """How a table will be computed, and what it costs."""

    route: Route
    held: int
    """Directions in memory at a time."""
    tokens_by_responses: int
    """Tokens through a backward pass, by the route ``responses``."""
    tokens_by_examples: int
    """Tokens through a pass of either kind, by the route ``examples``."""


def cheaper(
    lm: CausalLM,
    requests: Sequence[ScoreRequest],
    batch: Sequence[TrainingExample],
    step: Step,
    *,
    budget: int = BUDGET,
    tokens: int = TOKENS,
) -> Plan:
    """The cheaper of the two routes, where a token costs about three forward passes in
    both: a backward pass and a forward-mode pass each do three products a weight.

    Args:
        budget: bytes of gradients that may be held.
    """
    columns = len(batch) + len(_others(step))
    held = max(1, min(columns, budget // (lm.size * lm.dtype.itemsize)))
    trained = sum(len(r.ids) for e in batch for r in e.requests)
    alone = sum(len(request.ids) for request in requests)
    packed = sum(one.tokens for one in sequences(lm, requests, tokens=tokens))
    by_responses = trained + alone * math.ceil(columns / held)
    by_examples = trained + packed * columns
    if by_examples < by_responses:
        return Plan("examples", 1, by_responses, by_examples)
    return Plan("responses", held, by_responses, by_examples)


@dataclass(frozen=True)
class Parts:
    """A step's predicted changes, taken apart; nats."""

    influence: FloatArray
    """[R, M]."""
    history: FloatArray
    """[R]."""
    decay: FloatArray
    """[R]."""
    total: FloatArray
    """[R] along the whole step, computed on its own."""

    @property
    def gap(self) -> float:
        """max |Σ parts − total| / Σ |parts| over the responses."""
        columns = [self.influence, self.history[:, None], self.decay[:, None]]
        parts = np.concatenate(columns, axis=1)
        size = np.abs(parts).sum(axis=1)
        off = np.abs(parts.sum(axis=1) - self.total)
        known = size > 0
        return float(np.max(off[known] / size[known])) if known.any() else 0.0


def exact_influence(
    lm: CausalLM,
    requests: Sequence[ScoreRequest],
    batch: Sequence[TrainingExample],
    loss: Loss,
    step: Step,
    plan: Plan,
    *,
    journal: Journal | None = None,
    tokens: int = TOKENS,
    progress: bool = False,
) -> Parts:
    """The table, exactly, by a plan's route.

    Args:
        journal: keeps rows (or columns) as they finish, and gives those that are done.
    """
    kept = Journal(None, {}) if journal is None else journal
    total = _column(lm, requests, step.total(), "total", kept, tokens)
    columns = len(batch) + bool(step.history) + bool(step.decay)
    bar = tqdm(total=len(requests) * columns, disable=not progress, desc="influence")
    with bar:
        if plan.route == "responses":
            table = _by_responses(lm, requests, batch, loss, step, plan, kept, bar)
        else:
            table = _by_examples(lm, requests, batch, loss, step, kept, tokens, bar)
    own, rest = table[:, : len(batch)], table[:, len(batch) :]
    none = np.zeros_like(total)
    history = rest[:, 0] if step.history else none
    decay = rest[:, -1] if step.decay else none
    return Parts(own, history, decay, total)


def _column(
    lm: CausalLM,
    requests: Sequence[ScoreRequest],
    direction: Direction,
    name: str,
    journal: Journal,
    tokens: int,
) -> FloatArray:
    done = journal.get(name)
    if done is None:
        done = directional(lm, requests, direction, tokens=tokens).tolist()
        journal.put(name, done)
    return np.asarray(done)


def example_direction(
    lm: CausalLM, example: TrainingExample, loss: Loss, step: Step
) -> dict[str, Tensor]:
    """d_i = −η κ ω_i a P ∘ ∇ℓ_i, by selected parameter."""
    found: dict[str, Tensor] = {}
    weight = step.clip * example.weight

    def keep(name: str, gradient: Tensor) -> None:
        found[name] = gradient * weight * step.scale[name]

    example_gradient(lm, example, loss, keep, names=lm.selected)
    return found


def _others(step: Step) -> list[Direction]:
    """What moves the weights beside this batch: columns after the examples'."""
    return [part for part in (step.history, step.decay) if part]


def _by_examples(
    lm: CausalLM,
    requests: Sequence[ScoreRequest],
    batch: Sequence[TrainingExample],
    loss: Loss,
    step: Step,
    journal: Journal,
    tokens: int,
    bar: tqdm,
) -> FloatArray:
    columns = []
    others = _others(step)
    for number in range(len(batch) + len(others)):
        name = f"column {number}"
        done = journal.get(name)
        if done is None:
            if number < len(batch):
                direction: Direction = example_direction(lm, batch[number], loss, step)
            else:
                direction = others[number - len(batch)]
            done = directional(lm, requests, direction, tokens=tokens).tolist()
            journal.put(name, done)
        columns.append(done)
        bar.update(len(requests))
    return np.asarray(columns).T


def _by_responses(
    lm: CausalLM,
    requests: Sequence[ScoreRequest],
    batch: Sequence[TrainingExample],
    loss: Loss,
    step: Step,
    plan: Plan,
    journal: Journal,
    bar: tqdm,
) -> FloatArray:
    others = _others(step)
    width = len(batch) + len(others)
    table = np.zeros((len(requests), width))
    for start in range(0, width, plan.held):
        columns = range(start, min(start + plan.held, width))
        held: HeldDirections | None = None
        for row, request in enumerate(requests):
            name = f"row {row}, columns {columns.start} to {columns.stop}"
            done = journal.get(name)
            if done is None:
                if held is None:
                    held = HeldDirections(lm, len(columns))
                    for place, column in enumerate(columns):
                        if column < len(batch):
                            held.put_example(place, batch[column], loss, step)
                        else:
                            held.put(place, others[column - len(batch)])
                done = held.against(request).tolist()
                journal.put(name, done)
            table[row, columns.start : columns.stop] = done
            bar.update(len(columns))
    return table
