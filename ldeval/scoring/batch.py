"""What a backend is asked and what it answers: the seam between encoding and models.

A backend is a module with ``score_checked(lm, requests, top_k=…, tokens=…, done=…)``,
which returns scores by index and a note on how they were had; it may take requests in
any order, so that work can be sorted by length. ``continue_greedily(lm, prompts,
limit, done=…)`` returns the most probable tokens after each prompt. Every score a
backend returns has passed :func:`checked`, so that none can let a NaN through.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldeval.errors import ScoringError
from ldeval.records import IntArray, TokenScores


@dataclass(frozen=True)
class ScoreRequest:
    """One sequence, and the span of it to score."""

    probe_id: str
    kind: str
    ids: tuple[int, ...]
    """Context and response."""
    start: int
    """First scored token, at least 1."""
    stop: int
    """One past the last."""
    ref_ids: IntArray | None = None
    """[stop − start, k] ids whose ln p is wanted at each scored position."""

    @property
    def n_tokens(self) -> int:
        """Scored tokens."""
        return self.stop - self.start


def grouped(requests: Sequence[ScoreRequest]) -> list[list[int]]:
    """Indices of requests that share a context, the groups with most tokens first."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for index, request in enumerate(requests):
        key = (request.probe_id, request.ids[: request.start])
        groups.setdefault(key, []).append(index)

    def size(group: Sequence[int]) -> int:
        return requests[group[0]].start + sum(requests[i].n_tokens - 1 for i in group)

    return sorted(groups.values(), key=size, reverse=True)


def checked(request: ScoreRequest, scores: TokenScores) -> TokenScores:
    """Refuse scores that are not log-probabilities of this request's tokens.

    Raises:
        ScoringError: on another length, other tokens, NaN, or ln p > 0.
    """
    place = f"probe {request.probe_id!r}, response {request.kind!r}"
    wanted = np.asarray(request.ids[request.start : request.stop])
    if not np.array_equal(scores.token_ids, wanted):
        raise ScoringError(
            f"{place}: the backend scored other tokens than were asked for "
            f"({len(scores)} instead of {len(wanted)}, or other ids)"
        )
    bad = np.flatnonzero(np.isnan(scores.logprobs) | (scores.logprobs > 1e-3))
    if bad.size:
        at = int(bad[0])
        raise ScoringError(
            f"{place}: token {at} has log-probability {scores.logprobs[at]}. The "
            "model's logits are not finite: is the checkpoint damaged, or does the "
            "dtype overflow? Try dtype=float32."
        )
    return scores


def lookup(
    wanted: IntArray,
    ids: IntArray,
    logprobs: np.ndarray,
    label: IntArray,
    label_lp: np.ndarray,
) -> np.ndarray:
    """ln p of wanted ids, taken from a stored top-k and the label.

    Args:
        wanted: [n, j] ids.
        ids: [n, k] stored ids.
        logprobs: [n, k] their ln p.
        label: [n] the response's own tokens, whose ln p is known too.
        label_lp: [n] their ln p.

    Returns:
        [n, j] float32; NaN where an id is in neither.
    """
    found = np.full(wanted.shape, np.nan, np.float32)
    for column in range(ids.shape[1]):
        hit = wanted == ids[:, column, None]
        found = np.where(hit, logprobs[:, column, None], found)
    return np.where(wanted == label[:, None], label_lp[:, None], found).astype(
        np.float32
    )


def with_argmax(**columns: Any) -> TokenScores:
    """Token scores whose argmax is read off the top-k; the lowest id on a tie."""
    ids, logprobs = columns["top_ids"], columns["top_logprobs"]
    best = logprobs[:, :1]
    tied = np.where(logprobs == best, ids, np.iinfo(np.int32).max)
    return TokenScores(
        argmax_ids=tied.min(axis=1).astype(np.int32),
        argmax_logprobs=best[:, 0].astype(np.float32),
        **columns,
    )


def end_tokens(lm: Any) -> frozenset[int]:
    """Tokens after which a greedy decode ends: those of the tokenizer and of the
    model's own generation settings."""
    found = {getattr(lm.tokenizer, "eos_token_id", None)}
    own = getattr(getattr(lm, "model", None), "generation_config", None)
    ends = getattr(own, "eos_token_id", None)
    found.update(ends if isinstance(ends, list | tuple) else [ends])
    return frozenset(token for token in found if isinstance(token, int))


def up_to_end(ids: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    """The tokens up to the first that ends a decode, that one included."""
    for place, token in enumerate(ids):
        if token in ends:
            return tuple(ids[: place + 1])
    return tuple(ids)
