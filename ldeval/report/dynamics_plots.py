"""Figures of predicted against measured change, and of influence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ldeval.records import KIND_NAMES, InfluenceTable, Prediction
from ldeval.report.canvas import FONT, new_figure, plain_axes
from ldeval.report.escape import for_figure
from ldeval.report.palette import INK, MUTED, stroke

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = 3
"""Step sizes that the scatter shows."""
SHOWN_EXAMPLES = 40
"""Columns of the influence map: those with the largest influence."""


def scatter_figure(found: Prediction) -> Figure:
    """Measured against predicted change of every response, at up to three step sizes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    places = np.unique(np.linspace(0, len(found.factors) - 1, PANELS).round())
    chosen = [int(place) for place in places]
    figure = new_figure(12.0, 4.6)
    kinds = [k for k in KIND_NAMES if any(r.kind == k for r in found.responses)]
    own = np.asarray([r.kind for r in found.responses])
    overall = {a.factor: a for a in found.agreements if a.kind is None}
    for i, place in enumerate(chosen):
        factor = found.factors[place]
        predicted, measured = factor * found.predicted, found.measured[place]
        axes = figure.add_axes((0.06 + 0.285 * i, 0.14, 0.225, 0.66))
        plain_axes(axes)
        ends = [
            min(predicted.min(), measured.min()),
            max(predicted.max(), measured.max()),
        ]
        axes.plot(ends, ends, color=MUTED, linewidth=0.9, zorder=1)
        for kind in kinds:
            axes.scatter(
                predicted[own == kind],
                measured[own == kind],
                s=14,
                color=stroke(kind).colour,
                alpha=0.75,
                linewidths=0,
                label=kind,
            )
        agreement = overall[factor]
        axes.set_title(
            f"{factor:g}× the step: R² {_r2(agreement.r2)}, "
            f"slope {agreement.slope:.3f}",
            fontsize=FONT,
            loc="left",
        )
        axes.set_xlabel("predicted Δ ln π, nats", fontsize=FONT)
        if i == 0:
            axes.set_ylabel("measured Δ ln π, nats", fontsize=FONT)
            handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="center right",
        fontsize=FONT - 1,
        frameon=False,
        handletextpad=0.2,
    )
    figure.text(
        0.06,
        0.93,
        "What first order foretells of one step",
        fontsize=FONT + 3,
        fontweight="bold",
        color=INK,
    )
    note = f"{len(found.responses)} responses; grey: predicted = measured"
    figure.text(0.06, 0.88, note, fontsize=FONT, color=MUTED)
    return figure


def _r2(value: float) -> str:
    """Enough digits to tell 0.9999 from 1."""
    if math.isnan(value):
        return "undefined"
    return f"{value:.5f}" if 0.999 < value < 1 else f"{value:.3f}"


def influence_figure(found: InfluenceTable) -> Figure:
    """Mean influence of each example on each kind, as a map.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    kinds = [k for k in KIND_NAMES if any(r.kind == k for r in found.responses)]
    own = np.asarray([r.kind for r in found.responses])
    size = np.abs(found.influence).sum(axis=0)
    order = np.argsort(-size, kind="stable")[:SHOWN_EXAMPLES]
    cells = np.stack([found.influence[own == k][:, order].mean(axis=0) for k in kinds])
    reach = float(np.abs(cells).max()) or 1.0
    figure = new_figure(12.0, 1.8 + 0.3 * len(kinds))
    axes = figure.add_axes((0.14, 0.2, 0.74, 0.68))
    drawn = axes.imshow(cells, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    axes.set_yticks(range(len(kinds)), kinds, fontsize=FONT - 1)
    names = [for_figure(found.examples[i], 18) for i in order]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_title(
        "Which training example moved which kind: mean Δ ln π, nats",
        fontsize=FONT + 1,
        loc="left",
        color=INK,
    )
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.9, 0.2, 0.012, 0.68)))
    bar.ax.tick_params(labelsize=FONT - 2)
    return figure
