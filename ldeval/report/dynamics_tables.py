"""Predicted changes, influence and risk as tables: terminal and Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ldeval.records import (
    KIND_NAMES,
    Agreement,
    InfluenceTable,
    PairRisk,
    Prediction,
    RiskReport,
)
from ldeval.report.columns import Footnotes, assemble, number_column, text_column
from ldeval.report.escape import visible
from ldeval.report.rounding import UNDEFINED, count, number, percent
from ldeval.report.tables import Table

NAME_LIMIT = 40
"""Longest id that a table shows."""
SETTINGS_LISTED = 8
"""Longest list that a table of settings spells out."""
PULLED_KINDS = (
    "irrelevant_train",
    "irrelevant_test",
    "random_sentence",
    "permuted",
    "random_words",
)
"""Responses that no prompt asked for: what rises here is hallucination or noise."""


def significant(value: float, digits: int = 3) -> str:
    """A number of unknown size, with its sign where it is negative."""
    if math.isnan(value):
        return UNDEFINED
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if -4 <= size < 5:
        return number(value, max(0, digits - 1 - size), signed=False)
    return f"{value:.{digits - 1}e}".replace("-", "−")


# ------------------------------------------------------------------------- prediction


def prediction_tables(found: Prediction) -> Iterator[Table]:
    """How the prediction fared by step size, by kind, and what moved the responses."""
    overall = [a for a in found.agreements if a.kind is None]
    yield _agreement_table(
        "Predicted against measured change, by size of the step",
        [("size", [f"{a.factor:g}×" for a in overall])],
        overall,
        f"{count(len(found.responses), 'response')}. R² of the prediction itself: no "
        "line is fitted. Slope: measured per predicted, 1 is perfect. Errors and "
        "changes in nats per response. Where first order holds, the error grows with "
        f"the square of the size: its log–log slope is {_slope(found.error_slope)}.",
    )
    nearest = min(found.factors, key=lambda f: abs(math.log(f)))
    by_kind = [a for a in found.agreements if a.kind and a.factor == nearest]
    order = {kind: place for place, kind in enumerate(KIND_NAMES)}
    by_kind.sort(key=lambda a: order.get(a.kind or "", len(order)))
    yield _agreement_table(
        f"By kind, at {nearest:g}× the step",
        [("kind", [a.kind or "" for a in by_kind])],
        by_kind,
        "R² within a kind is low where the kind's responses hardly differ in change.",
    )
    if len(found.parts) > 1:
        yield _parts_table(found)


HOLDS = 0.9
"""R² from which the prediction is said to foretell the changes."""


def breaking_sentence(found: Prediction) -> str:
    """Up to which size of the step first order foretold what happened."""
    overall = sorted(
        (a for a in found.agreements if a.kind is None), key=lambda a: a.factor
    )
    broken = next((a for a in overall if not a.r2 >= HOLDS), None)
    held = [a for a in overall if broken is None or a.factor < broken.factor]
    within = f"at least {percent(HOLDS)} of the variance of the measured changes"
    if broken is None:
        sizes = "at every size that was measured, up to" if len(held) > 1 else "at"
        return f"First order foretold {within} {sizes} {held[-1].factor:g}× the step."
    where = f"{broken.factor:g}× the step (R² {number(broken.r2, 3, signed=False)})"
    if not held:
        return (
            f"First order did not foretell {within}, from the smallest size: {where}."
        )
    return (
        f"First order foretold {within} up to {held[-1].factor:g}× the step, and no "
        f"longer at {where}."
    )


def settings_table(settings: Mapping[str, Any], title: str) -> Table:
    """What the numbers depend on."""
    named = {k: v for k, v in settings.items() if v not in (None, "", [], {})}
    cells = [
        count(len(value), "entry", "entries")
        if isinstance(value, list) and len(value) > SETTINGS_LISTED
        else visible(str(value))
        for value in named.values()
    ]
    columns = [
        text_column("setting", [visible(str(key)) for key in named]),
        text_column("value", cells),
    ]
    return assemble(title, columns, "", Footnotes())


def _slope(value: float) -> str:
    return "undefined" if math.isnan(value) else number(value, 2, signed=False)


def _agreement_table(
    title: str,
    keys: Sequence[tuple[str, list[str]]],
    rows: Sequence[Agreement],
    caption: str,
) -> Table:
    columns = [
        *(text_column(heading, cells) for heading, cells in keys),
        number_column("responses", [str(a.n) for a in rows]),
        number_column("R²", [number(a.r2, 4, signed=False) for a in rows]),
        number_column("slope", [number(a.slope, 3, signed=False) for a in rows]),
        number_column("sign right", [percent(a.sign) for a in rows]),
        number_column("rms error", [significant(a.rms_error) for a in rows]),
        number_column("rms change", [significant(a.rms_measured) for a in rows]),
    ]
    return assemble(title, columns, caption, Footnotes())


def _parts_table(found: Prediction) -> Table:
    sizes = {name: float(np.abs(part).mean()) for name, part in found.parts.items()}
    whole = sum(sizes.values())
    columns = [
        text_column("part", list(sizes)),
        number_column("mean size, nats", [significant(s) for s in sizes.values()]),
        number_column(
            "share",
            [percent(s / whole if whole else math.nan) for s in sizes.values()],
        ),
    ]
    return assemble(
        "What moves the responses",
        columns,
        "gradient: this batch. history: what the optimizer remembers of earlier "
        "batches. decay: weight decay.",
        Footnotes(),
    )


# -------------------------------------------------------------------------- influence


def influence_tables(found: InfluenceTable, *, top: int = 3) -> Iterator[Table]:
    """Which examples moved which kind; the extremes; what pushed off-topic text up."""
    yield _kind_influence_table(found, top)
    yield _responses_table(
        found,
        _most_moved(found, range(len(found.responses)), 2 * top),
        top,
        "Responses that the step moves most",
    )
    odd = [i for i, r in enumerate(found.responses) if r.kind in PULLED_KINDS]
    rising = [i for i in odd if found.total[i] > 0]
    if rising:
        yield _responses_table(
            found,
            _most_moved(found, rising, 2 * top),
            top,
            "What pushed up text that no prompt asked for (hallucination, noise)",
        )


def _most_moved(
    found: InfluenceTable, among: Sequence[int] | range, size: int
) -> list[int]:
    return sorted(among, key=lambda i: -abs(float(found.total[i])))[:size]


def _named(found: InfluenceTable, row: np.ndarray, best: bool, top: int) -> str:
    """Examples with the largest push in one direction, with what they push."""
    order = np.argsort(-row if best else row, kind="stable")[:top]
    named = [
        f"{visible(found.examples[i], NAME_LIMIT)} {significant(float(row[i]))}"
        for i in order
        if (row[i] > 0) == best and row[i] != 0
    ]
    return ", ".join(named) or UNDEFINED


def _kind_influence_table(found: InfluenceTable, top: int) -> Table:
    kinds = [k for k in KIND_NAMES if any(r.kind == k for r in found.responses)]
    rows = [
        found.influence[[i for i, r in enumerate(found.responses) if r.kind == kind]]
        for kind in kinds
    ]
    means = [part.mean(axis=0) for part in rows]
    totals = [
        float(
            np.mean(
                [
                    found.total[i]
                    for i, r in enumerate(found.responses)
                    if r.kind == kind
                ]
            )
        )
        for kind in kinds
    ]
    columns = [
        text_column("kind", kinds),
        number_column("whole step", [significant(t) for t in totals]),
        text_column("pushed up by", [_named(found, m, True, top) for m in means]),
        text_column("pushed down by", [_named(found, m, False, top) for m in means]),
    ]
    exactly = "exact" if found.exact else "estimated from projected gradients"
    caption = (
        f"Mean predicted change of ln π, nats per response, {exactly}; "
        f"{count(len(found.responses), 'response')}, "
        f"{count(len(found.examples), 'example')}. Parts and whole differ by at most "
        f"{significant(found.gap, 2)} of the parts' sizes."
    )
    return assemble("Which examples moved which kind", columns, caption, Footnotes())


def _responses_table(
    found: InfluenceTable, places: Sequence[int], top: int, title: str
) -> Table:
    some = [found.responses[i] for i in places]
    columns = [
        text_column("probe", [visible(r.probe_id, NAME_LIMIT) for r in some]),
        text_column("kind", [r.kind for r in some]),
        number_column("whole step", [significant(found.total[i]) for i in places]),
        number_column("history", [significant(found.history[i]) for i in places]),
        text_column(
            "pushed up by",
            [_named(found, found.influence[i], True, top) for i in places],
        ),
        text_column(
            "pushed down by",
            [_named(found, found.influence[i], False, top) for i in places],
        ),
    ]
    caption = "Predicted change of ln π of each response, nats, by training example."
    return assemble(title, columns, caption, Footnotes(), keys=2)


# ------------------------------------------------------------------------------- risk


def risk_table(found: RiskReport, *, top: int = 15) -> Table:
    """The pairs most at risk."""
    pairs: Sequence[PairRisk] = found.pairs[:top]
    falling = {True: "both fall", False: "", None: UNDEFINED}
    columns = [
        text_column("pair", [visible(p.example_id, NAME_LIMIT) for p in pairs]),
        number_column("chosen moves", [significant(p.chosen_change) for p in pairs]),
        number_column(
            "rejected moves", [significant(p.rejected_change) for p in pairs]
        ),
        text_column("", [falling[p.both_fall] for p in pairs]),
        number_column("⟨w,l⟩/‖w‖²", [significant(p.entanglement) for p in pairs]),
        number_column(
            "CHES, normalised", [significant(p.ches_normalised) for p in pairs]
        ),
        number_column("valley", [percent(p.valley) for p in pairs]),
        number_column(
            "edit similarity",
            [number(p.edit_similarity, 2, signed=False) for p in pairs],
        ),
    ]
    judged = [p for p in found.pairs if p.both_fall is not None]
    fall = sum(bool(p.both_fall) for p in judged)
    caption = (
        f"{count(len(found.pairs), 'pair')}, ranked by {found.ranked_by}, most at "
        "risk first; first order, each pair trained alone, nats per unit of learning "
        "rate. valley: rejected's tokens after the first difference with ‖π‖² > p."
    )
    if judged:
        caption += f" Both responses fall in {fall} of {len(judged)}."
    if found.skipped:
        caption += f" {count(len(found.skipped), 'row')} skipped."
    return assemble("Risk before training", columns, caption, Footnotes())
