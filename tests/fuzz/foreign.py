"""Files that others write or hand over: imports, dynamics, weights, preference data."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldeval.checkpoints import check_weights, stored_dtype, tensor_shapes, weights_hash
from ldeval.dynamics.results import (
    read_influence,
    read_prediction,
    read_risk,
    write_influence,
    write_prediction,
    write_risk,
)
from ldeval.imported import read_levels, write_levels
from ldeval.integrations.reference import ImportOptions, import_reference_results
from ldeval.probes.sources import BadRow, read_rows
from ldeval.records import (
    Agreement,
    Checkpoint,
    InfluenceTable,
    LevelColumn,
    LevelRun,
    PairRisk,
    Prediction,
    ProbeResponse,
    RiskReport,
)
from tests.fuzz.driving import Target, file_of, given, joined, json_lines, parted
from tests.fuzz.oracle import BrokenRule, alike, valid

OPTIONS = ImportOptions(run="r")

# ------------------------------------------------------------------------ imported runs


def _level_run() -> LevelRun:
    return LevelRun(
        run="r",
        origin="reference",
        file="f.json",
        split="trained",
        steps=(0, 1),
        step_unit="evaluations",
        columns=(
            LevelColumn("chosen", "kind", "chosen", (-1.0, float("nan"))),
            LevelColumn("argmax:chosen", "derived", "argmax", (-0.5, -0.25), "note"),
        ),
        notes=("a note",),
        prompts={"chosen": np.array([[-1.0, -2.0], [np.nan, -3.0]])},
    )


def _levels_seeds() -> list[bytes]:
    folder = write_levels(file_of("levels_seed/r").parent, _level_run())
    first, second = ((folder / n).read_bytes() for n in ("levels.json", "prompts.npz"))
    return [joined(first, second)]


def _levels(data: bytes) -> bool:
    path = file_of("levels/r/levels.json")
    text, arrays = parted(data)
    # the digest of the arrays is made to fit, so that they are decoded
    digest = hashlib.sha256(parted(_levels_seed())[1]).hexdigest().encode()
    text = text.replace(digest, hashlib.sha256(arrays).hexdigest().encode())
    path.write_bytes(text)
    path.with_name("prompts.npz").write_bytes(arrays)
    found = given(path, lambda: read_levels(path.parent), "prompts.npz")
    if found is None:
        return False
    valid(found, LevelRun)
    again = write_levels(file_of("levels/again/r").parent, _named(found, "r"))
    alike(_named(found, "r"), read_levels(again))
    return True


_SEEDS: list[bytes] = []


def _levels_seed() -> bytes:
    if not _SEEDS:
        _SEEDS.extend(_levels_seeds())
    return _SEEDS[0]


def _named(run: LevelRun, name: str) -> LevelRun:
    import dataclasses

    return dataclasses.replace(run, run=name)


def _metrics_seeds() -> list[bytes]:
    rows = [
        {
            "logps_eval_prob_train/chosen": -float(i),
            "logps_eval_prob_train/rejected": float("nan") if i else -3.0,
            "argmax_prob_logits": -1.5,
            "chosen_A_o": 2.0,
            "other": "text",
        }
        for i in range(4)
    ]
    return [json_lines(rows), json_lines(rows[:2] + rows[:2])]


def _imported(name: str) -> Callable[[bytes], bool]:
    def check(data: bytes) -> bool:
        path = file_of(name)
        path.write_bytes(data)
        found = given(path, lambda: import_reference_results(path, OPTIONS))
        if found is None:
            return False
        valid(found, LevelRun)
        again = write_levels(path.parent / "store", found)
        alike(found, read_levels(again))
        return True

    return check


def _array_seeds() -> list[bytes]:
    seeds = []
    for rows, first in ((17, -1.0), (28, -1.0), (17, 1.0)):
        array = -np.random.default_rng(0).random((3, rows, 2))
        array[:, 0] *= -first
        sink = io.BytesIO()
        np.save(sink, array)
        seeds.append(sink.getvalue())
    return seeds


# ----------------------------------------------------------------------------- dynamics

_RESPONSES = (
    ProbeResponse("a", "chosen", "trained", 3, -2.5),
    ProbeResponse("b", "rejected", "heldout", 4, float("nan")),
)


def _prediction_seeds() -> list[bytes]:
    found = Prediction(
        settings={"model": "m"},
        responses=_RESPONSES,
        parts={"change": np.array([0.5, -0.5])},
        factors=(0.5, 1.0),
        measured=np.array([[0.25, -0.25], [0.5, np.nan]]),
        agreements=(Agreement(1.0, None, 2, 0.9, 1.0, 1.0, 0.1, float("nan")),),
        error_slope=float("nan"),
    )
    return [write_prediction(file_of("prediction_seed/x").parent, found).read_bytes()]


def _prediction(data: bytes) -> bool:
    path = file_of("prediction/prediction.json")
    path.write_bytes(data)
    found = given(path, lambda: read_prediction(path.parent))
    if found is None:
        return False
    valid(found, Prediction)
    again = file_of("prediction/again/x").parent
    write_prediction(again, found)
    alike(found, read_prediction(again))
    return True


def _influence_seeds() -> list[bytes]:
    found = InfluenceTable(
        settings={"model": "m"},
        responses=_RESPONSES,
        examples=("x", "y", "z"),
        influence=np.arange(6.0).reshape(2, 3),
        history=np.zeros(2),
        decay=np.zeros(2),
        total=np.ones(2),
        gap=0.5,
        exact=True,
        projection={"error": 0.5},
        kernel=np.ones((2, 3)),
        kernel_se=np.ones((2, 3)),
        texts={"x": {"prompt": "p", "chosen": "c"}},
    )
    folder = file_of("influence_seed/x").parent
    path = write_influence(folder, found)
    return [joined(path.read_bytes(), path.with_suffix(".parquet").read_bytes())]


def _influence(data: bytes) -> bool:
    path = file_of("influence/influence.json")
    for file, content in zip(
        (path, path.with_suffix(".parquet")), parted(data), strict=True
    ):
        file.write_bytes(content)
    found = given(path, lambda: read_influence(path.parent), "influence.parquet")
    if found is None:
        return False
    valid(found, InfluenceTable)
    again = file_of("influence/again/x").parent
    write_influence(again, found)
    alike(found, read_influence(again))
    return True


def _risk_seeds() -> list[bytes]:
    pair = PairRisk(
        "x", 3, 4, 1.0, 0.5, 0.25, float("nan"), 0.1, 1.0, 2.0, 3.0, -1, -1.0
    )
    found = RiskReport({"model": "m"}, "ches", (pair,), (("f:3", "no pair"),))
    return [write_risk(file_of("risk_seed/risk.json"), found).read_bytes()]


def _risk(data: bytes) -> bool:
    path = file_of("risk/risk.json")
    path.write_bytes(data)
    found = given(path, lambda: read_risk(path))
    if found is None:
        return False
    valid(found, RiskReport)
    again = write_risk(file_of("risk/again/risk.json"), found)
    alike(found, read_risk(again))
    return True


# ------------------------------------------------------------------------------ weights


def _header_seeds() -> list[bytes]:
    from safetensors.numpy import save

    tensors = {"a.weight": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float16)}
    return [save(tensors, {"format": "pt"}), save({"a": np.ones(0, np.int8)})]


def _weights(path: Path) -> bool:
    """Whether the weights of a folder are taken; all that reads them is called."""
    folder = path.parent
    beside = ("model.safetensors", folder.name)
    checkpoint = Checkpoint(str(folder), 0)
    hashed = given(path, lambda: weights_hash(folder), *beside)
    dtype = given(path, lambda: stored_dtype(folder) or "none", *beside)
    shapes = given(path, lambda: tensor_shapes(folder), *beside)
    whole = given(path, lambda: [check_weights(checkpoint)], *beside)
    if whole is None:
        return False
    if hashed is None or dtype is None or shapes is None:
        raise BrokenRule("weights that are whole were not read")
    valid(shapes, dict[str, tuple[int, ...]])
    return True


def _header(data: bytes) -> bool:
    path = file_of("header/weights/model.safetensors")
    path.write_bytes(data)
    return _weights(path)


def _index_seeds() -> list[bytes]:
    names = {"a.weight": "model-1.safetensors", "b": "model-1.safetensors"}
    return [json.dumps({"metadata": {"total_size": 28}, "weight_map": names}).encode()]


def _index(data: bytes) -> bool:
    path = file_of("index/weights/model.safetensors.index.json")
    shard = path.with_name("model-1.safetensors")
    if not shard.exists():
        shard.write_bytes(_header_seeds()[0])
    path.write_bytes(data)
    return _weights(path)


# ---------------------------------------------------------------------- preference data

_ROWS: list[dict[str, Any]] = [
    {"prompt": "é?", "chosen": "a\nb", "rejected": 'say "no"'},
    {"prompt": "q", "chosen": "1", "rejected": "2"},
]


def _csv_seeds() -> list[bytes]:
    text = 'prompt,chosen,rejected\r\n"é, a",b,"say ""no""\nor"\r\nx,y,z\r\n'
    return [text.encode(), b"\xef\xbb\xbf" + text.encode()]


def _rows_parquet_seeds() -> list[bytes]:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(_ROWS), sink)
    return [sink.getvalue()]


def _rows(ending: str) -> Callable[[bytes], bool]:
    def check(data: bytes) -> bool:
        path = file_of(f"rows_{ending}/rows.{ending}")
        path.write_bytes(data)
        found = given(path, lambda: list(read_rows(path)))
        if found is None:
            return False
        for row in found:
            if not row.place.startswith(path.name):
                raise BrokenRule(f"a row at {row.place!r}")
            if not isinstance(row, BadRow) and not isinstance(row.values, dict):
                raise BrokenRule(f"a row is {row.values!r}")
        return not any(isinstance(row, BadRow) for row in found)

    return check


TARGETS = (
    Target("levels", "json and bytes", _levels_seeds, _levels),
    Target("metrics", "lines", _metrics_seeds, _imported("metrics/prob_train.json")),
    Target("array", "bytes", _array_seeds, _imported("array/logp.npy")),
    Target("prediction", "json", _prediction_seeds, _prediction),
    Target("influence", "json and parquet", _influence_seeds, _influence),
    Target("risk", "json", _risk_seeds, _risk),
    Target("header", "header", _header_seeds, _header),
    Target("index", "json", _index_seeds, _index),
    Target("rows_jsonl", "lines", lambda: [json_lines(_ROWS)], _rows("jsonl")),
    Target("rows_json", "json", lambda: [json.dumps(_ROWS).encode()], _rows("json")),
    Target("rows_csv", "bytes", _csv_seeds, _rows("csv")),
    Target("rows_parquet", "parquet", _rows_parquet_seeds, _rows("parquet")),
)
