"""Every reader, given anything, gives valid records or an error that names the file.

A sample of what scripts/campaign_fuzz.py does for longer; and each bug that it found.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.driving import joined, json_lines, parted
from tests.fuzz.mutate import mutated
from tests.fuzz.oracle import BrokenRule, alike, valid
from tests.fuzz.stored import RECORDS
from tests.fuzz.targets import TARGETS

SAMPLE = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_writers_wrote_is_accepted(name: str) -> None:
    target = TARGETS[name]
    assert all(target.check(seed) for seed in target.seeds())


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_whole_or_refused_by_name(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()

    @SAMPLE
    @given(st.integers(0, 2**32))
    def holds(seed: int) -> None:
        rng = random.Random(seed)
        target.check(mutated(rng.choice(seeds), target.form, rng))

    holds()


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_refused_by_name(name: str) -> None:
    check = TARGETS[name].check

    @SAMPLE
    @given(st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
    def holds(data: bytes) -> None:
        check(data)

    holds()


# ------------------------------------------------------------------ what was found once


def one_changed(name: str, at: list[str | int], value: Any, line: int = 0) -> bytes:
    """A target's first file, with one value of its JSON (of that line) replaced; text
    that is JSON is opened on the way."""
    seed = TARGETS[name].seeds()[0]
    second = None
    if "and" in TARGETS[name].form:
        seed, second = parted(seed)
    lines = seed.split(b"\n") if TARGETS[name].form == "lines" else [seed]
    lines[line] = json.dumps(_replaced(json.loads(lines[line]), at, value)).encode()
    data = b"\n".join(lines)
    return data if second is None else joined(data, second)


def _replaced(tree: Any, at: list[str | int], value: Any) -> Any:
    if not at:
        return value
    if isinstance(tree, str):
        return json.dumps(_replaced(json.loads(tree), at, value))
    tree[at[0]] = _replaced(tree[at[0]], at[1:], value)
    return tree


JSON_FOUND: list[tuple[str, list[str | int], Any]] = [
    ("probes", ["meta"], {"a": float("nan")}),
    ("probes", ["meta"], {"a": "\ud800"}),
    ("manifest", ["step"], "seven"),
    ("manifest", ["step"], True),
    ("manifest", ["n_tokens"], 10**30),
    ("manifest", ["notes"], "abc"),
    ("manifest", ["versions"], {"torch": "\ud800"}),
    ("manifest", ["excluded"], [{"\ud800": 1}]),
    ("trained", ["step"], True),
    ("trained", ["step"], 1.5),
    ("trained", ["step"], float("inf")),
    ("trained", ["tokens"], "5"),
    ("trained", ["examples"], "rice"),
    ("trained", ["examples"], [None]),
    ("harness", ["doc"], []),
    ("harness", ["resps", 0, 0, "token_ids"], [1.5, 2]),
    ("harness", ["resps", 0, 0, "token_ids"], [2**31, 2]),
    ("harness", ["resps", 0, 0, "token_ids"], ["1", "2"]),
    ("harness", ["resps", 0, 0, "logprobs"], [-1.0]),
    ("harness", ["resps", 0, 0, "top_ids"], [1, 2]),
    ("harness", ["resps", 0, 0, "span"], ["trl"]),
    ("harness", ["resps", 0, 0, "tier"], "none"),
    ("harness", ["resps", 0, 0, "versions"], {"torch": 2}),
    ("results", ["config"], [1]),
    ("levels", ["objective"], True),
    ("levels", ["steps"], [0.5, 1]),
    ("levels", ["columns", 0, "values"], ["1", "2"]),
    ("prediction", ["measured"], [[0.25, "inf"], [0.5, 0.5]]),
    ("prediction", ["measured"], [[0.25], [0.5]]),
    ("prediction", ["measured"], [[10**400, 1], [0.5, 0.5]]),
    ("prediction", ["factors"], "ab"),
    ("influence", ["settings"], []),
    ("influence", ["examples"], "xyz"),
    ("influence", ["projection"], {"error": "inf"}),
    ("risk", ["ranked_by"], None),
    ("index", ["weight_map"], {"a": "\0"}),
    ("index", ["weight_map"], {"a": "\ud800"}),
    ("index", ["weight_map"], {"a": "a" * 300}),
    ("index", ["weight_map"], {"a": ""}),
]


@pytest.mark.parametrize(("name", "at", "value"), JSON_FOUND)
def test_a_value_of_another_type_is_refused(
    name: str, at: list[str | int], value: Any
) -> None:
    assert not TARGETS[name].check(one_changed(name, at, value))


@pytest.mark.parametrize(
    "name", ["probes", "manifest", "trained", "harness", "results", "levels", "index"]
)
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
        b'{"a": 1, "a": 2}',
        b"\xff\xfe",
        b"\xef\xbb\xbf",
    ],
    ids=["deep list", "deep object", "long integer", "name twice", "UTF-16", "BOM"],
)
def test_text_that_trips_a_json_reader_is_refused(name: str, data: bytes) -> None:
    parts = "and" in TARGETS[name].form
    assert not TARGETS[name].check(joined(data, b"") if parts else data)


def test_a_name_given_twice_in_a_probe_is_refused() -> None:
    line = json_lines(RECORDS[:1])
    twice = line.replace(b'"trained": true', b'"trained": true, "trained": false')
    assert TARGETS["probes"].check(line)
    assert not TARGETS["probes"].check(twice)


def test_a_field_that_cannot_be_printed_is_named_by_its_escape() -> None:
    for record in (
        RECORDS[0] | {"\ud800": 1},
        RECORDS[0] | {"responses": {"chosen": "a", "\ud800": "b"}},
    ):
        assert not TARGETS["probes"].check(json_lines([record]))


def test_an_id_that_an_array_would_cut_is_refused() -> None:
    records = [RECORDS[0] | {"probe_id": name} for name in ("a", "a\0")]
    assert TARGETS["probes"].check(json_lines(records[:1]))
    assert not TARGETS["probes"].check(json_lines(records))


def test_metrics_that_no_float_can_hold_are_absent() -> None:
    rows = TARGETS["metrics"].seeds()[0].replace(b"-1.5", b"1" + b"0" * 400)
    assert TARGETS["metrics"].check(rows)
    assert not TARGETS["metrics"].check(rows.replace(b"2.0", b"9" * 5000))


def test_arrays_that_are_cut_are_refused() -> None:
    sink = io.BytesIO()
    np.save(sink, np.zeros((2, 17, 1)))
    whole = sink.getvalue()
    header = whole.replace(b"}", b"(")  # read as Python, it never ends
    for data in (b"", whole[:40], whole[:-1], header, whole[:6]):
        assert not TARGETS["array"].check(data)
    text, arrays = parted(TARGETS["levels"].seeds()[0])
    for data in (b"", arrays[:50], b"PK" + arrays[3:], arrays[:-30]):
        assert not TARGETS["levels"].check(joined(text, data))


def test_an_archive_under_the_name_of_an_array_is_refused() -> None:
    sink = io.BytesIO()
    np.savez(sink, a=np.zeros((2, 17, 1)))
    assert not TARGETS["array"].check(sink.getvalue())


def test_a_tensor_named_by_half_a_character_is_refused() -> None:
    data = TARGETS["header"].seeds()[0]
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["\ud800"] = header.pop("b")
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + data[8 + size :]
    assert not TARGETS["header"].check(data)


def _parquet_changed(
    data: bytes, change: Callable[[pa.Table], pa.Table], compression: str = "none"
) -> bytes:
    sink = io.BytesIO()
    table = change(pq.read_table(io.BytesIO(data)))
    pq.write_table(table, sink, compression=compression, use_dictionary=False)
    return sink.getvalue()


def _cell(name: str, value: Any, kind: pa.DataType | None = None) -> Any:
    """A change that puts a value into a column's first cell."""

    def change(table: pa.Table) -> pa.Table:
        at = table.column_names.index(name)
        values = [value, *table[name].to_pylist()[1:]]
        return table.set_column(
            at, name, pa.array(values, kind or table.schema.types[at])
        )

    return change


