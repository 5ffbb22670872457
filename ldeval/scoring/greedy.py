"""Let a checkpoint continue every prompt with its most probable tokens, and score what
it says and what the run's first checkpoint said.

Apart from :mod:`generate`, which samples responses before training: these decodes come
from the model that is being scored, through its own engine, as token ids. What is
scored is what was taken: no text is tokenized again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ldeval.errors import UnsupportedBackendError
from ldeval.records import (
    Excluded,
    GreedyDecode,
    GreedyDecodes,
    IntArray,
    Probe,
    TokenScores,
)
from ldeval.scoring.backends import Backend, backend_of
from ldeval.scoring.batch import ScoreRequest, end_tokens
from ldeval.scoring.encode import TextCodec, encode_prompt
from ldeval.scoring.score import engine_of

OWN, REFERENCE = "greedy", "greedy of the first checkpoint"
"""What the requests are called where an error names them."""
TIE = 1e-4
"""Nats within which two tokens are as good as equally probable, in float32."""
LOW_PRECISION_TIE = 5e-2


def greedy_decodes(
    lm: Any,
    probes: Sequence[Probe],
    *,
    step: int,
    weights_hash: str,
    probe_set_hash: str,
    max_tokens: int,
    reference: GreedyDecodes | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> GreedyDecodes:
    """The greedy decodes of one checkpoint, scored.

    Args:
        lm: a harness model of the native tier.
        probes: whose prompts are continued.
        max_tokens: longest decode; one that is longer is cut off there.
        reference: those of the run's first checkpoint; None: these are.
        settings: kept with the decodes.

    Raises:
        UnsupportedBackendError: for a model that gives no scores by token.
        ScoringError: when a score cannot be trusted.
    """
    backend = backend_of(lm)
    if backend.tier != "native" or backend.codec is None:
        raise UnsupportedBackendError(
            f"greedy decodes need token ids and their scores, which {backend.name} "
            "does not give. Sweep with --model hf or vllm, or leave out --greedy."
        )
    contexts, excluded = _contexts(
        lm, probes, backend.codec, max_tokens, apply_chat_template, system_instruction
    )
    engine = engine_of(backend)
    names = list(contexts)
    with tqdm(total=len(names), desc="Greedy decodes", disable=not progress) as bar:
        taken = engine.continue_greedily(
            lm, [contexts[name] for name in names], max_tokens, done=bar.update
        )
    own = {name: ids for name, ids in zip(names, taken, strict=True) if ids}
    excluded += [
        Excluded(name, OWN, "the model took no token")
        for name in names
        if name not in own
    ]
    first = own
    if reference is not None:
        first = {d.probe_id: tuple(d.ids.tolist()) for d in reference.decodes}
        missing = f"not decoded at step {reference.step}"
        excluded += [Excluded(n, REFERENCE, missing) for n in own if n not in first]
        own = {name: ids for name, ids in own.items() if name in first}
    scores = _scores(engine, lm, contexts, OWN, own)
    of_first = scores
    if reference is not None:
        wanted = {name: first[name] for name in own}
        of_first = _scores(engine, lm, contexts, REFERENCE, wanted)
    trained = {probe.probe_id: probe.trained for probe in probes}
    return GreedyDecodes(
        step=step,
        weights_hash=weights_hash,
        probe_set_hash=probe_set_hash,
        reference_step=step if reference is None else reference.step,
        max_tokens=max_tokens,
        backend=backend.name,
        dtype=backend.dtype,
        decodes=tuple(
            GreedyDecode(
                probe_id=name,
                trained=trained[name],
                ids=np.array(ids, np.int32),
                logprobs=scores[name].logprobs,
                text=_text(lm, ids),
                ended=len(ids) < max_tokens or ids[-1] in end_tokens(lm),
                reference_logprobs=of_first[name].logprobs,
            )
            for name, ids in own.items()
        ),
        settings=dict(settings or {}),
        excluded=tuple(excluded),
        off_argmax=sum(_off_argmax(item, backend) for item in scores.values()),
    )


def _contexts(
    lm: Any,
    probes: Sequence[Probe],
    codec: TextCodec,
    max_tokens: int,
    apply_chat_template: bool,
    system_instruction: str | None,
) -> tuple[dict[str, tuple[int, ...]], list[Excluded]]:
    contexts: dict[str, tuple[int, ...]] = {}
    excluded = []
    for probe in probes:
        ids = encode_prompt(
            probe.prompt,
            codec,
            apply_chat_template=apply_chat_template,
            system_instruction=system_instruction,
        )
        limit = codec.max_length
        if not ids:
            reason = "the prompt has no tokens to continue from"
        elif limit is not None and len(ids) + max_tokens >= limit:
            reason = (
                f"no room: {len(ids)} prompt tokens and {max_tokens} new ones, the "
                f"model takes {limit}"
            )
        else:
            contexts[probe.probe_id] = tuple(ids)
            continue
        excluded.append(Excluded(probe.probe_id, OWN, reason))
    return contexts, excluded


def _scores(
    engine: Any,
    lm: Any,
    contexts: Mapping[str, tuple[int, ...]],
    kind: str,
    decodes: Mapping[str, tuple[int, ...]],
) -> dict[str, TokenScores]:
    """By probe, the scores of a decode after its prompt."""
    requests = []
    for name, ids in decodes.items():
        context = contexts[name]
        stop = len(context) + len(ids)
        requests.append(ScoreRequest(name, kind, context + ids, len(context), stop))
    found, _ = engine.score_checked(lm, requests, top_k=1)
    return {name: found[place] for place, name in enumerate(decodes)}


def _off_argmax(scores: TokenScores, backend: Backend) -> int:
    """How many tokens lie below the argmax by more than a tie."""
    best = scores.argmax_logprobs
    if best is None:
        return 0
    allowed = TIE if backend.dtype in ("float32", "float64") else LOW_PRECISION_TIE
    return int(np.sum(scores.logprobs < best - allowed))


def _text(lm: Any, ids: Sequence[int] | IntArray) -> str:
    return str(lm.tokenizer.decode(list(ids), skip_special_tokens=True))
