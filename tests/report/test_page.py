"""The report as one page: what is in the file, and that nothing in it can act."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldeval.cli import main
from ldeval.errors import CheckpointError, MismatchError
from ldeval.probes import read_probes
from ldeval.records import Probe, Response
from ldeval.report import PageRun, report_json, write_report
from ldeval.report.page import Pieces, read_pieces, render_page
from ldeval.report.page.blocks import LOWEST, MISSING, as_json, sixteen_bits
from ldeval.report.page.scores import PromptScores
from ldeval.store import open_run
from ldeval.texts import find_texts, keep_texts
from tests.compare.conftest import reordered, without
from tests.report.conftest import Factory
from tests.report.page_world import HOSTILE, PIECES, ScoredRun, stored

TEMPLATES = Path(__file__).resolve().parents[2] / "ldeval" / "report" / "templates"


class Elements(HTMLParser):
    """Every element of a page, and the text of those that hold data or code."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.within = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.texts.append("")
        self.within = tag in ("script", "style", "title")

    def handle_endtag(self, tag: str) -> None:
        self.within = False

    def handle_data(self, data: str) -> None:
        if self.within:
            self.texts[-1] += data

    def data(self, name: str) -> str:
        """The content of a data element."""
        return next(
            text
            for (_, attributes), text in zip(self.found, self.texts, strict=True)
            if attributes.get("id") == name
        )

    def unpacked(self, name: str) -> bytes:
        return gzip.decompress(base64.b64decode(self.data(f"b-{name}")))


@pytest.fixture(scope="module")
def page(dpo_run: ScoredRun) -> str:
    return render_page([dpo_run.page_run], title=f"a <b> {HOSTILE[0]} \u202e")


@pytest.fixture(scope="module")
def elements(page: str) -> Elements:
    return Elements(page)


def test_the_policy_allows_the_one_script_and_style_and_nothing_else(
    elements: Elements,
) -> None:
    (policy,) = [
        attributes["content"]
        for tag, attributes in elements.found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    assert rules["require-trusted-types-for"] == "'script'"
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        contents = [
            text
            for (name, attributes), text in zip(
                elements.found, elements.texts, strict=True
            )
            if name == tag and "type" not in attributes
        ]
        assert len(contents) == 1
        digest = hashlib.sha256(contents[0].encode()).digest()
        assert rules[directive] == f"'sha256-{base64.b64encode(digest).decode()}'"


def test_the_file_asks_for_nothing_outside_itself(
    page: str, elements: Elements
) -> None:
    for tag, attributes in elements.found:
        assert tag not in ("img", "iframe", "object", "embed", "form", "base")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "srcset", "style", "action"), (tag, name)
            if name == "href":
                assert value in ("#main", "data:,")
    assert "url(" not in page
    assert "@import" not in page


def test_scripts_put_text_in_place_as_text_alone() -> None:
    code = "".join(p.read_text("utf-8") for p in (TEMPLATES / "report").glob("*.js"))
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(",
                "new Function", "fetch(", "XMLHttp", "WebSocket",
                "import("):  # fmt: skip
        assert way not in code, way


def test_every_script_is_in_the_page_and_every_file_is_used(page: str) -> None:
    for file in (TEMPLATES / "report").glob("*.js"):
        assert file.read_text("utf-8") in page, file.name


def test_hostile_text_ends_no_element(page: str, elements: Elements) -> None:
    scripts = [a.get("type") for tag, a in elements.found if tag == "script"]
    assert scripts.count(None) == 1
    assert set(scripts) == {None, "application/json", "application/octet-stream"}
    core = elements.data("core")
    assert json.loads(core)["title"].startswith("a <b> </script>")
    assert not set("<>&") & set(core)
    assert "\u202e" not in page


def test_numbers_that_are_not_finite_do_not_reach_the_page() -> None:
    with pytest.raises(ValueError):
        as_json({"x": float("nan")})
    assert as_json({"x": "</script><!--"}) == (
        '{"x":"\\u003c/script\\u003e\\u003c!--"}'
    )


def test_the_page_holds_the_whole_report(
    elements: Elements, dpo_run: ScoredRun
) -> None:
    core = json.loads(elements.data("core"))
    run = core["runs"][0]["report"] | {
        "pairs": json.loads(elements.unpacked("pairs-0"))
    }
    expected = report_json([dpo_run.comparison], "")["runs"][0]
    assert run == expected


# ----------------------------------------------------------------------- single prompts


def test_sixteen_bits_keep_a_log_probability_to_a_quarter_of_a_thousandth() -> None:
    values = np.concatenate([-np.geomspace(1e-5, 32.7, 4000), [0.0]])
    kept = sixteen_bits(values) / -2000
    assert np.abs(kept - values).max() <= 0.00025 + 1e-12
    odd = sixteen_bits(np.array([-40.0, -np.inf, np.nan, 1e-7]))
    assert odd.tolist() == [LOWEST, LOWEST, MISSING, 0]


