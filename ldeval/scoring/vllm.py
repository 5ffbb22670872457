"""Scores from the harness's vLLM models (``--model vllm``).

vLLM gives, for each prompt token, its log-probability, its rank and the top-k: no
entropy and no norm. Left to itself it computes every prompt anew for each response,
since it does not read its prefix cache where prompt scores are asked for: what lies
before the cached tokens would hold garbage.

Here each prompt goes in once by itself, up to the last full block before its responses,
and the responses then read the cache. How many tokens were taken from it comes back
with every request. Where a cached block reaches into the response, as it may when
responses of a prompt begin alike, the request is sent again without the cache; its
first answer is thrown away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ldeval.errors import ScoringError, UnsupportedBackendError
from ldeval.records import TokenScores
from ldeval.scoring.batch import (
    ScoreRequest,
    checked,
    end_tokens,
    grouped,
    lookup,
    with_argmax,
)

log = logging.getLogger(__name__)

REQUESTS_PER_CALL = 128
"""Requests handed to the engine at once: bounds what it returns at a time."""
CACHE_SHARE = 0.8
"""Of the engine's key-value cache, at most so much is asked for in a call: a request
that is preempted and comes back reads blocks of its own, which nothing reports."""


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


def score_checked(
    lm: Any,
    requests: Sequence[ScoreRequest],
    *,
    top_k: int,
    tokens: int | None = None,
    done: Callable[[int], object] = lambda _: None,
) -> tuple[dict[int, TokenScores], str]:
    """Score every request, the prompts from the prefix cache where that can be done.

    Args:
        lm: a vLLM model of the harness.
        requests: in any order.
        top_k: how many of the most probable tokens to keep at each position.
        tokens: most tokens handed to the engine at once.
        done: told of each response as it is scored.

    Returns:
        Scores by index, and a note on what was taken from the cache.
    """
    limit = lm.model.llm_engine.model_config.max_logprobs
    if limit != -1 and top_k > limit:
        raise UnsupportedBackendError(
            f"the engine returns at most {limit} log-probabilities a position, {top_k} "
            f"are needed. Add max_logprobs={top_k} to the model arguments."
        )
    engine = _Engine(lm, top_k)
    found: dict[int, TokenScores] = {}
    for call in _calls(requests, engine.capacity(tokens)):
        for index, scores in engine.answers([(i, requests[i]) for i in call]):
            found[index] = checked(requests[index], scores)
            done(1)
    return found, engine.note(requests)


def continue_greedily(
    lm: Any,
    prompts: Sequence[tuple[int, ...]],
    limit: int,
    *,
    done: Callable[[int], object] = lambda _: None,
) -> list[tuple[int, ...]]:
    """The most probable tokens after each prompt, at most ``limit`` of them, the end
    token among them where it comes."""
    from vllm import SamplingParams, TokensPrompt

    ends = sorted(end_tokens(lm))
    how = SamplingParams(
        temperature=0.0, max_tokens=limit, detokenize=False, stop_token_ids=ends
    )
    found: list[tuple[int, ...]] = []
    for start in range(0, len(prompts), REQUESTS_PER_CALL):
        call = prompts[start : start + REQUESTS_PER_CALL]
        asked = [TokensPrompt(prompt_token_ids=list(ids)) for ids in call]
        outputs = _generated(lm, asked, how)
        found += [tuple(output.outputs[0].token_ids) for output in outputs]
        done(len(call))
    return found


def _calls(requests: Sequence[ScoreRequest], tokens: int) -> Iterator[list[int]]:
    """Indices of requests, those with one context in one call where they fit."""
    call: list[int] = []
    used = 0
    for group in grouped(requests):
        for index in group:
            length = len(requests[index].ids)
            if call and (len(call) >= REQUESTS_PER_CALL or used + length > tokens):
                yield call
                call, used = [], 0
            call.append(index)
            used += length
    if call:
        yield call


class _Engine:
    """One engine, and the count of what its prefix cache gave."""

    def __init__(self, lm: Any, top_k: int) -> None:
        self._lm = lm
        self._top_k = top_k
        config = lm.model.llm_engine.vllm_config
        cache = config.cache_config
        self._block = int(cache.block_size)
        blocks = int(cache.num_gpu_blocks or 0)
        self._tokens = blocks * self._block
        # without knowing its size, preemption could not be ruled out
        self._reads_cache = bool(cache.enable_prefix_caching) and blocks > 0
        self._fixed_ids = bool(getattr(config, "use_v2_model_runner", False))
        self._from_cache = self._again = 0

    def capacity(self, tokens: int | None) -> int:
        """Most tokens in one call."""
        room = int(CACHE_SHARE * self._tokens) if self._reads_cache else 2**31
        return room if tokens is None else min(tokens, room)

    def note(self, requests: Sequence[ScoreRequest]) -> str:
        """What was taken from the cache, and how reference ids were had."""
        total = sum(len(request.ids) for request in requests)
        parts = [
            f"prefix cache: {self._from_cache} of {total} tokens were read from it"
        ]
        if not self._reads_cache:
            parts = ["prefix cache: off"]
        if self._again:
            parts.append(
                f"{self._again} of {len(requests)} responses were scored again without "
                "it, since a cached block reached into them"
            )
        if any(request.ref_ids is not None for request in requests):
            parts.append(
                "reference ids by position"
                if self._fixed_ids
                else f"reference ids where they are among the {self._top_k} most "
                "probable"
            )
        return "; ".join(parts)

    def answers(
        self, items: Sequence[tuple[int, ScoreRequest]]
    ) -> Iterator[tuple[int, TokenScores]]:
        """(index, scores) of some requests."""
        self._warm([request for _, request in items])
        again = []
        outputs = self._generate([r for _, r in items], read=self._reads_cache)
        for (index, request), output in zip(items, outputs, strict=True):
            if self._reads_cache and not _intact(request, output, self._fixed_ids):
                again.append((index, request))
                continue
            self._from_cache += output.num_cached_tokens or 0
            yield index, self._read(request, output)
        if again:
            self._again += len(again)
            outputs = self._generate([r for _, r in again], read=False)
            for (index, request), output in zip(again, outputs, strict=True):
                yield index, self._read(request, output)

    def _warm(self, requests: Sequence[ScoreRequest]) -> None:
        """Fill the cache with the full blocks before the responses of each prompt."""
        from vllm import SamplingParams, TokensPrompt

        if not self._reads_cache:
            return
        counts: dict[tuple[int, ...], int] = {}
        for request in requests:
            blocks = (request.start - 1) // self._block
            beginning = request.ids[: blocks * self._block]
            counts[beginning] = counts.get(beginning, 0) + 1
        prompts = [
            TokensPrompt(prompt_token_ids=list(beginning))
            for beginning, count in counts.items()
            if beginning and count > 1
        ]
        if prompts:
            params = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
            _generated(self._lm, prompts, params)

    def _generate(self, requests: Sequence[ScoreRequest], *, read: bool) -> list[Any]:
        from vllm import SamplingParams, TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=list(r.ids)) for r in requests]
        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=1,
                prompt_logprobs=self._top_k,
                detokenize=False,
                flat_logprobs=True,
                skip_reading_prefix_cache=not read,
                **(fixed_ids(request) if self._fixed_ids else {}),
            )
            for request in requests
        ]
        return _generated(self._lm, prompts, params)

    def _read(self, request: ScoreRequest, output: Any) -> TokenScores:
        known = None
        if self._fixed_ids and request.ref_ids is not None:
            known = np.asarray(output.prompt_token_id_logprobs, np.float32)
            known = known[: request.n_tokens]
        return read_flat(request, output.prompt_logprobs, self._top_k, known)


def _generated(lm: Any, prompts: Sequence[Any], params: Any) -> list[Any]:
    """What the engine gives, with the adapter that is loaded.

    Raises:
        ScoringError: when it died.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        outputs: list[Any] = lm.model.generate(
            prompts, params, use_tqdm=False, lora_request=lm.lora_request
        )
    except EngineDeadError as error:
        raise ScoringError(
            "the vLLM engine died; its own messages above say why. Less memory "
            "(gpu_memory_utilization, VLLM_CPU_KVCACHE_SPACE) or a smaller "
            "max_model_len may help; --model hf does without it."
        ) from error
    return outputs


