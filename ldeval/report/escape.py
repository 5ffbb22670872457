"""Makes text that others wrote safe to show: probe ids, run names, reasons, paths.

Apart from the renderers because each of them needs a different form of the same care,
and a form that is forgotten in one of them is a hole. Nothing is dropped: what could
act on the reader's screen is replaced by a visible name of itself.
"""

from __future__ import annotations

import re
import unicodedata

_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?<=www)\.")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_BLOCK = re.compile(r"^(\s*\d*)([-#+=.)])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
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
    """Text that a spreadsheet shows instead of running it as a formula."""
    return "'" + text if text.startswith(_FORMULA) else text


def for_ascii(text: str) -> str:
    """Text for a terminal that knows ASCII alone; foreign letters become their code."""
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
