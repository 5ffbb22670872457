"""How fast tables are written, joined and compared, and what they take on the disk.

Measured on a real table of some thousand tokens, which is repeated where a rate needs
more of them to show: under other names and with other texts, so that the statistics
have as many clusters as they would.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ldeval.compare import compare_run
from ldeval.probes import ProbeSet
from ldeval.records import Rate, RateSource, ScoreTable, TokenScores
from ldeval.shards import join_step
from ldeval.store import open_table, write_table

TOKENS = 20_000
"""Tokens of the smaller of two tables that are compared; the larger has …"""
TIMES = 4
"""… so many times as many: what does not grow between them is the fixed part."""


@dataclass(frozen=True)
class TableRates:
    """What a table's tokens cost; each as in ``PlanRates``."""

    stored: Rate
    writing: Rate
    joining: Rate
    comparing: Rate
    comparing_start: Rate


def table_rates(table: ScoreTable, source: RateSource, where: str) -> TableRates:
    """Write a table in shards, join them, and compare it with itself a little changed.

    Args:
        table: with reference columns, as a sweep stores it.
        source: where the table comes from.
        where: the same in words.
    """
    times = max(1, -(-TOKENS // max(1, len(table.tokens))))
    small = repeated(table, times)
    large = repeated(table, TIMES * times)
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_table(Path(folder) / "step_000000", table)
        size = sum(int(entry["bytes"]) for entry in manifest.files.values())
        writing, joining = _shards(Path(folder), large)
    slope, start = _line(
        [len(small.tokens), len(large.tokens)], [_compared(small), _compared(large)]
    )

    def rate(value: float) -> Rate:
        return Rate(value, source, where)

    stored = rate(size / max(1, len(table.tokens)))
    return TableRates(
        stored=stored,
        writing=rate(writing),
        joining=rate(joining),
        comparing=rate(slope),
        comparing_start=rate(start),
    )


def _shards(folder: Path, table: ScoreTable) -> tuple[float, float]:
    """Seconds of writing a token of a table's shards, and of joining one, for which
    they are checked and read as well."""
    middle = len(table) // 2
    places = [folder / "first" / "step_000000", folder / "second" / "step_000000"]
    started = time.perf_counter()
    write_table(places[0], table.part(0, middle))
    write_table(places[1], table.part(middle, len(table)))
    written = time.perf_counter()
    shards = [open_table(place) for place in places]
    run, probes = folder / "joined", ProbeSet(())
    join_step(run, shards, 0, probes, checkpoint="", floor=None)
    joined = time.perf_counter()
    tokens = len(table.tokens)
    return (written - started) / tokens, (joined - written) / tokens


def _line(tokens: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds for a token, and those that do not depend on tokens."""
    slope = (seconds[1] - seconds[0]) / (tokens[1] - tokens[0])
    start = seconds[0] - slope * tokens[0]
    if slope > 0 and start >= 0:
        return slope, start
    return seconds[1] / tokens[1], 0.0  # a machine busy with other things


def _compared(table: ScoreTable) -> float:
    """Seconds of comparing a table with the next checkpoint's."""
    after = changed(table)
    started = time.perf_counter()
    compare_run([table, after], run=table.manifest.run)
    return time.perf_counter() - started


def changed(table: ScoreTable) -> ScoreTable:
    """The next checkpoint's, as far as the time to compare it goes: every token's ln p
    moves by up to 0.05 nats."""
    moves = np.random.default_rng(0).uniform(-0.05, 0.05, len(table.tokens))
    logprobs = np.minimum(table.tokens.logprobs + moves, 0).astype(np.float32)
    moved = replace(table, tokens=replace(table.tokens, logprobs=logprobs))
    return replace(
        moved,
        manifest=replace(table.manifest, step=table.manifest.step + 1),
        logprob_sums=moved.sums(logprobs),
    )


def repeated(table: ScoreTable, times: int) -> ScoreTable:
    """A table of so many times as many probes, each with texts of its own."""
    if times == 1:
        return table
    marks = [f"#{number}" for number in range(times)]

    def marked(names: np.ndarray) -> np.ndarray:
        return np.concatenate([np.char.add(names, mark) for mark in marks])

    lengths = np.tile(table.n_tokens, times)
    manifest = replace(
        table.manifest,
        n_probes=table.manifest.n_probes * times,
        n_responses=len(lengths),
        n_tokens=int(lengths.sum()),
        excluded=(),
        split_exceptions=(),
    )
    return ScoreTable(
        manifest=manifest,
        probe_ids=marked(table.probe_ids),
        kinds=np.tile(table.kinds, times),
        trained=np.tile(table.trained, times),
        text_hashes=marked(table.text_hashes),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        tokens=TokenScores.concatenate([table.tokens] * times),
        logprob_sums=np.tile(table.logprob_sums, times),
    )
