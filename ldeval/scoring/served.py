"""Scores from a completions server (``--model local-completions`` of the harness).

A server that returns ``prompt_logprobs``, as vLLM's does, gives for each prompt token
its log-probability, its rank and the top-k: the columns of an engine in this process.
Token ids are sent, never text, so that the server scores what was encoded here.

Nothing in the protocol lets such a request read the server's prefix cache, nor ask for
given ids: each prompt is computed anew for every response, and reference ids are known
where they are among the top-k.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from ldeval.errors import ScoringError, UnsupportedBackendError
from ldeval.printable import quoted
from ldeval.records import TokenScores
from ldeval.scoring import completions
from ldeval.scoring.batch import ScoreRequest, checked, grouped, lookup, with_argmax
from ldeval.scoring.completions import Connection, RefusedError

CLAMPED = -9999.0
"""What vLLM's server writes for ln p = −∞, which JSON cannot hold."""

Ability = Literal["prompt_logprobs", "echo"]


@dataclass(frozen=True)
class ServerFacts:
    """What is known of a server that this process started; hung on the model as
    ``server_facts``. Of any other server the client knows none of it."""

    dtype: str = "unknown"
    vocab_size: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def facts_of(lm: Any) -> ServerFacts:
    """What is known of the server behind a model."""
    facts = getattr(lm, "server_facts", None)
    return facts if isinstance(facts, ServerFacts) else ServerFacts()


def check_settings(lm: Any) -> None:
    """Refuse, by name, settings that change what a score means.

    Raises:
        UnsupportedBackendError: for ``enable_thinking``, or for an ``add_bos_token``
            that the harness's remote tokenizer passes over.
    """
    if getattr(lm, "enable_thinking", None):
        raise UnsupportedBackendError(
            "enable_thinking=True cannot be scored: the response would follow an open "
            "thinking block. Leave it out, or set it to False."
        )
    if lm.tokenizer_backend == "remote" and lm.add_bos_token:
        raise UnsupportedBackendError(
            "add_bos_token=True is not applied by the harness's remote tokenizer. Use "
            "tokenizer_backend=huggingface,tokenizer=DIR."
        )


def ability(lm: Any) -> Ability:
    """What the server can do, found out by one small request, or by two.

    Raises:
        UnsupportedBackendError: when it returns no log-probabilities of prompt tokens.
        ScoringError: when it cannot be asked.
    """
    if lm.tokenizer_backend == "remote":
        _keep_texts_here(lm.tokenizer)
    name, reasons = completions.run(lambda: _ability(lm))
    if name is None:
        raise UnsupportedBackendError(
            f"the server at {completions.shown_url(lm.base_url)} returns no "
            f"log-probabilities of prompt tokens ({'; '.join(reasons)}), so that "
            "responses cannot be scored. It must support prompt_logprobs, as `vllm "
            "serve` does, or at least echo=true with logprobs."
        )
    return name


def _keep_texts_here(tokenizer: Any) -> None:
    """The harness's remote tokenizer posts every text, and would follow a redirect to
    another host with it.

    Raises:
        ScoringError: when the server does not encode.
    """
    tokenizer.session.max_redirects = 0
    try:
        tokenizer.encode("one two three four")
    except RuntimeError as error:
        raise ScoringError(
            f"the server's tokenizer does not answer ({error}). No text is sent where "
            "it redirects to. Use tokenizer_backend=huggingface,tokenizer=DIR."
        ) from error


async def _ability(lm: Any) -> tuple[Ability | None, list[str]]:
    ids = [int(token) for token in lm.tok_encode("one two three four")]
    echo = lm._create_payload(lm.create_message([ids]), generate=False, seed=lm._seed)
    trials: list[tuple[Ability, dict[str, Any], Callable[..., bool]]] = [
        ("prompt_logprobs", _payload(lm, [ids], 1), _scores_prompts),
        ("echo", echo, _echoes),
    ]
    if not lm.tokenized_requests:  # the user says that the server takes text only
        del trials[0]
    reasons = []
    async with Connection(lm) as connection:
        for name, payload, fulfils in trials:
            try:
                answer = await connection.post(payload)
            except ScoringError as error:
                if not (isinstance(error, RefusedError) and error.cannot):
                    raise ScoringError(f"{connection.shown}: {error}") from error
                reasons.append(f"{name}: {error}")
                continue
            if fulfils(answer, len(ids)):
                return name, reasons
            reasons.append(f"{name}: absent from its answer")
    return None, reasons


def _scores_prompts(answer: Mapping[str, Any], length: int) -> bool:
    rows = _first_choice(answer).get("prompt_logprobs")
    return isinstance(rows, list) and len(rows) == length and bool(rows[-1])


def _echoes(answer: Mapping[str, Any], length: int) -> bool:
    logprobs = _first_choice(answer).get("logprobs")
    if not isinstance(logprobs, Mapping) or not logprobs.get("top_logprobs"):
        return False
    values = logprobs.get("token_logprobs")
    return isinstance(values, list) and len(values) >= length


def _first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        return choices[0]
    return {}


