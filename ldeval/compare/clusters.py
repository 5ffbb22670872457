"""From responses to clusters: which rows are independent, and their sums.

Clusters are prompts. A text that repeats across prompts (an irrelevant response drawn
with replacement, say) carries the same noise to each of them, so such prompts share a
cluster; which prompts do depends on the kinds that an estimate uses, hence on the
estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import (
    connected_components,
)

from ldeval.compare.stats import (
    DISPLAY_LEVEL,
    Bootstrap,
    Float,
    bounded_estimate,
    ratio_estimate,
)
from ldeval.records import Estimate

Strings = npt.NDArray[np.str_]
Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.bool_] | npt.NDArray[np.intp]
"""Rows by mask, or by number."""


@dataclass(frozen=True)
class Term:
    """One ratio of sums over responses, with its coefficient in an estimate."""

    prompts: Strings
    """[R] prompt of each row."""
    texts: Mapping[str, Strings]
    """Hashes of the response texts behind each row, [R] by kind."""
    numerators: Float
    """[R] finite."""
    denominators: Float
    """[R] finite, ≥ 0."""
    coefficient: float = 1.0
    missing: str = "no responses to compare"
    """Why there may be no rows, for the reason of an undefined estimate."""

    def __len__(self) -> int:
        return len(self.prompts)

    def at(self, rows: Rows) -> Term:
        """The rows given by mask or by number, in that order."""
        return replace(
            self,
            prompts=self.prompts[rows],
            texts={kind: texts[rows] for kind, texts in self.texts.items()},
            numerators=self.numerators[rows],
            denominators=self.denominators[rows],
        )

    def times(self, coefficient: float) -> Term:
        """The same rows with another coefficient."""
        return replace(self, coefficient=coefficient)


def cluster_labels(terms: Sequence[Term]) -> tuple[list[Labels], int]:
    """Clusters of the rows of several terms.

    Prompts that share the text of one kind are joined, directly or through others;
    equal texts of different kinds join nothing.

    Returns:
        For each term the cluster of each row, [R] in 0 … G − 1, and G.
    """
    names, prompts = _codes([term.prompts for term in terms])
    left = [np.zeros(0, np.int64)]
    right = [np.zeros(0, np.int64)]
    nodes, joined = names, False
    for kind in sorted({kind for term in terms for kind in term.texts}):
        users = [i for i, term in enumerate(terms) if kind in term.texts]
        distinct, texts = _codes([terms[i].texts[kind] for i in users])
        holders = np.unique(np.concatenate([prompts[i] for i in users]))
        # a text for each prompt: none is shared, so this kind joins nothing
        joined |= distinct < len(holders)
        left += [prompts[i] for i in users]
        right += [column + nodes for column in texts]
        nodes += distinct
    if not joined:
        return prompts, names
    ends = (np.concatenate(left), np.concatenate(right))
    graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(nodes, nodes))
    _, component = connected_components(graph, directed=False)
    distinct_components, labels = np.unique(component[:names], return_inverse=True)
    return [labels[column] for column in prompts], len(distinct_components)


def estimate(
    terms: Sequence[Term],
    *,
    unit: str,
    bootstrap: Bootstrap,
    level: float = DISPLAY_LEVEL,
) -> Estimate:
    """Σ of the terms' ratios of sums, with the interval over their clusters.

    NaN with the reason where a term has no rows.
    """
    for term in terms:
        if not len(term) or term.denominators.sum() <= 0:
            return Estimate.undefined(term.missing, unit=unit, level=level)
    labels, clusters = cluster_labels(terms)
    sums = [
        [
            np.bincount(label, weights=column, minlength=clusters)
            for column in (term.numerators, term.denominators)
        ]
        for term, label in zip(terms, labels, strict=True)
    ]
    return ratio_estimate(
        np.stack([numerators for numerators, _ in sums], axis=1),
        np.stack([denominators for _, denominators in sums], axis=1),
        np.array([term.coefficient for term in terms]),
        unit=unit,
        bootstrap=bootstrap,
        level=level,
        n=sum(len(term) for term in terms),
    )


def estimate_between(
    lower: Sequence[Term],
    upper: Sequence[Term],
    *,
    unit: str,
    bootstrap: Bootstrap,
    level: float = DISPLAY_LEVEL,
) -> Estimate:
    """The estimate where each row is known only to lie between two bounds.

    Args:
        lower, upper: the same rows with the lower and the upper numerators.
    """
    below = estimate(lower, unit=unit, bootstrap=bootstrap, level=level)
    if all(
        np.array_equal(a.numerators, b.numerators)
        for a, b in zip(lower, upper, strict=True)
    ):
        return below
    above = estimate(upper, unit=unit, bootstrap=bootstrap, level=level)
    return bounded_estimate(below, above)


def _codes(columns: Sequence[Strings]) -> tuple[int, list[Labels]]:
    """Number the distinct strings of several columns, alike across columns."""
    distinct, inverse = np.unique(np.concatenate(columns), return_inverse=True)
    ends = np.cumsum([len(column) for column in columns])[:-1]
    return len(distinct), np.split(inverse.astype(np.int64), ends)
