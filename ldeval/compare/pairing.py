"""Which tables may be compared, and which of their rows belong together.

Every statistic pairs the same response under two checkpoints. What must agree for
that, and what counts as a usable row, is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ldeval.compare.clusters import Strings
from ldeval.errors import MismatchError, ProbeError
from ldeval.printable import quoted
from ldeval.records import (
    KIND_BY_NAME,
    KIND_NAMES,
    FloatArray,
    IntArray,
    Manifest,
    ScoreTable,
)

_MUST_AGREE: tuple[tuple[str, str], ...] = (
    ("probe_set_hash", "Score both checkpoints on one probe set."),
    ("tokenizer_hash", "Score both with one tokenizer."),
    ("template_hash", "Score both with one chat template, or both without."),
    ("span", "Score both with one span."),
    (
        "context_hash",
        "The responses were scored after different tokens: use one system instruction "
        "and one set of tokenizer and template arguments.",
    ),
    ("vocab_size", "Logits of different widths are different distributions."),
)
_MAY_BE_MIXED: tuple[tuple[str, str], ...] = tuple(
    (name, "Score both alike, or allow mixed tables (the larger noise floor holds).")
    for name in ("backend", "tier", "dtype", "stored_dtype")
)
_MAY_BE_UNKNOWN = ("vocab_size", "context_hash", "stored_dtype")


def noise_floor(manifests: Iterable[Manifest]) -> float | None:
    """The largest floor that was measured, nats/token; None where none was."""
    floors = [m.noise_floor.nats_per_token for m in manifests if m.noise_floor]
    return max(floors, default=None)


class Rows(Protocol):
    """Responses of one checkpoint: a table, or its digest."""

    @property
    def manifest(self) -> Manifest: ...
    @property
    def probe_ids(self) -> Strings: ...
    @property
    def kinds(self) -> Strings: ...
    @property
    def trained(self) -> npt.NDArray[np.bool_]: ...
    @property
    def text_hashes(self) -> Strings: ...
    @property
    def n_tokens(self) -> IntArray: ...
    @property
    def logprob_sums(self) -> FloatArray: ...
    def __len__(self) -> int: ...
    def index(self) -> dict[tuple[str, str], int]:
        """Row of each (probe_id, kind)."""
        ...


@dataclass(frozen=True)
class PairedRows:
    """Rows of two tables that hold the same response."""

    before: npt.NDArray[np.intp]
    """[R] rows of the earlier table."""
    after: npt.NDArray[np.intp]
    """[R] rows of the later table, in the same order."""
    only_before: tuple[tuple[str, str], ...]
    """(probe_id, kind) usable before only."""
    only_after: tuple[tuple[str, str], ...]
    """(probe_id, kind) usable after only."""


def check_comparable(a: ScoreTable, b: ScoreTable, allow_mixed: bool = False) -> None:
    """Refuse two tables whose difference would mean something else than learning.

    Args:
        allow_mixed: accept differing backends, tiers and dtypes.

    Raises:
        MismatchError: naming what differs and both values; also where a response was
            tokenized differently, naming its probe and kind.
        ProbeError: a table holds a row twice or an unknown kind.
    """
    check_manifests(a.manifest, b.manifest, allow_mixed)
    check_rows(a)
    check_rows(b)
    _check_tokens(a, b)


def check_manifests(a: Manifest, b: Manifest, allow_mixed: bool = False) -> None:
    """The part of :func:`check_comparable` that needs the manifests only.

    Raises:
        MismatchError: naming what differs and both values.
    """
    names = _MUST_AGREE + (() if allow_mixed else _MAY_BE_MIXED)
    for name, remedy in names:
        first, second = getattr(a, name), getattr(b, name)
        # None says that it could not be told: unknown, not different
        unknown = name in _MAY_BE_UNKNOWN and None in (first, second)
        if first != second and not unknown:
            raise MismatchError(
                f"step {a.step} and step {b.step} differ in {name}: "
                f"{first!r} against {second!r}. {remedy}"
            )


def check_rows(table: Rows) -> None:
    """Refuse a table with an unknown kind or with two rows for one response.

    Raises:
        ProbeError: naming the kind, or the probe and kind.
    """
    for kind in np.unique(table.kinds).tolist():
        if kind not in KIND_BY_NAME:
            raise ProbeError(
                f"step {table.manifest.step} holds the unknown kind {quoted(kind)}. "
                f"Valid kinds: {', '.join(KIND_NAMES)}.",
                field="kind",
            )
    if len(table.index()) < len(table):
        seen: set[tuple[str, str]] = set()
        for pair in zip(table.probe_ids.tolist(), table.kinds.tolist(), strict=True):
            if pair in seen:
                raise ProbeError(
                    f"step {table.manifest.step} holds two rows for probe "
                    f"{pair[0]!r}, kind {pair[1]!r}. Score the step again."
                )
            seen.add(pair)


def usable(table: Rows) -> npt.NDArray[np.bool_]:
    """[R] rows that were scored: a finite sum, and not listed as excluded."""
    excluded = {(item.probe_id, item.kind) for item in table.manifest.excluded}
    kept = np.isfinite(table.logprob_sums)
    if excluded:
        pairs = zip(table.probe_ids.tolist(), table.kinds.tolist(), strict=True)
        kept &= np.array([pair not in excluded for pair in pairs], dtype=bool)
    return np.asarray(kept)


def align(reference: Rows, table: Rows) -> npt.NDArray[np.intp]:
    """Row of ``table`` for each row of ``reference``.

    Returns:
        [R] row numbers; −1 where the response is unusable in either table.
    """
    good = usable(table)
    if table.probe_ids is reference.probe_ids and table.kinds is reference.kinds:
        both = good & usable(reference)
        return np.where(both, np.arange(len(table), dtype=np.intp), -1)
    index = table.index()
    pairs = zip(reference.probe_ids.tolist(), reference.kinds.tolist(), strict=True)
    rows = np.array([index.get(pair, -1) for pair in pairs], dtype=np.intp)
    if not len(table):
        return np.full(len(reference), -1, np.intp)
    return np.where(good[rows] & usable(reference) & (rows >= 0), rows, -1)


def pair_rows(before: Rows, after: Rows) -> PairedRows:
    """Pair the rows of two tables by (probe_id, kind), in the order of ``before``.

    A row whose sum is not finite, or that its manifest lists as excluded, counts as
    absent.
    """
    rows = align(before, after)
    kept = np.flatnonzero(rows >= 0)
    back = align(after, before)
    return PairedRows(
        before=kept,
        after=rows[kept],
        only_before=_names(before, usable(before) & (rows < 0)),
        only_after=_names(after, usable(after) & (back < 0)),
    )


def split_rows(table: Rows, kind: str, trained: bool) -> npt.NDArray[np.bool_]:
    """[R] which rows hold this kind of trained, or of held-out, probes."""
    return np.asarray((table.kinds == kind) & (table.trained == trained))


def token_positions(
    starts: IntArray, lengths: IntArray
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Flat positions of the tokens of several responses.

    Args:
        starts: [R] first token of each response.
        lengths: [R] tokens in each.

    Returns:
        The response of each token and its flat position, [Σ lengths] each.
    """
    owner = np.repeat(np.arange(len(starts)), lengths)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owner, np.asarray(starts[owner] + within, dtype=np.intp)


