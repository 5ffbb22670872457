"""Score probes with a harness model: encode, run, check, gather.

Both doors come here: the harness's request type (:mod:`request`) and the sweep. What
the model can do is told by :mod:`backends`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from tqdm import tqdm

from ldeval.errors import ScoringError
from ldeval.records import TOP_K, Excluded, IntArray, Probe, Span, TokenScores
from ldeval.scoring import fallback
from ldeval.scoring.backends import Backend, backend_of, is_local_vllm
from ldeval.scoring.batch import ScoreRequest
from ldeval.scoring.encode import (
    EncodedProbe,
    TextCodec,
    as_messages,
    codec_of,
    encode_probe,
)

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""(probe_id, kind)."""


@dataclass(frozen=True)
class ResponseScore:
    """The score of one response, as far as the tier can give it."""

    logprob_sum: float
    """Σ ln p, nats."""
    tokens: TokenScores | None
    """Per token, in the native tier."""
    token_ids: tuple[int, ...] | None
    """The scored tokens, unless the tier takes text."""
    all_argmax: bool | None = None
    """Whether every token is the argmax, where no token scores say so."""


@dataclass(frozen=True)
class Scored:
    """Everything that scoring a set of probes gave."""

    backend: Backend
    span: Span
    template_used: bool
    scores: Mapping[Key, ResponseScore]
    excluded: tuple[Excluded, ...]
    split_exceptions: tuple[str, ...]
    """Probes in which tokens merge across the end of the prompt."""
    contexts: Mapping[str, str]
    """By probe, a hash of the token ids that its responses were scored after."""
    notes: tuple[str, ...]


def score_probes(
    lm: Any,
    probes: Sequence[Probe],
    *,
    span: Span = "trl",
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    origin_weights: str | None = None,
    wanted: Collection[Key] | None = None,
    reference: Mapping[Key, IntArray] | None = None,
    top_k: int = TOP_K,
    tokens: int | None = None,
    progress: bool = True,
) -> Scored:
    """Score the responses of probes.

    Args:
        lm: any harness model.
        probes: whole probes: the shared context is taken over all their responses,
            even when only some are scored.
        origin_weights: weight hash of the model before training; ``initial`` responses
            that were sampled from another model are excluded. None: only those of a
            model with another tokenizer are.
        wanted: the responses to score; None for all.
        reference: by response, [n, k] ids whose ln p is wanted at each position.
        top_k: how many of the most probable tokens to keep at each position.
        tokens: most tokens that go through the model at once; None: as many as suit
            the device.
        progress: show a progress bar.

    Raises:
        ScoringError: when a score cannot be trusted; nothing is returned then.
    """
    backend = backend_of(lm)
    notes = scoring_notes(backend, probes, apply_chat_template)
    for note in notes:
        log.warning(note)
    fitting, foreign = without_foreign_initial(
        probes, backend.tokenizer_hash, origin_weights
    )
    if backend.tier == "text":
        scores = _score_texts(
            lm, fitting, apply_chat_template, system_instruction, wanted
        )
        _warn_of(foreign)
        return Scored(
            backend, "lm_eval", apply_chat_template, scores, foreign, (), {}, notes
        )
    encoded = encode_probes(
        lm,
        fitting,
        span=span,
        apply_chat_template=apply_chat_template,
        system_instruction=system_instruction,
        codec=backend.codec,
    )
    requests = list(score_requests(encoded, wanted, reference or {}))
    scores, how = _run(lm, backend, requests, top_k, tokens, progress)
    unscored = (*foreign, *(item for probe in encoded for item in probe.excluded))
    excluded = tuple(
        item
        for item in unscored
        if wanted is None or (item.probe_id, item.kind) in wanted
    )
    _warn_of(excluded)
    return Scored(
        backend,
        span,
        apply_chat_template or any(not isinstance(p.prompt, str) for p in probes),
        scores,
        excluded,
        tuple(probe.probe_id for probe in encoded if probe.merged),
        {probe.probe_id: probe.context_hash() for probe in encoded if probe.responses},
        (*notes, *how),
    )


