"""What the run's first checkpoint fixes for all later ones.

At position m of a response with label y_m it gives its top-k tokens and its argmax y*.
With F_m = top-k ∪ {y_m} the flow bins are the label {y_m}, the argmax {y*} where that
is not the label, the rest K = F_m ∖ {y_m, y*}, and the tail. They never move, so flows
add up over pairs. Kept beside them: which tokens chosen and rejected share, how like
chosen each response is, and how many tokens a length-matched comparison reads. Only
ids and a few columns are kept, about a quarter of a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Indel, LCSseq

from ldeval.compare.clusters import Strings
from ldeval.compare.pairing import usable
from ldeval.compare.stats import Float
from ldeval.compare.stored import Bool, Index, ceilings
from ldeval.errors import MismatchError
from ldeval.records import IntArray, Manifest, ScoreSource, ScoreTable

DETAILED = ("chosen", "rejected")
"""The kinds along which Δ ln p of every top token is studied."""
MATCHED_AT_LEAST = 5
"""Fewer tokens than this are not compared at matched length."""
RICHER_BINS = 10

Key = tuple[str, str]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """Ids and a few columns of the first checkpoint, responses one after another."""

    manifest: Manifest
    probe_ids: Strings
    """[R]"""
    kinds: Strings
    """[R]"""
    trained: Bool
    """[R]"""
    text_hashes: Strings
    """[R]"""
    usable: Bool
    """[R] scored, and not excluded."""
    offsets: npt.NDArray[np.int64]
    """[R + 1]"""
    label: IntArray
    """[P] the responses' tokens."""
    logprobs: F32
    """[P] their ln p, nats."""
    argmax: IntArray | None
    """[P] the most probable token."""
    top: IntArray | None
    """[P, k] the top-k, most probable first."""
    ceiling: F32
    """[P] what no token outside the top-k exceeds."""
    sq_norms: F32 | None
    """[P] ‖π‖²."""
    detail: Mapping[str, F32]
    """For each of ``DETAILED``, ln p of ``top`` at its positions, [P_kind, k]."""

    @cached_property
    def index(self) -> dict[Key, int]:
        """Row of each (probe_id, kind)."""
        return _index(self.probe_ids, self.kinds)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[R] tokens in each response."""
        return np.diff(self.offsets)

    @cached_property
    def off(self) -> Bool | None:
        """[P] positions whose argmax is not the label; None without argmax ids."""
        return None if self.argmax is None else np.asarray(self.argmax != self.label)

    @property
    def has_bins(self) -> bool:
        """Whether flow bins can be had."""
        return self.argmax is not None and self.top is not None

    @cached_property
    def matched(self) -> npt.NDArray[np.int64]:
        """[R] n*: tokens of the probe's shortest kind without its end token; 0 where
        that is below ``MATCHED_AT_LEAST``."""
        end = 1 if self.manifest.span == "trl" else 0
        shortest: dict[str, int] = {}
        rows = np.flatnonzero(self.usable)
        for probe, n in zip(
            self.probe_ids[rows].tolist(), self.lengths[rows].tolist(), strict=True
        ):
            shortest[probe] = min(shortest.get(probe, n - end), n - end)
        found = [shortest.get(probe, 0) for probe in self.probe_ids.tolist()]
        counts = np.array(found, np.int64)
        return np.where(counts >= MATCHED_AT_LEAST, counts, 0)

    @cached_property
    def similarity(self) -> Float:
        """[R] likeness of each response's token ids to chosen's: 1 − the normalised
        insert/delete distance, between 0 and 1; NaN without a chosen response."""
        found = np.full(len(self.kinds), np.nan)
        for row, other in self._partners("chosen"):
            found[row] = Indel.normalized_similarity(self._ids(row), self._ids(other))
        return found

    @cached_property
    def shared(self) -> Bool:
        """[P] tokens of chosen (rejected) that a longest common subsequence with
        rejected (chosen) holds."""
        found = np.zeros(len(self.label), bool)
        for row, other in self._partners("chosen"):
            if self.kinds[row] != "rejected":
                continue
            blocks = LCSseq.opcodes(self._ids(row), self._ids(other))
            for tag, a, b, c, d in blocks:
                if tag == "equal":
                    found[self.offsets[row] + a : self.offsets[row] + b] = True
                    found[self.offsets[other] + c : self.offsets[other] + d] = True
        return found

    @cached_property
    def diverged(self) -> Bool:
        """[P] positions of rejected after the first token that differs from chosen's;
        every position of other kinds."""
        found = np.ones(len(self.label), bool)
        for row, other in self._partners("chosen"):
            if self.kinds[row] == "rejected":
                a, b = self._ids(row), self._ids(other)
                same = [x == y for x, y in zip(a, b, strict=False)]
                first = same.index(False) if False in same else len(same)
                start = int(self.offsets[row])
                found[start : start + min(first + 1, len(a))] = False
        return found

    def rows_of(self, kind: str) -> Index:
        """Rows that hold ``kind``, trained and held out."""
        return np.flatnonzero(self.kinds == kind)

    def positions_of(self, kind: str) -> Index:
        """[P_kind] flat positions of the tokens of ``kind``."""
        if kind not in self._positions:
            self._positions[kind] = self._find_positions(kind)
        return self._positions[kind]

    @cached_property
    def _positions(self) -> dict[str, Index]:
        return {}

    def _find_positions(self, kind: str) -> Index:
        found = [np.arange(*self.offsets[[r, r + 1]]) for r in self.rows_of(kind)]
        return np.concatenate(found) if found else np.zeros(0, np.intp)

    @cached_property
    def edges(self) -> dict[str, Float]:
        """By kind, the quantiles of p of the top tokens other than the label that
        bound the bins of the rich-get-richer curve, [RICHER_BINS + 1]."""
        found = {}
        for kind, logprobs in self.detail.items():
            if self.top is None or not len(logprobs):
                continue
            where = self.positions_of(kind)
            other = self.top[where] != self.label[where][:, None]
            p = np.exp(logprobs[other].astype(np.float64))
            if len(p):
                found[kind] = np.quantile(p, np.linspace(0, 1, RICHER_BINS + 1))
        return found

    def locate(self, chunk: ScoreTable) -> Index:
        """[r] row of each response of ``chunk``; −1 where either is unusable.

        Raises:
            MismatchError: a response was tokenized differently.
        """
        keys = zip(chunk.probe_ids.tolist(), chunk.kinds.tolist(), strict=True)
        rows = np.array([self.index.get(key, -1) for key in keys], np.intp)
        rows = np.where(usable(chunk), rows, -1)
        return np.where((rows >= 0) & self.usable[rows], rows, -1)

    def _ids(self, row: int) -> list[int]:
        ids: list[int] = self.label[self.offsets[row] : self.offsets[row + 1]].tolist()
        return ids

    def _partners(self, kind: str) -> Iterable[tuple[int, int]]:
        """Usable rows, each with that of its probe's ``kind``."""
        for (probe, own), row in self.index.items():
            other = self.index.get((probe, kind), -1)
            if own != kind and self.usable[row] and other >= 0 and self.usable[other]:
                yield row, other
            elif own == kind and self.usable[row]:
                yield row, row


