"""Figures of the toys: residuals of losses, squeeze panels, the 2-gram example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ldeval.records import (
    BigramOutcome,
    BigramStudy,
    FloatArray,
    ResidualPanel,
    SqueezePanel,
)
from ldeval.report.canvas import FONT, new_figure, plain_axes
from ldeval.report.palette import FAINT, INK, MUTED, stroke
from ldeval.report.rounding import number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

UP = stroke("chosen").colour
DOWN = stroke("rejected").colour
_PALE = "#c9c9c9"
_WIDTH = 12.0
_REGION_SHORT = {"valid": "valid", "invalid": "invalid", "ungrammatical": "ungram."}


def caption(figure: Figure, title: str, below: str) -> None:
    """A title and a line of explanation, at the same place in inches everywhere."""
    height = float(figure.get_figheight())
    figure.text(0.02, 1 - 0.28 / height, title, fontsize=FONT + 3, color=INK)
    figure.text(
        0.02,
        1 - 0.4 / height,
        below,
        fontsize=FONT - 1,
        color=MUTED,
        va="top",
        linespacing=1.3,
    )


# --------------------------------------------------------------------------- residuals


def residuals_figure(panels: Sequence[ResidualPanel], log_p: FloatArray) -> Figure:
    """−G of every loss, at chosen's position above and at rejected's below.

    Args:
        panels: As :func:`ldeval.dynamics.panels.residual_panels` gives them.
        log_p: [V] ln π, drawn behind them.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    columns = 4
    rows = math.ceil((len(panels) + 1) / columns)
    cell, head = 2.1, 0.95
    height = head + rows * cell
    figure = new_figure(_WIDTH, height)
    for i, panel in enumerate([None, *panels]):
        left = 0.05 + 0.24 * (i % columns)
        top = height - head - cell * (i // columns)
        upper = figure.add_axes((left, (top - 1.0) / height, 0.2, 0.72 / height))
        if panel is None:
            _prediction_panel(figure, upper, log_p, left, top / height)
            continue
        lower = figure.add_axes((left, (top - 1.78) / height, 0.2, 0.72 / height))
        limit = _limit([panel.chosen, panel.rejected])
        _residual_bars(upper, panel.chosen, panel.chosen_id, "y⁺", limit, len(log_p))
        _residual_bars(
            lower, panel.rejected, panel.rejected_id, "y⁻", limit, len(log_p)
        )
        colour = DOWN if panel.approximation else INK
        figure.text(left, (top - 0.1) / height, panel.name, fontsize=FONT, color=colour)
        figure.text(
            left, (top - 0.25) / height, panel.note, fontsize=FONT - 3, color=MUTED
        )
    caption(
        figure,
        "What each loss asks of the logits: −G",
        "One position of a chosen response (upper) and of a rejected one (lower). "
        "Blue: raised, vermilion: lowered.\nEach panel has its own scale; the number "
        "is the label's own push. Named in vermilion: the paper's approximations.",
    )
    return figure


def _prediction_panel(
    figure: Figure, axes: Axes, log_p: FloatArray, left: float, top: float
) -> None:
    axes.bar(np.arange(len(log_p)), np.exp(log_p), width=1.0, color=_PALE)
    _bare(axes)
    figure.text(left, top - 0.012, "the model's π", fontsize=FONT, color=INK)
    axes.set_xlabel("token", fontsize=FONT - 2, color=MUTED)


def _limit(parts: Sequence[FloatArray | None]) -> float:
    return max((float(np.abs(p).max()) for p in parts if p is not None), default=0) or 1


def _residual_bars(
    axes: Axes,
    push: FloatArray | None,
    label: int,
    name: str,
    limit: float,
    size: int,
) -> None:
    _bare(axes)
    axes.set_ylim(-1.15, 1.15)
    axes.set_xlim(-1, size)
    axes.axhline(0, color=MUTED, linewidth=0.6)
    if push is None:
        text = f"{name} is not looked at"
        axes.text(0, 0.2, text, fontsize=FONT - 2, color=MUTED)
        return
    axes.axvline(label, color=FAINT, linewidth=3, zorder=0)
    axes.text(label + 0.8, 0.78, name, fontsize=FONT - 2, color=INK)
    place = np.arange(len(push))
    colours = [UP if value > 0 else DOWN for value in push]
    axes.bar(place, push / limit, width=0.9, color=colours)
    value = f"{float(push[label]):+.2g}".replace("-", "−")
    axes.text(-0.5, 0.78, value, fontsize=FONT - 2, color=INK)


def _bare(axes: Axes) -> None:
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])


