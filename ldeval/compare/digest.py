"""One checkpoint reduced to a few numbers a response.

Every statistic is a function of sums over responses, so a table is read once, part by
part, and only its digest is kept: about one hundredth of it. What needs two
checkpoints at one position is taken against the run's first (:mod:`reference`), whose
ids are kept for the whole run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ldeval.compare.chunk import PARTS, Chunk
from ldeval.compare.clusters import Strings
from ldeval.compare.pairing import check_rows, usable
from ldeval.compare.positions import detail_columns
from ldeval.compare.reference import Reference, build_reference, check_same_tokens
from ldeval.compare.stats import Float
from ldeval.compare.stored import NO_TOKEN, Bool
from ldeval.records import IntArray, Manifest, ScoreSource, ScoreTable, TokenScores

KEPT = (
    "own_body",
    "own_matched",
    "argmax_sum",
    "argmax_body",
    "frozen_sum",
    "entropy_off",
)
"""Columns that the end values of a run need of every checkpoint; the stored sums of
the responses' own tokens are always kept."""


@dataclass(frozen=True)
class ResponseParts:
    """One log-probability column of one checkpoint, gathered by response."""

    tokens: Float
    """[R] tokens in the response."""
    sums: Float
    """[R] Σ over the response, nats; NaN where unknown."""
    first: Float
    """[R] the first token, nats."""
    body: Float
    """[R] Σ without the first and the last token, nats; NaN below three tokens."""
    end: Float
    """[R] the last token, nats."""
    matched: Float
    """[R] Σ over the first n* tokens, nats; NaN where n* is undefined."""
    matched_tokens: Float
    """[R] n*."""

    def at(self, rows: npt.NDArray[np.intp]) -> ResponseParts:
        """The parts of ``rows``."""
        return ResponseParts(
            *(getattr(self, name)[rows] for name in self.__dataclass_fields__)
        )


@dataclass(frozen=True)
class Digest:
    """What is kept of one checkpoint, one row a response in the table's order."""

    manifest: Manifest
    probe_ids: Strings
    """[R]"""
    kinds: Strings
    """[R]"""
    trained: Bool
    """[R]"""
    text_hashes: Strings
    """[R]"""
    n_tokens: IntArray
    """[R]"""
    logprob_sums: Float
    """[R] Σ ln p of the response, nats."""
    good: Bool
    """[R] scored, and not excluded."""
    columns: Mapping[str, Float]
    """[R] each: the columns named ``<own|argmax|frozen>_<sum|first|…>``, and others."""
    stored: frozenset[str]
    """Token columns that the table holds."""
    mass: Float | None
    """[2, R, 2, 4] lower and upper Σ p of each bin, by stratum; None without bins."""
    argmax_ids: IntArray | None
    """Argmax id at each off-label position along chosen that the reference scored, in
    its order; −1 where not known."""
    detail: Mapping[str, Float] = field(default_factory=dict)
    """[R, …] moments of Δ ln p against the first checkpoint; the last one's only."""

    def __len__(self) -> int:
        return len(self.probe_ids)

    @cached_property
    def _index(self) -> dict[tuple[str, str], int]:
        pairs = zip(self.probe_ids.tolist(), self.kinds.tolist(), strict=True)
        return {pair: row for row, pair in enumerate(pairs)}

    def index(self) -> dict[tuple[str, str], int]:
        """Row of each (probe_id, kind)."""
        return self._index

    def column(self, name: str) -> Float:
        """[R] a column; NaN throughout where it is not kept."""
        found = self.columns.get(name)
        return np.full(len(self), np.nan) if found is None else found

    def parts(self, of: str) -> ResponseParts:
        """The parts of ``own`` tokens, of the ``argmax`` or of the ``frozen`` one."""
        named = {name: self.column(f"{of}_{name}") for name in PARTS}
        sums = self.logprob_sums if of == "own" else named["sum"]
        return ResponseParts(
            self.n_tokens.astype(np.float64),
            np.asarray(sums, np.float64),
            named["first"],
            named["body"],
            named["end"],
            named["matched"],
            self.column("matched_tokens"),
        )

    def slim(self) -> Digest:
        """Without what only a pair of neighbours needs."""
        kept = {n: c for n, c in self.columns.items() if n in KEPT}
        if self.mass is not None:
            rows = np.flatnonzero(np.isin(self.kinds, ("chosen", "rejected")))
            kept["_mass_rows"] = rows.astype(np.float64)
            return replace(self, columns=kept, mass=self.mass[:, rows])
        return replace(self, columns=kept)

    def masses(self, stratum: int) -> Float | None:
        """[2, R, 4] bounds of Σ p by bin in one stratum; NaN where not kept."""
        if self.mass is None:
            return None
        rows = self.columns.get("_mass_rows")
        if rows is None:
            return self.mass[:, :, stratum]
        found = np.full((2, len(self), 4), np.nan)
        found[:, rows.astype(np.intp)] = self.mass[:, :, stratum]
        return found


