"""Scores from the harness's transformers models (``--model hf``).

Correct first: right-padded batches, so that any causal architecture reads its tokens at
their own positions; logits only for the positions that predict a response token; every
statistic computed in chunks of rows, so that no full-vocabulary tensor outlives its
chunk. Log-softmax is float32 whatever the model's dtype.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ldeval.errors import ScoringError, UnsupportedBackendError
from ldeval.records import TokenScores
from ldeval.scoring.batch import ScoreRequest, with_argmax

LOGITS_BUDGET = 256 * 1024 * 1024
"""Bytes of float32 logits held at a time, over a batch."""
TOKEN_BUDGET = 4096
"""Padded tokens in a batch."""
ROWS_PER_CHUNK = 256
"""Positions whose statistics are computed at once."""


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


def score(
    lm: Any, requests: Sequence[ScoreRequest], *, top_k: int
) -> Iterator[tuple[int, TokenScores]]:
    """Score every request; yields (index, scores) as batches finish.

    Args:
        lm: a model for which :func:`supports` holds.
        requests: any order; they are batched by length.
        top_k: how many of the most probable tokens to keep at each position.
    """
    model = lm.model
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    keep = _takes_logits_to_keep(model)
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(requests, vocabulary, _sequences(lm)):
            logits, first = _logits(lm, [requests[i] for i in batch], keep)
            for row, index in enumerate(batch):
                request = requests[index]
                rows = logits[row, request.start - 1 - first : request.stop - 1 - first]
                yield index, _statistics(rows, request, top_k)
            del logits
    finally:
        model.train(was_training)


def _sequences(lm: Any) -> int | None:
    """The user's batch size, when it says more than the harness's default of 1."""
    size = getattr(lm, "batch_size", None)
    return size if isinstance(size, int) and size > 1 else None


def _batches(
    requests: Sequence[ScoreRequest], vocabulary: int, limit: int | None
) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first so that memory peaks at once."""
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].ids))
    batch: list[int] = []
    width = low = high = 0
    for index in order:
        request = requests[index]
        new_low = min(low, request.start) if batch else request.start
        new_high = max(high, request.stop) if batch else request.stop
        size = len(batch) + 1
        too_big = (
            size * max(width, len(request.ids)) > TOKEN_BUDGET
            or size * (new_high - new_low) * vocabulary * 4 > LOGITS_BUDGET
            or (limit is not None and size > limit)
        )
        if batch and too_big:
            yield batch
            batch, width, new_low, new_high = [], 0, request.start, request.stop
        batch.append(index)
        width, low, high = max(width, len(request.ids)), new_low, new_high
    if batch:
        yield batch


def _takes_logits_to_keep(model: torch.nn.Module) -> bool:
    unwrap: Any = getattr(model, "get_base_model", None)
    inner = model if unwrap is None else unwrap()
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def _logits(
    lm: Any, batch: Sequence[ScoreRequest], keep: bool
) -> tuple[torch.Tensor, int]:
    """Logits of the positions that predict the batch's spans.

    Returns:
        [batch, positions, V] in the model's dtype, and the index of the first position.
    """
    width = max(len(request.ids) for request in batch)
    # the pad id is never attended to and never scored: any valid id will do
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    for row, request in enumerate(batch):
        ids[row, : len(request.ids)] = torch.tensor(request.ids)
        mask[row, : len(request.ids)] = 1
    first = min(request.start for request in batch) - 1
    last = max(request.stop for request in batch) - 1
    options: dict[str, Any] = {}
    if keep:
        options["logits_to_keep"] = torch.arange(first, last, device=lm.device)
    mixed = getattr(lm, "mixed_precision_dtype", None)
    with (
        torch.inference_mode(),
        torch.autocast(lm.device.type, dtype=mixed, enabled=mixed is not None),
    ):
        out = lm.model(
            input_ids=ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            use_cache=False,
            **options,
        )
    logits = out.logits if keep else out.logits[:, first:last]
    if logits.shape[1] != last - first:
        raise ScoringError(
            f"the model returned logits for {logits.shape[1]} positions where "
            f"{last - first} were asked for"
        )
    return logits, first


def _statistics(logits: torch.Tensor, request: ScoreRequest, top_k: int) -> TokenScores:
    """Every stored statistic of one response, from its rows of logits [n, V]."""
    labels = torch.tensor(request.ids[request.start : request.stop])
    parts = []
    for start in range(0, len(labels), ROWS_PER_CHUNK):
        rows = slice(start, start + ROWS_PER_CHUNK)
        wanted = None if request.ref_ids is None else request.ref_ids[rows]
        parts.append(_chunk(logits[rows].float(), labels[rows], wanted, top_k))
    return TokenScores.concatenate(parts)


def _chunk(
    logits: torch.Tensor, labels: torch.Tensor, wanted: Any, top_k: int
) -> TokenScores:
    with torch.inference_mode():
        labels = labels.to(logits.device)
        logprobs = torch.log_softmax(logits, dim=-1)
        label = logprobs.gather(1, labels[:, None])
        probs = logprobs.exp()
        top = torch.topk(logprobs, min(top_k, logprobs.shape[1]), dim=-1)
        columns: dict[str, Any] = {
            "token_ids": labels,
            "logprobs": label[:, 0],
            "ranks": (logprobs > label).sum(-1) + 1,
            "sq_norms": probs.square().sum(-1),
            # p ln p is 0 at p = 0, where ln p is -inf
            "entropies": -torch.where(probs > 0, probs * logprobs, 0.0).sum(-1),
            "mean_logprobs": logprobs.mean(-1, dtype=torch.float64),
            "top_logprobs": top.values,
            "top_ids": top.indices,
        }
        if wanted is not None:
            ids = torch.tensor(np.asarray(wanted), dtype=torch.long)
            columns["ref_ids"] = ids
            columns["ref_logprobs"] = logprobs.gather(1, ids.to(logits.device))
    arrays = {name: value.cpu().numpy() for name, value in columns.items()}
    return with_argmax(
        **{
            name: value.astype(np.int32 if _is_id(name) else np.float32)
            for name, value in arrays.items()
        }
    )


def _is_id(name: str) -> bool:
    return name.endswith("ids") or name == "ranks"
