"""Scores from the harness's vLLM models (``--model vllm``).

vLLM gives, for each prompt token, its log-probability, its rank and the top-k: no
entropy and no norm. Prompt scores are asked for without reading the prefix cache, whose
positions hold garbage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ldeval.errors import ScoringError, UnsupportedBackendError
from ldeval.records import TokenScores
from ldeval.scoring.batch import ScoreRequest, lookup, with_argmax

REQUESTS_PER_CALL = 64
"""Requests handed to the engine at once: bounds what it returns at a time."""


def check_settings(lm: Any) -> None:
    """Refuse, by name, settings that change what a score means.

    Raises:
        UnsupportedBackendError: for ``enable_thinking`` or a ``logprobs_mode`` whose
            values are not log-probabilities.
    """
    if getattr(lm, "enable_thinking", None):
        raise UnsupportedBackendError(
            "enable_thinking=True cannot be scored: the response would follow an open "
            "thinking block. Leave it out, or set it to False."
        )
    mode = getattr(lm.model.llm_engine.model_config, "logprobs_mode", "raw_logprobs")
    if str(mode) not in ("raw_logprobs", "processed_logprobs"):
        raise UnsupportedBackendError(
            f"logprobs_mode={mode} returns values that are not log-probabilities. "
            "Leave it out."
        )


def max_length(lm: Any) -> int:
    """Longest scorable sequence: the engine wants room for one generated token."""
    return int(lm.model.llm_engine.model_config.max_model_len) - 1


def score(
    lm: Any, requests: Sequence[ScoreRequest], *, top_k: int
) -> Iterator[tuple[int, TokenScores]]:
    """Score every request; yields (index, scores) as calls to the engine finish."""
    from vllm import SamplingParams, TokensPrompt

    limit = lm.model.llm_engine.model_config.max_logprobs
    if limit != -1 and top_k > limit:
        raise UnsupportedBackendError(
            f"the engine returns at most {limit} log-probabilities a position, {top_k} "
            f"are needed. Add max_logprobs={top_k} to the model arguments."
        )
    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=top_k,
        detokenize=False,
        flat_logprobs=True,
        skip_reading_prefix_cache=True,
    )
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].ids))
    for start in range(0, len(order), REQUESTS_PER_CALL):
        indices = order[start : start + REQUESTS_PER_CALL]
        prompts = [
            TokensPrompt(prompt_token_ids=list(requests[i].ids)) for i in indices
        ]
        outputs = lm.model.generate(
            prompts, params, use_tqdm=False, lora_request=lm.lora_request
        )
        for index, output in zip(indices, outputs, strict=True):
            yield index, _read(requests[index], output.prompt_logprobs, top_k)


def _read(request: ScoreRequest, flat: Any, top_k: int) -> TokenScores:
    """Token scores from a flat list: at each position the label, then the top-k."""
    width = top_k + 1
    begin, end = flat.start_indices[request.start], flat.end_indices[request.stop - 1]
    if end - begin != request.n_tokens * width:
        raise ScoringError(
            f"probe {request.probe_id!r}, response {request.kind!r}: the engine "
            f"returned {end - begin} scores for {request.n_tokens} positions, not "
            f"{width} each"
        )
    shape = (request.n_tokens, width)
    ids = np.asarray(flat.token_ids[begin:end], np.int32).reshape(shape)
    logprobs = np.asarray(flat.logprobs[begin:end], np.float32).reshape(shape)
    ranks = np.asarray(flat.ranks[begin:end], np.int32).reshape(shape)
    columns: dict[str, Any] = {
        "token_ids": ids[:, 0],
        "logprobs": logprobs[:, 0],
        "ranks": ranks[:, 0],
        "top_ids": ids[:, 1:],
        "top_logprobs": logprobs[:, 1:],
    }
    if request.ref_ids is not None:
        wanted = np.asarray(request.ref_ids, np.int32)
        columns["ref_ids"] = wanted
        columns["ref_logprobs"] = lookup(
            wanted, ids[:, 1:], logprobs[:, 1:], ids[:, 0], logprobs[:, 0]
        )
    return with_argmax(**columns)
