"""One optimizer step as a sum of directions, with the step's preconditioner fixed.

With ḡ = Σ_i ω_i ∇ℓ_i the batch's gradient and κ its clip factor, a step moves the
weights by::

    Δθ = −η κ a P ∘ ḡ   +   history   +   decay

    SGD       a = 1 − dampening        P = 1
              history −η μ b           decay −η a λ θ
    RMSprop   a = 1                    P = 1/(√v_t + ε)
              none                     decay −η P ∘ λ θ
    AdamW     a = (1 − β1)/(1 − β1^t)  P = 1/(√v̂_t + ε)
              history −η β1/(1 − β1^t) P ∘ m_{t−1}
                                       decay −η λ θ

v_t includes this step's gradient, and for RMSprop and Adam, whose weight decay is part
of the gradient, the decay too. P is then a constant, and the move is linear in the
gradients of the examples: which example moved what can be told by adding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldeval.dynamics.causal_lm import CausalLM
from ldeval.dynamics.optimizer_state import Family, GroupSettings, OptimizerState
from ldeval.dynamics.residuals import Loss
from ldeval.dynamics.training import ExampleLoss, TrainingExample, example_gradient
from ldeval.errors import TheoryError

CLIP_GUARD = 1e-6
"""What torch adds to the norm that it clips by."""

Direction = Mapping[str, Tensor]
"""A change of the weights, by parameter name; parameters that are absent stay."""


@dataclass(frozen=True)
class Step:
    """A step about to be taken; tensors by selected parameter."""

    scale: Mapping[str, Tensor | float]
    """−η a P: what each clipped gradient is multiplied by."""
    gradient: Direction
    """ḡ, unclipped."""
    history: Direction
    """What earlier gradients still move; empty where nothing is remembered."""
    decay: Direction
    """What weight decay moves; empty without it."""
    norm: float
    """‖ḡ‖ over every trainable parameter."""
    clip: float
    """κ, 1 where nothing is clipped."""
    losses: tuple[ExampleLoss, ...] = ()
    """What each example's loss said."""

    def own(self) -> dict[str, Tensor]:
        """What this batch's gradient moves."""
        return {n: self.scale[n] * self.clip * g for n, g in self.gradient.items()}

    def total(self) -> dict[str, Tensor]:
        """The whole move, Δθ."""
        moved = self.own()
        for part in (self.history, self.decay):
            for name, tensor in part.items():
                moved[name] = moved[name] + tensor
        return moved


def plan_step(
    lm: CausalLM,
    batch: Sequence[TrainingExample],
    loss: Loss,
    state: OptimizerState,
    *,
    max_norm: float | None = None,
) -> Step:
    """The step that the optimizer would take on a batch.

    Args:
        max_norm: norm that the batch's gradient is clipped to; None or 0 for none.

    Raises:
        TheoryError: when a gradient is not finite.
    """
    gradient, losses = batch_gradient(lm, batch, loss)
    norm = math.sqrt(sum(_squares(tensor) for tensor in gradient.values()))
    if not math.isfinite(norm):
        raise TheoryError(
            f"the batch's gradient has norm {norm}. Is the checkpoint damaged?"
        )
    clip = 1.0 if not max_norm else min(1.0, max_norm / (norm + CLIP_GUARD))
    chosen = {name: gradient[name] for name in lm.selected}
    del gradient
    scale: dict[str, Tensor | float] = {}
    history: dict[str, Tensor] = {}
    decay: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in chosen.items():
            part = _part(state, name, clip * tensor, lm.trainable[name].detach())
            scale[name] = part.scale
            if part.history is not None:
                history[name] = part.history
            if part.decay is not None:
                decay[name] = part.decay
    return Step(scale, chosen, history, decay, norm, clip, tuple(losses))


def batch_gradient(
    lm: CausalLM, batch: Sequence[TrainingExample], loss: Loss
) -> tuple[dict[str, Tensor], list[ExampleLoss]]:
    """ḡ = Σ ω ∇ℓ over every trainable parameter, example by example."""
    total = {n: torch.zeros_like(p.detach()) for n, p in lm.trainable.items()}
    losses = []
    for example in batch:
        weight = example.weight

        def add(name: str, gradient: Tensor, weight: float = weight) -> None:
            total[name].add_(gradient, alpha=weight)

        losses.append(example_gradient(lm, example, loss, add))
    return total, losses


def _squares(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double())) ** 2


@dataclass(frozen=True)
class _Part:
    """One parameter's share of a step."""

    scale: Tensor | float
    history: Tensor | None = None
    decay: Tensor | None = None


def _part(
    state: OptimizerState, name: str, clipped: Tensor, parameter: Tensor
) -> _Part:
    rule = {"sgd": _sgd, "rmsprop": _rmsprop, "adam": _adam, "adamw": _adam}
    return rule[state.family](state, state.settings[name], name, clipped, parameter)


