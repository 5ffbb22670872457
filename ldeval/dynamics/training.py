"""A training batch: what each example's loss asks for, and its gradient.

The loss of a batch is Σ_i ω_i ℓ_i. For a loss of summed log-probabilities the gradient
of one example is ∇ℓ_i = −Σ g ∇s over its responses, the pulls g of
:mod:`ldeval.dynamics.residuals`, so that one backward pass through one sequence, which
holds chosen and rejected behind their prompt, gives it. Gradients are handed on
parameter by parameter and freed at once: a whole one is held only where it must be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ldeval.dynamics.causal_lm import CausalLM
from ldeval.dynamics.residuals import KTO, LOSSES, NPO, SFT, Loss, Pulls, Scores
from ldeval.dynamics.sequences import Pass, encode, log_probs, scored, sequences
from ldeval.errors import TheoryError
from ldeval.records import Excluded, Probe
from ldeval.scoring.batch import ScoreRequest

Reduction = Literal["tokens", "examples", "sum"]
Sink = Callable[[str, Tensor], None]
"""Takes a parameter's name and its gradient, which it must not keep."""


@dataclass(frozen=True)
class Objective:
    """A loss, and how a batch averages it."""

    loss: Loss
    reduction: Reduction
    """``tokens``: over the chosen tokens of the batch, as TRL's SFT; ``examples``: over
    its examples, as TRL's preference losses; ``sum``."""

    def kinds(self) -> tuple[str, ...]:
        """The responses that the loss looks at."""
        if isinstance(self.loss, SFT):
            return ("chosen",)
        return ("rejected",) if isinstance(self.loss, NPO) else ("chosen", "rejected")


def objective(name: str, **settings: float) -> Objective:
    """A loss by the name of its table, with the average that TRL takes.

    Args:
        settings: of the loss, e.g. ``beta``.

    Raises:
        TheoryError: for an unknown loss or setting.
    """
    if name not in LOSSES:
        raise TheoryError(f"loss {name!r} is not known. Valid: {', '.join(LOSSES)}.")
    if "beta" in settings and not settings["beta"] > 0:
        raise TheoryError(f"beta {settings['beta']}: give a number above 0.")
    try:
        loss = LOSSES[name](**settings)
    except TypeError as error:
        raise TheoryError(f"loss {name!r} has no such setting: {error}.") from error
    return Objective(loss, "tokens" if isinstance(loss, SFT) else "examples")


@dataclass(frozen=True)
class TrainingExample:
    """One example of a batch, tokenized, with what does not change in the step."""

    example_id: str
    requests: tuple[ScoreRequest, ...]
    """Its responses that the loss looks at."""
    weight: float
    """ω, its weight in the batch's loss."""
    reference: tuple[float, ...] | None
    """ln π of its responses under the reference model; None where that is the model
    itself, as before the first step."""

    def request(self, kind: str) -> ScoreRequest | None:
        """The response of a kind."""
        return next((r for r in self.requests if r.kind == kind), None)


def training_batch(
    lm: CausalLM,
    probes: Sequence[Probe],
    wanted: Objective,
    *,
    reference: CausalLM | None = None,
    apply_chat_template: bool = False,
) -> tuple[list[TrainingExample], list[Excluded]]:
    """Tokenize a batch and weigh its examples.

    Args:
        probes: training examples, as probes with ``chosen`` and perhaps ``rejected``.
        reference: the reference model, where it is not the model itself.

    Returns:
        The examples, and those that cannot be trained on, with the reason; weights are
        of the examples that are left.

    Raises:
        TheoryError: when none is left.
    """
    kinds = wanted.kinds()
    found: list[TrainingExample] = []
    left_out: list[Excluded] = []
    for probe in probes:
        missing = [kind for kind in kinds if kind not in probe.responses]
        if missing and not isinstance(wanted.loss, KTO):
            reason = f"no {missing[0]} response"
            left_out.append(Excluded(probe.probe_id, missing[0], reason))
            continue
        slim = replace(
            probe, responses={k: r for k, r in probe.responses.items() if k in kinds}
        )
        requests, excluded = encode(
            lm, [slim], kinds=kinds, apply_chat_template=apply_chat_template
        )
        if excluded:
            left_out += excluded
            continue
        scores = None if reference is None else scored(reference, requests).tolist()
        known = None if scores is None else tuple(scores)
        found.append(TrainingExample(probe.probe_id, tuple(requests), 1.0, known))
    if not found:
        reasons = "; ".join(f"{e.probe_id}: {e.reason}" for e in left_out[:3])
        raise TheoryError(f"no training example is left ({reasons or 'none came'}).")
    return _weighed(found, wanted.reduction), left_out


def _weighed(
    examples: Sequence[TrainingExample], reduction: Reduction
) -> list[TrainingExample]:
    sizes = [sum(r.n_tokens for r in e.requests) for e in examples]
    total = {"tokens": sum(sizes), "examples": len(examples), "sum": 1}[reduction]
    return [replace(example, weight=1.0 / total) for example in examples]


@dataclass(frozen=True)
class ExampleLoss:
    """What an example's loss said while its gradient was taken."""

    value: float
    """ℓ, nats."""
    pulls: dict[str, float]
    """g by response; positive pulls up."""
    log_probs: dict[str, float]
    """s by response, nats."""


