"""Which figures a report has: the key, the caption and the drawing of each.

The Markdown needs the captions, whoever writes the files needs the drawings; one list
keeps the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ldeval.records import SPLIT_NAMES, Comparison
from ldeval.report.measure_plots import (
    greedy_figure,
    richer_figure,
    similarity_figure,
)
from ldeval.report.plots import (
    curves_figure,
    delta_figure,
    flow_figure,
    influence_figure,
)
from ldeval.report.words import SPLITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PlannedFigure:
    """A figure that the numbers allow, not yet drawn."""

    key: str
    """Its name in links and files, without suffix."""
    caption: str
    draw: Callable[[], Figure]
    """Raises ``MissingExtraError`` without matplotlib."""
    folded: bool = False
    """Whether the page shows it only when it is asked for."""


def plan(stages: Sequence[Comparison]) -> tuple[PlannedFigure, ...]:
    """The figures of a report, in the order of its page.

    Args:
        stages: One comparison, or several stages; with several, the keys of a stage's
            own figures end in its number, counted from 1.
    """
    figures = list(_curves(stages))
    for number, stage in enumerate(stages, 1):
        several = len(stages) > 1
        suffix = f"_{number}" if several else ""
        figures += _of_stage(stage, suffix, f", {stage.run}" if several else "")
    return tuple(figures)


def _curves(stages: Sequence[Comparison]) -> Iterable[PlannedFigure]:
    for split in SPLITS:
        if any(point.split == split for stage in stages for point in stage.curves):
            yield PlannedFigure(
                f"curves_{split}",
                "Change of log-probability against training step, "
                f"{SPLIT_NAMES[split]} probes.",
                partial(curves_figure, stages, split, relative=True),
            )
            yield PlannedFigure(
                f"levels_{split}",
                "Log-probability of every kind against training step, "
                f"{SPLIT_NAMES[split]} probes.",
                partial(curves_figure, stages, split),
                folded=True,
            )


def _of_stage(stage: Comparison, suffix: str, of_run: str) -> Iterable[PlannedFigure]:
    yield PlannedFigure(
        f"changes{suffix}",
        f"Change per token from the first to the last checkpoint{of_run}. The grey "
        "band is the noise floor.",
        partial(delta_figure, stage),
    )
    if stage.overall.flows:
        yield PlannedFigure(
            f"flow{suffix}",
            f"Where the probability went at off-label positions{of_run}.",
            partial(flow_figure, stage),
        )
    if stage.greedy is not None:
        yield PlannedFigure(
            f"greedy{suffix}",
            f"How probable greedy decodes are to each checkpoint{of_run}.",
            partial(greedy_figure, stage),
        )
    if stage.richer:
        yield PlannedFigure(
            f"richer{suffix}",
            f"Change of the top tokens by their earlier probability{of_run}.",
            partial(richer_figure, stage),
            folded=True,
        )
    if any(len(cross.similarity) > 1 for cross in stage.cross):
        yield PlannedFigure(
            f"similarity{suffix}",
            f"Slope of the change on likeness to chosen{of_run}.",
            partial(similarity_figure, stage),
            folded=True,
        )
    for split in SPLITS:
        if any(cell.split == split for cell in stage.overall.influence):
            yield PlannedFigure(
                f"influence_{split}{suffix}",
                f"How kinds moved together over prompts, {SPLIT_NAMES[split]} "
                f"probes{of_run}.",
                partial(influence_figure, stage, split),
                folded=True,
            )
