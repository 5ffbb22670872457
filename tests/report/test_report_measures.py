"""What is measured over a whole run, from a real comparison to tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from ldeval.compare import compare_run
from ldeval.records import Comparison
from ldeval.report import dumps, print_summary, render_markdown, to_csv
from ldeval.report.figure_plan import plan
from ldeval.report.measure_tables import (
    claim_table,
    law_table,
    leak_table,
    location_table,
    pull_table,
    richer_table,
    similarity_table,
    spill_table,
    threshold_table,
    trajectory_table,
)
from ldeval.report.tables import Table, display_width, to_markdown, to_terminal
from tests.compare.conftest import make_world, squeezed
from tests.report.test_report_files import documented


@pytest.fixture(scope="module")
def measured() -> Comparison:
    """Three checkpoints of a squeezed run with 24 trained and 6 held-out probes."""
    first = make_world(24, 6, tokens=(6, 12))
    second = first.changed(squeezed(1))
    third = second.changed(squeezed(2))
    tables = [w.table(10 * i, first) for i, w in enumerate((first, second, third))]
    log = {5: frozenset(first.probes[:12]), 15: frozenset(first.probes[12:24])}
    return compare_run(tables, run="dpo", trained_log=log, replicates=199)


def tables_of(comparison: Comparison) -> list[Table]:
    crossed = [location_table, pull_table, spill_table, similarity_table]
    whole = [law_table, threshold_table, richer_table, leak_table, claim_table]
    return [
        trajectory_table(comparison, "trained"),
        *(make(comparison) for make in whole),
        *(make(cross) for cross in comparison.cross for make in crossed),
    ]


def test_every_measure_has_a_table_that_fits_a_terminal(measured: Comparison) -> None:
    for table in tables_of(measured):
        assert table.rows, table.title
        assert to_markdown(table)
        lines = to_terminal(table, width=90).splitlines()
        assert max(map(display_width, lines)) <= 90
        assert to_terminal(table, style="ascii").isascii()


def test_the_report_shows_every_table(measured: Comparison) -> None:
    page = render_markdown(measured, {})
    for table in tables_of(measured):
        assert table.title.split(",")[0] in page


def test_every_new_section_of_the_json_is_documented(measured: Comparison) -> None:
    run: dict[str, Any] = json.loads(dumps(measured))
    for section, key in (
        ("trajectory", "trajectories"),
        ("richer curve", "richer"),
        ("law", "laws"),
        ("cross influence", "cross"),
        ("claim", "claims"),
    ):
        assert run[key]
        for record in run[key]:
            assert set(record) == documented(section), section


def test_every_measure_has_a_csv_with_one_row_each(measured: Comparison) -> None:
    tables = to_csv(measured)
    rows = {n: list(csv.DictReader(io.StringIO(text))) for n, text in tables.items()}
    assert len(rows["trajectories"]) == len(measured.trajectories)
    assert len(rows["richer"]) == sum(len(c.bins) for c in measured.richer)
    assert len(rows["spill"]) == sum(len(c.spill) for c in measured.cross)
    first = measured.trajectories[0]
    assert float(rows["trajectories"][0]["end"]) == first.end.value
    change = measured.overall.changes[0]
    assert float(rows["changes"][0]["q50"]) == change.quantiles[2]
    claimed = {(row["claim"], row["state"]) for row in rows["claims"]}
    assert claimed == {(c.name, c.state) for c in measured.claims}


def test_the_summary_names_states_and_claims(measured: Comparison) -> None:
    text = print_summary(measured)
    assert "The paper's claims" in text
    assert "squeezing" in text


def test_rich_and_poor_and_likeness_have_figures(measured: Comparison) -> None:
    figures = {item.key: item for item in plan([measured])}
    richer = figures["richer"].draw()
    assert len(richer.axes) == 2
    lines = {line.get_gid() for axes in richer.axes for line in axes.get_lines()}
    assert {"chosen/trained", "rejected/trained"} <= lines
    drawn = richer.axes[0].get_lines()[0].get_ydata()
    assert list(drawn) == [item.change.value for item in measured.richer[0].bins]
    slopes = figures["similarity"].draw().axes[0].get_lines()[0].get_ydata()
    assert list(slopes) == [p.slope.value for p in measured.cross[0].similarity]
