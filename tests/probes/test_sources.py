"""Reading rows: every format gives the same rows, and a broken file says where."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldeval.errors import ProbeError
from ldeval.probes import sources
from ldeval.probes.sources import LONGEST_ROW, BadRow, Row, read_rows

ROWS = [
    {"prompt": f"Q{n}", "chosen": f'yes, "{n}"\nline two', "rejected": "nö 😀"}
    for n in range(600)
]


def values(path: Path, **options: str) -> list[Any]:
    rows = list(read_rows(path, **options))
    assert all(isinstance(row, Row) for row in rows)
    return [dict(row.values) for row in rows if isinstance(row, Row)]


def lines() -> str:
    return "".join(json.dumps(row) + "\n" for row in ROWS)


def comma_separated(delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "chosen", "rejected"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda p: p.write_text(lines(), "utf-8"),
    "bom.jsonl": lambda p: p.write_text(lines(), "utf-8-sig"),
    "lines.json": lambda p: p.write_text(lines(), "utf-8"),
    "array.json": lambda p: p.write_text(json.dumps(ROWS, indent=2), "utf-8"),
    "array.json.gz": lambda p: p.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "a.jsonl.gz": lambda p: p.write_bytes(gzip.compress(lines().encode())),
    "a.csv": lambda p: p.write_text(comma_separated(), "utf-8"),
    "a.tsv": lambda p: p.write_text(comma_separated("\t"), "utf-8"),
    "a.parquet": lambda p: pq.write_table(pa.Table.from_pylist(ROWS), p),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    assert values(path) == ROWS


def test_a_folder_gives_its_files_in_order_and_no_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/x.csv", ".hidden.jsonl", "README.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(comma_separated() if name.endswith("csv") else lines())
    rows = list(read_rows(tmp_path))
    assert len(rows) == 2 * len(ROWS)
    assert rows[0].place == "a/x.csv:2"
    assert rows[-1].place == "b.jsonl:600"


def test_a_saved_dataset_gives_its_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_list(ROWS)
    train.save_to_disk(str(tmp_path / "one"))
    assert values(tmp_path / "one") == ROWS
    both = datasets.DatasetDict({"train": train, "eval": train.select(range(3))})
    both.save_to_disk(str(tmp_path / "two"))
    assert values(tmp_path / "two", split="eval") == ROWS[:3]
    with pytest.raises(ProbeError, match=r"no split 'test'.*train, eval"):
        values(tmp_path / "two", split="test")


def test_json_in_a_saved_dataset_is_decoded_and_its_format_put_aside(
    tmp_path: Path,
) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"chosen": [{"role": "user", "content": f"a{n}"}, {"b": n}]} for n in (1, 2)
    ]
    features = datasets.Features({"chosen": datasets.List(datasets.Json())})
    saved = datasets.Dataset.from_list(rows, features=features)
    saved.with_format("numpy").save_to_disk(str(tmp_path / "one"))
    assert values(tmp_path / "one") == rows


def test_a_cell_of_a_saved_dataset_that_is_no_json_costs_its_row(
    tmp_path: Path,
) -> None:
    datasets = pytest.importorskip("datasets")
    for number, text in enumerate(("{", "[" * 100_000)):
        folder = tmp_path / str(number)
        cells = pa.array(["[1]", text], pa.json_())
        datasets.Dataset(pa.table({"a": cells})).save_to_disk(str(folder))
        bad = BadRow(f"{number}:2", "not valid JSON")
        assert list(read_rows(folder)) == [Row(f"{number}:1", {"a": [1]}), bad]


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"features": 3}', "[" * 100_000])
def test_a_saved_dataset_with_damaged_json_is_refused_by_name(
    tmp_path: Path, name: str, content: str
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS[:2]).save_to_disk(str(tmp_path / "one"))
    (tmp_path / "one" / name).write_text(content)
    with contextlib.suppress(ProbeError):  # {} says nothing of features, and may
        assert values(tmp_path / "one") == ROWS[:2]


def test_elements_of_an_array_are_decoded_across_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "JSON_CHUNK", 7)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS[:20], indent=3))
    assert values(path) == ROWS[:20]


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers(), max_size=3)))
def test_any_array_of_objects_reads_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(rows))
    assert values(path) == rows


def test_a_line_that_is_no_json_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    deep = b"[" * 100_000
    path.write_bytes(b'{"a": 1}\n{"a": \nnull\n\xff\n\n' + deep + b'\n{"a": 2}\n')
    rows = list(read_rows(path))
    assert [type(row) for row in rows] == [Row, BadRow, BadRow, BadRow, BadRow, Row]
    reasons = [(r.place, r.reason) for r in rows if isinstance(r, BadRow)]
    assert reasons == [
        ("a.jsonl:2", "not valid JSON"),
        ("a.jsonl:3", "not a JSON object"),
        ("a.jsonl:4", "not UTF-8"),
        ("a.jsonl:6", "not valid JSON"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", b'prompt,chosen\na,b\nc,"open\nd,e\n', r"q.csv:3: .*unexpected end"),
        ("m.csv", b'prompt,chosen\na,"b"c\n', r"m.csv:2: .*expected after"),
        ("u.csv", b"prompt,chosen\na,\xff\n", "not UTF-8"),
        ("c.json", b'[{"a": 1}, {"a": ', "not valid JSON after element 1"),
        ("c.parquet", b"PAR1 no more", "not valid Parquet after row 0"),
        ("c.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9999)[:-20], "cannot be read on"),
        ("x.txt", b"hello", r"ending that is not known \(.txt\)"),
    ],
)
def test_a_broken_file_is_an_error_that_says_where(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ProbeError, match=message):
        list(read_rows(path))


def test_a_csv_row_with_too_few_fields_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected\na,b\n\nc,d,e\n")
    bad, good = read_rows(path)
    assert isinstance(bad, BadRow)
    assert (bad.place, good.place) == ("a.csv:2", "a.csv:4")


def test_a_large_csv_field_is_read_and_the_limit_put_back(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,chosen\na,{'x' * 1_000_000}\n")
    (row,) = read_rows(path)
    assert isinstance(row, Row)
    assert len(row.values["chosen"]) == 1_000_000
    assert csv.field_size_limit() == before


def packed(path: Path, parts: Iterable[bytes]) -> Path:
    """A .gz of parts, which are never together in memory."""
    with gzip.open(path, "wb") as handle:
        for part in parts:
            handle.write(part)
    return path


def endless(text: bytes = b"a") -> list[bytes]:
    """Four times as long as a row may be."""
    part = text * (2**20 // len(text))
    return [part] * (4 * LONGEST_ROW // 2**20)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """The block holds fewer bytes at once than the endless line has."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3.5 * LONGEST_ROW