def _decoded(
    elements: Elements, run: int, probe: int
) -> dict[str, tuple[np.ndarray, ...]]:
    """Label ids, and ln p and argmax ids at both ends, of one prompt by kind, read as a
    script reads them."""
    data = json.loads(elements.unpacked(f"prompts-{run}"))
    rows = [r for r, p in enumerate(data["rows"]["probe"]) if p == probe]
    offsets = np.concatenate([[0], np.cumsum(data["rows"]["tokens"])])
    place = next(
        i for i, (a, b) in enumerate(data["groups"]) if a <= rows[0] and rows[-1] < b
    )
    start, stop = data["groups"][place]
    length = int(offsets[stop] - offsets[start])
    raw = np.frombuffer(elements.unpacked(f"ends-{run}-{place}"), "<u2")
    assert not data["wide"]
    columns = raw.reshape(7, length)
    found = {}
    for row in rows:
        part = slice(offsets[row] - offsets[start], offsets[row + 1] - offsets[start])
        names = [np.array(data["ids"])[columns[i, part]] for i in range(3)]
        kind = data["kinds"][data["rows"]["kind"][row]]
        found[kind] = (*names, *(columns[i, part] / -2000 for i in range(3, 7)))
    return found


@pytest.mark.parametrize("probe", [0, 7, 43])
def test_a_prompt_reads_back_as_it_was_scored(
    elements: Elements, dpo_run: ScoredRun, probe: int
) -> None:
    first, last = dpo_run.tables[0], dpo_run.tables[-1]
    decoded = _decoded(elements, 0, probe)
    index = first.index()
    for kind, columns in decoded.items():
        row = index[dpo_run.probes[probe].probe_id, kind]
        before, after = first.row(row), last.row(row)
        label, top_before, top_after, own_b, own_a, p_before, p_after = columns
        assert label.tolist() == before.token_ids.tolist()
        assert before.argmax_ids is not None
        assert after.argmax_ids is not None
        assert top_before.tolist() == before.argmax_ids.tolist()
        assert top_after.tolist() == after.argmax_ids.tolist()
        for kept, exact in (
            (own_b, before.logprobs),
            (own_a, after.logprobs),
            (p_before, before.argmax_logprobs),
            (p_after, after.argmax_logprobs),
        ):
            np.testing.assert_allclose(kept, exact, atol=0.00026)


def test_every_checkpoint_of_the_worst_prompts_reads_back(dpo_run: ScoredRun) -> None:
    elements = Elements(render_page([dpo_run.page_run], worst=3))
    data = json.loads(elements.unpacked("prompts-0"))
    chosen = [
        (float(np.subtract(*(t.logprob_sums[r] for t in (dpo_run.tables[-1],
                                                        dpo_run.tables[0]))))
         / dpo_run.tables[0].n_tokens[r], probe.probe_id)
        for probe in dpo_run.probes
        for r in [dpo_run.tables[0].index()[probe.probe_id, "chosen"]]
    ]  # fmt: skip
    expected = [name for _, name in sorted(chosen)[:3]]
    assert [data["probes"][probe] for probe in data["worst"]] == expected
    for probe in data["worst"]:
        rows = [r for r, p in enumerate(data["rows"]["probe"]) if p == probe]
        length = sum(data["rows"]["tokens"][row] for row in rows)
        raw = np.frombuffer(elements.unpacked(f"steps-0-{probe}"), "<u2")
        argmax, own, _ = raw.reshape(3, len(dpo_run.tables), length)
        for number, table in enumerate(dpo_run.tables):
            index = table.index()
            kinds = [data["kinds"][data["rows"]["kind"][row]] for row in rows]
            parts = [table.row(index[data["probes"][probe], kind]) for kind in kinds]
            exact = np.concatenate([part.logprobs for part in parts])
            np.testing.assert_allclose(own[number] / -2000, exact, atol=0.00026)
            ids = np.concatenate([part.argmax_ids for part in parts])  # type: ignore[misc]
            assert np.array(data["ids"])[argmax[number]].tolist() == ids.tolist()


def test_sums_are_those_of_every_checkpoint(
    elements: Elements, dpo_run: ScoredRun
) -> None:
    data = json.loads(elements.unpacked("prompts-0"))
    sums = np.frombuffer(elements.unpacked("sums-0"), "<f4").reshape(4, -1)
    for number, table in enumerate(dpo_run.tables):
        index = table.index()
        for row in range(0, sums.shape[1], 37):
            probe = data["probes"][data["rows"]["probe"][row]]
            kind = data["kinds"][data["rows"]["kind"][row]]
            exact = table.logprob_sums[index[probe, kind]]
            assert sums[number, row] == pytest.approx(exact, abs=1e-4)


