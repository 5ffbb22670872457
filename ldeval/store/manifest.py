"""A step's manifest as JSON: written, read, and held to its types."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from ldeval.errors import IncompleteError, StoreError
from ldeval.files import (
    place,
    read_text,
    strict_json,
    understood,
)
from ldeval.printable import quoted
from ldeval.records import (
    SCHEMA_VERSION,
    Excluded,
    Manifest,
    NoiseFloor,
)
from ldeval.records.checked import check_types
from ldeval.store.layout import MANIFEST


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a step.

    Raises:
        IncompleteError: when there is none.
        StoreError: when it is damaged, or of another schema version.
    """
    path = place(folder) / MANIFEST
    try:
        record = strict_json(read_text(path))
    except FileNotFoundError:
        raise IncompleteError(
            f"{folder}: no {MANIFEST}, so scoring into it never finished. Run the same "
            "'ldeval sweep' again: it goes on from here."
        ) from None
    except ValueError as error:
        raise StoreError(
            f"{path}: cannot be read ({error}). Delete this step's folder and run the "
            "sweep again."
        ) from error
    return manifest_from_json(record, str(path))


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as strict JSON; an unknown duration is null."""
    record = dataclasses.asdict(manifest)
    if math.isnan(manifest.seconds):
        record["seconds"] = None
    return record


def manifest_from_json(record: Any, place: str) -> Manifest:
    """Read a manifest back.

    Raises:
        StoreError: on another schema version or a missing field.
    """
    if not isinstance(record, dict):
        raise StoreError(f"{place}: holds {type(record).__name__}, not a manifest.")
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{place}: schema version {quoted(version)}; this ldeval reads "
            f"{SCHEMA_VERSION}. Score again, or use the ldeval that wrote it."
        )
    fields = {field.name for field in dataclasses.fields(Manifest)}
    remedy = "Delete this step's folder and run the sweep again."
    with understood(Path(place), remedy):
        values = {key: value for key, value in record.items() if key in fields}
        values["excluded"] = tuple(Excluded(**item) for item in record["excluded"])
        for name in ("split_exceptions", "notes"):
            if not isinstance(record[name], list):
                raise TypeError(f"{name} is {type(record[name]).__name__}, not a list")
            values[name] = tuple(record[name])
        floor = record.get("noise_floor")
        values["noise_floor"] = None if floor is None else NoiseFloor(**floor)
        seconds = record["seconds"]
        values["seconds"] = math.nan if seconds is None else float(seconds)
        manifest = Manifest(**values)
        check_types(manifest)
        return manifest
