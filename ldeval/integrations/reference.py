"""The paper authors' result files: metrics as JSON lines, and arrays of prompts.

``prob_train_metrics.json`` holds one object an evaluation, means over 500 prompts, no
step, NaN tokens; it is opened in append mode, so a rerun mixes its rows among those of
the run before. ``logp_npy_all_*.npy`` holds [T, rows, prompts] float64 in one of four
layouts. In files written before May 2025 everything that the code computed beside a
response's own log-probability was overwritten in a loop over the kinds: their columns
``argmax_prob_logits``, ``except_argmax_prob_logits``, ``p_e`` and ``energy`` describe
the last kind of the loop. The repaired code writes ``chosen_A_o`` before chosen's
log-probability, which is how a file is told.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldeval.errors import StoreError
from ldeval.files import DAMAGED_ARRAY, strict_json
from ldeval.integrations.reruns import separate_reruns
from ldeval.records import REFERENCE_FIELDS, LevelColumn, LevelRun, Split

ARGMAX = "argmax_prob_logits"
BESIDE = (ARGMAX, "except_argmax_prob_logits", "p_e", "energy", "A_o")
"""What the authors' code computes beside a response's own log-probability."""
_LOGPS = re.compile(r"logps_eval_(?P<set>\w+)/(?P<field>\w+)")

FIELDS = (
    *("chosen", "chosen_initial", "chosen_gptsemantic", "chosen_gptformat"),
    *("rejected", "reject_gptsemantic", "reject_gptformat", "irr_train"),
    *("irr_test", "irr_hum", "random_permute", "random_nonhum"),
)
"""The order of the authors' loop over the kinds."""


@dataclass(frozen=True)
class ImportOptions:
    """How an import is named and read."""

    run: str
    split: Split | None = None
    """None: as the file's names say (``prob_train`` or ``prob_test``)."""
    objective: str | None = None
    every: int | None = None
    """Examples between evaluations; None: not known, evaluations are counted."""


def import_reference_results(path: str | Path, options: ImportOptions) -> LevelRun:
    """Read a metrics file or an array of the paper's authors.

    Raises:
        StoreError: naming the place and what is wrong with it.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return _from_array(path, options)
    return _from_metrics(path, options)


# ---------------------------------------------------------------------- metrics files


def _from_metrics(path: Path, options: ImportOptions) -> LevelRun:
    rows = _read_rows(path)
    fields = _fields(rows)
    if not fields:
        raise StoreError(
            f"{path}: no key 'logps_eval_…/chosen' or of another kind in it. Is this a "
            "prob_train_metrics.json of the paper's authors?"
        )
    keys = list(rows[0])
    matrix = np.array([[_number(row.get(key)) for key in keys] for row in rows])
    known = [i for i, key in enumerate(keys) if key in fields]
    kept, remarks = separate_reruns(matrix[:, known])
    matrix = matrix[kept]
    notes = [*remarks, *_skipped(keys, fields)]
    columns = [
        LevelColumn(
            REFERENCE_FIELDS[fields[key]], "kind", key, tuple(map(float, matrix[:, i]))
        )
        for i, key in enumerate(keys)
        if key in fields
    ]
    if ARGMAX in keys:
        found = _argmax_column(keys, fields, matrix)
        columns.append(found)
        notes += [found.note] if found.note else []
    return LevelRun(
        run=options.run,
        origin="reference",
        file=path.name,
        split=options.split or _split(keys, path),
        steps=_steps(len(matrix), options.every),
        step_unit="evaluations" if options.every is None else "examples",
        columns=tuple(columns),
        objective=options.objective,
        notes=tuple(notes),
    )


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    number = 0
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                record = strict_json(line, undefined=True)
                if not isinstance(record, dict):
                    raise StoreError(
                        f"{path}:{number}: holds {type(record).__name__}, not an "
                        "object of one evaluation."
                    )
                rows.append(record)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error}).") from error
    except ValueError as error:
        raise StoreError(
            f"{path}:{number}: not JSON ({error}). Each line must be one evaluation; "
            "was the file cut short? Delete the line to go without it."
        ) from error
    if len(rows) < 2:
        raise StoreError(f"{path}: {len(rows)} evaluations; at least two are needed.")
    return rows


def _fields(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The authors' field of each key that holds a response's log-probability."""
    found = {}
    for key in rows[0]:
        match = _LOGPS.fullmatch(key)
        if match is not None and match["field"] in REFERENCE_FIELDS:
            found[key] = match["field"]
    return found


