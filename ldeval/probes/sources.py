"""Rows out of files: JSON Lines, JSON, CSV, Parquet, folders, ``datasets`` names.

Apart from :mod:`examples`, which gives rows a meaning, so that a new file format never
touches a preference format. Everything streams: one row, or one small batch of a
columnar file, is in memory at a time. A row that cannot be read is yielded as a
:class:`BadRow`, to be counted and listed; a file that cannot be read on is an error.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ldeval.errors import MissingExtraError, ProbeError
from ldeval.files import lenient_json

BATCH_ROWS = 256
"""Rows of a columnar file that are decoded at a time."""
LONGEST_ROW = 16 * 2**20
"""Characters (of JSON Lines: bytes) of one record; a context of a million tokens has
four million. A packed file of kilobytes can hold a line without end."""
JSON_CHUNK = 2**20
"""Characters that are read at a time from a file that holds one JSON array."""

_BETWEEN = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Row:
    """One record of a source."""

    place: str
    """File and line (or row), for messages and for ``meta.row``."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A record that could not be read."""

    place: str
    reason: str


def read_rows(source: str | Path, *, split: str = "train") -> Iterator[Row | BadRow]:
    """The rows of a file, a folder, a saved dataset or a ``datasets`` name.

    Args:
        source: an existing path, or else the name of a dataset on the Hub.
        split: which split of a dataset with several.

    Raises:
        ProbeError: when there is no such source, or it cannot be read on.
    """
    path = Path(source)
    if path.is_file():
        yield from _file(path, path.name)
    elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from _saved(path, split)
    elif path.is_dir():
        yield from _folder(path)
    elif str(source).count("/") <= 1 and _reader(path) is None:
        yield from _named(str(source), split)
    else:
        raise ProbeError(
            "does not exist.",
            path=path,
            remedy="Give a file, a folder of files, or the name of a dataset.",
        )


def data_files(folder: Path) -> list[Path]:
    """The data files of a folder, in the order of their names; hidden ones aside."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and _reader(path) is not None
        and not any(p.startswith((".", "_")) for p in path.relative_to(folder).parts)
        and path.name not in ("dataset_info.json", "dataset_infos.json")
    )


def _folder(folder: Path) -> Iterator[Row | BadRow]:
    files = data_files(folder)
    if not files:
        raise ProbeError(
            "holds no data files.",
            path=folder,
            remedy=f"Valid endings: {', '.join(_READERS)}, each also with .gz.",
        )
    for path in files:
        yield from _file(path, path.relative_to(folder).as_posix())


def _reader(path: Path) -> Callable[[Path, str], Iterator[Row | BadRow]] | None:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return _READERS.get(suffix.lower())


def _file(path: Path, name: str) -> Iterator[Row | BadRow]:
    reader = _reader(path)
    if reader is None:
        raise ProbeError(
            f"has an ending that is not known ({path.suffix or 'none'}).",
            path=path,
            remedy=f"Valid endings: {', '.join(_READERS)}, each also with .gz.",
        )
    try:
        yield from reader(path, name)
    except (OSError, EOFError) as error:  # a cut .gz raises EOFError
        reason = getattr(error, "strerror", None) or str(error)
        raise ProbeError(
            f"cannot be read on ({reason}).",
            path=path,
            remedy="Is the file whole? Copy or export it again.",
        ) from error


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _record(value: object, place: str) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(place, value)
    return BadRow(place, "not a JSON object")


# --------------------------------------------------------------------------- JSON


def _json_lines(path: Path, name: str) -> Iterator[Row | BadRow]:
    with _open(path) as handle:
        lines = iter(lambda: handle.readline(LONGEST_ROW + 1), b"")
        for number, line in enumerate(lines, 1):
            place = f"{name}:{number}"
            if len(line) > LONGEST_ROW:
                yield BadRow(place, f"longer than {LONGEST_ROW:,} bytes")
                _pass_line(handle, line)
                continue
            if not line.strip():
                continue
            try:
                value = lenient_json(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield BadRow(place, "not UTF-8")
            except ValueError:
                yield BadRow(place, "not valid JSON")
            else:
                yield _record(value, place)


def _pass_line(handle: BinaryIO, part: bytes) -> None:
    """Read on to the end of a line, and keep nothing of it."""
    while part and not part.endswith(b"\n"):
        part = handle.readline(JSON_CHUNK)


def _json(path: Path, name: str) -> Iterator[Row | BadRow]:
    """One array of objects; or, as many tools name it so, JSON Lines."""
    with _open(path) as handle:
        start = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        yield from _json_array(path, name)
    else:
        yield from _json_lines(path, name)


def _json_array(path: Path, name: str) -> Iterator[Row | BadRow]:
    """The elements of an array, decoded one by one as the file is read."""
    decoder = json.JSONDecoder()
    with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as handle:
        buffer, at, number = _chunk(handle, path), 0, 0
        at = buffer.index("[") + 1
        while True:
            at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]  # may be empty
            if buffer.startswith("]", at):
                return
            try:
                value, at = decoder.raw_decode(buffer, at)
            except (ValueError, RecursionError):
                # doubling, so that one huge element is not decoded once a chunk
                held = len(buffer) - at
                if held > LONGEST_ROW:
                    raise ProbeError(
                        f"element {number + 1} is not valid JSON, or longer than "
                        f"{LONGEST_ROW:,} characters.",
                        path=path,
                        remedy="Was the file exported whole? Take the element out.",
                    ) from None
                size = min(max(JSON_CHUNK, held), LONGEST_ROW + 1 - held)
                more = _chunk(handle, path, size)
                if not more:
                    raise ProbeError(
                        f"is not valid JSON after element {number}.",
                        path=path,
                        remedy="Was the file cut short? Export it again.",
                    ) from None
                buffer, at = buffer[at:] + more, 0
                continue
            number += 1
            yield _record(value, f"{name}:{number}")


def _chunk(handle: io.TextIOBase, path: Path, size: int = JSON_CHUNK) -> str:
    try:
        return handle.read(size)
    except UnicodeDecodeError as error:
        raise ProbeError(
            f"is not UTF-8 ({error.reason} at byte {error.start} of a chunk).",
            path=path,
            remedy="Export it as UTF-8.",
        ) from error


# ---------------------------------------------------------------------------- CSV


@contextmanager
def _wide_fields() -> Iterator[None]:
    """The limit is the module's, for the whole process: set it, put it back."""
    before = csv.field_size_limit(LONGEST_ROW)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class _Lines:
    """Lines of a file, until those of one record are too many to be held."""

    def __init__(self, handle: io.TextIOWrapper) -> None:
        self._handle = handle
        self.record = 0
        """Characters since the record began; whoever has read it sets 0."""

    def __iter__(self) -> Iterator[str]:
        while line := self._handle.readline(LONGEST_ROW + 1):
            self.record += len(line)
            if self.record > LONGEST_ROW:
                raise csv.Error(f"longer than {LONGEST_ROW:,} characters")
            yield line


