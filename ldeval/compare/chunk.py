"""Sums over the responses of one part of a table, beside the reference's rows.

The innermost step of a digest: from columns of tokens to columns of responses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ldeval.compare.reference import Reference
from ldeval.compare.stats import Float
from ldeval.compare.stored import NO_TOKEN, bin_bounds
from ldeval.records import IntArray, ScoreTable, TokenScores

OFF, ON = 0, 1
"""Strata of positions: argmax not the label, argmax the label."""
PARTS = ("sum", "first", "body", "end", "matched")


class Chunk:
    """One part of a table beside the reference's rows of the same responses."""

    def __init__(
        self,
        chunk: ScoreTable,
        reference: Reference,
        rows: npt.NDArray[np.intp],
        here: npt.NDArray[np.intp],
        there: npt.NDArray[np.intp],
    ) -> None:
        self.chunk, self.reference, self.rows = chunk, reference, rows
        self.here, self.there = here, there
        self.lengths = chunk.n_tokens
        self.owner = np.repeat(np.arange(len(chunk)), self.lengths)
        self.located = rows >= 0
        matched = reference.matched[rows] * self.located
        self.matched_tokens = np.where(matched > 0, matched, np.nan)
        within = np.arange(len(self.owner)) - chunk.offsets[:-1][self.owner]
        self._is_matched = within < matched[self.owner]

    def sums(self, column: npt.NDArray[Any]) -> Float:
        """[r] Σ of a token column over each response."""
        values = np.asarray(column, np.float64)
        found = np.bincount(self.owner, weights=values, minlength=len(self.chunk))
        return np.asarray(found, np.float64)

    def parts(self, of: str, column: npt.NDArray[Any]) -> dict[str, Float]:
        padded = np.append(np.asarray(column, np.float64), np.nan)
        filled = self.lengths > 0
        first = padded[np.where(filled, self.chunk.offsets[:-1], -1)]
        end = padded[np.where(filled, self.chunk.offsets[1:] - 1, -1)]
        sums = self.sums(column)
        body = np.where(self.lengths >= 3, sums - first - end, np.nan)
        matched = self.sums(np.where(self._is_matched, padded[:-1], 0.0))
        matched = np.where(np.isnan(self.matched_tokens), np.nan, matched)
        sums = np.where(filled, sums, np.nan)
        found = (sums, first, body, end, matched)
        return {f"{of}_{name}": v for name, v in zip(PARTS, found, strict=True)}

    def own(self) -> dict[str, Float]:
        """Parts of the responses' own tokens, and the counts of reference tokens."""
        columns = self.parts("own", self.chunk.tokens.logprobs)
        columns["matched_tokens"] = self.matched_tokens
        shared = np.zeros(len(self.owner))
        shared[self.here] = self.reference.shared[self.there]
        inner = np.ones(len(self.owner), bool)
        inner[self.chunk.offsets[:-1][self.lengths > 0]] = False
        inner[self.chunk.offsets[1:][self.lengths > 0] - 1] = False
        logprobs = self.chunk.tokens.logprobs
        columns["shared_sum"] = self.sums(
            np.where(inner & (shared > 0), logprobs, 0.0) + 0.0 * logprobs
        )
        return columns

    def argmax(self) -> dict[str, Float]:
        """Parts of the most probable token, which may change identity."""
        column = self.chunk.tokens.argmax_logprobs
        return {} if column is None else self.parts("argmax", column)

    def vocabulary(self) -> dict[str, Float]:
        """Entropy off the label, and the vocabulary's mean ln p."""
        columns, off = {}, self.reference.off
        tokens = self.chunk.tokens
        if off is not None:
            counted = np.zeros(len(self.owner))
            counted[self.here] = off[self.there]
            columns["positions_off"] = np.where(
                self.located, self.sums(counted), np.nan
            )
        if tokens.entropies is not None and off is not None:
            kept = np.zeros(len(self.owner))
            kept[self.here] = np.where(
                off[self.there], tokens.entropies[self.here], 0.0
            )
            columns["entropy_off"] = np.where(self.located, self.sums(kept), np.nan)
        if tokens.mean_logprobs is not None:
            columns["mean_logprob_sum"] = self.sums(tokens.mean_logprobs)
        return columns

    def argmax_ids(self) -> IntArray:
        """Argmax ids at the off-label positions along chosen; with the positions
        beside them, so that parts can be put in the reference's order."""
        off = self.reference.off
        chosen = (self.chunk.kinds == "chosen")[self.owner[self.here]]
        column = self.chunk.tokens.argmax_ids
        assert off is not None
        kept = (
            chosen
            & off[self.there]
            & np.isfinite(self.chunk.tokens.logprobs[self.here])
        )
        ids = (
            np.full(int(kept.sum()), NO_TOKEN)
            if column is None
            else column[self.here[kept]]
        )
        return np.stack([self.there[kept], ids.astype(np.int64)])

    def bins(self) -> tuple[dict[str, Float], Float]:
        """Masses of the bins [2, r, 2, 4] and what goes with them, by response."""
        reference, chunk = self.reference, self.chunk
        assert reference.argmax is not None
        assert reference.top is not None
        assert reference.off is not None
        tokens = chunk.tokens.take(self.here)
        label, off = reference.label[self.there], reference.off[self.there]
        argmax = np.where(off, reference.argmax[self.there], NO_TOKEN)
        top = reference.top[self.there]
        bounds, exact = bin_bounds(tokens, label, argmax, top)
        owner, count = self.owner[self.here], len(chunk)

        def by_row(values: npt.NDArray[Any]) -> Float:
            found = np.bincount(owner, weights=values, minlength=count)
            return np.where(self.located, found, np.nan)

        mass = np.empty((2, count, 2, 4))
        columns: dict[str, Float] = {}
        for stratum, mask in ((OFF, off), (ON, ~off)):
            name = ("off", "on")[stratum]
            columns[f"positions_{name}"] = by_row(mask.astype(float))
            columns[f"exact_{name}"] = by_row((mask & exact).astype(float))
            for side in (0, 1):
                for b in range(4):
                    values = np.where(mask, bounds[side, b], 0.0)
                    mass[side, :, stratum, b] = by_row(values)
        columns |= self._risen(tokens, label, top, by_row)
        # ln p of the frozen argmax: its own bin off the label, the label's on it
        known = exact | ~off | (bounds[0, 1] == bounds[1, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            frozen = np.where(off, np.log(bounds[0, 1]), tokens.logprobs)
        whole = np.full(len(self.owner), np.nan)
        whole[self.here] = np.where(known, frozen, np.nan)
        return columns | self.parts("frozen", whole), mass

    def _risen(
        self,
        tokens: TokenScores,
        label: IntArray,
        top: IntArray,
        by_row: Callable[[npt.NDArray[Any]], Float],
    ) -> dict[str, Float]:
        """Argmaxes that lie outside the bins: how often, and how much they gained."""
        reference = self.reference
        if tokens.argmax_ids is None or tokens.argmax_logprobs is None:
            return {}
        assert reference.off is not None
        off = reference.off[self.there]
        inside = (tokens.argmax_ids == label) | (tokens.argmax_ids[:, None] == top).any(
            axis=1
        )
        assert reference.argmax is not None
        inside |= tokens.argmax_ids == reference.argmax[self.there]
        now = np.where(inside, 0.0, np.exp(tokens.argmax_logprobs.astype(float)))
        before = np.where(inside, 0.0, reference.ceiling[self.there])
        columns = {}
        for name, mask in (("off", off), ("on", ~off)):
            columns[f"outside_{name}"] = by_row((mask & ~inside).astype(float))
            columns[f"risen_low_{name}"] = by_row(np.where(mask, now - before, 0.0))
            columns[f"risen_high_{name}"] = by_row(np.where(mask, now, 0.0))
        return columns