def _sgd(
    state: OptimizerState,
    group: GroupSettings,
    name: str,
    clipped: Tensor,
    parameter: Tensor,
) -> _Part:
    scale, history = -group.lr, None
    buffer = state.moments.get("momentum_buffer", {}).get(name)
    if group.momentum and buffer is not None:
        # torch dampens from the second step on
        scale *= 1 - group.dampening
        history = -group.lr * group.momentum * buffer.to(parameter)
    decay = scale * group.weight_decay * parameter if group.weight_decay else None
    return _Part(scale, history, decay)


def _rmsprop(
    state: OptimizerState,
    group: GroupSettings,
    name: str,
    clipped: Tensor,
    parameter: Tensor,
) -> _Part:
    whole = clipped + group.weight_decay * parameter
    square = state.moment("square_avg", name, parameter)
    square = group.alpha * square + (1 - group.alpha) * whole**2
    scale = -group.lr / (square.sqrt() + group.eps)
    decay = scale * group.weight_decay * parameter if group.weight_decay else None
    return _Part(scale, None, decay)


def _adam(
    state: OptimizerState,
    group: GroupSettings,
    name: str,
    clipped: Tensor,
    parameter: Tensor,
) -> _Part:
    coupled = state.family == "adam" and group.weight_decay != 0
    whole = clipped + group.weight_decay * parameter if coupled else clipped
    t = state.steps + 1
    square = state.moment("exp_avg_sq", name, parameter)
    square = group.beta2 * square + (1 - group.beta2) * whole**2
    square = (square / (1 - group.beta2**t)).sqrt_().add_(group.eps)
    corrected = group.lr / (1 - group.beta1**t)
    scale = -corrected * (1 - group.beta1) / square
    history = decay = None
    mean = state.moments.get("exp_avg", {}).get(name)
    if mean is not None:
        history = -corrected * group.beta1 * mean.to(parameter) / square
    if coupled:
        decay = scale * group.weight_decay * parameter
    elif group.weight_decay:
        decay = -group.lr * group.weight_decay * parameter
    return _Part(scale, history, decay)


# ----------------------------------------------------------------------- taking steps


@contextmanager
def moved(lm: CausalLM, direction: Direction, factor: float = 1.0) -> Iterator[None]:
    """The model with its weights moved by factor · direction; put back afterwards, bit
    by bit."""
    kept = {name: lm.trainable[name].detach().clone() for name in direction}
    try:
        with torch.no_grad():
            for name, tensor in direction.items():
                lm.trainable[name].add_(tensor, alpha=factor)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in kept.items():
                lm.trainable[name].copy_(tensor)


def torch_optimizer(lm: CausalLM, state: OptimizerState) -> torch.optim.Optimizer:
    """torch's own optimizer with this state, over every trainable parameter."""
    groups: dict[GroupSettings, list[str]] = {}
    for name in lm.trainable:
        groups.setdefault(state.settings[name], []).append(name)
    members = [
        {"params": [lm.trainable[n] for n in names], **_options(state.family, settings)}
        for settings, names in groups.items()
    ]
    kinds: Mapping[Family, Any] = {
        "sgd": torch.optim.SGD,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    optimizer: torch.optim.Optimizer = kinds[state.family](members)
    for which, tensors in state.moments.items():
        for name, tensor in tensors.items():
            parameter = lm.trainable[name]
            optimizer.state[parameter][which] = tensor.to(parameter).clone()
            if state.family != "sgd":
                steps = torch.tensor(float(state.steps))
                optimizer.state[parameter]["step"] = steps
    return optimizer


def _options(family: Family, group: GroupSettings) -> dict[str, Any]:
    shared: dict[str, Any] = {"lr": group.lr, "weight_decay": group.weight_decay}
    if family == "sgd":
        return {**shared, "momentum": group.momentum, "dampening": group.dampening}
    if family == "rmsprop":
        return {**shared, "alpha": group.alpha, "eps": group.eps}
    return {**shared, "betas": (group.beta1, group.beta2), "eps": group.eps}


def replay(
    lm: CausalLM,
    batches: Sequence[Sequence[TrainingExample]],
    loss: Loss,
    state: OptimizerState,
    *,
    max_norm: float | None = None,
) -> OptimizerState:
    """Take steps for real: the model's weights move, and the optimizer learns.

    Returns:
        The optimizer's state after the last step.
    """
    optimizer = torch_optimizer(lm, state)
    for batch in batches:
        gradient, _ = batch_gradient(lm, batch, loss)
        for name, tensor in gradient.items():
            lm.trainable[name].grad = tensor
        if max_norm:
            torch.nn.utils.clip_grad_norm_(list(lm.trainable.values()), max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    moments: dict[str, dict[str, Tensor]] = {}
    for name, parameter in lm.trainable.items():
        for which, value in optimizer.state[parameter].items():
            if which != "step" and isinstance(value, Tensor):
                moments.setdefault(which, {})[name] = value.detach().clone()
    steps = state.steps + len(batches)
    return replace(state, steps=steps, moments=moments)
