"""The squeezing effect in closed form: one step against one response.

A step of gradient descent that pushes class y down in multi-class logistic regression
moves the logits by s = η‖x‖² along the residual (arXiv 2407.10490, section 3.3 and
appendix E)::

    z ← z + s(π − e_y)
    α_i = π'_i / π_i = e^{s(π_i − δ_iy)} / Z,    Z = Σ_j π_j e^{s(π_j − δ_jy)}

A class i ≠ y rises exactly if π_i > (1/s) ln Z. That threshold is a cumulant function
over s of X = π_j − δ_jy under π: at s → 0 it is E X = ‖π‖² − π_y =: τ, and it grows
with s. So whatever falls to first order (π_i ≤ τ) falls in every such step, and a
larger step lets fewer rise. y falls and the largest other class rises for every s > 0,
X being least at y and greatest there.

Steps up are the same with s negative. Numpy, float64, any leading batch dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ldeval.dynamics.first_order import log_softmax, squared_norm
from ldeval.errors import TheoryError
from ldeval.records import FloatArray

LARGEST = 300.0
"""The largest step, nats; beyond it e^{2s} overflows."""

Label = int | npt.NDArray[np.integer]


def log_ratios(log_p: FloatArray, label: Label, strength: float) -> FloatArray:
    """[..., V] ln α_i = Δ ln π_i of one step that pushes ``label`` down.

    Signs are exact even where a change is far below the rounding of ln π: the two
    extremes are summed from terms of one sign.

    Args:
        log_p: [..., V] ln π before, normalised.
        label: y, one class or [...] of them.
        strength: s, nats; 0 < s ≤ 300.

    Raises:
        TheoryError: the strength or a label is out of range.
    """
    p = np.exp(log_p)
    hot = _hot(p, label)
    push = _strength(strength) * (p - hot)
    top = push.max(axis=-1, keepdims=True)
    found = push - top - np.log1p((p * np.expm1(push - top)).sum(-1, keepdims=True))
    others = np.where(hot, 0.0, p)
    missing = others.sum(axis=-1, keepdims=True)  # 1 − π_y without cancellation
    growth = np.expm1(strength * (others + missing))
    fall = -np.log1p((others * growth).sum(axis=-1, keepdims=True))
    result: FloatArray = np.where(hot, fall, found)
    return result


def threshold(log_p: FloatArray, label: Label, strength: float) -> FloatArray:
    """[...] (1/s) ln Z: the probability above which a class other than y rises."""
    p = np.exp(log_p)
    push = _strength(strength) * (p - _hot(p, label))
    top = push.max(axis=-1, keepdims=True)
    log_z = top + np.log1p((p * np.expm1(push - top)).sum(axis=-1, keepdims=True))
    result: FloatArray = log_z[..., 0] / strength
    return result


def first_order_threshold(log_p: FloatArray, label: Label) -> FloatArray:
    """[...] τ = ‖π‖² − π_y; y is in a *valley* where it is positive."""
    p = np.exp(log_p)
    at_label = np.where(_hot(p, label), p, 0.0).sum(axis=-1)
    result: FloatArray = squared_norm(log_p) - at_label
    return result


@dataclass(frozen=True)
class Pressure:
    """One term of a step on a fixed input."""

    label: int
    """The class that it names."""
    strength: float
    """s = η‖x‖², nats: positive pulls the class up, negative pushes it down."""


def stepped(log_p: FloatArray, pressures: Sequence[Pressure]) -> FloatArray:
    """[V] ln π after z ← z − Σ s(π − e_y), all at the π of before.

    Args:
        log_p: [V] ln π before.
        pressures: For one push down of strength s, ``[Pressure(y, -s)]``.
    """
    p = np.exp(log_p)
    shift = np.zeros_like(p)
    for item in pressures:
        shift -= item.strength * (p - _hot(p, item.label))
    return log_softmax(log_p + shift)


def _hot(p: FloatArray, label: Label) -> npt.NDArray[np.bool_]:
    labels = np.asarray(label)
    if labels.min() < 0 or labels.max() >= p.shape[-1]:
        raise TheoryError(
            f"class {labels.min()} … {labels.max()} is not among the {p.shape[-1]} "
            f"of this prediction, numbered from 0."
        )
    result: npt.NDArray[np.bool_] = labels[..., None] == np.arange(p.shape[-1])
    return result


def _strength(value: float) -> float:
    if not 0 < value <= LARGEST:
        raise TheoryError(
            f"a step of strength {value:g} nats: it must be above 0 and at most "
            f"{LARGEST:g}. For a step up, use stepped()."
        )
    return value