def build_reference(source: ScoreSource) -> Reference:
    """Gather the reference from the run's first checkpoint, part by part."""
    tokens = max(source.manifest.n_tokens, 1)
    wide: dict[str, _Column] = {}
    rows: dict[str, list[npt.NDArray[Any]]] = {}
    for number, chunk in enumerate(source.chunks()):
        for name, values in _by_response(chunk).items():
            rows.setdefault(name, []).append(values)
        found = _by_token(chunk)
        for name in [name for name in wide if name not in found]:
            del wide[name]  # half a column would be read as a whole one
        for name, part in found.items():
            if number == 0:
                share = 1.0 if not name.startswith(DETAIL) else 0.1
                wide[name] = _Column(part, int(share * tokens))
            if name in wide:
                wide[name].add(part)
    columns = {name: column.whole() for name, column in wide.items()}
    lengths = _join(rows.pop("lengths", []), np.int64)
    return Reference(
        manifest=source.manifest,
        probe_ids=_join(rows.get("probe_ids", []), np.str_),
        kinds=_join(rows.get("kinds", []), np.str_),
        trained=_join(rows.get("trained", []), np.bool_),
        text_hashes=_join(rows.get("text_hashes", []), np.str_),
        usable=_join(rows.get("usable", []), np.bool_),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        label=columns.get("label", np.zeros(0, np.int32)),
        logprobs=columns.get("logprobs", np.zeros(0, np.float32)),
        argmax=columns.get("argmax"),
        top=columns.get("top"),
        ceiling=columns.get("ceiling", np.zeros(0, np.float32)),
        sq_norms=columns.get("sq_norms"),
        detail={
            kind: columns[DETAIL + kind]
            for kind in DETAILED
            if DETAIL + kind in columns
        },
    )


