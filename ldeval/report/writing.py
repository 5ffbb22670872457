"""Writes a report into a folder, each file whole or not at all.

``report.md`` comes last, and an older one goes first: where it is there, everything
that it links to is there too, and of the same report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldeval.errors import MissingExtraError
from ldeval.files import write_together, write_whole
from ldeval.records import Comparison
from ldeval.report.canvas import image
from ldeval.report.dynamics_json import results_json, results_rows
from ldeval.report.figure_plan import plan
from ldeval.report.json_report import dumps, report_json, to_csv
from ldeval.report.markdown import render_markdown
from ldeval.report.page import PageRun, render_page


def write_report(
    comparisons: Sequence[Comparison],
    folder: Path,
    *,
    title: str = "What training changed",
    pages: Sequence[PageRun] = (),
) -> Path:
    """Write the report of one run, or of several stages in their order::

        <folder>/
            report.html     what a reader opens: everything, interactive, offline
            report.md       the same account as Markdown
            report.json     everything, unrounded (docs/report_schema.md)
            *.csv           every table, unrounded: levels by step, changes, flows …
            *.png, *.svg    the figures, where matplotlib is installed

    Args:
        comparisons: At least one comparison.
        folder: Made if it is not there; files of the same name are replaced.
        title: Heading of the report.
        pages: The comparisons again, with the scores and texts of single prompts and
            the results of first order; without them the report has neither.

    Returns:
        The path of ``report.md``.

    Raises:
        MismatchError: a tokenizer does not spell the responses that were scored.
        ValueError: there is no comparison.
        StoreError: the folder cannot be written.
    """
    if not comparisons:
        raise ValueError("a report needs at least one comparison; none came")
    runs = pages or [PageRun(comparison) for comparison in comparisons]
    found = [[results_json(joined) for joined in run.dynamics] for run in runs]
    contents: dict[Path, bytes | str] = {}
    contents[folder / "report.json"] = dumps(report_json(comparisons, title, found))
    rows = [results_rows(records) for records in found]
    for name, text in to_csv(comparisons, rows).items():
        contents[folder / f"{name}.csv"] = text
    contents[folder / "report.html"] = render_page(runs, title=title)
    drawn, figures, remark = _figures(comparisons)
    contents |= {folder / name: image for name, image in drawn.items()}
    report = folder / "report.md"
    contents[report] = render_markdown(
        comparisons,
        figures,
        title=title,
        remark=remark,
        dynamics=[run.dynamics for run in runs],
    )
    write_together(contents)
    return report


def write_page(
    runs: Sequence[PageRun], path: Path, *, title: str = "What training changed"
) -> None:
    """Write the page alone.

    Raises:
        ValueError: there is no run.
        MismatchError: a tokenizer does not spell the responses that were scored.
        StoreError: the file cannot be written.
    """
    text = render_page(runs, title=title)
    write_whole(path, text)


def _figures(
    comparisons: Sequence[Comparison],
) -> tuple[dict[str, bytes], dict[str, str], str | None]:
    """Figures by file name, their links by key, and what to say where none could be
    drawn."""
    drawn: dict[str, bytes] = {}
    links = {}
    for item in plan(comparisons):
        try:
            figure = item.draw()
        except MissingExtraError as error:
            return {}, {}, f"This report has no figures: {error}"
        for kind in ("svg", "png"):
            drawn[f"{item.key}.{kind}"] = image(figure, kind)
        links[item.key] = f"{item.key}.png"
    return drawn, links, None