def test_the_order_of_a_table_s_rows_changes_nothing(dpo_run: ScoredRun) -> None:
    order = np.random.default_rng(0).permutation(len(dpo_run.tables[0]))
    mixed = [dpo_run.tables[0], *(reordered(t, order) for t in dpo_run.tables[1:])]
    run = dataclasses.replace(dpo_run.page_run, scores=mixed)
    assert render_page([run]) == render_page([dpo_run.page_run])


def test_what_was_not_scored_is_missing_and_not_zero(dpo_run: ScoredRun) -> None:
    last = dpo_run.tables[-1]
    gone = last.part(12, len(last))
    scores = PromptScores([*dpo_run.tables[:-1], gone], worst=50)
    assert np.isnan(scores.sums[-1, :12]).all()
    assert np.isfinite(scores.sums[-1, 12:]).all()
    assert (scores.ends.logprobs[1, : scores.offsets[12]] == MISSING).all()
    blind = [without(t, "argmax_ids", "argmax_logprobs") for t in dpo_run.tables]
    unknown = PromptScores(blind, worst=2)
    assert (unknown.ends.argmax == -1).all()
    assert (unknown.ends.argmax_logprobs == MISSING).all()


def test_a_run_of_many_tokens_is_cut_into_blocks_of_whole_prompts(
    dpo_run: ScoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldeval.report.page.scores.TOKENS_PER_BLOCK", 700)
    scores = PromptScores(dpo_run.tables, worst=1)
    groups = scores.groups()
    assert len(groups) > 5
    assert [g[0] for g in groups[1:]] == [g[1] for g in groups[:-1]]
    assert (groups[0][0], groups[-1][1]) == (0, len(scores.probe_of))
    for start, stop in groups:
        assert not set(scores.probe_of[start:stop]) & set(scores.probe_of[stop:])
    elements = Elements(render_page([dpo_run.page_run]))
    for kind, columns in _decoded(elements, 0, 30).items():
        row = dpo_run.tables[0].index()[dpo_run.probes[30].probe_id, kind]
        assert columns[0].tolist() == dpo_run.tables[0].row(row).token_ids.tolist()


def test_a_vocabulary_beyond_sixteen_bits_has_wider_places(dpo_run: ScoredRun) -> None:
    scores = PromptScores(dpo_run.tables, worst=1)
    few, many = np.arange(len(PIECES)), np.arange(70_000)
    length = int(scores.offsets[12])
    for ids, kind in ((few, "<u2"), (many, "<u4")):
        raw = gzip.decompress(base64.b64decode(scores.end_block(0, 12, ids)))
        size = np.dtype(kind).itemsize
        assert len(raw) == length * (3 * size + 4 * 2)
        names = np.frombuffer(raw[: 3 * length * size], kind).reshape(3, length)
        assert names[0].tolist() == scores.labels[:length].tolist()
        assert names[2].tolist() == scores.ends.argmax[1, :length].tolist()


# ------------------------------------------------------------------------ texts, pieces


def test_a_tokenizer_that_does_not_spell_the_responses_is_refused_or_left_out(
    dpo_run: ScoredRun,
) -> None:
    wrong = Pieces(dict.fromkeys(range(len(PIECES)), b"?!"), "other/tokenizer.json")
    run = dataclasses.replace(dpo_run.page_run, pieces=wrong)
    elements = Elements(render_page([run]))
    assert json.loads(elements.unpacked("prompts-0"))["pieces"] is None
    with pytest.raises(MismatchError, match=r"other/tokenizer\.json: spells"):
        render_page([dataclasses.replace(run, pieces_named=True)])


def _tokenizer(folder: Path, **rules: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(rules), encoding="utf-8")
    return path


def test_pieces_of_byte_level_tokenizers_keep_their_bytes(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    text = " naïve 🍚\n米"
    encoded = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    letters = "".join(piece for piece, _ in encoded)
    vocabulary = {letter: i for i, letter in enumerate(sorted(set(letters)))}
    _tokenizer(
        tmp_path,
        model={"type": "BPE", "vocab": vocabulary},
        decoder={"type": "ByteLevel"},
        added_tokens=[{"id": 99, "content": "<|end|>"}],
    )
    pieces = read_pieces(tmp_path)
    assert pieces.joined([vocabulary[letter] for letter in letters]) == text
    assert pieces.text(99) == "<|end|>"
    assert pieces.text(98) is None
    half = pieces.text(vocabulary["ð"])
    assert half == "\udcf0"


def test_pieces_of_sentencepiece_and_wordpiece_tokenizers(tmp_path: Path) -> None:
    unigram = _tokenizer(
        tmp_path,
        model={
            "type": "Unigram",
            "vocab": [["<unk>", 0], ["▁rice", -1], ["<0x0A>", -2]],
        },
        decoder={"type": "Metaspace"},
    )
    pieces = read_pieces(unigram)
    assert [pieces.text(i) for i in range(3)] == ["<unk>", " rice", "\n"]
    words = _tokenizer(
        tmp_path,
        model={"vocab": {"rice": 0, "##s": 1}, "continuing_subword_prefix": "##"},
    )
    assert read_pieces(words).joined([0, 1]) == "rices"


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"vocab": 3}}', "null"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="--tokenizer"):
        read_pieces(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_pieces(tmp_path / "none")


def test_texts_are_taken_only_where_they_are_what_was_scored(
    dpo_run: ScoredRun, tmp_path: Path
) -> None:
    from ldeval.probes import ProbeSet, write_probes

    run = stored(dpo_run, tmp_path)
    tables = open_run(run)
    assert find_texts(run, tables).probes is None
    (tmp_path / "model").mkdir()
    _tokenizer(tmp_path / "model", model={"vocab": {}})
    keep_texts(run, ProbeSet(dpo_run.probes), [tmp_path, tmp_path / "model"])
    found = find_texts(run, tables)
    assert found.probes is not None
    assert found.probes.probes == read_probes(run / "probes.jsonl").probes
    assert found.tokenizer == run / "tokenizer.json"
    other = dataclasses.replace(
        dpo_run.probes[0], responses={"chosen": Response("chosen", "another")}
    )
    write_probes(tmp_path / "other.jsonl", (other, *dpo_run.probes[1:]))
    with pytest.raises(MismatchError, match="content hash"):
        find_texts(run, tables, probes=tmp_path / "other.jsonl")


# -------------------------------------------------------------------------- the command


def test_the_command_writes_the_page_alone_or_beside_the_other_files(
    dpo_run: ScoredRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stored(dpo_run, tmp_path / "store")
    assert main(["report", str(run)]) == 2
    assert "--html" in capsys.readouterr().err
    alone, folder = tmp_path / "deep" / "one.html", tmp_path / "report"
    assert main(["report", str(run), "--html", str(alone), "-o", str(folder)]) == 0
    out = capsys.readouterr().out
    assert str(alone) in out
    assert str(folder / "report.html") in out
    assert alone.read_bytes() == (folder / "report.html").read_bytes()
    assert (folder / "report.md").is_file()
    core = json.loads(Elements(alone.read_text("utf-8")).data("core"))
    assert core["runs"][0]["prompts"]["count"] == len(dpo_run.probes)
    assert json.loads((folder / "report.json").read_text())["runs"][0]["run"] == "dpo"


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"model": {"vocab": {"a": Infinity}}}', "{"],
    ids=["deep", "infinite", "cut"],
)
def test_a_stores_own_tokenizer_that_cannot_be_read_costs_no_page(
    dpo_run: ScoredRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
) -> None:
    run = stored(dpo_run, tmp_path / "store")
    (run / "tokenizer.json").write_text(content)
    page = tmp_path / "one.html"
    assert main(["report", str(run), "--html", str(page)]) == 0
    told = capsys.readouterr().err
    assert f"{run / 'tokenizer.json'}: not a tokenizer" in told
    assert "shown by their ids" in told
    assert page.is_file()
    named = ["--tokenizer", str(run / "tokenizer.json")]
    assert main(["report", str(run), "--html", str(page), *named]) == 2


