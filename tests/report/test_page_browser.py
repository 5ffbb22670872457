"""The page in a real browser: every control, keyboard, downloads, and nothing acts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from ldeval.report import report_json, to_csv
from ldeval.report.page import render_page
from tests.report.browser import Watched, expect_count
from tests.report.page_world import HOSTILE, ScoredRun, scored_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TITLE = f"DPO {HOSTILE[0]} \u202eevil"


@pytest.fixture(scope="module")
def sft_run() -> ScoredRun:
    return scored_run(20, 3, (0, 8), run="sft <i>\u202e", seed=5, objective="sft")


@pytest.fixture(scope="module")
def file(
    dpo_run: ScoredRun, sft_run: ScoredRun, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two stages; three prompts with every checkpoint."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    runs = [dpo_run.page_run, sft_run.page_run]
    path.write_text(render_page(runs, title=TITLE, worst=3), encoding="utf-8")
    return path


@pytest.fixture
def watched(browser: Browser, file: Path) -> Iterator[Watched]:
    """The page, opened wide; at the end it has complained of nothing."""
    context = browser.new_context(
        viewport={"width": 1400, "height": 1000}, accept_downloads=True
    )
    found = Watched(context.new_page())
    found.page.goto(file.as_uri())
    found.page.wait_for_selector("html[data-ready=true]")
    yield found
    found.check()
    context.close()


@pytest.fixture
def page(watched: Watched) -> Page:
    return watched.page


def prompts(page: Page) -> Page:
    """The page with its prompts read."""
    page.locator("#prompts").scroll_into_view_if_needed()
    page.wait_for_selector("#prompts .token")
    return page


def pick(page: Page, section: str, key: str, value: str) -> None:
    """One choice of a group, as a person makes it: by its label."""
    group = page.locator(f'#{section} fieldset[data-control="{key}"]')
    group.locator(f'label:has-text("{value}")').first.click()


# ------------------------------------------------------------------------------ text


def test_text_of_others_stays_text(page: Page) -> None:
    prompts(page)
    page.select_option('#prompts select[data-control="sort"]', "rejected")
    found = page.evaluate(
        """() => ({
          title: document.title,
          heading: document.querySelector('h1').textContent,
          runs: document.querySelectorAll('main script, main img, main iframe').length,
          scripts: [...document.scripts].filter((x) => !x.type).length,
          text: document.querySelector('#prompts').textContent,
        })"""
    )
    assert found["runs"] == 0
    assert found["scripts"] == 1
    assert "</script><script>document.title='owned'</script>" in found["heading"]
    assert found["title"].startswith("DPO </script>")
    assert "\u202e" not in found["title"] + found["heading"] + found["text"]
    assert "<img src=x onerror=document.title='owned'>" in found["text"]
    assert r"\u202e" in found["text"]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_prompt_opens_as_what_it_says(
    page: Page, dpo_run: ScoredRun, number: int
) -> None:
    prompts(page)
    page.fill('input[type="search"]', f"take {number}?")
    page.click(f'#prompts button.prompt[data-probe="{number}"]')
    page.wait_for_function(
        "id => document.querySelector('.prompt-detail h3').textContent.startsWith(id)",
        arg=dpo_run.probes[number].probe_id,
    )
    shown = page.locator(".prompt-box .said").last.evaluate(
        "element => element.textContent"
    )
    expected = "".join(
        {"\u202e": r"\u202e", "\u202c": r"\u202c", "\u2066": r"\u2066",
         "\u2069": r"\u2069", "\x00": r"\x00", "\x1b": r"\x1b"}.get(c, c)
        for c in HOSTILE[number]
    )  # fmt: skip
    assert shown.endswith(expected)
    expect_count(page.locator("main script"), 0)


def test_the_policy_forbids_what_the_page_does_not_do(
    browser: Browser, file: Path
) -> None:
    page = browser.new_page()
    page.goto(file.as_uri())
    blocked = page.evaluate(
        """async () => {
          const found = [];
          addEventListener('securitypolicyviolation',
            (e) => found.push(e.effectiveDirective));
          const script = document.createElement('script');
          try { script.textContent = 'window.owned = 1'; document.head.append(script); }
          catch (error) { found.push('trusted types'); }
          try { document.body.innerHTML = '<b>x</b>'; found.push('innerHTML worked'); }
          catch (error) { found.push('trusted types'); }
          const image = new Image(); image.src = 'https://example.invalid/x.png';
          await fetch('https://example.invalid/').catch(() => {});
          try { setTimeout('window.owned = 2'); } catch (error) { found.push('eval'); }
          await new Promise((done) => setTimeout(done, 200));
          return { found, owned: window.owned || null };
        }"""
    )
    assert blocked["owned"] is None
    assert "innerHTML worked" not in blocked["found"]
    assert {"eval", "connect-src", "img-src", "trusted types"} <= set(blocked["found"])
    page.close()


# --------------------------------------------------------------------------- controls


def test_verdicts_come_first_and_open_to_their_numbers(
    page: Page, dpo_run: ScoredRun
) -> None:
    assert page.locator("main section").first.get_attribute("id") == "verdicts"
    for verdict in dpo_run.comparison.verdicts:
        card = page.locator(f'[data-verdict="{verdict.name}"]')
        side = card.locator(".verdict-split").nth(int(verdict.split == "heldout"))
        expect_count(side.locator(f".badge.{verdict.state}"), 1)
        expect_count(side.locator(".condition-list li"), len(verdict.conjuncts))
    card = page.locator('[data-verdict="squeezing"]')
    card.locator("summary").click()
    verdict = next(v for v in dpo_run.comparison.verdicts if v.name == "squeezing")
    card.get_by_text(verdict.conjuncts[0].statement).first.wait_for()
    assert "(99%) nats/token" in card.text_content()


def curve(page: Page, kind: str) -> str | None:
    line = page.locator(f'#curves g[data-kind="{kind}"] polyline')
    return line.first.get_attribute("points") if line.count() else None


def test_every_control_of_the_curves_redraws_them(page: Page) -> None:
    seen = {curve(page, "chosen")}
    for key, value in (
        ("measure", "sum"),
        ("measure", "length-matched"),
        ("split", "held-out"),
        ("shows", "level"),
        ("axis", "by checkpoint"),
    ):
        if key == "axis":  # these checkpoints are evenly spaced: the axis says so
            before = page.locator("#curves .axis-title").all_text_contents()
            pick(page, "curves", key, value)
            after = page.locator("#curves .axis-title").all_text_contents()
            assert before != after
            continue
        pick(page, "curves", key, value)
        seen.add(curve(page, "chosen"))
    assert len(seen) == 5
    pick(page, "curves", "split", "side by side")
    expect_count(page.locator("#curves svg.figure"), 2)
    pick(page, "curves", "split", "trained")
    assert page.locator("#curves .band").count() > 10
    pick(page, "curves", "bands", "off")
    expect_count(page.locator("#curves .band"), 0)


def test_kinds_can_be_hidden_and_brought_back(page: Page) -> None:
    button = page.locator('#curves button[data-kind="permuted"]')
    assert button.get_attribute("aria-pressed") == "true"
    assert curve(page, "permuted")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert curve(page, "permuted") is None
    page.get_by_role("button", name="chosen and rejected", exact=True).click()
    expect_count(page.locator("#curves g[data-kind]"), 2)
    page.get_by_role("button", name="none", exact=True).click()
    expect_count(page.locator("#curves g[data-kind]"), 0)
    page.get_by_role("button", name="all", exact=True).click()
    assert curve(page, "permuted")


def test_the_pointer_and_the_arrow_keys_read_a_checkpoint(
    page: Page, dpo_run: ScoredRun
) -> None:
    figure = page.locator("#curves svg.figure")
    figure.scroll_into_view_if_needed()
    box = figure.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("#tip b").first.text_content() in ("step 20", "step 40")
    page.mouse.move(2, 2)
    assert page.locator("#tip").is_hidden()
    figure.focus()
    for key in ("ArrowRight", "ArrowRight", "End"):
        page.keyboard.press(key)
    step = dpo_run.comparison.steps[-1]
    assert page.locator("#tip b").first.text_content() == f"step {step}"
    end = {p.kind: p for p in dpo_run.comparison.curves
           if p.step == step and p.split == "trained"}  # fmt: skip
    start = {p.kind: p for p in dpo_run.comparison.curves
             if p.step == 0 and p.split == "trained"}  # fmt: skip
    delta = end["rejected"].per_token.value - start["rejected"].per_token.value
    said = page.locator("#status").text_content() or ""
    assert f"rejected {delta:.2f}".replace("-", "\u2212") in said
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_the_curves_can_be_read_as_a_table(page: Page, dpo_run: ScoredRun) -> None:
    page.locator("#curves > details > summary").click()
    rows = page.locator("#curves details table tbody tr")
    expect_count(rows, len(dpo_run.comparison.steps))
    pick(page, "curves", "split", "held-out")
    assert "held-out" in (page.locator("#curves details caption").text_content() or "")


def test_changes_follow_the_pair_and_the_part(page: Page, dpo_run: ScoredRun) -> None:
    def values() -> list[str]:
        return page.locator("#changes td:not(.plot)").all_text_contents()

    page.wait_for_selector("#changes tbody tr")
    seen = [values()]
    page.select_option('#changes select[data-control="pair"]', "1")
    page.wait_for_function(
        "old => document.querySelector('#changes td:not(.plot)').textContent !== old",
        arg=seen[0][0],
    )
    seen.append(values())
    pair = dpo_run.comparison.pairs[1]
    chosen = next(
        c for c in pair.changes if c.kind == "chosen" and c.split == "trained"
    )
    assert seen[1][0].startswith(
        f"{chosen.delta_tok.value:+.3f}".replace("-", "\u2212")
    )
    for part in ("sum", "length-matched", "first token", "body", "end token"):
        pick(page, "changes", "part", part)
        page.wait_for_timeout(50)
        seen.append(values())
    assert len({tuple(v) for v in seen}) == 7
    page.locator("#changes > details > summary").click()
    page.locator("#changes li").first.wait_for()
    assert page.locator("#changes li").count() > 8


def test_the_flow_follows_its_controls_and_adds_up(page: Page) -> None:
    def numbers() -> list[float]:
        texts = page.locator("#flow .flow-label .strong").all_text_contents()
        return [float(t.split(" ")[0].replace("\u2212", "-")) for t in texts]

    page.locator("#flow").scroll_into_view_if_needed()

    def another() -> None:
        """Waits until the labels read otherwise than before."""
        page.wait_for_function(
            "old => [...document.querySelectorAll('#flow .flow-label .strong')]"
            ".map((x) => x.textContent.split(' ')[0].replace('\u2212', '-'))"
            ".map(Number).join() !== old.join()",
            arg=seen[-1],
        )
        seen.append(numbers())

    page.wait_for_selector("#flow .ribbon")
    seen = [numbers()]
    for key, value in (("split", "held-out"), ("stratum", "another")):
        pick(page, "flow", key, value)
        another()
    page.select_option('#flow select[data-control="along"]', "permuted")
    another()
    page.select_option('#flow select[data-control="pair"]', "0")
    another()
    for found in seen:
        assert sum(found) == pytest.approx(0, abs=0.003)
    page.locator("#flow > details > summary").click()
    expect_count(page.locator("#flow details tbody tr"), 12)


def test_the_heat_map_is_read_cell_by_cell(page: Page, dpo_run: ScoredRun) -> None:
    page.locator("#influence").scroll_into_view_if_needed()
    page.wait_for_selector("#influence td.cell")
    cells = page.locator("#influence td.cell")
    expect_count(cells, 12 * 11)
    cell = dpo_run.comparison.overall.influence[0]
    label = f"{cell.target} with {cell.source}: "
    one = page.locator(f'#influence td[aria-label^="{label}"]')
    assert one.text_content() == f"{cell.slope.value:.2f}".replace("-", "\u2212")
    one.focus()
    assert "rank correlation" in (page.locator("#tip").text_content() or "")
    page.keyboard.press("ArrowDown")
    other = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert other
    assert not other.startswith(label)
    slopes = cells.all_text_contents()
    pick(page, "influence", "cell", "rank correlation")
    page.wait_for_timeout(80)
    ranks = page.locator("#influence td.cell").all_text_contents()
    assert ranks != slopes
    heads = page.locator("#influence thead th").all_text_contents()
    pick(page, "influence", "order", "alike together")
    page.wait_for_timeout(80)
    assert sorted(page.locator("#influence thead th").all_text_contents()) == sorted(
        heads
    )


def test_claims_are_all_there_with_their_tests(page: Page, dpo_run: ScoredRun) -> None:
    for claim in dpo_run.comparison.claims:
        item = page.locator(f'[data-claim="{claim.name}"]')
        side = item.locator(".claim-split").nth(int(claim.split == "heldout"))
        expect_count(side.locator(f".badge.{claim.state}"), 1)
    item = page.locator('[data-claim="D1"]')
    item.locator("summary").click()
    test = next(c.test for c in dpo_run.comparison.claims if c.name == "D1")
    item.get_by_text(test).first.wait_for()


def test_another_run_takes_the_place_of_the_first(
    page: Page, sft_run: ScoredRun
) -> None:
    prompts(page)
    page.select_option('select[data-control="run"]', "1")
    assert r"sft <i>\u202e" in (page.locator(".run-line").text_content() or "")
    prompts(page)
    assert "23 of 23" in (page.locator(".prompt-list .note").text_content() or "")
    expect_count(page.locator('#changes select[data-control="pair"] option'), 1)
    name = page.locator(".prompt-detail h3 bdi").text_content()
    assert name in {probe.probe_id for probe in sft_run.probes}


# ---------------------------------------------------------------------------- prompts


def changes_of(run: ScoredRun, kind: str) -> dict[str, float]:
    first, last = run.tables[0], run.tables[-1]
    rows = {key[0]: row for key, row in first.index().items() if key[1] == kind}
    return {
        probe: float(last.logprob_sums[row] - first.logprob_sums[row])
        / int(first.n_tokens[row])
        for probe, row in rows.items()
    }


def test_the_worst_prompts_stand_first(page: Page, dpo_run: ScoredRun) -> None:
    prompts(page)
    for sort in ("chosen", "rejected"):
        page.select_option('#prompts select[data-control="sort"]', sort)
        shown = page.locator("#prompts button.prompt").evaluate_all(
            "found => found.map((x) => Number(x.dataset.probe))"
        )
        delta = changes_of(dpo_run, sort)
        expected = sorted(range(len(dpo_run.probes)),
                          key=lambda i: delta[dpo_run.probes[i].probe_id])  # fmt: skip
        assert shown == expected
    page.select_option('#prompts select[data-control="direction"]', "down")
    first = page.locator("#prompts button.prompt").first.get_attribute("data-probe")
    assert first == str(expected[-1])


def test_prompts_are_found_by_text_and_by_split(page: Page, dpo_run: ScoredRun) -> None:
    prompts(page)

    def note() -> str:
        return page.locator(".prompt-list .note").text_content() or ""

    pick(page, "prompts", "only", "held-out")
    assert note().startswith("20 of 44")
    pick(page, "prompts", "only", "all")
    page.fill('input[type="search"]', "ISOLATED")
    assert note().startswith("1 of 44")
    page.fill('input[type="search"]', "<script>")
    expected = sum(
        any("<script>" in r.text for r in probe.responses.values())
        or "<script>" in str(probe.prompt)
        for probe in dpo_run.probes
    )
    assert note().startswith(f"{expected} of 44")
    page.fill('input[type="search"]', "no such words")
    assert note().startswith("0 of 44")
    page.fill('input[type="search"]', "")
    assert note().startswith("44 of 44")


def test_tokens_show_change_and_the_model_s_own_choice(
    page: Page, dpo_run: ScoredRun
) -> None:
    prompts(page)
    probe = page.locator(".prompt-detail h3 bdi").text_content()
    table, last = dpo_run.tables[0], dpo_run.tables[-1]
    row = table.index()[probe, "chosen"]
    tokens = page.locator('.response[data-kind="chosen"] .token')
    expect_count(tokens, table.n_tokens[row])
    delta = last.row(row).logprobs - table.row(row).logprobs
    labels = tokens.evaluate_all(
        "found => found.map((x) => x.getAttribute('aria-label'))"
    )
    for label, value in zip(labels, delta, strict=True):
        said = float(label.split("change ")[1].split(";")[0].replace("\u2212", "-"))
        assert said == pytest.approx(float(value), abs=0.0062)
    signs = tokens.evaluate_all(
        "found => found.map((x) => x.classList.contains('less'))"
    )
    for less, value in zip(signs, delta, strict=True):
        assert less == (value < 0) or abs(value) < 0.001
    tokens.nth(2).hover()
    tip = page.locator("#tip").text_content() or ""
    assert "top choice" in tip
    assert "step 60" in tip
    tokens.nth(3).focus()
    assert "token 4 of" in (page.locator("#tip").text_content() or "")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.at") == "4"
    page.keyboard.press("ArrowDown")
    inside = "document.activeElement.closest('.response').dataset.kind"
    assert page.evaluate(inside) == "rejected"


def test_tokens_switch_between_before_and_after(page: Page) -> None:
    prompts(page)
    token = page.locator('.response[data-kind="rejected"] .token').nth(3)
    looks = [(token.get_attribute("class"), token.get_attribute("style"))]
    for value in ("before", "after"):
        group = page.locator('.prompt-detail fieldset[data-control="tokens"]')
        group.locator(f'label:has-text("{value}")').click()
        looks.append((token.get_attribute("class"), token.get_attribute("style")))
    assert len(set(looks)) == 3
    expect_count(page.locator(".token .choice-text"), 0)
    group = page.locator('.prompt-detail fieldset[data-control="choices"]')
    group.locator('label:has-text("below")').click()
    assert page.locator(".token .choice-text").count() > 3


def test_kinds_of_a_prompt_are_shown_when_asked_for(page: Page) -> None:
    prompts(page)
    expect_count(page.locator(".response"), 2)
    page.check('.prompt-kinds input[data-kind="permuted"]')
    page.check('.prompt-kinds input[data-kind="initial"]')
    page.uncheck('.prompt-kinds input[data-kind="rejected"]')
    kinds = page.locator(".response").evaluate_all("f => f.map((x) => x.dataset.kind)")
    assert kinds == ["chosen", "initial", "permuted"]
    page.locator(".prompt-detail details summary").first.click()
    expect_count(page.locator(".prompt-detail details table"), 3)


def test_the_worst_prompts_are_followed_through_every_checkpoint(
    page: Page, dpo_run: ScoredRun
) -> None:
    prompts(page)
    probe = page.locator(".prompt-detail h3 bdi").text_content()
    page.select_option('.prompt-detail select[data-control="from"]', "1")
    page.select_option('.prompt-detail select[data-control="to"]', "2")
    page.wait_for_function(
        "document.querySelector('.prompt-kinds caption').innerText.endsWith('20 to 40')"
    )
    row = dpo_run.tables[0].index()[probe, "chosen"]
    delta = dpo_run.tables[2].row(row).logprobs - dpo_run.tables[1].row(row).logprobs
    labels = page.locator('.response[data-kind="chosen"] .token').evaluate_all(
        "found => found.map((x) => x.getAttribute('aria-label'))"
    )
    for label, value in zip(labels, delta, strict=True):
        said = float(label.split("change ")[1].split(";")[0].replace("\u2212", "-"))
        assert said == pytest.approx(float(value), abs=0.0062)
    page.locator("#prompts button.prompt").nth(10).click()
    page.wait_for_selector('.prompt-detail select[data-control="from"]:disabled')
    caption = page.locator(".prompt-kinds caption").text_content() or ""
    assert "step 0 to 60" in caption


# -------------------------------------------------------------------------- downloads


def saved(page: Page, selector: str) -> bytes:
    from playwright.sync_api import TimeoutError as NoDownload

    try:
        with page.expect_download(timeout=4000) as waiting:
            page.locator(selector).first.click()
    except NoDownload:
        # Chromium holds back every eleventh download of a page until it is asked again
        with page.expect_download() as waiting:
            page.locator(selector).first.click()
    return Path(waiting.value.path()).read_bytes()


def values(content: str | bytes) -> list[dict[str, Any]]:
    text = content if isinstance(content, str) else content.decode("utf-8")

    def read(value: str) -> Any:
        try:
            return float(value)
        except ValueError:
            return value

    return [
        {name: read(value) for name, value in row.items()}
        for row in csv.DictReader(io.StringIO(text))
    ]


def test_every_table_is_saved_as_the_report_writes_it(
    page: Page, dpo_run: ScoredRun
) -> None:
    expected = to_csv(dpo_run.comparison)
    names = sorted({
        name.removesuffix(".csv")
        for name in page.locator("[data-download$='.csv']").evaluate_all(
            "found => found.map((x) => x.dataset.download)")
    })  # fmt: skip
    assert set(expected) - {"excluded"} <= set(names)
    for name, text in expected.items():
        found = saved(page, f'[data-download="{name}.csv"]')
        assert values(found) == values(text), name
        records = json.loads(saved(page, f'[data-download="{name}.json"]'))
        assert len(records) == len(values(text)), name


@pytest.mark.parametrize("figure", ["curves", "flow"])
def test_figures_are_saved_as_they_are_drawn(page: Page, figure: str) -> None:
    page.locator(f"#{figure}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{figure} svg.figure")
    text = saved(page, f'[data-picture="{figure}.svg"]').decode("utf-8")
    root = ElementTree.fromstring(text)
    box = page.locator(f"#{figure} svg.figure").bounding_box()
    assert box is not None
    assert float(root.attrib["width"]) == box["width"]
    colours = {element.attrib.get("stroke") for element in root.iter()}
    colours |= {element.attrib.get("fill") for element in root.iter()}
    assert len(colours) > 4
    assert not {c for c in colours if c and ("var(" in c or "light-dark" in c)}
    picture = saved(page, f'[data-picture="{figure}.png"]')
    assert picture[:4] == b"\x89PNG"
    assert int.from_bytes(picture[16:20], "big") == 3 * box["width"]


def test_the_whole_report_is_saved_as_the_command_writes_it(
    page: Page, dpo_run: ScoredRun, sft_run: ScoredRun
) -> None:
    text = saved(page, '[data-download="report.json"]')
    both = [dpo_run.comparison, sft_run.comparison]
    assert json.loads(text) == report_json(both, TITLE)


def test_prompts_and_tokens_are_saved_and_no_formula_is_run(
    page: Page, dpo_run: ScoredRun
) -> None:
    prompts(page)
    rows = values(saved(page, '[data-download="prompts.csv"]'))
    assert len(rows) == len(dpo_run.tables) * len(dpo_run.tables[0])
    table = dpo_run.tables[2]
    row = next(r for r in rows if r["step"] == 40 and r["kind"] == "permuted")
    exact = table.logprob_sums[table.index()[row["probe_id"], "permuted"]]
    assert row["logprob_sum"] == pytest.approx(exact, abs=1e-4)
    text = saved(page, '[data-download="tokens.csv"]').decode("utf-8")
    tokens = values(text)
    probe = page.locator(".prompt-detail h3 bdi").text_content()
    index = dpo_run.tables[0].index()
    count = sum(dpo_run.tables[0].n_tokens[row]
                for (name, _), row in index.items() if name == probe)  # fmt: skip
    assert len(tokens) == count
    cells = [cell for line in csv.reader(io.StringIO(text)) for cell in line]
    assert not [c for c in cells if c[:1] in ("=", "@", "\t", "\r")]
