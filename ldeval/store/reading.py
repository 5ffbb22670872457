"""Tables from disk: checked against their manifest, whole or part by part."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ldeval.errors import StoreError
from ldeval.files import (
    file_size,
    local_copy,
    named,
    place,
)
from ldeval.parquet import ParquetFile, read_parquet
from ldeval.records import (
    Manifest,
    ScoreTable,
    TokenScores,
)
from ldeval.records.checked import check_types
from ldeval.store.layout import (
    MANIFEST,
    RESPONSES,
    TOKENS,
    WIDE,
    complete_steps,
)
from ldeval.store.manifest import read_manifest


def read_table(folder: str | Path, *, verify: bool = True) -> ScoreTable:
    """Read a step.

    Args:
        verify: check each file's size and SHA-256 against the manifest.

    Raises:
        StoreError: when it is incomplete or damaged, naming the file.
    """
    stored = open_table(folder, verify=verify)
    parts = list(stored.chunks())
    if len(parts) == 1:
        return parts[0]
    return _joined(stored.manifest, parts)


@dataclass(frozen=True)
class StoredTable:
    """A step on disk, read part by part: its tokens never stand in memory at once."""

    folder: Path
    manifest: Manifest
    columns: tuple[str, ...] | None = None
    """Token columns that are read, ``token_ids`` and ``logprobs`` among them; None: all
    that are stored. The others are then absent."""

    def chunks(self) -> Iterator[ScoreTable]:
        """Parts of whole responses, about a row group each.

        Raises:
            StoreError: a file is damaged.
        """
        responses_file, tokens_file = (
            local_copy(self.folder / name, _digest(self.manifest, name))
            for name in (RESPONSES, TOKENS)
        )
        try:
            responses = read_parquet(responses_file)
            _check_responses(responses)
            with ParquetFile(tokens_file, lists=WIDE) as file:
                yield from _parts(self.manifest, responses, file, self.columns)
        except (
            OSError,
            pa.ArrowException,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise StoreError(
                f"{self.folder}: the tables cannot be read ({error}). Delete this "
                "step's folder and run the sweep again."
            ) from error


def open_table(folder: str | Path, *, verify: bool = True) -> StoredTable:
    """A step, ready to be read part by part.

    Args:
        verify: check each file's size and SHA-256 against the manifest.

    Raises:
        StoreError: when it is incomplete or damaged, naming the file.
    """
    folder = place(folder)
    manifest = read_manifest(folder)
    if verify:
        for name in (RESPONSES, TOKENS):
            _verify(folder / name, manifest.files.get(name))
    return StoredTable(folder, manifest)


def open_run(run: str | Path) -> list[StoredTable]:
    """All complete steps of a run, ready to be read part by part.

    Raises:
        StoreError: when there is none, or one is damaged.
    """
    return [open_table(item.folder) for item in complete_steps(place(run))]


def _parts(
    manifest: Manifest,
    responses: pa.Table,
    file: ParquetFile,
    columns: tuple[str, ...] | None,
) -> Iterator[ScoreTable]:
    """Whole responses as their tokens come in; the rest waits for the next group."""
    lengths = responses["n_tokens"].to_numpy()
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if total != file.metadata.num_rows:
        raise ValueError(f"{file.metadata.num_rows} tokens for {total} in {RESPONSES}")
    stored = file.schema.names
    wanted = None if columns is None else [n for n in columns if n in stored]
    groups, start, read = file.metadata.num_row_groups, 0, 0
    waiting: list[TokenScores] = []
    for group in range(groups):
        found = file.row_group(group, wanted)
        part = _token_scores(found)
        read += len(part)
        waiting.append(part)
        stop = int(np.searchsorted(ends, read, side="right"))
        if stop == start and group < groups - 1:
            continue
        tokens = TokenScores.concatenate(waiting) if len(waiting) > 1 else waiting[0]
        if group == groups - 1:
            stop = len(lengths)
        first = int(ends[start - 1]) if start else 0
        used = (int(ends[stop - 1]) if stop else 0) - first
        yield _table(manifest, responses.slice(start, stop - start), tokens, used)
        waiting = [tokens.slice(used, len(tokens))]
        start = stop
    if not groups:
        empty = TokenScores(np.zeros(0, np.int32), np.zeros(0, np.float32))
        yield _table(manifest, responses, empty, 0)


def _table(
    manifest: Manifest, responses: pa.Table, tokens: TokenScores, used: int
) -> ScoreTable:
    lengths = responses["n_tokens"].to_numpy()
    return ScoreTable(
        manifest=manifest,
        probe_ids=np.array(responses["probe_id"].to_pylist(), dtype=np.str_),
        kinds=np.array(responses["kind"].to_pylist(), dtype=np.str_),
        trained=responses["trained"].to_numpy().astype(np.bool_),
        text_hashes=np.array(responses["text_hash"].to_pylist(), dtype=np.str_),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        tokens=tokens.slice(0, used),
        logprob_sums=responses["logprob_sum"].to_numpy(),
    )


def _check_responses(responses: pa.Table) -> None:
    """Columns that numpy would take whatever they hold: null becomes the text 'None',
    and a length below zero another response's tokens."""
    for name in ("probe_id", "kind", "text_hash", "trained", "n_tokens"):
        if responses[name].null_count:
            raise ValueError(f"column {name!r} of {RESPONSES} has empty cells")
    for name in ("probe_id", "kind", "text_hash"):
        if not pa.types.is_string(responses.schema.field(name).type):
            raise ValueError(f"column {name!r} of {RESPONSES} is not text")
    if not pa.types.is_boolean(responses.schema.field("trained").type):
        raise ValueError(f"column 'trained' of {RESPONSES} is not true or false")
    if not pa.types.is_int32(responses.schema.field("n_tokens").type):
        raise ValueError(f"column 'n_tokens' of {RESPONSES} is not int32")
    if not pa.types.is_floating(responses.schema.field("logprob_sum").type):
        raise ValueError(f"column 'logprob_sum' of {RESPONSES} is not floating point")
    if len(responses) and responses["n_tokens"].to_numpy().min() < 0:
        raise ValueError(f"{RESPONSES} has a response of less than no tokens")