def test_a_comparison_without_scores_has_a_page_without_prompts(
    make_comparison: Factory, tmp_path: Path
) -> None:
    write_report([make_comparison()], tmp_path)
    elements = Elements((tmp_path / "report.html").read_text("utf-8"))
    core = json.loads(elements.data("core"))
    assert core["runs"][0]["prompts"] is None
    assert not [
        a for _, a in elements.found if (a.get("id") or "").startswith("b-ends")
    ]


def test_a_page_of_no_run_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        render_page([])


def test_prompts_without_texts_are_known_by_id(dpo_run: ScoredRun) -> None:
    run = PageRun(dpo_run.comparison, dpo_run.tables)
    data = json.loads(Elements(render_page([run])).unpacked("prompts-0"))
    assert set(data["prompts"]) == {None}
    assert data["pieces"] is None
    assert data["probes"] == [probe.probe_id for probe in dpo_run.probes]


def test_a_probe_that_was_not_scored_is_not_on_the_page(dpo_run: ScoredRun) -> None:
    stray = Probe("stray", "unscored?", {"chosen": Response("chosen", "no")}, True)
    run = dataclasses.replace(dpo_run.page_run, probes=(*dpo_run.probes, stray))
    data = json.loads(Elements(render_page([run])).unpacked("prompts-0"))
    assert "stray" not in data["probes"]
