"""What is asked for and what is computed, in tokens: from encoded probes, exactly.

Probes are encoded as scoring encodes them, and shared out by the very code that packs
them, so that nothing here repeats a rule that stands elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from ldeval.records import PlanLayout, ScoringWork
from ldeval.scoring.batch import ScoreRequest, grouped
from ldeval.scoring.encode import EncodedProbe
from ldeval.scoring.score import score_requests

BLOCKS = {"cpu": 32, "cuda": 16}
"""Tokens in a block of vLLM's prefix cache, by device, where a sweep is not told."""


def work_of(
    encoded: Sequence[EncodedProbe],
    layout: PlanLayout,
    *,
    excluded: int = 0,
    device: str = "cpu",
    block: int | None = None,
) -> ScoringWork:
    """Count the work of scoring every response of some probes once.

    Filling up to a common length is not counted in the layouts that need it.

    Args:
        excluded: responses that were left out before encoding.
        device: ``cpu``, or anything else for an accelerator: packs differ in size.
        block: for ``cached``, tokens in a block of the prefix cache; None: the
            device's own.
    """
    requests = list(score_requests(encoded, None, {}))
    kind = "cpu" if device == "cpu" else "cuda"
    computed, pairs = _COUNTS[layout](requests, kind, block or BLOCKS[kind])
    prompts = [p.responses[0].start for p in encoded if p.responses]
    left_out = excluded + sum(len(probe.excluded) for probe in encoded)
    return ScoringWork(
        probes=float(len(encoded)),
        responses=float(len(requests)),
        excluded=float(left_out),
        prompt=float(sum(prompts)),
        asked=float(sum(r.n_tokens for r in requests)),
        computed=float(computed),
        separate=float(sum(len(r.ids) for r in requests)),
        pairs=float(pairs),
        layout=layout,
    )


Counted = tuple[int, int]
"""Tokens through the layers; pairs of query and key."""


def _packed(requests: Sequence[ScoreRequest], device: str, block: int) -> Counted:
    from ldeval.scoring.layouts import TOKENS
    from ldeval.scoring.packed import ALIKE, like_lengths, packed_together

    tokens = pairs = 0
    for pack in packed_together(requests, tokens=TOKENS[device]):
        for group in pack:
            prompt = requests[group[0]].start
            spans = [range(requests[index].n_tokens - 1) for index in group]
            tokens += prompt + sum(map(len, spans))
            pairs += prompt * prompt
            for branch in like_lengths(spans, ALIKE[device]):
                width = len(branch[0])
                pairs += len(branch) * width * (prompt + width)
    return tokens, pairs


def _shared(requests: Sequence[ScoreRequest], device: str, block: int) -> Counted:
    tokens = pairs = 0
    for group in grouped(requests):
        start = requests[group[0]].start
        tokens += start
        pairs += start * start
        for own in (requests[index].n_tokens - 1 for index in group):
            tokens += own
            pairs += own * (start + own)
    return tokens, pairs


def _whole(requests: Sequence[ScoreRequest], device: str, block: int) -> Counted:
    lengths = [len(request.ids) for request in requests]
    return sum(lengths), sum(length * length for length in lengths)


def _cached(requests: Sequence[ScoreRequest], device: str, block: int) -> Counted:
    tokens = pairs = 0
    for group in grouped(requests):
        kept = (requests[group[0]].start - 1) // block * block
        tokens += kept
        pairs += kept * kept
        for length in (len(requests[index].ids) for index in group):
            tokens += length - kept
            pairs += (length - kept) * length
    return tokens, pairs


_COUNTS = {
    "packed": _packed,
    "shared": _shared,
    "whole": _whole,
    "cached": _cached,
}