def digests(sources: Sequence[ScoreSource]) -> list[Digest]:
    """Digests of several checkpoints against the first of them, the last detailed."""
    reference = build_reference(sources[0])
    last = len(sources) - 1
    return [
        digest(source, reference, detailed=number == last)
        for number, source in enumerate(sources)
    ]


def digest(
    source: ScoreSource, reference: Reference, *, detailed: bool = False
) -> Digest:
    """Read one checkpoint, part by part.

    Raises:
        MismatchError: a response was tokenized differently from the reference's.
        ProbeError: it holds a row twice or an unknown kind.
    """
    parts = [_part(chunk, reference, detailed) for chunk in source.chunks()]
    whole = _joined(source.manifest, parts, reference)
    check_rows(whole)
    return whole


def _part(chunk: ScoreTable, reference: Reference, detailed: bool) -> Digest:
    rows = reference.locate(chunk)
    here, there = check_same_tokens(reference, chunk, rows)
    work = Chunk(chunk, reference, rows, here, there)
    columns = work.own() | work.argmax() | work.vocabulary()
    mass = None
    ids = None
    if reference.has_bins:
        more, mass = work.bins()
        columns |= more
    if reference.argmax is not None:
        ids = work.argmax_ids()
    detail = {}
    if detailed:
        detail = detail_columns(chunk, reference, rows, here, there)
    return Digest(
        manifest=chunk.manifest,
        probe_ids=chunk.probe_ids,
        kinds=chunk.kinds,
        trained=chunk.trained,
        text_hashes=chunk.text_hashes,
        n_tokens=chunk.n_tokens,
        logprob_sums=np.asarray(chunk.logprob_sums, np.float64),
        good=usable(chunk),
        columns=columns,
        stored=_stored(chunk.tokens),
        mass=mass,
        argmax_ids=ids,
        detail=detail,
    )


def _stored(tokens: TokenScores) -> frozenset[str]:
    names = tokens.__dataclass_fields__
    found = {name for name in names if getattr(tokens, name) is not None}
    if not np.isfinite(tokens.logprobs).any():
        found.discard("logprobs")
    return frozenset(found)


def _joined(
    manifest: Manifest, parts: Sequence[Digest], reference: Reference
) -> Digest:
    names = set.intersection(*(set(p.columns) for p in parts)) if parts else set()
    details = set.intersection(*(set(p.detail) for p in parts)) if parts else set()
    masses = [p.mass for p in parts if p.mass is not None]
    ids = [p.argmax_ids for p in parts if p.argmax_ids is not None]

    def join(field_name: str, kind: str) -> npt.NDArray[Any]:
        if not parts:
            return np.zeros(0, kind)
        return np.concatenate([getattr(part, field_name) for part in parts])

    return Digest(
        manifest=manifest,
        probe_ids=_shared(join("probe_ids", "U1"), reference.probe_ids),
        kinds=_shared(join("kinds", "U1"), reference.kinds),
        trained=join("trained", "bool"),
        text_hashes=_shared(join("text_hashes", "U1"), reference.text_hashes),
        n_tokens=join("n_tokens", "int64"),
        logprob_sums=join("logprob_sums", "float64"),
        good=join("good", "bool"),
        columns={
            name: np.concatenate([p.columns[name] for p in parts])
            for name in sorted(names)
        },
        stored=_everywhere(parts),
        mass=np.concatenate(masses, axis=1) if masses else None,
        argmax_ids=_in_order(ids, reference) if ids else None,
        detail={
            name: np.concatenate([p.detail[name] for p in parts]) for name in details
        },
    )


def _everywhere(parts: Iterable[Digest]) -> frozenset[str]:
    """Columns of every part; ``logprobs`` of any."""
    found = [part.stored for part in parts]
    if not found:
        return frozenset()
    common = frozenset.intersection(*found)
    return common | frozenset(name for s in found for name in s if name == "logprobs")


def _shared(own: Strings, reference: Strings) -> Strings:
    """The reference's array where it is the same: strings are kept once for a run."""
    return reference if np.array_equal(own, reference) else own


def _in_order(ids: Sequence[IntArray], reference: Reference) -> IntArray:
    """Ids by position of the reference's usable responses, −1 where none holds it."""
    position, found = np.concatenate(ids, axis=1)
    assert reference.off is not None
    counted = reference.off & np.repeat(reference.usable, reference.lengths)
    where = reference.positions_of("chosen")
    where = where[counted[where]]
    whole = np.full(len(where), NO_TOKEN, np.int32)
    whole[np.searchsorted(where, position)] = found
    return whole
