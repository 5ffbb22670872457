"""Parquet files are what Arrow reads of them, unless they would fill the memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldeval.parquet import LARGEST, ParquetFile, read_parquet

COLUMNS = {
    "text": pa.array(["a", None, "b"]),
    "large text": pa.array(["a", None, "b"], pa.large_string()),
    "bytes": pa.array([b"a", None, b"\xff"]),
    "decimal": pa.array([Decimal("1.2"), None, Decimal("3.4")]),
    "dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
    "map": pa.array([[("a", "x")], None, []], pa.map_(pa.string(), pa.string())),
    "list": pa.array([["a"], None, ["b", "c"]]),
    "structs": pa.array([{"a": [{"b": "c"}]}, None, {"a": None}]),
    "vector": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
    "pair": pa.array([["1", "2"], None, ["3", "4"]], pa.list_(pa.string(), 2)),
    "time": pa.array([1, None, 3], pa.timestamp("ms", "UTC")),
    "half": pa.array([1, 2, 3], pa.float16()),
    "nothing": pa.nulls(3),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("arrow_schema", [True, False])
def test_columns_of_every_type_are_read(
    tmp_path: Path, name: str, arrow_schema: bool
) -> None:
    path = tmp_path / "file.parquet"
    table = pa.table({name: COLUMNS[name], "n": [1, 2, 3]})
    pq.write_table(table, path, store_schema=arrow_schema)
    expected = pq.read_table(path)
    found = read_parquet(path, lists=[name])
    assert found.equals(expected)
    assert found.schema.equals(expected.schema, check_metadata=True)
    with ParquetFile(path) as file:
        parts = list(file.batches(2))
        assert [part.num_rows for part in parts] == [2, 1]
        assert pa.Table.from_batches(parts).equals(expected)
        assert file.row_group(0, ["n"]).to_pydict() == {"n": [1, 2, 3]}


def test_views_become_texts(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    views = {
        "text": pa.array(
            ["a", None, "long enough to stand elsewhere"], pa.string_view()
        ),
        "bytes": pa.array([b"a", None, b"b"], pa.binary_view()),
    }
    pq.write_table(pa.table(views), path)
    assert read_parquet(path).to_pydict() == pa.table(views).to_pydict()


def test_columns_of_one_name_and_lists_that_are_not_expected_are_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file.parquet"
    pq.write_table(pa.table([[1], [2]], names=["n", "n"]), path)
    with pytest.raises(ValueError, match="two columns are called 'n'"):
        read_parquet(path)
    pq.write_table(pa.table({"a": [[1]], "b": [{"c": [1]}]}), path)
    with pytest.raises(ValueError, match="column 'b' holds lists"):
        read_parquet(path, lists=["a"])
    assert read_parquet(path, lists=["a", "b"]).num_rows == 1


# ------------------------------------------------------------------------------- bombs


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A process that is refused memory long before the machine has none left."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def one_text_many_times() -> pa.Table:
    index = pa.array([0] * 1000, pa.int32())
    text = pa.DictionaryArray.from_arrays(index, pa.array(["a" * 10**7]))
    return pa.table({"id": [str(n) for n in range(1000)], "text": text})


def inside_lists() -> pa.Table:
    flat = one_text_many_times()["text"].combine_chunks()
    ends = pa.array(range(1001), pa.int32())
    message = pa.StructArray.from_arrays([flat], ["content"])
    return pa.table({"messages": pa.ListArray.from_arrays(ends, message)})


def one_long_text() -> pa.Table:
    return pa.table({"text": ["a" * (LARGEST + 1)]})


def many_equal_numbers() -> pa.Table:
    return pa.table({"n": pa.array([7] * 10**7, pa.int64())})


def a_row_of_many_nulls() -> pa.Table:
    ends = pa.array([0, 3 * 10**6], pa.int32())
    nulls = pa.nulls(3 * 10**6, pa.string())
    return pa.table({"messages": pa.ListArray.from_arrays(ends, nulls)})


@pytest.mark.parametrize(
    "make",
    [
        one_text_many_times,
        inside_lists,
        one_long_text,
        many_equal_numbers,
        a_row_of_many_nulls,
    ],
)
def test_a_small_file_that_would_fill_memory_is_refused_before_it_does(
    tmp_path: Path, make: object, request: pytest.FixtureRequest
) -> None:
    assert callable(make)
    path = tmp_path / "file.parquet"
    pq.write_table(
        make(),
        path,
        compression="zstd",
        store_schema=False,
        dictionary_pagesize_limit=2**30,
        row_group_size=10**7,
    )
    assert path.stat().st_size < 70_000
    request.getfixturevalue("little_memory")
    for read in (_at_once, _row_by_row):
        with pytest.raises(ValueError, match=r"bytes unpack to .* over 1000 times"):
            read(path)


def _at_once(path: Path) -> None:
    read_parquet(path, lists=["messages"])


def _row_by_row(path: Path) -> None:
    with ParquetFile(path) as file:
        for _ in file.batches(10):
            pass


def test_texts_that_repeat_as_those_of_people_do_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    texts = [f"You are a helpful assistant. Question {n}?" * 9 for n in range(10**5)]
    pq.write_table(pa.table({"text": texts}), path, compression="zstd")
    assert len("".join(texts)) > LARGEST / 2
    assert read_parquet(path).num_rows == 10**5


DAMAGED = """
import io, sys, pathlib
import pyarrow as pa, pyarrow.parquet as pq
from ldeval.parquet import read_parquet
path = pathlib.Path(sys.argv[1])
pq.write_table(pa.table({"n": [1, 2, None], "t": [["a"], None, ["b"]]}), path)
whole, refused = path.read_bytes(), 0
footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
for at in range(footer, len(whole) - 8):
    for change in (1, 0x10, 0x80):
        damaged = bytearray(whole)
        damaged[at] ^= change
        path.write_bytes(damaged)
        try:
            read_parquet(path, lists=["t"])
        except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
            refused += 1
print(refused)
"""


def test_no_damage_of_a_footer_ends_the_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DAMAGED, str(tmp_path / "file.parquet")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
