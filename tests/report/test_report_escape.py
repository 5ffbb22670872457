"""Text of others cannot act on whoever reads a report."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from ldeval.records import Comparison
from ldeval.report import print_summary, render_markdown
from ldeval.report.escape import (
    for_ascii,
    for_csv,
    for_figure,
    for_markdown,
    visible,
)
from ldeval.report.provenance import excluded_table
from ldeval.report.tables import to_terminal

ANY_TEXT = st.text(st.characters(), max_size=40)


def acts(text: str) -> bool:
    """Whether a character could move the cursor or reorder what stands around it."""
    return any(
        unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp")
        for c in text
    )


@given(ANY_TEXT)
def test_no_text_keeps_a_control_or_a_bidirectional_character(text: str) -> None:
    for shown in (visible(text), for_markdown(text), for_figure(text)):
        assert not acts(shown)
    assert for_ascii(text).isascii()


@given(ANY_TEXT)
def test_no_text_opens_a_tag_or_a_cell_in_markdown(text: str) -> None:
    shown = for_markdown(text)
    assert "<" not in shown
    for i, character in enumerate(shown):
        if character in "|`*[]":
            before = shown[:i]
            slashes = len(before) - len(before.rstrip("\\"))
            assert slashes % 2 == 1


@given(ANY_TEXT)
def test_escaping_keeps_letters_and_digits(text: str) -> None:
    kept = [c for c in text if c.isascii() and c.isalnum()]
    shown = iter(for_markdown(text))
    assert all(c in shown for c in kept)


def test_names_of_kinds_are_left_readable() -> None:
    assert for_markdown("chosen_semantic") == "chosen_semantic"
    assert for_markdown("_x_") == "\\_x\\_"


def test_a_line_that_would_be_a_heading_or_a_list_is_plain_text() -> None:
    for text in ("# x", "- x", "1. x", "+ x"):
        assert "\\" in for_markdown(text, starts_block=True)


def test_a_url_does_not_become_a_link() -> None:
    assert "://" not in for_markdown("http://x.example")
    assert "www." not in for_markdown("www.x.example")


def test_no_dollar_sign_opens_mathematics_in_a_figure() -> None:
    assert for_figure("$a$") == r"\$a\$"


def test_formulas_are_defused_and_other_text_is_untouched() -> None:
    for text in ("=1", "+1", "-1", "@x", "\tx", "\rx"):
        assert for_csv(text) == "'" + text
    assert for_csv("chosen") == "chosen"


def test_long_text_is_cut_with_an_ellipsis() -> None:
    assert visible("x" * 30, 10) == "x" * 9 + "…"


def test_hostile_ids_stay_text_in_every_medium(
    comparison: Comparison, hostile: tuple[str, ...]
) -> None:
    table = excluded_table(comparison)
    terminal = to_terminal(table, width=200)
    page = render_markdown(comparison, {})
    assert not acts(terminal.replace("\n", ""))
    assert not acts(page.replace("\n", ""))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\\u202e" in terminal
    assert len(hostile) == 8


def test_a_hostile_run_name_stays_text(stages: tuple[Comparison, ...]) -> None:
    page = render_markdown(stages, {})
    assert "<b>" not in page
    assert not acts(page.replace("\n", ""))
    assert not acts(print_summary(stages[1]).replace("\n", ""))
