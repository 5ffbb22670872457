"""Results of first order as the page, ``report.json`` and the CSV files hold them.

Unrounded, and bounded: of every response the examples with the largest influence, of
long lists the first so many. How many there were stands beside each; the whole is in
the files that the results came from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ldeval.records import InfluenceTable, Prediction, RiskReport
from ldeval.report.dynamics_match import Joined
from ldeval.report.dynamics_tables import PULLED_KINDS, breaking_sentence
from ldeval.report.json_report import plain

EXAMPLES = 20
"""Examples that are shown of a response: so many that pushed it up, and down."""
POINTS, MOVED, PAIRS = 5_000, 2_000, 2_000
"""Responses of a prediction and of an influence table, and pairs, that are shown."""


def results_json(joined: Joined) -> dict[str, Any]:
    """Results beside a run as plain values; what was not computed is None."""
    found = joined.results
    return {
        "name": joined.name,
        "step": joined.step,
        "checked": list(joined.checked),
        "prediction": found.prediction and _prediction(found.prediction),
        "influence": found.influence and _influence(found.influence),
        "risk": found.risk and _risk(found.risk),
    }


def _prediction(found: Prediction) -> dict[str, Any]:
    predicted = found.predicted
    rows = [
        {
            **dataclasses.asdict(response),
            "predicted": predicted[i],
            "parts": {name: part[i] for name, part in found.parts.items()},
            "measured": found.measured[:, i],
        }
        for i, response in enumerate(found.responses)
    ]
    error = np.abs(found.measured - np.outer(found.factors, predicted)).max(axis=0)
    kept = sorted(_widest(error, POINTS))
    return {
        "settings": plain(found.settings),
        "factors": list(found.factors),
        "parts": list(found.parts),
        "error_slope": plain(found.error_slope),
        "words": breaking_sentence(found),
        "agreements": plain(found.agreements),
        "count": len(rows),
        "responses": plain([rows[i] for i in kept]),
    }


def _widest(error: np.ndarray, size: int) -> list[int]:
    """All places, or the half of ``size`` with the largest error and of the others
    every so many-th, so that neither outliers nor the bulk go unseen."""
    order: list[int] = np.argsort(-error, kind="stable").tolist()
    if len(order) <= size:
        return order
    first, others = order[: size // 2], order[size // 2 :]
    return first + others[:: math.ceil(len(others) / (size - len(first)))]


def _influence(found: InfluenceTable) -> dict[str, Any]:
    rows = [_moved(found, i) for i in _order(found)[:MOVED]]
    shown = {item["example_id"] for row in rows for item in row["up"] + row["down"]}
    return {
        "settings": plain(found.settings),
        "exact": found.exact,
        "gap": plain(found.gap),
        "projection": plain(found.projection),
        "texts": {k: dict(v) for k, v in found.texts.items() if k in shown},
        "examples": len(found.examples),
        "count": len(found.responses),
        "responses": plain(rows),
    }


def _order(found: InfluenceTable) -> list[int]:
    """Text that no prompt asked for and that rises first, then what moves most."""

    def rank(i: int) -> tuple[bool, float]:
        total = float(found.total[i])
        pulled = found.responses[i].kind in PULLED_KINDS and total > 0
        return not pulled, -abs(total)

    return sorted(range(len(found.responses)), key=rank)


def _moved(found: InfluenceTable, i: int) -> dict[str, Any]:
    """One response, taken apart: what pushed it up and down, and what is left."""
    row = found.influence[i]
    order = np.argsort(-row, kind="stable")
    up = [int(m) for m in order[:EXAMPLES] if row[m] > 0]
    down = [int(m) for m in order[::-1][:EXAMPLES] if row[m] < 0]
    history, decay = float(found.history[i]), float(found.decay[i])
    size = float(np.abs(row).sum()) + abs(history) + abs(decay)

    def named(places: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {
                "example_id": found.examples[m],
                "influence": float(row[m]),
                "share": float(row[m]) / size if size else math.nan,
            }
            for m in places
        ]

    shown = up + down
    return {
        **dataclasses.asdict(found.responses[i]),
        "total": float(found.total[i]),
        "history": history,
        "decay": decay,
        "size": size,
        "up": named(up),
        "down": named(down),
        "rest": float(row.sum() - row[shown].sum()),
        "rest_count": len(row) - len(shown),
    }


def _risk(found: RiskReport) -> dict[str, Any]:
    return {
        "settings": plain(found.settings),
        "ranked_by": found.ranked_by,
        "count": len(found.pairs),
        "skipped": len(found.skipped),
        "pairs": [
            {"rank": i} | plain(pair) | {"both_fall": pair.both_fall}
            for i, pair in enumerate(found.pairs[:PAIRS], 1)
        ],
    }


# -------------------------------------------------------------------------------- CSV

_Row = dict[str, Any]


def results_rows(records: Iterable[dict[str, Any]]) -> dict[str, list[_Row]]:
    """Rows of the CSV files by their names, from what :func:`results_json` gave."""
    tables: dict[str, list[_Row]] = {}
    for record in records:
        makers = (
            ("prediction", _prediction_rows),
            ("influence", _influence_rows),
            ("risk", _risk_rows),
        )
        for part, make in makers:
            if record[part] is None:
                continue
            for name, rows in make(record[part]).items():
                named = [{"results": record["name"]} | row for row in rows]
                tables.setdefault(name, []).extend(named)
    return tables


_KEYS = ("probe_id", "kind", "split", "n_tokens", "logprob")


def _prediction_rows(record: _Row) -> dict[str, list[_Row]]:
    points = [
        {key: row[key] for key in _KEYS}
        | {
            "factor": factor,
            "predicted": None
            if row["predicted"] is None
            else factor * row["predicted"],
            "measured": measured,
        }
        for row in record["responses"]
        for factor, measured in zip(record["factors"], row["measured"], strict=True)
    ]
    return {"predictions": points, "agreements": record["agreements"]}


def _influence_rows(record: _Row) -> dict[str, list[_Row]]:
    more = ("total", "history", "decay", "size", "rest", "rest_count")
    pushes = [
        {"probe_id": row["probe_id"], "kind": row["kind"]} | item
        for row in record["responses"]
        for item in row["up"] + row["down"]
    ]
    moved = [{key: row[key] for key in _KEYS + more} for row in record["responses"]]
    return {"moved": moved, "example_influence": pushes}


def _risk_rows(record: _Row) -> dict[str, list[_Row]]:
    return {"risk": record["pairs"]}
