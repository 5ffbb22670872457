"""Run A against run B: tables, JSON, and the stitched figure of two trainings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ldeval.files import write_whole
from ldeval.records import KIND_BY_NAME, SPLIT_NAMES, Comparison, CurvePoint, Versus
from ldeval.report.canvas import FONT, image, new_figure, plain_axes
from ldeval.report.columns import (
    Footnotes,
    assemble,
    estimate_columns,
    text_column,
)
from ldeval.report.escape import for_ascii, for_figure, visible
from ldeval.report.json_report import REPORT_SCHEMA_VERSION, plain
from ldeval.report.palette import INK, MUTED, stroke
from ldeval.report.rounding import quote
from ldeval.report.tables import Column, Style, Table, to_terminal, wrap
from ldeval.report.verdict_tables import STATES
from ldeval.report.words import ARGMAX_PREFIX, is_argmax

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HIGHER = {"a": "A", "b": "B", "unclear": "unclear"}
_UNITS = {
    "steps": "steps",
    "examples": "examples",
    "tokens": "tokens",
    "margin": "nats of margin",
}


def versus_json(versus: Versus) -> dict[str, object]:
    """The fields of ``Versus`` as plain values that ``json`` writes without NaN."""
    found: dict[str, object] = plain(versus)
    return {"schema_version": REPORT_SCHEMA_VERSION, **found}


def dumps_versus(versus: Versus) -> str:
    """The same as strict JSON in ASCII."""
    document = versus_json(versus)
    return json.dumps(document, allow_nan=False, ensure_ascii=True, indent=1) + "\n"


def decay_table(versus: Versus) -> Table:
    """Every kind at the last place that both runs reach."""
    rows, notes = versus.decays, Footnotes()
    seeds = [d.seeds for d in rows if d.seeds is not None]
    columns = [
        text_column("kind", [d.kind for d in rows]),
        text_column("probes", [SPLIT_NAMES[d.split] for d in rows]),
        *estimate_columns("A", [d.point.a for d in rows], notes),
        *estimate_columns("B", [d.point.b for d in rows], notes),
        *estimate_columns("B − A", [d.point.difference for d in rows], notes),
        text_column("higher", [_HIGHER[d.slower] for d in rows]),
        *estimate_columns("κ of A", [d.collateral_a for d in rows], notes),
        *estimate_columns("κ of B", [d.collateral_b for d in rows], notes),
    ]
    if len(seeds) == len(rows) and rows:
        columns += estimate_columns("B − A by seeds", seeds, notes)
    whose = "by seeds " if seeds else ""
    return assemble(
        f"A: {versus.run_a}, B: {versus.run_b}, at {versus.reached:g} "
        f"{_UNITS[versus.at]}",
        columns,
        "Δtok since each run's first checkpoint, nats/token, paired by prompt. higher: "
        "the run in which the kind lost less (or gained more), where the whole "
        f"interval {whose}lies beyond ±{versus.noise_floor:g}. κ: what a response lost "
        "for each nat that the margin gained up to there.",
        notes,
        keys=2,
    )


def print_versus(versus: Versus, *, width: int = 100, style: Style = "unicode") -> str:
    """The comparison for a terminal; nothing is printed."""
    tables = [decay_table(versus), _claims(versus)]
    parts = [to_terminal(table, width=width, style=style) for table in tables]
    notes = [visible(note) for note in versus.notes]
    lines = [
        line
        for note in notes
        for line in wrap(for_ascii(note) if style == "ascii" else note, width)
    ]
    return "\n".join([*parts, *lines]) + "\n"


def _claims(versus: Versus) -> Table:
    rows = tuple(
        (
            claim.name,
            claim.statement,
            STATES[claim.state],
            "; ".join(
                [
                    *([claim.reason] if claim.reason else []),
                    *(f"{name}: {quote(e)}" for name, e in claim.effect.items()),
                ]
            ),
        )
        for claim in versus.claims
    )
    return Table(
        "The paper's claims about two runs, trained probes",
        (
            Column("claim", "left"),
            Column("says", "left"),
            Column("state", "left"),
            Column("what decides it", "left"),
        ),
        rows,
        "99% intervals over prompts. A claim about a method needs several seeds.",
    )


# ----------------------------------------------------------------------------- figure

_PANELS = ("chosen", "rejected", "others", "argmax")
_STYLES = (("-", 2.2), ("--", 1.8))


def stitched_figure(sides: Sequence[Sequence[Comparison]]) -> Figure:
    """The paper's figure of SFT followed by DPO: four panels, both trainings in each.

    Args:
        sides: for run A and for run B, its stages in order of training; the last is
            the run itself.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(13.0, 3.6)
    scale = _scale(sides)
    for i, name in enumerate(_PANELS):
        axes = figure.add_axes((0.055 + 0.24 * i, 0.16, 0.19, 0.62))
        plain_axes(axes)
        for side, (line, width) in zip(sides, _STYLES, strict=True):
            _draw(axes, side, name, scale, line, width)
        axes.set_title(name, fontsize=FONT, loc="left")
        axes.set_xlabel("training step", fontsize=FONT)
        if i == 0:
            unit = "nats / token" if scale == "per_token" else "nats / response"
            axes.set_ylabel(f"log-probability, {unit}", fontsize=FONT)
    names = [for_figure(side[-1].run, 30) for side in sides]
    figure.text(
        0.02,
        0.93,
        f"solid: {names[0]}; dashed: {names[1]}; trained probes",
        fontsize=FONT,
        color=INK,
    )
    return figure


def _scale(sides: Sequence[Sequence[Comparison]]) -> str:
    points = [p for side in sides for stage in side for p in stage.curves]
    known = any(math.isfinite(p.per_token.value) for p in points)
    return "per_token" if known else "mean_sum"


def _draw(
    axes: Axes,
    side: Sequence[Comparison],
    panel: str,
    scale: str,
    line: str,
    width: float,
) -> None:
    start = 0.0
    for number, stage in enumerate(side):
        points: dict[str, list[CurvePoint]] = {}
        for point in stage.curves:
            if point.split == "trained" and _panel_of(point.kind) == panel:
                points.setdefault(point.kind, []).append(point)
        for kind, found in points.items():
            found.sort(key=lambda point: point.step)
            x = [start + p.step - stage.steps[0] for p in found]
            y = [getattr(p, scale).value for p in found]
            axes.plot(x, y, line, color=stroke(kind).colour, linewidth=width, gid=kind)
        start += stage.steps[-1] - stage.steps[0]
        if number < len(side) - 1:
            axes.axvline(start, color=MUTED, linewidth=0.7)


def _panel_of(kind: str) -> str | None:
    if kind in ("chosen", "rejected"):
        return kind
    if kind.startswith(ARGMAX_PREFIX):
        return "argmax"
    return "others" if kind in KIND_BY_NAME and not is_argmax(kind) else None


def write_stitched(sides: Sequence[Sequence[Comparison]], path: Path) -> None:
    """Draw :func:`stitched_figure` into a PNG or an SVG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    kind: Literal["png", "svg"] = "svg" if path.suffix == ".svg" else "png"
    write_whole(path, image(stitched_figure(sides), kind))
