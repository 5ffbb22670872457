"""What a run says by itself, in the page and in the tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ldeval.compare.greedy import greedy_path
from ldeval.compare.stats import Bootstrap
from ldeval.records import Comparison
from ldeval.report import print_summary
from ldeval.report.figure_plan import plan
from ldeval.report.json_report import dumps, to_csv
from ldeval.report.markdown import render_markdown
from ldeval.report.page import PageRun, render_page
from tests.compare.test_greedy import world
from tests.report.browser import Watched, expect_count
from tests.report.page_world import HOSTILE, ScoredRun

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

STEPS = (0, 20, 40, 60)


@pytest.fixture(scope="module")
def comparison(dpo_run: ScoredRun) -> Comparison:
    every = [world(step, 0.004 * step, -0.01 * step) for step in STEPS]
    hostile = [
        replace(
            item,
            decodes=tuple(
                replace(d, text=f"{HOSTILE[0]} \u202eevil {d.text}")
                for d in item.decodes
            ),
        )
        for item in every
    ]
    weights = {item.step: item.weights_hash for item in hostile}
    path = greedy_path(hostile, weights, 0.02, Bootstrap(0, 199))
    return replace(dpo_run.comparison, greedy=path)


@pytest.fixture(
    params=[("light", 1400), ("dark", 1400), ("light", 390)], ids=lambda p: f"{p[0]}"
)
def page(
    request: pytest.FixtureRequest,
    browser: Browser,
    comparison: Comparison,
    tmp_path: Path,
) -> Iterator[Page]:
    theme, width = request.param
    path = tmp_path / "report.html"
    path.write_text(render_page([PageRun(comparison)], title="A run"), "utf-8")
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme
    )
    found = Watched(context.new_page())
    found.page.goto(path.as_uri())
    found.page.locator("#greedy").scroll_into_view_if_needed()
    found.page.wait_for_selector("#greedy svg.figure")
    yield found.page
    found.check()
    context.close()


def test_the_section_draws_both_lines_and_shows_both_texts(
    page: Page, comparison: Comparison
) -> None:
    assert comparison.greedy is not None
    expect_count(page.locator("#greedy svg.figure"), 2)
    expect_count(page.locator("#greedy polyline.line"), 4)
    rows = page.locator("#greedy table.moves tbody tr")
    expect_count(rows, 8)
    first = comparison.greedy.moves[0]
    text = rows.first.text_content() or ""
    assert first.probe_id in text
    assert HOSTILE[0] in text
    assert "\u202e" not in text
    assert page.locator("#greedy script").count() == 0
    page.locator("#greedy button.more").click()
    expect_count(rows, 40)
    dot = page.locator("#greedy circle.dot").first
    dot.hover()
    assert "own decode, step 20" in (page.locator("#tip").text_content() or "")
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0


def test_a_run_without_decodes_has_no_such_section(
    browser: Browser, dpo_run: ScoredRun, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_page([PageRun(dpo_run.comparison)], title="A run"), "utf-8")
    context = browser.new_context()
    found = Watched(context.new_page())
    found.page.goto(path.as_uri())
    found.page.wait_for_selector("#claims")
    expect_count(found.page.locator("#greedy"), 0)
    found.check()
    context.close()


def test_text_json_and_markdown_tell_it_too(comparison: Comparison) -> None:
    assert comparison.greedy is not None
    record = json.loads(dumps(comparison))["greedy"]
    assert [s["step"] for s in record["steps"]] == [20, 20, 40, 40, 60, 60]
    assert record["surer"] == {"trained": "holds", "heldout": "holds"}
    assert len(record["moves"]) == len(comparison.greedy.moves)
    said = " ".join(print_summary(comparison).split())
    assert "at step 60: the model has become surer of what it says by itself" in said
    markdown = render_markdown(comparison, {})
    assert "Greedy decodes, held-out" in markdown
    assert "Whose greedy decode fell most" in markdown
    tables = to_csv(comparison)
    assert tables["greedy"].count("\n") == 1 + len(comparison.greedy.steps)
    assert tables["greedy_prompts"].count("\n") >= 1 + len(comparison.greedy.moves)
    keys = [figure.key for figure in plan([comparison])]
    assert "greedy" in keys
    drawn = next(f for f in plan([comparison]) if f.key == "greedy").draw()
    lines = {line.get_gid() for line in drawn.axes[0].lines} - {None}
    assert {"chosen/trained", "initial/heldout"} <= lines
    assert HOSTILE[0] not in markdown
