"""How far two scorings of one checkpoint lie apart: the floor under every change.

Floating-point sums depend on the order and shape in which a machine adds. A sample of
probes is therefore scored a second time, in another order and other batches, and the
differences are kept with the run: no change inside them is called a change.

Low precisions need more than that, since two scorings can agree exactly by chance and
be equally wrong: there the sample is compared with a plain float32 forward pass too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldeval.errors import CheckpointError
from ldeval.records import Checkpoint, FloatArray, NoiseFloor, Probe
from ldeval.scoring.known_answers import lacking_memory, plain_logprob_sums
from ldeval.scoring.score import (
    Key,
    ResponseScore,
    Scored,
    encode_probes,
    score_probes,
    score_requests,
)

PROBES = 8
"""Most probes that are scored twice …"""
SHARE = 8
"""… and at most one in so many, but no fewer than two."""
QUANTILE = 0.99
"""Of the differences over responses."""
SMALL_BATCH = 512
"""Tokens at once in the second scoring."""
EXACT = ("float32", "float64")
"""Precisions that are not compared with float32."""


def measure_noise(
    lm: Any,
    probes: Sequence[Probe],
    scored: Scored,
    checkpoint: Checkpoint | None,
    options: Mapping[str, Any],
    *,
    base: str | None = None,
    trust_remote_code: bool = False,
) -> NoiseFloor | None:
    """Score a sample of probes again, and compare.

    As :func:`measure_sample` of :func:`noise_sample`.
    """
    sample = noise_sample(probes)
    return measure_sample(
        lm,
        sample,
        scored,
        checkpoint,
        options,
        base=base,
        trust_remote_code=trust_remote_code,
    )


def measure_sample(
    lm: Any,
    sample: Sequence[Probe],
    scored: Scored,
    checkpoint: Checkpoint | None,
    options: Mapping[str, Any],
    *,
    base: str | None = None,
    trust_remote_code: bool = False,
) -> NoiseFloor | None:
    """Score some probes again, and compare.

    Args:
        lm: the model that gave ``scored``.
        scored: the scores of the checkpoint, those of the sample among them.
        checkpoint: its files, for low precision; None where it was not saved.
        options: of :func:`score_probes`, as they were.
        base: of an adapter that does not name its own.
        trust_remote_code: run code that comes with the checkpoint.

    Returns:
        None where no response of the sample was scored.
    """
    again = score_probes(
        lm, sample[::-1], tokens=SMALL_BATCH, progress=False, **options
    ).scores
    pairs = {key: (scored.scores[key], again[key]) for key in again}
    if not pairs:
        return None
    gaps = np.array([b.logprob_sum - a.logprob_sum for a, b in pairs.values()])
    lengths = np.array([_length(first) for first, _ in pairs.values()], float)
    dtype = scored.backend.dtype
    float32 = None
    native = scored.backend.tier == "native"
    if dtype not in EXACT and native and checkpoint is not None:
        float32 = _from_float32(
            lm, sample, again, checkpoint, options, base, trust_remote_code
        )
    return NoiseFloor(
        backend=scored.backend.name,
        dtype=dtype,
        responses=len(pairs),
        per_response=float(np.quantile(np.abs(gaps / lengths), QUANTILE)),
        kind_means=max(_by_kind(list(pairs), gaps, lengths)),
        probability=_probability_gap(pairs),
        float32=float32,
    )


def noise_sample(probes: Sequence[Probe]) -> list[Probe]:
    """Probes from all over the set."""
    count = min(len(probes), max(2, min(PROBES, len(probes) // SHARE)))
    places = np.linspace(0, len(probes) - 1, count).round().astype(int)
    return [probes[place] for place in dict.fromkeys(places.tolist())]


def _length(score: ResponseScore) -> int:
    return len(score.token_ids or ()) or 1


def _by_kind(keys: Sequence[Key], gaps: FloatArray, lengths: FloatArray) -> list[float]:
    """|Σ Δ / Σ n| of each kind: what two scorings differ by in a kind's mean."""
    found = []
    for kind in {kind for _, kind in keys}:
        rows = [row for row, (_, other) in enumerate(keys) if other == kind]
        found.append(float(abs(gaps[rows].sum() / lengths[rows].sum())))
    return found


def _probability_gap(
    pairs: Mapping[Key, tuple[ResponseScore, ResponseScore]],
) -> float | None:
    """The largest difference of a kind's mean token probability."""
    moved: dict[str, list[FloatArray]] = {}
    for (_, kind), (first, second) in pairs.items():
        if first.tokens is None or second.tokens is None:
            return None
        gap = np.exp(second.tokens.logprobs) - np.exp(first.tokens.logprobs)
        moved.setdefault(kind, []).append(gap)
    return max(abs(float(np.concatenate(gaps).mean())) for gaps in moved.values())


def _from_float32(
    lm: Any,
    sample: Sequence[Probe],
    scores: Mapping[Key, ResponseScore],
    checkpoint: Checkpoint,
    options: Mapping[str, Any],
    base: str | None,
    trusted: bool,
) -> float | None:
    """|Σ Δ / Σ n| from a plain float32 forward pass, over one response a probe."""
    if lacking_memory(checkpoint, base) is not None:
        return None
    encoding = {
        name: options[name]
        for name in ("span", "apply_chat_template", "system_instruction")
    }
    shortest: dict[str, Any] = {}
    for request in score_requests(encode_probes(lm, sample, **encoding), scores, {}):
        known = shortest.get(request.probe_id)
        if known is None or len(request.ids) < len(known.ids):
            shortest[request.probe_id] = request
    requests = list(shortest.values())
    try:
        exact = plain_logprob_sums(
            checkpoint,
            [(list(r.ids), r.start, r.stop) for r in requests],
            base,
            trust_remote_code=trusted,
        )
    except CheckpointError:
        return None  # quantized, for one: there is no float32 to compare with
    found = [scores[(r.probe_id, r.kind)].logprob_sum for r in requests]
    total = sum(int(request.n_tokens) for request in requests)
    return float(abs(sum(found) - sum(exact)) / total)
