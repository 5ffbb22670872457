"""The page in every state: both themes, narrow and wide, printed, without scripts, for
runs of which less is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ldeval.compare import compare_run
from ldeval.compare.imported import compare_levels
from ldeval.integrations.reference import ImportOptions, import_reference_results
from ldeval.records import Comparison, Excluded
from ldeval.report.page import PageRun, render_page
from tests.compare.conftest import with_manifest, without
from tests.integrations.test_reference_results import metrics, written
from tests.report.browser import Watched, expect_count
from tests.report.conftest import Factory
from tests.report.page_world import ScoredRun

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EVERY_SECTION = ("verdicts", "curves", "changes", "flow", "influence", "claims",
                 "prompts", "measures", "sources", "read")  # fmt: skip


@pytest.fixture(scope="module")
def file(dpo_run: ScoredRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("states") / "report.html"
    path.write_text(render_page([dpo_run.page_run], title="A run"), encoding="utf-8")
    return path


def opened(browser: Browser, path: Path, **options: Any) -> Watched:
    context = browser.new_context(**options)
    found = Watched(context.new_page())
    found.page.goto(path.as_uri())
    return found


def walk(page: Page) -> None:
    """Bring every section into view, so that what waits for it is drawn."""
    for name in EVERY_SECTION:
        page.locator(f"#{name}").scroll_into_view_if_needed()
    if page.locator("#prompts .prompt-list").count():
        page.wait_for_selector("#prompts .prompt-list ol", state="attached")


def unfold(page: Page) -> None:
    page.evaluate(
        "document.querySelectorAll('details').forEach((d) => { d.open = true })"
    )
    page.wait_for_timeout(50)


CONTRAST = """(selectors) => {
  const canvas = new OffscreenCanvas(1, 1)
    .getContext('2d', { willReadFrequently: true });
  const rgb = (colour, under) => {
    canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (c) => [0, 1, 2].map((i) => c[i] / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = getComputedStyle(document.body).backgroundColor;
  const found = [];
  for (const selector of selectors) {
    for (const element of [...document.querySelectorAll(selector)].slice(0, 40)) {
      const style = getComputedStyle(element);
      const behind = rgb(style.backgroundColor, paper);
      const back = `rgb(${behind[0]},${behind[1]},${behind[2]})`;
      const ink = element instanceof SVGElement ? style.fill : style.color;
      const [a, b] = [light(rgb(ink, back)), light(behind)].sort((x, y) => y - x);
      found.push([selector, element.textContent.slice(0, 30), (a + 0.05) / (b + 0.05)]);
    }
  }
  return found;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_fits_reads_and_complains_of_nothing(
    browser: Browser, file: Path, theme: Any, width: int
) -> None:
    size: Any = {"width": width, "height": 900}
    watched = opened(browser, file, viewport=size, color_scheme=theme)
    page = watched.page
    walk(page)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ratios = page.evaluate(
        CONTRAST,
        ["h1", "h2", "h3", "p", ".note", ".badge", ".why", "th",
         "td:not(.plot)", "label",
         ".quiet", "nav a", ".token", "svg text.tick", "svg .end-labels text",
         ".flow-label text", ".heat td.cell", ".condition-list span", "summary"],
    )  # fmt: skip
    assert len(ratios) > 200
    weak = [entry for entry in ratios if entry[2] < 3.0]
    assert not weak
    body = [
        entry for entry in ratios if entry[0] in ("p", ".note", "td:not(.plot)", "th")
    ]
    assert min(entry[2] for entry in body) >= 4.5
    watched.check()
    page.context.close()


def test_the_switch_overrides_the_system_s_theme(browser: Browser, file: Path) -> None:
    page = opened(browser, file, color_scheme="light").page
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.select_option('select[data-control="theme"]', "dark")
    assert page.evaluate(paper) == "rgb(22, 23, 26)"
    line = (
        "getComputedStyle(document.querySelector('g[data-kind=chosen] .line')).stroke"
    )
    dark = page.evaluate(line)
    page.select_option('select[data-control="theme"]', "light")
    assert page.evaluate(line) != dark
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.select_option('select[data-control="theme"]', "auto")
    assert page.evaluate(paper) == "rgb(22, 23, 26)"
    page.context.close()


def test_a_narrow_window_that_grows_is_redrawn(browser: Browser, file: Path) -> None:
    page = opened(browser, file, viewport={"width": 390, "height": 800}).page
    figure = page.locator("#curves svg.figure")
    narrow = figure.bounding_box()
    expect_count(page.locator("#curves .end-labels"), 0)
    page.set_viewport_size({"width": 1300, "height": 800})
    page.wait_for_selector("#curves .end-labels")
    wide = figure.bounding_box()
    assert narrow is not None
    assert wide is not None
    assert narrow["width"] < 390 < wide["width"]
    page.context.close()


def test_it_prints_in_light_with_its_evidence_and_without_its_controls(
    browser: Browser, file: Path, tmp_path: Path
) -> None:
    watched = opened(browser, file, color_scheme="dark")
    page = watched.page
    page.select_option('select[data-control="theme"]', "dark")
    walk(page)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    for hidden in (".bar", ".controls", ".prompt-list", ".downloads"):
        assert page.locator(hidden).first.is_hidden(), hidden
    assert page.locator("#verdicts .conditions").first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("#verdicts .conditions").first.is_hidden()
    page.emulate_media(media="screen")
    content = page.pdf(path=tmp_path / "report.pdf", print_background=True)
    assert content[:5] == b"%PDF-"
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") > 3
    watched.check()
    page.context.close()


def test_without_scripts_it_says_where_to_read_on(browser: Browser, file: Path) -> None:
    page = opened(browser, file, java_script_enabled=False).page
    assert "report.md" in page.inner_text("body")
    page.context.close()


def test_everything_can_be_reached_and_has_a_name(browser: Browser, file: Path) -> None:
    page = opened(browser, file, viewport={"width": 1400, "height": 900}).page
    walk(page)
    unfold(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, a, summary')]
          .filter((x) => x.checkVisibility())
          .filter((x) => !(x.textContent.trim() || x.ariaLabel || x.labels?.length))
          .map((x) => x.outerHTML)"""
    )
    assert nameless == []
    figures = page.evaluate(
        """() => [...document.querySelectorAll('main svg')]
          .filter((x) => x.ariaHidden !== 'true' && !(x.role === 'img' && x.ariaLabel))
          .map((x) => x.outerHTML.slice(0, 200))"""
    )
    assert figures == []
    levels = page.locator("main :is(h1, h2, h3, h4)").evaluate_all(
        "f => f.filter((x) => x.checkVisibility()).map((x) => Number(x.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    labelled = page.locator("main section").evaluate_all(
        "f => f.map((x) => document.getElementById(x.getAttribute('aria-labelledby'))"
        ".textContent)"
    )
    assert len(labelled) == len(set(labelled)) == len(EVERY_SECTION)
    page.keyboard.press("Home")
    page.locator("body").press("Tab")
    seen = set()
    for _ in range(160):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate("document.activeElement.closest('section')?.id || 'outside'")
        )
    assert {"outside", "verdicts", "curves", "changes", "flow", "influence"} <= seen
    stops = page.locator('#influence [tabindex="0"]:is(td)').count()
    assert stops == 1
    page.context.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Any]:
    """Opens the page of a run and, at the end, checks that it complained of nothing."""
    pages: list[Watched] = []

    def make(*runs: PageRun) -> Page:
        path = tmp_path / f"{len(pages)}.html"
        path.write_text(render_page(runs), encoding="utf-8")
        pages.append(opened(browser, path))
        walk(pages[-1].page)
        unfold(pages[-1].page)
        return pages[-1].page

    yield make
    for watched in pages:
        watched.check()
        watched.page.context.close()


def test_a_run_of_imported_means_shows_what_it_has(show: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "prob_train_metrics.json", metrics())
    levels = import_reference_results(file, ImportOptions("theirs", None, "dpo"))
    page = show(PageRun(compare_levels(levels)))
    assert page.locator("#curves .line").count() > 5
    assert "means only" in page.inner_text("#prompts")
    assert "no flows" in page.inner_text("#flow")
    assert page.locator("#verdicts .verdict").count() > 3


def test_a_run_without_argmaxes_or_texts_is_shown_by_ids(
    show: Any, dpo_run: ScoredRun
) -> None:
    blind = [without(t, "argmax_ids", "argmax_logprobs") for t in dpo_run.tables]
    page = show(PageRun(dpo_run.comparison, blind))
    page.wait_for_selector(".token")
    assert "#" in page.locator(".token").first.inner_text()
    label = page.locator(".token").first.get_attribute("aria-label")
    assert "top choice not known" in label
    assert "--probes" in page.inner_text(".prompt-detail")
    assert "--tokenizer" in page.inner_text(".prompt-detail")


def test_wide_places_read_as_narrow_ones_do(
    show: Any, dpo_run: ScoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = []
    for wide in (False, True):
        if wide:
            monkeypatch.setattr("ldeval.report.page.scores._is_wide", lambda ids: True)
        page = show(dpo_run.page_run)
        page.wait_for_selector(".token")
        page.select_option('.prompt-detail select[data-control="from"]', "1")
        page.wait_for_function(
            "() => document.querySelector('.prompt-kinds caption').innerText"
            ".includes('20 to ')"
        )
        labels.append(
            page.locator(".token").evaluate_all("f => f.map((x) => x.ariaLabel)")
        )
    assert labels[0] == labels[1]
    assert len(labels[0]) > 20


def test_a_run_of_which_no_response_could_be_scored_says_what_was_left_out(
    show: Any, dpo_run: ScoredRun
) -> None:
    gone = (Excluded("p001", "chosen", "70 tokens, the model takes 8"),)
    tables = [with_manifest(t.part(0, 0), excluded=gone) for t in dpo_run.tables]
    page = show(PageRun(compare_run(tables, run="nothing"), tables))
    expect_count(page.locator("#prompts button.prompt"), 0)
    assert "0 of 0 prompts" in page.inner_text("#prompts")
    assert "the model takes 8" in page.inner_text("#sources")


def test_a_kind_of_held_out_prompts_alone_has_no_number_of_trained_ones(
    show: Any, comparison: Comparison
) -> None:
    gone = ("permuted", "trained")
    kept = tuple(c for c in comparison.overall.changes if (c.kind, c.split) != gone)
    pair = dataclasses.replace(comparison.overall, changes=kept)
    page = show(PageRun(dataclasses.replace(comparison, overall=pair)))
    rows = page.locator("#changes .forest tbody tr")
    for kind, known in (("permuted", False), ("rejected", True)):
        row = rows.filter(has=page.get_by_role("rowheader", name=kind, exact=True))
        cells = row.locator("td").all_inner_texts()
        assert [cell != "–" for cell in cells[-2:]] == [known, known]
    assert "fell for (trained)" in page.inner_text("#changes thead")


def test_statistics_that_are_undefined_are_shown_as_such(
    show: Any, make_comparison: Factory
) -> None:
    page = show(PageRun(make_comparison()))
    assert "fewer than 3 tokens" in page.inner_text("#main") or (
        page.locator("#changes td").count() > 20
    )
    assert "NaN" not in page.inner_text("#main")
    assert "undefined" not in page.inner_text("#curves")
    assert "[object" not in page.inner_text("#main")
