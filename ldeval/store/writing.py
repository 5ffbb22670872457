"""Tables onto disk: whole or in parts, to the same bytes, the manifest last."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldeval.files import (
    place,
    refuse_link,
    remove,
    remove_tree,
    write_whole,
    written,
)
from ldeval.records import (
    Manifest,
    ScoreTable,
    TokenScores,
)
from ldeval.store.layout import (
    MANIFEST,
    RESPONSES,
    TOKENS,
    WIDE,
)
from ldeval.store.manifest import manifest_to_json

_TOKENS_PER_ROW_GROUP = 65_536


def write_table(folder: str | Path, table: ScoreTable) -> Manifest:
    """Write a table; its manifest last.

    Returns:
        The manifest as written, with the files' sizes and hashes.

    Raises:
        StoreError: when the disk is full or cannot be written, or the folder is a
            link; nothing that was complete before is touched then.
    """
    return write_parts(folder, table.manifest, [table])


def write_parts(
    folder: str | Path, manifest: Manifest, parts: Iterable[ScoreTable]
) -> Manifest:
    """Write a table that comes in parts, in order, so that it need not fit in memory.

    The files are the same to the last byte, however the responses were parted.

    Args:
        parts: at least one; whole responses each, all with the same columns.

    Returns, Raises: as :func:`write_table`.
    """
    folder = place(folder)
    refuse_link(folder)
    # incomplete leftovers of a killed run, or a table being replaced: without its
    # manifest it is incomplete from here on
    remove(folder / MANIFEST)
    remove_tree(folder)
    responses, tokens = folder / RESPONSES, folder / TOKENS
    with written(responses) as first, written(tokens) as second:
        start = 0
        with _Groups(first) as rows, _Groups(second) as columns:
            for part in parts:
                rows.add(_responses(part))
                columns.add(_tokens(part, start))
                start += len(part)
        files = {RESPONSES: _described(first), TOKENS: _described(second)}
    written_manifest = dataclasses.replace(manifest, files=files)
    record = manifest_to_json(written_manifest)
    write_whole(folder / MANIFEST, json.dumps(record, indent=1, ensure_ascii=False))
    return written_manifest


class _Groups:
    """A Parquet file in row groups of one size, whatever size its rows come in."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        """Take rows; write the groups that they fill."""
        self._waiting.append(rows)
        if sum(len(table) for table in self._waiting) < _TOKENS_PER_ROW_GROUP:
            return
        joined = pa.concat_tables(self._waiting)
        whole = len(joined) - len(joined) % _TOKENS_PER_ROW_GROUP
        for start in range(0, whole, _TOKENS_PER_ROW_GROUP):
            self._write(joined.slice(start, _TOKENS_PER_ROW_GROUP))
        self._waiting = [joined.slice(whole)]

    def __enter__(self) -> _Groups:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Write what is left; after an error, only let go of the handle."""
        try:
            if error is None:
                left = pa.concat_tables(self._waiting)
                if len(left) or self._writer is None:
                    self._write(left)
                self._close()
        except BaseException:
            self._abandon()
            raise
        if error is not None:
            self._abandon()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _abandon(self) -> None:
        with contextlib.suppress(OSError, pa.ArrowException):
            self._close()

    def _write(self, group: pa.Table) -> None:
        # one chunk a column: pages would else begin where chunks do
        group = group.combine_chunks()
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._handle, group.schema, compression="zstd"
            )
        self._writer.write_table(group, row_group_size=_TOKENS_PER_ROW_GROUP)


def _described(handle: BinaryIO) -> dict[str, Any]:
    handle.seek(0)
    digest = hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]
    return {"bytes": handle.tell(), "sha256": digest}


def _responses(table: ScoreTable) -> pa.Table:
    columns: dict[str, Any] = {
        "probe_id": pa.array(table.probe_ids.tolist(), pa.string()),
        "kind": pa.array(table.kinds.tolist(), pa.string()),
        "trained": table.trained,
        "text_hash": pa.array(table.text_hashes.tolist(), pa.string()),
        "n_tokens": table.n_tokens.astype(np.int32),
        "logprob_sum": table.logprob_sums,
    }
    if table.tokens.argmax_logprobs is not None:
        columns["argmax_logprob_sum"] = table.sums(table.tokens.argmax_logprobs)
    return pa.table(columns)


def _tokens(table: ScoreTable, start: int) -> pa.Table:
    """Rows of tokens; ``start``: responses that came before."""
    lengths = table.n_tokens
    numbers = np.arange(start, start + len(table), dtype=np.int32)
    columns: dict[str, Any] = {"response": np.repeat(numbers, lengths)}
    for field in dataclasses.fields(TokenScores):
        column = getattr(table.tokens, field.name)
        if column is None:
            continue
        if field.name in WIDE:
            flat = pa.array(np.ascontiguousarray(column).reshape(-1))
            columns[field.name] = pa.FixedSizeListArray.from_arrays(
                flat, column.shape[1]
            )
        else:
            columns[field.name] = column
    return pa.table(columns)
