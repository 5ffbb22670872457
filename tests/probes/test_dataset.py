"""A probe set as a dataset folder: the same probes come back, in the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldeval.bundled import bundled_probes
from ldeval.errors import ProbeError
from ldeval.probes import (
    dataset,
    parse_probe,
    probe_to_record,
    read_probes,
)
from ldeval.probes.quality import check_probes
from ldeval.records import KIND_NAMES, Probe
from ldeval.report.probe_card import write_probe_dataset


def awkward() -> list[Probe]:
    turn = {"role": "user", "content": "a\x00\u2028 {{ x }}"}
    items: list[dict[str, Any]] = [
        {
            "probe_id": "text |<b>",
            "prompt": "",
            "trained": True,
            "responses": {"chosen": " é\x1b😀\n", "permuted": "x"},
            "meta": {"sources": {"chosen": "s:1"}, "other": [1, None, {"a": 2.5}]},
        },
        {
            "probe_id": "messages",
            "prompt": [turn, {"role": "assistant", "content": ""}, turn],
            "trained": False,
            "responses": {"chosen": "y"},
        },
    ]
    items[0]["prompt"] = "plain"
    return [parse_probe(item) for item in items]


@pytest.mark.parametrize("which", ["awkward", "bundled"])
def test_what_is_written_reads_back_alike(tmp_path: Path, which: str) -> None:
    bundled = read_probes(bundled_probes())
    probes = awkward() if which == "awkward" else list(bundled)
    assert write_probe_dataset(tmp_path / "d", probes) == len(probes)
    back = read_probes(tmp_path / "d")
    assert [probe_to_record(p) for p in back] == [probe_to_record(p) for p in probes]
    if which == "bundled":
        assert back.content_hash == bundled.content_hash
        assert check_probes(tmp_path / "d").content_hash == bundled.content_hash


def test_the_same_probes_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_probe_dataset(tmp_path / name, awkward())
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            other = tmp_path / "b" / path.relative_to(tmp_path / "a")
            assert path.read_bytes() == other.read_bytes()


def test_many_probes_are_sharded_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SHARD_ROWS", 40)
    monkeypatch.setattr(dataset, "BATCH_ROWS", 7)
    probes = list(read_probes(bundled_probes()))
    write_probe_dataset(tmp_path / "d", probes)
    assert len(list((tmp_path / "d" / "data").iterdir())) == 3
    assert [p.probe_id for p in read_probes(tmp_path / "d")] == [
        p.probe_id for p in probes
    ]


def test_datasets_loads_the_folder_as_its_card_says(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    probes = read_probes(bundled_probes())
    write_probe_dataset(tmp_path / "d", probes)
    loaded = datasets.load_dataset(
        str(tmp_path / "d"), split="probes", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == len(probes)
    for row, probe in zip(loaded, probes, strict=True):
        assert row["probe_id"] == probe.probe_id
        for kind in KIND_NAMES:
            found = probe.responses.get(kind)
            assert row[kind] == (None if found is None else found.text)
    card = (tmp_path / "d" / "README.md").read_text()
    assert f"{len(probes)}" not in card.split("---")[1]
    assert "| irrelevant\\_train |" in card or "| irrelevant_train |" in card


def test_the_harness_tasks_read_a_dataset_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldeval.harness import PROBES_VARIABLE, ProbeTask

    probes = list(read_probes(bundled_probes()))
    write_probe_dataset(tmp_path / "d", probes[:5])
    monkeypatch.setenv(PROBES_VARIABLE, str(tmp_path / "d"))
    config = {"task": "ldyn_chosen", "kind": "chosen"}
    docs = list(ProbeTask(config).test_docs())
    assert docs == [probe_to_record(p) for p in probes[:5]]
    write_probe_dataset(tmp_path / "d", probes[5:12])
    for path in (tmp_path / "d" / "data").iterdir():
        os.utime(path, (2e9, 2e9))  # file systems with coarse clocks
    assert len(list(ProbeTask(config).test_docs())) == 7, (
        "a changed folder is read anew"
    )


def test_a_folder_that_holds_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ProbeError, match="is no probe dataset"):
        write_probe_dataset(tmp_path / "mine", awkward())
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_build_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    write_probe_dataset(tmp_path / "d", awkward())

    def failing() -> Any:
        yield awkward()[0]
        raise ProbeError("enough")

    with pytest.raises(ProbeError, match="enough"):
        write_probe_dataset(tmp_path / "d", failing())
    assert len(read_probes(tmp_path / "d")) == 2


def test_preference_parquet_is_not_taken_for_probes(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([{"prompt": "a", "chosen": "b"}]), path)
    with pytest.raises(ProbeError, match="'ldeval probes build'"):
        read_probes(path)


def test_a_damaged_file_says_which(tmp_path: Path) -> None:
    write_probe_dataset(tmp_path / "d", awkward())
    (path,) = (tmp_path / "d" / "data").iterdir()
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ProbeError, match=r"probes-00000\.parquet: cannot be read"):
        read_probes(tmp_path / "d")
    shutil.rmtree(tmp_path / "d" / "data")
    with pytest.raises(ProbeError, match="holds no Parquet files"):
        read_probes(tmp_path / "d")


def test_a_row_is_validated_as_a_line_is(tmp_path: Path) -> None:
    write_probe_dataset(tmp_path / "d", awkward())
    (path,) = (tmp_path / "d" / "data").iterdir()
    table = pq.read_table(path).to_pylist()
    table[1]["chosen"] = " "
    schema = pq.read_schema(path)
    pq.write_table(pa.Table.from_pylist(table, schema=schema), path)
    with pytest.raises(
        ProbeError, match=r"parquet:2: field 'responses.chosen': is empty"
    ):
        read_probes(tmp_path / "d")
    table[1]["chosen"], table[0]["meta"] = "y", "{broken"
    pq.write_table(pa.Table.from_pylist(table, schema=schema), path)
    with pytest.raises(ProbeError, match=r"parquet:1: field 'meta'"):
        read_probes(tmp_path / "d")


def test_export_and_the_sweep_of_a_dataset_need_only_the_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ldeval.cli", "probes"]
    done = subprocess.run(
        [*command, "export", "-o", str(tmp_path / "d")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "96 probes" in done.stdout
    done = subprocess.run(
        [*command, "check", str(tmp_path / "d")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "96 probes" in done.stdout
