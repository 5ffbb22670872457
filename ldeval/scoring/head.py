"""From hidden states to stored statistics, a chunk of rows at a time.

A model's output layer is where scoring could cost memory without bound: logits are as
wide as the vocabulary. Here a forward pass is stopped at the output layer's input, and
the layer is applied to the rows that predict a response token alone, in chunks of a
stated size; everything that is stored is computed there, in float32, and the chunk is
dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ldeval.errors import ScoringError
from ldeval.records import TokenScores
from ldeval.scoring.batch import ScoreRequest, with_argmax

LOGITS_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""float32 logits held at a time, by device; their statistics take as much beside, and
a model in another dtype holds its own logits too."""


def vocabulary(model: Any) -> int:
    """V, the width of a model's logits, padded rows of the output layer included."""
    return int(model.get_output_embeddings().weight.shape[0])


def rows_per_chunk(width: int, device: torch.device) -> int:
    """How many rows of logits are held at a time."""
    budget = LOGITS_BYTES["cpu" if device.type == "cpu" else "cuda"]
    return max(1, budget // (4 * width))


class Head:
    """A model's output layer, taken out of its forward pass.

    What models do to logits after the layer (a scale, a soft cap) is read from the
    configuration; the check against plain sequences (:mod:`hf`), which go through the
    model's own forward pass to its end, would show anything else.
    """

    def __init__(self, model: Any) -> None:
        self._layer = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._scale = _scale(config)

    @contextlib.contextmanager
    def captured(self) -> Iterator[Callable[[], torch.Tensor]]:
        """Catch the layer's input in a forward pass, whose own logits are cut to one
        row.

        Yields:
            A function that gives the last forward pass's hidden states, [B, T, H].
        """
        caught: list[torch.Tensor] = []

        def before(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            caught[:] = [inputs[0]]
            return (inputs[0][:, -1:], *inputs[1:])

        def hidden() -> torch.Tensor:
            if not caught:
                raise ValueError(
                    "the forward pass does not go through the output layer"
                )
            return caught.pop()

        handle = self._layer.register_forward_pre_hook(before)
        try:
            yield hidden
        finally:
            handle.remove()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of hidden states: [rows, H] to [rows, V]."""
        logits: torch.Tensor = self._layer(hidden)
        if self._scale is not None:
            logits = logits * self._scale
        if self._cap is not None:
            logits = self._cap * torch.tanh(logits / self._cap)
        return logits


def _scale(config: Any) -> float | None:
    """What logits are multiplied by: Cohere names a factor, Granite a divisor."""
    factor = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    if factor is not None:
        return float(factor)
    return None if divisor is None else 1.0 / float(divisor)


def statistics(
    rows: torch.Tensor,
    to_logits: Callable[[torch.Tensor], torch.Tensor],
    requests: Sequence[ScoreRequest],
    *,
    width: int,
    top_k: int,
) -> list[TokenScores]:
    """Every stored statistic of some responses.

    Args:
        rows: [Σ n, H] the hidden states that predict their tokens, one response after
            the other.
        to_logits: from [m, H] to logits [m, V].
        width: V.
        top_k: how many of the most probable tokens to keep.

    Returns:
        Scores of each response.
    """
    lengths = [request.n_tokens for request in requests]
    if rows.shape[0] != sum(lengths):
        raise ScoringError(
            f"the model returned {rows.shape[0]} positions where {sum(lengths)} were "
            "asked for"
        )
    labels = torch.tensor([t for r in requests for t in r.ids[r.start : r.stop]])
    wanted = _wanted(requests)
    size = rows_per_chunk(width, rows.device)
    work = torch.empty((min(size, len(labels)), width), device=rows.device)
    parts = []
    for start in range(0, len(labels), size):
        chunk = slice(start, start + size)
        ids = None if wanted is None else wanted[chunk]
        logits = to_logits(rows[chunk]).float()
        parts.append(chunk_scores(logits, labels[chunk], ids, top_k, work))
        del logits
    whole = TokenScores.concatenate(parts)
    ends = np.cumsum(lengths).tolist()
    return [
        _own(whole.slice(end - n, end), request)
        for end, n, request in zip(ends, lengths, requests, strict=True)
    ]


def _wanted(requests: Sequence[ScoreRequest]) -> torch.Tensor | None:
    """[Σ n, k] ids asked for; where some requests ask for none, zeros."""
    widths = {r.ref_ids.shape[1] for r in requests if r.ref_ids is not None}
    if not widths:
        return None
    if len(widths) > 1:
        raise ScoringError(f"requests ask for {sorted(widths)} ids a position at once")
    (k,) = widths
    parts = [
        np.zeros((r.n_tokens, k), np.int64) if r.ref_ids is None else r.ref_ids
        for r in requests
    ]
    return torch.tensor(np.concatenate(parts), dtype=torch.long)


def _own(scores: TokenScores, request: ScoreRequest) -> TokenScores:
    """A response's scores, without reference columns that it did not ask for."""
    if request.ref_ids is not None or scores.ref_ids is None:
        return scores
    return scores.without("ref_ids", "ref_logprobs")


def chunk_scores(
    logits: torch.Tensor,
    labels: torch.Tensor,
    wanted: torch.Tensor | None,
    top_k: int,
    work: torch.Tensor,
) -> TokenScores:
    """Statistics of some rows.

    Args:
        logits: [m, V] float32; overwritten.
        labels: [m] the tokens that came.
        wanted: [m, k] ids whose ln p is asked for.
        work: [≥ m, V] float32 to compute in: fresh memory of this size costs more than
            the arithmetic done in it.
    """
    device = logits.device
    with torch.inference_mode():
        most = logits.amax(-1, keepdim=True)
        probs = torch.sub(logits, most, out=work[: len(logits)]).exp_()
        total = probs.sum(-1, keepdim=True)
        logprobs = logits.sub_(most + total.log())
        probs.div_(total)
        label = logprobs.gather(1, labels.to(device)[:, None])
        top = torch.topk(logprobs, min(top_k, logprobs.shape[1]), dim=-1)
        columns: dict[str, Any] = {
            "token_ids": labels,
            "logprobs": label[:, 0],
            "sq_norms": torch.linalg.vector_norm(probs, dim=-1).square(),
            "entropies": _entropies(probs, logprobs),
            "mean_logprobs": logprobs.mean(-1),
            # the comparison's ones are written over the probabilities
            "ranks": torch.gt(logprobs, label, out=probs).sum(-1) + 1,
            "top_logprobs": top.values,
            "top_ids": top.indices,
        }
        if wanted is not None:
            columns["ref_ids"] = wanted
            columns["ref_logprobs"] = logprobs.gather(1, wanted.to(device))
    arrays = {name: value.cpu().numpy() for name, value in columns.items()}
    return with_argmax(
        **{
            name: value.astype(np.int32 if _is_id(name) else np.float32)
            for name, value in arrays.items()
        }
    )


def _entropies(probs: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """−Σ p ln p of each row; overwrites the probabilities."""
    found = -probs.mul_(logprobs).sum(-1)
    if torch.isfinite(found).all():
        return found
    # p ln p is 0 at p = 0, where ln p is -inf
    return -probs.nan_to_num_(nan=0.0).sum(-1)


def _is_id(name: str) -> bool:
    return name.endswith("ids") or name == "ranks"
