"""Mutations that know a file's form: a value in JSON, a column of Parquet.

Raw bytes alone hardly pass a checksum or a bracket; these reach what lies behind.
"""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.driving import Form, joined, parted

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0),
    *(1e308, float("nan"), float("inf"), "", "a", "1", "é\u202e", "\0", "\ud800"),
    *("a" * 300, "chosen", [], {}, [[]], [None], {"": None}, [1, "a"], {"a": 1}),
)
"""Values that readers trip over."""
RAW = (
    *(b"NaN", b"-Infinity", b"1e999", b"\xff", b"\xef\xbb\xbf", b"\0", b"\r", b"\n"),
    *(b'{"a":1,"a":2}', b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b'"\\ud800"'),
    *(b"\xed\xa0\x80", b"\xc0\x80", b"\xe2\x80\xa8", b"true", b"null", b"-0"),
)
"""Text that readers trip over."""


def mutated(data: bytes, form: Form, rng: random.Random) -> bytes:
    """Other bytes: of the same form where that can be, else with bytes changed."""
    if rng.random() < 0.3:
        return raw(data, rng)
    if form in _PARTS:
        (first, second), (one, other) = parted(data), _PARTS[form]
        if rng.random() < 0.5:
            return joined(mutated(first, one, rng), second)
        return joined(first, mutated(second, other, rng))
    found = _OF_FORM[form](data, rng)
    return raw(data, rng) if found is None else found


def raw(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut out, doubled or put in."""
    buffer = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(buffer) + 1)
        act = rng.randrange(6)
        if act == 0 and at < len(buffer):
            buffer[at] = rng.randrange(256)
        elif act == 1 and at < len(buffer):
            buffer[at] ^= 1 << rng.randrange(8)
        elif act == 2:
            del buffer[at : at + rng.choice((1, 2, 8, 100))]
        elif act == 3:
            buffer[at:at] = buffer[at : at + rng.choice((1, 4, 30))]
        elif act == 4:
            buffer[at:at] = rng.choice(RAW)
        else:
            del buffer[at:]
    return bytes(buffer)


# -------------------------------------------------------------------------------- JSON


def _json(data: bytes, rng: random.Random) -> bytes | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = changed(value, rng)
    try:
        return json.dumps(value, ensure_ascii=rng.random() < 0.9).encode(
            "utf-8", "surrogatepass"
        )
    except (ValueError, RecursionError):
        return None


def _lines(data: bytes, rng: random.Random) -> bytes | None:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    act = rng.random()
    if act < 0.1:
        lines.insert(at, rng.choice(lines))
    elif act < 0.15:
        del lines[at]
    else:
        found = _json(lines[at], rng)
        if found is None:
            return None
        lines[at] = found
    return b"\n".join(lines)


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON tree with one place of it changed; JSON in its texts is a tree too."""
    inside = isinstance(value, dict | list) and value
    if isinstance(value, str) and value.startswith("{") and rng.random() < 0.9:
        try:
            return json.dumps(changed(json.loads(value), rng))
        except (ValueError, RecursionError):
            return rng.choice(ODD)
    if not inside or rng.random() < 0.1:
        return _other(value, rng)
    if isinstance(value, dict):
        value = dict(value)
        name = rng.choice(list(value))
        act = rng.random()
        if act < 0.1:
            del value[name]
        elif act < 0.2:
            other = rng.choice([*value, "x", "\ud800", "", "schema_version"])
            value[other] = value.pop(name)
        else:
            value[name] = changed(value[name], rng)
        return value
    value = list(value)
    at = rng.randrange(len(value))
    act = rng.random()
    if act < 0.1:
        del value[at]
    elif act < 0.2:
        value.insert(at, copy.copy(rng.choice(value)))
    else:
        value[at] = changed(value[at], rng)
    return value


def _other(value: Any, rng: random.Random) -> Any:
    act = rng.random()
    if act < 0.2 and isinstance(value, int) and abs(value) < 2**62:
        return value + rng.choice((-1, 1, 2**31, 2**32))
    if act < 0.3:
        return [value]
    if act < 0.4:
        return str(value) if act < 0.35 and abs_small(value) else {"a": value}
    return rng.choice(ODD)


def abs_small(value: Any) -> bool:
    """Whether its text is short: integers of many digits have none."""
    return not isinstance(value, int) or abs(value) < 2**64


# ----------------------------------------------------------------------------- Parquet

_TYPES = (
    *(pa.string(), pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.float32()),
    *(pa.float64(), pa.float16(), pa.bool_(), pa.binary(), pa.date32(), pa.null()),
    *(pa.timestamp("s"), pa.decimal128(9, 2), pa.list_(pa.int32()), pa.large_string()),
    *(pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.float32(), 4)),
    *(pa.struct([("a", pa.int32())]), pa.duration("s"), pa.time32("s")),
)


def _parquet(data: bytes, rng: random.Random) -> bytes | None:
    try:
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        for _ in range(rng.choice((1, 1, 2))):
            table = _column_changed(table, rng)
        sink = io.BytesIO()
        pq.write_table(
            table,
            sink,
            compression=rng.choice(("zstd", "none", "snappy")),
            use_dictionary=rng.random() < 0.5,
            row_group_size=rng.choice((1, 2, 1000)),
        )
        return sink.getvalue()
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError):
        return None


def _column_changed(table: pa.Table, rng: random.Random) -> pa.Table:
    if not table.num_columns:
        return table
    at = rng.randrange(table.num_columns)
    name, act = table.column_names[at], rng.randrange(7)
    column = table.column(at)
    if act == 0:
        return table.remove_column(at)
    if act == 1:
        return table.append_column(rng.choice(("x", name, "meta", "ranks")), column)
    if act == 2 and len(table):
        return table.take(rng.choices(range(len(table)), k=rng.randrange(6)))
    if act == 3 and table.schema.metadata:
        notes = {
            key: _json(text, rng) or raw(text, rng)
            for key, text in table.schema.metadata.items()
        }
        return table.replace_schema_metadata(notes)
    if act == 4:
        kind = rng.choice(_TYPES)
        return table.set_column(at, name, _cast(column, kind))
    values = column.to_pylist()
    if not values:
        return table
    where = rng.randrange(len(values))
    values[where] = changed(values[where], rng)
    kind = column.type if act == 5 else None
    return table.set_column(at, name, pa.array(values, kind))


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    try:
        return column.cast(kind, safe=False)
    except pa.ArrowException:
        return pa.nulls(len(column), kind)


# ------------------------------------------------------------------------- safetensors


def _header(data: bytes, rng: random.Random) -> bytes | None:
    size = int.from_bytes(data[:8], "little")
    header = _json(data[8 : 8 + size], rng)
    if header is None:
        return None
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


_OF_FORM: Mapping[str, Callable[[bytes, random.Random], bytes | None]] = {
    "json": _json,
    "lines": _lines,
    "parquet": _parquet,
    "header": _header,
    "bytes": raw,
}
_PARTS: Mapping[str, tuple[Form, Form]] = {
    "two parquet": ("parquet", "parquet"),
    "json and parquet": ("json", "parquet"),
    "json and bytes": ("json", "bytes"),
}
