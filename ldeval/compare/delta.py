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

from ldeval.compare.clusters import Strings, Term, estimate
from ldeval.compare.pairing import PairedRows, align, split_rows
from ldeval.compare.stats import Bootstrap, Float
from ldeval.records import (
    KIND_NAMES,
    CurvePoint,
    Estimate,
    FloatArray,
    KindChange,
    Margin,
    ScoreTable,
    Split,
    split_name,
)

NATS_PER_TOKEN = "nats/token"
NATS_PER_RESPONSE = "nats/response"
ARGMAX_ALONG = ("chosen", "rejected")
"""The kinds along which the most probable token is followed."""

NO_TOKEN_SCORES = "per-token scores not stored"
NO_ARGMAX = "argmax log-probabilities not stored"
TOO_SHORT = "no response has three tokens"


@dataclass(frozen=True)
class ResponseParts:
    """One log-probability column of one table, gathered by response."""

    tokens: Float
    """[R] tokens in the response."""
    sums: Float
    """[R] Σ over the response, nats; NaN where unknown."""
    first: Float
    """[R] the first token, nats."""
    body: Float
    """[R] Σ without the first and the last token, nats; NaN below three tokens."""
    end: Float
    """[R] the last token, nats."""

    def at(self, rows: npt.NDArray[np.intp]) -> ResponseParts:
        """The parts of ``rows``."""
        columns = (self.tokens, self.sums, self.first, self.body, self.end)
        return ResponseParts(*(column[rows] for column in columns))


def label_parts(table: ScoreTable) -> ResponseParts:
    """Parts of the responses' own tokens; sums are the stored ones."""
    return _parts(table, table.tokens.logprobs, table.logprob_sums)


def argmax_parts(table: ScoreTable) -> ResponseParts:
    """Parts of the most probable token at each position, Σ_m max_v ln π(v|c_m).

    NaN throughout where the table does not hold it.
    """
    column = table.tokens.argmax_logprobs
    if column is None:
        column = np.full(len(table.tokens), np.nan)
    return _parts(table, column, table.sums(column))


def _parts(table: ScoreTable, column: FloatArray, sums: FloatArray) -> ResponseParts:
    lengths = table.n_tokens
    padded = np.append(np.asarray(column, np.float64), np.nan)
    filled = lengths > 0
    first = padded[np.where(filled, table.offsets[:-1], -1)]
    end = padded[np.where(filled, table.offsets[1:] - 1, -1)]
    body = np.where(lengths >= 3, table.sums(column) - first - end, np.nan)
    whole = np.asarray(sums, np.float64)
    return ResponseParts(lengths.astype(np.float64), whole, first, body, end)


def kind_changes(
    before: ScoreTable, after: ScoreTable, pairs: PairedRows, bootstrap: Bootstrap
) -> tuple[KindChange, ...]:
    """One a kind and split, kinds in the order of ``KINDS``, argmax rows last.

    A kind without a single paired response in a split has no row there. An argmax row
    whose column was not stored is NaN with that reason.
    """
    own = label_parts(before).at(pairs.before), label_parts(after).at(pairs.after)
    top = argmax_parts(before).at(pairs.before), argmax_parts(after).at(pairs.after)
    plan = [(kind, kind, own, NO_TOKEN_SCORES) for kind in KIND_NAMES]
    plan += [(f"argmax:{kind}", kind, top, NO_ARGMAX) for kind in ARGMAX_ALONG]
    changes = []
    for name, kind, (earlier, later), missing in plan:
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
                )
                changes.append(change.summary(name, split))
    return tuple(changes)


def splits(
    table: ScoreTable, kind: str
) -> Iterator[tuple[Split, npt.NDArray[np.bool_]]]:
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

    def summary(self, kind: str, split: Split) -> KindChange:
        changed = self.after.sums - self.before.sums
        known = np.isfinite(changed)
        one, tokens = np.ones(len(changed)), self.before.tokens
        inner = np.maximum(tokens - 2.0, 0.0)
        first = self.after.first - self.before.first
        body = self.after.body - self.before.body
        end = self.after.end - self.before.end
        short = TOO_SHORT if np.isfinite(first).any() else self.missing
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
        )

    def _estimate(
        self, change: Float, weight: Float, unit: str, missing: str | None = None
    ) -> Estimate:
        term = Term(
            self.prompts, self.texts, change, weight, missing=missing or self.missing
        ).at(np.isfinite(change))
        return estimate([term], unit=unit, bootstrap=self.bootstrap)


def margins(
    before: ScoreTable, after: ScoreTable, pairs: PairedRows, bootstrap: Bootstrap
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
    before: ScoreTable,
    after: ScoreTable,
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


def curves(
    tables: Sequence[ScoreTable], bootstrap: Bootstrap
) -> tuple[CurvePoint, ...]:
    """Level of each kind at each checkpoint, over the responses scored at every one.

    Keeping to common responses makes a curve move only because the model did. The
    interval is that of the change since the first checkpoint, paired by prompt and
    laid around the level: prompts differ in level far more than in change, and it is
    the change that a curve is read for. It has no width at the first checkpoint.
    Argmax rows follow where every checkpoint holds them. Ordered by kind, split, step.
    """
    rows = np.stack([align(tables[0], table) for table in tables])
    everywhere = (rows >= 0).all(axis=0)
    own = [label_parts(table) for table in tables]
    plan = [(kind, kind, own) for kind in KIND_NAMES]
    if all(table.tokens.argmax_logprobs is not None for table in tables):
        top = [argmax_parts(table) for table in tables]
        plan += [(f"argmax:{kind}", kind, top) for kind in ARGMAX_ALONG]
    points = []
    for name, kind, parts in plan:
        for split, mask in splits(tables[0], kind):
            kept = np.flatnonzero(mask & everywhere)
            first = parts[0].at(rows[0][kept])
            for table, index, part in zip(tables, rows, parts, strict=True):
                if len(kept):
                    level = part.at(index[kept])
                    change = Term(
                        tables[0].probe_ids[kept],
                        {kind: tables[0].text_hashes[kept]},
                        level.sums - first.sums,
                        level.tokens,
                        missing=NO_ARGMAX,
                    )
                    finite = np.isfinite(level.sums) & np.isfinite(first.sums)
                    step = table.manifest.step
                    points.append(
                        _point(
                            step,
                            name,
                            split,
                            change.at(finite),
                            first.sums[finite],
                            bootstrap,
                        )
                    )
    return tuple(points)


def _point(
    step: int,
    kind: str,
    split: Split,
    change: Term,
    first: FloatArray,
    bootstrap: Bootstrap,
) -> CurvePoint:
    """A level, with the interval of its change since the first checkpoint.

    Args:
        change: Δsum since then over tokens, [R].
        first: Σ ln p at the first checkpoint, [R].
    """
    summed = replace(change, denominators=np.ones(len(change)))
    total = estimate([summed], unit=NATS_PER_RESPONSE, bootstrap=bootstrap)
    rate = estimate([change], unit=NATS_PER_TOKEN, bootstrap=bootstrap)
    if len(first):
        total = _raised(total, float(first.mean()))
        rate = _raised(rate, float(first.sum() / change.denominators.sum()))
    return CurvePoint(step=step, kind=kind, split=split, mean_sum=total, per_token=rate)


def _raised(change: Estimate, level: float) -> Estimate:
    return replace(
        change,
        value=change.value + level,
        low=change.low + level,
        high=change.high + level,
    )


def _mean(values: Float) -> float:
    return float(values.mean()) if len(values) else math.nan
