"""What changed between two checkpoints, kind by kind, and how the levels ran.

The change of a kind is a *ratio of sums*, Δtok = Σ_i Δsum_i / Σ_i n_i over its
responses (nats/token): every token counts alike, and kinds of different length can be
set side by side. Sums are kept too, in nats/response. All changes are after − before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ldeval.compare.clusters import Strings, Term, cluster_labels, estimate
from ldeval.compare.digest import Digest, ResponseParts
from ldeval.compare.pairing import PairedRows, Rows, align, split_rows
from ldeval.compare.significance import SignFlips
from ldeval.compare.stats import Bootstrap, Float, sums_by
from ldeval.records import (
    KIND_NAMES,
    QUANTILES,
    CurvePoint,
    Estimate,
    KindChange,
    Margin,
    Split,
    split_name,
)

NATS_PER_TOKEN = "nats/token"
NATS_PER_RESPONSE = "nats/response"
ARGMAX_ALONG = ("chosen", "rejected")
"""The kinds along which the most probable token is followed."""

NO_TOKEN_SCORES = "per-token scores not stored"
NO_ARGMAX = "argmax log-probabilities not stored"
NO_FROZEN = "the first checkpoint's argmax was not followed"
TOO_SHORT = "no response has three tokens"
NOT_MATCHED = "no probe whose shortest kind has five tokens"


def kind_changes(
    before: Digest,
    after: Digest,
    pairs: PairedRows,
    bootstrap: Bootstrap,
    signs: SignFlips | None = None,
) -> tuple[KindChange, ...]:
    """One a kind and split, kinds in the order of ``KINDS``, argmax rows last.

    A kind without a single paired response in a split has no row there. An argmax row
    whose column was not stored is NaN with that reason. p-values are not adjusted yet.

    Args:
        signs: draws of the permutation test; None for no p-values.
    """
    plan = [(kind, kind, "own", NO_TOKEN_SCORES) for kind in KIND_NAMES]
    plan += [(f"argmax:{kind}", kind, "argmax", NO_ARGMAX) for kind in ARGMAX_ALONG]
    plan += [(f"frozen:{kind}", kind, "frozen", NO_FROZEN) for kind in ARGMAX_ALONG]
    changes = []
    for name, kind, of, missing in plan:
        earlier = before.parts(of).at(pairs.before)
        later = after.parts(of).at(pairs.after)
        tested = signs if of == "own" else None
        for split, mask in splits(before, kind):
            kept = np.flatnonzero(mask[pairs.before])
            if len(kept):
                rows = pairs.before[kept]
                texts = {kind: before.text_hashes[rows]}
                change = _Change(
                    before.probe_ids[rows],
                    texts,
                    earlier.at(kept),
                    later.at(kept),
                    missing,
                    bootstrap,
                    tested,
                )
                changes.append(change.summary(name, split))
    return tuple(changes)


def splits(table: Rows, kind: str) -> Iterator[tuple[Split, npt.NDArray[np.bool_]]]:
    """Trained, then held out, each with the rows [R] that hold ``kind``."""
    for trained in (True, False):
        yield split_name(trained), split_rows(table, kind, trained)


@dataclass(frozen=True)
class _Change:
    """The paired responses of one kind and split."""

    prompts: Strings
    texts: dict[str, Strings]
    before: ResponseParts
    after: ResponseParts
    missing: str
    bootstrap: Bootstrap
    signs: SignFlips | None

    def summary(self, kind: str, split: Split) -> KindChange:
        changed = self.after.sums - self.before.sums
        known = np.isfinite(changed)
        one, tokens = np.ones(len(changed)), self.before.tokens
        inner = np.maximum(tokens - 2.0, 0.0)
        first = self.after.first - self.before.first
        body = self.after.body - self.before.body
        end = self.after.end - self.before.end
        matched = self.after.matched - self.before.matched
        short = TOO_SHORT if np.isfinite(first).any() else self.missing
        unmatched = NOT_MATCHED if np.isfinite(first).any() else self.missing
        each = changed[known] / np.maximum(tokens[known], 1.0)
        spread = np.quantile(each, QUANTILES) if len(each) else [math.nan] * 5
        return KindChange(
            kind=kind,
            split=split,
            n=int(known.sum()),
            mean_tokens=_mean(tokens[known]),
            before_sum=_mean(self.before.sums[known]),
            after_sum=_mean(self.after.sums[known]),
            delta_sum=self._estimate(changed, one, NATS_PER_RESPONSE),
            delta_tok=self._estimate(changed, tokens, NATS_PER_TOKEN),
            share_fell=_mean((changed < 0)[known].astype(np.float64)),
            first=self._estimate(first, one, NATS_PER_TOKEN),
            body=self._estimate(body, inner, NATS_PER_TOKEN, short),
            end=self._estimate(end, one, NATS_PER_TOKEN),
            matched=self._estimate(
                matched, self.before.matched_tokens, NATS_PER_TOKEN, unmatched
            ),
            quantiles=tuple(map(float, spread)),
            p_value=self._p_value(changed),
            p_adjusted=math.nan,
        )

    def _p_value(self, change: Float) -> float:
        """Of the hypothesis that the change of each cluster is symmetric about 0."""
        if self.signs is None:
            return math.nan
        term = Term(self.prompts, self.texts, change, np.ones(len(change)))
        term = term.at(np.isfinite(change))
        if not len(term):
            return math.nan
        (labels,), clusters = cluster_labels([term])
        sums = sums_by(labels, term.numerators, clusters)
        return self.signs.p_value(sums)

    def _estimate(
        self, change: Float, weight: Float, unit: str, missing: str | None = None
    ) -> Estimate:
        term = Term(
            self.prompts, self.texts, change, weight, missing=missing or self.missing
        ).at(np.isfinite(change))
        return estimate([term], unit=unit, bootstrap=self.bootstrap)


def margins(
    before: Rows, after: Rows, pairs: PairedRows, bootstrap: Bootstrap
) -> tuple[Margin, ...]:
    """Chosen − rejected over the prompts that have both, one a split."""
    found = []
    for trained in (True, False):
        chosen = split_rows(before, "chosen", trained)[pairs.before]
        rejected = split_rows(before, "rejected", trained)[pairs.before]
        ids = before.probe_ids[pairs.before]
        _, left, right = np.intersect1d(ids[chosen], ids[rejected], return_indices=True)
        if len(left):
            both = np.flatnonzero(chosen)[left], np.flatnonzero(rejected)[right]
            split = split_name(trained)
            found.append(_margin(before, after, pairs, both, split, bootstrap))
    return tuple(found)


def _margin(
    before: Rows,
    after: Rows,
    pairs: PairedRows,
    both: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]],
    split: Split,
    bootstrap: Bootstrap,
) -> Margin:
    chosen, rejected = (pairs.before[rows] for rows in both)
    later = [after.logprob_sums[pairs.after[rows]] for rows in both]
    earlier = [before.logprob_sums[rows] for rows in (chosen, rejected)]
    changes = [b - a for a, b in zip(earlier, later, strict=True)]
    prompts = before.probe_ids[chosen]
    texts = {
        "chosen": before.text_hashes[chosen],
        "rejected": before.text_hashes[rejected],
    }
    lengths = [before.n_tokens[rows].astype(float) for rows in (chosen, rejected)]
    summed = Term(prompts, texts, changes[0] - changes[1], np.ones(len(prompts)))
    per_token = [
        Term(prompts, texts, change, length, sign)
        for change, length, sign in zip(changes, lengths, (1.0, -1.0), strict=True)
    ]
    return Margin(
        split=split,
        before_sum=_mean(earlier[0] - earlier[1]),
        after_sum=_mean(later[0] - later[1]),
        delta_sum=estimate([summed], unit=NATS_PER_RESPONSE, bootstrap=bootstrap),
        delta_tok=estimate(per_token, unit=NATS_PER_TOKEN, bootstrap=bootstrap),
    )


def curves(tables: Sequence[Digest], bootstrap: Bootstrap) -> tuple[CurvePoint, ...]:
    """Level of each kind at each checkpoint, over the responses scored at every one.

    Keeping to common responses makes a curve move only because the model did. The
    interval is that of the change since the first checkpoint, paired by prompt and
    laid around the level: prompts differ in level far more than in change, and it is
    the change that a curve is read for. It has no width at the first checkpoint.
    Argmax rows follow where every checkpoint holds them. Ordered by kind, split, step.
    """
    rows = np.stack([align(tables[0], table) for table in tables])
    everywhere = (rows >= 0).all(axis=0)
    plan = [(kind, kind, "own") for kind in KIND_NAMES]
    for of in ("argmax", "frozen"):
        if all(f"{of}_sum" in table.columns for table in tables):
            plan += [(f"{of}:{kind}", kind, of) for kind in ARGMAX_ALONG]
    points = []
    for name, kind, of in plan:
        for split, mask in splits(tables[0], kind):
            kept = np.flatnonzero(mask & everywhere)
            if not len(kept):
                continue
            first = tables[0].parts(of).at(rows[0][kept])
            prompts = tables[0].probe_ids[kept]
            texts = {kind: tables[0].text_hashes[kept]}
            for table, index in zip(tables, rows, strict=True):
                level = table.parts(of).at(index[kept])
                work = _Level(prompts, texts, first, level, bootstrap)
                points.append(work.point(table.manifest.step, name, split))
    return tuple(points)


@dataclass(frozen=True)
class _Level:
    """Responses of one kind and split at the first checkpoint and at another."""

    prompts: Strings
    texts: dict[str, Strings]
    first: ResponseParts
    level: ResponseParts
    bootstrap: Bootstrap

    def point(self, step: int, kind: str, split: Split) -> CurvePoint:
        tokens, matched = self.first.tokens, self.first.matched_tokens
        whole = self.first.sums, self.level.sums
        short = self.first.matched, self.level.matched
        return CurvePoint(
            step=step,
            kind=kind,
            split=split,
            mean_sum=self._around(*whole, np.ones(len(tokens)), NATS_PER_RESPONSE),
            per_token=self._around(*whole, tokens, NATS_PER_TOKEN),
            matched=self._around(*short, matched, NATS_PER_TOKEN, NOT_MATCHED),
        )

    def _around(
        self,
        first: Float,
        level: Float,
        weights: Float,
        unit: str,
        missing: str = NO_ARGMAX,
    ) -> Estimate:
        """A level, with the interval of its change since the first checkpoint."""
        known = np.isfinite(first) & np.isfinite(level)
        change = Term(
            self.prompts, self.texts, level - first, weights, missing=missing
        ).at(known)
        found = estimate([change], unit=unit, bootstrap=self.bootstrap)
        if known.any():
            found = _raised(found, float(first[known].sum() / weights[known].sum()))
        return found


def _raised(change: Estimate, level: float) -> Estimate:
    return replace(
        change,
        value=change.value + level,
        low=change.low + level,
        high=change.high + level,
    )


def _mean(values: Float) -> float:
    return float(values.mean()) if len(values) else math.nan
