"""Influence that asks which examples were trained: crossover leak and spill-over.

Crossover leak: does learning y_j under its own prompt x_j raise it under another
prompt x_i? The slope over i of Δtok(y_j|x_i) on Δtok(y_j|x_j) for trained j, minus the
same for untrained j, y_j being the irrelevant responses whose source stands in the
probe set. Spill-over: between successive checkpoints, Δtok of a prompt's responses in
the pairs that trained on the prompt (direct) against those that did not.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import scipy.special as special

from ldeval.compare.clusters import Strings, Term, cluster_labels, estimate
from ldeval.compare.delta import NATS_PER_TOKEN
from ldeval.compare.digest import Digest
from ldeval.compare.evidence import SplitEvidence
from ldeval.compare.provenance import TrainedLog
from ldeval.compare.stats import DISPLAY_LEVEL, Bootstrap, Float, slope_estimate
from ldeval.compare.stored import Bool
from ldeval.records import KIND_NAMES, Estimate, SpillOver

IRRELEVANT = ("irrelevant_train", "irrelevant_test")


def trained_between(log: TrainedLog, first: int, last: int) -> frozenset[str]:
    """Probes trained on after step ``first`` and up to step ``last``."""
    steps = [step for step in log if first < step <= last]
    return frozenset[str]().union(*(log[step] for step in steps))


def crossover_leak(
    evidence: SplitEvidence, log: TrainedLog | None, bootstrap: Bootstrap
) -> Estimate:
    """The difference of slopes; undefined, with the reason, where one is missing.

    Without a record of what was trained, a source counts as trained where its probe
    is marked as trained on.
    """
    trained, untrained = _source_pairs(evidence, log)
    slopes = []
    for name, rows in (("trained", trained), ("untrained", untrained)):
        x, y, prompts, texts = rows
        if not len(x):
            reason = f"no irrelevant response whose {name} source is in the probe set"
            return _undefined(reason)
        (labels,), _ = cluster_labels([Term(prompts, {"source": texts}, y, y)])
        slope = slope_estimate(x, y, labels, bootstrap=bootstrap)
        if not math.isfinite(slope.low):
            return _undefined(f"{name} sources: {slope.reason}")
        slopes.append(slope)
    return _difference(*slopes)


def _difference(one: Estimate, two: Estimate) -> Estimate:
    """one − two of separate clusters; Student's t with the smaller one's freedom."""
    error = math.hypot(one.se, two.se)
    freedom = min(one.clusters, two.clusters) - 1
    reach = float(special.stdtrit(freedom, 0.5 + DISPLAY_LEVEL / 2)) * error
    value = one.value - two.value
    return Estimate(
        value,
        value - reach,
        value + reach,
        error,
        DISPLAY_LEVEL,
        one.n + two.n,
        one.clusters + two.clusters,
        "dimensionless",
    )


_Columns = tuple[Float, Float, Strings, Strings]


def _source_pairs(
    evidence: SplitEvidence, log: TrainedLog | None
) -> tuple[_Columns, _Columns]:
    """Δtok of y_j under its own and under another prompt, for trained and untrained j:
    x [R], y [R], the other prompts [R] and the texts [R]."""
    first, last = evidence.tables[0], evidence.tables[-1]
    rows = evidence.rows[-1]
    gained = np.where(rows >= 0, last.logprob_sums[rows] - first.logprob_sums, np.nan)
    per_token = gained / np.maximum(first.n_tokens, 1)
    chosen = np.flatnonzero((first.kinds == "chosen") & np.isfinite(per_token))
    sources = {str(first.text_hashes[row]): int(row) for row in chosen}
    ids = None
    if log is not None:
        ids = trained_between(log, first.manifest.step, last.manifest.step)
    found: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for kind in IRRELEVANT:
        for row in np.flatnonzero(evidence.mask(kind) & np.isfinite(per_token)):
            source = sources.get(str(first.text_hashes[row]))
            if source is None:
                continue
            probe = str(first.probe_ids[source])
            trained = bool(first.trained[source]) if ids is None else probe in ids
            found[0 if trained else 1].append((source, int(row)))
    return _columns(first, per_token, found[0]), _columns(first, per_token, found[1])


def _columns(first: Digest, per_token: Float, pairs: list[tuple[int, int]]) -> _Columns:
    left = np.array([source for source, _ in pairs], np.intp)
    right = np.array([row for _, row in pairs], np.intp)
    return (
        per_token[left],
        per_token[right],
        first.probe_ids[right],
        first.text_hashes[right],
    )


def spill_over(
    evidence: SplitEvidence, log: TrainedLog | None, bootstrap: Bootstrap
) -> tuple[SpillOver, ...]:
    """One a kind; empty where it is not known what was trained when."""
    if log is None:
        return ()
    steps = [table.manifest.step for table in evidence.tables]
    trained = [trained_between(log, a, b) for a, b in pairwise(steps)]
    if not any(trained):
        return ()
    found = []
    for kind in KIND_NAMES:
        series = evidence.series(kind)
        if len(series.term):
            direct = np.array(
                [np.isin(series.term.prompts, sorted(ids)) for ids in trained]
            )
            found.append(_spill(kind, series.term, series.changes, direct, bootstrap))
    return tuple(found)


def _spill(
    kind: str, term: Term, changes: Float, direct: Bool, bootstrap: Bootstrap
) -> SpillOver:
    """Args: changes: [C, R] since the first; direct: [C − 1, R]."""
    steps = np.diff(changes, axis=0)
    known = np.isfinite(steps)
    terms = []
    for mask, name in ((direct & known, "trained"), (~direct & known, "left")):
        numerators = np.where(mask, steps, 0.0).sum(axis=0)
        counts = mask.sum(axis=0)
        rows = np.flatnonzero(counts > 0)
        terms.append(
            Term(
                term.prompts[rows],
                {key: texts[rows] for key, texts in term.texts.items()},
                numerators[rows],
                (counts * term.denominators)[rows],
                missing=f"no successive pair {name} such a prompt",
            )
        )
    one, two = (_estimate([part], bootstrap) for part in terms)
    contrast = _estimate([terms[0], terms[1].times(-1.0)], bootstrap)
    return SpillOver(kind, one, two, contrast)


def _estimate(terms: list[Term], bootstrap: Bootstrap) -> Estimate:
    return estimate(terms, unit=NATS_PER_TOKEN, bootstrap=bootstrap)


def _undefined(reason: str) -> Estimate:
    return Estimate.undefined(reason, unit="dimensionless", level=DISPLAY_LEVEL)
