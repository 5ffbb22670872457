"""A whole run: its checkpoints in order, compared pair by pair and end to end.

Checkpoints are read one after another, each part by part, and reduced to a digest;
only the first, the last and the two of the current pair are kept in full. Memory is
that of the reference's ids and of a digest for each checkpoint: some 30 MB for 60,000
responses, a fortieth of what the checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import numpy as np

from ldeval.compare.claims import claims
from ldeval.compare.cross import cross_influence
from ldeval.compare.delta import NO_TOKEN_SCORES, curves, kind_changes, margins
from ldeval.compare.digest import Digest, digest
from ldeval.compare.evidence import SplitEvidence
from ldeval.compare.families import adjusted, adjusted_pairs
from ldeval.compare.flow import STRATA, flows
from ldeval.compare.greedy import NOT_FOLLOWED, greedy_path
from ldeval.compare.influence import influence
from ldeval.compare.laws import law_tests, richer_curves
from ldeval.compare.pairing import align, check_manifests, pair_rows, usable
from ldeval.compare.provenance import TrainedLog
from ldeval.compare.reference import DETAILED, Reference, build_reference
from ldeval.compare.significance import SignFlips
from ldeval.compare.squeeze import Question, decide
from ldeval.compare.stats import REPLICATES, Bootstrap
from ldeval.compare.thresholds import Thresholds
from ldeval.compare.trajectory import trajectories
from ldeval.errors import MismatchError
from ldeval.records import (
    KIND_NAMES,
    Comparison,
    Excluded,
    GreedyDecodes,
    PairComparison,
    ScoreSource,
    Split,
)

FEWER_REPLICATES = 999
"""For what is shown at 95% and of which there is much: curves, successive pairs,
influence slopes."""


@dataclass(frozen=True)
class _Draws:
    """Everything random, seeded once for the run."""

    full: Bootstrap
    few: Bootstrap
    none: Bootstrap
    """Student's t intervals, for the slopes of successive pairs."""
    signs: SignFlips

    @classmethod
    def of(cls, seed: int, replicates: int) -> _Draws:
        few = min(replicates, FEWER_REPLICATES)
        return cls(
            Bootstrap(seed, replicates),
            Bootstrap(seed, few),
            Bootstrap(seed, 0),
            SignFlips(seed),
        )


def compare_run(
    tables: Sequence[ScoreSource],
    *,
    run: str,
    noise_floor: float | None = None,
    trained_log: TrainedLog | None = None,
    decodes: Sequence[GreedyDecodes] = (),
    objective_has_negative: bool | None = None,
    objective: str | None = None,
    allow_mixed: bool = False,
    seed: int = 0,
    replicates: int = REPLICATES,
    thresholds: Thresholds | None = None,
) -> Comparison:
    """Compare the checkpoints of a run.

    Args:
        tables: two or more checkpoints, tables in memory or on disk, in any order, of
            different steps. Flow bins are fixed by the first step among them.
        run: name of the run.
        noise_floor: |Δ| of a kind's mean between two scorings of one checkpoint,
            nats/token; None where it was not measured.
        trained_log: probe ids trained on, by optimizer step.
        decodes: greedy decodes of the checkpoints, as far as they were kept.
        objective_has_negative: whether the training objective pushes any response
            down; None where it was not declared.
        objective: the objective by name (``sft``, ``dpo`` …), for the paper's claims,
            which are about one or the other; None where it was not declared.
        allow_mixed: accept differing backends, tiers and dtypes.
        seed: of the bootstrap; results do not depend on the order of anything else.
        replicates: bootstrap replicates of verdicts and of first → last.
        thresholds: numbers of the decision table.

    Raises:
        MismatchError: fewer than two tables, two of one step, or tables that must not
            be compared.
        ProbeError: a table holds a row twice or an unknown kind.
    """
    ordered = _in_order(tables)
    for before, after in pairwise(ordered):
        check_manifests(before.manifest, after.manifest, allow_mixed)
    for source in ordered[2:]:
        check_manifests(ordered[0].manifest, source.manifest, allow_mixed)
    limits = thresholds or Thresholds()
    draws = _Draws.of(seed, replicates)
    reference = build_reference(ordered[0])
    kept, pairs = _walk(ordered, reference, draws)
    overall = pairs[0] if len(kept) == 2 else _overall(kept[0], kept[-1], draws)
    evidence = [
        SplitEvidence(kept, split, draws.full, limits) for split in get_args(Split)
    ]
    splits = [
        Question(
            part,
            nats=limits.nats(noise_floor),
            probability=limits.probability(noise_floor),
            objective_has_negative=objective_has_negative,
            trained_log=trained_log,
        )
        for part in evidence
    ]
    greedy = greedy_path(
        decodes,
        {table.manifest.step: table.manifest.weights_hash for table in kept},
        limits.nats(noise_floor),
        draws.full,
    )
    notes = _notes(kept, reference, limits, noise_floor)
    if decodes and greedy is None:
        notes = (*notes, NOT_FOLLOWED)
    return Comparison(
        run=run,
        steps=tuple(table.manifest.step for table in kept),
        kinds=_kinds_throughout(kept),
        curves=curves(kept, draws.few),
        pairs=adjusted_pairs(pairs),
        overall=adjusted(overall),
        trajectories=tuple(
            t for part in evidence for t in trajectories(part, limits.nats(noise_floor))
        ),
        richer=richer_curves(kept[-1], reference, draws.full),
        laws=law_tests(kept[-1], draws.full),
        cross=tuple(
            cross_influence(part, reference, overall.influence, trained_log, draws.few)
            for part in evidence
            if part.kinds
        ),
        claims=tuple(c for ask in splits for c in claims(ask, objective)),
        verdicts=tuple(v for ask in splits for v in decide(ask)),
        noise_floor=limits.nats(noise_floor),
        flow_floor=limits.probability(noise_floor),
        persistence_assessed=limits.persistence(len(kept)),
        excluded=_excluded(kept),
        notes=notes,
        manifests=tuple(table.manifest for table in kept),
        greedy=greedy,
    )