@pytest.mark.parametrize(
    ("file", "name", "value", "kind"),
    [
        (0, "probe_id", None, None),
        (0, "trained", None, None),
        (0, "n_tokens", None, None),
        (0, "n_tokens", -3, None),
        (0, "logprob_sum", 1, pa.int64()),
        (1, "token_ids", 0.5, pa.float64()),
        (1, "token_ids", None, None),
        (1, "logprobs", True, pa.bool_()),
        (1, "top_ids", None, None),
        (1, "top_ids", [1], pa.list_(pa.int32())),
    ],
)
def test_cells_that_numpy_would_bend_are_refused(
    file: int, name: str, value: Any, kind: pa.DataType | None
) -> None:
    files = list(parted(TARGETS["table"].seeds()[0]))
    change = _cell(name, value)
    if kind is not None:

        def change(table: pa.Table) -> pa.Table:
            at = table.column_names.index(name)
            return table.set_column(at, name, pa.array([value] * len(table), kind))

    files[file] = _parquet_changed(files[file], change)
    assert not TARGETS["table"].check(joined(*files))


@pytest.mark.parametrize("name", ["probe_id", "trained", "ids", "text", "ended"])
def test_decodes_with_an_empty_cell_are_refused(name: str) -> None:
    data = _parquet_changed(TARGETS["decodes"].seeds()[0], _cell(name, None))
    assert not TARGETS["decodes"].check(data)


