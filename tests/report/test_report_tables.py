"""Tables as values and their two renderings."""

from __future__ import annotations

import re

import pytest

from ldeval.records import KIND_NAMES, Comparison
from ldeval.report.change_tables import (
    change_table,
    flow_table,
    influence_table,
    margin_table,
    pairs_table,
)
from ldeval.report.provenance import (
    checkpoint_table,
    common_table,
    excluded_table,
    notes_table,
)
from ldeval.report.tables import (
    Column,
    Table,
    display_width,
    to_markdown,
    to_terminal,
    wrap,
)
from ldeval.report.verdict_tables import conjunct_table, verdict_table


def all_tables(comparison: Comparison) -> dict[str, tuple[Table, int]]:
    """Every table with the rows it must have."""
    pair, floor = comparison.overall, comparison.noise_floor
    kinds = len(KIND_NAMES)
    return {
        "trained": (change_table(pair, "trained", floor), kinds + 2),
        "heldout": (change_table(pair, "heldout", floor), kinds + 2),
        "brief": (change_table(pair, "trained", floor, brief=True), kinds + 2),
        "margin": (margin_table(pair), 2),
        "flow": (flow_table(pair), 2 * 2 * 4),
        "influence": (influence_table(pair, "trained"), kinds),
        "pairs": (pairs_table(comparison, "heldout"), kinds + 2),
        "verdicts": (verdict_table(comparison), 4),
        "evidence": (conjunct_table(comparison, "trained"), 6),
        "excluded": (excluded_table(comparison), 3),
        "notes": (notes_table(comparison), 2),
        "settings": (common_table(comparison), 11),
        "checkpoints": (checkpoint_table(comparison), 5),
    }


NAMES = (
    *("trained", "heldout", "brief", "margin", "flow", "influence", "pairs"),
    *("verdicts", "evidence", "excluded", "notes", "settings", "checkpoints"),
)


@pytest.mark.parametrize("name", NAMES)
def test_every_table_has_its_rows_in_markdown(
    comparison: Comparison, name: str
) -> None:
    table, rows = all_tables(comparison)[name]
    lines = [x for x in to_markdown(table).splitlines() if x.startswith("|")]
    assert len(table.rows) == rows
    assert len(lines) == rows + 2
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert bars == {len(table.columns) + 1}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [64, 80, 100, 250])
def test_no_line_of_a_table_is_wider_than_the_terminal(
    comparison: Comparison, name: str, width: int
) -> None:
    table, _ = all_tables(comparison)[name]
    lines = to_terminal(table, width=width).splitlines()
    assert max(map(display_width, lines)) <= width


@pytest.mark.parametrize("name", NAMES)
def test_a_wide_terminal_shows_every_row_and_the_ascii_form_is_ascii(
    comparison: Comparison, name: str
) -> None:
    table, rows = all_tables(comparison)[name]
    text = to_terminal(table, width=10_000)
    between = text.split("─\n")[2]
    assert between.count("\n") == rows
    assert to_terminal(table, style="ascii").isascii()


def test_a_narrow_terminal_breaks_a_table_but_repeats_its_keys_and_cuts_no_number(
    comparison: Comparison,
) -> None:
    table = change_table(comparison.overall, "trained", comparison.noise_floor)
    text = to_terminal(table, width=60)
    assert text.count("random_words") > 1
    for row in table.rows:
        assert all(cell in text for cell in row)


def test_an_interval_stays_beside_its_number() -> None:
    columns = (Column("k", "left"), Column("a" * 20), Column("b" * 20, tied=True))
    text = to_terminal(Table("t", columns, (("k", "1", "2"),)), width=30)
    assert "1" in next(line for line in text.splitlines() if line.endswith("2"))


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 2 cells for 1 columns"):
        Table("t", (Column("a"),), (("1", "2"),))


def test_wide_letters_count_twice_and_accents_nothing() -> None:
    assert display_width("日本") == 4
    assert display_width("e\u0301") == 1
    assert all(display_width(line) <= 5 for line in wrap("日本語日本語 abc", 5))


def test_an_undefined_cell_refers_to_its_reason(comparison: Comparison) -> None:
    table = change_table(comparison.overall, "heldout", comparison.noise_floor)
    cells = [cell for row in table.rows for cell in row]
    assert cells.count("– (1)") == 1
    assert table.notes == ("(1) undefined: fewer than 3 tokens <in a response>",)


def test_trained_and_heldout_are_never_in_one_change_table(
    comparison: Comparison,
) -> None:
    table = change_table(comparison.overall, "trained", comparison.noise_floor)
    assert "trained probes" in table.title
    assert {row[1] for row in table.rows} == {"64"}


def test_slopes_whose_interval_excludes_zero_are_marked(
    comparison: Comparison,
) -> None:
    table = influence_table(comparison.overall, "trained")
    heads = [column.heading for column in table.columns]
    for cell in comparison.overall.influence:
        if cell.split == "trained":
            row = next(r for r in table.rows if r[0] == cell.source)
            shown = row[heads.index(cell.target)]
            excludes = cell.slope.low > 0 or cell.slope.high < 0
            assert ("*" in shown) == excludes


def test_many_successive_pairs_become_rows(make_comparison: object) -> None:
    assert callable(make_comparison)
    many = make_comparison("dpo", steps=tuple(range(0, 1000, 100)))
    table = pairs_table(many, "trained")
    assert len(table.rows) == 9
    assert table.columns[0].heading == "steps"


def test_left_out_responses_are_counted_and_the_first_ten_are_named(
    comparison: Comparison,
) -> None:
    rows = {row[0]: row for row in excluded_table(comparison).rows}
    reason, total, listed = rows["longer than the model's context"]
    assert reason
    assert total == "14"
    assert listed.endswith(" and 4 more")
    assert listed.count("(rejected)") == 10
    assert "scored at step 0 but not at step 400" in rows


def test_settings_that_differ_between_steps_are_named_with_their_steps(
    comparison: Comparison,
) -> None:
    settings = dict(common_table(comparison).rows)
    assert "not used (plain text) (step 0)" in settings["chat template"]
    assert "(steps 100, 200, 300, 400)" in settings["chat template"]
    assert settings["dtype"] == "float32"
