"""Scores from the harness's transformers models (``--model hf``).

Sequences go through the model in the fastest layout that it takes (:mod:`layouts`);
hidden states become statistics in chunks (:mod:`head`). Which layout a model takes is
not believed from its configuration: while it scores, a few responses are compared with
a plain forward pass, and where they differ everything is scored again in the next
layout. Log-softmax is float32 whatever the model's dtype.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ldeval.errors import UnsupportedBackendError
from ldeval.records import TokenScores
from ldeval.scoring import packed
from ldeval.scoring.allocator import kept_memory
from ldeval.scoring.batch import ScoreRequest, checked, end_tokens, up_to_end
from ldeval.scoring.head import statistics, vocabulary
from ldeval.scoring.layouts import Layout, cache_name, inference, rows_of

log = logging.getLogger(__name__)

LAYOUT_TOLERANCES = {"float32": 2e-4, "float64": 2e-4}
"""Nats per token by which a layout may differ from plain sequences, by dtype."""
LOW_PRECISION_TOLERANCE = 5e-2

DECODES_AT_ONCE = 16
"""Prompts that are continued together."""

CHECK_EVERY = 500
"""One probe in so many is compared with a plain forward pass, the first and the longest
always: a short sequence alone would pass under a sliding window."""

_REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What models raise that do not take a layout, or whose cache cannot be lent."""

Scores = Iterator[tuple[int, TokenScores]]


def check_settings(lm: Any) -> None:
    """Refuse, by name, settings that change what a score means.

    Raises:
        UnsupportedBackendError: for ``enable_thinking`` or a low-precision
            ``softmax_dtype``.
    """
    if getattr(lm, "enable_thinking", None):
        raise UnsupportedBackendError(
            "enable_thinking=True cannot be scored: the response would follow an open "
            "thinking block. Leave it out, or set it to False."
        )
    softmax_dtype = getattr(lm, "softmax_dtype", None)
    if softmax_dtype not in (None, torch.float32, torch.float64):
        raise UnsupportedBackendError(
            f"softmax_dtype={softmax_dtype} is not honoured: log-probabilities are "
            "always normalised in float32. Leave it out."
        )


def dtype_of(lm: Any) -> str:
    """What a model computes in: its autocast dtype, or that of its weights."""
    computed = lm.mixed_precision_dtype or next(lm.model.parameters()).dtype
    return str(computed).removeprefix("torch.")


def score_checked(
    lm: Any,
    requests: Sequence[ScoreRequest],
    *,
    top_k: int,
    tokens: int | None = None,
    done: Callable[[int], object] = lambda _: None,
) -> tuple[dict[int, TokenScores], str]:
    """Score every request in the fastest layout that agrees with plain sequences.

    Args:
        lm: a transformers model of the harness.
        requests: in any order.
        top_k: how many of the most probable tokens to keep at each position.
        tokens: most tokens that go through the model at once.
        done: told of each response as it is scored, and of −n when n are taken back.

    Returns:
        Scores by index, and a note on the layout and what the comparison found.
    """
    if not requests:
        return {}, "nothing to score"
    caution = packed.missing_cap(lm.model)
    if caution is not None:
        log.warning(caution)
    with kept_memory(lm.device.type):
        found, note = _first_that_agrees(lm, requests, top_k, tokens, done)
    return found, note if caution is None else f"{note}; {caution}"


def _first_that_agrees(
    lm: Any,
    requests: Sequence[ScoreRequest],
    top_k: int,
    tokens: int | None,
    done: Callable[[int], object],
) -> tuple[dict[int, TokenScores], str]:
    refused: list[str] = []
    for layout in _candidates(lm, requests, refused):
        found: dict[int, TokenScores] = {}
        check = _Check(lm, requests)
        try:
            for index, scores in score(
                lm, requests, top_k=top_k, layout=layout, tokens=tokens
            ):
                found[index] = checked(requests[index], scores)
                done(1)
                check.see(index, scores)
        except LayoutRefused as error:
            refused.append(f"{layout}: {error}")
            log.warning("not scored in the layout %s", refused[-1])
            done(-len(found))
            continue
        reasons = f" ({'; '.join(refused)})" if refused else ""
        return found, f"{layout} sequences{reasons}: {check.note()}"
    found = {}
    for index, scores in score(lm, requests, top_k=top_k, layout="plain"):
        found[index] = checked(requests[index], scores)
        done(1)
    return found, f"plain sequences, one at a time ({'; '.join(refused)})"


class LayoutRefused(Exception):
    """A layout does not give this model's numbers: another must be taken."""