def _payload(lm: Any, prompts: list[list[int]], top_k: int) -> dict[str, Any]:
    return {
        "model": lm.model,
        "prompt": prompts,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": top_k,
        "return_token_ids": True,
    }


def score_checked(
    lm: Any,
    requests: Sequence[ScoreRequest],
    *,
    top_k: int,
    tokens: int | None = None,
    done: Callable[[int], object] = lambda _: None,
) -> tuple[dict[int, TokenScores], str]:
    """Score every request, ``num_concurrent`` posts of ``batch_size`` at a time.

    Args:
        lm: a ``local-completions`` model of the harness.
        requests: in any order.
        top_k: how many of the most probable tokens to keep at each position.
        tokens: most tokens in one post.
        done: told of each response as it is scored.

    Returns:
        Scores by index, and a note on how they were had.

    Raises:
        ScoringError: naming probe, kind and address; nothing is returned then.
    """
    posts = list(_posts(requests, int(lm._batch_size), tokens))
    found, retried = completions.run(
        lambda: _score_all(lm, requests, posts, top_k, done)
    )
    note = (
        f"served: {len(posts)} posts to {completions.shown_url(lm.base_url)}, "
        f"{max(1, lm._concurrent)} at a time"
    )
    if retried:
        note += f", {retried} of them sent again"
    if any(request.ref_ids is not None for request in requests):
        note += f"; reference ids where they are among the {top_k} most probable"
    return found, note


def _posts(
    requests: Sequence[ScoreRequest], size: int, tokens: int | None
) -> Iterator[list[int]]:
    """Indices of requests by post, those with one context after each other."""
    post: list[int] = []
    used = 0
    for index in (index for group in grouped(requests) for index in group):
        length = len(requests[index].ids)
        if post and (
            len(post) >= size or (tokens is not None and used + length > tokens)
        ):
            yield post
            post, used = [], 0
        post.append(index)
        used += length
    if post:
        yield post


async def _score_all(
    lm: Any,
    requests: Sequence[ScoreRequest],
    posts: Sequence[list[int]],
    top_k: int,
    done: Callable[[int], object],
) -> tuple[dict[int, TokenScores], int]:
    found: dict[int, TokenScores] = {}
    waiting = iter(posts)

    async def worker(connection: Connection) -> None:
        for post in waiting:
            batch = [requests[index] for index in post]
            answers = await _answers(lm, connection, batch, top_k)
            for index, scores in zip(post, answers, strict=True):
                found[index] = scores
                done(1)

    async with Connection(lm) as connection:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(max(1, lm._concurrent)):
                    group.create_task(worker(connection))
        except ExceptionGroup as errors:  # the first; the other workers were stopped
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        return found, connection.retried


def continue_greedily(
    lm: Any,
    prompts: Sequence[tuple[int, ...]],
    limit: int,
    *,
    done: Callable[[int], object] = lambda _: None,
) -> list[tuple[int, ...]]:
    """The most probable tokens after each prompt, at most ``limit`` of them, the end
    token among them where it comes.

    Raises:
        ScoringError: when the server does not say which tokens it took.
    """
    size = max(1, int(lm._batch_size))
    posts = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    how = {
        "model": lm.model,
        "max_tokens": limit,
        "temperature": 0,
        # a server takes what is not sent from the model's own generation settings
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "min_tokens": 0,
        "return_token_ids": True,
    }

    async def ask() -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        async with Connection(lm) as connection:
            for post in posts:
                answer = await connection.post(
                    {**how, "prompt": [list(ids) for ids in post]}
                )
                for choice in _choices(answer, len(post)):
                    found.append(_taken(choice, connection.shown))
                done(len(post))
        return found

    return completions.run(ask)


def _taken(choice: Mapping[str, Any], address: str) -> tuple[int, ...]:
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise ScoringError(
            f"greedy decodes: {address} does not say which tokens it took "
            "(token_ids), as vLLM's server does. Leave out --greedy."
        )
    return tuple(ids)


async def _answers(
    lm: Any, connection: Connection, batch: Sequence[ScoreRequest], top_k: int
) -> list[TokenScores]:
    """Scores of the requests of one post, in order."""
    try:
        answer = await connection.post(
            _payload(lm, [list(r.ids) for r in batch], top_k)
        )
        choices = _choices(answer, len(batch))
    except ScoringError as error:
        more = f" and {len(batch) - 1} more" if len(batch) > 1 else ""
        place = (
            f"{_place(batch[0])}{more}, {max(len(r.ids) for r in batch)} tokens, at "
            f"{connection.shown}"
        )
        refused = isinstance(error, RefusedError) and error.cannot
        if refused and "logprobs" in str(error):
            raise UnsupportedBackendError(
                f"{place}: {error}. {top_k} log-probabilities a position are needed: "
                f"start the server with --max-logprobs {top_k}."
            ) from error
        remedy = ". Is max_length that of the server?" if refused else ""
        raise ScoringError(f"{place}: {error}{remedy}") from error
    scores = []
    for request, choice in zip(batch, choices, strict=True):
        try:
            scores.append(checked(request, read_choice(request, choice, top_k)))
        except ScoringError as error:
            raise ScoringError(f"{error} (at {connection.shown})") from error
    return scores


