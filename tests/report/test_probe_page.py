"""The look at a probe set as a page: escaped, closed to everything, and right."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ldeval.bundled import bundled_probes
from ldeval.probes.quality import check_probes
from ldeval.records import Finding, KindQuality, QualityReport
from ldeval.report.probe_page import distance_figure, length_figure, quality_html
from ldeval.report.probe_tables import quality_json, quality_text
from ldeval.report.probe_words import WORDINGS, percentile
from tests.report.browser import BROWSER

ATTACK = "</title><script>document.title='owned'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def report() -> QualityReport:
    return check_probes(bundled_probes())


@pytest.fixture
def hostile(report: QualityReport) -> QualityReport:
    """Untrusted text in every place that takes any."""
    finding = Finding("empty", 2, {"initial": 2}, (ATTACK, "a\x1b[31m\u202e\ud800b"))
    first = replace(report.kinds[1], missing={ATTACK: 3, "\x00": 1})
    return replace(
        report,
        path=f"/x/{ATTACK.replace('/', '_')}.jsonl",
        kinds=(report.kinds[0], first, *report.kinds[2:]),
        findings=(finding,),
    )


class Elements(HTMLParser):
    """Every element and attribute of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_text_of_others_makes_no_element_and_is_shown(hostile: QualityReport) -> None:
    page = quality_html(hostile)
    elements = Elements(page)
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "img", "iframe", "object", "link", "form", "a"}
    names = {name for _, attributes in elements.found for name in attributes}
    assert not any(name.startswith("on") or name in ("href", "src", "style")
                   for name in names)  # fmt: skip
    assert "onerror=alert(1)" in "".join(elements.text)
    for raw in ("\x1b", "\u202e", "\ud800", "\x00"):
        assert raw not in page
    page.encode("utf-8")


def test_the_policy_allows_the_one_style_sheet_and_nothing_else(
    report: QualityReport,
) -> None:
    page = quality_html(report)
    policies = [
        a["content"]
        for tag, a in Elements(page).found
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    ]
    assert "url(" not in style
    assert "@import" not in style


def test_every_kind_that_is_drawn_has_a_colour(report: QualityReport) -> None:
    style = quality_html(report).split("<style>")[1].split("</style>")[0]
    for kind in report.kinds:
        assert re.search(rf"\.{kind.kind}\b[^{{]*\{{ fill:", style), kind.kind


def test_bars_are_in_proportion_and_within_the_figure(report: QualityReport) -> None:
    for figure, spread in (
        (length_figure(report.kinds), [k.lengths for k in report.kinds]),
        (distance_figure(report.kinds), [k.distances for k in report.kinds[1:]]),
    ):
        assert len(figure.ridges) == len(spread)
        for ridge in figure.ridges:
            assert max(bar.height for bar in ridge.bars) == 26
            for bar in ridge.bars:
                assert figure.left <= bar.x
                assert bar.x + bar.width <= figure.right
                assert bar.y + bar.height == pytest.approx(ridge.base)
            drawn = sum(int(bar.title.split(": ")[1]) for bar in ridge.bars)
            kind = next(k for k in report.kinds if k.kind == ridge.kind)
            assert drawn == kind.count


def test_the_median_stands_where_the_axis_says(report: QualityReport) -> None:
    figure = length_figure(report.kinds)
    last = figure.ticks[-1]
    scale = (last.x - figure.left) / float(last.label)
    for ridge in figure.ridges:
        kind = next(k for k in report.kinds if k.kind == ridge.kind)
        middle = percentile(kind.lengths, 0.5)
        assert ridge.middle == pytest.approx(figure.left + scale * middle, abs=0.02)
    assert figure.reference == figure.ridges[0].middle


def test_percentiles_are_those_of_a_sorted_list() -> None:
    lengths = ((2, 3), (5, 1), (9, 6))
    values = [2, 2, 2, 5, *[9] * 6]
    for share in (0.05, 0.3, 0.31, 0.4, 0.5, 0.95, 1.0):
        assert percentile(lengths, share) == values[math.ceil(share * 10) - 1]
    assert math.isnan(percentile((), 0.5))


def test_the_page_and_the_terminal_name_the_endangered_conclusion(
    report: QualityReport,
) -> None:
    findings = tuple(Finding(code, 3, {}, ("p1",)) for code in WORDINGS)
    whole = replace(report, findings=findings)
    page = " ".join("".join(Elements(quality_html(whole)).text).split())
    text = quality_text(whole)
    for words in WORDINGS.values():
        assert words.danger in page
        assert words.danger in text
        assert words.remedy in text


def test_the_terminal_names_what_has_no_glyph(hostile: QualityReport) -> None:
    text = quality_text(hostile)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"\x1b" in text


def test_the_json_is_strict_and_unrounded(report: QualityReport) -> None:
    data = json.loads(quality_json(report), parse_constant=lambda name: 1 / 0)
    assert data["kinds"][0]["mean_distance"] is None
    assert data["kinds"][1]["mean_distance"] == report.kinds[1].mean_distance


def test_a_set_of_one_kind_is_drawn(report: QualityReport) -> None:
    empty = KindQuality("initial", 0, 0, {"empty": 4}, (), math.nan, (0,) * 20,
                        math.nan, 0, 0)  # fmt: skip
    page = quality_html(replace(report, kinds=(report.kinds[0], empty), findings=()))
    assert '<p class="good">None.</p>' in page


if BROWSER is not None:  # a skip would fail CI, where there may be no browser

    def test_a_browser_draws_it_and_runs_nothing(
        hostile: QualityReport, tmp_path: Path
    ) -> None:
        path = tmp_path / "page.html"
        path.write_text(quality_html(hostile), encoding="utf-8")
        done = subprocess.run(
            [
                *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu"),
                *("--enable-logging=stderr", "--dump-dom", path.as_uri()),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert "<title>Probe set: " in done.stdout
        assert "owned</title>" not in done.stdout
        assert "</svg>" in done.stdout
        assert "Content Security Policy" not in done.stderr
