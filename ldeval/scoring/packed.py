"""A prompt and all its responses in one sequence: nothing is computed twice.

A pack holds prompts, each followed by its responses::

    prompt | response 1 | response 2 | … | next prompt | response 1 | …

A mask lets every response see its prompt and itself, and positions restart where the
prompt ends, so that each token gets what it gets in a sequence of its own. The last
token of a response predicts nothing and is left out.

A model must take such a mask. :func:`fits` says which may; each is then compared with
plain sequences (:mod:`hf`), since some ignore a mask without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ldeval.scoring.batch import ScoreRequest

TOKENS = {"cpu": 1024, "cuda": 4096}
"""Tokens in a pack, by device: attention inside a pack costs their square."""


@dataclass(frozen=True)
class Pack:
    """Requests that go through the model together."""

    requests: tuple[int, ...]
    """Their indices."""
    ids: torch.Tensor
    """[1, T] int64."""
    positions: torch.Tensor
    """[1, T] int64, restarting with every prompt and with every response."""
    allowed: torch.Tensor
    """[T, T] bool: may the row's token attend to the column's?"""
    rows: tuple[torch.Tensor, ...]
    """For each request, [n] int64: the places whose logits predict its tokens."""


def fits(model: torch.nn.Module) -> str | None:
    """Why a model cannot take packs, as far as its configuration tells; None if it may.

    Flash attention ignores masks; sliding, chunked and linear attention and state-space
    layers have rules of their own that a mask does not replace.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        return "it has no configuration"
    text = config.get_text_config()
    attention = getattr(text, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        return f"attention implementation {attention!r} takes no mask of ours"
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"layers of type {', '.join(sorted(kinds - {'full_attention'}))}"
    if getattr(text, "sliding_window", None):
        return f"a sliding window of {text.sliding_window} tokens"
    if type(model).__name__.startswith("FullyShardedDataParallel"):
        return "it is sharded over processes"
    missing = {"position_ids", "attention_mask", "logits_to_keep"} - parameters(model)
    if missing:
        return f"its forward pass takes no {', '.join(sorted(missing))}"
    return None


def parameters(model: torch.nn.Module) -> set[str]:
    """Names that a model's forward pass takes; an adapter's are its base model's."""
    unwrap: Any = getattr(model, "get_base_model", None)
    inner = model if unwrap is None else unwrap()
    return set(inspect.signature(inner.forward).parameters)


def packs(
    requests: Sequence[ScoreRequest], *, tokens: int, rows: int
) -> Iterator[Pack]:
    """Pack requests, those with one context together, largest groups first.

    Args:
        tokens: most tokens in a pack; a single response may exceed it.
        rows: most rows of logits in a pack; likewise.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for index, request in enumerate(requests):
        key = (request.probe_id, request.ids[: request.start])
        groups.setdefault(key, []).append(index)
    pack: list[tuple[tuple[int, ...], list[int]]] = []
    used_tokens = used_rows = 0
    for (_, context), members in sorted(
        groups.items(), key=lambda item: -_size(item[0][1], item[1], requests)
    ):
        opened = False
        for index in members:
            wanted = requests[index].n_tokens
            cost = wanted - 1
            start = 0 if opened else len(context)
            full = (
                used_tokens + start + cost > tokens or used_rows + wanted > rows
            ) and used_rows > 0
            if full:
                yield _pack(pack, requests)
                pack, used_tokens, used_rows, opened = [], 0, 0, False
            if not opened:
                pack.append((context, []))
                used_tokens += len(context)
                opened = True
            pack[-1][1].append(index)
            used_tokens += cost
            used_rows += wanted
    if pack:
        yield _pack(pack, requests)


def _size(
    context: tuple[int, ...], members: Sequence[int], requests: Sequence[ScoreRequest]
) -> int:
    return len(context) + sum(requests[i].n_tokens - 1 for i in members)


def _pack(
    groups: Sequence[tuple[tuple[int, ...], Sequence[int]]],
    requests: Sequence[ScoreRequest],
) -> Pack:
    ids: list[int] = []
    positions: list[int] = []
    prompts: list[int] = []  # which prompt each token belongs to
    parts: list[int] = []  # 0 in a prompt, the number of the response in a response
    rows: dict[int, torch.Tensor] = {}
    for number, (context, members) in enumerate(groups):
        ids += context
        positions += range(len(context))
        parts += [0] * len(context)
        last = len(ids) - 1
        for part, index in enumerate(members, 1):
            request = requests[index]
            own = request.ids[request.start : request.stop - 1]
            rows[index] = torch.tensor([last, *range(len(ids), len(ids) + len(own))])
            ids += own
            positions += range(len(context), len(context) + len(own))
            parts += [part] * len(own)
        prompts += [number] * (len(ids) - len(prompts))
    prompt, part_of = torch.tensor(prompts), torch.tensor(parts)
    place = torch.arange(len(ids))
    allowed = (
        (prompt[:, None] == prompt[None, :])
        & (place[:, None] >= place[None, :])
        & ((part_of[None, :] == 0) | (part_of[:, None] == part_of[None, :]))
    )
    return Pack(
        requests=tuple(rows),
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        allowed=allowed,
        rows=tuple(rows.values()),
    )


def logits(model: Any, pack: Pack, device: torch.device, dtype: torch.dtype) -> Any:
    """Logits of a pack's rows, one request after the other: [1, Σ n, V].

    Args:
        dtype: of the model's computation; the mask is added in it.
    """
    mask = torch.zeros(pack.allowed.shape, dtype=dtype, device=device)
    mask.masked_fill_(~pack.allowed.to(device), torch.finfo(dtype).min)
    out = model(
        input_ids=pack.ids.to(device),
        attention_mask=mask[None, None],
        position_ids=pack.positions.to(device),
        logits_to_keep=torch.cat(pack.rows).to(device),
        use_cache=False,
    )
    return out.logits
