"""From scored responses to a :class:`ScoreTable`, and the reference columns in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ldeval.probes import text_hash
from ldeval.records import (
    KIND_NAMES,
    Excluded,
    IntArray,
    Manifest,
    NoiseFloor,
    Probe,
    ScoreTable,
    TokenScores,
)
from ldeval.scoring.batch import lookup
from ldeval.scoring.score import Key, ResponseScore, Scored


def build_table(
    probes: Sequence[Probe],
    scored: Scored,
    *,
    run: str,
    step: int,
    checkpoint: str,
    weights_hash: str,
    probe_set_hash: str,
    excluded: Sequence[Excluded] = (),
    settings: Mapping[str, Any] | None = None,
    objective: str | None = None,
    stored_dtype: str | None = None,
    seconds: float = float("nan"),
    notes: Sequence[str] = (),
    noise_floor: NoiseFloor | None = None,
) -> ScoreTable:
    """Arrange scores in probe order and describe them in a manifest.

    Args:
        excluded: responses left out before scoring; those that scoring itself left out
            are added.
    """
    keys: list[tuple[Probe, str]] = [
        (probe, kind)
        for probe in probes
        for kind in KIND_NAMES
        if (probe.probe_id, kind) in scored.scores
    ]
    rows = [scored.scores[(probe.probe_id, kind)] for probe, kind in keys]
    parts = [_tokens(row) for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    backend = scored.backend
    manifest = Manifest(
        run=run,
        step=step,
        checkpoint=checkpoint,
        weights_hash=weights_hash,
        probe_set_hash=probe_set_hash,
        tokenizer_hash=backend.tokenizer_hash,
        template_hash=backend.template_hash if scored.template_used else None,
        span=scored.span,
        backend=backend.name,
        tier=backend.tier,
        dtype=backend.dtype,
        vocab_size=backend.vocab_size,
        versions=dict(backend.versions),
        n_probes=len(probes),
        n_responses=len(rows),
        n_tokens=int(offsets[-1]),
        excluded=(*excluded, *scored.excluded),
        split_exceptions=scored.split_exceptions,
        stored_dtype=stored_dtype,
        settings=dict(settings or {}),
        objective=objective,
        context_hash=_joined_hash(scored.contexts),
        seconds=seconds,
        noise_floor=noise_floor,
        notes=(*notes, *scored.notes),
    )
    return ScoreTable(
        manifest=manifest,
        probe_ids=np.array([probe.probe_id for probe, _ in keys], dtype=np.str_),
        kinds=np.array([kind for _, kind in keys], dtype=np.str_),
        trained=np.array([probe.trained for probe, _ in keys], dtype=np.bool_),
        text_hashes=np.array(
            [text_hash(probe.responses[kind].text) for probe, kind in keys],
            dtype=np.str_,
        ),
        offsets=offsets.astype(np.int64),
        tokens=TokenScores.concatenate(parts),
        logprob_sums=np.array([row.logprob_sum for row in rows], dtype=np.float64),
    )


def _joined_hash(contexts: Mapping[str, str]) -> str | None:
    if not contexts:
        return None
    parts = (text_hash(f"{name} {value}") for name, value in contexts.items())
    return joined_hash(parts)


def joined_hash(hashes: Iterable[str]) -> str:
    """One hash of several, which does not depend on how they are parted: their sum."""
    return f"{sum(int(item, 16) for item in hashes) % (1 << 64):016x}"


def _tokens(score: ResponseScore) -> TokenScores:
    """Token rows of a response; without token scores, its ids with NaN."""
    if score.tokens is not None:
        return score.tokens
    ids = np.array(score.token_ids or (), dtype=np.int32)
    return TokenScores(ids, np.full(len(ids), np.nan, np.float32))


def reference_ids(table: ScoreTable) -> dict[Key, IntArray]:
    """By response, the top-k ids of a run's first checkpoint: its flow bins."""
    top = table.tokens.top_ids
    if top is None:
        return {}
    return {
        key: top[table.offsets[row] : table.offsets[row + 1]]
        for key, row in table.index().items()
    }


def as_reference(table: ScoreTable) -> ScoreTable:
    """A run's first table: its own top-k are its reference columns."""
    tokens = replace(
        table.tokens,
        ref_ids=table.tokens.top_ids,
        ref_logprobs=table.tokens.top_logprobs,
    )
    manifest = replace(table.manifest, reference_step=table.manifest.step)
    return replace(table, tokens=tokens, manifest=manifest)


def attach_reference(
    table: ScoreTable, reference: Mapping[Key, IntArray], step: int
) -> ScoreTable:
    """Fill the reference columns from the stored top-k, where they were not asked for.

    Ids that the table's own top-k does not hold become NaN: unknown, to be bounded.
    Unchanged where the table has them, or where some response has no reference.

    Args:
        reference: from :func:`reference_ids` of the run's first table.
        step: that table's step.
    """
    tokens = table.tokens
    manifest = replace(table.manifest, reference_step=step)
    if tokens.ref_ids is not None:
        return replace(table, manifest=manifest)
    if tokens.top_ids is None or tokens.top_logprobs is None:
        return table
    wanted = [reference.get(key) for key in table.index()]
    lengths = table.n_tokens.tolist()
    if any(
        ids is None or len(ids) != n for ids, n in zip(wanted, lengths, strict=True)
    ):
        return table
    ids = np.concatenate([item for item in wanted if item is not None])
    found = lookup(
        ids, tokens.top_ids, tokens.top_logprobs, tokens.token_ids, tokens.logprobs
    )
    return replace(
        table,
        tokens=replace(tokens, ref_ids=ids, ref_logprobs=found),
        manifest=manifest,
    )
