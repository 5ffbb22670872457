"""Figures of the digits experiment: one step, all of training, and the kernel."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from ldeval.records import DigitsStudy, FloatArray
from ldeval.report.canvas import FONT, new_figure, plain_axes
from ldeval.report.escape import for_figure
from ldeval.report.palette import FAINT, INK, MUTED
from ldeval.report.rounding import number, percent
from ldeval.report.theory_plots import DOWN, UP, caption
from ldeval.report.theory_tables import agreement, strongest_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 12.0
_PAIRS = 4
"""Pairs of classes whose lines are named."""
_NAMED = ("#0072B2", "#D55E00", "#007A5E", "#6A4C9C")


def figures(study: DigitsStudy) -> dict[str, Figure]:
    """Every figure by its file name.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return {
        "digits_step": step_figure(study),
        "digits_influence": influence_figure(study),
        "digits_kernel": kernel_figure(study),
    }


def step_figure(study: DigitsStudy) -> Figure:
    """One step on one image: predicted and actual change of others, and the remainder.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    height = 3.9
    figure = new_figure(_WIDTH, height)
    axes = figure.add_axes((0.03, 1.0 / height, 0.1, 1.2 / height))
    _picture(axes, study.learned_image, f"learned: a {study.learned_label}")
    limit = 1.1 * max(
        float(np.abs(study.step.actual).max()),
        float(np.abs(study.step.predicted).max()),
    )
    for i, (row, name) in enumerate(_observed(study)):
        left = 0.2 + 0.17 * i
        axes = figure.add_axes((left, 0.75 / height, 0.14, 1.75 / height))
        plain_axes(axes)
        axes.set_ylim(-limit, limit)
        axes.set_xticks(range(10))
        axes.tick_params(labelsize=FONT - 2)
        actual, predicted = study.step.actual[row], study.step.predicted[row]
        colours = [UP if value > 0 else DOWN for value in actual]
        axes.bar(range(10), actual, color=colours, width=0.8)
        axes.plot(
            range(10), predicted, "_", color=INK, markersize=9, markeredgewidth=1.4
        )
        axes.axhline(0, color=MUTED, linewidth=0.7)
        if i:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("Δ ln π(class), nats", fontsize=FONT - 1)
        small = figure.add_axes((left, 2.56 / height, 0.045, 0.54 / height))
        _picture(small, study.images[row], "")
        figure.text(left + 0.05, 2.7 / height, name, fontsize=FONT - 1, color=INK)
    _remainder(figure.add_axes((0.78, 0.75 / height, 0.2, 1.9 / height)), study)
    caption(
        figure,
        "One step on one image, seen by others",
        f"{for_figure(study.source, 40)}, half-way through training; η = "
        f"{study.step.rate:.2g}. Bars: measured; black marks: −η A K G. Right: what "
        "first order leaves out.",
    )
    return figure


def _observed(study: DigitsStudy) -> list[tuple[int, str]]:
    """An observed image of the learned class, of a like and of an unlike one."""
    order = np.argsort(study.likeness[study.learned_label])
    digits = (study.learned_label, int(order[-2]), int(order[0]))
    names = ("the same class", "a like class", "an unlike class")
    return [
        (study.labels.index(digit), f"a {digit}:\n{name}")
        for digit, name in zip(digits, names, strict=True)
    ]


def _picture(axes: Axes, image: FloatArray, title: str) -> None:
    axes.imshow(image, cmap="Greys", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    axes.set_title(title, fontsize=FONT, color=INK)


def _remainder(axes: Axes, study: DigitsStudy) -> None:
    plain_axes(axes)
    rates = [item.rate for item in study.rate_errors]
    axes.loglog(rates, [item.change for item in study.rate_errors], "o-", color=MUTED)
    axes.loglog(rates, [item.error for item in study.rate_errors], "o-", color=DOWN)
    axes.tick_params(labelsize=FONT - 2)
    axes.set_xlabel("η", fontsize=FONT - 1)
    axes.set_ylabel("nats", fontsize=FONT - 1)
    slope = number(study.error_slope, 3, signed=False)
    for at, text, colour in (
        (1.08, "change", MUTED),
        (0.98, f"remainder, slope {slope}", DOWN),
    ):
        axes.text(
            0.04, at, text, fontsize=FONT - 1, color=colour, transform=axes.transAxes
        )


def influence_figure(study: DigitsStudy) -> Figure:
    """Who pulled whom over all of training, beside likeness and what is predicted.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    height = 4.3
    figure = new_figure(_WIDTH, height)
    maps = (
        (study.influence, "pull over training, Σ Δπ(column)", "Greens"),
        (study.likeness, "likeness of mean images", "RdBu"),
        (study.mean_prediction, "mean π(column) at the end", "Greys"),
    )
    for i, (values, title, colours) in enumerate(maps):
        left = 0.045 + 0.24 * i
        axes = figure.add_axes((left, 0.6 / height, 0.21, 2.52 / height))
        _class_map(axes, values, colours)
        axes.set_title(title, fontsize=FONT, loc="left", color=INK)
        if i == 0:
            axes.set_ylabel("observed class", fontsize=FONT - 1)
        names = ("examples of class", "class", "predicted class")
        axes.set_xlabel(names[i], fontsize=FONT - 1)
    _account_axes(figure.add_axes((0.79, 0.6 / height, 0.2, 2.52 / height)), study)
    caption(
        figure,
        "Which digits pull which",
        f"{for_figure(study.source, 40)}, {study.parameters:,} parameters; held-out "
        f"accuracy {percent(study.accuracy[0])} → {percent(study.accuracy[1])}. "
        "Numbers: the strongest pulls between different classes.",
    )
    return figure


