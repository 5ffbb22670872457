"""What the toy experiments of the theory find: from ``dynamics`` to ``report``.

Probabilities are in [0, 1], log-probabilities and changes in nats, and a change is
always after − before.
"""

from __future__ import annotations

from dataclasses import dataclass

from ldeval.records.scores import FloatArray


@dataclass(frozen=True)
class ResidualPanel:
    """What one loss asks of the logits at chosen's and at rejected's position."""

    name: str
    """The loss, and whether its rejected response is on-policy."""
    note: str
    """What to see in it."""
    chosen: FloatArray | None
    """[V] −G⁺, the push on the logits of chosen's position; None without one."""
    rejected: FloatArray | None
    """[V] −G⁻."""
    chosen_id: int
    rejected_id: int
    approximation: bool = False
    """The paper's form, where it is not the exact gradient."""


@dataclass(frozen=True)
class SqueezePanel:
    """One step of multi-class logistic regression on one input."""

    name: str
    caption: str
    before: FloatArray
    """[V] π."""
    after: FloatArray
    """[V] π after the step."""
    pulled: int | None
    """The class with a positive gradient."""
    pushed: int | None
    """The class with a negative gradient."""
    strengths: tuple[float, float]
    """s = η‖x‖² of the positive and the negative gradient, nats; 0 where absent."""
    threshold: float
    """(1/s) ln Z, above which a class other than the pushed one rises; NaN where the
    step is not a negative gradient alone."""

    def __post_init__(self) -> None:
        if self.before.shape != self.after.shape:
            raise ValueError(
                f"before has shape {self.before.shape}, after {self.after.shape}"
            )


@dataclass(frozen=True)
class BigramOutcome:
    """π(y1, y2) after training on one pair of responses in one way."""

    name: str
    pulled: tuple[int, int] | None
    """y⁺, the response with a positive gradient."""
    pushed: tuple[int, int] | None
    """y⁻, the response with a negative gradient."""
    log_p: FloatArray
    """[V, V] ln π(y1, y2) after."""
    predicted: FloatArray
    """[V, V] Δ ln π by the first-order formula, summed over the steps."""
    regions: dict[str, tuple[float, float]]
    """Probability of each region, before and after."""
    entropy: tuple[float, float]
    """Of π(y1, y2), before and after, nats."""
    gainer: tuple[int, int]
    """The response that gained the most probability."""
    top: tuple[float, float]
    """Probability of the likeliest response of before (y⁻ apart), before and after."""


@dataclass(frozen=True)
class BigramStudy:
    """The 2-gram example: a vocabulary of ten words, responses of two."""

    log_p: FloatArray
    """[V, V] ln π(y1, y2) before."""
    region: tuple[tuple[str, ...], ...]
    """[V][V] valid, invalid or ungrammatical."""
    steps: int
    rate: float
    """η."""
    outcomes: tuple[BigramOutcome, ...]


@dataclass(frozen=True)
class StepPrediction:
    """One step of training: what was predicted of others, and what came."""

    rate: float
    """η."""
    predicted: FloatArray
    """[O, V] −η A K G, nats."""
    actual: FloatArray
    """[O, V] Δ ln π, nats."""


@dataclass(frozen=True)
class RateError:
    """The remainder of first order at one learning rate."""

    rate: float
    error: float
    """‖actual − predicted‖₂ over images and classes, nats."""
    change: float
    """‖actual‖₂, nats."""


@dataclass(frozen=True)
class KernelSnapshot:
    """The empirical NTK between classes at one moment of training."""

    step: int
    norms: FloatArray
    """[C, C] mean ‖K(x_o, x_u)‖_F over pairs of images: class of x_o, of x_u."""
    pairs: FloatArray
    """[P] ‖K(x_o, x_u)‖_F of fixed pairs of different images; their ranks are
    compared over training."""


@dataclass(frozen=True)
class DigitsStudy:
    """A, K and G of a network that learns to read digits, exactly."""

    source: str
    """Where the images are from."""
    parameters: int
    images: FloatArray
    """[O, H, W] those observed, in [0, 1]."""
    labels: tuple[int, ...]
    """[O] their classes."""
    accuracy: tuple[float, float]
    """Of held-out images, before and after training."""
    step: StepPrediction
    """One image is learned; every observed one is watched."""
    learned_image: FloatArray
    """[H, W] the image of that step."""
    learned_label: int
    rate_errors: tuple[RateError, ...]
    error_slope: float
    """Slope of ln error on ln η: 2 where the remainder is second order."""
    influence: FloatArray
    """[C, C] Σ over training of the first-order change of π(u | x) that examples of
    class u caused, mean over observed x of class o: row o, column u; probability."""
    accumulated: FloatArray
    """[O, V] Σ over training of the predicted Δ ln π, nats."""
    moved: FloatArray
    """[O, V] ln π after all of training − before, nats."""
    mean_prediction: FloatArray
    """[C, C] mean π(column | held-out image of class row) after training."""
    likeness: FloatArray
    """[C, C] cosine between the mean images of two classes."""
    pull_on_likeness: float
    """Spearman's correlation of influence and likeness between different classes."""
    kernels: tuple[KernelSnapshot, ...]
    rank_stability: FloatArray
    """[S, S] Spearman's correlation of the pairs' ‖K‖_F between two moments."""
