"""What the page shows of single prompts, gathered from the tables in one pass.

Every response has its sum at every checkpoint. The token view has the first and the
last checkpoint of every response, and every checkpoint of the prompts whose chosen
response fell most. Tables are read part by part; what is kept of them is sixteen-bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ldeval.compare.pairing import token_positions, usable
from ldeval.records import KIND_NAMES, IntArray, Probe, ScoreSource, ScoreTable
from ldeval.report.page.blocks import MISSING, packed, sixteen_bits

NO_TOKEN = -1
TOKENS_PER_BLOCK = 20_000
"""About as many tokens are unpacked at once when a prompt is opened."""
COLUMNS = ("token_ids", "logprobs", "argmax_ids", "argmax_logprobs")
"""The token columns that are read here."""

Sixteen = npt.NDArray[np.uint16]


@dataclass
class _Tokens:
    """Token columns of some responses at some checkpoints."""

    logprobs: Sixteen
    """[c, T]"""
    argmax: npt.NDArray[np.int32]
    """[c, T] token ids; −1 where not known."""
    argmax_logprobs: Sixteen
    """[c, T]"""

    @classmethod
    def unknown(cls, checkpoints: int, tokens: int) -> _Tokens:
        shape = (checkpoints, tokens)
        return cls(
            np.full(shape, MISSING, "<u2"),
            np.full(shape, NO_TOKEN, "<i4"),
            np.full(shape, MISSING, "<u2"),
        )

    def fill(
        self, checkpoint: int, there: IntArray, chunk: ScoreTable, here: IntArray
    ) -> None:
        """Put tokens ``here`` of a part at ``there``."""
        tokens = chunk.tokens
        self.logprobs[checkpoint, there] = sixteen_bits(tokens.logprobs[here])
        if tokens.argmax_ids is not None and tokens.argmax_logprobs is not None:
            self.argmax[checkpoint, there] = tokens.argmax_ids[here]
            found = sixteen_bits(tokens.argmax_logprobs[here])
            self.argmax_logprobs[checkpoint, there] = found

    def of(self, start: int, stop: int) -> _Tokens:
        """Tokens ``start`` to ``stop``, as views."""
        return _Tokens(
            self.logprobs[:, start:stop],
            self.argmax[:, start:stop],
            self.argmax_logprobs[:, start:stop],
        )


class PromptScores:
    """Scores of single prompts over a run.

    Args:
        sources: the checkpoints, in the order of their steps.
        worst: how many prompts to keep at every checkpoint.

    Attributes:
        sums: [S, R] Σ ln p by checkpoint and response, nats; NaN where not scored.
        probes: [P] probe ids.
        probe_of: [R] the probe of each response.
        offsets: [R + 1] its tokens.
        worst: probes whose chosen response fell most per token, most first.
    """

    def __init__(self, sources: Sequence[ScoreSource], worst: int) -> None:
        ids, kinds, trained, counts = _rows(sources[0])
        self.probes = list(dict.fromkeys(ids))
        place = {probe: number for number, probe in enumerate(self.probes)}
        rank = [KIND_NAMES.index(kind) for kind in kinds]
        # a prompt's responses stand together, whatever the order of the table
        order = np.lexsort((rank, [place[probe] for probe in ids]))
        ids = [ids[row] for row in order]
        self.kinds = [kinds[row] for row in order]
        self.probe_of = np.array([place[probe] for probe in ids], np.intp)
        split = dict(zip(ids, (trained[row] for row in order), strict=True))
        self.trained = [bool(split[probe]) for probe in self.probes]
        lengths = np.array([counts[row] for row in order], np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._index = {
            pair: row for row, pair in enumerate(zip(ids, self.kinds, strict=True))
        }
        self.sums = np.full((len(sources), len(ids)), np.nan)
        self.labels = np.full(int(self.offsets[-1]), NO_TOKEN, "<i4")
        self.ends = _Tokens.unknown(2, int(self.offsets[-1]))
        self._read_ends(sources)
        self.worst = self._fallen()[:worst]
        self._read_worst(sources)

    @cached_property
    def lengths(self) -> IntArray:
        """[R] tokens of each response."""
        return np.diff(self.offsets)

    def _read_ends(self, sources: Sequence[ScoreSource]) -> None:
        last = len(sources) - 1
        for end, number in enumerate((0, last)):
            for chunk, here, rows in self._located(sources[number]):
                self.sums[number, rows] = chunk.logprob_sums[here]
                source, target = self._positions(chunk, here, rows)
                if not end:
                    self.labels[target] = chunk.tokens.token_ids[source]
                self.ends.fill(end, target, chunk, source)

    def _read_worst(self, sources: Sequence[ScoreSource]) -> None:
        """The inner checkpoints: sums of all, tokens of the worst prompts."""
        chosen = np.isin(self.probe_of, self.worst)
        count = np.where(chosen, self.lengths, 0)
        self._worst_offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        self.every = _Tokens.unknown(len(sources), int(self._worst_offsets[-1]))
        kept = np.flatnonzero(np.repeat(chosen, self.lengths))
        for name in ("logprobs", "argmax", "argmax_logprobs"):
            ends = getattr(self.ends, name)
            getattr(self.every, name)[[0, -1]] = ends[:, kept]
        for number, source in enumerate(sources[1:-1], 1):
            for chunk, here, rows in self._located(source):
                self.sums[number, rows] = chunk.logprob_sums[here]
                wanted = chosen[rows]
                here, rows = here[wanted], rows[wanted]
                taken, _ = self._positions(chunk, here, rows)
                starts = self._worst_offsets[rows]
                _, target = token_positions(starts, self.lengths[rows])
                self.every.fill(number, target, chunk, taken)

    def _located(
        self, source: ScoreSource
    ) -> Iterator[tuple[ScoreTable, IntArray, IntArray]]:
        """Each part of a table, its usable rows, and where they belong here."""
        for chunk in source.chunks():
            pairs = zip(chunk.probe_ids.tolist(), chunk.kinds.tolist(), strict=True)
            rows = np.array([self._index.get(pair, -1) for pair in pairs], np.intp)
            same = self.lengths[rows] == chunk.n_tokens if len(self.lengths) else False
            here = np.flatnonzero((rows >= 0) & same & usable(chunk))
            yield chunk, here, rows[here]

    def _positions(
        self, chunk: ScoreTable, here: IntArray, rows: IntArray
    ) -> tuple[IntArray, IntArray]:
        """Tokens of rows, in the part and here."""
        lengths = self.lengths[rows]
        _, source = token_positions(chunk.offsets[here], lengths)
        _, target = token_positions(self.offsets[rows], lengths)
        return source, target

    def _fallen(self) -> list[int]:
        """Probes by the change of their chosen response per token, lowest first."""
        chosen = np.flatnonzero(np.array(self.kinds) == "chosen")
        tokens = np.maximum(self.lengths[chosen], 1)
        with np.errstate(invalid="ignore"):
            change = (self.sums[-1, chosen] - self.sums[0, chosen]) / tokens
        order = np.argsort(change, kind="stable")  # NaN comes last
        known = order[np.isfinite(change[order])]
        return [int(probe) for probe in self.probe_of[chosen[known]]]

    # ------------------------------------------------------------------ as blocks

    def token_ids(self) -> npt.NDArray[np.int32]:
        """[U] every token id that is shown, ascending."""
        shown = [self.labels, self.ends.argmax.ravel(), self.every.argmax.ravel()]
        found = np.unique(np.concatenate([np.unique(column) for column in shown]))
        return np.asarray(found[found != NO_TOKEN], np.int32)

    def groups(self) -> list[tuple[int, int]]:
        """Runs of responses, whole probes each, of about ``TOKENS_PER_BLOCK``."""
        starts = np.flatnonzero(np.diff(self.probe_of, prepend=-1)).tolist()
        found: list[tuple[int, int]] = []
        begin = 0
        for start, stop in pairwise([*starts, len(self.probe_of)]):
            if self.offsets[stop] - self.offsets[begin] > TOKENS_PER_BLOCK:
                if start > begin:
                    found.append((begin, start))
                begin = start
        if len(self.probe_of) > begin:
            found.append((begin, len(self.probe_of)))
        return found

    def end_block(self, start: int, stop: int, ids: IntArray) -> str:
        """Responses ``start`` to ``stop`` at the first and the last checkpoint.

        Packed columns one after the other: label, argmax before, argmax after (as
        places in ``ids``), then ln p before and after, and the argmaxes' before and
        after (sixteen bits each).
        """
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        part = self.ends.of(first, last)
        names = np.vstack([self.labels[first:last], part.argmax])
        return packed(
            _places(names, ids).tobytes()
            + part.logprobs.tobytes()
            + part.argmax_logprobs.tobytes()
        )

    def step_block(self, probe: int, ids: IntArray) -> str:
        """One of the worst prompts at every checkpoint: argmax, ln p, argmax's ln p,
        each [S, T]."""
        rows = np.flatnonzero(self.probe_of == probe)
        begin = int(self._worst_offsets[rows[0]])
        part = self.every.of(begin, begin + int(self.lengths[rows].sum()))
        return packed(
            _places(part.argmax, ids).tobytes()
            + part.logprobs.tobytes()
            + part.argmax_logprobs.tobytes()
        )

    def sum_block(self) -> str:
        """[S, R] sums as float32, packed."""
        return packed(self.sums.astype("<f4").tobytes())

    def record(self, ids: IntArray) -> dict[str, Any]:
        """What a script needs to find its way in the blocks."""
        kinds = [kind for kind in KIND_NAMES if kind in set(self.kinds)]
        return {
            "probes": self.probes,
            "trained": self.trained,
            "kinds": kinds,
            "rows": {
                "probe": self.probe_of.tolist(),
                "kind": [kinds.index(kind) for kind in self.kinds],
                "tokens": self.lengths.tolist(),
            },
            "worst": self.worst,
            "groups": self.groups(),
            "wide": _is_wide(ids),
            "has_tokens": bool((self.ends.logprobs != MISSING).any()),
        }


def _rows(
    source: ScoreSource,
) -> tuple[list[str], list[str], list[bool], list[int]]:
    """Probe id, kind, split and token count of every response."""
    ids: list[str] = []
    kinds: list[str] = []
    trained: list[bool] = []
    counts: list[int] = []
    for chunk in source.chunks():
        ids += chunk.probe_ids.tolist()
        kinds += chunk.kinds.tolist()
        trained += chunk.trained.tolist()
        counts += chunk.n_tokens.tolist()
    return ids, kinds, trained, counts


def _is_wide(ids: IntArray) -> bool:
    """Whether places among ``ids`` need more than sixteen bits."""
    return len(ids) >= MISSING


def _places(tokens: IntArray, ids: IntArray) -> npt.NDArray[Any]:
    """Where tokens stand in ``ids``; all bits set for no token."""
    kind = np.dtype("<u4" if _is_wide(ids) else "<u2")
    places = np.searchsorted(ids, tokens).astype(kind)
    return np.where(tokens == NO_TOKEN, np.iinfo(kind).max, places).astype(kind)


def texts_of(
    scores: PromptScores, probes: Mapping[str, Probe]
) -> tuple[list[Any], list[str | None]]:
    """Prompts [P] and response texts [R] of the scored probes; None where not known.

    Args:
        probes: ``Probe`` by id.
    """
    prompts: list[Any] = []
    for name in scores.probes:
        prompt = probes[name].prompt if name in probes else None
        if prompt is None or isinstance(prompt, str):
            prompts.append(prompt)
        else:
            said = [{"role": m["role"], "content": m["content"]} for m in prompt]
            prompts.append(said)
    responses = []
    for row, kind in zip(scores.probe_of.tolist(), scores.kinds, strict=True):
        probe = probes.get(scores.probes[row])
        found = None if probe is None else probe.responses.get(kind)
        responses.append(None if found is None else found.text)
    return prompts, responses
