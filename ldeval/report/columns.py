"""Filled columns, from which every table of statistics is put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ldeval.records import Estimate
from ldeval.report.rounding import UNDEFINED, interval, level, number, places
from ldeval.report.tables import Column, Table


class Footnotes:
    """Numbers the reasons of undefined cells, each reason once."""

    def __init__(self) -> None:
        self._reasons: list[str] = []

    def cell(self, text: str, estimate: Estimate) -> str:
        """The cell's text; where it is undefined, with the number of its reason."""
        if text != UNDEFINED:
            return text
        reason = estimate.reason or "no reason was given"
        if reason not in self._reasons:
            self._reasons.append(reason)
        return f"{UNDEFINED} ({self._reasons.index(reason) + 1})"

    @property
    def lines(self) -> tuple[str, ...]:
        """One line a reason, in the order of their numbers."""
        return tuple(
            f"({i}) undefined: {reason}" for i, reason in enumerate(self._reasons, 1)
        )


Filled = tuple[Column, list[str]]


def text_column(heading: str, cells: Iterable[str]) -> Filled:
    """A column of words."""
    return Column(heading, "left"), list(cells)


def number_column(heading: str, cells: Iterable[str]) -> Filled:
    """A column of numbers, already rounded."""
    return Column(heading), list(cells)


def estimate_columns(
    heading: str,
    estimates: Sequence[Estimate],
    notes: Footnotes,
    *,
    signed: bool = True,
) -> list[Filled]:
    """A column of values and a column of their intervals, rounded alike."""
    digits = places(estimates)
    values = [notes.cell(number(e.value, digits, signed=signed), e) for e in estimates]
    ends = [notes.cell(interval(e, digits, signed=signed), e) for e in estimates]
    return [
        (Column(heading), values),
        (Column(interval_heading(estimates), tied=True), ends),
    ]


def interval_heading(estimates: Sequence[Estimate]) -> str:
    """``95% interval``, by the levels of the estimates."""
    levels = sorted({e.level for e in estimates})
    return f"{'/'.join(level(value) for value in levels) or '95%'} interval"


def assemble(
    title: str,
    columns: Sequence[Filled],
    caption: str,
    notes: Footnotes,
    *,
    keys: int = 1,
) -> Table:
    """A table from filled columns, with the reasons of undefined cells."""
    rows = tuple(zip(*(cells for _, cells in columns), strict=True))
    heads = tuple(column for column, _ in columns)
    return Table(title, heads, rows, caption, notes.lines, keys=keys)


EXCLUDES_ZERO = "*"


def mark(estimate: Estimate) -> str:
    """``*`` where the interval lies on one side of zero."""
    return EXCLUDES_ZERO if estimate.low > 0 or estimate.high < 0 else ""