# ---------------------------------------------------------------------- squeeze panels


def squeeze_figure(panels: Sequence[SqueezePanel]) -> Figure:
    """π before and after one step, linear above and logarithmic below.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    columns = 3
    rows = math.ceil(len(panels) / columns)
    cell, head = 3.8, 0.75
    height = head + rows * cell
    figure = new_figure(_WIDTH, height)
    for i, panel in enumerate(panels):
        left = 0.055 + 0.325 * (i % columns)
        top = height - head - cell * (i // columns)
        figure.text(
            left,
            (top - 0.12) / height,
            f"{panel.name}  {panel.caption}",
            fontsize=FONT,
            color=INK,
        )
        figure.text(
            left, (top - 0.3) / height, _account(panel), fontsize=FONT - 2, color=MUTED
        )
        linear = figure.add_axes((left, (top - 1.9) / height, 0.27, 1.35 / height))
        logarithmic = figure.add_axes(
            (left, (top - 3.35) / height, 0.27, 1.25 / height)
        )
        _squeeze_axes(linear, panel, log=False)
        _squeeze_axes(logarithmic, panel, log=True)
    caption(
        figure,
        "One step of gradient descent on one input",
        "Grey: π before. Dots: after, blue where it rose, vermilion where it fell. ▲ "
        "pulled up, ▼ pushed down. Dotted: the threshold (1/s) ln Z, above which a "
        "class rises.",
    )
    return figure


def _account(panel: SqueezePanel) -> str:
    change = panel.after - panel.before
    rose = int((change > 0).sum())
    top = int(panel.before.argmax())
    return (
        f"{rose} of {len(change)} rise; the largest {panel.before[top]:.3f} → "
        f"{panel.after[top]:.3f}; s = {max(panel.strengths):.2f} nats"
    )


def _squeeze_axes(axes: Axes, panel: SqueezePanel, *, log: bool) -> None:
    plain_axes(axes)
    axes.tick_params(labelsize=FONT - 2)
    place = np.arange(len(panel.before))
    rose = panel.after > panel.before
    size = 9.0 if len(place) < 100 else 2.0
    least = max(1e-6, float(panel.before.min()) / 20)
    bottom = least if log else 0.0
    axes.bar(place, panel.before - bottom, bottom=bottom, width=1.0, color=_PALE)
    shown = np.maximum(panel.after, bottom)
    for mask, colour in ((rose, UP), (~rose, DOWN)):
        axes.scatter(place[mask], shown[mask], s=size, color=colour, linewidths=0)
    if math.isfinite(panel.threshold):
        axes.axhline(panel.threshold, color=INK, linewidth=0.9, linestyle=":")
    if log:
        axes.set_yscale("log")
        axes.set_ylim(bottom=least)
        axes.set_xlabel("class", fontsize=FONT - 2, color=MUTED)
    else:
        axes.set_xticklabels([])
    for label, marker, colour in ((panel.pulled, "^", UP), (panel.pushed, "v", DOWN)):
        if label is not None:
            axes.plot(
                [label],
                [1.05],
                marker=marker,
                color=colour,
                markersize=6,
                clip_on=False,
                transform=axes.get_xaxis_transform(),
            )


# ---------------------------------------------------------------------- 2-gram example


def bigram_figure(study: BigramStudy) -> Figure:
    """π(y1, y2) before and after, and the change of ln π, for every way of training.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    height = 6.0
    figure = new_figure(_WIDTH, height)
    side, gap, first = 1.66, 0.26, 0.55
    maps = [study.log_p, *(outcome.log_p for outcome in study.outcomes)]
    titles = ["before", *(outcome.name for outcome in study.outcomes)]
    limit = max(float(np.abs(o.log_p - study.log_p).max()) for o in study.outcomes)
    limit = min(limit, 4.0)
    for i, (log_p, title) in enumerate(zip(maps, titles, strict=True)):
        left = (first + i * (side + gap)) / _WIDTH
        size = (side / _WIDTH, side / height)
        axes = figure.add_axes((left, 3.3 / height, *size))
        shown = axes.imshow(np.exp(log_p), cmap="Greys", norm=_log_norm())
        axes.set_title(title, fontsize=FONT, loc="left", color=INK)
        _map_axes(axes, study, first=i == 0)
        below = figure.add_axes((left, 1.3 / height, *size))
        if i == 0:
            _region_key(below)
            _colour_bar(figure, shown, (left, 0.62), "π(y₁, y₂)", height)
            continue
        outcome = study.outcomes[i - 1]
        _marks(axes, outcome)
        change = below.imshow(log_p - study.log_p, cmap="RdBu", vmin=-limit, vmax=limit)
        _map_axes(below, study, first=False)
        _marks(below, outcome)
        figure.text(
            left,
            1.2 / height,
            _masses(outcome),
            fontsize=FONT - 2.5,
            color=INK,
            va="top",
            linespacing=1.35,
        )
        if i == len(maps) - 1:
            right = (first + 2 * (side + gap)) / _WIDTH
            _colour_bar(figure, change, (right, 0.2), "Δ ln π, nats", height)
    caption(
        figure,
        "Ten words, responses of two: where the probability goes",
        f"{study.steps} steps of gradient descent at η = {study.rate:g}. Above: "
        "π(y₁, y₂); below: Δ ln π. ▲ pulled up, ▼ pushed down, ○ gained most. Lines "
        "part valid, invalid and ungrammatical responses.",
    )
    return figure


