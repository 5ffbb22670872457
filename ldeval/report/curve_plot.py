"""Log-probability against training step: the picture of a run.

Columns are the regions of the response space, rows the sum and the mean per token. All
panels of a row span the same number of nats, so equal slopes are equal changes
although the levels differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ldeval.records import (
    KIND_BY_NAME,
    REGIONS,
    SPLIT_NAMES,
    Comparison,
    CurvePoint,
    Estimate,
    Region,
    Split,
)
from ldeval.report.canvas import FONT, new_figure, plain_axes
from ldeval.report.escape import for_figure
from ldeval.report.palette import INK, MUTED, stroke
from ldeval.report.rounding import level
from ldeval.report.words import ARGMAX_PREFIX, FROZEN_PREFIX

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scale = Literal["mean_sum", "per_token"]
_ROWS: tuple[tuple[Scale, str], ...] = (
    ("mean_sum", "nats / response"),
    ("per_token", "nats / token"),
)
_WIDTH = 12.0
"""Inches; so are all lengths below."""
_LEFT, _RIGHT, _BOTTOM, _HEAD = 0.8, 11.95, 0.55, 1.08
_PANEL_HEIGHT, _BETWEEN_ROWS = 2.72, 0.42
_GAPS = (0.0, 0.52, 0.52)
"""To the left of each panel, for the numbers of its axis."""
_SHARES = (1.22, 1.0, 1.0)
"""Relative widths of the panels: the valid region has the most lines."""
_LABELS = 1.44
"""To the right of each panel, for the names of its lines."""
_TICK_ROOM = 0.5
"""What a numbered step takes, so that stitched stages do not touch."""
_LABEL_STEP = 0.172
"""Between the baselines of two names."""
_LETTER = 0.085
"""What a letter of a stage's name takes."""


@dataclass(frozen=True)
class Line:
    """One kind in one stage, ready to draw."""

    kind: str
    x: tuple[float, ...]
    estimates: tuple[Estimate, ...]


def curves_figure(
    comparisons: Comparison | Sequence[Comparison],
    split: Split = "trained",
    *,
    relative: bool = False,
) -> Figure:
    """Curves of every kind, one stage after the other.

    A scale that no point has (an import knows no token counts) gets no row.

    Args:
        comparisons: One comparison, or the stages of a training in their order.
        split: Which probes.
        relative: Draw the change since each stage's first checkpoint instead of the
            level. Kinds differ by a hundred nats in level and by ten in change, so
            this is where movement is seen.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    stages = [comparisons] if isinstance(comparisons, Comparison) else list(comparisons)
    starts = _starts(stages)
    drawn = [
        (unit, {r: _lines(stages, starts, split, scale, r, relative) for r in REGIONS})
        for scale, unit in _ROWS
    ]
    rows = [row for row in drawn if any(map(_extent, row[1].values()))] or drawn[:1]
    figure = new_figure(_WIDTH, _height(len(rows)))
    for r, (unit, panels) in enumerate(rows):
        span = max(map(_extent, panels.values())) or 1.0
        for c, region in enumerate(REGIONS):
            axes = figure.add_axes(_place(r, c, len(rows)))
            _panel(axes, panels[region], span, relative)
            _ticks(axes, stages, starts, named=r == 0)
            if c == 0:
                what = "change" if relative else "log-probability"
                axes.set_ylabel(f"{what}, {unit}", fontsize=FONT, color=INK)
            if r == 0:
                _head(axes, region)
            if r == len(rows) - 1:
                axes.set_xlabel("training step", fontsize=FONT, color=INK)
    _title(figure, stages, split, relative)
    return figure


def _height(rows: int) -> float:
    return _BOTTOM + rows * (_PANEL_HEIGHT + _BETWEEN_ROWS) - _BETWEEN_ROWS + _HEAD


def _place(row: int, column: int, rows: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of a panel, as shares of the figure."""
    tall = _height(rows)
    bottom = _BOTTOM + (rows - 1 - row) * (_PANEL_HEIGHT + _BETWEEN_ROWS)
    free = _RIGHT - _LEFT - sum(_GAPS) - len(_GAPS) * _LABELS
    widths = [free * share / sum(_SHARES) for share in _SHARES]
    left = _LEFT + sum(widths[:column]) + sum(_GAPS[: column + 1]) + column * _LABELS
    place = left / _WIDTH, bottom / tall
    return *place, widths[column] / _WIDTH, _PANEL_HEIGHT / tall


# ------------------------------------------------------------------------------ data


