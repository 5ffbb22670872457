"""First order on the page, in a real browser: scatter, movers, risk, ways between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ldeval.report import report_json
from ldeval.report.dynamics_json import results_json, results_rows
from ldeval.report.page import render_page
from tests.report.browser import Watched, expect_count
from tests.report.first_order_world import FirstOrder
from tests.report.test_page_browser import pick, prompts, saved, values
from tests.report.test_page_states import CONTRAST, unfold

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SECTIONS = ("foretold", "movers", "risk")


@pytest.fixture(scope="module")
def file(first_order: FirstOrder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("joined") / "report.html"
    path.write_text(render_page([first_order.page_run], title="A run"), "utf-8")
    return path


def opened(browser: Browser, path: Path, **options: Any) -> Watched:
    context = browser.new_context(**options)
    found = Watched(context.new_page())
    found.page.goto(path.as_uri())
    for name, drawn in zip(
        SECTIONS, ("svg.figure circle", ".pushes tr", ".risks tr"), strict=True
    ):
        found.page.locator(f"#{name}").scroll_into_view_if_needed()
        found.page.wait_for_selector(f"#{name} {drawn}")
    return found


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    found = opened(browser, file, viewport={"width": 1400, "height": 1000})
    yield found.page
    found.check()
    found.page.context.close()


def record_of(first_order: FirstOrder) -> dict[str, Any]:
    return results_json(first_order.joined[0])


def test_the_scatter_follows_kinds_and_sizes_and_is_read_by_key_and_pointer(
    page: Page, first_order: FirstOrder
) -> None:
    found = record_of(first_order)["prediction"]
    circles = page.locator("#foretold .points circle")
    expect_count(circles, len(found["responses"]))
    table = page.locator("#foretold .agreement tbody tr")
    expect_count(table, 13)
    before = table.first.text_content()
    pick(page, "foretold", "factor", "64")
    assert table.first.text_content() != before
    assert "64" in (page.locator("#foretold .agreement caption").text_content() or "")
    page.locator('#foretold button[data-kind="permuted"]').click()
    expect_count(circles, len(found["responses"]) * 11 // 12)
    figure = page.locator("#foretold svg.figure")
    figure.focus()
    page.keyboard.press("Home")
    shown = [r for r in found["responses"] if r["kind"] != "permuted"]
    least = min(shown, key=lambda row: row["predicted"])
    said = page.locator("#status").text_content() or ""
    assert said.startswith(f"{least['kind']} of {least['probe_id']}: predicted ")
    tip = page.locator("#tip").text_content() or ""
    assert "measured" in tip
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    circles.last.hover()
    assert page.locator("#tip").is_visible()
    expect_count(page.locator("#foretold .ring circle"), 1)


def test_what_pushed_a_hallucination_up_stands_ready_and_opens(
    page: Page, first_order: FirstOrder
) -> None:
    found = record_of(first_order)["influence"]
    first = found["responses"][0]
    rows = page.locator("#movers .pulled tbody tr")
    assert first["kind"] in (rows.first.text_content() or "")
    heading = page.locator("#moved-detail h3")
    assert first["probe_id"] in (heading.text_content() or "")
    assert page.locator('#movers tr[data-part="example"]').count() == len(
        first["up"] + first["down"]
    )
    second = found["responses"][1]
    rows.nth(1).locator("button").click()
    text = heading.text_content() or ""
    assert second["kind"] in text
    assert second["probe_id"] in text
    page.locator("#movers .example summary").first.click()
    assert "rejected" in page.locator("#movers .example .inside").first.inner_text()
    page.select_option('#movers select[data-control="soughtKind"]', "chosen")
    note = page.locator("#movers .prompt-list .note").text_content() or ""
    assert note.startswith("7 of 84")
    page.fill('#movers input[type="search"]', "take 3?")
    note = page.locator("#movers .prompt-list .note").text_content() or ""
    assert note.startswith("1 of 84")


def test_a_response_leads_to_what_moved_it_and_back(page: Page) -> None:
    prompts(page)
    page.fill('#prompts input[type="search"]', "take 2?")
    page.click('#prompts button.prompt[data-probe="2"]')
    page.wait_for_function(
        "document.querySelector('#prompts .prompt-box').textContent.includes('take 2?')"
    )
    row = page.locator("#prompts .prompt-kinds tbody tr", has_text="permuted")
    row.locator('button[data-to="movers"]').click()
    heading = page.locator("#moved-detail h3").text_content() or ""
    assert "permuted" in heading
    assert "take 2?" in page.locator("#moved-detail .prompt-box").inner_text()
    page.fill('#prompts input[type="search"]', "")
    page.click('#prompts button.prompt[data-probe="30"]')
    page.wait_for_function(
        "!document.querySelector('#prompts .prompt-kinds').innerText"
        ".includes('who moved it')"
    )
    page.click('#moved-detail button[data-to="prompt"]')
    page.wait_for_function(
        "document.querySelector('#prompts .prompt-detail .prompt-box').textContent"
        ".includes('take 2?')"
    )


def test_pairs_are_ranked_filtered_and_reordered(
    page: Page, first_order: FirstOrder
) -> None:
    pairs = record_of(first_order)["risk"]["pairs"]
    rows = page.locator("#risk .risks tbody tr")
    expect_count(rows, len(pairs))
    assert rows.first.locator("td").first.text_content() == "1"
    pick(page, "risk", "riskOnly", "both fall")
    expect_count(rows, sum(bool(pair["both_fall"]) for pair in pairs))
    pick(page, "risk", "riskOnly", "all")
    page.select_option('#risk select[data-control="riskBy"]', "edit_similarity")
    ranks = rows.evaluate_all("f => f.map((x) => Number(x.cells[0].textContent))")
    expected = sorted(pairs, key=lambda p: (-p["edit_similarity"], p["rank"]))
    assert ranks == [pair["rank"] for pair in expected]
    page.fill('#risk input[type="search"]', ":2")
    expect_count(rows, 1)


def test_text_of_others_stays_text_in_results(page: Page) -> None:
    found = page.evaluate(
        """() => ({
          acted: document.querySelectorAll('main script, main img').length,
          text: [...document.querySelectorAll('#movers, #risk')]
            .map((x) => x.textContent).join(),
        })"""
    )
    assert found["acted"] == 0
    assert "<img src=x onerror=alert(1)>" in found["text"]
    assert r"\u202e" in found["text"]
    assert "\u202e" not in found["text"]


def test_results_are_saved_as_the_report_writes_them(
    page: Page, first_order: FirstOrder
) -> None:
    record = json.loads(json.dumps(record_of(first_order)))
    for name, rows in results_rows([record]).items():
        found = json.loads(saved(page, f'[data-download="{name}.json"]'))
        assert [row | {"run": "dpo"} for row in rows] == found, name
    found = values(saved(page, '[data-download="predictions.csv"]'))
    assert len(found) == 3 * len(record["prediction"]["responses"])
    svg = saved(page, '[data-picture="foretold.svg"]').decode("utf-8")
    assert "var(" not in svg
    assert svg.count("<circle") == len(record["prediction"]["responses"])
    whole = json.loads(saved(page, '[data-download="report.json"]'))
    assert whole == report_json([first_order.run.comparison], "A run", [[record]])


@pytest.mark.parametrize(("theme", "width"), [("light", 390), ("dark", 1400)])
def test_first_order_fits_reads_and_complains_of_nothing(
    browser: Browser, file: Path, theme: Any, width: int
) -> None:
    size: Any = {"width": width, "height": 900}
    watched = opened(browser, file, viewport=size, color_scheme=theme)
    page = watched.page
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    looked = ("p", "th", "td", "summary", "button", "svg text")
    wanted = [f"#{name} {kind}" for name in SECTIONS for kind in looked]
    ratios = page.evaluate(CONTRAST, wanted)
    assert len(ratios) > 200
    assert not [entry for entry in ratios if entry[2] < 4.5]
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, summary')]
          .filter((x) => x.checkVisibility())
          .filter((x) => !(x.textContent.trim() || x.ariaLabel || x.labels?.length))
          .map((x) => x.outerHTML)"""
    )
    assert nameless == []
    links = page.locator("#bar nav a").all_text_contents()
    assert links[6:9] == ["Foretold", "Examples", "Risk"]
    watched.check()
    page.context.close()
