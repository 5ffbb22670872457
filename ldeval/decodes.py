"""Greedy decodes on disk, beside the tables of a run.

``<store>/<run>/greedy/step_000120.parquet`` holds one row a prompt, and in its metadata
what the decodes are of. A file is written whole, so that its presence means that it is
all there; its pages carry checksums. Apart from :mod:`store`, since a run may have
scores and no decodes, or get them later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldeval.errors import MismatchError, StoreError
from ldeval.files import (
    local_copy,
    named,
    refuse_link,
    strict_json,
    understood,
    written,
)
from ldeval.parquet import read_parquet
from ldeval.printable import quoted
from ldeval.records import DECODES_VERSION, Excluded, GreedyDecode, GreedyDecodes
from ldeval.records.checked import check_types

FOLDER = "greedy"
_META = b"ldeval"
_STEP = re.compile(r"step_\d+\.parquet")
_TEXTS = pa.schema(
    [
        ("probe_id", pa.string()),
        ("trained", pa.bool_()),
        ("ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("text", pa.string()),
        ("ended", pa.bool_()),
        ("reference_logprobs", pa.list_(pa.float32())),
    ]
)
_LISTS = ("ids", "logprobs", "reference_logprobs")


def write_decodes(run: Path, decodes: GreedyDecodes) -> Path:
    """Keep the decodes of one checkpoint beside its run's tables.

    Raises:
        StoreError: when the disk is full or cannot be written, or their folder is a
            link.
    """
    path = decodes_place(run, decodes.step)
    refuse_link(path.parent)
    about = {
        "version": DECODES_VERSION,
        **{name: getattr(decodes, name) for name in _ABOUT},
        "settings": dict(decodes.settings),
        "excluded": [[e.probe_id, e.kind, e.reason] for e in decodes.excluded],
    }
    schema = _TEXTS.with_metadata({_META: json.dumps(about).encode()})
    rows = [
        {name: getattr(item, name) for name in _TEXTS.names} for item in decodes.decodes
    ]
    table = pa.Table.from_pylist(rows, schema)
    with written(path) as handle:
        pq.write_table(table, handle, compression="zstd", write_page_checksum=True)
    return path


_ABOUT = (
    "step",
    "weights_hash",
    "probe_set_hash",
    "reference_step",
    "max_tokens",
    "backend",
    "dtype",
    "off_argmax",
)


def kept_decodes(
    run: Path, step: int, asked: Mapping[str, Any]
) -> GreedyDecodes | None:
    """The decodes of a step, where they are stored already.

    Args:
        asked: fields that they must have.

    Raises:
        MismatchError: when other decodes lie there.
        StoreError: when they are damaged.
    """
    path = decodes_place(run, step)
    if not path.is_file():
        return None
    found = read_decodes(path)
    for name, wanted in asked.items():
        have = getattr(found, name)
        if have != wanted:
            raise MismatchError(
                f"{path} holds greedy decodes with {name} {have}, this sweep has "
                f"{wanted}. Use another --run or --store, or delete the folder "
                f"{path.parent}."
            )
    return found


def run_decodes(run: Path) -> tuple[GreedyDecodes, ...]:
    """All decodes of a run, by step; none where it was swept without.

    Raises:
        StoreError: when one is damaged.
    """
    found = map(read_decodes, decode_files(run))
    return tuple(sorted(found, key=lambda item: item.step))


def decode_files(run: Path) -> list[Path]:
    """The files of a run's decodes."""
    folder = run / FOLDER
    with named(folder, "Can it be reached?", doing="read"):
        if not folder.is_dir():
            return []
        found = [item for item in folder.iterdir() if _STEP.fullmatch(item.name)]
    return sorted(found, key=str)


def read_decodes(path: Path) -> GreedyDecodes:
    """The decodes of one checkpoint.

    Raises:
        StoreError: naming the file, when it is damaged or of another version.
    """
    remedy = "Delete it and run the sweep again."
    try:
        table = read_parquet(local_copy(path), lists=_LISTS, checksums=True)
        with understood(path, remedy):
            return _from_table(table)
    except StoreError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read ({error}). {remedy}") from error


def _from_table(table: pa.Table) -> GreedyDecodes:
    """Decodes out of what a file holds.

    Raises:
        ValueError, TypeError, LookupError: it is of another version or another shape.
    """
    about = strict_json((table.schema.metadata or {})[_META])
    version = about["version"]
    if version != DECODES_VERSION:
        raise ValueError(
            f"version {quoted(version)}, this ldeval reads {DECODES_VERSION}"
        )
    table = table.cast(_TEXTS)
    for name in table.column_names:
        column = table[name].combine_chunks()
        inner = column.values if name in _LISTS else column
        if column.null_count or inner.null_count:
            raise ValueError(f"column {name!r} has empty cells")
    found = GreedyDecodes(
        **{name: about[name] for name in _ABOUT},
        decodes=tuple(_decode(row) for row in table.to_pylist()),
        settings=about["settings"],
        excluded=tuple(Excluded(*item) for item in about["excluded"]),
    )
    check_types(found)
    return found


def _decode(row: Mapping[str, Any]) -> GreedyDecode:
    if len(row["ids"]) != len(row["logprobs"]):
        raise ValueError(
            f"{quoted(row['probe_id'])} has {len(row['ids'])} tokens and "
            f"{len(row['logprobs'])} log-probabilities"
        )
    return GreedyDecode(
        probe_id=row["probe_id"],
        trained=row["trained"],
        ids=np.array(row["ids"], np.int32),
        logprobs=np.array(row["logprobs"], np.float32),
        text=row["text"],
        ended=row["ended"],
        reference_logprobs=np.array(row["reference_logprobs"], np.float32),
    )


def decodes_place(run: Path, step: int) -> Path:
    """Where the decodes of a step are kept."""
    return run / FOLDER / f"step_{step:06d}.parquet"
