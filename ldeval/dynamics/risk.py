"""What a preference pair risks before it is trained on.

For each pair, from the model alone:

CHES
    ⟨Σh⁺, Σh⁻⟩ − ‖Σh⁺‖² over the output layer's inputs h at the positions that predict
    the responses; normalised with means in place of sums (arXiv 2410.08847). Higher:
    chosen is likelier to fall. Comparable within one model only.
Entanglement
    ‖∇⁺‖², ⟨∇⁺, ∇⁻⟩, ‖∇⁻‖² of ln π(y±) (arXiv 2410.13828), and what the loss's pulls g
    make of them: a step on this pair alone changes ln π(y⁺) by g⁺‖∇⁺‖² + g⁻⟨∇⁺, ∇⁻⟩
    per unit of learning rate, and ln π(y⁻) by g⁺⟨∇⁺, ∇⁻⟩ + g⁻‖∇⁻‖². For g⁺ = −g⁻ both
    fall when ⟨∇⁺, ∇⁻⟩ > ‖∇⁺‖².
Valley
    The share of rejected's tokens y, after the first that differs from chosen's, with
    ‖π‖² − p_y > 0: pushed down there, a token raises those with p_i above that excess
    and lowers the others (arXiv 2407.10490, section 3.3). Where it is negative, all
    others rise.
Edit similarity
    Of the token sequences; near-equal pairs are where DPO-Positive (arXiv 2402.13228)
    found chosen to fall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from tqdm import tqdm

from ldeval.dynamics.causal_lm import CausalLM
from ldeval.dynamics.sequences import Pass, logits, sequences
from ldeval.dynamics.training import (
    Objective,
    TrainingExample,
    pulls_of,
    response_gradient,
    training_batch,
)
from ldeval.errors import TheoryError
from ldeval.records import Excluded, PairRisk, Probe
from ldeval.scoring.batch import ScoreRequest

RANKINGS: Mapping[str, Callable[[PairRisk], float]] = {
    "change": lambda pair: -pair.chosen_change,
    "entanglement": lambda pair: pair.entanglement,
    "ches": lambda pair: pair.ches,
    "ches_normalised": lambda pair: pair.ches_normalised,
    "valley": lambda pair: pair.valley,
    "edit": lambda pair: pair.edit_similarity,
}
"""Scores that pairs are ranked by; higher is riskier in all."""
GRADIENT_RANKINGS = ("change", "entanglement")
"""Those that need two backward passes a pair; the others need one forward pass."""


def pair_risks(
    lm: CausalLM,
    pairs: Sequence[Probe],
    wanted: Objective,
    *,
    gradients: bool = True,
    reference: CausalLM | None = None,
    apply_chat_template: bool = False,
    progress: bool = False,
) -> tuple[list[PairRisk], list[Excluded]]:
    """Judge every pair, in the order given.

    Args:
        pairs: probes with ``chosen`` and ``rejected``.
        wanted: the loss that they will be trained with.
        gradients: take the entanglement too: about six forward passes more a pair, and
            one gradient in memory.
        reference: the loss's reference model, where it is not the model itself.

    Returns:
        The pairs, and those that could not be judged, with the reason.

    Raises:
        TheoryError: when the loss does not look at both responses.
    """
    if set(wanted.kinds()) != {"chosen", "rejected"}:
        raise TheoryError(
            f"{type(wanted.loss).__name__} does not set chosen against rejected. Give "
            "a preference loss, e.g. dpo."
        )
    found: list[PairRisk] = []
    left_out: list[Excluded] = []
    for pair in tqdm(pairs, disable=not progress, desc="pairs"):
        try:
            (example,), excluded = training_batch(
                lm,
                [pair],
                wanted,
                reference=reference,
                apply_chat_template=apply_chat_template,
            )
        except TheoryError as error:
            left_out.append(Excluded(pair.probe_id, "rejected", str(error)))
            continue
        left_out += excluded
        found.append(_risk(lm, example, wanted, gradients))
    return found, left_out


def ranked(pairs: Sequence[PairRisk], by: str) -> list[PairRisk]:
    """Most at risk first; pairs without that score come last.

    Raises:
        TheoryError: for an unknown score.
    """
    if by not in RANKINGS:
        raise TheoryError(f"--by {by!r} is not known. Valid: {', '.join(RANKINGS)}.")
    score = RANKINGS[by]

    def key(pair: PairRisk) -> tuple[bool, float]:
        value = score(pair)
        return (math.isnan(value), -value)

    return sorted(pairs, key=key)


def _risk(
    lm: CausalLM, example: TrainingExample, wanted: Objective, gradients: bool
) -> PairRisk:
    chosen, rejected = example.request("chosen"), example.request("rejected")
    assert chosen is not None
    assert rejected is not None
    places = _places(lm, example)
    states, rows = places["chosen"].states, places["rejected"].logits
    share, excess = valley(
        rows,
        rejected.ids[rejected.start : rejected.stop],
        first_difference(chosen, rejected),
    )
    squares = (math.nan,) * 3
    change = (math.nan, math.nan)
    if gradients:
        squares = gram(lm, chosen, rejected)
        scores = {kind: place.log_prob for kind, place in places.items()}
        pulls = pulls_of(example, wanted.loss, scores)
        change = (
            pulls["chosen"] * squares[0] + pulls["rejected"] * squares[1],
            pulls["chosen"] * squares[1] + pulls["rejected"] * squares[2],
        )
    return PairRisk(
        example_id=example.example_id,
        n_chosen=chosen.n_tokens,
        n_rejected=rejected.n_tokens,
        ches=ches(states.sum(0), places["rejected"].states.sum(0)),
        ches_normalised=ches(states.mean(0), places["rejected"].states.mean(0)),
        edit_similarity=edit_similarity(chosen, rejected),
        valley=share,
        excess=excess,
        chosen_squared=squares[0],
        inner=squares[1],
        rejected_squared=squares[2],
        chosen_change=change[0],
        rejected_change=change[1],
    )


@dataclass(frozen=True)
class _Places:
    """Where a response's tokens are predicted."""

    states: Tensor
    """[n, H] the output layer's inputs."""
    logits: Tensor
    """[n, V]."""
    log_prob: float
    """Σ ln π, nats."""