def _class_map(axes: Axes, values: FloatArray, colours: str) -> None:
    off = values[~np.eye(len(values), dtype=bool)]
    if colours == "RdBu":
        low, high = -1.0, 1.0
    else:
        low, high = 0.0, float(np.max(off)) * 1.05
    axes.imshow(values, cmap=colours, vmin=low, vmax=high)
    axes.set_xticks(range(len(values)))
    axes.set_yticks(range(len(values)))
    axes.tick_params(labelsize=FONT - 2, colors=MUTED, length=0)
    shown = np.where(np.eye(len(values), dtype=bool), -np.inf, values)
    for flat in np.argsort(shown, axis=None)[::-1][:6]:
        row, column = divmod(int(flat), len(values))
        value = float(values[row, column])
        text = f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"
        axes.text(
            column,
            row,
            text.lstrip("0"),
            fontsize=FONT - 4,
            color="white",
            ha="center",
            va="center",
        )


def _account_axes(axes: Axes, study: DigitsStudy) -> None:
    plain_axes(axes)
    x, y = study.accumulated.ravel(), study.moved.ravel()
    axes.scatter(x, y, s=6, color=UP, alpha=0.5, linewidths=0)
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    axes.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=":")
    axes.tick_params(labelsize=FONT - 2)
    correlation, slope = agreement(x, y)
    axes.set_title(
        f"all steps: r = {correlation:.3f}, slope {slope:.2f}",
        fontsize=FONT,
        loc="left",
        color=INK,
    )
    axes.set_xlabel("Σ first order, nats", fontsize=FONT - 1)
    axes.set_ylabel("measured Δ ln π, nats", fontsize=FONT - 1, labelpad=0)


def kernel_figure(study: DigitsStudy) -> Figure:
    """‖K‖_F between classes as training goes on, and how stable its ranks are.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    height = 4.1
    figure = new_figure(_WIDTH, height)
    axes = figure.add_axes((0.065, 0.62 / height, 0.5, 2.6 / height))
    plain_axes(axes)
    steps = [item.step for item in study.kernels]
    places = range(len(steps))
    named = strongest_pairs(study, _PAIRS)
    for one in range(10):
        for other in range(one, 10):
            if (one, other) in named or (other, one) in named:
                continue
            line = [item.norms[one, other] for item in study.kernels]
            same = one == other
            axes.plot(
                places,
                line,
                color=INK if same else "#c4c4c4",
                linewidth=0.7,
                zorder=2 if same else 1,
            )
    ends = []
    for (one, other), colour in zip(named, _NAMED, strict=True):
        line = [item.norms[one, other] for item in study.kernels]
        axes.plot(places, line, color=colour, linewidth=2.2, zorder=3)
        ends.append((math.log(line[-1]), f"{other} pulls {one}", colour))
    _log_ticks(axes)
    axes.set_xticks(list(places), [str(step) for step in steps])
    axes.set_xlabel("training step", fontsize=FONT - 1)
    axes.set_ylabel("mean ‖K(x_o, x_u)‖_F", fontsize=FONT - 1)
    low, high = (math.log(value) for value in axes.get_ylim())
    for at, (_, text, colour) in zip(
        _apart([(end[0] - low) / (high - low) for end in ends]), ends, strict=True
    ):
        axes.text(
            1.015,
            at,
            text,
            color=colour,
            fontsize=FONT - 1,
            va="center",
            transform=axes.transAxes,
        )
    _stability(figure.add_axes((0.74, 0.62 / height, 0.215, 2.6 / height)), study)
    caption(
        figure,
        "How far learning one image reaches",
        "Left: mean norm of the empirical NTK between images of two classes; black: "
        "one class with itself; colours: the strongest pulls. Right: Spearman's "
        "correlation of all pairs' norms.",
    )
    return figure


def _log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _apart(places: list[float], least: float = 0.07) -> list[float]:
    """Places moved up so that no two labels touch."""
    moved = list(places)
    order = sorted(range(len(places)), key=lambda i: places[i])
    for below, above in itertools.pairwise(order):
        moved[above] = max(moved[above], moved[below] + least)
    return moved


def _stability(axes: Axes, study: DigitsStudy) -> None:
    values = study.rank_stability
    low = math.floor(10 * float(values.min())) / 10
    axes.imshow(values, cmap="Blues", vmin=min(low, 0.9), vmax=1.0)
    steps = [str(item.step) for item in study.kernels]
    axes.set_xticks(range(len(steps)), steps, rotation=90)
    axes.set_yticks(range(len(steps)), steps)
    axes.tick_params(labelsize=FONT - 2, colors=MUTED, length=0)
    middle = (min(low, 0.9) + 1) / 2
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            axes.text(
                j,
                i,
                f"{value:.2f}".lstrip("0") if value < 0.995 else "1",
                ha="center",
                va="center",
                fontsize=FONT - 3,
                color="white" if value > middle else INK,
            )
    axes.set_title("rank stability", fontsize=FONT, loc="left", color=INK)