def _starts(stages: Sequence[Comparison]) -> list[float]:
    """Where each stage begins on the common axis: stages follow one another."""
    starts = [0.0]
    for stage in stages[:-1]:
        starts.append(starts[-1] + stage.steps[-1] - stage.steps[0])
    return starts


def region_of(kind: str) -> Region:
    """The panel of a kind; the argmax stands beside the responses it runs along."""
    base = kind.removeprefix(ARGMAX_PREFIX)
    return KIND_BY_NAME[base].region if base in KIND_BY_NAME else "valid"


def _lines(
    stages: Sequence[Comparison],
    starts: Sequence[float],
    split: Split,
    scale: Scale,
    region: Region,
    relative: bool,
) -> list[Line]:
    lines = []
    for stage, start in zip(stages, starts, strict=True):
        points: dict[str, list[CurvePoint]] = {}
        for point in stage.curves:
            if point.kind.startswith(FROZEN_PREFIX):
                continue  # in the tables; it would hide the argmax that it starts as
            if point.split == split and region_of(point.kind) == region:
                points.setdefault(point.kind, []).append(point)
        for kind, found in points.items():
            found.sort(key=lambda point: point.step)
            x = tuple(start + point.step - stage.steps[0] for point in found)
            estimates = tuple(getattr(p, scale) for p in found)
            if relative:
                estimates = tuple(_less(e, estimates[0].value) for e in estimates)
            lines.append(Line(kind, x, estimates))
    return lines


def _less(estimate: Estimate, level: float) -> Estimate:
    return replace(
        estimate,
        value=estimate.value - level,
        low=estimate.low - level,
        high=estimate.high - level,
    )


def _ends(lines: Iterable[Line]) -> tuple[float, float] | None:
    """Lowest and highest value drawn, bands included."""
    values = [
        value
        for line in lines
        for e in line.estimates
        for value in (e.value, e.low, e.high)
        if math.isfinite(value)
    ]
    return (min(values), max(values)) if values else None


def _extent(lines: Iterable[Line]) -> float:
    ends = _ends(lines)
    return ends[1] - ends[0] if ends else 0.0


# --------------------------------------------------------------------------- drawing


def _panel(axes: Axes, lines: Sequence[Line], span: float, relative: bool) -> None:
    plain_axes(axes)
    ends = _ends(lines)
    if ends is None:
        axes.set_axis_off()
        box = axes.transAxes
        axes.text(0.5, 0.5, "none", transform=box, ha="center", color=MUTED)
        return
    top = sum(ends) / 2 + span * 0.53
    if relative:
        axes.axhline(0.0, color=MUTED, linewidth=0.8)
    else:
        # no log-probability is above zero, so neither is an axis
        top = min(top, max(0.0, ends[1]))
    axes.set_ylim(top - span * 1.06, top)
    for line in lines:
        _draw(axes, line)
    _label(axes, lines)


def _draw(axes: Axes, line: Line) -> None:
    look = stroke(line.kind)
    values = [e.value for e in line.estimates]
    low, high = [e.low for e in line.estimates], [e.high for e in line.estimates]
    axes.fill_between(line.x, low, high, color=look.colour, alpha=0.09, linewidth=0)
    axes.plot(
        line.x,
        values,
        color=look.colour,
        linestyle=look.dash,
        linewidth=look.width,
        marker="o",
        markersize=3.5,
        markevery=_alone(values),
        gid=line.kind,
        zorder=4 if line.kind in ("chosen", "rejected") else 3,
    )


def _alone(values: Sequence[float]) -> list[int]:
    """Points without a neighbour: a line through them alone would not be seen."""
    padded = [math.nan, *values, math.nan]
    return [
        i
        for i, (before, value, after) in enumerate(
            zip(padded, padded[1:], padded[2:], strict=False)
        )
        if math.isfinite(value) and math.isnan(before) and math.isnan(after)
    ]


