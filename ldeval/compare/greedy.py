"""Does what happens to given responses reach generation?

The tokens that the run's first checkpoint takes by itself are followed through the run,
and each checkpoint's own are set beside them. Squeezing piles mass on what is most
probable already: where that reaches generation, a checkpoint's own decodes become more
probable to it; and where its first decodes fall, it no longer says what it said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from ldeval.compare.clusters import Term, estimate
from ldeval.compare.logic import is_state, truth
from ldeval.compare.stats import Bootstrap, Float
from ldeval.records import (
    Estimate,
    FloatArray,
    GreedyDecode,
    GreedyDecodes,
    GreedyMove,
    GreedyPath,
    GreedyStep,
    IntArray,
    Split,
    State,
    Truth,
    split_name,
)

NGRAM = 4
"""Tokens in what counts as repeated."""
NO_DECODES = "no prompt was decoded at both"
NOT_FOLLOWED = (
    "greedy decodes are left out: those of the first checkpoint, or all later ones, "
    "are missing or of other weights"
)
"""What a reader is told where decodes were given and there is no path."""


def greedy_path(
    decodes: Sequence[GreedyDecodes],
    weights: Mapping[int, str],
    noise_floor: float,
    bootstrap: Bootstrap,
) -> GreedyPath | None:
    """Follow greedy decodes through a run.

    Args:
        decodes: of its checkpoints, in any order.
        weights: weight hash of every compared step; decodes of others are left out,
            with a note.
        noise_floor: m, below which nothing is called a change, nats/token.

    Returns:
        None where fewer than two compared steps have decodes that can be followed:
        those of the first, and later ones of the same tokens.
    """
    ordered = sorted(decodes, key=lambda item: item.step)
    kept = [d for d in ordered if weights.get(d.step) == d.weights_hash]
    notes = _left_out(ordered, kept, weights)
    if not kept or kept[0].reference_step != kept[0].step:
        return None
    first = kept[0]
    strays = [str(d.step) for d in kept if d.reference_step != first.step]
    if strays:
        notes.append(
            f"decodes of step {', '.join(strays)} do not follow those of step "
            f"{first.step}: left out"
        )
    kept = [d for d in kept if d.reference_step == first.step]
    if len(kept) < 2:
        return None
    steps = [
        step
        for after in kept[1:]
        for split in get_args(Split)
        if (step := _step(first, after, split, bootstrap)) is not None
    ]
    last = {step.split: step for step in steps if step.step == kept[-1].step}
    off = sum(item.off_argmax for item in kept)
    if off:
        total = sum(len(d.ids) for item in kept for d in item.decodes)
        notes.append(
            f"{off} of {total} tokens taken were not the most probable in another pass "
            "over the same text, beyond a tie: the engine's arithmetic differs"
        )
    return GreedyPath(
        reference_step=first.step,
        max_tokens=first.max_tokens,
        steps=tuple(steps),
        surer=_truths(last, "own_tok", noise_floor, up=True),
        left=_truths(last, "reference_tok", noise_floor, up=False),
        moves=_moves(first, kept[-1]),
        excluded=tuple(dict.fromkeys(e for item in kept for e in item.excluded)),
        notes=tuple(notes),
    )


def _left_out(
    ordered: Sequence[GreedyDecodes],
    kept: Sequence[GreedyDecodes],
    weights: Mapping[int, str],
) -> list[str]:
    notes = []
    stale = [d.step for d in ordered if d.step in weights and d not in kept]
    if stale:
        steps = ", ".join(map(str, stale))
        notes.append(f"decodes of step {steps} are of other weights: left out")
    without = sorted(set(weights) - {d.step for d in ordered})
    if kept and without:
        notes.append(f"no greedy decodes at step {', '.join(map(str, without))}")
    return notes


@dataclass(frozen=True)
class _Pair:
    """One prompt, decoded by the first checkpoint and by a later one."""

    before: GreedyDecode
    after: GreedyDecode


def _pairs(
    first: GreedyDecodes, after: GreedyDecodes, split: Split | None = None
) -> list[_Pair]:
    known = {d.probe_id: d for d in first.decodes}
    return [
        _Pair(known[d.probe_id], d)
        for d in after.decodes
        if d.probe_id in known and split in (None, split_name(d.trained))
    ]


def _step(
    first: GreedyDecodes, after: GreedyDecodes, split: Split, bootstrap: Bootstrap
) -> GreedyStep | None:
    pairs = _pairs(first, after, split)
    if not pairs:
        return None
    names = np.array([p.before.probe_id for p in pairs], np.str_)
    one = np.ones(len(pairs))
    length = np.array([len(p.before.ids) for p in pairs], np.float64)
    own_length = np.array([len(p.after.ids) for p in pairs], np.float64)
    before = _sums([p.before.logprobs for p in pairs])
    now = _sums([p.after.reference_logprobs for p in pairs])
    own = _sums([p.after.logprobs for p in pairs])
    repeated = [repeats(p.after.ids) - repeats(p.before.ids) for p in pairs]

    def term(values: Float, weights: Float, coefficient: float = 1.0) -> Term:
        return Term(names, {}, values, weights, coefficient, NO_DECODES)

    def mean(terms: Sequence[Term], unit: str) -> Estimate:
        return estimate(terms, unit=unit, bootstrap=bootstrap)

    return GreedyStep(
        step=after.step,
        split=split,
        n=len(pairs),
        reference_sum=mean([term(now - before, one)], "nats/response"),
        reference_tok=mean([term(now - before, length)], "nats/token"),
        own_tok=mean([term(own, own_length), term(before, length, -1.0)], "nats/token"),
        length=mean([term(own_length - length, one)], "tokens"),
        repeated=mean([term(np.array(repeated), one)], "share"),
        same=sum(np.array_equal(p.before.ids, p.after.ids) for p in pairs),
        shared=float(np.mean([_shared(p.before.ids, p.after.ids) for p in pairs])),
        ended=sum(p.after.ended for p in pairs),
    )


def repeats(ids: IntArray) -> float:
    """Share of a decode's 4-grams that stand in it already; 0 where it has none."""
    grams = [tuple(ids[i : i + NGRAM].tolist()) for i in range(len(ids) - NGRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _shared(first: IntArray, second: IntArray) -> float:
    """Share of the first's tokens before the two part."""
    width = min(len(first), len(second))
    apart = np.flatnonzero(first[:width] != second[:width])
    common = int(apart[0]) if len(apart) else width
    return common / len(first)


def _sums(columns: Sequence[FloatArray]) -> Float:
    return np.array([np.sum(column, dtype=np.float64) for column in columns])


def _truths(
    last: Mapping[Split, GreedyStep], of: str, noise_floor: float, *, up: bool
) -> dict[Split, Truth]:
    wanted: State = "up" if up else "down"
    return {
        split: truth(is_state(getattr(step, of), noise_floor, wanted))
        for split, step in last.items()
    }


def _moves(first: GreedyDecodes, last: GreedyDecodes) -> tuple[GreedyMove, ...]:
    moves = [
        GreedyMove(
            probe_id=pair.before.probe_id,
            split=split_name(pair.before.trained),
            delta_sum=float(
                np.sum(pair.after.reference_logprobs, dtype=np.float64)
                - np.sum(pair.before.logprobs, dtype=np.float64)
            ),
            before=pair.before.text,
            after=pair.after.text,
        )
        for pair in _pairs(first, last)
    ]
    return tuple(sorted(moves, key=lambda move: move.delta_sum))