def _intact(request: ScoreRequest, output: Any, fixed_ids: bool) -> bool:
    """Whether every scored position was computed, none taken from the cache.

    The token at ``start`` is predicted at ``start − 1``, so that this position must
    lie past the cached ones.
    """
    cached = output.num_cached_tokens
    if cached is None or cached > request.start - 1:
        return False
    asked = fixed_ids and request.ref_ids is not None
    return not asked or output.prompt_token_id_logprobs is not None


def fixed_ids(request: ScoreRequest) -> dict[str, Any]:
    """Sampling parameters that ask for given ids at each scored position.

    The engine wants a row for every position from the first one to the end of the
    sequence; those past the span are filled with −1.
    """
    if request.ref_ids is None:
        return {}
    rows = len(request.ids) - request.start
    ids = np.full((rows, request.ref_ids.shape[1]), -1, np.int64)
    ids[: request.n_tokens] = request.ref_ids
    return {"prompt_logprob_token_ids": ids, "prompt_logprob_start": request.start - 1}


def read_flat(
    request: ScoreRequest, flat: Any, top_k: int, known: np.ndarray | None = None
) -> TokenScores:
    """Token scores from a flat list: at each position the label, then the top-k.

    Args:
        flat: of all positions of the sequence.
        known: [n, k] ln p of ``request.ref_ids``, where the engine gave them.
    """
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
        columns["ref_logprobs"] = (
            lookup(wanted, ids[:, 1:], logprobs[:, 1:], ids[:, 0], logprobs[:, 0])
            if known is None
            else known
        )
    return with_argmax(**columns)
