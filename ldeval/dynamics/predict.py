"""Predicted against measured change of every response, over one step.

One forward-mode pass along the step's direction d gives ⟨∇ ln π(r), d⟩ for all
responses r of the pass at once, without the gradient of any of them. What is measured
is the same responses under the moved weights. The difference is second order in the
step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldeval.dynamics.causal_lm import CausalLM
from ldeval.dynamics.sequences import TOKENS, log_probs, scored, sequences
from ldeval.dynamics.update import Direction, moved
from ldeval.errors import MismatchError
from ldeval.records import FloatArray, Prediction, ProbeResponse
from ldeval.records.dynamics import Agreement
from ldeval.scoring.batch import ScoreRequest


def directional(
    lm: CausalLM,
    requests: Sequence[ScoreRequest],
    direction: Direction,
    *,
    tokens: int = TOKENS,
    progress: bool = False,
) -> FloatArray:
    """⟨∇ ln π(r), d⟩ of every response, [R] nats.

    Args:
        direction: d, by parameter; parameters that are absent do not move.
        tokens: most tokens in a pass.
    """
    found = np.zeros(len(requests))
    if not direction:
        return found
    at = {name: lm.trainable[name].detach() for name in direction}
    along = {name: direction[name].to(at[name]) for name in at}
    bar = tqdm(total=len(requests), disable=not progress, desc="predicted")
    with torch.no_grad(), bar:
        for one in sequences(lm, requests, tokens=tokens):

            def function(values: dict[str, Tensor], one: Any = one) -> Tensor:
                return log_probs(lm, one, values)

            change = torch.func.jvp(function, (at,), (along,))[1]
            found[list(one.requests)] = change.cpu().numpy()
            bar.update(len(one.requests))
    return found


def measured_changes(
    lm: CausalLM,
    requests: Sequence[ScoreRequest],
    direction: Direction,
    factors: Sequence[float],
    before: FloatArray,
    *,
    tokens: int = TOKENS,
) -> FloatArray:
    """ln π after − before, [F, R] nats, for steps of several sizes."""
    rows = []
    for factor in factors:
        with moved(lm, direction, factor):
            rows.append(scored(lm, requests, tokens=tokens).numpy() - before)
    return np.asarray(rows)


def between(first: CausalLM, second: CausalLM) -> dict[str, Tensor]:
    """The change of the weights from one checkpoint to another.

    Raises:
        MismatchError: when they are not of one architecture.
    """
    names, others = set(first.trainable), set(second.trainable)
    if names != others:
        odd = sorted(names ^ others)[:3]
        raise MismatchError(
            f"{first.path} and {second.path} have different parameters "
            f"({', '.join(odd)}, …). Give two checkpoints of one run."
        )
    for name, parameter in first.trainable.items():
        if parameter.shape != second.trainable[name].shape:
            raise MismatchError(
                f"{name} is {tuple(parameter.shape)} in {first.path} and "
                f"{tuple(second.trainable[name].shape)} in {second.path}."
            )
    return {
        name: second.trainable[name].detach() - first.trainable[name].detach()
        for name in first.selected
    }


def prediction(
    settings: Mapping[str, Any],
    responses: Sequence[ProbeResponse],
    parts: Mapping[str, FloatArray],
    factors: Sequence[float],
    measured: FloatArray,
) -> Prediction:
    """Put what was predicted beside what was measured, over all and by kind."""
    predicted = np.sum(list(parts.values()), axis=0)
    kinds = [response.kind for response in responses]
    agreements = []
    for row, factor in zip(measured, factors, strict=True):
        agreements.append(agreement(factor * predicted, row, factor, None))
        for kind in dict.fromkeys(kinds):
            own = np.asarray([k == kind for k in kinds])
            agreements.append(
                agreement(factor * predicted[own], row[own], factor, kind)
            )
    errors = [a.rms_error for a in agreements if a.kind is None]
    return Prediction(
        dict(settings),
        tuple(responses),
        dict(parts),
        tuple(factors),
        measured,
        tuple(agreements),
        error_slope(factors, errors),
    )


def agreement(
    predicted: FloatArray, measured: FloatArray, factor: float, kind: str | None
) -> Agreement:
    """How well one column foretold the other; [R] each."""
    error = measured - predicted
    spread = float(np.sum((measured - measured.mean()) ** 2))
    power = float(np.sum(predicted**2))
    return Agreement(
        factor=factor,
        kind=kind,
        n=len(measured),
        r2=1.0 - float(np.sum(error**2)) / spread if spread > 0 else math.nan,
        slope=float(np.sum(predicted * measured)) / power if power > 0 else math.nan,
        sign=float(np.mean(np.sign(predicted) == np.sign(measured))),
        rms_error=float(np.sqrt(np.mean(error**2))),
        rms_measured=float(np.sqrt(np.mean(measured**2))),
    )


def error_slope(factors: Sequence[float], errors: Sequence[float]) -> float:
    """Slope of ln(error) on ln(size); NaN below two sizes or for an error of zero."""
    if len(set(factors)) < 2 or min(errors) <= 0 or min(factors) <= 0:
        return math.nan
    return float(np.polyfit(np.log(factors), np.log(errors), 1)[0])
