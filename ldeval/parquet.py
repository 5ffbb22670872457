"""Parquet files read without more memory than what is in them deserves.

A file of a few kilobytes can hold one text of megabytes and a thousand rows that repeat
it, or a billion equal numbers. What a file would unpack to is therefore computed before
it is unpacked: of its numbers from how many rows there are, of its texts from their
dictionaries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ldeval.printable import quoted

LARGEST = 2**26
"""Bytes that any file may unpack to, however small it is."""
RATIO = 1000
"""How many times its own size a file may unpack to beyond that. Texts of people and of
models come to tens, log-probabilities to less than two."""
_WIDTHS = {
    "BOOLEAN": 1,
    "INT32": 4,
    "INT64": 8,
    "INT96": 12,
    "FLOAT": 4,
    "DOUBLE": 8,
    "BYTE_ARRAY": 32,
}
"""Bytes of a value; of a text, those around it. Others have their own length."""


class ParquetFile:
    """A file whose rows are read part by part; texts unpack once their size is known.

    Args:
        lists: columns that may hold lists; None: all. How long one is, is known only
            once it is unpacked, so that there should be no more than are needed.
        checksums: check those of the pages.

    Raises:
        ValueError: two columns have one name, another column holds lists; or the file,
            or a part while it is read, unpacks to far more than what a file of its
            size can honestly hold.
        OSError, pa.ArrowException: it is no Parquet file, or damaged.
    """

    def __init__(
        self,
        path: Path,
        *,
        lists: Collection[str] | None = None,
        checksums: bool = False,
    ) -> None:
        options = {"page_checksum_verification": checksums, "pre_buffer": False}
        with pq.ParquetFile(path, **options) as file:
            self._packed = path.stat().st_size
            _check_rows(self._packed, file)
            self.schema = _without_views(file.schema_arrow)
            """Of the parts that are read; texts are plain there."""
            self.metadata: pq.FileMetaData = file.metadata
            leaves = _leaves(file)
        _check_columns(self.schema.names, leaves, lists)
        self._unpacked = 0
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        self._file = pq.ParquetFile(path, read_dictionary=texts, **options)

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows, at most so many at once."""
        for batch in self._file.iter_batches(batch_size=rows, use_threads=False):
            yield self._plain(batch)

    def row_group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group, or some of its columns."""
        found = self._file.read_row_group(number, columns=columns, use_threads=False)
        return self._plain(found)

    def read(self) -> pa.Table:
        """The whole file."""
        return self._plain(self._file.read(use_threads=False))

    def _plain(self, part: Any) -> Any:
        """A part with plain texts, if there is room for them."""
        self._unpacked += sum(map(_unpacked_bytes, part.columns))
        _check(self._packed, self._unpacked)
        names = part.schema.names
        fields = [self.schema.field(self.schema.get_field_index(n)) for n in names]
        return part.cast(pa.schema(fields, self.schema.metadata))


def read_parquet(
    path: Path, *, lists: Collection[str] = (), checksums: bool = False
) -> pa.Table:
    """The whole file; raises what :class:`ParquetFile` does."""
    with ParquetFile(path, lists=lists, checksums=checksums) as file:
        return file.read()


def _leaves(file: pq.ParquetFile) -> list[Any]:
    return [file.schema.column(n) for n in range(len(file.schema))]


def _check_columns(
    names: Sequence[str], leaves: Sequence[Any], lists: Collection[str] | None
) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two columns are called {quoted(name)}")
    for leaf in leaves:
        name = leaf.path.partition(".")[0]
        if leaf.max_repetition_level and lists is not None and name not in lists:
            raise ValueError(f"column {quoted(name)} holds lists")


def _without_views(schema: pa.Schema) -> pa.Schema:
    """Arrow casts no dictionary to a view."""
    for at, field in enumerate(schema):
        if pa.types.is_string_view(field.type):
            schema = schema.set(at, field.with_type(pa.string()))
        elif pa.types.is_binary_view(field.type):
            schema = schema.set(at, field.with_type(pa.binary()))
    return schema


def _check_rows(packed: int, file: pq.ParquetFile) -> None:
    """Refuse what the rows would unpack to, each of one number or text a column.

    Of row groups alone: where a damaged file says something odd of a column, PyArrow 26
    ends the process when it is asked for what is said there.
    """
    flat = [leaf for leaf in _leaves(file) if not leaf.max_repetition_level]
    width = sum(_WIDTHS.get(leaf.physical_type, leaf.length) for leaf in flat)
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    _check(packed, sum(g.total_byte_size + g.num_rows * width for g in groups))


def _check(packed: int, unpacked: int) -> None:
    if unpacked > max(LARGEST, RATIO * packed):
        raise ValueError(
            f"{packed} bytes unpack to {unpacked} or more, over {RATIO} times as many"
        )


def _unpacked_bytes(column: Any) -> int:
    """Bytes of a column once its texts are plain."""
    if isinstance(column, pa.ChunkedArray):
        return sum(map(_unpacked_bytes, column.chunks))
    kind = column.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(column.dictionary).cast(pa.int64())
        texts = pc.sum(lengths.take(column.indices)).as_py() or 0
        return texts + len(column) * _WIDTHS["BYTE_ARRAY"]
    if pa.types.is_struct(kind):
        return sum(_unpacked_bytes(part) for part in column.flatten())
    if pa.types.is_map(kind):
        return _unpacked_bytes(column.keys) + _unpacked_bytes(column.items)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _unpacked_bytes(column.flatten())
    if pa.types.is_fixed_size_list(kind):
        return _unpacked_bytes(column.flatten())
    return int(column.nbytes)