def _log_norm() -> Normalize:
    from matplotlib.colors import LogNorm

    return LogNorm(vmin=1e-5, vmax=0.5, clip=True)


def _map_axes(axes: Axes, study: BigramStudy, *, first: bool) -> None:
    size = len(study.region)
    axes.set_xticks(range(0, size, 3))
    axes.set_yticks(range(0, size, 3))
    axes.tick_params(labelsize=FONT - 3, colors=MUTED, length=2)
    for i, row in enumerate(study.region):
        for j, name in enumerate(row):
            if j + 1 < size and row[j + 1] != name:
                axes.plot([j + 0.5] * 2, [i - 0.5, i + 0.5], color=INK, linewidth=0.8)
            if i + 1 < size and study.region[i + 1][j] != name:
                axes.plot([j - 0.5, j + 0.5], [i + 0.5] * 2, color=INK, linewidth=0.8)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    if first:
        axes.set_ylabel("first word y₁", fontsize=FONT - 2, color=MUTED)
        axes.set_xlabel("second word y₂", fontsize=FONT - 2, color=MUTED, labelpad=1)
    else:
        axes.set_xticklabels([])
        axes.set_yticklabels([])


def _region_key(axes: Axes) -> None:
    _bare(axes)
    axes.set_xlim(-0.5, 9.5)
    axes.set_ylim(9.5, -0.5)
    for end, name, shade in (
        (10, "ungrammatical", "#f0f0f0"),
        (6, "invalid", "#dcdcdc"),
        (3, "valid", "#bdbdbd"),
    ):
        axes.fill_between([-0.5, end - 0.5], -0.5, end - 0.5, color=shade, linewidth=0)
        axes.text(-0.2, end - 0.9, name, fontsize=FONT - 2, color=INK)


def _marks(axes: Axes, outcome: BigramOutcome) -> None:
    for cell, marker, colour, fill in (
        (outcome.gainer, "o", "#E69F00", "none"),
        (outcome.pulled, "^", UP, "full"),
        (outcome.pushed, "v", DOWN, "full"),
    ):
        if cell is not None:
            axes.plot(
                [cell[1]],
                [cell[0]],
                marker=marker,
                color=colour,
                fillstyle=fill,
                markersize=9 if fill == "none" else 5,
                markeredgecolor=colour if fill == "none" else "white",
                markeredgewidth=1.4 if fill == "none" else 0.6,
                linestyle="none",
            )


def _masses(outcome: BigramOutcome) -> str:
    lines = [
        f"{_REGION_SHORT[name]} {percent(before)} → {percent(after)}"
        for name, (before, after) in outcome.regions.items()
    ]
    top = " → ".join(percent(value) for value in outcome.top)
    entropy = " → ".join(number(value, 2, signed=False) for value in outcome.entropy)
    return "\n".join([*lines, f"likeliest other {top}", f"entropy {entropy} nats"])


def _colour_bar(
    figure: Figure,
    shown: ScalarMappable,
    place: tuple[float, float],
    name: str,
    height: float,
) -> None:
    axes = figure.add_axes((place[0], place[1] / height, 0.138, 0.09 / height))
    bar = figure.colorbar(shown, cax=axes, orientation="horizontal")
    bar.ax.tick_params(labelsize=FONT - 3, colors=MUTED, length=2)
    bar.outline.set_visible(False)
    axes.set_title(name, fontsize=FONT - 2, color=MUTED, loc="left", pad=2)
