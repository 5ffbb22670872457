"""Text that others wrote, made safe to print: probe ids, run names, reasons, paths.

Apart from the reports, which have forms of their own (:mod:`ldeval.report.escape`),
since errors and log lines of every room are printed too. Nothing is dropped: what could
act on the reader's screen is replaced by a visible name of itself.
"""

from __future__ import annotations

import reprlib
import unicodedata

_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str, limit: int | None = None) -> str:
    """Replace characters that have no glyph of their own by a name for them.

    Control, bidirectional and other format characters, line separators, lone
    surrogates and unassigned code points can reorder or hide what stands around them.

    Args:
        text: Any text.
        limit: Longest result in characters; more is cut and ends in ``…``.
    """
    shown = "".join(_name(c) if _is_unseen(c) else c for c in text)
    if limit is not None and len(shown) > limit:
        return shown[: limit - 1] + "…"
    return shown


def visible_lines(text: str) -> str:
    """The same for text of several lines: line feeds and tabs stay."""
    return "".join(_name(c) if _is_unseen(c) and c not in "\n\t" else c for c in text)


def quoted(value: object, limit: int = 60) -> str:
    """A value of a file, as an error names it: of any type, and never at any length.

    Args:
        limit: longest result in characters; a longer text loses its middle.
    """
    short = reprlib.Repr()
    short.maxlevel = 3
    short.maxstring = short.maxother = limit
    shown = short.repr(value)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def visible_json(text: str) -> str:
    """JSON text with such characters as its own escapes: it means what it meant."""
    return "".join(
        _json_name(c) if _is_unseen(c) and c not in "\n\t" else c for c in text
    )


def _is_unseen(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or category in ("Zl", "Zp")


def _name(character: str) -> str:
    code = ord(character)
    if character in _NAMED:
        return _NAMED[character]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_name(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