def distinct_evaluations(tables: Sequence[Rows]) -> int:
    """How many of the tables differ in their scores: a repeat tells nothing new."""
    seen = set()
    for table in tables:
        rows = align(tables[0], table)
        seen.add(np.where(rows >= 0, table.logprob_sums[rows], np.nan).tobytes())
    return len(seen)


def _names(table: Rows, mask: npt.NDArray[np.bool_]) -> tuple[tuple[str, str], ...]:
    ids, kinds = table.probe_ids[mask].tolist(), table.kinds[mask].tolist()
    return tuple(zip(ids, kinds, strict=True))


def _check_tokens(a: ScoreTable, b: ScoreTable) -> None:
    rows = align(a, b)
    left = np.flatnonzero(rows >= 0)
    right = rows[left]
    lengths = a.n_tokens[left]
    differing = np.flatnonzero(lengths != b.n_tokens[right])
    if not len(differing):
        owner, first = token_positions(a.offsets[left], lengths)
        _, second = token_positions(b.offsets[right], lengths)
        differing = owner[a.tokens.token_ids[first] != b.tokens.token_ids[second]]
    if len(differing):
        row, other = int(left[differing[0]]), int(right[differing[0]])
        raise MismatchError(
            f"probe {_text(a.probe_ids, row)!r}, kind {_text(a.kinds, row)!r} was "
            f"tokenized differently: step {a.manifest.step} has the ids "
            f"{_ids(a, row)}, step {b.manifest.step} has {_ids(b, other)}. "
            "Score both with one tokenizer, span and prompt format."
        )


def _text(column: Strings, row: int) -> str:
    return str(column[row])


def _ids(table: ScoreTable, row: int) -> str:
    ids = table.row(row).token_ids.tolist()
    return str(ids) if len(ids) <= 12 else f"{ids[:12]} … ({len(ids)} tokens)"
