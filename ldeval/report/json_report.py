"""The comparison as strict JSON and as CSV, unrounded.

The schema is described in ``docs/report_schema.md``. What is not a finite number is
``null`` with the estimate's reason, since JSON has no NaN; in CSV it is an empty cell.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ldeval.records import Comparison, Estimate, PairComparison, Verdict
from ldeval.report.escape import for_csv

REPORT_SCHEMA_VERSION = 1
"""Version of the JSON report; it grows when a key changes its meaning or goes."""

_NOT_FINITE = "not a finite number"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """One comparison as plain values that ``json`` writes without NaN."""
    return {
        "schema_version": REPORT_SCHEMA_VERSION,
        "run": comparison.run,
        "steps": _plain(comparison.steps),
        "kinds": list(comparison.kinds),
        "curves": _plain(comparison.curves),
        "pairs": [_pair(pair) for pair in comparison.pairs],
        "overall": _pair(comparison.overall),
        "verdicts": [_verdict(verdict) for verdict in comparison.verdicts],
        "noise_floor": _plain(comparison.noise_floor),
        "persistence_assessed": comparison.persistence_assessed,
        "excluded": _plain(comparison.excluded),
        "notes": list(comparison.notes),
        "manifests": _plain(comparison.manifests),
    }


def report_json(comparisons: Sequence[Comparison], title: str) -> dict[str, Any]:
    """Several comparisons in one document: ``schema_version``, ``title``, ``runs``."""
    return {
        "schema_version": REPORT_SCHEMA_VERSION,
        "title": title,
        "runs": [to_json(comparison) for comparison in comparisons],
    }


def dumps(content: Comparison | Mapping[str, Any]) -> str:
    """Strict JSON in ASCII, of a comparison or of a document made from some.

    Raises:
        ValueError: a NaN or an infinity is left in the document.
    """
    document = to_json(content) if isinstance(content, Comparison) else content
    return json.dumps(document, allow_nan=False, ensure_ascii=True, indent=1) + "\n"


def _pair(pair: PairComparison) -> dict[str, Any]:
    plain: dict[str, Any] = _plain(pair)
    for key in ("only_before", "only_after"):
        names = getattr(pair, key)
        plain[key] = [{"probe_id": p, "kind": kind} for p, kind in names]
    return plain


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """The evidence stands once, at the verdict; conjuncts name what they rest on."""
    evidence, conjuncts = {}, []
    for conjunct in verdict.conjuncts:
        named = {f"{conjunct.name}.{k}": e for k, e in conjunct.evidence.items()}
        evidence.update(named)
        plain = _plain(dataclasses.replace(conjunct, evidence={}))
        conjuncts.append(plain | {"evidence": list(named)})
    return {
        "name": verdict.name,
        "state": verdict.state,
        "split": verdict.split,
        "evidence": _plain(evidence),
        "conjuncts": conjuncts,
        "reason": verdict.reason,
        "details": _plain(verdict.details),
    }


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and numpy numbers as what JSON knows."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Estimate):
        return _estimate(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {item.name: _plain(getattr(value, item.name)) for item in fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _estimate(estimate: Estimate) -> dict[str, Any]:
    fields = {
        item.name: getattr(estimate, item.name) for item in dataclasses.fields(estimate)
    }
    plain = {name: _plain(value) for name, value in fields.items()}
    missing = any(plain[name] is None for name in ("value", "low", "high", "se"))
    if missing and plain["reason"] is None:
        plain["reason"] = _NOT_FINITE
    return plain


# ------------------------------------------------------------------------------ CSV

_ENDS = ("value", "low", "high", "se", "level", "n", "clusters")
_CHANGES = ("delta_sum", "delta_tok", "first", "body", "end")


def to_csv(comparisons: Comparison | Sequence[Comparison]) -> dict[str, str]:
    """``curves`` and ``changes`` as CSV text, full precision.

    Numbers are Python's shortest exact form; undefined ones are empty and their reason
    stands in the estimate's ``_reason`` column. Text that a spreadsheet would run as a
    formula gets a leading apostrophe.
    """
    stages = [comparisons] if isinstance(comparisons, Comparison) else list(comparisons)
    curves = [row for stage in stages for row in _curve_rows(stage)]
    changes = [row for stage in stages for row in _change_rows(stage)]
    curve_head = ["run", "step", "split", "kind"]
    change_head = [
        *("run", "scope", "before", "after", "split", "kind", "n", "mean_tokens"),
        *("before_sum", "after_sum", "share_fell"),
    ]
    levels = _estimate_heads(("mean_sum", "per_token"))
    return {
        "curves": _write([*curve_head, *levels], curves),
        "changes": _write([*change_head, *_estimate_heads(_CHANGES)], changes),
    }


def _estimate_heads(names: Iterable[str]) -> list[str]:
    return [
        name if end == "value" else f"{name}_{end}"
        for name in names
        for end in (*_ENDS, "reason")
    ]


def _estimate_cells(estimate: Estimate) -> list[Any]:
    plain = _estimate(estimate)
    return [plain[name] for name in (*_ENDS, "reason")]


def _curve_rows(comparison: Comparison) -> Iterable[list[Any]]:
    for point in comparison.curves:
        row = [comparison.run, point.step, point.split, point.kind]
        yield row + _estimate_cells(point.mean_sum) + _estimate_cells(point.per_token)


def _change_rows(comparison: Comparison) -> Iterable[list[Any]]:
    scoped = [("overall", comparison.overall)]
    scoped += [("successive", pair) for pair in comparison.pairs]
    for scope, pair in scoped:
        for change in pair.changes:
            row = [comparison.run, scope, pair.before, pair.after]
            row += [change.split, change.kind, change.n, change.mean_tokens]
            row += [change.before_sum, change.after_sum, change.share_fell]
            for name in _CHANGES:
                row += _estimate_cells(getattr(change, name))
            yield row


def _write(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    plain = _plain(value)
    if plain is None:
        return ""
    return for_csv(plain) if isinstance(plain, str) else repr(plain)
