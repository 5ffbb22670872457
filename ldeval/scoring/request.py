"""The request type ``probe_logprobs``: per-token scores through the harness.

The evaluator calls ``getattr(lm, request_type)(instances)``. Attached once to the
harness's ``LM`` base class, this one method gives every harness model full scores, and
sees all responses of a prompt together. An answer is one JSON string, since the harness
turns logged answers into strings.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import LM

from ldeval.probes import parse_probe
from ldeval.records import TOP_K, Probe, TokenScores
from ldeval.scoring.backends import Backend
from ldeval.scoring.score import Key, ResponseScore, Scored, score_probes

REQUEST_TYPE = "probe_logprobs"

_COLUMNS = (
    "token_ids",
    "logprobs",
    "argmax_ids",
    "argmax_logprobs",
    "ranks",
    "sq_norms",
    "entropies",
    "mean_logprobs",
    "top_ids",
    "top_logprobs",
)


def install() -> None:
    """Attach ``probe_logprobs`` to the harness's base class. Safe to call again."""
    setattr(LM, REQUEST_TYPE, probe_logprobs)


def probe_logprobs(lm: Any, instances: Sequence[Any]) -> list[str]:
    """Answer the harness's requests, in order.

    Args:
        lm: the harness model (bound as a method).
        instances: of the probe tasks. ``doc`` is the whole probe; ``arguments`` are
            (context, response, settings), settings holding kind, span and template.

    Returns:
        One JSON object a request, as text.
    """
    answers: dict[int, str] = {}
    groups: dict[str, list[int]] = defaultdict(list)
    for number, instance in enumerate(instances):
        settings = instance.arguments[2]
        if settings["absent"]:
            answers[number] = json.dumps({"absent": True})
        else:
            shared = {k: v for k, v in settings.items() if k not in ("kind", "absent")}
            groups[json.dumps(shared, sort_keys=True)].append(number)
    for shared_text, numbers in groups.items():
        shared = json.loads(shared_text)
        answers.update(_score_group(lm, instances, numbers, shared))
    return [answers[number] for number in range(len(instances))]


def _score_group(
    lm: Any, instances: Sequence[Any], numbers: Sequence[int], shared: dict[str, Any]
) -> dict[int, str]:
    """Requests that share span, template and the rest: one call to the scorer."""
    probes: dict[str, Probe] = {}
    keys: dict[int, Key] = {}
    for number in numbers:
        doc = instances[number].doc
        if doc["probe_id"] not in probes:
            probes[doc["probe_id"]] = parse_probe(doc)
        keys[number] = (doc["probe_id"], instances[number].arguments[2]["kind"])
    scored = score_probes(
        lm,
        list(probes.values()),
        span=shared["span"],
        apply_chat_template=shared["apply_chat_template"],
        system_instruction=shared["system_instruction"],
        wanted=set(keys.values()),
        top_k=shared.get("top_k", TOP_K),
    )
    reasons = {(item.probe_id, item.kind): item.reason for item in scored.excluded}
    answers = {}
    for number, key in keys.items():
        if key in reasons:
            answers[number] = json.dumps({"excluded": reasons[key]})
        else:
            answers[number] = _dump(scored, key)
    return answers


def _dump(scored: Scored, key: Key) -> str:
    score = scored.scores[key]
    record: dict[str, Any] = {
        **describe(scored.backend),
        "span": scored.span,
        "template_used": scored.template_used,
        "merged": key[0] in scored.split_exceptions,
        "context": scored.contexts.get(key[0]),
        "logprob_sum": score.logprob_sum,
        "all_argmax": score.all_argmax,
        "token_ids": None if score.token_ids is None else list(score.token_ids),
    }
    if score.tokens is not None:
        for name in _COLUMNS:
            column = getattr(score.tokens, name)
            if column is not None:
                record[name] = _numbers(column)
    return json.dumps(record)


def describe(backend: Backend) -> dict[str, Any]:
    """The backend as it stands in each answer."""
    return {
        "backend": backend.name,
        "tier": backend.tier,
        "dtype": backend.dtype,
        "vocab_size": backend.vocab_size,
        "versions": dict(backend.versions),
        "tokenizer_hash": backend.tokenizer_hash,
        "template_hash": backend.template_hash,
    }


def _numbers(column: np.ndarray) -> list[Any]:
    """A column as JSON numbers; float32 by its shortest text that reads back alike."""
    if column.ndim == 2:
        return [_numbers(row) for row in column]
    if np.issubdtype(column.dtype, np.integer):
        return [int(value) for value in column]
    return [float(str(value)) for value in column]


def load_score(record: Mapping[str, Any]) -> ResponseScore:
    """The score in one parsed answer (the inverse of what the harness logged)."""
    ids = record["token_ids"]
    ids = None if ids is None else tuple(_column("token_ids", ids).tolist())
    tokens = None
    if "logprobs" in record:
        columns: dict[str, Any] = {
            name: _column(name, record[name]) for name in _COLUMNS if name in record
        }
        tokens = TokenScores(**columns)
    return ResponseScore(
        float(record["logprob_sum"]), tokens, ids, record["all_argmax"]
    )


def _column(name: str, value: object) -> np.ndarray:
    """A column as it was; numpy alone would round a fraction to an id, and read text.

    Raises:
        ValueError: it holds something else than numbers, or too large ones.
    """
    whole = name.endswith("ids") or name == "ranks"
    column = np.asarray(value)
    dimensions = 2 if name.startswith("top_") else 1
    if not column.size:
        column = column.reshape(column.shape + (0,) * (dimensions - column.ndim))
    elif column.dtype.kind not in ("i" if whole else "if"):
        raise ValueError(f"{name} holds something else than numbers")
    if column.ndim != dimensions:
        raise ValueError(f"{name} has {column.ndim} dimensions, not {dimensions}")
    if whole and column.size and np.abs(column).max() > np.iinfo(np.int32).max:
        raise ValueError(f"{name} holds an id that is too large")
    return column.astype(np.int32 if whole else np.float32)
