"""Scores from the harness's transformers models (``--model hf``).

Two layouts: a prompt and all its responses packed into one sequence (:mod:`packed`),
for models whose attention takes a mask of ours, each checked against the other layout;
right-padded batches of plain sequences, which any causal architecture takes. Logits are
computed only for the positions that predict a response token, and every statistic in
chunks of rows, so that no full-vocabulary tensor outlives its chunk. Log-softmax is
float32 whatever the model's dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ldeval.errors import ScoringError, UnsupportedBackendError
from ldeval.records import TokenScores
from ldeval.scoring import packed
from ldeval.scoring.batch import ScoreRequest, with_argmax

LOGITS_BUDGET = 256 * 1024 * 1024
"""Bytes of float32 logits held at a time, over a batch."""
TOKEN_BUDGET = 4096
"""Padded tokens in a batch."""
LAYOUT_TOLERANCES = {"float32": 2e-4}
"""Nats per token by which the layouts may differ, by dtype."""
LOW_PRECISION_TOLERANCE = 5e-2

Layout = Literal["packed", "padded"]

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


def choose_layout(lm: Any, requests: Sequence[ScoreRequest]) -> tuple[Layout, str]:
    """Packed where the model takes it: by its configuration, and by a check.

    The check compares a few responses of the first probe, of the longest and of one in
    500 in both layouts: a short sequence alone would pass under a sliding window.

    Returns:
        The layout, and a note on why.
    """
    reason = packed.fits(lm.model) if requests else "nothing to score"
    if reason is None:
        sample = _sample(requests)
        plain = dict(score(lm, sample, top_k=1, layout="padded"))
        try:
            tried = dict(score(lm, sample, top_k=1, layout="packed"))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = f"its forward pass refuses them ({error})"
        else:
            worst = max(
                float(np.abs(plain[i].logprobs - tried[i].logprobs).mean())
                for i in plain
            )
            if worst <= LAYOUT_TOLERANCES.get(_dtype(lm), LOW_PRECISION_TOLERANCE):
                return "packed", (
                    f"packed sequences: {worst:.2g} nats per token at worst from plain "
                    f"ones over {len(sample)} responses"
                )
            reason = f"{worst:.2g} nats per token from plain sequences"
    return "padded", f"plain sequences, no packing: {reason}"


def _sample(requests: Sequence[ScoreRequest]) -> list[ScoreRequest]:
    """Three responses each of the first probe, the longest, and one in 500."""
    probes: dict[str, list[ScoreRequest]] = {}
    for request in requests:
        probes.setdefault(request.probe_id, []).append(request)
    groups = list(probes.values())
    longest = max(groups, key=lambda group: max(len(r.ids) for r in group))
    chosen = {id(group): group for group in (*groups[::500], longest)}
    return [
        request
        for group in chosen.values()
        for request in sorted(group, key=lambda r: -len(r.ids))[
            :: max(1, len(group) // 3)
        ]
    ]


def _dtype(lm: Any) -> str:
    computed = lm.mixed_precision_dtype or next(lm.model.parameters()).dtype
    return str(computed).removeprefix("torch.")


def score(
    lm: Any,
    requests: Sequence[ScoreRequest],
    *,
    top_k: int,
    layout: Layout = "padded",
) -> Iterator[tuple[int, TokenScores]]:
    """Score every request; yields (index, scores) as forward passes finish.

    Args:
        lm: a transformers model of the harness.
        requests: in any order.
        top_k: how many of the most probable tokens to keep at each position.
        layout: from :func:`choose_layout`.
    """
    model = lm.model
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    run = _packed if layout == "packed" else _padded
    was_training = model.training
    model.eval()
    try:
        for index, rows in run(lm, requests, vocabulary):
            yield index, _statistics(rows, requests[index], top_k)
    finally:
        model.train(was_training)


def _packed(
    lm: Any, requests: Sequence[ScoreRequest], vocabulary: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """(index, logits [n, V]) of each request, by packs."""
    limit = packed.TOKENS["cpu" if lm.device.type == "cpu" else "cuda"]
    rows = max(1, LOGITS_BUDGET // (4 * vocabulary))
    dtype = next(lm.model.parameters()).dtype
    for pack in packed.packs(requests, tokens=limit, rows=rows):
        with _inference(lm):
            logits = packed.logits(lm.model, pack, lm.device, dtype)[0]
        sizes = [len(places) for places in pack.rows]
        if logits.shape[0] != sum(sizes):
            raise ScoringError(
                f"the model returned logits for {logits.shape[0]} positions where "
                f"{sum(sizes)} were asked for"
            )
        yield from zip(pack.requests, logits.split(sizes), strict=True)


def _padded(
    lm: Any, requests: Sequence[ScoreRequest], vocabulary: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """(index, logits [n, V]) of each request, by right-padded batches."""
    keep = "logits_to_keep" in packed.parameters(lm.model)
    for batch in _batches(requests, vocabulary, _sequences(lm)):
        logits, first = _logits(lm, [requests[i] for i in batch], keep)
        for row, index in enumerate(batch):
            start, stop = requests[index].start, requests[index].stop
            yield index, logits[row, start - 1 - first : stop - 1 - first]


@contextlib.contextmanager
def _inference(lm: Any) -> Iterator[None]:
    """No gradient, and the mixed precision that the user asked for."""
    mixed = getattr(lm, "mixed_precision_dtype", None)
    with (
        torch.inference_mode(),
        torch.autocast(lm.device.type, dtype=mixed, enabled=mixed is not None),
    ):
        yield


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
    with _inference(lm):
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
