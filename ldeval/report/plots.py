"""The figures of a report: what changed, where the mass went, what moved together.

Every function returns a matplotlib ``Figure`` made through ``canvas``; ``image`` turns
it into PNG or SVG. The curves against steps have a module of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ldeval.records import (
    REGIONS,
    SPLIT_NAMES,
    Comparison,
    Estimate,
    InfluenceCell,
    KindChange,
    Split,
)
from ldeval.report.canvas import FONT, image, new_figure, plain_axes
from ldeval.report.change_tables import BIN_NAMES, FLOW_BINS, FLOW_KINDS
from ldeval.report.columns import mark
from ldeval.report.curve_plot import curves_figure, region_of
from ldeval.report.escape import for_figure
from ldeval.report.palette import FAINT, INK, MUTED, stroke
from ldeval.report.rounding import level, number
from ldeval.report.words import FROZEN_PREFIX, SPLITS, is_argmax

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "curves_figure",
    "delta_figure",
    "flow_figure",
    "image",
    "influence_figure",
]

_ARGMAX_GROUP = "derived"
_PALE = 0.4
"""Opacity of a slope whose interval contains zero."""
_OFFSETS: dict[Split, float] = {"trained": -0.2, "heldout": 0.2}
_FILLED: dict[Split, bool] = {"trained": True, "heldout": False}


# ---------------------------------------------------------------------------- change


def delta_figure(comparison: Comparison) -> Figure:
    """Δtok of every kind from first to last: a dot and its interval for each split.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    pair, floor = comparison.overall, comparison.noise_floor
    changes = [c for c in pair.changes if not c.kind.startswith(FROZEN_PREFIX)]
    groups = _groups(changes)
    rows = _rows(groups)
    figure = new_figure(9.0, 1.55 + 0.32 * (max(rows.values(), default=0) + 1))
    axes = figure.add_axes(_inches(figure, 2.95, 0.55, 9.0 - 2.95 - 0.3, -0.72))
    _bare_axes(axes)
    if math.isfinite(floor):
        axes.axvspan(-floor, floor, color="#e6e6e6", linewidth=0, zorder=0)
    axes.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
    for change in changes:
        _dot(axes, change, rows[change.kind])
    axes.set_yticks(list(rows.values()), [for_figure(kind) for kind in rows])
    axes.set_ylim(max(rows.values(), default=0) + 0.7, -0.7)
    for kind, text in zip(rows, axes.get_yticklabels(), strict=True):
        text.set_color(stroke(kind).text_colour)
    _group_names(axes, groups, rows)
    axes.set_xlabel(
        "change of log-probability, nats / token (after − before)", fontsize=FONT
    )
    _caption(
        figure,
        f"Change per kind, {for_figure(comparison.run, 40)}: step {pair.before} to "
        f"step {pair.after}",
        f"Bars: {_levels([c.delta_tok for c in pair.changes])} intervals over prompts.",
    )
    _split_key(figure, floor)
    return figure


def _groups(changes: Sequence[KindChange]) -> dict[str, list[str]]:
    """Kinds by region, the derived argmax apart, empty groups left out."""
    kinds = list(dict.fromkeys(change.kind for change in changes))
    groups: dict[str, list[str]] = {
        region: [k for k in kinds if not is_argmax(k) and region_of(k) == region]
        for region in REGIONS
    }
    groups[_ARGMAX_GROUP] = [kind for kind in kinds if is_argmax(kind)]
    return {name: members for name, members in groups.items() if members}


def _rows(groups: dict[str, list[str]]) -> dict[str, float]:
    """Height of each kind, from the top, with a gap before each group."""
    rows: dict[str, float] = {}
    height = 0.0
    for members in groups.values():
        for kind in members:
            rows[kind] = height
            height += 1
        height += 0.55
    return rows


def _dot(axes: Axes, change: KindChange, row: float) -> None:
    estimate, look = change.delta_tok, stroke(change.kind)
    at = row + _OFFSETS[change.split]
    if not math.isfinite(estimate.value):
        axes.text(0, at, "  undefined", fontsize=FONT - 3, color=MUTED, va="center")
        return
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        ends = [estimate.low, estimate.high]
        axes.plot(ends, [at, at], color=look.colour, linewidth=1.6, zorder=2)
    axes.plot(
        [estimate.value],
        [at],
        marker="o",
        markersize=6,
        markerfacecolor=look.colour if _FILLED[change.split] else "white",
        markeredgecolor=look.colour,
        markeredgewidth=1.4,
        linestyle="none",
        gid=f"{change.kind}/{change.split}",
        zorder=3,
    )


