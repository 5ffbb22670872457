"""What first order predicts for a language model, beside what happened.

Apart from the comparison of checkpoints: these are computed from gradients of the
model, not from stored scores. Stored as docs/dynamics.md describes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldeval.records.estimate import Estimate
from ldeval.records.kinds import Split
from ldeval.records.scores import FloatArray

DYNAMICS_VERSION = 1
"""Of the stored files; a reader refuses others."""


@dataclass(frozen=True)
class ProbeResponse:
    """A response whose change is predicted."""

    probe_id: str
    kind: str
    split: Split
    n_tokens: int
    """Scored tokens."""
    logprob: float
    """ln π before the step, summed over its tokens, nats."""


@dataclass(frozen=True)
class Agreement:
    """How well the prediction foretold the measured changes, at one step size."""

    factor: float
    """What the step was multiplied by."""
    kind: str | None
    """None for all responses together."""
    n: int
    """Responses."""
    r2: float
    """1 − Σ(measured − predicted)² / Σ(measured − mean)²: of the prediction itself, no
    line is fitted. NaN where nothing varies."""
    slope: float
    """Σ predicted·measured / Σ predicted²; 1 is perfect, below 1 overpredicts."""
    sign: float
    """Share of responses whose change has the predicted sign."""
    rms_error: float
    """√mean (measured − predicted)², nats per response."""
    rms_measured: float
    """√mean measured², nats per response."""


@dataclass(frozen=True)
class Prediction:
    """Predicted and measured changes of R responses over one step, at F sizes of it."""

    settings: Mapping[str, Any]
    """Model, data, loss, optimizer, precision: what the numbers depend on."""
    responses: tuple[ProbeResponse, ...]
    parts: Mapping[str, FloatArray]
    """[R] nats for ``gradient`` (this batch), ``history`` (momentum) and ``decay``, at
    factor 1; of two checkpoints only ``change``."""
    factors: tuple[float, ...]
    """Sizes, as multiples of the step."""
    measured: FloatArray
    """[F, R] nats, after − before."""
    agreements: tuple[Agreement, ...]
    error_slope: float
    """Slope of ln(rms error) on ln(factor): 2 where first order holds. NaN with fewer
    than two sizes."""

    def __post_init__(self) -> None:
        if not self.factors or not all(0 < f < math.inf for f in self.factors):
            raise ValueError(
                f"Prediction.factors are {self.factors}: one at least, all above 0"
            )

    @property
    def predicted(self) -> FloatArray:
        """[R] the sum of the parts, at factor 1."""
        return sum(self.parts.values(), start=0.0 * self.measured[0])


@dataclass(frozen=True)
class InfluenceTable:
    """Which training example moved which response: R responses, M examples."""

    settings: Mapping[str, Any]
    responses: tuple[ProbeResponse, ...]
    examples: tuple[str, ...]
    """Ids."""
    influence: FloatArray
    """[R, M] nats: the predicted change of a response by an example's share of the
    step."""
    history: FloatArray
    """[R] nats moved by what the optimizer remembers; zeros where it remembers none."""
    decay: FloatArray
    """[R] nats moved by weight decay."""
    total: FloatArray
    """[R] nats: the whole step's prediction, computed on its own."""
    gap: float
    """max over responses of |Σ parts − total| / Σ |parts|."""
    exact: bool
    """False where gradients were projected."""
    projection: Mapping[str, float]
    """For projected gradients, the error that was measured on some examples that were
    computed exactly too; empty otherwise."""
    kernel: FloatArray | None = None
    """[R, M] estimated ‖K‖_F between the response's and the example's logits."""
    kernel_se: FloatArray | None = None
    """[R, M] its standard error over random probes."""
    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By example id, the beginnings of its ``prompt``, ``chosen`` and ``rejected``, so
    that a reader sees what pushed; empty in files that were written without."""


@dataclass(frozen=True)
class PairRisk:
    """What a preference pair risks before it is trained on."""

    example_id: str
    n_chosen: int
    n_rejected: int
    ches: float
    """⟨Σh⁺, Σh⁻⟩ − ‖Σh⁺‖², activations squared (arXiv 2410.08847)."""
    ches_normalised: float
    """⟨h̄⁺, h̄⁻⟩ − ‖h̄⁺‖²."""
    edit_similarity: float
    """1 − token edit distance / longer length: 1 for equal responses."""
    valley: float
    """Share of rejected's tokens after the first difference where π is so peaked that
    ‖π‖² − p_y > 0; NaN where there are none."""
    excess: float
    """Mean of ‖π‖² − p_y over those tokens: probability above which others rise."""
    chosen_squared: float
    """‖∇ ln π(y⁺)‖²; NaN without gradients, as the two below."""
    inner: float
    """⟨∇ ln π(y⁺), ∇ ln π(y⁻)⟩."""
    rejected_squared: float
    """‖∇ ln π(y⁻)‖²."""
    chosen_change: float
    """First-order Δ ln π(y⁺) of a gradient step on this pair alone, per unit of
    learning rate: g⁺‖∇⁺‖² + g⁻⟨∇⁺, ∇⁻⟩."""
    rejected_change: float
    """The same of y⁻."""

    @property
    def entanglement(self) -> float:
        """⟨∇⁺, ∇⁻⟩ / ‖∇⁺‖²; NaN without gradients, or where chosen's is zero."""
        return self.inner / self.chosen_squared if self.chosen_squared else math.nan

    @property
    def both_fall(self) -> bool | None:
        """Whether both responses fall, to first order; None without gradients."""
        if self.inner != self.inner:
            return None
        return self.chosen_change < 0 and self.rejected_change < 0


@dataclass(frozen=True)
class RiskReport:
    """Every pair of a data file, and what could not be judged."""

    settings: Mapping[str, Any]
    ranked_by: str
    pairs: tuple[PairRisk, ...]
    """Most at risk first."""
    skipped: tuple[tuple[str, str], ...]
    """(place, reason) of rows that give no pair."""


@dataclass(frozen=True)
class DynamicsResults:
    """What one folder holds of first order; what was not computed is None."""

    name: str
    """Of the folder."""
    prediction: Prediction | None = None
    influence: InfluenceTable | None = None
    risk: RiskReport | None = None


@dataclass(frozen=True)
class RiskCheck:
    """How one risk score foretold the change that a real run made."""

    score: str
    outcome: str
    """What was measured, e.g. ``Δ ln π(chosen)``."""
    correlation: Estimate
    """Spearman's ρ between score and outcome."""
