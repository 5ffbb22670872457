"""What is measured over a whole run: trajectories, laws of change, influence, claims.

Beside ``comparison``, which holds what is said of a pair of checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ldeval.records.estimate import Estimate
from ldeval.records.kinds import Split

State = Literal["up", "down", "flat", "unclear"]
Truth = Literal["holds", "does_not_hold", "undecided"]


@dataclass(frozen=True)
class Trajectory:
    """The shape of one kind's path through a run, in one split.

    Rise and fall are measured at a peak that other prompts chose (two folds, each
    measured at the other's peak), so that noise alone gives neither.
    """

    kind: str
    split: Split
    end: Estimate
    """End value: mean Δtok since the first checkpoint over the last W checkpoints,
    its 99% interval widened by their spread, nats/token."""
    state: State
    """Of the end value."""
    spread: float
    """σ_c, the checkpoints' own wandering, nats/token; NaN with fewer than 8."""
    peak_step: int
    """Step at which the mean path is highest."""
    peak_low: int
    """2.5% quantile of that step over resampled prompts."""
    peak_high: int
    """97.5% quantile."""
    rise: Estimate
    """From the first checkpoint to the peak, nats/token."""
    fall: Estimate
    """From the peak to the last checkpoint, positive where the path came down,
    nats/token."""
    slope: Estimate
    """Least-squares slope of Δtok on the position in the run, 0 at the first step and
    1 at the last, nats/token."""


@dataclass(frozen=True)
class RicherBin:
    """Tokens of one range of earlier probability."""

    low: float
    """Smallest earlier probability in the bin."""
    high: float
    """Largest."""
    mean: float
    """Mean earlier ln p, nats."""
    tokens: int
    change: Estimate
    """Mean Δ ln p, nats."""


@dataclass(frozen=True)
class RicherCurve:
    """Δ ln p of the reference's top tokens other than the label, by earlier p.

    By the closed form of a squeeze step (arXiv 2407.10490, section 3.3), to first
    order a token other than the label rises if p > τ = ‖π‖² − p_label at its position.
    """

    kind: str
    split: Split
    bins: tuple[RicherBin, ...]
    """By quantile of the earlier probability, poorest first."""
    threshold: float
    """Median τ over positions."""
    above: Estimate
    """Mean Δ ln p of the tokens with p > τ, nats."""
    below: Estimate
    """Mean Δ ln p of the tokens with p ≤ τ, nats."""
    contrast: Estimate
    """above − below, nats: positive where the rich got richer than the poor."""
    valleys: float
    """Share of positions with τ > 0, at which the label lies in a valley; along
    rejected only those after the first token that differs from chosen's."""


@dataclass(frozen=True)
class LawTest:
    """Which law explains Δ ln p within a position: the squeeze's or a temperature's?

    A squeeze step moves Δ ln p_i linearly in p_i, a temperature linearly in ln p_i.
    """

    kind: str
    split: Split
    squeeze: Estimate
    """Slope of Δ ln p on p within positions: s of the closed form, nats."""
    temperature: Estimate
    """Slope of Δ ln p on ln p within positions: 1/T − 1, dimensionless."""
    squeeze_r2: float
    """Leave-prompt-out R² of the first."""
    temperature_r2: float
    """Leave-prompt-out R² of the second."""
    difference: Estimate
    """R² of the squeeze − R² of the temperature."""
    reading: Literal["squeeze", "temperature", "neither"]
    """The better one, where the difference is clear and its R² is positive."""


@dataclass(frozen=True)
class Pull:
    """How far one kind moved, relative to what training moved, in one split."""

    kind: str
    relative: Estimate
    """Δtok of the kind over Δtok of chosen, dimensionless (Fieller)."""
    per_margin: Estimate
    """Collateral κ = −Δsum / Δ margin, dimensionless (Fieller); NaN where the margin's
    change is unclear. Positive: the kind paid for the margin."""
    normalised: Estimate
    """Mean over positions of δ² / (1 − 2p + ‖π‖²) at the first checkpoint, nats²: the
    stored-score form of LBK without its trained example's norm, hence a normalised
    change, unless one SGD step lies between."""
    sign_delta: Estimate
    """Mean change of the vocabulary's mean ln p along the kind, nats; the paper's
    SignDelta. It says nothing about the label."""


@dataclass(frozen=True)
class Location:
    """Where in one kind the change sits; the four parts sum to Δsum."""

    kind: str
    first: Estimate
    """Δ of the first token, nats/response."""
    shared: Estimate
    """Δ of the tokens that its longest common subsequence with the other of chosen
    and rejected holds, first and end token apart, nats/response."""
    contrastive: Estimate
    """Δ of the tokens that are its own, nats/response."""
    end: Estimate
    """Δ of the end token, nats/response."""


@dataclass(frozen=True)
class SpillOver:
    """One kind between successive checkpoints, by whether its prompt was trained."""

    kind: str
    direct: Estimate
    """Mean Δtok in the pairs that trained on the prompt, nats/token."""
    spill: Estimate
    """Mean Δtok in the pairs that did not, nats/token."""
    contrast: Estimate
    """direct − spill, nats/token."""


@dataclass(frozen=True)
class SimilarityPoint:
    """Does likeness to chosen carry the change, at one checkpoint?"""

    step: int
    slope: Estimate
    """Slope over responses of Δsum / n since the first checkpoint on the likeness of
    their tokens to chosen's (1 − normalised insert/delete distance), nats/token."""


@dataclass(frozen=True)
class CrossInfluence:
    """How responses moved one another over a run, in one split."""

    split: Split
    pulls: tuple[Pull, ...]
    """One a kind."""
    locations: tuple[Location, ...]
    """Chosen and rejected."""
    leak: Estimate
    """Crossover leak: slope of Δtok of a trained y_j under another prompt on its Δtok
    under its own, minus the same with untrained j, dimensionless."""
    spill: tuple[SpillOver, ...]
    """One a kind; empty where it is not known what was trained when."""
    similarity: tuple[SimilarityPoint, ...]
    """One a checkpoint after the first."""
    order: tuple[str, ...]
    """Kinds in the order of a hierarchical clustering of their rank correlations."""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, tested on a run."""

    name: str
    """As in the digest of the paper: ``S1`` … ``E1``."""
    statement: str
    test: str
    """What is computed, and when it holds."""
    state: Truth
    split: Split
    effect: Mapping[str, Estimate] = field(default_factory=dict)
    """Estimates at the 99% level, by name."""
    reason: str | None = None
    """Why it is undecided, or what decided it."""