def _places(lm: CausalLM, example: TrainingExample) -> dict[str, _Places]:
    """By response, from one pass, or one each for a model that takes no packs."""
    found = {}
    together = sum(len(r.ids) for r in example.requests)
    for one in sequences(lm, example.requests, tokens=together):
        states, rows = hidden_and_logits(lm, one)
        every = rows.log_softmax(-1).gather(-1, one.labels[:, None])[:, 0]
        for at, index in enumerate(one.requests):
            own = one.owner == at
            kind = example.requests[index].kind
            found[kind] = _Places(states[own], rows[own], float(every[own].sum()))
    return found


def hidden_and_logits(lm: CausalLM, one: Pass) -> tuple[Tensor, Tensor]:
    """Output-layer inputs [n, H] and logits [n, V] of the places that predict a
    response token, in float64 and without a derivative."""
    caught: list[Tensor] = []

    def catch(_: object, inputs: tuple[Tensor, ...]) -> None:
        caught[:] = [inputs[0][0]]

    layer = lm.model.get_output_embeddings()
    handle = layer.register_forward_pre_hook(catch)
    try:
        with torch.no_grad():
            rows = logits(lm, one)
    finally:
        handle.remove()
    states = caught[0]
    if len(states) != len(rows):  # the model does not cut them itself
        states = states[one.rows]
    return states.double(), rows.double()


def ches(chosen: Tensor, rejected: Tensor) -> float:
    """⟨h⁺, h⁻⟩ − ‖h⁺‖² of two vectors [H]."""
    return float(chosen @ rejected - chosen @ chosen)


def first_difference(chosen: ScoreRequest, rejected: ScoreRequest) -> int:
    """Index, within the responses, of the first token that differs."""
    own = chosen.ids[chosen.start : chosen.stop]
    other = rejected.ids[rejected.start : rejected.stop]
    for place, (a, b) in enumerate(zip(own, other, strict=False)):
        if a != b:
            return place
    return min(len(own), len(other))


def valley(rows: Tensor, labels: Sequence[int], first: int) -> tuple[float, float]:
    """Share of tokens after the first difference with ‖π‖² − p_y > 0, and the mean of
    that excess; NaN where no token comes after it.

    Before the difference both responses pull at the same logits and cancel; at it
    everything else moves alike.

    Args:
        rows: [n, V] logits that predict the response.
        labels: its n tokens.
        first: index of the first difference.
    """
    after = slice(first + 1, len(labels))
    probabilities = rows[after].softmax(-1)
    if not len(probabilities):
        return math.nan, math.nan
    own = probabilities.gather(
        -1, torch.tensor(labels[after], device=rows.device)[:, None]
    )
    excess = probabilities.square().sum(-1) - own[:, 0]
    return float((excess > 0).double().mean()), float(excess.mean())


def edit_similarity(chosen: ScoreRequest, rejected: ScoreRequest) -> float:
    """1 − token edit distance / longer length."""
    return float(
        Levenshtein.normalized_similarity(
            chosen.ids[chosen.start : chosen.stop],
            rejected.ids[rejected.start : rejected.stop],
        )
    )


def gram(
    lm: CausalLM, chosen: ScoreRequest, rejected: ScoreRequest
) -> tuple[float, float, float]:
    """‖∇⁺‖², ⟨∇⁺, ∇⁻⟩ and ‖∇⁻‖² of the summed log-probabilities."""
    held: dict[str, Tensor] = {}
    squares = {"chosen": 0.0, "inner": 0.0, "rejected": 0.0}

    def keep(name: str, gradient: Tensor) -> None:
        held[name] = gradient.clone()
        squares["chosen"] += _product(gradient, gradient)

    def meet(name: str, gradient: Tensor) -> None:
        squares["inner"] += _product(gradient, held.pop(name))
        squares["rejected"] += _product(gradient, gradient)

    response_gradient(lm, chosen, keep, names=lm.selected)
    response_gradient(lm, rejected, meet, names=lm.selected)
    return squares["chosen"], squares["inner"], squares["rejected"]


def _product(one: Tensor, other: Tensor) -> float:
    """In rows, so that float32 sums stay short."""
    rows = (one * other).reshape(-1, one.shape[-1]).sum(-1)
    return float(rows.double().sum())
