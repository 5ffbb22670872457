"""JSON, CSV and Markdown as files: strict, whole, and complete without matplotlib."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from ldeval.records import Comparison, Estimate
from ldeval.report import (
    dumps,
    render_markdown,
    report_json,
    to_csv,
    to_json,
    write_report,
)

SCHEMA = Path(__file__).parents[2] / "docs" / "report_schema.md"


def strict(text: str) -> Any:
    """Parse, refusing the constants that JSON does not have."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def documented(section: str) -> set[str]:
    """Keys that the schema document lists in a table under a heading."""
    body = SCHEMA.read_text("utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", body, re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


def test_the_json_is_strict_and_comes_back_the_same(comparison: Comparison) -> None:
    text = dumps(comparison)
    assert text.isascii()
    assert strict(text) == to_json(comparison)


def test_the_json_has_exactly_the_documented_keys(comparison: Comparison) -> None:
    run = to_json(comparison)
    assert set(run) == documented("run") - {"dynamics"}, "no results were named"
    assert set(run["overall"]) == documented("pair")
    assert set(run["curves"][0]["mean_sum"]) == documented("estimate")
    for verdict in run["verdicts"]:
        assert set(verdict) == documented("verdict")
        assert verdict["state"] in ("holds", "does_not_hold", "undecided")
        for conjunct in verdict["conjuncts"]:
            assert set(conjunct["evidence"]) <= set(verdict["evidence"])


def test_numbers_are_not_rounded(comparison: Comparison) -> None:
    run = strict(dumps(comparison))
    for change, plain in zip(
        comparison.overall.changes, run["overall"]["changes"], strict=True
    ):
        assert plain["delta_tok"]["value"] == change.delta_tok.value
        assert plain["delta_sum"]["low"] == change.delta_sum.low


def test_what_is_not_a_number_is_null_with_its_reason(comparison: Comparison) -> None:
    point = comparison.curves[0]
    infinite = dataclasses.replace(point.mean_sum, low=-math.inf)
    odd = dataclasses.replace(
        comparison, curves=(dataclasses.replace(point, mean_sum=infinite),)
    )
    plain = strict(dumps(odd))["curves"][0]["mean_sum"]
    assert plain["low"] is None
    assert plain["reason"] == "not a finite number"
    undefined = [
        p["mean_sum"]
        for p in to_json(comparison)["curves"]
        if p["mean_sum"]["value"] is None
    ]
    assert [e["reason"] for e in undefined] == ["no initial at this step"]


def test_numpy_numbers_are_plain_in_the_json(comparison: Comparison) -> None:
    import numpy as np

    odd = dataclasses.replace(comparison, noise_floor=np.float32(0.5))
    assert strict(dumps(odd))["noise_floor"] == 0.5


def test_the_csv_guards_text_and_leaves_numbers_alone(
    make_comparison: Any,
) -> None:
    hostile = make_comparison("dpo", run="=HYPERLINK(1)")
    for text in to_csv(hostile).values():
        rows = list(csv.DictReader(io.StringIO(text)))
        assert {row["run"] for row in rows} == {"'=HYPERLINK(1)"}
    rows = list(csv.DictReader(io.StringIO(to_csv(hostile)["changes"])))
    change = hostile.overall.changes[4]
    assert float(rows[4]["delta_tok"]) == change.delta_tok.value < 0
    assert rows[4]["delta_tok"].startswith("-")


def test_a_formula_in_a_reason_is_guarded(comparison: Comparison) -> None:
    bad = Estimate.undefined("@SUM(A1)", unit="nats/token", level=0.95)
    point = dataclasses.replace(comparison.curves[0], per_token=bad)
    text = to_csv(dataclasses.replace(comparison, curves=(point,)))["curves"]
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["per_token_reason"] == "'@SUM(A1)"
    assert row["per_token"] == ""


def test_the_csv_has_every_point_and_every_change(comparison: Comparison) -> None:
    tables = to_csv(comparison)
    assert tables["curves"].count("\n") == 1 + len(comparison.curves)
    pairs = (comparison.overall, *comparison.pairs)
    assert tables["changes"].count("\n") == 1 + sum(len(p.changes) for p in pairs)


def test_several_stages_share_one_document(
    stages: tuple[Comparison, ...], tmp_path: Path
) -> None:
    document = report_json(stages, "both")
    assert [run["run"] for run in document["runs"]] == [s.run for s in stages]
    page = render_markdown(stages, {})
    assert page.count("### sft\n") == 5
    assert page.count("## How to read this") == 1


def test_a_report_begins_with_the_verdicts(comparison: Comparison) -> None:
    headings = re.findall(r"^## (.*)$", render_markdown(comparison, {}), re.MULTILINE)
    assert headings == [
        "Verdicts",
        "What changed",
        "Tables",
        "How to read this",
        "What was left out",
        "Where the numbers come from",
    ]


def test_the_report_names_what_the_numbers_rest_on(comparison: Comparison) -> None:
    page = render_markdown(comparison, {})
    for fact in ("float32", "bfloat16", "trl", "49,152", "2.9.0", "12.3", "hf"):
        assert fact in page


def test_figures_are_linked_by_key(comparison: Comparison) -> None:
    page = render_markdown(comparison, {"curves_trained": "a.png", "unknown": "b.png"})
    assert "](a.png)" in page
    assert "b.png" not in page


def test_a_report_is_written_whole(
    stages: tuple[Comparison, ...], tmp_path: Path
) -> None:
    report = write_report(stages, tmp_path / "out", title="SFT <then> DPO")
    page = report.read_text("utf-8")
    assert page.startswith("# SFT &lt;then&gt; DPO\n")
    links = re.findall(r"^!\[.*\]\(([^)]+)\)$", page, re.MULTILINE)
    assert len(links) == 2 * 2 + 2 * 4
    for link in links:
        assert (report.parent / link).read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (report.parent / link).with_suffix(".svg").read_bytes()
    strict((report.parent / "report.json").read_text("ascii"))
    assert {p.name for p in report.parent.glob("*.csv")} == {
        *("curves.csv", "changes.csv", "margins.csv", "flows.csv"),
        *("influence.csv", "verdicts.csv"),
    }
    assert not list(report.parent.glob(".*"))


def test_without_matplotlib_the_report_says_what_to_install(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    report = write_report([comparison], tmp_path)
    page = report.read_text("utf-8")
    assert "the extra 'plot'" in page
    assert "plot" in page
    assert "![" not in page
    assert not list(tmp_path.glob("*.png"))
    assert (tmp_path / "report.json").exists()


def test_a_failed_write_leaves_the_old_report(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.json").write_text("old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_report([comparison], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one comparison"):
        write_report([], tmp_path)
