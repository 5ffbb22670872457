"""How every kind looks in a figure: hue, dash and weight. No plot library here.

Blue is chosen and vermilion is rejected, a pair that every common colour blindness
keeps apart (Okabe & Ito); their rephrases keep the hue, lighter and dashed, so that a
family reads as one even in grey.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Dash = str | tuple[int, tuple[float, ...]]

INK = "#222222"
MUTED = "#6b6b6b"
FAINT = "#d9d9d9"
TRAINED = "#222222"
HELDOUT = "#8a8a8a"

DASHED: Dash = (0, (4.5, 1.8))
SHORT: Dash = (0, (2.2, 1.4))
DOTTED: Dash = (0, (1.0, 1.6))


@dataclass(frozen=True)
class Stroke:
    """One kind's line."""

    colour: str
    dash: Dash = "-"
    width: float = 1.6
    text: str | None = None
    """Colour of its label, where the line's own is too pale to read."""

    @property
    def text_colour(self) -> str:
        """A colour that reads on white."""
        return self.text or self.colour


_BLUE, _BLUE_TEXT = "#0072B2", "#1f6fa3"
_RED, _RED_TEXT = "#D55E00", "#b8560f"

STROKES: Mapping[str, Stroke] = {
    "chosen": Stroke(_BLUE, width=2.6),
    "chosen_semantic": Stroke("#5BA7D6", DASHED, text="#3d86b4"),
    "chosen_format": Stroke("#5BA7D6", SHORT, text="#3d86b4"),
    "initial": Stroke("#4d4d4d"),
    "rejected": Stroke(_RED, width=2.6),
    "rejected_semantic": Stroke("#EE9A57", DASHED, text="#c4752f"),
    "rejected_format": Stroke("#EE9A57", SHORT, text="#c4752f"),
    "irrelevant_train": Stroke("#007A5E"),
    "irrelevant_test": Stroke("#4DB697", DASHED, text="#2f9173"),
    "random_sentence": Stroke("#8C7A2B", SHORT),
    "permuted": Stroke("#6A4C9C"),
    "random_words": Stroke("#A98BC9", DASHED, text="#8463ab"),
    "argmax:chosen": Stroke(_BLUE, DOTTED, 1.5, _BLUE_TEXT),
    "argmax:rejected": Stroke(_RED, DOTTED, 1.5, _RED_TEXT),
}
_OTHER = Stroke(MUTED)

_ON_DARK: Mapping[str, str] = {
    _BLUE: "#4aa8e0",
    "#5BA7D6": "#8ccbf0",
    "#4d4d4d": "#b4b4ba",
    _RED: "#ff8a3d",
    "#EE9A57": "#ffb681",
    "#007A5E": "#3fbf9b",
    "#4DB697": "#8bdcc5",
    "#8C7A2B": "#cdb95f",
    "#6A4C9C": "#a98be0",
    "#A98BC9": "#cdb5ea",
    MUTED: "#a0a1aa",
}
"""The same hues, light enough for a dark page."""


def css_name(kind: str) -> str:
    """A kind as part of a CSS name: ``argmax:chosen`` has a colon that must go."""
    return kind.replace(":", "-")


def style_variables() -> str:
    """``--k-<kind>`` and ``--t-<kind>``, the colours of lines and of labels, as CSS."""
    lines = [
        f"  --k-{css_name(kind)}: light-dark({line.colour}, {_ON_DARK[line.colour]});"
        f" --t-{css_name(kind)}: light-dark({line.text_colour}, "
        f"{_ON_DARK[line.colour]});"
        for kind, line in STROKES.items()
    ]
    return ":root {\n" + "\n".join(lines) + "\n}\n"


def dash_array(line: Stroke) -> str:
    """The dashes as SVG writes them, in pixels; empty for a solid line."""
    if isinstance(line.dash, str):
        return ""
    return " ".join(f"{part * line.width:g}" for part in line.dash[1])


def stroke(kind: str) -> Stroke:
    """The line of a kind; grey for one that the palette does not know."""
    return STROKES.get(kind, _OTHER)
