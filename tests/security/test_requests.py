"""Reading data of others makes the machine ask nothing of any server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ldeval.probes.sources import Row, _streamed, read_rows
from tests.security.answering import JsonHandler, served


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """An address, and what was asked there so far."""
    asked: list[str] = []

    class Handler(JsonHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.answer(404, {})

        do_HEAD = do_GET

    with served(Handler) as address:
        yield f"http://{address}/image.png", asked


def media_row(path: str) -> dict[str, Any]:
    """A row with an image, alone, in a struct and in a list, stored as a path."""
    stored = {"bytes": None, "path": path}
    return {
        "prompt": "Q",
        "image": stored,
        "inner": {"image": stored},
        "images": [stored],
    }


def media_table(path: str) -> pa.Table:
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    fields = {
        "prompt": pa.string(),
        "image": image,
        "inner": pa.struct({"image": image}),
        "images": pa.list_(image),
    }
    return pa.Table.from_pylist([media_row(path)], pa.schema(fields))


def media_features(datasets: Any, kind: str) -> Any:
    """Features that say what the row's paths are."""
    media = getattr(datasets, kind)()
    return datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "image": media,
            "inner": {"image": media},
            "images": datasets.List(media),
        }
    )


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video"])
def test_a_saved_dataset_fetches_no_image_that_a_row_names(
    tmp_path: Path, kind: str
) -> None:
    datasets = pytest.importorskip("datasets")
    with listening() as (address, asked):
        table = media_table(address)
        datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
        about = tmp_path / "saved" / "dataset_info.json"
        record = json.loads(about.read_text())
        record["features"] = media_features(datasets, kind).to_dict()
        about.write_text(json.dumps(record))
        (row,) = read_rows(tmp_path / "saved")
    assert isinstance(row, Row)
    assert row.values == media_row(address)
    assert asked == []


@pytest.mark.parametrize("threads", [0, 2])
def test_a_stream_fetches_no_image_that_a_row_names(
    tmp_path: Path, threads: int
) -> None:
    datasets = pytest.importorskip("datasets")
    with listening() as (address, asked):
        import pyarrow.parquet as pq

        pq.write_table(media_table(address), tmp_path / "a.parquet")
        stream = datasets.load_dataset(
            "parquet",
            data_files=str(tmp_path / "a.parquet"),
            features=media_features(datasets, "Image"),
            split="train",
            streaming=True,
            cache_dir=str(tmp_path / "cache"),
        )
        # a remote one is decoded by threads before its rows are seen
        stream = stream.decode(num_threads=threads)
        assert list(_streamed(stream)) == [media_row(address)]
    assert asked == []


def test_a_local_file_that_a_row_names_is_not_opened(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = str(tmp_path / "not-there.png")
    datasets.Dataset(media_table(path)).save_to_disk(str(tmp_path / "saved"))
    about = tmp_path / "saved" / "dataset_info.json"
    record = json.loads(about.read_text())
    record["features"] = media_features(datasets, "Image").to_dict()
    about.write_text(json.dumps(record))
    (row,) = read_rows(tmp_path / "saved")
    assert isinstance(row, Row)
    assert row.values == media_row(path)