def _warn_of(excluded: Sequence[Excluded]) -> None:
    """One line a kind: how many of its responses are not scored, and the first why."""
    by_kind: dict[str, list[Excluded]] = {}
    for item in excluded:
        by_kind.setdefault(item.kind, []).append(item)
    for kind, items in by_kind.items():
        names = ", ".join(item.probe_id for item in items[:3])
        more = f" and {len(items) - 3} more" if len(items) > 3 else ""
        log.warning(
            "%d '%s' responses are not scored (%s%s): %s",
            len(items),
            kind,
            names,
            more,
            items[0].reason,
        )


def without_foreign_initial(
    probes: Sequence[Probe], tokenizer: str, origin_weights: str | None
) -> tuple[list[Probe], tuple[Excluded, ...]]:
    """Leave out ``initial`` responses that another model gave: they are not samples of
    the model before *this* training."""
    kept: list[Probe] = []
    foreign: list[Excluded] = []
    for probe in probes:
        source = probe.meta.get("initial_model")
        reason = None
        if "initial" in probe.responses and isinstance(source, Mapping):
            reason = _foreign(source, tokenizer, origin_weights)
        if reason is not None:
            foreign.append(Excluded(probe.probe_id, "initial", reason))
            rest = {k: r for k, r in probe.responses.items() if k != "initial"}
            probe = replace(probe, responses=rest)
        kept.append(probe)
    return kept, tuple(foreign)


def _foreign(
    source: Mapping[str, Any], tokenizer: str, origin_weights: str | None
) -> str | None:
    remedy = "sample it anew: ldeval probes initial --model DIR"
    if origin_weights is not None and source.get("weights") != origin_weights:
        return f"sampled from a model with other weights than this run's; {remedy}"
    if tokenizer not in ("unknown", source.get("tokenizer")):
        return f"sampled from a model with another tokenizer; {remedy}"
    return None


def encode_probes(
    lm: Any,
    probes: Sequence[Probe],
    *,
    span: Span,
    apply_chat_template: bool,
    system_instruction: str | None,
    codec: TextCodec | None = None,
) -> list[EncodedProbe]:
    """Tokenize probes with a model's own tokenizer, template and length limit.

    Args:
        codec: the model's own, where it is at hand: a large vocabulary takes a while
            to hash.
    """
    codec = codec or codec_of(lm)
    if is_local_vllm(lm):
        from ldeval.scoring import vllm

        codec = replace(codec, max_length=vllm.max_length(lm))
    return [
        encode_probe(
            probe,
            codec,
            span=span,
            apply_chat_template=apply_chat_template,
            system_instruction=system_instruction,
        )
        for probe in probes
    ]


def score_requests(
    encoded: Iterable[EncodedProbe],
    wanted: Collection[Key] | None,
    reference: Mapping[Key, IntArray],
) -> Iterator[ScoreRequest]:
    """What to ask a backend for: the wanted responses of encoded probes.

    Raises:
        ScoringError: when a response has another length than its reference.
    """
    for probe in encoded:
        for response in probe.responses:
            key = (probe.probe_id, response.kind)
            if wanted is not None and key not in wanted:
                continue
            ids = reference.get(key)
            if ids is not None and len(ids) != response.stop - response.start:
                raise ScoringError(
                    f"probe {key[0]!r}, response {key[1]!r}: the first checkpoint "
                    f"scored {len(ids)} tokens, this one has "
                    f"{response.stop - response.start}. Do both use one tokenizer?"
                )
            yield ScoreRequest(
                probe.probe_id,
                response.kind,
                response.ids,
                response.start,
                response.stop,
                ids,
            )


