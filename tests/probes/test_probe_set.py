"""Reading, validating, hashing and writing probe sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldeval.bundled import bundled_probes
from ldeval.errors import ProbeError
from ldeval.probes import ProbeSet, parse_probe, read_probes, write_probes
from ldeval.records import KIND_NAMES


def record(**changes: Any) -> dict[str, Any]:
    good = {
        "probe_id": "a",
        "prompt": "Why is the sky blue?",
        "trained": True,
        "responses": {"chosen": "Because of scattering.", "rejected": "It is not."},
    }
    return {**good, **changes}


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_malformed_line_is_named_by_file_and_number(tmp_path: Path) -> None:
    lines = [json.dumps(record(probe_id=str(n))) for n in range(30)]
    lines[16] = '{"probe_id": "x", "prompt": '
    path = write_lines(tmp_path / "probes.jsonl", lines)
    with pytest.raises(ProbeError) as caught:
        read_probes(path)
    assert f"{path}:17: is not valid JSON" in str(caught.value)
    assert caught.value.line == 17


def test_blank_lines_do_not_shift_line_numbers(tmp_path: Path) -> None:
    lines = [json.dumps(record()), "", "", "[1]"]
    with pytest.raises(ProbeError) as caught:
        read_probes(write_lines(tmp_path / "p.jsonl", lines))
    assert caught.value.line == 4


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"responses": {"rejected": "no"}}, "responses.chosen", "is missing"),
        ({"responses": {"chosen": "  "}}, "responses.chosen", "is empty"),
        ({"responses": {"chosen": 3}}, "responses.chosen", "is 3, not text"),
        ({"responses": {"chosen": "a", "best": "b"}}, "responses.best", "known kind"),
        ({"responses": {"chosen": "a", "irr_hum": "b"}}, "responses.irr_hum", "import"),
        ({"responses": {"chosen": "\ud800"}}, "responses.chosen", "lone surrogate"),
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": []}, "prompt", "list of messages"),
        ({"prompt": [{"role": "boss", "content": "x"}]}, "prompt[0].role", "Valid"),
        ({"prompt": [{"role": "user"}]}, "prompt[0].content", "is None"),
        ({"trained": "yes"}, "trained", "true if this prompt"),
        ({"trained": None}, "trained", "is None"),
        ({"probe_id": ""}, "probe_id", "is empty"),
        ({"probe_id": 7}, "probe_id", "is 7"),
        ({"extra": 1}, "extra", "not a field"),
        ({"meta": 1}, "meta", "JSON object"),
        ({"meta": {"sources": []}}, "meta.sources", "{kind: id}"),
    ],
)
def test_a_faulty_field_is_named_with_a_remedy(
    changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ProbeError) as caught:
        parse_probe(record(**changes), path="p.jsonl", line=5)
    assert caught.value.field == field
    assert words in str(caught.value)
    assert "p.jsonl:5" in str(caught.value)
    assert caught.value.remedy


def test_a_prompt_may_not_end_with_the_answer() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]
    with pytest.raises(ProbeError, match="ends with an assistant message"):
        parse_probe(record(prompt=messages))


def test_a_repeated_id_names_both_lines(tmp_path: Path) -> None:
    lines = [json.dumps(record()), json.dumps(record(probe_id="b"))]
    lines.append(json.dumps(record()))
    with pytest.raises(ProbeError, match=r":3: .*repeats 'a' of line 1"):
        read_probes(write_lines(tmp_path / "p.jsonl", lines))


def test_a_missing_file_and_an_empty_one_say_so(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="cannot be opened"):
        read_probes(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ProbeError, match="holds no probes"):
        read_probes(tmp_path / "empty.jsonl")


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(record()).encode() + b'\n{"probe_id": "\xff"}\n')
    with pytest.raises(ProbeError) as caught:
        read_probes(path)
    assert caught.value.line == 2


texts = st.text(
    st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40
).filter(lambda text: bool(text.strip()))


@given(
    prompt=texts,
    responses=st.dictionaries(st.sampled_from(KIND_NAMES), texts),
    chosen=texts,
    trained=st.booleans(),
)
def test_what_is_written_reads_back_alike(
    tmp_path_factory: pytest.TempPathFactory,
    prompt: str,
    responses: dict[str, str],
    chosen: str,
    trained: bool,
) -> None:
    probe = parse_probe(
        record(
            prompt=prompt, responses={**responses, "chosen": chosen}, trained=trained
        )
    )
    path = tmp_path_factory.mktemp("probes") / "p.jsonl"
    write_probes(path, [probe])
    back = read_probes(path)
    assert back.probes == (probe,)
    assert back.content_hash == ProbeSet((probe,)).content_hash


def test_the_hash_follows_what_is_scored_and_nothing_else() -> None:
    probe = parse_probe(record())
    other = parse_probe(record(meta={"note": "x", "sources": {"chosen": "written"}}))
    assert ProbeSet((probe,)).content_hash == ProbeSet((other,)).content_hash
    for changed in (
        parse_probe(record(prompt="Why?")),
        parse_probe(record(trained=False)),
        parse_probe(record(responses={"chosen": "Because of scattering."})),
        replace(probe, probe_id="b"),
    ):
        assert ProbeSet((probe,)).content_hash != ProbeSet((changed,)).content_hash


def test_limits_keep_the_first_of_each_split_in_file_order() -> None:
    probes = read_probes(bundled_probes())
    few = probes.limited(3, 2)
    assert [p.probe_id for p in few] == [
        "train-001",
        "train-002",
        "train-003",
        "heldout-001",
        "heldout-002",
    ]
    assert len(probes.limited(None, 0)) == sum(p.trained for p in probes)
    with pytest.raises(ProbeError, match="no probe within a limit of 0 trained"):
        probes.limited(0, 0)