def _number(value: Any) -> float:
    """NaN for what is absent, null or not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    # an integer can be larger than any float; compared, it is not converted
    return float(value) if abs(value) <= sys.float_info.max else math.nan


def _argmax_column(
    keys: Sequence[str], fields: Mapping[str, str], matrix: np.ndarray
) -> LevelColumn:
    """The argmax column under the name of the kind that it describes.

    Along one response the argmax is nowhere below the label, so a column that once lies
    below chosen's cannot describe chosen, whatever the order of the keys.
    """
    values = matrix[:, keys.index(ARGMAX)]
    chosen = [i for i, key in enumerate(keys) if fields.get(key) == "chosen"]
    repaired = "chosen_A_o" in keys and bool(
        not chosen or keys.index("chosen_A_o") < chosen[0]
    )
    below = bool(chosen and np.nanmax(matrix[:, chosen[0]] - values) > 1e-6)
    if repaired and not below:
        return LevelColumn(
            "argmax:chosen", "derived", ARGMAX, tuple(map(float, values))
        )
    present = [fields[key] for key in keys if key in fields]
    last = max(present, key=FIELDS.index)
    kind = REFERENCE_FIELDS[last]
    why = (
        "it once lies below chosen's own log-probability" if below else "of their order"
    )
    note = (
        f"'{ARGMAX}' describes {kind}, not chosen (a bug of the authors' code before "
        f"May 2025, told because {why}); so do except_argmax_prob_logits, p_e and "
        "energy"
    )
    if not below:
        note = note.replace("told because of their order", "told by the order of keys")
    return LevelColumn(
        f"argmax:{kind}", "derived", ARGMAX, tuple(map(float, values)), note
    )


def _skipped(keys: Sequence[str], fields: Mapping[str, str]) -> list[str]:
    others = [key for key in keys if key not in fields and key != ARGMAX]
    return [f"columns not judged: {', '.join(others)}"] if others else []


def _split(keys: Sequence[str], path: Path) -> Split:
    sets = {match["set"] for key in keys if (match := _LOGPS.fullmatch(key))}
    test = any("test" in name for name in sets) or "prob_test" in path.name
    return "heldout" if test else "trained"


def _steps(count: int, every: int | None) -> tuple[int, ...]:
    return tuple(i * (every or 1) for i in range(count))


# ---------------------------------------------------------------------------- arrays

_HEAD = ("argmax", "except", "A_o", "p_e", "energy")


def _layouts() -> dict[str, list[str]]:
    """Row names of every layout; ``X_A_o`` and the head's rows are not responses."""
    others = FIELDS[1:]
    return {
        "17 rows": ["chosen", *_HEAD, *others],
        "28 rows": ["chosen", *_HEAD, *(n for f in others for n in (f, f"{f}_A_o"))],
        "17 rows, repaired": [
            *("chosen_A_o", "chosen", "argmax", "except", "p_e", "energy"),
            *(f"{f}_A_o" for f in others),
        ],
        "28 rows, repaired": [
            *("chosen_A_o", "chosen", "argmax", "except", "p_e", "energy"),
            *(n for f in others for n in (f"{f}_A_o", f)),
        ],
    }


def _from_array(path: Path, options: ImportOptions) -> LevelRun:
    array = _load_array(path)
    # the repaired code writes the norm ‖A‖ first, which is positive; a response's
    # log-probability never is
    repaired = bool(np.nanmedian(array[:, 0]) > 0)
    name = f"{array.shape[1]} rows" + (", repaired" if repaired else "")
    layout = _layouts().get(name)
    if layout is None:
        raise StoreError(
            f"{path}: {array.shape[1]} rows an evaluation; known layouts have 17 or 28."
        )
    prompts, columns, notes = {}, [], [f"layout: {name}"]
    for row, field in enumerate(layout):
        values = array[:, row]
        if field in REFERENCE_FIELDS:
            found = LevelColumn(REFERENCE_FIELDS[field], "kind", field, _means(values))
        elif field == "argmax":
            found = _array_argmax(values, repaired)
            notes += [found.note] if found.note else []
        else:
            continue
        columns.append(found)
        prompts[found.name] = values
    kept, remarks = separate_reruns(
        np.array([c.values for c in columns if c.role == "kind"]).T
    )
    notes += remarks
    if sum(column.role == "kind" for column in columns) == 1:
        notes.append("this layout holds no log-probability but chosen's")
    notes.append(
        "prompts count as independent: texts that repeat across them are not known"
    )
    return LevelRun(
        run=options.run,
        origin="reference",
        file=path.name,
        split=options.split or ("heldout" if "test" in path.name else "trained"),
        steps=_steps(len(kept), options.every),
        step_unit="evaluations" if options.every is None else "examples",
        columns=tuple(
            LevelColumn(
                c.name, c.role, c.source, tuple(c.values[i] for i in kept), c.note
            )
            for c in columns
        ),
        objective=options.objective,
        notes=tuple(notes),
        prompts={name: values[kept] for name, values in prompts.items()},
    )


def _load_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except DAMAGED_ARRAY as error:
        raise StoreError(
            f"{path}: cannot be read ({error}). Arrays of objects, such as "
            "argmax_token_*.npy, are never unpickled."
        ) from error
    if not isinstance(array, np.ndarray):  # an archive, which numpy opens unasked
        raise StoreError(f"{path}: holds an archive of arrays (.npz), not one array.")
    if array.ndim != 3 or array.dtype.kind != "f" or len(array) < 2:
        raise StoreError(
            f"{path}: holds {array.dtype} of shape {array.shape}; an array of floats "
            "[evaluations, rows, prompts] with two evaluations or more is needed."
        )
    return np.asarray(array, np.float64)


def _array_argmax(values: np.ndarray, repaired: bool) -> LevelColumn:
    if repaired:
        return LevelColumn("argmax:chosen", "derived", "argmax", _means(values))
    kind = REFERENCE_FIELDS[FIELDS[-1]]
    note = (
        f"the argmax row describes {kind}, not chosen (a bug of the authors' code "
        "before May 2025)"
    )
    return LevelColumn(f"argmax:{kind}", "derived", "argmax", _means(values), note)


def _means(values: np.ndarray) -> tuple[float, ...]:
    """Mean over the prompts that are known; NaN where none is."""
    known = np.isfinite(values)
    counts = known.sum(axis=1)
    sums = np.where(known, values, 0.0).sum(axis=1)
    return tuple(
        float(s / n) if n else math.nan for s, n in zip(sums, counts, strict=True)
    )
