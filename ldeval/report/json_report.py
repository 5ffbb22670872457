"""The comparison as strict JSON and as CSV, unrounded.

The schema is described in ``docs/report_schema.md``. What is not a finite number is
``null`` with the estimate's reason, since JSON has no NaN; in CSV it is an empty cell.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ldeval.records import QUANTILES, Comparison, Estimate, PairComparison, Verdict
from ldeval.report.escape import for_csv

REPORT_SCHEMA_VERSION = 1
"""Version of the JSON report; it grows when a key changes its meaning or goes."""

_NOT_FINITE = "not a finite number"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """One comparison as plain values that ``json`` writes without NaN."""
    return {
        "schema_version": REPORT_SCHEMA_VERSION,
        "run": comparison.run,
        "steps": plain(comparison.steps),
        "kinds": list(comparison.kinds),
        "curves": plain(comparison.curves),
        "pairs": [_pair(pair) for pair in comparison.pairs],
        "overall": _pair(comparison.overall),
        "trajectories": plain(comparison.trajectories),
        "richer": plain(comparison.richer),
        "laws": plain(comparison.laws),
        "cross": plain(comparison.cross),
        "claims": plain(comparison.claims),
        "verdicts": [_verdict(verdict) for verdict in comparison.verdicts],
        "noise_floor": plain(comparison.noise_floor),
        "flow_floor": plain(comparison.flow_floor),
        "persistence_assessed": comparison.persistence_assessed,
        "excluded": plain(comparison.excluded),
        "notes": list(comparison.notes),
        "manifests": plain(comparison.manifests),
        "greedy": plain(comparison.greedy),
    }


def report_json(
    comparisons: Sequence[Comparison],
    title: str,
    dynamics: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> dict[str, Any]:
    """Several comparisons in one document: ``schema_version``, ``title``, ``runs``.

    Args:
        dynamics: for each comparison, results of first order as plain values; a run
            that has none has no such key.
    """
    runs = [to_json(comparison) for comparison in comparisons]
    for run, found in zip(runs, dynamics or [()] * len(runs), strict=True):
        if found:
            run["dynamics"] = list(found)
    return {
        "schema_version": REPORT_SCHEMA_VERSION,
        "title": title,
        "runs": runs,
    }


def dumps(content: Comparison | Mapping[str, Any]) -> str:
    """Strict JSON in ASCII, of a comparison or of a document made from some.

    Raises:
        ValueError: a NaN or an infinity is left in the document.
    """
    document = to_json(content) if isinstance(content, Comparison) else content
    return json.dumps(document, allow_nan=False, ensure_ascii=True, indent=1) + "\n"


def _pair(pair: PairComparison) -> dict[str, Any]:
    found: dict[str, Any] = plain(pair)
    for key in ("only_before", "only_after"):
        names = getattr(pair, key)
        found[key] = [{"probe_id": p, "kind": kind} for p, kind in names]
    return found


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """The evidence stands once, at the verdict; conjuncts name what they rest on."""
    evidence, conjuncts = {}, []
    for conjunct in verdict.conjuncts:
        named = {f"{conjunct.name}.{k}": e for k, e in conjunct.evidence.items()}
        evidence.update(named)
        found = plain(dataclasses.replace(conjunct, evidence={}))
        conjuncts.append(found | {"evidence": list(named)})
    return {
        "name": verdict.name,
        "state": verdict.state,
        "split": verdict.split,
        "evidence": plain(evidence),
        "conjuncts": conjuncts,
        "reason": verdict.reason,
        "details": plain(verdict.details),
    }


def plain(value: Any) -> Any:
    """Dataclasses, tuples, numpy's numbers and arrays as what JSON knows."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Estimate):
        return _estimate(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {item.name: plain(getattr(value, item.name)) for item in fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _estimate(estimate: Estimate) -> dict[str, Any]:
    fields = {
        item.name: getattr(estimate, item.name) for item in dataclasses.fields(estimate)
    }
    found = {name: plain(value) for name, value in fields.items()}
    missing = any(found[name] is None for name in ("value", "low", "high", "se"))
    if missing and found["reason"] is None:
        found["reason"] = _NOT_FINITE
    return found


# ------------------------------------------------------------------------------ CSV

_ENDS = ("value", "low", "high", "se", "level", "n", "clusters", "reason")
_Row = dict[str, Any]


def to_csv(
    comparisons: Comparison | Sequence[Comparison],
    dynamics: Sequence[Mapping[str, Sequence[_Row]]] = (),
) -> dict[str, str]:
    """Each table of a comparison as CSV text by name, full precision.

    Numbers are Python's shortest exact form; undefined ones are empty and their reason
    stands in the estimate's ``_reason`` column. Text that a spreadsheet would run as a
    formula gets a leading apostrophe.

    Args:
        comparisons: One, or several.
        dynamics: for each, the rows of further tables by their names.
    """
    stages = [comparisons] if isinstance(comparisons, Comparison) else list(comparisons)
    tables: dict[str, list[_Row]] = {}
    for stage, more in zip(stages, dynamics or [{}] * len(stages), strict=True):
        for name, rows in [*_tables(stage).items(), *more.items()]:
            named = [{"run": stage.run} | row for row in rows]
            tables.setdefault(name, []).extend(named)
    return {name: _write(rows) for name, rows in tables.items() if rows}


def _tables(stage: Comparison) -> dict[str, list[_Row]]:
    crossed = [(cross.split, cross) for cross in stage.cross]
    path = stage.greedy
    return {
        "curves": [_cells(point) for point in stage.curves],
        "changes": _by_pair(stage, lambda pair: pair.changes),
        "margins": _by_pair(stage, lambda pair: pair.margins),
        "flows": _by_pair(stage, lambda pair: pair.flows),
        "influence": _by_pair(stage, lambda pair: pair.influence),
        "trajectories": [_cells(path) for path in stage.trajectories],
        "laws": [_cells(law) for law in stage.laws],
        "richer": [
            {"kind": curve.kind, "split": curve.split} | _cells(item)
            for curve in stage.richer
            for item in curve.bins
        ],
        "pulls": [{"split": s} | _cells(p) for s, c in crossed for p in c.pulls],
        "locations": [
            {"split": s} | _cells(p) for s, c in crossed for p in c.locations
        ],
        "spill": [{"split": s} | _cells(p) for s, c in crossed for p in c.spill],
        "similarity": [
            {"split": s} | _cells(p) for s, c in crossed for p in c.similarity
        ],
        "greedy": [] if path is None else [_cells(step) for step in path.steps],
        "greedy_prompts": [] if path is None else [_cells(m) for m in path.moves],
        "claims": [
            {"claim": claim.name, "split": claim.split, "state": claim.state}
            | {"evidence": name}
            | _estimate_cells("estimate", value)
            for claim in stage.claims
            for name, value in (claim.effect or {"": _NO_EVIDENCE}).items()
        ],
        "verdicts": [
            {"verdict": verdict.name, "split": verdict.split, "state": verdict.state}
            | {"condition": conjunct.name, "truth": conjunct.truth, "evidence": name}
            | _estimate_cells("estimate", value)
            for verdict in stage.verdicts
            for conjunct in verdict.conjuncts
            for name, value in (conjunct.evidence or {"": _NO_EVIDENCE}).items()
        ],
    }


_NO_EVIDENCE = Estimate.undefined("no estimate is behind it", unit="", level=0.99)


def _by_pair(
    stage: Comparison, of: Callable[[PairComparison], Sequence[Any]]
) -> list[_Row]:
    scoped = [("overall", stage.overall)]
    scoped += [("successive", pair) for pair in stage.pairs]
    return [
        {"scope": scope, "before": pair.before, "after": pair.after} | _cells(item)
        for scope, pair in scoped
        for item in of(pair)
    ]


def _cells(record: Any) -> _Row:
    """A record's fields as columns: estimates in several, quantiles one each."""
    row: _Row = {}
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        if isinstance(value, Estimate):
            row |= _estimate_cells(item.name, value)
        elif item.name == "quantiles":
            names = [f"q{round(100 * q):02d}" for q in QUANTILES]
            row |= dict(zip(names, value, strict=True))
        else:
            row[item.name] = value
    return row


def _estimate_cells(name: str, estimate: Estimate) -> _Row:
    found = _estimate(estimate)
    return {name if e == "value" else f"{name}_{e}": found[e] for e in _ENDS}


def _write(rows: Sequence[_Row]) -> str:
    lines = [list(rows[0]), *([_cell(v) for v in row.values()] for row in rows)]
    return "".join(",".join(map(_quoted, line)) + "\n" for line in lines)


def _quoted(cell: str) -> str:
    # csv.writer leaves a lone carriage return bare where lines end in a line feed, and
    # readers take it for the end of the row: what follows would be a cell of its own
    if not any(c in cell for c in ',"\r\n'):
        return cell
    return '"' + cell.replace('"', '""') + '"'


def _cell(value: Any) -> str:
    found = plain(value)
    if found is None:
        return ""
    return for_csv(found) if isinstance(found, str) else repr(found)
