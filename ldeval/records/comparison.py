"""What a comparison of checkpoints consists of: estimates, changes, verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ldeval.records.estimate import Estimate
from ldeval.records.greedy import GreedyPath
from ldeval.records.kinds import Split
from ldeval.records.measures import (
    Claim,
    CrossInfluence,
    LawTest,
    RicherCurve,
    Trajectory,
    Truth,
)
from ldeval.records.scores import Excluded, Manifest

Stratum = Literal["all", "off", "on"]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Where the distribution of a kind's change over prompts is given."""


@dataclass(frozen=True)
class KindChange:
    """How one kind changed between two checkpoints, in one split."""

    kind: str
    """One of ``KIND_NAMES``; or ``argmax:chosen`` / ``argmax:rejected``: the most
    probable token at each position along that kind, which may change identity; or
    ``frozen:chosen`` / ``frozen:rejected``: the first checkpoint's, which may not."""
    split: Split
    n: int
    """Responses compared."""
    mean_tokens: float
    """Mean tokens in a response."""
    before_sum: float
    """Mean Σ ln p of a response before, nats."""
    after_sum: float
    """Mean Σ ln p of a response after, nats."""
    delta_sum: Estimate
    """Mean Δsum, nats/response."""
    delta_tok: Estimate
    """Δtok = Σ Δsum / Σ n, nats/token."""
    share_fell: float
    """Share of prompts whose Δsum is negative."""
    first: Estimate
    """Mean δ of the first response token, nats/token."""
    body: Estimate
    """Δtok without the first and the end token, nats/token."""
    end: Estimate
    """Mean δ of the last response token, nats/token."""
    matched: Estimate
    """Length-matched Δ: over the first n* tokens, n* those of the probe's shortest
    kind without its end token, where that is at least 5, nats/token."""
    quantiles: tuple[float, ...]
    """Quantiles over responses of Δsum / n at ``QUANTILES``, nats/token."""
    p_value: float
    """Two-sided p of the paired permutation test that Δtok is zero."""
    p_adjusted: float
    """The same among the stored kinds of the split: by Holm from the first to the last
    checkpoint; by Benjamini–Hochberg over all successive pairs. NaN for the derived
    argmax rows, which are no hypotheses of their own."""


@dataclass(frozen=True)
class Margin:
    """Chosen − rejected, paired by prompt, in one split."""

    split: Split
    before_sum: float
    """Mean s(chosen) − s(rejected) before, nats."""
    after_sum: float
    delta_sum: Estimate
    """Mean change of the summed margin, nats/response."""
    delta_tok: Estimate
    """Δtok(chosen) − Δtok(rejected), nats/token."""


@dataclass(frozen=True)
class Flow:
    """Where probability mass went at the positions along one kind.

    Bins are fixed by the reference checkpoint: the label, its argmax where that is not
    the label, the rest of its top-k, and the tail. They sum to zero.
    """

    kind: str
    split: Split
    stratum: Stratum
    """Which positions: ``all``, those where the reference's argmax is not the label
    (``off``), or those where it is (``on``)."""
    positions: int
    """Positions used."""
    label: Estimate
    """Mean Δp of the label, probability/token."""
    argmax: Estimate
    """Mean Δp of the reference argmax."""
    top: Estimate
    """Mean Δp of the rest of the reference top-k."""
    tail: Estimate
    """Mean Δp of everything else."""
    argmax_share: Estimate
    """Net share of the mass that the label lost which the argmax got; may be negative
    or above 1, and the three shares sum to 1. NaN where the interval of ``label``
    contains 0. Where the label gained: the share of the gain that the bin paid."""
    top_share: Estimate
    """The same of the rest of the reference top-k."""
    tail_share: Estimate
    """The same of the tail."""
    exact_share: float
    """Share of positions at which every bin is known exactly; elsewhere unknown ids
    were bounded, and the bounds are inside the intervals."""
    risen_share: float
    """Share of positions whose later argmax lies outside the bins."""
    risen: Estimate
    """Mean Δp of those later argmaxes, probability/token: a part of the tail's. The
    reference's probability of each is bounded, and the bounds are in the interval.
    NaN but from the run's first checkpoint on."""


@dataclass(frozen=True)
class InfluenceCell:
    """Slope of one kind's Δtok on another's over prompts: how they move together."""

    source: str
    """The explaining kind (x)."""
    target: str
    """The kind explained (y)."""
    split: Split
    slope: Estimate
    """d Δtok(target) / d Δtok(source), dimensionless."""
    correlation: float
    """Spearman rank correlation."""
    rank: Estimate
    """The same with its interval."""
    partial: Estimate
    """The slope at equal length and equal earlier log-probability of both responses,
    dimensionless."""


