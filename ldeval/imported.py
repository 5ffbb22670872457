"""Imported runs on disk: means by checkpoint, and single prompts where known.

::

    <store>/<run>/
        levels.json      steps, columns, where they came from; written last
        prompts.npz      [T, P] Σ ln p of every prompt by column, if known

Apart from ``store``: no table of tokens is behind them, and nothing is ever resumed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ldeval.errors import StoreError
from ldeval.files import (
    DAMAGED_ARRAY,
    claimed_shape,
    local_copy,
    place,
    read_text,
    remove,
    strict_json,
    understood,
    write_whole,
    written,
)
from ldeval.printable import quoted
from ldeval.records import LEVELS_VERSION, LevelColumn, LevelRun
from ldeval.records.checked import check_types
from ldeval.store import list_steps, run_folder

LEVELS = "levels.json"
PROMPTS = "prompts.npz"
LARGEST = 2**26
"""Bytes that the arrays may unpack to, however small their file is."""
RATIO = 16
"""How many times its size the file may unpack to beyond that: log-probabilities come to
less than two, unless most are unknown."""


def is_imported(run: str | Path) -> bool:
    """Whether ``STORE/RUN`` holds an import of means."""
    return (place(run) / LEVELS).is_file()


def write_levels(store: str | Path, levels: LevelRun) -> Path:
    """Write an imported run; returns its folder.

    Raises:
        StoreError: the run's name is no plain folder name, it holds scored tables, or
            the disk cannot be written.
    """
    folder = run_folder(store, levels.run)
    if list_steps(folder):
        raise StoreError(
            f"{folder}: holds scored tables. Import under another name with --run."
        )
    record = dataclasses.asdict(dataclasses.replace(levels, prompts={}))
    record.pop("prompts")
    record["columns"] = [_to_json(column) for column in levels.columns]
    record |= {"levels_version": LEVELS_VERSION, "prompts_sha256": None}
    remove(folder / LEVELS)
    remove(folder / PROMPTS)
    if levels.prompts:
        with written(folder / PROMPTS) as handle:
            np.savez_compressed(handle, **dict(levels.prompts))  # type: ignore[arg-type]
            handle.seek(0)
            record["prompts_sha256"] = _digest(handle)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / LEVELS, text)
    return folder


def read_levels(run: str | Path) -> LevelRun:
    """Read an imported run back.

    Raises:
        StoreError: it is damaged or of another version.
    """
    path = place(run) / LEVELS
    with understood(path, "Import the file again."):
        try:
            record = strict_json(read_text(path))
        except FileNotFoundError as error:
            raise StoreError(f"{path}: is not there. Import the file again.") from error
        version = record.pop("levels_version")
        if version != LEVELS_VERSION:
            raise StoreError(
                f"{path}: version {quoted(version)}; this ldeval reads "
                f"{LEVELS_VERSION}. Import the file again."
            )
        digest = record.pop("prompts_sha256")
        columns = tuple(_from_json(column) for column in record.pop("columns"))
        for name in ("steps", "notes"):
            if not isinstance(record[name], list):
                raise TypeError(f"{name} is no list")
            record[name] = tuple(record[name])
        found = LevelRun(columns=columns, **record)
        check_types(found)  # before the arrays, which must be what it says
        if digest is None:
            return found
        prompts = _read_prompts(path.with_name(PROMPTS), digest, found)
        found = dataclasses.replace(found, prompts=prompts)
        check_types(found)
        return found


def _read_prompts(path: Path, digest: str, levels: LevelRun) -> dict[str, Any]:
    local = local_copy(path, digest)
    with local.open("rb") as handle:
        if _digest(handle) != digest:
            raise StoreError(
                f"{path}: was changed or cut short. Import the file again."
            )
        handle.seek(0)
        try:
            _check_prompts(handle, local.stat().st_size, levels)
            handle.seek(0)
            with np.load(handle, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except DAMAGED_ARRAY as error:
            raise StoreError(
                f"{path}: cannot be read ({error}). Import the file again."
            ) from error


def _check_prompts(handle: BinaryIO, packed: int, levels: LevelRun) -> None:
    """Whether the arrays are of the run's columns and steps, and of as many prompts
    each; and unpack to no more than what a file of its size can honestly hold.

    Raises:
        ValueError: they are not.
    """
    most = max(LARGEST, RATIO * packed)
    columns = {f"{column.name}.npy" for column in levels.columns}
    sizes = set()
    with zipfile.ZipFile(handle) as archive:
        names = archive.namelist()
        if not columns.issuperset(names) or len(set(names)) < len(names):
            raise ValueError(f"holds {', '.join(names)}, which are not its columns")
        for name in names:
            shape = claimed_shape(archive, name, most)
            if len(shape) != 2 or shape[0] != len(levels.steps):
                raise ValueError(
                    f"{name} is of shape {shape}, not of {len(levels.steps)} steps"
                )
            sizes.add(shape[1])
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if len(sizes) > 1:
        raise ValueError(f"its columns hold {sorted(sizes)} prompts, not equally many")
    if unpacked > most:
        raise ValueError(f"{packed} bytes unpack to {unpacked}; at most {most}")


def _digest(handle: BinaryIO) -> str:
    return hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]


def _to_json(column: LevelColumn) -> dict[str, Any]:
    record = dataclasses.asdict(column)
    record["values"] = [v if math.isfinite(v) else None for v in column.values]
    return record


def _from_json(record: dict[str, Any]) -> LevelColumn:
    values = tuple(math.nan if v is None else v for v in record.pop("values"))
    return LevelColumn(values=values, **record)
