"""How sequences go through a transformers model: four ways, fastest first.

packed
    A prompt and all its responses in one sequence (:mod:`packed`).
shared
    The prompt once, its cache then lent to a right-padded batch of its responses: for
    sliding windows shorter than a sequence, and attention that takes no segments.
padded
    Right-padded batches of whole sequences, which any causal architecture takes.
plain
    One sequence at a time through the model's own forward pass to its own logits: what
    the others are compared with, and the way of a model that none of them suits.

Each yields the rows that predict the scored tokens, and how they become logits.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ldeval.scoring import packed
from ldeval.scoring.batch import ScoreRequest, grouped
from ldeval.scoring.head import Head

Layout = Literal["packed", "shared", "padded", "plain"]

TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens that go through a model at once, padding included, by device."""


@dataclass(frozen=True)
class Rows:
    """What predicts the tokens of some responses."""

    requests: tuple[int, ...]
    """Their indices."""
    states: torch.Tensor
    """[Σ n, H], one response after the other; [Σ n, V] where they are logits."""
    to_logits: Callable[[torch.Tensor], torch.Tensor]
    """From rows of ``states`` to logits; to be called under :func:`inference`."""


def rows_of(
    layout: Layout,
    lm: Any,
    requests: Sequence[ScoreRequest],
    *,
    tokens: int | None = None,
) -> Iterator[Rows]:
    """Send requests through a harness model.

    Args:
        lm: a transformers model of the harness, in evaluation mode.
        tokens: most tokens at once; None for the device's :data:`TOKENS`. A single
            response with its prompt may exceed it.
    """
    limit = tokens or TOKENS["cpu" if lm.device.type == "cpu" else "cuda"]
    if not requests:
        return
    if layout == "plain":
        yield from _plain(lm, requests)
        return
    run = {"packed": _packed, "shared": _shared, "padded": _padded}[layout]
    yield from run(lm, requests, Head(lm.model), limit)


@contextlib.contextmanager
def inference(lm: Any) -> Iterator[None]:
    """No gradient, and the mixed precision that the user asked for."""
    mixed = getattr(lm, "mixed_precision_dtype", None)
    with (
        torch.inference_mode(),
        torch.autocast(lm.device.type, dtype=mixed, enabled=mixed is not None),
    ):
        yield


def cache_name(model: torch.nn.Module) -> str | None:
    """What a model's forward pass calls the cache of earlier tokens."""
    taken = packed.parameters(model)
    for name in ("past_key_values", "cache_params"):
        if name in taken:
            return name
    return None


def _packed(
    lm: Any, requests: Sequence[ScoreRequest], head: Head, limit: int
) -> Iterator[Rows]:
    alike = packed.ALIKE["cpu" if lm.device.type == "cpu" else "cuda"]
    for pack in packed.packs(requests, tokens=limit, alike=alike):
        with (
            inference(lm),
            head.captured() as hidden,
            packed.segment_attention(lm.model),
        ):
            lm.model(**packed.arguments(pack, lm.device))
            states = hidden()[0]
        places = torch.cat(pack.rows).to(states.device)
        yield Rows(pack.requests, states[places], head.logits)


def _shared(
    lm: Any, requests: Sequence[ScoreRequest], head: Head, limit: int
) -> Iterator[Rows]:
    name = cache_name(lm.model)
    if name is None:
        raise ValueError("the model's forward pass takes no cache")
    for group in grouped(requests):
        start = requests[group[0]].start
        context = torch.tensor([requests[group[0]].ids[:start]], device=lm.device)
        with inference(lm), head.captured() as hidden:
            out = lm.model(input_ids=context, use_cache=True)
            last = hidden()[:, -1]
        cache = out[name]
        for batch in _batches([requests[i] for i in group], limit, start):
            members = tuple(group[i] for i in batch)
            own = [requests[i].ids[start : requests[i].stop - 1] for i in members]
            parts = [last] * len(members)
            if max(map(len, own)):
                lent = copy.deepcopy(cache)
                lent.batch_repeat_interleave(len(members))
                ids = _filled(own).to(lm.device)
                with inference(lm), head.captured() as hidden:
                    lm.model(input_ids=ids, use_cache=True, **{name: lent})
                    states = hidden()
                parts = [
                    torch.cat([last, row[: len(tokens)]])
                    for row, tokens in zip(states, own, strict=True)
                ]
            yield Rows(members, torch.cat(parts), head.logits)


def _padded(
    lm: Any, requests: Sequence[ScoreRequest], head: Head, limit: int
) -> Iterator[Rows]:
    for batch in _batches(requests, limit, 0, _sequences(lm)):
        members = [requests[i] for i in batch]
        ids = _filled([r.ids for r in members])
        lengths = torch.tensor([len(r.ids) for r in members])
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        with inference(lm), head.captured() as hidden:
            lm.model(
                input_ids=ids.to(lm.device),
                attention_mask=mask.to(lm.device),
                use_cache=False,
            )
            states = hidden()
        parts = [
            row[request.start - 1 : request.stop - 1]
            for row, request in zip(states, members, strict=True)
        ]
        yield Rows(tuple(batch), torch.cat(parts), head.logits)


def _plain(lm: Any, requests: Sequence[ScoreRequest]) -> Iterator[Rows]:
    """By the model's own logits, of no more positions than it can be asked for."""
    keep = "logits_to_keep" in packed.parameters(lm.model)
    for index, request in enumerate(requests):
        places = torch.arange(request.start - 1, request.stop - 1, device=lm.device)
        ids = torch.tensor([request.ids], device=lm.device)
        options = {"logits_to_keep": places} if keep else {}
        with inference(lm):
            logits = lm.model(input_ids=ids, use_cache=False, **options).logits[0]
        rows = logits if keep else logits[places]
        yield Rows((index,), rows, lambda given: given)


def _filled(sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """[B, longest] ids; what fills them up comes after every scored token, so that no
    scored token attends to it: any id will do."""
    ids = torch.zeros((len(sequences), max(map(len, sequences))), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return ids


def _sequences(lm: Any) -> int | None:
    """The user's batch size, when it says more than the harness's default of 1."""
    size = getattr(lm, "batch_size", None)
    return size if isinstance(size, int) and size > 1 else None


def _batches(
    requests: Sequence[ScoreRequest],
    limit: int,
    skipped: int,
    sequences: int | None = None,
) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first so that memory peaks at once.

    Args:
        limit: most tokens in a batch, padding included.
        skipped: tokens at the beginning of each that are computed already.
        sequences: most sequences in a batch.
    """
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].ids))
    batch: list[int] = []
    width = 0
    for index in order:
        size = len(batch) + 1
        if batch and (size * width > limit or (sequences and size > sequences)):
            yield batch
            batch = []
        if not batch:
            width = len(requests[index].ids) - skipped
        batch.append(index)
    if batch:
        yield batch