@pytest.mark.parametrize("value", [True, 1.5])
def test_a_probe_dataset_with_meta_that_is_no_text_is_refused(value: Any) -> None:
    def change(table: pa.Table) -> pa.Table:
        at = table.column_names.index("meta")
        return table.set_column(at, "meta", pa.array([value] * len(table)))

    data = _parquet_changed(TARGETS["dataset"].seeds()[0], change)
    assert not TARGETS["dataset"].check(data)


@pytest.mark.parametrize("column", ["messages", "chosen"])
def test_a_probe_dataset_that_would_fill_memory_is_refused(column: str) -> None:
    def change(table: pa.Table) -> pa.Table:
        table = table.slice(0, 1)
        at, kind = table.column_names.index(column), table.schema.field(column).type
        if column == "chosen":
            huge = pa.array(["a" * (2**26 + 1)], kind)
        else:
            ends = pa.array([0, 2 * 10**6], pa.int32())
            nothing = pa.nulls(2 * 10**6, kind.value_type)
            huge = pa.ListArray.from_arrays(ends, nothing, type=kind)
        return table.set_column(at, column, huge)

    data = _parquet_changed(TARGETS["dataset"].seeds()[0], change, "zstd")
    assert len(data) < 10**5
    assert not TARGETS["dataset"].check(data)


def test_an_influence_table_with_half_a_kernel_is_refused() -> None:
    text, table = parted(TARGETS["influence"].seeds()[0])
    half = _parquet_changed(table, lambda found: found.drop_columns(["kernel_se"]))
    assert not TARGETS["influence"].check(joined(text, half))


# ------------------------------------------------------------------------- the rules


def test_the_rules_can_be_broken() -> None:
    from ldeval.records import Excluded

    odd: Any = 3
    with pytest.raises(BrokenRule, match="reason is 3"):
        valid(Excluded("a", "chosen", odd))
    with pytest.raises(BrokenRule, match=r"\[1\]: 2 became 3"):
        alike([1, 2], [1, 3])
    alike({"a": [float("nan")]}, {"a": [float("nan")]})
