"""Training examples from files: preference data in TRL's formats, or a probe set.

A training example is a probe with ``chosen`` and perhaps ``rejected``, so that prompts
and responses are tokenized in one place whatever they are for. No torch here.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldeval.errors import ProbeError
from ldeval.files import write_whole
from ldeval.probes import parse_probe
from ldeval.probes.examples import Example, FieldMap, read_examples
from ldeval.probes.sources import BadRow, Row, read_rows
from ldeval.records import Probe, Response


@dataclass(frozen=True)
class TrainingData:
    """Examples in file order, with the rows that they came from."""

    examples: tuple[Probe, ...]
    rows: Mapping[str, Mapping[str, Any]]
    """By example id, the row as it stands in the file."""
    skipped: tuple[tuple[str, str], ...]
    """(place, reason) of rows that give no example."""


def read_training(
    source: str | Path,
    *,
    limit: int | None = None,
    split: str = "train",
    fields: FieldMap | None = None,
) -> TrainingData:
    """Read training examples; of a probe set, the trained half.

    An example's id is its file and line, or its probe's id.

    Args:
        source: whatever :func:`ldeval.probes.sources.read_rows` takes.
        limit: most examples to read.
        fields: names of the fields, for formats that are not known.

    Raises:
        ProbeError: when the source cannot be read, or gives no example; or for a limit
            below 1.
    """
    if limit is not None and limit < 1:
        raise ProbeError(f"limit {limit}: give at least 1.", path=str(source))
    rows = read_rows(source, split=split)
    first = next(rows, None)
    if first is None:
        raise ProbeError("holds no rows.", path=str(source))
    every = itertools.chain([first], rows)
    if isinstance(first, Row) and {"probe_id", "responses"} <= set(first.values):
        found = _probes(every, str(source))
    else:
        found = _examples(every, fields)
    examples: list[Probe] = []
    kept: dict[str, Mapping[str, Any]] = {}
    skipped: list[tuple[str, str]] = []
    for item in found:
        if isinstance(item, BadRow):
            skipped.append((item.place, item.reason))
            continue
        probe, values = item
        if limit is not None and len(examples) == limit:
            break
        examples.append(probe)
        kept[probe.probe_id] = values
    if not examples:
        reason = skipped[0][1] if skipped else "no probe of it is trained"
        raise ProbeError(f"gives no training example ({reason}).", path=str(source))
    return TrainingData(tuple(examples), kept, tuple(skipped))


_Found = Iterator[BadRow | tuple[Probe, Mapping[str, Any]]]


def _probes(rows: Iterator[Row | BadRow], source: str) -> _Found:
    for number, row in enumerate(rows, 1):
        if isinstance(row, BadRow):
            yield row
            continue
        probe = parse_probe(row.values, path=source, line=number)
        if probe.trained:
            yield probe, row.values


def _examples(rows: Iterator[Row | BadRow], fields: FieldMap | None) -> _Found:
    latest: dict[str, Mapping[str, Any]] = {}

    def noting() -> Iterator[Row | BadRow]:
        for row in rows:
            if isinstance(row, Row):
                latest[row.place] = row.values
            yield row

    for item in read_examples(noting(), fields=fields):
        if isinstance(item, BadRow):
            yield item
        else:
            yield as_probe(item), latest.pop(item.place)


def as_probe(example: Example) -> Probe:
    """A training example as a probe, by its place in the data."""
    responses = {"chosen": Response("chosen", example.chosen)}
    if example.rejected is not None:
        responses["rejected"] = Response("rejected", example.rejected)
    return Probe(example.place, example.prompt, responses, trained=True)


def write_rows(path: Path, data: TrainingData, keep: list[str]) -> None:
    """The rows of some examples as JSON Lines, as they stood, in file order.

    Args:
        keep: ids.
    """
    wanted = set(keep)
    lines = [
        json.dumps(data.rows[e.probe_id], ensure_ascii=False, default=str)
        for e in data.examples
        if e.probe_id in wanted
    ]
    text = "".join(line + "\n" for line in lines)
    write_whole(path, text)
