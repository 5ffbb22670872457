"""Looking a probe set over: every confound is found, and a clean set has none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rapidfuzz.distance import Levenshtein

from ldeval.bundled import bundled_probes
from ldeval.errors import ProbeError
from ldeval.probes import parse_probe, read_probes, write_probes
from ldeval.probes.assemble import RULE_SOURCE
from ldeval.probes.quality import FINDINGS, check_probes
from ldeval.records import DISTANCE_BINS, KIND_NAMES, QualityReport
from ldeval.report.probe_words import WORDINGS

Change = Callable[[dict[str, Any], list[dict[str, Any]]], object]


def records(count: int = 70, heldout: int = 8) -> list[dict[str, Any]]:
    """A small set without any fault."""
    made = []
    for n in range(count + heldout):
        responses = {
            kind: f"{kind} {n} says these quite different {kind} words"
            for kind in KIND_NAMES
        }
        words = responses["irrelevant_test"].split()
        responses["random_words"] = " ".join(words[::-1])
        made.append(
            {
                "probe_id": f"p{n:03d}",
                "prompt": f"Question {n}?",
                "trained": n < count,
                "responses": responses,
            }
        )
    return made


def looked(folder: Path, items: list[dict[str, Any]]) -> QualityReport:
    path = folder / "p.jsonl"
    write_probes(path, [parse_probe(item) for item in items])
    return check_probes(path)


def counts(report: QualityReport) -> dict[str, dict[str, int] | int]:
    return {f.code: dict(f.by_kind) or f.count for f in report.findings}


def test_a_clean_set_has_no_findings(tmp_path: Path) -> None:
    report = looked(tmp_path, records())
    assert counts(report) == {}
    assert (report.trained, report.heldout) == (70, 8)
    assert report.content_hash == read_probes(tmp_path / "p.jsonl").content_hash


def texts(item: dict[str, Any]) -> dict[str, str]:
    responses: dict[str, str] = item["responses"]
    return responses


CASES: dict[str, tuple[Change, dict[str, int] | int]] = {
    "held-out prompt trained": (
        lambda one, all_: all_[-1].update(prompt=one["prompt"]), 1),
    "unseen text is trained": (
        lambda one, all_: texts(one).update(
            irrelevant_test=texts(all_[5])["chosen"],
            random_words=" ".join(texts(all_[5])["chosen"].split()[::-1])),
        {"irrelevant_test": 1}),
    "same as chosen": (
        lambda one, _: texts(one).update(permuted=texts(one)["chosen"]),
        {"permuted": 1}),
    "another probe's chosen": (
        lambda one, all_: texts(one).update(initial=texts(all_[5])["chosen"]),
        {"initial": 1}),
    "two kinds alike": (
        lambda one, _: texts(one).update(initial=texts(one)["random_sentence"]),
        {"random_sentence": 1}),
    "repeated text": (
        lambda one, all_: texts(one).update(initial=texts(all_[5])["initial"]),
        {"initial": 1}),
    "prompt repeated": (lambda one, all_: one.update(prompt=all_[5]["prompt"]), 2),
    "near copy": (
        lambda one, _: texts(one).update(
            rejected_semantic=texts(one)["rejected"] + "."),
        {"rejected_semantic": 1}),
    "in its own prompt": (
        lambda one, _: one.update(prompt="You said: " + texts(one)["rejected"]),
        {"rejected": 1}),
    "other words": (
        lambda one, _: texts(one).update(random_words="words of something else again"),
        {"random_words": 1}),
    "leading whitespace": (
        lambda one, _: texts(one).update(rejected=" " + texts(one)["rejected"]),
        {"rejected": 1}),
    "ending": (
        lambda one, _: texts(one).update(initial=texts(one)["initial"] + "<|im_end|>"),
        {"initial": 1}),
    "length": (
        lambda _, all_: [
            texts(item).update(initial=texts(item)["initial"] * 4) for item in all_],
        {"initial": 78}),
    "kind missing": (lambda one, _: texts(one).pop("initial"), {"initial": 1}),
    "made by a rule": (
        lambda one, _: one.update(meta={"sources": {"chosen_format": RULE_SOURCE}}),
        {"chosen_format": 1}),
    "control characters": (
        lambda one, _: texts(one).update(initial=texts(one)["initial"] + " \x1b[0m x"),
        {"initial": 1}),
    "few probes": (lambda _, all_: all_.__delitem__(slice(0, 10)), 60),
}  # fmt: skip


@pytest.mark.parametrize("code", CASES)
def test_each_confound_is_found_alone_and_counted(tmp_path: Path, code: str) -> None:
    change, expected = CASES[code]
    items = records()
    change(items[0], items)
    assert counts(looked(tmp_path, items)) == {code: expected}


def test_an_id_that_repeats_is_found_without_holding_all_ids(tmp_path: Path) -> None:
    items = records()
    items[3]["probe_id"] = items[4]["probe_id"]
    assert counts(looked(tmp_path, items)) == {"id repeated": 1}


def test_every_finding_has_its_words() -> None:
    assert set(WORDINGS) == set(FINDINGS)
    assert {*CASES, "empty", "id repeated"} == set(FINDINGS)


def test_texts_shared_between_the_splits_are_no_repeats(tmp_path: Path) -> None:
    items = records()
    texts(items[-1])["irrelevant_train"] = texts(items[0])["irrelevant_train"]
    assert counts(looked(tmp_path, items)) == {}


def test_the_numbers_of_a_kind_are_those_of_a_plain_count(
    tmp_path: Path, demo_model: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(demo_model))
    report = check_probes(bundled_probes(), tokenizer=demo_model)
    probes = read_probes(bundled_probes())

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    for quality in report.kinds:
        mine = [p for p in probes if quality.kind in p.responses]
        own = [p.responses[quality.kind].text for p in mine]
        chosen = [p.responses["chosen"].text for p in mine]
        lengths = [len(ids(text)) for text in own]
        assert quality.trained == sum(p.trained for p in mine)
        spread = [v for v, times in quality.lengths for _ in range(times)]
        assert sorted(lengths) == spread
        ratio = sum(lengths) / sum(len(ids(text)) for text in chosen)
        assert quality.tokens_ratio == pytest.approx(ratio)
        same = sum(ids(a)[0] == ids(b)[0] for a, b in zip(own, chosen, strict=True))
        assert quality.same_first_token == same
        if quality.kind == "chosen":
            assert quality.distances == ()
            assert math.isnan(quality.mean_distance)
            continue
        distances = [
            Levenshtein.normalized_distance(a.strip(), b.strip())
            for a, b in zip(own, chosen, strict=True)
        ]
        assert quality.mean_distance == pytest.approx(sum(distances) / len(distances))
        bins = [0] * DISTANCE_BINS
        for value in distances:
            bins[min(int(value * DISTANCE_BINS), DISTANCE_BINS - 1)] += 1
        assert quality.distances == tuple(bins)


def test_the_bundled_set_has_no_grave_fault() -> None:
    grave = set(FINDINGS[: FINDINGS.index("length")]) - {"repeated text"}
    found = {f.code for f in check_probes(bundled_probes()).findings}
    assert not found & grave


def test_every_confound_of_the_authors_file_is_found(hh_probes: Path) -> None:
    report = check_probes(hh_probes)
    found = counts(report)
    assert report.format == "reference"
    assert found["empty"] == {"initial": 21, "rejected": 1}
    assert found["unseen text is trained"] == {"irrelevant_test": 5}
    leading = found["leading whitespace"]
    assert isinstance(leading, dict)
    for kind in ("chosen_semantic", "chosen_format", "rejected_semantic",
                 "rejected_format", "random_sentence"):  # fmt: skip
        assert leading[kind] == 500
    assert "rejected" not in leading
    assert "irrelevant_train" not in leading
    assert found["same as chosen"] == {"irrelevant_test": 1, "permuted": 8}
    repeated = found["repeated text"]
    assert isinstance(repeated, dict)
    assert repeated["irrelevant_train"] == 500 - 306
    assert report.skipped_fields == 500
    by_kind = {quality.kind: quality for quality in report.kinds}
    assert by_kind["initial"].missing == {"empty": 21}
    assert by_kind["chosen_semantic"].same_first_token == 0


def test_reasons_that_a_build_recorded_are_shown(tmp_path: Path) -> None:
    items = records()
    for n in range(3):
        texts(items[n]).pop("chosen_semantic")
    items[0]["meta"] = {"missing": {"chosen_semantic": "refusal"}}
    items[1]["meta"] = {"missing": {"chosen_semantic": "<b>odd</b>"}}
    quality = {q.kind: q for q in looked(tmp_path, items).kinds}["chosen_semantic"]
    assert quality.missing == {"refusal": 1, "<b>odd</b>": 1, "not given": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": 3, "chosen_initial": "x"}, "field 'prompt'"),
        ({"prompt": "a", "chosen": "b\ud800", "chosen_selfr": ""}, "lone surrogate"),
        ({"probe_id": "a"}, "field 'trained'"),
    ],
)
def test_a_malformed_file_is_an_error(
    tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(ProbeError, match=message):
        check_probes(path)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n")
    with pytest.raises(ProbeError, match="holds no probes"):
        check_probes(path)
