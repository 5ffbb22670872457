"""How responses moved one another over a whole run, in one split.

- pull relative to chosen, Δtok_k / Δtok_chosen, and collateral per margin,
  κ_k = −Δsum_k / ΔM over the prompts that have all three (Fieller);
- normalised change, Σ δ² / (1 − 2p + ‖π‖²) per token: LBK's stored-score form without
  the norm of the trained example, which no table holds (arXiv 2407.10490, appendix C);
- SignDelta, the change of the vocabulary's mean ln p; it says nothing about the label;
- location: Δsum = first + shared with the other of the pair + contrastive + end;
- similarity: slope of Δsum / n on the likeness of a response's tokens to chosen's.

Changes are end values (:mod:`evidence`), but of the last checkpoint alone where single
tokens are needed. ``memory`` holds what asks which examples were trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from ldeval.compare.clusters import Term, cluster_labels, estimate
from ldeval.compare.delta import NATS_PER_RESPONSE, NATS_PER_TOKEN
from ldeval.compare.digest import Digest
from ldeval.compare.evidence import SplitEvidence
from ldeval.compare.fieller import fieller_estimate
from ldeval.compare.memory import crossover_leak, spill_over
from ldeval.compare.pairing import split_rows
from ldeval.compare.provenance import TrainedLog
from ldeval.compare.reference import Reference
from ldeval.compare.series import Series, paired
from ldeval.compare.stats import (
    DISPLAY_LEVEL,
    Bootstrap,
    Float,
    slope_estimate,
    sums_by,
)
from ldeval.compare.stored import Index
from ldeval.records import (
    KIND_NAMES,
    CrossInfluence,
    Estimate,
    InfluenceCell,
    Location,
    Pull,
    SimilarityPoint,
)

DIMENSIONLESS = "dimensionless"
NATS = "nats"
SQUARE_NATS = "nats²/token"
MARGIN_UNCLEAR = "the margin did not clearly change"
CHOSEN_UNCLEAR = "chosen did not clearly change"
PAIR = ("chosen", "rejected")


def cross_influence(
    evidence: SplitEvidence,
    reference: Reference,
    cells: Sequence[InfluenceCell],
    trained_log: TrainedLog | None,
    bootstrap: Bootstrap,
) -> CrossInfluence:
    """Everything above for one split.

    Args:
        cells: kind × kind influence from the first to the last checkpoint.
        bootstrap: of the slopes and means here, shown at 95%.
    """
    return CrossInfluence(
        split=evidence.split,
        pulls=tuple(
            _pull(evidence, kind, bootstrap)
            for kind in KIND_NAMES
            if _has(evidence, kind)
        ),
        locations=tuple(
            _location(evidence, kind, bootstrap)
            for kind in PAIR
            if _has(evidence, kind)
        ),
        leak=crossover_leak(evidence, trained_log, bootstrap),
        spill=spill_over(evidence, trained_log, bootstrap),
        similarity=tuple(_similarity(evidence, reference, bootstrap)),
        order=cluster_order([c for c in cells if c.split == evidence.split]),
    )


def _has(evidence: SplitEvidence, kind: str) -> bool:
    return len(evidence.series(kind).term) > 0


# ------------------------------------------------------------------------------- pull


def _pull(evidence: SplitEvidence, kind: str, bootstrap: Bootstrap) -> Pull:
    return Pull(
        kind=kind,
        relative=relative_pull(evidence.series(kind), evidence.series("chosen")),
        per_margin=collateral(kind, evidence.series),
        normalised=_ended(evidence, kind, "normalised", SQUARE_NATS, bootstrap),
        sign_delta=_ended(evidence, kind, "mean_logprob_sum", NATS, bootstrap),
    )


def relative_pull(series: Series, chosen: Series) -> Estimate:
    """Δtok of a kind over Δtok of chosen."""
    return ratio_of_rates(series.term, chosen.term, CHOSEN_UNCLEAR)


def ratio_of_rates(above: Term, below: Term, missing: str) -> Estimate:
    """(Σ D / Σ N of one term) / (the same of another), with Fieller's interval."""
    terms = [above, below]
    for term in terms:
        if not len(term) or term.denominators.sum() <= 0:
            return _undefined(term.missing)
    labels, clusters = cluster_labels(terms)
    columns = []
    for term, label in zip(terms, labels, strict=True):
        sums = sums_by(label, term.numerators, clusters)
        sizes = sums_by(label, term.denominators, clusters)
        rate = sums.sum() / sizes.sum()
        columns.append(rate + clusters * (sums - rate * sizes) / sizes.sum())
    return fieller_estimate(
        *columns, unit=DIMENSIONLESS, n=sum(map(len, terms)), missing=missing
    )


def collateral(kind: str, found: Callable[[str], Series]) -> Estimate:
    """κ = −Δsum_k / ΔM over the prompts that have the kind, chosen and rejected.

    Args:
        found: the changes of a kind, by its name.
    """
    names = list(dict.fromkeys((kind, *PAIR)))
    series = [found(name) for name in names]
    if not all(len(part.term) for part in series):
        missing = next(p.term.missing for p in series if not len(p.term))
        return _undefined(missing)
    terms = {n: part.term for n, part in zip(names, paired(series), strict=True)}
    if not len(terms[kind]):
        return _undefined(terms[kind].missing)
    margin = terms["chosen"].numerators - terms["rejected"].numerators
    texts = {name: found for t in terms.values() for name, found in t.texts.items()}
    joint = replace(terms[kind], texts=texts)
    (labels,), clusters = cluster_labels([joint])
    lost, gained = (
        sums_by(labels, column, clusters)
        for column in (-terms[kind].numerators, margin)
    )
    return fieller_estimate(
        lost, gained, unit=DIMENSIONLESS, n=len(joint), missing=MARGIN_UNCLEAR
    )


