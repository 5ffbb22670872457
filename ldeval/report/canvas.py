"""The one door to matplotlib: make a figure, turn it into bytes.

Only the object interface is used, never pyplot, so drawing leaves no state behind in
the user's process. matplotlib is an extra; without it every figure raises
``MissingExtraError`` from here and nowhere else.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

from ldeval.errors import MissingExtraError
from ldeval.report.palette import FAINT, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT = 10.0
"""Points; figures are 12 inches wide, so this reads at the width of a README."""

_DPI = 150
_SVG_SALT = "ldeval"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure on white, in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def image(figure: Figure, form: Literal["png", "svg"]) -> bytes:
    """The figure as a PNG or an SVG; the same figure gives the same bytes."""
    import matplotlib

    stream = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": _SVG_SALT, "svg.fonttype": "path"}):
        figure.savefig(stream, format=form, metadata=metadata, facecolor="white")
    return stream.getvalue()


def plain_axes(axes: Axes) -> None:
    """Axes without a box, with a faint horizontal grid."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
        axes.spines[side].set_linewidth(0.8)
    axes.tick_params(labelsize=FONT - 1, colors=MUTED, labelcolor=INK, length=3)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