def _label(axes: Axes, lines: Sequence[Line]) -> None:
    """Names at the right ends of the lines, moved apart where they would touch."""
    last: dict[str, tuple[float, float]] = {}
    for line in lines:
        drawn = [
            (x, e.value)
            for x, e in zip(line.x, line.estimates, strict=True)
            if math.isfinite(e.value)
        ]
        if drawn:
            last[line.kind] = drawn[-1]
    bottom, top = axes.get_ylim()
    heights = {k: (y - bottom) / (top - bottom) for k, (_, y) in last.items()}
    apart = spread(heights, _LABEL_STEP / _PANEL_HEIGHT)
    for kind, height in apart.items():
        look = stroke(kind)
        axes.annotate(
            for_figure(kind),
            xy=(1.0, heights[kind]),
            xytext=(1.0 + 0.16 / (axes.get_position().width * _WIDTH), height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=FONT,
            color=look.text_colour,
            fontweight="bold" if kind in ("chosen", "rejected") else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": look.colour,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def spread(heights: dict[str, float], step: float) -> dict[str, float]:
    """Move heights apart to at least ``step`` while they keep their order and place.

    Neighbours that touch become one block around the mean of what they wanted, as in
    isotonic regression; every block stays inside 0 … 1 where it fits.
    """
    blocks: list[list[str]] = []
    for kind in sorted(heights, key=lambda name: heights[name]):
        blocks.append([kind])
        while len(blocks) > 1:
            below, above = (_block(names, heights, step) for names in blocks[-2:])
            if above[0] - below[-1] >= step * (1 - 1e-9):
                break
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return {
        kind: height
        for names in blocks
        for kind, height in zip(names, _block(names, heights, step), strict=True)
    }


def _block(names: list[str], heights: dict[str, float], step: float) -> list[float]:
    """Evenly spaced heights around the mean of those wanted, kept inside 0 … 1."""
    reach = (len(names) - 1) / 2 * step
    centre = sum(heights[name] for name in names) / len(names)
    centre = min(max(centre, reach), max(1 - reach, reach))
    return [centre - reach + i * step for i in range(len(names))]


def _ticks(
    axes: Axes, stages: Sequence[Comparison], starts: Sequence[float], *, named: bool
) -> None:
    """Steps of every stage on the common axis, and a line where a stage begins."""
    last = starts[-1] + stages[-1].steps[-1] - stages[-1].steps[0]
    width = axes.get_position().width * _WIDTH
    names: dict[float, str] = {}
    for i, (stage, start) in enumerate(zip(stages, starts, strict=True)):
        for step in _round_steps(stage.steps, _room(stage, width / (last or 1))):
            at = start + step - stage.steps[0]
            # a boundary is the end of one stage and the start of the next
            names[at] = f"{names[at]} | {step:,}" if at in names else f"{step:,}"
        if i:
            axes.axvline(start, color=MUTED, linewidth=0.8)
    axes.set_xticks(list(names), list(names.values()))
    axes.set_xlim(0, last or 1)
    if named and len(stages) > 1:
        for stage, start in zip(stages, starts, strict=True):
            room = width * (stage.steps[-1] - stage.steps[0]) / (last or 1)
            middle = start + (stage.steps[-1] - stage.steps[0]) / 2
            axes.text(
                middle,
                1.015,
                for_figure(stage.run, max(4, int(room / _LETTER))),
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=FONT - 1,
                color=MUTED,
            )


def _room(stage: Comparison, inches_per_step: float) -> int:
    """Into how many parts the numbered steps may divide a stage: 4, 2 or 1."""
    room = (stage.steps[-1] - stage.steps[0]) * inches_per_step / _TICK_ROOM
    return 4 if room >= 4 else 2 if room >= 2 else 1


def _round_steps(steps: Sequence[int], wanted: int) -> list[int]:
    """The saved steps nearest to those that divide the range into ``wanted`` parts."""
    chosen = {
        min(steps, key=lambda s: abs(s - target))
        for target in (
            steps[0] + (steps[-1] - steps[0]) * i / wanted for i in range(wanted + 1)
        )
    }
    return sorted(chosen)


def _head(axes: Axes, region: Region) -> None:
    axes.annotate(
        region,
        xy=(0, 1),
        xytext=(0, 18),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=FONT + 1,
        fontweight="bold",
        color=INK,
    )


def _title(
    figure: Figure, stages: Sequence[Comparison], split: Split, relative: bool
) -> None:
    left, tall = _LEFT / _WIDTH, figure.get_figheight()
    title = f"Log-probability of each response kind, {SPLIT_NAMES[split]} probes"
    if relative:
        since = "each stage's start" if len(stages) > 1 else "the first checkpoint"
        title = f"Change of log-probability since {since}, {SPLIT_NAMES[split]} probes"
    figure.text(left, 1 - 0.28 / tall, title, fontsize=FONT + 3, color=INK)
    below = (
        f"{_bands(stages)} Panels of a row span equally many nats, so equal slopes are "
        "equal changes."
    )
    figure.text(left, 1 - 0.52 / tall, below.strip(), fontsize=FONT - 1, color=MUTED)


def _bands(stages: Sequence[Comparison]) -> str:
    found = [p.mean_sum for stage in stages for p in stage.curves]
    levels = sorted({level(e.level) for e in found if math.isfinite(e.low)})
    if not levels:
        return ""
    return f"Bands: {'/'.join(levels)} intervals of the change, paired by prompt."
