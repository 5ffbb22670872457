"""A prediction, an influence table and a risk report as files that people open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldeval.errors import MissingExtraError
from ldeval.files import write_whole
from ldeval.records import InfluenceTable, Prediction, RiskReport
from ldeval.report.canvas import image
from ldeval.report.dynamics_plots import influence_figure, scatter_figure
from ldeval.report.dynamics_tables import (
    influence_tables,
    prediction_tables,
    risk_table,
)
from ldeval.report.escape import for_markdown
from ldeval.report.tables import Table, to_markdown, to_terminal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def prediction_text(found: Prediction) -> str:
    """For a terminal."""
    return _terminal(prediction_tables(found))


def influence_text(found: InfluenceTable) -> str:
    """For a terminal."""
    return _terminal(influence_tables(found))


def risk_text(found: RiskReport) -> str:
    """For a terminal."""
    return to_terminal(risk_table(found))


def write_prediction_report(found: Prediction, folder: Path) -> Path:
    """``prediction.md`` and, with matplotlib, its scatter; returns the former."""
    tables = prediction_tables(found)
    return _write(
        folder,
        "prediction",
        "Predicted against measured change",
        tables,
        lambda: scatter_figure(found),
        found.settings,
    )


def write_influence_report(found: InfluenceTable, folder: Path) -> Path:
    """``influence.md`` and, with matplotlib, its map; returns the former."""
    return _write(
        folder,
        "influence",
        "Which training example moved which response",
        influence_tables(found),
        lambda: influence_figure(found),
        found.settings,
    )


def _terminal(tables: Iterable[Table]) -> str:
    return "\n".join(to_terminal(table) for table in tables)


def _write(
    folder: Path,
    name: str,
    title: str,
    tables: Iterable[Table],
    draw: Callable[[], Figure],
    settings: Mapping[str, Any],
) -> Path:
    lines = [f"# {title}", ""]
    try:
        figure = draw()
    except MissingExtraError as error:
        lines += [f"This report has no figure: {for_markdown(str(error))}", ""]
    else:
        write_whole(folder / f"{name}.png", image(figure, "png"))
        write_whole(folder / f"{name}.svg", image(figure, "svg"))
        lines += [f"![{title}]({name}.png)", ""]
    lines += [to_markdown(table, heading=2) for table in tables]
    lines += ["## Settings", ""]
    lines += [
        f"- {for_markdown(str(key))}: {for_markdown(str(value))}"
        for key, value in settings.items()
    ]
    path = folder / f"{name}.md"
    text = "\n".join(lines) + "\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))
    return path
