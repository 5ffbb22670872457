"""What ``ldeval predict``, ``influence`` and ``risk`` leave on disk.

::

    <output>/
        prediction.json      responses, parts, measured changes, agreement by size
        influence.json       responses, examples, history, decay, total, settings
        influence.parquet    one row a response and example
        influence.rows.jsonl finished rows of a table that is not yet whole
        risk.json            pairs, most at risk first

The JSON is strict (undefined numbers are null) and its fields are those of the records
(docs/dynamics.md). ``influence.json`` is written last: where it is, the table is whole.
No torch here, so that reports can be made anywhere.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldeval.errors import IncompleteError, StoreError
from ldeval.files import strict_json, write_whole
from ldeval.parquet import read_parquet
from ldeval.printable import quoted
from ldeval.records import (
    DYNAMICS_VERSION,
    Agreement,
    DynamicsResults,
    FloatArray,
    InfluenceTable,
    PairRisk,
    Prediction,
    ProbeResponse,
    RiskReport,
)
from ldeval.records.checked import check_types

PREDICTION, INFLUENCE, RISK = "prediction.json", "influence.json", "risk.json"
TABLE, ROWS = "influence.parquet", "influence.rows.jsonl"


def write_prediction(folder: Path, found: Prediction) -> Path:
    """Store a prediction; returns its file."""
    record = _record(found)
    record["predicted"] = _plain(found.predicted)
    return _write(folder / PREDICTION, record)


def read_prediction(folder: Path) -> Prediction:
    """Read a prediction back.

    Raises:
        StoreError: when it is absent, damaged or of another schema.
    """
    record = _read(folder / PREDICTION)
    with _Reading(folder / PREDICTION):
        responses = _responses(record)
        rows, factors = len(responses), tuple(_list(record["factors"]))
        found = Prediction(
            settings=record["settings"],
            responses=responses,
            parts={n: _array(part, rows) for n, part in record["parts"].items()},
            factors=factors,
            measured=_array(record["measured"], len(factors), rows),
            agreements=tuple(
                Agreement(**_numbers(a, ("kind",))) for a in record["agreements"]
            ),
            error_slope=_number(record["error_slope"]),
        )
        check_types(found)
        return found


def write_influence(folder: Path, found: InfluenceTable) -> Path:
    """Store an influence table; returns its ``influence.json``."""
    size = len(found.examples)
    columns: dict[str, Any] = {
        "probe_id": [r.probe_id for r in found.responses for _ in range(size)],
        "kind": [r.kind for r in found.responses for _ in range(size)],
        "example_id": list(found.examples) * len(found.responses),
        "influence": found.influence.ravel(),
    }
    if found.kernel is not None and found.kernel_se is not None:
        columns["kernel"] = found.kernel.ravel()
        columns["kernel_se"] = found.kernel_se.ravel()
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    write_whole(folder / TABLE, buffer.getvalue())
    slim = dataclasses.replace(found, kernel=None, kernel_se=None)
    record = _record(slim)
    for name in ("influence", "kernel", "kernel_se"):
        record.pop(name)
    return _write(folder / INFLUENCE, record)


def read_influence(folder: Path) -> InfluenceTable:
    """Read an influence table back.

    Raises:
        StoreError: when it is absent, damaged, not whole or of another schema.
    """
    record = _read(folder / INFLUENCE)
    with _Reading(folder / TABLE):
        columns = read_parquet(folder / TABLE).to_pydict()
        shape = (len(record["responses"]), len(record["examples"]))

        def matrix(name: str) -> FloatArray | None:
            if name not in columns:
                return None
            return np.asarray(columns[name], np.float64).reshape(shape)

        influence, kernel, error = map(matrix, ("influence", "kernel", "kernel_se"))
        if influence is None:
            raise KeyError("influence")
        if (kernel is None) != (error is None):
            raise KeyError("kernel_se" if error is None else "kernel")
        found = InfluenceTable(
            settings=record["settings"],
            responses=_responses(record),
            examples=tuple(_list(record["examples"])),
            influence=influence,
            history=_array(record["history"], shape[0]),
            decay=_array(record["decay"], shape[0]),
            total=_array(record["total"], shape[0]),
            gap=_number(record["gap"]),
            exact=record["exact"],
            projection={k: _number(v) for k, v in record["projection"].items()},
            kernel=kernel,
            kernel_se=error,
            texts=record.get("texts") or {},
        )
        check_types(found)
        return found


def write_risk(path: Path, found: RiskReport) -> Path:
    """Store a risk report as JSON."""
    record = _record(found)
    for pair, row in zip(found.pairs, record["pairs"], strict=True):
        row["both_fall"] = pair.both_fall
    return _write(path, record)


def read_risk(path: Path) -> RiskReport:
    """Read a risk report back.

    Raises:
        StoreError: when it is absent, damaged or of another schema.
    """
    record = _read(path)
    with _Reading(path):
        pairs = [dict(row) for row in record["pairs"]]
        for row in pairs:
            row.pop("both_fall")
        found = RiskReport(
            settings=record["settings"],
            ranked_by=record["ranked_by"],
            pairs=tuple(PairRisk(**_numbers(row, ("example_id",))) for row in pairs),
            skipped=tuple((place, reason) for place, reason in record["skipped"]),
        )
        check_types(found)
        return found


def read_results(place: Path) -> DynamicsResults:
    """Whatever of the three a folder holds, or the one that a file is.

    Raises:
        StoreError: there is none, or one is damaged or of another schema.
        IncompleteError: an influence table is not whole.
    """
    if place.is_file():
        return _read_one(place)
    if not place.exists():
        raise StoreError(f"{place}: no such file or folder.")
    begun = (place / ROWS).is_file()
    found = DynamicsResults(
        place.resolve().name,
        read_prediction(place) if (place / PREDICTION).is_file() else None,
        read_influence(place) if begun or (place / INFLUENCE).is_file() else None,
        read_risk(place / RISK) if (place / RISK).is_file() else None,
    )
    if not (found.prediction or found.influence or found.risk):
        raise StoreError(
            f"{place}: holds none of {PREDICTION}, {INFLUENCE} and {RISK}. Name a "
            "folder that 'ldeval predict -o', 'influence -o' or 'risk --json' wrote."
        )
    return found


def _read_one(path: Path) -> DynamicsResults:
    name = path.resolve().parent.name
    if path.name == PREDICTION:
        return DynamicsResults(name, prediction=read_prediction(path.parent))
    if path.name == INFLUENCE:
        return DynamicsResults(name, influence=read_influence(path.parent))
    return DynamicsResults(path.stem, risk=read_risk(path))


# ------------------------------------------------------------------------- JSON, strict


def _record(found: Any) -> dict[str, Any]:
    fields = dataclasses.asdict(found)
    return {
        "schema_version": DYNAMICS_VERSION,
        **{name: _plain(value) for name, value in fields.items()},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write(path: Path, record: Mapping[str, Any]) -> Path:
    text = json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)
    write_whole(path, text)
    return path


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        beside = path.with_name(ROWS)
        if beside.is_file():
            raise IncompleteError(
                f"{path}: is not there, but {beside.name} is: the table is not whole. "
                "The same 'ldeval influence' goes on with it."
            )
        raise StoreError(f"{path}: no such file.")
    try:
        record = strict_json(path.read_bytes())
        version = record["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot be read ({error}). Compute it again.") from (
            error
        )
    if version != DYNAMICS_VERSION:
        raise StoreError(
            f"{path}: schema version {quoted(version)}; this ldeval reads "
            f"{DYNAMICS_VERSION}."
        )
    return dict(record)


class _Reading:
    """Turns what a damaged record raises into an error that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        known = (
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            AttributeError,
            OSError,
            RecursionError,
            pa.ArrowException,
        )
        if isinstance(error, known) and not isinstance(error, StoreError):
            raise StoreError(
                f"{self._path}: does not hold what it should ({error!r}). Compute it "
                "again."
            ) from error


def _number(value: Any) -> float:
    """null is NaN; text and truth are no numbers, though Python would take them."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{quoted(value)} is no number")
    return float(value)


def _numbers(row: Mapping[str, Any], texts: tuple[str, ...]) -> dict[str, Any]:
    """null is NaN, but for texts, where it is None."""
    return {
        k: math.nan if value is None and k not in texts else value
        for k, value in row.items()
    }


def _list(value: Any) -> list[Any]:
    """A list; a text too could be taken apart, into its characters."""
    if not isinstance(value, list):
        raise TypeError(f"{quoted(value)} is no list")
    return value


def _array(value: Any, *shape: int) -> FloatArray:
    """Numbers of a shape, which says how deep the lists go."""
    if len(shape) > 1:
        found = np.array([_array(item, *shape[1:]) for item in _list(value)])
    else:
        found = np.array([_number(item) for item in _list(value)], np.float64)
    if found.shape != shape:
        raise ValueError(f"an array of shape {found.shape} in place of {shape}")
    return found


def _responses(record: Mapping[str, Any]) -> tuple[ProbeResponse, ...]:
    rows = _list(record["responses"])
    return tuple(ProbeResponse(**_numbers(row, ())) for row in rows)