def _group_names(
    axes: Axes, groups: dict[str, list[str]], rows: dict[str, float]
) -> None:
    for name, members in groups.items():
        axes.annotate(
            name,
            xy=(0, rows[members[0]]),
            xytext=(-2.72 * 72, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=FONT - 1,
            color=MUTED,
            style="italic",
        )
        if rows[members[0]] > 0:
            axes.axhline(rows[members[0]] - 0.78, color=FAINT, linewidth=0.8)


def _split_key(figure: Figure, floor: float, marker: str = "o") -> None:
    """What the marks and the band mean, in one line at the top right."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Line2D | Patch] = [
        Line2D(
            [],
            [],
            marker=marker,
            linestyle="none",
            color=MUTED,
            markerfacecolor=MUTED if _FILLED[split] else "white",
            label=SPLIT_NAMES[split],
        )
        for split in SPLITS
    ]
    if math.isfinite(floor):
        shown = number(floor, 3, signed=False)
        handles.append(Patch(facecolor="#e6e6e6", label=f"noise floor ±{shown}"))
    figure.legend(
        handles=handles,
        loc="upper right",
        bbox_to_anchor=(0.985, 1 - 0.28 / figure.get_figheight()),
        ncols=3,
        frameon=False,
        fontsize=FONT - 1,
        handletextpad=0.4,
        columnspacing=1.2,
    )


# ------------------------------------------------------------------------------ flow


def flow_figure(comparison: Comparison) -> Figure:
    """Mean Δp of the four bins at off-label positions, along rejected and chosen.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    flows = [
        f
        for f in comparison.overall.flows
        if f.stratum == "off" and f.kind in FLOW_KINDS
    ]
    figure = new_figure(9.0, 3.8)
    kinds = [k for k in ("rejected", "chosen") if any(f.kind == k for f in flows)]
    first: Axes | None = None
    for i, kind in enumerate(kinds or ["rejected"]):
        place = _inches(figure, 0.9 + 4.1 * i, 0.55, 3.8, -1.02)
        axes = figure.add_axes(place, sharey=first)
        first = first or axes
        plain_axes(axes)
        for flow in flows:
            if flow.kind == kind:
                bins = [getattr(flow, name) for name in FLOW_BINS]
                _bars(axes, bins, flow.split, stroke(kind).colour)
        axes.axhline(0, color=INK, linewidth=0.9)
        names = [BIN_NAMES[name].replace(" ", "\n", 1) for name in FLOW_BINS]
        axes.set_xticks(range(len(FLOW_BINS)), names)
        axes.set_title(_flow_title(comparison, kind), fontsize=FONT, loc="left", pad=8)
        axes.tick_params(axis="y", labelleft=i == 0)
    if first is not None:
        first.set_ylabel("change of probability / token", fontsize=FONT)
    levels = _levels([f.label for f in flows])
    _caption(
        figure,
        "Where the probability went at off-label positions",
        f"{for_figure(comparison.run, 24)}, step {comparison.overall.before} to step "
        f"{comparison.overall.after}. Bars: {levels} intervals.",
    )
    _split_key(figure, math.nan, "s")
    return figure


def _flow_title(comparison: Comparison, kind: str) -> str:
    flows = comparison.overall.flows
    chosen = [f for f in flows if f.kind == kind and f.stratum == "off"]
    sizes = [f"{f.positions:,}" for f in chosen]
    return f"along {kind}: {' / '.join(sizes)} positions" if sizes else "no flow"


def _bars(axes: Axes, bins: Sequence[Estimate], split: Split, colour: str) -> None:
    width = 0.36
    for i, estimate in enumerate(bins):
        at = i + _OFFSETS[split] * 0.95
        if not math.isfinite(estimate.value):
            axes.text(at, 0, "–", ha="center", va="bottom", color=MUTED)
            continue
        axes.bar(
            at,
            estimate.value,
            width,
            facecolor=colour if _FILLED[split] else "white",
            edgecolor=colour,
            linewidth=1.2,
            alpha=0.85 if _FILLED[split] else 1.0,
            gid=f"{FLOW_BINS[i]}/{split}",
        )
        if math.isfinite(estimate.low) and math.isfinite(estimate.high):
            axes.vlines(at, estimate.low, estimate.high, color=INK, linewidth=1.2)


# ------------------------------------------------------------------------- influence


def influence_figure(comparison: Comparison, split: Split = "trained") -> Figure:
    """Slopes of every kind's Δtok on every other's, as a map centred at zero.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    cells = [c for c in comparison.overall.influence if c.split == split]
    kinds = _clustered(comparison, split, cells)
    size = max(0.62 * len(kinds), 6.2)
    figure = new_figure(size + 3.1, 0.38 * max(len(kinds), 4) + 2.2)
    axes = figure.add_axes(_inches(figure, 1.75, 1.4, size, -0.8))
    for side in axes.spines.values():
        side.set_visible(False)
    limit = _colour_limit([c.slope for c in cells])
    if cells:
        _heat(figure, axes, cells, kinds, limit)
    axes.set_xticks(
        range(len(kinds)), kinds, rotation=40, ha="right", rotation_mode="anchor"
    )
    axes.set_yticks(range(len(kinds)), kinds)
    axes.tick_params(length=0, labelsize=FONT - 1)
    axes.set_xlabel("explained kind", fontsize=FONT)
    axes.set_ylabel("explaining kind", fontsize=FONT)
    pair = comparison.overall
    levels = _levels([c.slope for c in cells])
    _caption(
        figure,
        f"How kinds moved together over prompts, {SPLIT_NAMES[split]} probes",
        f"{for_figure(comparison.run, 24)}, step {pair.before} to step {pair.after}: "
        f"slope of the column's Δtok on the row's. Bold: the {levels} interval "
        "excludes zero; pale: it does not.",
    )
    return figure


def _clustered(
    comparison: Comparison, split: Split, cells: Sequence[InfluenceCell]
) -> list[str]:
    """Kinds that moved alike side by side, where the comparison ordered them."""
    kinds = list(dict.fromkeys(k for c in cells for k in (c.source, c.target)))
    for cross in comparison.cross:
        if cross.split == split and set(cross.order) == set(kinds):
            return list(cross.order)
    return kinds


def _colour_limit(slopes: Sequence[Estimate]) -> float:
    """Where the colours end: all but the largest twentieth of the slopes."""
    sizes = sorted(abs(e.value) for e in slopes if math.isfinite(e.value))
    return (sizes[int(0.95 * (len(sizes) - 1))] if sizes else 0.0) or 1.0


def _heat(
    figure: Figure,
    axes: Axes,
    cells: Sequence[InfluenceCell],
    kinds: Sequence[str],
    limit: float,
) -> None:
    """The coloured squares, their values and the colour key."""
    place = {kind: i for i, kind in enumerate(kinds)}
    values = np.full((len(kinds), len(kinds)), np.nan)
    weight = np.full(values.shape, _PALE)
    for cell in cells:
        row, column = place[cell.source], place[cell.target]
        values[row, column] = cell.slope.value
        weight[row, column] = 1.0 if mark(cell.slope) else _PALE
        _value(axes, cell.slope, row, column, limit)
    shown = axes.imshow(
        values,
        cmap="RdBu",
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        alpha=weight,
        gid="slopes",
    )
    w = figure.get_figwidth()
    box = axes.get_position()
    strip = figure.add_axes((box.x1 + 0.25 / w, box.y0, 0.16 / w, box.y1 - box.y0))
    bar = figure.colorbar(shown, cax=strip, extend="both")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=FONT - 1, length=2)
    bar.set_label("slope, no unit", fontsize=FONT - 1)


def _value(axes: Axes, slope: Estimate, row: int, column: int, limit: float) -> None:
    finite, clear = math.isfinite(slope.value), bool(mark(slope))
    axes.text(
        column,
        row,
        number(slope.value, 2) if finite else "–",
        ha="center",
        va="center",
        fontsize=FONT - 2,
        fontweight="bold" if clear else "normal",
        color="white" if clear and abs(slope.value) > 0.6 * limit else INK,
    )


# ---------------------------------------------------------------------------- shared


def _inches(
    figure: Figure, left: float, bottom: float, width: float, top: float
) -> tuple[float, float, float, float]:
    """Axes by inches: ``top`` is counted downward from the upper edge, negative."""
    w, h = figure.get_size_inches()
    return left / w, bottom / h, width / w, (h + top - bottom) / h


def _bare_axes(axes: Axes) -> None:
    plain_axes(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=FONT)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=FAINT, linewidth=0.6)


def _caption(figure: Figure, title: str, below: str) -> None:
    height = figure.get_figheight()
    left = 0.2 / figure.get_figwidth()
    figure.text(left, 1 - 0.28 / height, title, fontsize=FONT + 2, color=INK)
    figure.text(left, 1 - 0.52 / height, below, fontsize=FONT - 1, color=MUTED)


def _levels(estimates: Sequence[Estimate]) -> str:
    return "/".join(sorted({level(e.level) for e in estimates})) or "95%"