def _run(
    lm: Any,
    backend: Backend,
    requests: Sequence[ScoreRequest],
    top_k: int,
    batch_tokens: int | None,
    progress: bool,
) -> tuple[dict[Key, ResponseScore], tuple[str, ...]]:
    """Scores in the order asked, and notes on how they were had."""
    if backend.tier == "tokens":
        sums = fallback.score_tokens(lm, requests)
        return {
            _key(request): ResponseScore(
                _finite(request, score.logprob_sum),
                None,
                _scored_ids(request),
                score.all_argmax,
            )
            for request, score in zip(requests, sums, strict=True)
        }, ()
    with tqdm(
        total=len(requests), desc="Scoring responses", disable=not progress
    ) as bar:
        found, note = engine_of(backend).score_checked(
            lm, requests, top_k=top_k, tokens=batch_tokens, done=bar.update
        )
    log.info(note)
    answers = {}
    for index, request in enumerate(requests):
        tokens = found[index]
        total = float(tokens.logprobs.sum(dtype="float64"))
        answers[_key(request)] = ResponseScore(total, tokens, _scored_ids(request))
    return answers, (note,)


def engine_of(backend: Backend) -> Any:
    """The module that scores and decodes for a native backend."""
    engine: Any
    if backend.name == "hf":
        from ldeval.scoring import hf as engine
    elif backend.name == "served":
        from ldeval.scoring import served as engine
    else:
        from ldeval.scoring import vllm as engine
    return engine


def _key(request: ScoreRequest) -> Key:
    return (request.probe_id, request.kind)


def _scored_ids(request: ScoreRequest) -> tuple[int, ...]:
    return request.ids[request.start : request.stop]


def _finite(request: ScoreRequest, value: float) -> float:
    if math.isnan(value):
        raise ScoringError(
            f"probe {request.probe_id!r}, response {request.kind!r}: the model "
            "returned NaN. Is the checkpoint damaged, or does the dtype overflow?"
        )
    return value


def _score_texts(
    lm: Any,
    probes: Sequence[Probe],
    apply_chat_template: bool,
    system_instruction: str | None,
    wanted: Collection[Key] | None,
) -> dict[Key, ResponseScore]:
    keys: list[Key] = []
    pairs: list[tuple[str, str]] = []
    for probe in probes:
        if isinstance(probe.prompt, str) and not apply_chat_template:
            context = probe.prompt
            if system_instruction:
                context = f"{system_instruction}\n\n{context}"
        else:
            messages = as_messages(probe.prompt, system_instruction)
            context = lm.apply_chat_template(cast(list[dict[str, str]], messages))
        for kind, response in probe.responses.items():
            if wanted is None or (probe.probe_id, kind) in wanted:
                keys.append((probe.probe_id, kind))
                pairs.append((context, response.text))
    answers = fallback.score_texts(lm, pairs)
    return {
        key: ResponseScore(answer.logprob_sum, None, None, answer.all_argmax)
        for key, answer in zip(keys, answers, strict=True)
    }


def scoring_notes(
    backend: Backend, probes: Sequence[Probe], apply_chat_template: bool
) -> tuple[str, ...]:
    """What a reader of scores had this way should know."""
    notes = []
    plain = any(isinstance(probe.prompt, str) for probe in probes)
    if backend.template_hash is not None and plain and not apply_chat_template:
        notes.append(
            "The tokenizer has a chat template and it is not used: on a model tuned "
            "for chat, scores then mix in how the model takes a raw prompt. Use "
            "--apply_chat_template to score as it was trained."
        )
    if backend.tier == "tokens":
        notes.append(
            f"{backend.name} gives one sum a response: argmax, rank, entropy and "
            "per-token columns are absent."
        )
    if backend.tier == "text":
        notes.append(
            f"{backend.name} takes text only: sums are the harness's loglikelihood "
            "(span lm_eval) and are not comparable with any other span."
        )
    return tuple(notes)