DETAIL = "detail:"


class _Column:
    """A column that grows in place: parts are copied in and not kept."""

    def __init__(self, like: npt.NDArray[Any], capacity: int) -> None:
        self._values = np.empty((max(capacity, len(like)), *like.shape[1:]), like.dtype)
        self._used = 0

    def add(self, part: npt.NDArray[Any]) -> None:
        stop = self._used + len(part)
        if stop > len(self._values):
            grown = np.empty((2 * stop, *self._values.shape[1:]), self._values.dtype)
            grown[: self._used] = self._values[: self._used]
            self._values = grown
        self._values[self._used : stop] = part
        self._used = stop

    def whole(self) -> npt.NDArray[Any]:
        return self._values[: self._used]


def _by_response(chunk: ScoreTable) -> dict[str, npt.NDArray[Any]]:
    return {
        "probe_ids": chunk.probe_ids,
        "kinds": chunk.kinds,
        "trained": chunk.trained,
        "text_hashes": chunk.text_hashes,
        "usable": usable(chunk),
        "lengths": chunk.n_tokens,
    }


def _by_token(chunk: ScoreTable) -> dict[str, npt.NDArray[Any]]:
    tokens = chunk.tokens
    found: dict[str, npt.NDArray[Any] | None] = {
        "label": tokens.token_ids.astype(np.int32),
        "logprobs": tokens.logprobs.astype(np.float32),
        "argmax": tokens.argmax_ids,
        "top": tokens.top_ids,
        "ceiling": ceilings(tokens).astype(np.float32),
        "sq_norms": tokens.sq_norms,
    }
    if tokens.top_logprobs is not None:
        kinds = np.repeat(chunk.kinds, chunk.n_tokens)
        for kind in DETAILED:
            found[DETAIL + kind] = tokens.top_logprobs[kinds == kind].astype(np.float32)
    return {
        name: values.astype(np.int32) if name in ("argmax", "top") else values
        for name, values in found.items()
        if values is not None
    }


def check_same_tokens(
    reference: Reference, chunk: ScoreTable, rows: Index
) -> tuple[Index, Index]:
    """Where the tokens of the located responses are.

    Args:
        rows: from :meth:`Reference.locate`.

    Returns:
        Flat positions in the chunk and in the reference, of equal length.

    Raises:
        MismatchError: naming the first response that was tokenized differently.
    """
    own = np.flatnonzero(rows >= 0)
    lengths = chunk.n_tokens[own]
    differing = np.flatnonzero(lengths != reference.lengths[rows[own]])
    here = there = np.zeros(0, np.intp)
    if not len(differing):
        owner = np.repeat(np.arange(len(own)), lengths)
        within = np.arange(len(owner))
        within -= np.repeat(np.cumsum(lengths) - lengths, lengths)
        here = chunk.offsets[own][owner] + within
        there = reference.offsets[rows[own]][owner] + within
        differing = owner[chunk.tokens.token_ids[here] != reference.label[there]]
    if len(differing):
        row = int(own[differing[0]])
        raise MismatchError(
            f"probe {str(chunk.probe_ids[row])!r}, kind {str(chunk.kinds[row])!r} was "
            f"tokenized differently: step {reference.manifest.step} has the ids "
            f"{_shown(reference._ids(int(rows[row])))}, step {chunk.manifest.step} "
            f"has {_shown(chunk.row(row).token_ids.tolist())}. "
            "Score both with one tokenizer, span and prompt format."
        )
    return here, there


def _shown(ids: Sequence[int]) -> str:
    return str(ids) if len(ids) <= 12 else f"{ids[:12]} … ({len(ids)} tokens)"


def _index(probes: Strings, kinds: Strings) -> dict[Key, int]:
    pairs = zip(probes.tolist(), kinds.tolist(), strict=True)
    return {pair: row for row, pair in enumerate(pairs)}


def _join(
    parts: Sequence[npt.NDArray[Any]], kind: type[np.generic]
) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, kind)