def _ended(
    evidence: SplitEvidence, kind: str, name: str, unit: str, bootstrap: Bootstrap
) -> Estimate:
    """Σ of a column over Σ n: a moment of the last checkpoint, or a column's change."""
    first, last = evidence.tables[0], evidence.tables[-1]
    kept, rows = _ends(evidence, kind)
    if name in last.detail:
        values = last.detail[name][rows]
    elif name in last.columns:
        values = last.column(name)[rows] - first.column(name)[kept]
    else:
        return Estimate.undefined(f"not stored: {name}", unit=unit, level=DISPLAY_LEVEL)
    return _rate(evidence, kind, kept, values, unit, bootstrap)


def _ends(evidence: SplitEvidence, kind: str) -> tuple[Index, Index]:
    """Rows of a kind at the first and at the last checkpoint."""
    kept = np.flatnonzero(evidence.mask(kind) & (evidence.rows[-1] >= 0))
    return kept, evidence.rows[-1][kept]


def _rate(
    evidence: SplitEvidence,
    kind: str,
    kept: Index,
    values: Float,
    unit: str,
    bootstrap: Bootstrap,
    *,
    by_response: bool = False,
) -> Estimate:
    first = evidence.tables[0]
    weights = first.n_tokens[kept].astype(np.float64)
    if by_response:
        weights = np.ones(len(kept))
    term = Term(first.probe_ids[kept], {kind: first.text_hashes[kept]}, values, weights)
    return estimate([term.at(np.isfinite(values))], unit=unit, bootstrap=bootstrap)


# --------------------------------------------------------------------------- location


def _location(evidence: SplitEvidence, kind: str, bootstrap: Bootstrap) -> Location:
    kept, rows = _ends(evidence, kind)
    found = [
        _split_parts(table, index)
        for table, index in ((evidence.tables[0], kept), (evidence.tables[-1], rows))
    ]
    parts = {name: found[1][name] - found[0][name] for name in found[0]}
    return Location(
        kind,
        **{
            name: _rate(
                evidence,
                kind,
                kept,
                change,
                NATS_PER_RESPONSE,
                bootstrap,
                by_response=True,
            )
            for name, change in parts.items()
        },
    )


def _split_parts(table: Digest, rows: Index) -> Mapping[str, Float]:
    parts = table.parts("own").at(rows)
    # a response of one token is its first token, and has no other end
    end = np.where(parts.tokens > 1, parts.end, 0.0)
    shared = table.column("shared_sum")[rows]
    rest = parts.sums - parts.first - shared - end
    return {"first": parts.first, "shared": shared, "contrastive": rest, "end": end}


# ------------------------------------------------------------------------- similarity


def _similarity(
    evidence: SplitEvidence, reference: Reference, bootstrap: Bootstrap
) -> Sequence[SimilarityPoint]:
    """b(c) of Δsum / n since the first checkpoint on likeness to chosen, all kinds but
    chosen together, one a checkpoint."""
    first = evidence.tables[0]
    mask = np.zeros(len(first), bool)
    for kind in KIND_NAMES:
        if kind != "chosen":
            mask |= split_rows(first, kind, evidence.split == "trained")
    mask &= np.isfinite(reference.similarity) & (first.n_tokens > 0)
    found = []
    for table, rows in zip(evidence.tables[1:], evidence.rows[1:], strict=True):
        kept = np.flatnonzero(mask & (rows >= 0))
        gained = table.logprob_sums[rows[kept]] - first.logprob_sums[kept]
        texts = np.char.add(
            np.char.add(first.kinds[kept], "/"), first.text_hashes[kept]
        )
        labels = np.zeros(0, np.int64)
        if len(kept):
            term = Term(first.probe_ids[kept], {"": texts}, gained, gained)
            (labels,), _ = cluster_labels([term])
        slope = slope_estimate(
            reference.similarity[kept],
            gained / first.n_tokens[kept],
            labels,
            bootstrap=bootstrap,
        )
        slope = replace(slope, unit=NATS_PER_TOKEN)
        found.append(SimilarityPoint(table.manifest.step, slope))
    return found


# ------------------------------------------------------------------------------ order


def cluster_order(cells: Sequence[InfluenceCell]) -> tuple[str, ...]:
    """Kinds ordered so that those that moved alike stand together.

    Average linkage on 1 − ρ, ρ the rank correlation, leaves in their optimal order;
    kinds without one follow in their usual order.
    """
    rho = {(c.source, c.target): c.correlation for c in cells}
    kinds = [k for k in KIND_NAMES if any(k == c.source for c in cells)]
    known = [k for k in kinds if all(np.isfinite(rho.get((k, o), 1.0)) for o in kinds)]
    if len(known) > 2:
        distance = np.array(
            [[0.0 if a == b else 1.0 - rho[a, b] for b in known] for a in known]
        )
        condensed = squareform(0.5 * (distance + distance.T), checks=False)
        leaves = leaves_list(linkage(condensed, "average", optimal_ordering=True))
        known = [known[leaf] for leaf in leaves]
    return (*known, *(k for k in kinds if k not in known))


def _undefined(reason: str) -> Estimate:
    return Estimate.undefined(reason, unit=DIMENSIONLESS, level=DISPLAY_LEVEL)
