"""The toys' figures and tables show the numbers that they were given."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from ldeval.dynamics.bigram import study as bigram_study
from ldeval.dynamics.digits import DigitsSettings
from ldeval.dynamics.digits import study as digits_study
from ldeval.dynamics.images import scikit_digits
from ldeval.dynamics.panels import prediction, residual_panels, squeeze_panels
from ldeval.records import DigitsStudy
from ldeval.report.canvas import image
from ldeval.report.digits_plots import figures
from ldeval.report.json_report import dumps, plain
from ldeval.report.tables import to_terminal
from ldeval.report.theory_plots import bigram_figure, residuals_figure, squeeze_figure
from ldeval.report.theory_tables import (
    bigram_table,
    digits_table,
    residuals_table,
    squeeze_table,
    strongest_pairs,
)


@pytest.fixture(scope="module")
def short() -> DigitsStudy:
    settings = DigitsSettings(epochs=2, train=300, observed=2)
    return digits_study(scikit_digits(), settings)


def written(figure: Figure) -> list[Text]:
    """Every text but tick labels, which matplotlib drops outside the axes."""
    found = list(figure.texts)
    for axes in figure.axes:
        titles = [axes.title, axes._left_title]  # type: ignore[attr-defined]
        found += [*axes.texts, *titles, axes.xaxis.label, axes.yaxis.label]
    return [text for text in found if text.get_text()]


def outside(figure: Figure) -> list[str]:
    """Texts that reach over an edge of the figure."""
    figure.canvas.draw()
    edge = figure.bbox.padded(1)
    boxes = [(text.get_text(), text.get_window_extent()) for text in written(figure)]
    return [
        name
        for name, box in boxes
        if not (edge.contains(box.x0, box.y0) and edge.contains(box.x1, box.y1))
    ]


def drawn(short: DigitsStudy) -> dict[str, Figure]:
    return {
        "residuals": residuals_figure(residual_panels(), prediction()),
        "squeezing": squeeze_figure(squeeze_panels()),
        "bigram": bigram_figure(bigram_study()),
        **figures(short),
    }


def test_every_figure_is_an_image_whose_text_fits(short: DigitsStudy) -> None:
    for name, figure in drawn(short).items():
        assert image(figure, "png").startswith(b"\x89PNG"), name
        assert not outside(figure), name


def test_the_same_figure_gives_the_same_bytes() -> None:
    one, two = (image(bigram_figure(bigram_study(steps=2)), "svg") for _ in range(2))
    assert one == two


def test_residual_bars_are_the_pushes_over_their_largest() -> None:
    panels = [p for p in residual_panels() if p.name == "DPO, off-policy"]
    figure = residuals_figure(panels, prediction())
    chosen, rejected = panels[0].chosen, panels[0].rejected
    assert chosen is not None
    assert rejected is not None
    limit = max(np.abs(chosen).max(), np.abs(rejected).max())
    for axes, push in zip(figure.axes[1:3], (chosen, rejected), strict=True):
        heights = [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
        assert heights == pytest.approx(push / limit)


def test_squeeze_dots_are_probabilities_after_the_step() -> None:
    panels = squeeze_panels()[:1]
    linear = squeeze_figure(panels).axes[0]
    points = np.concatenate(
        [np.asarray(dots.get_offsets()) for dots in linear.collections]
    )
    order = points[:, 0].argsort()
    assert points[order, 1] == pytest.approx(panels[0].after)


def test_bigram_maps_hold_the_probabilities() -> None:
    found = bigram_study()
    axes = bigram_figure(found).axes
    maps = [a.images[0].get_array() for a in axes if a.images]
    shown = [np.asarray(m) for m in maps if m is not None and m.shape == (10, 10)]
    wanted = [np.exp(found.log_p)]
    for outcome in found.outcomes:
        wanted += [np.exp(outcome.log_p), outcome.log_p - found.log_p]
    assert len(shown) == len(wanted)
    for one, other in zip(shown, wanted, strict=True):
        assert one == pytest.approx(other)


def test_tables_hold_what_was_found(short: DigitsStudy) -> None:
    text = to_terminal(digits_table(short))
    assert f"{short.error_slope:.3f}" in text
    row, column = strongest_pairs(short, 1)[0]
    assert f"{column} pulls {row}" in text
    assert row != column
    table = to_terminal(bigram_table(bigram_study()))
    assert "off-policy" in table
    residual_text = to_terminal(residuals_table(residual_panels()))
    assert residual_text.count("approximation") == 3
    assert "−0.0498" in residual_text
    assert "3 of 50" in to_terminal(squeeze_table(squeeze_panels()))


def test_a_study_becomes_strict_json(short: DigitsStudy) -> None:
    document = json.loads(dumps(plain({"study": short})))
    assert document["study"]["influence"] == short.influence.tolist()
    panels = json.loads(dumps(plain({"panels": squeeze_panels()})))["panels"]
    assert panels[0]["threshold"] is None  # NaN: it has no negative gradient alone


def test_a_source_with_dollar_signs_is_drawn_as_it_stands(short: DigitsStudy) -> None:
    odd = dataclasses.replace(short, source="MNIST ($x_{$.npz)")
    for figure in figures(odd).values():
        assert image(figure, "png").startswith(b"\x89PNG")
