"""Figures hold what they should, and matplotlib is touched through one door."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ldeval.report
from ldeval.errors import MissingExtraError
from ldeval.records import KIND_NAMES, Comparison, Estimate
from ldeval.report.canvas import image
from ldeval.report.curve_plot import spread
from ldeval.report.palette import STROKES, stroke
from ldeval.report.plots import (
    curves_figure,
    delta_figure,
    flow_figure,
    influence_figure,
)

DRAWN = {*KIND_NAMES, "argmax:chosen", "argmax:rejected"}
ALL = (curves_figure, delta_figure, flow_figure, influence_figure)


def texts(figure: Any) -> list[Any]:
    """Every text that the figure shows, tick labels outside the view left out."""
    from matplotlib.text import Text

    figure.canvas.draw()
    unseen = set()
    for axes in figure.axes:
        for i, axis in enumerate((axes.xaxis, axes.yaxis)):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_ticklabels(which="both"):
                if not axes.axison or not low <= tick.get_position()[i] <= high:
                    unseen.add(tick)
    found = figure.findobj(Text)
    seen = [t for t in found if t.get_visible() and t not in unseen]
    return [t for t in seen if t.get_text().strip()]


def box(text: Any, renderer: Any) -> Any:
    """Where the letters stand, without an annotation's leader line."""
    from matplotlib.text import Text

    return Text.get_window_extent(text, renderer)


def outside(figure: Any) -> list[str]:
    """Texts that the edge of the figure cuts."""
    renderer = figure.canvas.get_renderer()
    width, height = figure.bbox.size
    boxes = [(t.get_text(), box(t, renderer)) for t in texts(figure)]
    return [
        text
        for text, b in boxes
        if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height
    ]


def overlapping(figure: Any) -> list[tuple[str, str]]:
    """Pairs of upright texts that lie on one another."""
    renderer = figure.canvas.get_renderer()
    upright = [t for t in texts(figure) if not t.get_rotation() % 90]
    # a margin of one pixel: descenders may touch
    boxes = [(t.get_text(), box(t, renderer).padded(-1)) for t in upright]
    return [
        (a, b)
        for i, (a, first) in enumerate(boxes)
        for b, second in boxes[i + 1 :]
        if first.overlaps(second)
    ]


def lines(figure: Any, row: int) -> list[str]:
    """Kinds drawn in one row of panels."""
    panels = figure.axes[row * 3 : row * 3 + 3]
    return [line.get_gid() for axes in panels for line in axes.lines if line.get_gid()]


@pytest.mark.parametrize("row", [0, 1])
def test_the_curves_have_one_line_a_kind_in_each_row(
    comparison: Comparison, row: int
) -> None:
    drawn = lines(curves_figure(comparison), row)
    assert sorted(drawn) == sorted(DRAWN)


def test_stitched_stages_have_one_line_a_kind_and_stage_in_order(
    stages: tuple[Comparison, ...],
) -> None:
    figure = curves_figure(stages)
    assert len(lines(figure, 0)) == 2 * len(DRAWN)
    first, second = (
        line for line in figure.axes[0].lines if line.get_gid() == "chosen"
    )
    assert first.get_xdata()[-1] == second.get_xdata()[0] == 200
    assert second.get_xdata()[-1] == 600


def test_panels_of_a_row_span_the_same_range(comparison: Comparison) -> None:
    figure = curves_figure(comparison)
    for row in (figure.axes[:3], figure.axes[3:]):
        spans = [axes.get_ylim()[1] - axes.get_ylim()[0] for axes in row]
        assert spans == pytest.approx([spans[0]] * 3)


def test_a_row_without_numbers_is_left_out(comparison: Comparison) -> None:
    nothing = Estimate.undefined("no tokens", unit="nats/token", level=0.95)
    curves = tuple(dataclasses.replace(p, per_token=nothing) for p in comparison.curves)
    figure = curves_figure(dataclasses.replace(comparison, curves=curves))
    assert len(figure.axes) == 3


