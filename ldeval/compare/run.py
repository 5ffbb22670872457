"""A whole run: its checkpoints in order, compared pair by pair and end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import numpy as np

from ldeval.compare.delta import NO_TOKEN_SCORES, curves, kind_changes, margins
from ldeval.compare.evidence import SplitEvidence
from ldeval.compare.flow import FLOW_KINDS, BinMass, Bins, bin_mass, flows
from ldeval.compare.flow import reference_bins as bins_along
from ldeval.compare.influence import influence
from ldeval.compare.pairing import align, check_comparable, pair_rows, usable
from ldeval.compare.provenance import TrainedLog
from ldeval.compare.squeeze import Question, decide
from ldeval.compare.stats import REPLICATES, Bootstrap
from ldeval.compare.thresholds import Thresholds
from ldeval.errors import MismatchError
from ldeval.records import (
    KIND_NAMES,
    Comparison,
    Excluded,
    PairComparison,
    ScoreTable,
    Split,
    Verdict,
)

INFLUENCE_REPLICATES = 999
"""Fewer than elsewhere: there are 132 slopes a split and pair."""


@dataclass(frozen=True)
class _Run:
    """Tables in order of step, with what every pair of them shares."""

    tables: tuple[ScoreTable, ...]
    bins: tuple[Bins, ...]
    """Flow bins along chosen and rejected; empty where they cannot be had."""
    masses: tuple[tuple[BinMass, ...], ...]
    """[kind][C] their masses."""
    bootstrap: Bootstrap
    few: Bootstrap
    """The bootstrap of the influence slopes."""

    def pair(self, first: int, second: int) -> PairComparison:
        before, after = self.tables[first], self.tables[second]
        pairs = pair_rows(before, after)
        return PairComparison(
            before=before.manifest.step,
            after=after.manifest.step,
            changes=kind_changes(before, after, pairs, self.bootstrap),
            margins=margins(before, after, pairs, self.bootstrap),
            flows=flows(
                self.bins,
                [of_kind[first] for of_kind in self.masses],
                [of_kind[second] for of_kind in self.masses],
                self.bootstrap,
            ),
            influence=influence(before, after, pairs, self.few),
            only_before=pairs.only_before,
            only_after=pairs.only_after,
        )


def compare_run(
    tables: Sequence[ScoreTable],
    *,
    run: str,
    noise_floor: float | None = None,
    trained_log: TrainedLog | None = None,
    objective_has_negative: bool | None = None,
    allow_mixed: bool = False,
    seed: int = 0,
    replicates: int = REPLICATES,
    thresholds: Thresholds | None = None,
) -> Comparison:
    """Compare the checkpoints of a run.

    Args:
        tables: two or more, in any order, of different steps. Flow bins are fixed by
            the first step among them.
        run: name of the run.
        noise_floor: |Δ| of a kind's mean between two scorings of one checkpoint,
            nats/token; None where it was not measured.
        trained_log: probe ids trained on, by optimizer step.
        objective_has_negative: whether the training objective pushes any response
            down; None where it was not declared.
        allow_mixed: accept differing backends, tiers and dtypes.
        seed: of the bootstrap; results do not depend on the order of anything else.
        replicates: bootstrap replicates of all but the influence slopes.
        thresholds: numbers of the decision table.

    Raises:
        MismatchError: fewer than two tables, two of one step, or tables that must not
            be compared.
        ProbeError: a table holds a row twice or an unknown kind.
    """
    ordered = _in_order(tables)
    for before, after in pairwise(ordered):
        check_comparable(before, after, allow_mixed)
    for table in ordered[2:]:
        check_comparable(ordered[0], table, allow_mixed)
    limits = thresholds or Thresholds()
    work = _prepare(ordered, seed, replicates)
    last = len(ordered) - 1
    pairs = tuple(work.pair(step, step + 1) for step in range(last))
    return Comparison(
        run=run,
        steps=tuple(table.manifest.step for table in ordered),
        kinds=_kinds_throughout(ordered),
        curves=curves(ordered, work.bootstrap),
        pairs=pairs,
        overall=pairs[0] if last == 1 else work.pair(0, last),
        verdicts=_verdicts(
            work, limits, noise_floor, objective_has_negative, trained_log
        ),
        noise_floor=limits.nats(noise_floor),
        persistence_assessed=limits.persistence(len(ordered)),
        excluded=_excluded(ordered),
        notes=_notes(work, limits, noise_floor),
        manifests=tuple(table.manifest for table in ordered),
    )


def _in_order(tables: Sequence[ScoreTable]) -> tuple[ScoreTable, ...]:
    if not tables:
        raise MismatchError(
            "no checkpoints to compare: at least two scored checkpoints are needed"
        )
    ordered = tuple(sorted(tables, key=lambda table: table.manifest.step))
    steps = [table.manifest.step for table in ordered]
    if len(ordered) == 1:
        raise MismatchError(
            f"at least two checkpoints are needed, only step {steps[0]} exists. "
            "Score another checkpoint of the run."
        )
    for before, after in pairwise(ordered):
        first, second = before.manifest, after.manifest
        if first.step == second.step:
            raise MismatchError(
                f"step {first.step} is given twice: {first.checkpoint!r} of run "
                f"{first.run!r} and {second.checkpoint!r} of run {second.run!r}. "
                "Keep one table a step."
            )
    return ordered


def _prepare(tables: tuple[ScoreTable, ...], seed: int, replicates: int) -> _Run:
    found = [bins_along(tables[0], kind) for kind in FLOW_KINDS]
    bins = tuple(of_kind for of_kind in found if of_kind is not None)
    masses = tuple(
        tuple(bin_mass(of_kind, table) for table in tables) for of_kind in bins
    )
    few = min(replicates, INFLUENCE_REPLICATES)
    return _Run(tables, bins, masses, Bootstrap(seed, replicates), Bootstrap(seed, few))


def _verdicts(
    work: _Run,
    limits: Thresholds,
    noise_floor: float | None,
    objective_has_negative: bool | None,
    trained_log: TrainedLog | None,
) -> tuple[Verdict, ...]:
    found: list[Verdict] = []
    for split in get_args(Split):
        evidence = SplitEvidence(
            work.tables, split, work.bins, work.masses, work.bootstrap, limits
        )
        question = Question(
            evidence,
            nats=limits.nats(noise_floor),
            probability=limits.probability(noise_floor),
            objective_has_negative=objective_has_negative,
            trained_log=trained_log,
        )
        found += decide(question)
    return tuple(found)


def _kinds_throughout(tables: Sequence[ScoreTable]) -> tuple[str, ...]:
    scored = [set(table.kinds[usable(table)].tolist()) for table in tables]
    return tuple(kind for kind in KIND_NAMES if all(kind in have for have in scored))


def _excluded(tables: Sequence[ScoreTable]) -> tuple[Excluded, ...]:
    every = [item for table in tables for item in table.manifest.excluded]
    return tuple(dict.fromkeys(every))


def _notes(
    work: _Run, limits: Thresholds, noise_floor: float | None
) -> tuple[str, ...]:
    """What a reader of the comparison should know beside the numbers."""
    tables, notes = work.tables, []
    if not limits.persistence(len(tables)):
        notes.append(
            f"persistence not assessed: {len(tables)} checkpoints, fewer than "
            f"{limits.persistence_checkpoints}"
        )
    if noise_floor is None:
        notes.append(
            f"no noise floor was measured: {limits.change_nats} nats/token stands in"
        )
    first = tables[0].manifest
    if not work.bins:
        notes.append(
            f"no flows: the top tokens and argmax of step {first.step} were not stored"
        )
    for table, *masses in zip(tables, *work.masses, strict=True):
        if masses and not any(np.isfinite(mass.low).any() for mass in masses):
            notes.append(
                f"no flows at step {table.manifest.step}: {NO_TOKEN_SCORES} for its "
                "off-label positions"
            )
    reference = {table.manifest.reference_step for table in tables} - {None}
    if work.bins and reference - {first.step}:
        notes.append(
            f"flow bins are those of step {first.step}; the tables hold the top tokens "
            f"of step {', '.join(map(str, sorted(map(str, reference))))}, so flows are "
            "bounded where these differ"
        )
    for name in ("backend", "tier", "dtype"):
        values = sorted({str(getattr(table.manifest, name)) for table in tables})
        if len(values) > 1:
            notes.append(f"mixed {name}: {', '.join(values)}")
    for table in tables:
        broken = int(np.sum(~np.isfinite(table.logprob_sums)))
        if broken:
            notes.append(
                f"step {table.manifest.step}: {broken} responses without a finite sum "
                "count as not scored"
            )
    missing = int(np.sum([np.sum(align(tables[0], t) < 0) for t in tables[1:]]))
    if missing:
        notes.append(
            f"{missing} responses of step {first.step} are missing at later steps; "
            "curves keep to responses scored at every step"
        )
    return tuple(notes)