@dataclass(frozen=True)
class PairComparison:
    """One pair of checkpoints: what changed from ``before`` to ``after``."""

    before: int
    """Step of the earlier checkpoint."""
    after: int
    """Step of the later one."""
    changes: tuple[KindChange, ...]
    """One a kind and split, kinds in the order of ``KINDS``, argmax rows last."""
    margins: tuple[Margin, ...]
    """One a split in which chosen and rejected were both scored."""
    flows: tuple[Flow, ...]
    """Along every kind, one a split and stratum, where the top-k was stored."""
    influence: tuple[InfluenceCell, ...]
    """Kind × kind, trained and held-out apart."""
    only_before: tuple[tuple[str, str], ...]
    """(probe_id, kind) scored before but not after; excluded from every statistic."""
    only_after: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CurvePoint:
    """The level of one kind at one checkpoint.

    The intervals are those of the change since the first checkpoint, paired by prompt
    and laid around the level, so they have no width at the first.
    """

    step: int
    kind: str
    split: Split
    mean_sum: Estimate
    """Mean Σ ln p of a response, nats."""
    per_token: Estimate
    """Σ ln p / Σ n, nats/token."""
    matched: Estimate
    """The same over the first n* tokens of each response (length-matched)."""


@dataclass(frozen=True)
class Conjunct:
    """One condition of a verdict, with what it rests on."""

    name: str
    """As in the decision table: ``S1``, ``S2`` …"""
    statement: str
    """What it asks."""
    truth: Truth
    evidence: Mapping[str, Estimate]
    """The estimates behind it, by name, at the 99% level."""
    reason: str | None = None
    """Why it is undecided, or false for a reason that no number shows, or what a reader
    of a condition that holds should know."""


@dataclass(frozen=True)
class Verdict:
    """A named reading of a run, for one split."""

    name: str
    state: Truth
    split: Split
    conjuncts: tuple[Conjunct, ...]
    reason: str | None = None
    """Why it is undecided, in words, when it is."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Further findings, e.g. ``destination`` of likelihood displacement."""


@dataclass(frozen=True)
class Comparison:
    """The typed account of a run; no text, no rounding."""

    run: str
    steps: tuple[int, ...]
    kinds: tuple[str, ...]
    """Kinds scored at every step, in the order of ``KINDS``."""
    curves: tuple[CurvePoint, ...]
    pairs: tuple[PairComparison, ...]
    """Successive checkpoints."""
    overall: PairComparison
    """First to last."""
    trajectories: tuple[Trajectory, ...]
    """Rise, fall, slope, end value and state, one a kind and split."""
    richer: tuple[RicherCurve, ...]
    """Do the rich get richer? Along chosen and rejected, one a split."""
    laws: tuple[LawTest, ...]
    """The squeeze or the temperature? Along chosen and rejected, one a split."""
    cross: tuple[CrossInfluence, ...]
    """How responses moved one another, one a split."""
    claims: tuple[Claim, ...]
    """The paper's claims, one a claim and split."""
    verdicts: tuple[Verdict, ...]
    noise_floor: float
    """m: changes per token inside ±m are not called changes, nats/token."""
    flow_floor: float
    """m of flows: mean changes of probability inside ±m are not called changes,
    probability/token."""
    persistence_assessed: bool
    """Whether there were at least 8 checkpoints, so that the end value is a mean of
    the last few and its spread enters the intervals."""
    excluded: tuple[Excluded, ...]
    """Responses excluded at any step."""
    notes: tuple[str, ...]
    manifests: tuple[Manifest, ...]
    """One a step."""
    greedy: GreedyPath | None = None
    """What the checkpoints say by themselves, where a sweep kept it."""

    def to_pandas(self) -> Any:
        """The change per kind of every pair and of first → last, one row each; an
        estimate's ends are in the columns ``…_low`` and ``…_high``."""
        import pandas as pd

        rows = []
        for pair in (*self.pairs, self.overall):
            for change in pair.changes:
                row: dict[str, Any] = {"before": pair.before, "after": pair.after}
                for item in dataclasses.fields(change):
                    value = getattr(change, item.name)
                    if isinstance(value, Estimate):
                        row[item.name] = value.value
                        row[f"{item.name}_low"] = value.low
                        row[f"{item.name}_high"] = value.high
                    else:
                        row[item.name] = value
                rows.append(row)
        return pd.DataFrame(rows)