def _walk(
    sources: Sequence[ScoreSource], reference: Reference, draws: _Draws
) -> tuple[list[Digest], list[PairComparison]]:
    """Digests of all checkpoints, the inner ones slim, and the successive pairs."""
    kept: list[Digest] = []
    pairs: list[PairComparison] = []
    last = len(sources) - 1
    for number, source in enumerate(sources):
        now = digest(source, reference, detailed=number == last)
        if number:
            before = kept[-1]
            successive = last > 1
            pairs.append(
                _successive(before, now, draws, number == 1)
                if successive
                else _overall(before, now, draws)
            )
            if number > 1:
                kept[-1] = before.slim()
        kept.append(now)
    return kept, pairs


def _successive(
    before: Digest, after: Digest, draws: _Draws, first: bool
) -> PairComparison:
    """One of many pairs: fewer replicates, and strata of flow where they matter."""
    pairs = pair_rows(before, after)
    others = [kind for kind in KIND_NAMES if kind not in DETAILED]
    found = [
        *flows(before, after, pairs, draws.few, DETAILED, STRATA, from_reference=first),
        *flows(before, after, pairs, draws.few, others, ("all",), from_reference=first),
    ]
    return PairComparison(
        before=before.manifest.step,
        after=after.manifest.step,
        changes=kind_changes(before, after, pairs, draws.few, draws.signs),
        margins=margins(before, after, pairs, draws.few),
        flows=tuple(sorted(found, key=lambda flow: KIND_NAMES.index(flow.kind))),
        influence=influence(before, after, pairs, draws.none),
        only_before=pairs.only_before,
        only_after=pairs.only_after,
    )


def _overall(before: Digest, after: Digest, draws: _Draws) -> PairComparison:
    pairs = pair_rows(before, after)
    return PairComparison(
        before=before.manifest.step,
        after=after.manifest.step,
        changes=kind_changes(before, after, pairs, draws.full, draws.signs),
        margins=margins(before, after, pairs, draws.full),
        flows=flows(before, after, pairs, draws.full),
        influence=influence(before, after, pairs, draws.few),
        only_before=pairs.only_before,
        only_after=pairs.only_after,
    )


def _in_order(tables: Sequence[ScoreSource]) -> tuple[ScoreSource, ...]:
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


def _kinds_throughout(tables: Sequence[Digest]) -> tuple[str, ...]:
    scored = [set(table.kinds[usable(table)].tolist()) for table in tables]
    return tuple(kind for kind in KIND_NAMES if all(kind in have for have in scored))


def _excluded(tables: Sequence[Digest]) -> tuple[Excluded, ...]:
    every = [item for table in tables for item in table.manifest.excluded]
    return tuple(dict.fromkeys(every))


def _notes(
    tables: Sequence[Digest],
    known: Reference,
    limits: Thresholds,
    noise_floor: float | None,
) -> tuple[str, ...]:
    """What a reader of the comparison should know beside the numbers."""
    notes = []
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
    if not known.has_bins:
        notes.append(
            f"no flows: the top tokens and argmax of step {first.step} were not stored"
        )
    for table in tables:
        if table.mass is not None and not np.isfinite(table.mass).any():
            notes.append(
                f"no flows at step {table.manifest.step}: {NO_TOKEN_SCORES} for its "
                "positions"
            )
    reference = {table.manifest.reference_step for table in tables} - {None}
    if known.has_bins and reference - {first.step}:
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
    absent = [align(tables[0], table) < 0 for table in tables[1:]]
    missing = int(np.sum(usable(tables[0]) & np.any(absent, axis=0)))
    if missing:
        notes.append(
            f"{missing} responses of step {first.step} are missing at later steps; "
            "curves keep to responses scored at every step"
        )
    return tuple(notes)