@pytest.mark.parametrize("character", [b"a", b" "])
def test_a_line_without_end_is_told_and_the_rest_is_read(
    tmp_path: Path, character: bytes
) -> None:
    row = [b'{"a": 1}\n', b'{"a": "', *endless(character), b'"}\n', b'{"a": 2}\n']
    path = packed(tmp_path / "a.jsonl.gz", row)
    assert path.stat().st_size < 10**5
    with little_memory():
        rows = list(read_rows(path))
    assert rows == [
        Row("a.jsonl.gz:1", {"a": 1}),
        BadRow("a.jsonl.gz:2", f"longer than {LONGEST_ROW:,} bytes"),
        Row("a.jsonl.gz:3", {"a": 2}),
    ]


def test_empty_space_without_end_is_told(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.jsonl.gz", endless(b" "))
    with little_memory():
        (bad,) = read_rows(path)
    assert bad == BadRow("a.jsonl.gz:1", f"longer than {LONGEST_ROW:,} bytes")


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("a.json.gz", [b'[{"a": 1}, {"a": "', *endless()], "element 2 is not valid"),
        ("a.csv.gz", [b"a,b\n1,2\n", *endless()], "csv.gz:3: .*longer than"),
        (
            "a.csv.gz",
            [b"a,b\n1,2\n", *endless(b'"' + b"a" * 999 + b'\n",')],
            "csv.gz:3: .*longer than",
        ),
        ("a.csv.gz", endless(), r"csv.gz:\d: .*longer than"),
    ],
    ids=["element", "line", "record of many lines", "header"],
)
def test_a_record_without_end_is_refused_by_its_place(
    tmp_path: Path, name: str, parts: list[bytes], message: str
) -> None:
    path = packed(tmp_path / name, parts)
    with little_memory(), pytest.raises(ProbeError, match=message):
        list(read_rows(path))


def test_a_source_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="does not exist"):
        list(read_rows(tmp_path / "no.jsonl"))
    with pytest.raises(ProbeError, match="holds no data files"):
        list(read_rows(tmp_path))


def test_the_name_of_a_dataset_that_cannot_be_had_says_so() -> None:
    """In a process of its own: ``datasets`` reads the offline switch at import."""
    code = (
        "from ldeval.probes.sources import read_rows\n"
        "from ldeval.errors import ProbeError\n"
        "try: list(read_rows('nobody/no-such-dataset'))\n"
        "except ProbeError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert "nobody/no-such-dataset: cannot be loaded" in done.stdout
    assert "is it the name of a dataset on the Hub" in done.stdout