def _token_scores(table: pa.Table) -> TokenScores:
    for name in ("token_ids", "logprobs"):
        if name not in table.column_names:
            raise ValueError(f"no column {name!r}")
    names = [field.name for field in dataclasses.fields(TokenScores)]
    tokens = TokenScores(**{name: _column(table, name) for name in names})
    check_types(tokens)
    return tokens


def _joined(manifest: Manifest, parts: list[ScoreTable]) -> ScoreTable:
    counts = np.concatenate([part.n_tokens for part in parts])
    return ScoreTable(
        manifest=manifest,
        probe_ids=np.concatenate([part.probe_ids for part in parts]),
        kinds=np.concatenate([part.kinds for part in parts]),
        trained=np.concatenate([part.trained for part in parts]),
        text_hashes=np.concatenate([part.text_hashes for part in parts]),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        tokens=TokenScores.concatenate([part.tokens for part in parts]),
        logprob_sums=np.concatenate([part.logprob_sums for part in parts]),
    )


def _column(table: pa.Table, name: str) -> Any:
    if name not in table.column_names:
        return None
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    kind = column.type
    if name in WIDE:
        if not pa.types.is_fixed_size_list(kind) or column.null_count:
            raise ValueError(f"column {name!r} of {TOKENS} is {kind}, or has gaps")
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"column {name!r} of {TOKENS} is {kind}, not numbers")
    if name not in WIDE:
        return column.to_numpy(zero_copy_only=False)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def _verify(path: Path, expected: Mapping[str, Any] | None) -> None:
    remedy = "Delete this step's folder and run the sweep again."
    if expected is None:
        raise StoreError(
            f"{path.parent / MANIFEST}: does not list {path.name}. {remedy}"
        )
    if not path.is_file():
        raise StoreError(f"{path}: is not there. {remedy}")
    copy = local_copy(path, str(expected.get("sha256")))
    with named(path, remedy, doing="read"), copy.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != expected.get("sha256"):
        raise StoreError(
            f"{path}: SHA-256 is {digest[:12]}… in {file_size(copy)} bytes, the "
            f"manifest says {str(expected.get('sha256'))[:12]}… in "
            f"{expected.get('bytes')}. It was changed or cut short. {remedy}"
        )


def _digest(manifest: Manifest, name: str) -> str:
    return str(manifest.files.get(name, {}).get("sha256"))


def load_run(run: str | Path) -> list[ScoreTable]:
    """All complete tables of a run, by step.

    Raises:
        StoreError: when there is none.
    """
    return [read_table(item.folder) for item in complete_steps(place(run))]
