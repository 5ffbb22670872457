"""How kinds move together: does learning one response carry another with it?

For each ordered pair of kinds, the slope over prompts of Δtok(target) on
Δtok(source), Δtok here being the response's own Δsum / n (nats/token). A slope of 0.5
says that where the source gained one nat/token more, the target gained half a nat
more. It is an association across prompts, not the derivative that the eNTK predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from ldeval.compare.clusters import Strings, Term, cluster_labels
from ldeval.compare.pairing import PairedRows, split_rows
from ldeval.compare.stats import Bootstrap, Float, rank_correlation, slope_estimate
from ldeval.records import KIND_NAMES, InfluenceCell, ScoreTable, Split, split_name

MIN_PROMPTS = 5
"""Fewer prompts with both kinds leave a slope undefined."""


@dataclass(frozen=True)
class _Column:
    """Per-response changes of one kind, sorted by prompt."""

    prompts: Strings
    texts: Strings
    change: Float
    """[R] Δsum / n, nats/token."""


def influence(
    before: ScoreTable, after: ScoreTable, pairs: PairedRows, bootstrap: Bootstrap
) -> tuple[InfluenceCell, ...]:
    """Kind × kind slopes, trained then held out, without the diagonal.

    Undefined, with the reason, where two kinds share fewer than ``MIN_PROMPTS``
    prompts or the source does not vary.
    """
    cells = []
    for trained in (True, False):
        columns = _columns(before, after, pairs, trained)
        split = split_name(trained)
        for source, target in permutations(columns, 2):
            cells.append(_cell(columns, source, target, split, bootstrap))
    return tuple(cells)


def _columns(
    before: ScoreTable, after: ScoreTable, pairs: PairedRows, trained: bool
) -> dict[str, _Column]:
    change = after.logprob_sums[pairs.after] - before.logprob_sums[pairs.before]
    lengths = before.n_tokens[pairs.before]
    found = {}
    for kind in KIND_NAMES:
        mask = split_rows(before, kind, trained)[pairs.before] & (lengths > 0)
        kept = np.flatnonzero(mask)
        rows = pairs.before[kept]
        order = np.argsort(before.probe_ids[rows], kind="stable")
        kept, rows = kept[order], rows[order]
        if len(kept):
            per_token = change[kept] / lengths[kept]
            found[kind] = _Column(
                before.probe_ids[rows], before.text_hashes[rows], per_token
            )
    return found


def _cell(
    columns: dict[str, _Column],
    source: str,
    target: str,
    split: Split,
    bootstrap: Bootstrap,
) -> InfluenceCell:
    x, y = columns[source], columns[target]
    prompts, left, right = np.intersect1d(
        x.prompts, y.prompts, assume_unique=True, return_indices=True
    )
    texts = {source: x.texts[left], target: y.texts[right]}
    explaining, explained = x.change[left], y.change[right]
    (labels,), _ = cluster_labels([Term(prompts, texts, explained, explaining)])
    slope = slope_estimate(
        explaining, explained, labels, bootstrap=bootstrap, min_rows=MIN_PROMPTS
    )
    correlation = rank_correlation(explaining, explained)
    return InfluenceCell(source, target, split, slope, correlation)
