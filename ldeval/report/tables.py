"""Tables as values, and their two renderings: terminal text and GitHub Markdown.

A table's cells hold plain text; each renderer escapes for its own medium, so the
builders (``change_tables``, ``verdict_tables``) never think of pipes or widths.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ldeval.report.escape import for_ascii, for_markdown, visible

Align = Literal["left", "right"]
Style = Literal["unicode", "ascii"]

_GAP = "  "
_NARROWEST = 20
"""Columns of text are not wrapped to fewer characters than this."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    heading: str
    align: Align = "right"
    tied: bool = False
    """Whether it stays beside the column before it when a table is broken to fit:
    an interval without its number says nothing."""


@dataclass(frozen=True)
class Table:
    """A titled table of strings, ready to render."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    """Cells as plain text, unescaped, one for each column."""
    caption: str = ""
    """What the signs and units mean."""
    notes: tuple[str, ...] = ()
    """Reasons of undefined cells, numbered as the cells refer to them."""
    keys: int = field(default=1, kw_only=True)
    """Leading columns that are repeated when a table is broken to fit."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table '{self.title}': a row holds {len(row)} cells for "
                    f"{len(self.columns)} columns"
                )


# ------------------------------------------------------------------------- Markdown


def to_markdown(table: Table, *, heading: int = 3) -> str:
    """GitHub Markdown: a heading, the table, its caption and its notes."""
    lines = [f"{'#' * heading} {for_markdown(table.title)}", "", *_pipes(table)]
    if table.caption:
        lines += ["", for_markdown(table.caption, starts_block=True)]
    if table.notes:
        lines += ["", "<br>".join(for_markdown(note) for note in table.notes)]
    return "\n".join(lines) + "\n"


def _pipes(table: Table) -> list[str]:
    if not table.rows:
        return ["None."]
    rules = ["---:" if c.align == "right" else ":---" for c in table.columns]
    lines = [_row(c.heading for c in table.columns), f"| {' | '.join(rules)} |"]
    return lines + [_row(cells) for cells in table.rows]


def _row(cells: Iterator[str] | Sequence[str]) -> str:
    return f"| {' | '.join(for_markdown(cell) for cell in cells)} |"


# ------------------------------------------------------------------------- terminal


def to_terminal(table: Table, *, width: int = 100, style: Style = "unicode") -> str:
    """Text for a terminal of ``width`` characters.

    Columns of text are wrapped first; if the table is still too wide it is broken
    into blocks that repeat the key columns. Numbers are never cut.
    """
    clean = _cleaner(style)
    rule = "─" if style == "unicode" else "-"
    lines = [*wrap(clean(table.title), width)]
    if not table.rows:
        lines.append("None.")
    else:
        cells = [[clean(c.heading) for c in table.columns]]
        cells += [[clean(cell) for cell in row] for row in table.rows]
        widths = _fit(table, cells, width)
        for block in _blocks(table, widths, width):
            lines += _draw(table, cells, widths, block, rule)
        lines.append(rule * _total([widths[j] for j in block]))
    for text in (table.caption, *table.notes):
        lines += wrap(clean(text), width) if text else []
    return "\n".join(lines) + "\n"


def _cleaner(style: Style) -> Callable[[str], str]:
    if style == "unicode":
        return visible
    return lambda text: for_ascii(visible(text))


def display_width(text: str) -> int:
    """Character cells that a terminal gives to the text."""
    return sum(_cell_width(c) for c in text)


def _cell_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def wrap(text: str, width: int) -> list[str]:
    """Break text into lines of at most ``width`` cells, at spaces where it can."""
    lines = [""]
    for word in text.split(" "):
        for part in _pieces(word, width):
            joined = f"{lines[-1]} {part}" if lines[-1] else part
            if display_width(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(part)
    return lines


def _pieces(word: str, width: int) -> list[str]:
    """The word, cut where it is longer than a line."""
    pieces = [""]
    for character in word:
        if display_width(pieces[-1] + character) > width and pieces[-1]:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _fit(table: Table, cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Width of every column: text columns narrowed while the table is too wide."""
    widths = []
    for j, column in enumerate(table.columns):
        content = max(display_width(row[j]) for row in cells[1:])
        words = cells[0][j].split(" ") if column.align == "right" else [cells[0][j]]
        widths.append(max(content, *(display_width(word) for word in words)))
    texts = [j for j, column in enumerate(table.columns) if column.align == "left"]
    while texts and _total(widths) > width:
        widest = max(texts, key=lambda j: widths[j])
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _blocks(table: Table, widths: Sequence[int], width: int) -> list[list[int]]:
    """Column numbers of each block, key columns first in all of them."""
    keys = list(range(table.keys))
    blocks = [keys.copy()]
    for group in _groups(table):
        block = blocks[-1] + group
        if len(blocks[-1]) > len(keys) and _total([widths[j] for j in block]) > width:
            blocks.append(keys + group)
        else:
            blocks[-1] = block
    return blocks


def _groups(table: Table) -> list[list[int]]:
    """Columns after the keys, those tied together as one group."""
    groups: list[list[int]] = []
    for j in range(table.keys, len(table.columns)):
        if groups and table.columns[j].tied:
            groups[-1].append(j)
        else:
            groups.append([j])
    return groups


def _draw(
    table: Table,
    cells: Sequence[Sequence[str]],
    widths: Sequence[int],
    block: Sequence[int],
    rule: str,
) -> list[str]:
    bar = rule * _total([widths[j] for j in block])
    drawn = [_lines(table, row, widths, block) for row in cells]
    return [bar, *drawn[0], bar, *(line for row in drawn[1:] for line in row)]


def _lines(
    table: Table, row: Sequence[str], widths: Sequence[int], block: Sequence[int]
) -> list[str]:
    """One row of cells as one or more lines of text."""
    wrapped = {j: wrap(row[j], widths[j]) for j in block}
    lines = []
    for i in range(max(len(cell) for cell in wrapped.values())):
        parts = []
        for j in block:
            text = wrapped[j][i] if i < len(wrapped[j]) else ""
            pad = " " * (widths[j] - display_width(text))
            parts.append(text + pad if table.columns[j].align == "left" else pad + text)
        lines.append(_GAP.join(parts).rstrip())
    return lines