def example_gradient(
    lm: CausalLM,
    example: TrainingExample,
    loss: Loss,
    sink: Sink,
    *,
    names: Sequence[str] | None = None,
) -> ExampleLoss:
    """∇ℓ of one example, without its weight.

    Args:
        names: parameters whose gradient is wanted; None for all that are trainable.
    """
    said: list[ExampleLoss] = []

    def pulled(totals: Tensor, order: Sequence[int]) -> Tensor:
        kinds = [example.requests[i].kind for i in order]
        now = dict(zip(kinds, totals.detach(), strict=True))
        scores = _scores(example, now)
        pulls = _by_kind(loss.pulls(scores))
        said.append(
            ExampleLoss(
                float(loss.value(scores)),
                {k: float(pulls[k]) for k in kinds},
                {k: float(v) for k, v in now.items()},
            )
        )
        weights = torch.stack([pulls[kind].reshape(()) for kind in kinds])
        return -(weights.to(totals) * totals).sum()

    together = sum(len(r.ids) for r in example.requests)
    passes = list(sequences(lm, example.requests, tokens=together))
    gradient(lm, passes, pulled, sink, names=names)
    return said[0]


def pulls_of(
    example: TrainingExample, loss: Loss, log_probs: dict[str, float]
) -> dict[str, float]:
    """g of each response, from their log-probabilities."""
    now = {
        k: torch.tensor(value, dtype=torch.float64) for k, value in log_probs.items()
    }
    return {k: float(g) for k, g in _by_kind(loss.pulls(_scores(example, now))).items()}


def _by_kind(pulls: Pulls) -> dict[str, Tensor]:
    """Pulls by response; SLiC's regularising response is chosen itself."""
    found = {"chosen": pulls.chosen, "rejected": pulls.rejected}
    known = {k: v for k, v in found.items() if v is not None}
    if pulls.regulariser is not None:
        known["chosen"] = known["chosen"] + pulls.regulariser
    return known


def _scores(example: TrainingExample, now: dict[str, Tensor]) -> Scores:
    """What the loss may look at; [1] each."""
    kinds = [request.kind for request in example.requests]
    then = now
    if example.reference is not None:
        then = {
            kind: torch.tensor(value, dtype=torch.float64)
            for kind, value in zip(kinds, example.reference, strict=True)
        }

    def one(values: dict[str, Tensor], kind: str) -> Tensor | None:
        return values[kind].reshape(1) if kind in values else None

    def tokens(kind: str) -> Tensor | None:
        request = example.request(kind)
        if request is None:
            return None
        return torch.tensor([request.n_tokens], dtype=torch.float64)

    return Scores(
        chosen=one(now, "chosen"),
        rejected=one(now, "rejected"),
        ref_chosen=one(then, "chosen"),
        ref_rejected=one(then, "rejected"),
        n_chosen=tokens("chosen"),
        n_rejected=tokens("rejected"),
        regulariser=one(now, "chosen"),
    )


def response_gradient(
    lm: CausalLM,
    request: ScoreRequest,
    sink: Sink,
    *,
    names: Sequence[str] | None = None,
) -> float:
    """∇ ln π of one response; returns ln π, nats.

    The whole derivative, also in the embedding of a padding token, which training
    leaves out: it moves all the same where the output layer shares its row.
    """
    found: list[float] = []

    def whole(totals: Tensor, _: Sequence[int]) -> Tensor:
        found.append(float(totals.detach().sum()))
        return totals.sum()

    with without_padding(lm):
        gradient(lm, list(sequences(lm, [request])), whole, sink, names=names)
    return found[0]


@contextmanager
def without_padding(lm: CausalLM) -> Iterator[None]:
    """Embeddings that give a padding token its gradient as any other.

    torch's own leaves it out, and chat models whose padding token ends a turn have it
    in every response.
    """
    layers = [m for m in lm.model.modules() if isinstance(m, torch.nn.Embedding)]
    before = [layer.padding_idx for layer in layers]
    try:
        for layer in layers:
            layer.padding_idx = None
        yield
    finally:
        for layer, index in zip(layers, before, strict=True):
            layer.padding_idx = index


def gradient(
    lm: CausalLM,
    passes: Sequence[Pass],
    scalar: Callable[[Tensor, Sequence[int]], Tensor],
    sink: Sink,
    *,
    names: Sequence[str] | None = None,
) -> None:
    """The gradient of a function of some passes' log-probabilities, in one backward.

    Args:
        passes: one, or several for a model that takes no packs.
        scalar: from log-probabilities [R] and the indices of their responses to [].
        sink: given each parameter's gradient as soon as it is whole.
        names: parameters whose gradient is wanted; None for all that are trainable.
    """
    order = [index for one in passes for index in one.requests]

    def value() -> Tensor:
        return scalar(torch.cat([log_probs(lm, one) for one in passes]), order)

    backward(lm, value, sink, names=names)


def backward(
    lm: CausalLM,
    scalar: Callable[[], Tensor],
    sink: Sink,
    *,
    names: Sequence[str] | None = None,
) -> None:
    """One backward pass, whose gradients go to ``sink`` and are dropped."""
    wanted = set(lm.trainable if names is None else names)
    handles = []

    def handing(name: str) -> Callable[[Tensor], None]:
        def hand(parameter: Tensor) -> None:
            assert parameter.grad is not None
            sink(name, parameter.grad)
            parameter.grad = None

        return hand

    try:
        for name, parameter in lm.trainable.items():
            parameter.requires_grad_(name in wanted)
            if name in wanted:
                hook = parameter.register_post_accumulate_grad_hook
                handles.append(hook(handing(name)))  # type: ignore[no-untyped-call]
        with torch.enable_grad():
            scalar().backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
        for parameter in lm.trainable.values():
            parameter.requires_grad_(True)
            parameter.grad = None