def _csv(path: Path, name: str) -> Iterator[Row | BadRow]:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    with _open(path) as raw, _wide_fields():
        handle = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        # strict: otherwise a quote that is never closed swallows the rest of the file
        lines = _Lines(handle)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        started = 1
        try:
            header = next(reader, [])
            lines.record = 0
            for values in reader:
                place = f"{name}:{started + 1}"
                started, lines.record = reader.line_num, 0
                if not values:
                    continue
                if len(values) != len(header):
                    yield BadRow(place, "another number of fields than the header")
                else:
                    yield Row(place, dict(zip(header, values, strict=True)))
        except csv.Error as error:
            raise ProbeError(
                f"the record that begins here is not valid CSV ({error}).",
                path=path,
                line=started + 1,
                remedy="Close the quote; inside a quoted field a quote is doubled.",
            ) from error
        except UnicodeDecodeError as error:
            raise ProbeError(
                f"is not UTF-8 ({error.reason}).",
                path=path,
                line=started + 1,
                remedy="Export it as UTF-8.",
            ) from error


# ----------------------------------------------------------- columnar files, datasets


def _parquet(path: Path, name: str) -> Iterator[Row | BadRow]:
    import pyarrow as pa

    from ldeval.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.batches(BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{name}:{number}", values)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ProbeError(
            f"is not valid Parquet after row {number} ({error}).",
            path=path,
            remedy="Is the file whole? Copy or export it again.",
        ) from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "train") from error
    return datasets


def _saved(folder: Path, split: str) -> Iterator[Row | BadRow]:
    """What ``Dataset.save_to_disk`` wrote; memory-mapped, so it never is in memory."""
    import pyarrow as pa

    datasets = _datasets()
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (*_NO_DATASET, pa.ArrowException) as error:
        raise ProbeError(
            f"is not a saved dataset that can be read ({error}).",
            path=folder,
            remedy="Save it again with save_to_disk.",
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ProbeError(
                f"has no split {split!r}.",
                path=folder,
                remedy=f"Its splits: {', '.join(loaded)}; choose one with --split.",
            )
        loaded = loaded[split]
    kept = _closed(loaded.features)
    stored = loaded.with_format("arrow")
    for start in range(0, len(stored), BATCH_ROWS):
        rows = stored[start : start + BATCH_ROWS].to_pylist()
        for number, values in enumerate(rows, start + 1):
            place = f"{folder.name}:{number}"
            try:
                row: Row | BadRow = Row(place, kept.decode_example(values))
            except (ValueError, RecursionError):
                row = BadRow(place, "not valid JSON")
            yield row


_NO_DATASET = (
    OSError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What ``datasets`` raises at a folder whose JSON is not what it writes itself."""


def _closed(features: Any) -> Any:
    """Features by which nothing is opened that a row names.

    An image, a sound or a film may be stored as a path or an address, and would be
    fetched when its row is read; here it stays what is stored. JSON alone is decoded.
    """
    closed = features.copy()
    _close(dict(closed))
    return type(features)(closed)  # made anew: it notes at once what to decode


def _close(feature: Any) -> None:
    if isinstance(feature, dict):
        for part in feature.values():
            _close(part)
    elif isinstance(feature, list | tuple):
        for part in feature:
            _close(part)
    elif hasattr(feature, "feature"):  # a list's
        _close(feature.feature)
    elif hasattr(feature, "decode") and type(feature).__name__ != "Json":
        feature.decode = False


def _named(name: str, split: str) -> Iterator[Row | BadRow]:
    datasets = _datasets()
    try:
        stream = datasets.load_dataset(name, split=split, streaming=True)
        for number, values in enumerate(_streamed(stream), 1):
            yield Row(f"{name}/{split}:{number}", values)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise ProbeError(
            f"cannot be loaded ({reason[0] if reason else type(error).__name__}).",
            path=name,
            remedy="There is no such file here; is it the name of a dataset on the "
            "Hub, with this split, and can the Hub be reached?",
        ) from error


def _streamed(stream: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a stream, with nothing opened that they name."""
    if stream.features is None:  # then nothing is decoded either
        yield from stream
        return
    kept = _closed(stream.features)
    for values in stream.decode(False):
        yield kept.decode_example(values)


_READERS: Mapping[str, Callable[[Path, str], Iterator[Row | BadRow]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
