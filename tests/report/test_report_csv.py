"""No cell of a CSV file is a formula, whatever probes and runs are called."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldeval.records import Comparison
from ldeval.report import to_csv
from ldeval.report.escape import for_csv

SIGNS = st.sampled_from("=+-@＝＋－＠﹦")
BEFORE = st.sampled_from(["", " ", "\0", "\xa0", "\u200b", "\ufeff", "\u202e", "\t \r"])
OPENINGS = st.builds(str.__add__, BEFORE, SIGNS) | st.sampled_from("\t\r\n")
HOSTILE = st.builds(str.__add__, OPENINGS, st.text(st.characters(codec="utf-8")))
EXPORT = Path(__file__).parents[2] / "ldeval/report/templates/report/export.js"


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet could take it for one: told from the other end, by what is
    left when all that has no width is taken away."""
    shown = "".join(
        c for c in cell if unicodedata.category(c)[0] not in "CZ" and not c.isspace()
    )
    formula = unicodedata.normalize("NFKC", shown)[:1] in tuple("=+-@")
    return formula or cell[:1] in tuple("\t\r\n")


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii() and cell == cell.strip() and "_" not in cell


def cells(text: str) -> Iterator[str]:
    for row in csv.reader(io.StringIO(text, newline="")):
        yield from row


def hostile(record: Any, text: str) -> Any:
    """A record with a text in place of every text in it, at any depth."""
    if isinstance(record, str):
        return text
    if isinstance(record, Mapping):
        return {key: hostile(value, text) for key, value in record.items()}
    if isinstance(record, tuple):
        return tuple(hostile(item, text) for item in record)
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        return record
    copy = object.__new__(type(record))  # without its checks of kinds and units
    for field in dataclasses.fields(record):
        value = hostile(getattr(record, field.name), text)
        object.__setattr__(copy, field.name, value)
    return copy


@given(text=HOSTILE)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_every_cell_of_a_report_on_hostile_names_is_a_number_or_plain_text(
    comparison: Comparison, text: str
) -> None:
    # one pair of steps holds every column; more of them hold no other
    slim = dataclasses.replace(comparison, pairs=(), curves=comparison.curves[:2])
    row = {"probe_id": text, "up": -1.5, "down": -2, "wide": 1e-300, "reason": text}
    tables = to_csv(hostile(slim, text), [{"moved": [row]}])
    assert len(tables) > 3
    for name, table in tables.items():
        for cell in cells(table):
            assert is_number(cell) or not is_formula(cell), (name, cell)


def test_negative_numbers_stay_numbers(comparison: Comparison) -> None:
    row = {"probe_id": "-1", "value": -1.5, "count": -2}
    table = to_csv(comparison, [{"moved": [row]}])["moved"]
    assert list(cells(table))[-3:] == ["'-1", "-1.5", "-2"]


@given(st.one_of(HOSTILE, st.text(st.characters(exclude_characters=";\t\r\n"))))
def test_the_guard_is_one_apostrophe_before_what_needs_it(text: str) -> None:
    shown = for_csv(text)
    if len(re.split(r"[;\t\r\n]", text)) == 1:
        assert shown == (f"'{text}" if is_formula(text) else text)
    assert not is_formula(shown)


@given(st.lists(HOSTILE | st.text(max_size=8) | st.sampled_from(';\t\r\n"')))
def test_no_cell_is_a_formula_where_cells_end_otherwise(parts: list[str]) -> None:
    text = "".join(parts)
    shown = for_csv(text)
    for cell in re.split(r"[;\t\r\n]", shown)[1:]:
        assert not is_formula(cell.replace('"', ""))
    assert len(shown) <= len(text) + 1 + len(re.findall(r"[;\t\r\n]", text))


def test_semicolons_of_plain_text_are_left_as_they_are() -> None:
    assert for_csv("a;=HYPERLINK(1)") == "a;'=HYPERLINK(1)"
    assert for_csv('a\t"+1"') == 'a\t\'"+1"'
    for text in ("one; two", "x;y=1", "a;'=1", "p = 1; n - 2", "a\nb"):
        assert for_csv(text) == text


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
def test_the_page_guards_the_same_texts() -> None:
    texts = ["=1", " =1", "＝1", "\u200b@x", "-1", "\tx", "a=1", "chosen", "", "\0+"]
    texts += ["a;=1", "a; b", ';\t "＋1;', "a\r\n-1", "\t\t=1", "; x;@y"]
    code = EXPORT.read_text(encoding="utf-8")
    start = code.index("function guardFormulas")
    function = code[start : code.index("function csvCell")]
    tell = "console.log(JSON.stringify(guardFormulas(text)))"
    script = f"{function}\nfor (const text of {texts!r}) {tell};"
    script = script.replace("\\U", "\\u")
    done = subprocess.run(
        ["node", "-e", script], capture_output=True, text=True, check=True
    )
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert shown == [for_csv(text) for text in texts]