def test_the_changes_have_a_dot_a_kind_and_split(comparison: Comparison) -> None:
    (axes,) = delta_figure(comparison).axes
    dots = [line.get_gid() for line in axes.lines if "/" in str(line.get_gid())]
    assert len(dots) == len(set(dots)) == 2 * len(DRAWN)


def test_the_flow_has_a_bar_a_bin_and_split(comparison: Comparison) -> None:
    figure = flow_figure(comparison)
    assert [len(axes.patches) for axes in figure.axes] == [8, 8]


def test_the_influence_colours_are_centred_at_zero(comparison: Comparison) -> None:
    figure = influence_figure(comparison)
    (shown,) = figure.axes[0].images
    low, high = shown.get_clim()
    assert low == -high
    assert shown.get_array().shape == (12, 12)


@pytest.mark.parametrize("draw", ALL)
def test_a_figure_is_a_png_and_an_svg_and_the_same_each_time(
    comparison: Comparison, draw: Any
) -> None:
    png, svg = image(draw(comparison), "png"), image(draw(comparison), "svg")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert svg.startswith(b"<?xml")
    assert image(draw(comparison), "svg") == svg


@pytest.mark.parametrize("draw", ALL)
def test_no_text_is_cut_or_lies_on_another(comparison: Comparison, draw: Any) -> None:
    figure = draw(comparison)
    assert outside(figure) == []
    assert overlapping(figure) == []


def test_no_text_of_stitched_stages_is_cut_or_lies_on_another(
    stages: tuple[Comparison, ...],
) -> None:
    figure = curves_figure(stages, "heldout")
    assert outside(figure) == []
    assert overlapping(figure) == []


@pytest.mark.parametrize("draw", ALL)
def test_a_long_hostile_run_name_stays_inside_and_is_no_mathematics(
    make_comparison: Any, draw: Any
) -> None:
    name = r"$\frac{1}{0}$" + "\u202e<b>\n" + "W" * 80
    figure = draw(make_comparison("dpo", run=name))
    image(figure, "png")
    assert outside(figure) == []


@pytest.mark.parametrize("draw", ALL)
def test_a_comparison_without_numbers_still_draws(
    comparison: Comparison, draw: Any
) -> None:
    pair = dataclasses.replace(
        comparison.overall, changes=(), flows=(), influence=(), margins=()
    )
    empty = dataclasses.replace(
        comparison, curves=(), overall=pair, noise_floor=math.nan
    )
    assert image(draw(empty), "png").startswith(b"\x89PNG")


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=14))
def test_labels_are_spread_apart_in_order_and_inside(heights: dict[str, float]) -> None:
    step = 0.06
    placed = spread(heights, step)
    ordered = sorted(heights, key=lambda name: heights[name])
    values = [placed[name] for name in ordered]
    assert all(b - a > step - 1e-9 for a, b in pairwise(values))
    assert all(-1e-9 <= v <= 1 + 1e-9 for v in values)


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread({"a": 0.1, "b": 0.9}, 0.06) == {"a": 0.1, "b": 0.9}


def test_every_kind_has_a_stroke_of_its_own() -> None:
    assert set(STROKES) == DRAWN
    looks = {(s.colour, str(s.dash), s.width) for s in STROKES.values()}
    assert len(looks) == len(STROKES)
    assert stroke("unknown").colour


def test_without_matplotlib_the_extra_is_named(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in ALL:
        with pytest.raises(MissingExtraError, match="the extra 'plot'"):
            draw(comparison)


def test_importing_the_report_imports_neither_matplotlib_nor_torch() -> None:
    code = (
        "import sys, ldeval.report; "
        "print([m for m in ('matplotlib', 'torch') if m in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    root = Path(ldeval.report.__file__).parents[2]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip() == "[]"


def test_pyplot_is_never_used() -> None:
    folder = Path(ldeval.report.__file__).parent
    for path in folder.glob("*.py"):
        imports = re.findall(r"^\s*(?:from|import) .*", path.read_text(), re.MULTILINE)
        assert not any("pyplot" in line for line in imports)