def _choices(answer: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    """The answers to the prompts of one post, in order."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not all(
        isinstance(choice, Mapping) for choice in choices
    ):
        raise ScoringError(
            f"the server's answer holds no choices, but {sorted(answer)}"
        )
    places = [choice.get("index", place) for place, choice in enumerate(choices)]
    if sorted(places, key=str) != sorted(range(count), key=str):
        raise ScoringError(
            f"the server answers prompts {places} of the {count} that were sent"
        )
    return [choices[places.index(place)] for place in range(count)]


def read_choice(
    request: ScoreRequest, choice: Mapping[str, Any], top_k: int
) -> TokenScores:
    """Token scores from one answer.

    Args:
        choice: ``prompt_logprobs`` holds, for each token of the sequence, null or a
            mapping from token id to ``{"logprob": …, "rank": …}``: the top-k, and the
            token itself where it is not among them.

    Raises:
        ScoringError: when positions or values are missing, or belong to other tokens.
    """
    sent = choice.get("prompt_token_ids")
    if sent is not None and list(sent) != list(request.ids):
        raise ScoringError(
            f"{_place(request)}: the server scored other token ids than were sent "
            f"({len(sent)} for {len(request.ids)}, or other ids)"
        )
    rows = choice.get("prompt_logprobs")
    if not isinstance(rows, list) or len(rows) != len(request.ids):
        came = f"{len(rows)} positions" if isinstance(rows, list) else "none"
        raise ScoringError(
            f"{_place(request)}: prompt_logprobs for {len(request.ids)} tokens were "
            f"asked for, the server returned {came}"
        )
    read = [
        _read_row(request, rows[at], at, top_k)
        for at in range(request.start, request.stop)
    ]
    label = np.array(request.ids[request.start : request.stop], np.int32)
    logprobs = np.array([row.logprob for row in read], np.float32)
    top_ids = np.array([row.top_ids for row in read], np.int32)
    top_logprobs = np.array([row.top_logprobs for row in read], np.float32)
    columns: dict[str, Any] = {
        "token_ids": label,
        "logprobs": logprobs,
        "ranks": np.array([row.rank for row in read], np.int32),
        "top_ids": top_ids,
        "top_logprobs": top_logprobs,
    }
    if request.ref_ids is not None:
        wanted = np.asarray(request.ref_ids, np.int32)
        columns["ref_ids"] = wanted
        columns["ref_logprobs"] = lookup(wanted, top_ids, top_logprobs, label, logprobs)
    return with_argmax(**columns)


@dataclass(frozen=True)
class _Row:
    """One position: the token that stands there, and the most probable ones."""

    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


def _read_row(request: ScoreRequest, row: Any, at: int, top_k: int) -> _Row:
    place = f"{_place(request)}: token {at} of the sequence"
    try:
        entries = sorted(_entry(key, value) for key, value in row.items())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ScoringError(
            f"{place}: the server returned no log-probabilities but {str(row)[:200]!r}"
        ) from error
    label = request.ids[at]
    own = next((entry for entry in entries if entry[1] == label), None)
    if own is None:
        raise ScoringError(
            f"{place}: the server scored tokens {[e[1] for e in entries][:5]}, not "
            f"{label}, which was sent"
        )
    top = entries[:top_k]
    if [rank for rank, _, _ in top] != list(range(1, top_k + 1)):
        raise ScoringError(
            f"{place}: the {top_k} most probable tokens were asked for, the server "
            f"returned those of ranks {[rank for rank, _, _ in entries]}"
        )
    values = [logprob for _, _, logprob in entries]
    if any(after > before for before, after in pairwise(values)):
        raise ScoringError(f"{place}: the server's ranks are not those of its values")
    mass = math.fsum(math.exp(min(logprob, 1.0)) for _, _, logprob in top)
    if not mass <= 1.01:
        raise ScoringError(
            f"{place}: the server's values are not log-probabilities: those of the "
            f"{top_k} most probable tokens sum to {mass:.4g}. Is its logprobs_mode "
            "raw_logprobs?"
        )
    # among the top-k the server gives the place in it; tied tokens share a rank here
    rank = own[0] if own not in top else 1 + sum(e[2] > own[2] for e in top)
    return _Row(own[2], rank, [e[1] for e in top], [e[2] for e in top])


def _entry(key: str, value: Mapping[str, Any]) -> tuple[int, int, float]:
    """(rank, token id, ln p)."""
    rank, logprob = value["rank"], value["logprob"]
    if not isinstance(rank, int) or not isinstance(logprob, int | float):
        raise TypeError(f"rank {quoted(rank)}, logprob {quoted(logprob)}")
    return rank, int(key), -math.inf if logprob == CLAMPED else float(logprob)


def _place(request: ScoreRequest) -> str:
    return f"probe {request.probe_id!r}, response {request.kind!r}"
