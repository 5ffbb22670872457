"""Figures of what is measured over a whole run: rich and poor, likeness to chosen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ldeval.records import SPLIT_NAMES, Comparison, Estimate, Split
from ldeval.report.canvas import FONT, new_figure, plain_axes
from ldeval.report.escape import for_figure
from ldeval.report.palette import INK, MUTED, stroke

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FILL: dict[Split, str] = {"trained": "full", "heldout": "none"}


MANY_STEPS = 12
"""From so many on, not every step has a tick."""


def richer_figure(comparison: Comparison) -> Figure:
    """Δ ln p of the top tokens against their earlier ln p, by decile.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    kinds = list(dict.fromkeys(curve.kind for curve in comparison.richer))
    figure = new_figure(9.0, 3.8)
    for i, kind in enumerate(kinds):
        axes = figure.add_axes((0.1 + 0.46 * i, 0.15, 0.38, 0.62))
        plain_axes(axes)
        for curve in comparison.richer:
            if curve.kind != kind:
                continue
            x = [item.mean for item in curve.bins]
            _points(axes, x, [b.change for b in curve.bins], kind, curve.split)
            if curve.threshold > 0:
                at = math.log(curve.threshold)
                axes.axvline(at, color=MUTED, linewidth=0.9, linestyle=":")
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_title(f"along {kind}", fontsize=FONT, loc="left")
        axes.set_xlabel("ln p at the first checkpoint, nats", fontsize=FONT)
        if i == 0:
            axes.set_ylabel("Δ ln p, nats", fontsize=FONT)
    _head(
        figure,
        "Do the rich get richer?",
        f"{for_figure(comparison.run, 24)}: top tokens other than the label, by decile "
        "of earlier p. Dotted: median threshold of a squeeze step. Open: held-out.",
    )
    return figure


def similarity_figure(comparison: Comparison) -> Figure:
    """Slope of the change on likeness to chosen, by step.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(9.0, 3.4)
    axes = figure.add_axes((0.1, 0.16, 0.85, 0.6))
    plain_axes(axes)
    for cross in comparison.cross:
        steps = [float(point.step) for point in cross.similarity]
        slopes = [point.slope for point in cross.similarity]
        _points(axes, steps, slopes, "chosen", cross.split)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("training step", fontsize=FONT)
    axes.set_ylabel("slope, nats / token", fontsize=FONT)
    names = " and ".join(SPLIT_NAMES[cross.split] for cross in comparison.cross)
    _head(
        figure,
        "Does likeness to chosen carry the change?",
        f"{for_figure(comparison.run, 24)}, {names} probes: slope of the change per "
        "token on likeness to chosen. Open: held-out.",
    )
    return figure


def greedy_figure(comparison: Comparison) -> Figure:
    """How probable greedy decodes are to each checkpoint, by step.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: the comparison holds no decodes.
    """
    path = comparison.greedy
    if path is None:
        raise ValueError(f"{comparison.run}: no greedy decodes were kept")
    figure = new_figure(9.0, 3.4)
    axes = figure.add_axes((0.1, 0.16, 0.72, 0.6))
    plain_axes(axes)
    every = sorted({path.reference_step, *(step.step for step in path.steps)})
    aside = 0.006 * (every[-1] - every[0])  # or one split's intervals hide the other's
    for split in SPLIT_NAMES:
        found = [step for step in path.steps if step.split == split]
        steps = [s.step + (aside if split == "heldout" else -aside) for s in found]
        _points(axes, steps, [s.own_tok for s in found], "chosen", split)
        _points(axes, steps, [s.reference_tok for s in found], "initial", split)
        if found and split == path.steps[0].split:
            last = found[-1]
            for text, end in (("own", last.own_tok), ("first's", last.reference_tok)):
                if math.isfinite(end.value):
                    axes.annotate(
                        f"{text} decode",
                        (last.step, end.value),
                        (12, 0),
                        textcoords="offset points",
                        fontsize=FONT - 1,
                        va="center",
                    )
    axes.axhline(0, color=INK, linewidth=0.8)
    if len(every) < MANY_STEPS:
        axes.set_xticks(every)
    axes.set_xlim(left=every[0])
    axes.set_xlabel("training step", fontsize=FONT)
    axes.set_ylabel("change, nats / token", fontsize=FONT)
    _head(
        figure,
        "Does it reach generation?",
        f"{for_figure(comparison.run, 24)}: greedy decodes against those of step "
        f"{path.reference_step}. Open: held-out.",
    )
    return figure


def _points(
    axes: Axes, x: list[float], found: list[Estimate], kind: str, split: Split
) -> None:
    colour = stroke(kind).colour
    kept = [i for i, e in enumerate(found) if math.isfinite(e.value)]
    y = [found[i].value for i in kept]
    axes.plot(
        [x[i] for i in kept],
        y,
        color=colour,
        marker="o",
        fillstyle=_FILL[split],
        linewidth=1.4,
        gid=f"{kind}/{split}",
    )
    for i in kept:
        if math.isfinite(found[i].low):
            axes.vlines(x[i], found[i].low, found[i].high, color=colour, linewidth=1.0)


def _head(figure: Figure, title: str, below: str) -> None:
    figure.text(0.02, 0.92, title, fontsize=FONT + 2, color=INK)
    figure.text(0.02, 0.845, below, fontsize=FONT - 1, color=MUTED)
