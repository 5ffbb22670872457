"""A probe set as a Hugging Face dataset folder: Parquet files and a dataset card.

::

    FOLDER/README.md                    the card; its header names the files
    FOLDER/data/probes-00000.parquet    in probe order, at most 100,000 rows each

One column a kind, null where a probe lacks it, so that the Hub's viewer and
``datasets.load_dataset`` show it as a table. Records go in and come out as they stand
in a JSON Lines file; what a probe is, :mod:`probe_set` alone decides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ldeval.errors import ProbeError
from ldeval.files import (
    clear_litter,
    remove_tree,
    replace_tree,
    restore_tree,
    strict_json,
    temporary_name,
    write_whole,
    written,
)
from ldeval.records import KIND_NAMES

SHARD_ROWS = 100_000
BATCH_ROWS = 1000
_COLUMNS = ("probe_id", "trained", "prompt", "messages", "meta")


def is_dataset(path: Path) -> bool:
    """Whether a path is a folder or a Parquet file, to be read here."""
    return path.is_dir() or path.suffix == ".parquet"


def dataset_files(path: Path) -> list[Path]:
    """The Parquet files of a dataset folder, in order.

    Raises:
        ProbeError: when there are none.
    """
    if not path.is_dir():
        return [path]
    files = sorted((path / "data").glob("*.parquet")) or sorted(path.glob("*.parquet"))
    if not files:
        raise ProbeError(
            "holds no Parquet files.",
            path=path,
            remedy="Give a probe file, or a folder written by 'ldeval probes export'.",
        )
    return files


def _schema() -> Any:
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            ("probe_id", pa.string()),
            ("trained", pa.bool_()),
            ("prompt", pa.string()),
            ("messages", pa.list_(message)),
            *((kind, pa.string()) for kind in KIND_NAMES),
            ("meta", pa.string()),
        ]
    )


def write_dataset(
    folder: Path, records: Iterable[Mapping[str, Any]], card: Callable[[], str]
) -> None:
    """Write a dataset folder, whole or not at all.

    Args:
        folder: new, or a dataset folder that is replaced.
        records: probes as JSON objects.
        card: gives the text of README.md, once all records have been taken.

    Raises:
        ProbeError: when the folder holds something else.
        StoreError: when it cannot be written; what was there before stays.
    """
    restore_tree(folder)
    if folder.exists() and not list(folder.glob("data/probes-*.parquet")):
        raise ProbeError(
            "exists and is no probe dataset.",
            path=folder,
            remedy="Name another folder, or a file that ends in .jsonl.",
        )
    clear_litter(folder.parent, f"{folder.name}.")
    partial = folder.with_name(temporary_name(folder.name))
    remove_tree(partial)
    try:
        _write_shards(partial / "data", iter(records))
        write_whole(partial / "README.md", card())
        replace_tree(partial, folder)
    except BaseException:
        remove_tree(partial)
        raise


def _write_shards(data: Path, records: Iterator[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    shard, record = 0, next(records, None)
    while record is not None:
        path = data / f"probes-{shard:05d}.parquet"
        with (
            written(path) as handle,
            pq.ParquetWriter(handle, schema, compression="zstd") as writer,
        ):
            taken = 0
            while record is not None and taken < SHARD_ROWS:
                rows: list[dict[str, Any]] = []
                while record is not None and len(rows) < BATCH_ROWS:
                    rows.append(_row(record))
                    record = next(records, None)
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                taken += len(rows)
        shard += 1


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    prompt = record["prompt"]
    text = isinstance(prompt, str)
    return {
        "probe_id": record["probe_id"],
        "trained": record["trained"],
        "prompt": prompt if text else None,
        "messages": None if text else prompt,
        **{kind: record["responses"].get(kind) for kind in KIND_NAMES},
        # canonical, so that the same probes give the same bytes
        "meta": json.dumps(record.get("meta", {}), ensure_ascii=False, sort_keys=True),
    }


def read_dataset(path: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(file, row counted from 1, record) of each row.

    Raises:
        ProbeError: when a file is missing, damaged or has other columns.
    """
    import pyarrow as pa

    from ldeval.parquet import ParquetFile

    for file in dataset_files(path):
        number = 0
        try:
            with ParquetFile(file, lists=["messages"]) as opened:
                _check_columns(file, opened.schema.names)
                for batch in opened.batches(BATCH_ROWS):
                    for row in batch.to_pylist():
                        number += 1
                        yield str(file), number, _record(file, number, row)
        except ProbeError:
            raise
        except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
            raise ProbeError(
                f"cannot be read as Parquet after row {number} ({error}).",
                path=file,
                remedy="Is the file whole? Copy or export it again.",
            ) from error


def _check_columns(file: Path, names: Iterable[str]) -> None:
    names = set(names)
    known = {*_COLUMNS, *KIND_NAMES}
    for name in sorted(names ^ known):
        if name in names or name in ("probe_id", "trained", "chosen"):
            raise ProbeError(
                "is not a column of a probe dataset."
                if name in names
                else "is missing.",
                path=file,
                field=name,
                remedy="Preference data is made into probes by 'ldeval probes build'.",
            )


def _record(file: Path, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    messages, prompt = row.get("messages"), row.get("prompt")
    record: dict[str, Any] = {
        "probe_id": row["probe_id"],
        "prompt": prompt if messages is None else messages,
        "trained": row["trained"],
        "responses": {k: row[k] for k in KIND_NAMES if row.get(k) is not None},
    }
    if row.get("meta") not in (None, ""):
        try:
            if not isinstance(row["meta"], str):
                raise ValueError(f"{type(row['meta']).__name__}, not text")
            record["meta"] = strict_json(row["meta"])
        except ValueError as error:
            raise ProbeError(
                f"is not valid JSON ({error}).",
                path=file,
                line=number,
                field="meta",
                remedy="Export the probes again.",
            ) from error
        if record["meta"] == {}:
            del record["meta"]
    return record