def _candidates(
    lm: Any, requests: Sequence[ScoreRequest], refused: list[str]
) -> Iterator[Layout]:
    """Layouts worth trying, fastest first; why the others are not goes on the list."""
    if packed.sharded(lm.model):
        # its output layer cannot be applied outside its own forward pass
        refused.append("the model is sharded over processes")
        return
    reason = packed.fits(lm.model, max(len(r.ids) for r in requests))
    if reason is None:
        yield "packed"
    else:
        refused.append(f"packed: {reason}")
    if cache_name(lm.model) is None:
        refused.append("shared: its forward pass takes no cache")
    else:
        yield "shared"
    yield "padded"


class _Check:
    """Compares some responses with a plain forward pass as their scores come in."""

    def __init__(self, lm: Any, requests: Sequence[ScoreRequest]) -> None:
        self._lm = lm
        self._requests = requests
        self._wanted = _sample(requests)
        self._allowed = LAYOUT_TOLERANCES.get(dtype_of(lm), LOW_PRECISION_TOLERANCE)
        self._worst = 0.0

    def see(self, index: int, scores: TokenScores) -> None:
        """Compare a response, if it is in the sample.

        Raises:
            LayoutRefused: when it differs by more than the dtype explains.
        """
        if index not in self._wanted:
            return
        request = self._requests[index]
        ((_, plain),) = score(self._lm, [request], top_k=1, layout="plain")
        gap = float(np.abs(plain.logprobs - scores.logprobs).mean())
        if not gap <= self._allowed:
            raise LayoutRefused(
                f"{gap:.2g} nats per token from a plain forward pass on probe "
                f"{request.probe_id!r}, response {request.kind!r}"
            )
        self._worst = max(self._worst, gap)

    def note(self) -> str:
        """What was found."""
        return (
            f"{self._worst:.2g} nats per token at worst from a plain forward pass over "
            f"{len(self._wanted)} responses"
        )


def _sample(requests: Sequence[ScoreRequest]) -> set[int]:
    """One response of the first probe, of every 500th, and of the one with the longest
    sequence; the shortest but for that one, as it comes last in a pack."""
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.probe_id, []).append(index)
    longest = max(range(len(requests)), key=lambda i: len(requests[i].ids))
    some = list(groups.values())[::CHECK_EVERY]
    return {longest} | {min(g, key=lambda i: requests[i].n_tokens) for g in some}


def continue_greedily(
    lm: Any,
    prompts: Sequence[tuple[int, ...]],
    limit: int,
    *,
    done: Callable[[int], object] = lambda _: None,
) -> list[tuple[int, ...]]:
    """The most probable tokens after each prompt, at most ``limit`` of them, the end
    token among them where it comes."""
    from transformers import GenerationConfig

    ends = sorted(end_tokens(lm))
    pad = ends[0] if ends else 0
    plain = GenerationConfig(
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    found: list[tuple[int, ...]] = [()] * len(prompts)
    was_training, own = lm.model.training, lm.model.generation_config
    lm.model.eval()
    # what is not set is taken from the model's own: a penalty there, or a suppressed
    # token, would bend the choice
    lm.model.generation_config = GenerationConfig()
    try:
        for start in range(0, len(order), DECODES_AT_ONCE):
            batch = order[start : start + DECODES_AT_ONCE]
            width = len(prompts[batch[0]])
            ids = torch.full((len(batch), width), pad)
            mask = torch.zeros((len(batch), width), dtype=torch.long)
            for row, index in enumerate(batch):
                ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
                mask[row, width - len(prompts[index]) :] = 1
            with inference(lm):
                output = lm.model.generate(
                    ids.to(lm.device),
                    attention_mask=mask.to(lm.device),
                    generation_config=plain,
                )
            for row, index in enumerate(batch):
                found[index] = up_to_end(output[row, width:].tolist(), ends)
            done(len(batch))
    finally:
        lm.model.generation_config = own
        lm.model.train(was_training)
    return found


def score(
    lm: Any,
    requests: Sequence[ScoreRequest],
    *,
    top_k: int,
    layout: Layout = "padded",
    tokens: int | None = None,
) -> Scores:
    """Score every request in one layout; yields (index, scores) as passes finish.

    Raises:
        LayoutRefused: when the model does not take the layout.
    """
    model = lm.model
    width = vocabulary(model)
    was_training = model.training
    model.eval()
    try:
        passes = rows_of(layout, lm, requests, tokens=tokens)
        while True:
            try:
                rows = next(passes, None)
            except _REFUSALS as error:
                if layout == "plain" or isinstance(error, torch.OutOfMemoryError):
                    raise
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise LayoutRefused(f"refused by the model: {reason[0]}") from error
            if rows is None:
                return
            members = [requests[i] for i in rows.requests]
            with inference(lm):
                found = statistics(
                    rows.states, rows.to_logits, members, width=width, top_k=top_k
                )
            yield from zip(rows.requests, found, strict=True)
    finally:
        model.train(was_training)
