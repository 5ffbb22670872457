"""A build from preference data: dealing, forms, lengths, bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldeval.errors import ProbeError
from ldeval.probes import parse_probe, probe_to_record, read_probes, write_probes
from ldeval.probes.assemble import RULE_SOURCE
from ldeval.probes.build import Build, BuildSettings
from ldeval.probes.lengths import LengthBand
from ldeval.probes.surface import leading_space
from ldeval.probes.tokens import token_counter
from ldeval.records import Probe, Response

COUNT = token_counter().count


def source(folder: Path, rows: list[dict[str, Any]], name: str = "s.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Question {n}?",
            "chosen": f" The answer to question {n} is" + f" word{n}" * (n % 9 + 1),
            "rejected": f"Nobody knows {n}.\n",
        }
        for n in range(start, start + count)
    ]


def built(folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[Probe]:
    return list(
        Build(BuildSettings(source(folder, rows), **options), work=folder).probes()
    )


def chosen_of(probes: list[Probe]) -> dict[str, str]:
    return {p.probe_id: p.responses["chosen"].text for p in probes}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build")


slow = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@slow
@given(st.integers(4, 60), st.integers(0, 999), st.booleans(), st.data())
def test_irrelevant_texts_are_dealt_once_and_never_to_their_own_probe(
    folder: Path, count: int, seed: int, matched: bool, data: st.DataObject
) -> None:
    rows = pairs(count)
    for row in data.draw(st.lists(st.sampled_from(rows), max_size=5)):
        row["chosen"] = "The same words for several prompts."
    probes = built(
        folder,
        rows,
        seed=seed,
        heldout_share=0.4,
        band=LengthBand(1e9) if matched else None,
    )
    own = chosen_of(probes)
    split = {p.probe_id: p.trained for p in probes}
    trained_texts = {own[name].strip() for name in own if split[name]}
    uses: Counter[tuple[str, bool, str]] = Counter()
    for probe in probes:
        for kind, of_trained in (
            ("irrelevant_train", True),
            ("irrelevant_test", False),
        ):
            if kind not in probe.responses:
                continue
            response = probe.responses[kind]
            assert response.text.strip() != own[probe.probe_id].strip()
            assert split[str(response.source)] == of_trained
            assert own[str(response.source)].strip() == response.text.strip()
            if not of_trained:
                assert response.text.strip() not in trained_texts
            uses[kind, probe.trained, response.text.strip()] += 1
    for (kind, to_trained, _), times in uses.items():
        if to_trained == (kind == "irrelevant_train"):
            assert times == 1, "within a split each text is used once"
    lacking = [p for p in probes if p.trained and "irrelevant_train" not in p.responses]
    distinct = len({own[p.probe_id].strip() for p in probes if p.trained})
    trained = sum(split.values())
    assert len(lacking) == (trained - distinct if distinct > 1 else trained)


@slow
@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 99))
def test_across_splits_every_text_is_used_equally_often(
    folder: Path, trained: int, heldout: int, seed: int
) -> None:
    other = source(folder, pairs(heldout, start=1000), "held.jsonl")
    probes = built(folder, pairs(trained), heldout=other, seed=seed)
    uses = Counter(p.responses["irrelevant_test"].source for p in probes if p.trained)
    assert uses.total() == trained
    assert max(uses.values()) - min(uses.values()) <= 1
    assert len(uses) == min(trained, heldout)


def test_spare_held_out_rows_lend_their_texts_and_are_no_probes(folder: Path) -> None:
    other = source(folder, pairs(50, start=1000), "held.jsonl")
    probes = built(folder, pairs(80), heldout=other, limits=(30, 5))
    assert Counter(p.trained for p in probes) == {True: 30, False: 5}
    lent = [p.responses["irrelevant_test"] for p in probes if p.trained]
    assert len({r.text for r in lent}) == 30
    known = {p.probe_id for p in probes}
    assert all(str(r.source).startswith("held.jsonl:") for r in lent
               if r.source not in known)  # fmt: skip


def test_kinds_are_made_of_the_words_they_say(folder: Path) -> None:
    for probe in built(folder, pairs(40), heldout_share=0.3, seed=3):
        texts = {kind: r.text for kind, r in probe.responses.items()}
        for kind, base in (("permuted", "chosen"), ("random_words", "irrelevant_test")):
            assert sorted(texts[kind].split()) == sorted(texts[base].split())
            assert texts[kind].split() != texts[base].split()
        assert probe.responses["permuted"].source == probe.probe_id
        test = probe.responses["irrelevant_test"].source
        assert probe.responses["random_words"].source == test


def test_all_kinds_begin_and_end_alike(folder: Path) -> None:
    rows = pairs(12)
    rows[3]["chosen"] = "\nNo lead like the others.<|im_end|>\n"
    for probe in built(folder, rows, heldout_share=0.3, rule_format=True):
        lead = leading_space(probe.responses["chosen"].text)
        for response in probe.responses.values():
            assert leading_space(response.text) == lead
            assert response.text == response.text.rstrip()
            assert "<|im_end|>" not in response.text


@slow
@given(st.integers(0, 50), st.sampled_from([1.1, 1.25, 2.0]))
def test_matched_lengths_lie_within_the_band(
    folder: Path, seed: int, ratio: float
) -> None:
    probes = built(
        folder, pairs(60), heldout_share=0.4, seed=seed, band=LengthBand(ratio)
    )
    found = 0
    for probe in probes:
        target = COUNT(probe.responses["chosen"].text)
        for kind in ("irrelevant_train", "irrelevant_test"):
            if kind in probe.responses:
                found += 1
                assert target / ratio <= COUNT(probe.responses[kind].text)
                assert COUNT(probe.responses[kind].text) <= target * ratio
            else:
                reason = probe.meta["missing"][kind]
                assert reason in (
                    "outside the length band",
                    "cut, it is a trained prompt's chosen",
                    "cut, it is another probe's",
                    "no trained text is left for it",
                    "no held-out text is left for it",
                )
    assert found > len(probes)


def test_matching_brings_lengths_nearer_and_keeps_most_probes(folder: Path) -> None:
    rows = pairs(400)

    def gaps(**options: Any) -> list[float]:
        probes = built(folder, rows, heldout_share=0.5, **options)
        return [
            abs(COUNT(p.responses["irrelevant_test"].text)
                - COUNT(p.responses["chosen"].text))
            for p in probes
            if "irrelevant_test" in p.responses
        ]  # fmt: skip

    plain, matched = gaps(), gaps(band=LengthBand(1.25))
    assert len(matched) >= 0.9 * len(plain)
    assert sum(matched) / len(matched) < 0.3 * sum(plain) / len(plain)


def test_the_same_input_and_seed_give_the_same_bytes(folder: Path) -> None:
    def bytes_of(seed: int, name: str) -> bytes:
        path = folder / name
        probes = built(
            folder, pairs(50), heldout_share=0.3, seed=seed, rule_format=True
        )
        write_probes(path, probes)
        return path.read_bytes()

    assert bytes_of(4, "a") == bytes_of(4, "b")
    assert bytes_of(4, "a") != bytes_of(5, "c")


def test_a_probe_keeps_its_id_and_split_under_another_limit_and_order(
    folder: Path,
) -> None:
    rows = pairs(60)
    whole = {p.probe_id: p for p in built(folder, rows, heldout_share=0.3)}
    part = built(folder, rows[::-1], heldout_share=0.3, limits=(10, 4))
    assert len(part) == 14
    for probe in part:
        assert whole[probe.probe_id].prompt == probe.prompt
        assert whole[probe.probe_id].trained == probe.trained


def test_turns_of_one_conversation_fall_into_one_split(folder: Path) -> None:
    rows = []
    for n in range(40):
        turn = f"\n\nHuman: Question {n}?\n\nAssistant:"
        later = turn + " Well.\n\nHuman: And?\n\nAssistant:"
        rows += [
            {"prompt": turn, "chosen": f" a{n}", "rejected": " b"},
            {"prompt": later, "chosen": f" c{n}", "rejected": " d"},
        ]
    splits: dict[str, set[bool]] = {}
    for probe in built(folder, rows, heldout_share=0.5):
        first = str(probe.prompt).split("\n\nAssistant:")[0]
        splits.setdefault(first, set()).add(probe.trained)
    assert len(splits) == 40
    assert all(len(found) == 1 for found in splits.values())
    assert len(set.union(*splits.values())) == 2


def test_a_sample_is_drawn_over_the_whole_source(folder: Path) -> None:
    rows = pairs(300)
    place = {f"Question {n}?": n for n in range(300)}
    drawn = built(folder, rows, limits=(30, 10), sample=True, heldout_share=0.3)
    assert Counter(p.trained for p in drawn) == {True: 30, False: 10}
    assert sum(place[str(p.prompt)] > 150 for p in drawn) > 8
    again = built(folder, rows, limits=(30, 10), sample=True, heldout_share=0.3)
    assert drawn == again


def test_what_is_left_out_is_counted_and_listed(folder: Path) -> None:
    rows = [*pairs(8), pairs(1)[0], {"prompt": "x", "chosen": ""}, {"what": 1}]
    path = source(folder, rows)
    Path(path).write_text(Path(path).read_text() + "{broken\n")
    build = Build(BuildSettings(path, heldout_share=0.0), work=folder)
    assert len(list(build.probes())) == 8
    record = build.report.to_record()
    assert record["source"]["reasons"] == {
        "its prompt repeats an earlier one": 1,
        "the chosen response is empty": 1,
        "its fields are of no known format": 1,
        "not valid JSON": 1,
    }
    assert record["source"]["listed"]["not valid JSON"] == ["s.jsonl:12"]
    assert record["source"]["read"] == 12
    missing = record["missing"]
    assert missing["irrelevant_test"] == {"no held-out text is left for it": 8}
    assert missing["random_words"] == {"it has no irrelevant_test": 8}


def test_a_held_out_prompt_that_is_trained_too_is_left_out(folder: Path) -> None:
    other = source(folder, pairs(6, start=2), "held.jsonl")
    build = Build(BuildSettings(source(folder, pairs(4)), heldout=other), work=folder)
    probes = list(build.probes())
    assert Counter(p.trained for p in probes) == {True: 4, False: 4}
    assert build.report.heldout_intake.reasons == {
        "its prompt repeats an earlier one": 2
    }


def test_a_source_without_trained_prompts_says_what_became_of_its_rows(
    folder: Path,
) -> None:
    good = {"prompt": "only", "chosen": "held out"}
    bad = [{"prompt": f"x{n}", "chosen": " "} for n in range(2)]
    with pytest.raises(ProbeError, match="2 because the chosen response is empty"):
        built(folder, [good, *bad], heldout_share=1.0)
    empty = folder / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(ProbeError, match="no trained prompt out of 0 rows"):
        list(Build(BuildSettings(str(empty)), work=folder).probes())


def test_variants_by_rule_are_marked_as_such(folder: Path) -> None:
    rows = [
        {**row, "chosen": f" Bakers quickly mixed flour number{n} in large bowls."}
        for n, row in enumerate(pairs(30))
    ]
    probes = built(folder, rows, heldout_share=0.3, rule_format=True)
    made = [p.responses["chosen_format"] for p in probes
            if "chosen_format" in p.responses]  # fmt: skip
    assert made
    assert {r.source for r in made} == {RULE_SOURCE}
    assert not any(
        "chosen_format" in p.responses for p in built(folder, rows, heldout_share=0.3)
    )


def test_sentences_come_from_the_pool_until_it_is_used_up(folder: Path) -> None:
    pool = folder / "sentences.txt"
    pool.write_text("".join(f"Sentence number {n} is short.\n" for n in range(20)))
    probes = built(folder, pairs(30), sentences=str(pool))
    texts = [p.responses["random_sentence"].text for p in probes
             if "random_sentence" in p.responses]  # fmt: skip
    assert texts
    parts = " ".join(texts).split("Sentence number ")[1:]
    assert len(parts) == len(set(parts)) == 20
    lacking = [p for p in probes if "random_sentence" not in p.responses]
    assert {p.meta["missing"]["random_sentence"] for p in lacking} == {
        "the pool of sentences is used up"
    }


def test_sampled_initial_responses_are_cut_and_formed_as_the_rest(folder: Path) -> None:
    def sampler(probes: Any) -> Iterator[Probe]:
        for n, probe in enumerate(probes):
            text = "Sure!</s>\n\nHuman: and more" if n % 2 else ""
            responses = dict(probe.responses)
            if text:
                responses["initial"] = Response("initial", text, "sampled")
            meta = {"initial_greedy": "greedy", "initial_model": {"weights": "w"}}
            yield Probe(probe.probe_id, probe.prompt, responses, probe.trained, meta)

    build = Build(
        BuildSettings(source(folder, pairs(10))),
        work=folder,
        sampler=lambda probes: list(sampler(probes)),
    )
    for n, probe in enumerate(build.probes()):
        assert probe.meta["initial_greedy"] == "greedy"
        if n % 2:
            assert probe.responses["initial"].text == " Sure!"
        else:
            assert "empty samples" in probe.meta["missing"]["initial"]


HOSTILE = [
    "{{ 7 * 7 }} {% for x in y %} ${jndi:x} %s {reference}",
    "a\x00b\x1b[31m\x07\u202e\u2066\ufeff",
    "</script><script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "\u2028 line \u2029 separators \x85",
]


def test_hostile_prompts_come_through_unchanged_and_read_back(folder: Path) -> None:
    rows = [
        {"prompt": f"{text} {n}", "chosen": f"{text} one {n}", "rejected": f"{text} b"}
        for n, text in enumerate(HOSTILE * 3)
    ]
    rows.append({"prompt": "big", "chosen": "x " * 500_000, "rejected": "b"})
    build = Build(BuildSettings(source(folder, rows)), work=folder)
    probes = list(build.probes())
    assert {str(p.prompt) for p in probes} == {str(r["prompt"]) for r in rows[:-1]}
    reasons = build.report.intake.reasons
    assert reasons == {"the chosen response has more than 20000 characters": 1}
    write_probes(folder / "p.jsonl", probes)
    back = read_probes(folder / "p.jsonl")
    assert [probe_to_record(p) for p in back] == [probe_to_record(p) for p in probes]


def test_messages_stay_messages(folder: Path) -> None:
    turn = [{"role": "user", "content": "Hi"}]
    rows = [
        {
            "prompt": [*turn, {"role": "assistant", "content": f"{n}"}, *turn],
            "chosen": [{"role": "assistant", "content": f"yes {n}"}],
            "rejected": [{"role": "assistant", "content": f"no {n}"}],
        }
        for n in range(6)
    ]
    probes = built(folder, rows, heldout_share=0.0)
    assert [[*map(dict, p.prompt)] for p in probes] == [r["prompt"] for r in rows]
    for probe in probes:
        assert parse_probe(probe_to_record(probe)) == probe


def test_nothing_of_the_work_is_left_behind(folder: Path) -> None:
    stream = Build(BuildSettings(source(folder, pairs(9))), work=folder).probes()
    next(stream)
    assert list(folder.glob(".ldeval-*"))
    stream.close()
    assert not list(folder.glob(".ldeval-*"))
