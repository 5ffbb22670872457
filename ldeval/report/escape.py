"""Makes text that others wrote safe to show: probe ids, run names, reasons, paths.

Apart from the renderers because each of them needs a different form of the same care,
and a form that is forgotten in one of them is a hole. What a terminal needs is below
all of them, in :mod:`ldeval.printable`.
"""

from __future__ import annotations

import re
import unicodedata

from ldeval.printable import visible

__all__ = ["for_ascii", "for_csv", "for_figure", "for_markdown", "visible"]

_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?<=www)\.")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_BLOCK = re.compile(r"^(\s*\d*)([-#+=.)])")
_FORMULA = frozenset("=+-@")
_CELL_ENDS = re.compile(r"([;\t\r\n])")
_ASCII = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "—": "-",
        "±": "+-",
        "→": "->",
        "×": "x",
        "Δ": "delta ",
        "Σ": "sum ",
        "…": "...",
        "π": "pi",
        "∞": "inf",
        "≥": ">=",
        "≤": "<=",
    }
)


def for_markdown(text: str, *, starts_block: bool = False) -> str:
    """Text that GitHub Markdown shows as it is, inside a table cell or a paragraph.

    Args:
        text: Any text.
        starts_block: Whether a line begins with it, where ``#`` or ``-`` would make a
            heading or a list.
    """
    shown = _MARKDOWN.sub(lambda match: "\\" + match.group(), visible(text))
    for character, entity in _HTML.items():
        shown = shown.replace(character, entity)
    return _BLOCK.sub(r"\1\\\2", shown) if starts_block else shown


def for_figure(text: str, limit: int | None = None) -> str:
    """Text that matplotlib draws as it is: no dollar sign opens mathematics."""
    return visible(text, limit).replace("$", r"\$")


def for_csv(text: str) -> str:
    """Text that a spreadsheet shows instead of running it as a formula.

    An apostrophe goes before what could begin one: a sign of a formula, of another
    width too, also behind whitespace and characters without a glyph; or a tab or a line
    break. One goes behind a semicolon, a tab or a line break too where a sign follows:
    a spreadsheet whose cells end there would begin another one with it. For texts
    alone: a number may be negative.
    """
    first, *others = _CELL_ENDS.split(text)
    for place in range(1, len(others), 2):
        # quotes that open a cell are taken away
        if _is_formula(others[place], skipped='"'):
            others[place] = "'" + others[place]
    guarded = "".join([first, *others])
    opens = _is_formula(text) or text[:1] in ("\t", "\r", "\n")
    return "'" + guarded if opens else guarded


def _is_formula(text: str, skipped: str = "") -> bool:
    seen = (
        c
        for c in text
        if not c.isspace() and unicodedata.category(c)[0] != "C" and c not in skipped
    )
    return unicodedata.normalize("NFKC", next(seen, ""))[:1] in _FORMULA


def for_ascii(text: str) -> str:
    """Text for a terminal that knows ASCII alone; foreign letters become their code."""
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
