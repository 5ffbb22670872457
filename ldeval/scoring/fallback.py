"""Scores from harness models that no native backend covers: sums, no token scores.

Two tiers. A model with a tokenizer scores *our* token ids through
``_loglikelihood_tokens``: the same span as the native backends, so its sums may be
compared with theirs. A model that takes text only gets plain ``loglikelihood``: its
span is the harness's (trailing spaces move to the response, no end token), so its sums
are never compared with any other's. What a tier cannot give is absent, never zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from ldeval.scoring.batch import ScoreRequest


@dataclass(frozen=True)
class SumScore:
    """What a fallback gives for one response."""

    logprob_sum: float
    """Σ ln p, nats."""
    all_argmax: bool
    """Whether every token is the most probable one."""


def takes_tokens(lm: Any) -> bool:
    """Whether ``lm`` has a tokenizer and scores token ids."""
    return (
        isinstance(lm, TemplateLM)
        and getattr(lm, "backend", "causal") == "causal"
        and getattr(lm, "tokenizer", None) is not None
        and callable(getattr(lm, "tok_encode", None))
        and hasattr(lm.tokenizer, "get_vocab")
    )


def score_tokens(lm: Any, requests: Sequence[ScoreRequest]) -> list[SumScore]:
    """Score token ids; too long responses were excluded, so none is truncated."""
    asked = [
        (
            None,  # not to be cached: the harness's cache is not keyed by model
            list(request.ids[: request.start]),
            list(request.ids[request.start : request.stop]),
        )
        for request in requests
    ]
    answers = lm._loglikelihood_tokens(asked)
    return [SumScore(float(total), bool(greedy)) for total, greedy in answers]


def score_texts(lm: Any, pairs: Sequence[tuple[str, str]]) -> list[SumScore]:
    """Score (context, continuation) texts by the harness's plain loglikelihood."""
    instances = [
        Instance(
            request_type="loglikelihood",
            doc={},
            arguments=pair,
            idx=0,
            metadata=(None, None, 1),
        )
        for pair in pairs
    ]
    answers = lm.loglikelihood(instances)
    return [SumScore(float(total), bool(greedy)) for total, greedy in answers]
