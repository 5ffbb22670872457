"""What is wrong with an answer: each rule catches its case, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from ldeval.errors import ProbeError
from ldeval.probes.controls import (
    REASONS,
    Controls,
    cleaned,
    edit_distance,
    fault,
    other_script_share,
    repeated_share,
    word_count,
)
from ldeval.probes.rephrase import Instructions

REFERENCE = "The committee met on Friday to talk about the new library in the old town."
TOLD = Instructions().semantic.replace("{{ reference }}", "")


def verdict(
    answer: str, reference: str = REFERENCE, *, finished: bool = True
) -> object:
    return fault(
        answer,
        reference=reference,
        instruction=TOLD,
        words=word_count(reference),
        finished=finished,
        controls=Controls(),
    )


GOOD = [
    "On Friday, members of the board gathered and discussed plans for a town library.",
    "A group of officials came together last week; they spoke of a place for books.",
    "I can't recall when the board gathered to discuss the library, maybe on a Friday.",
    "Here is where, at the end of the week, people sat down to plan a house of books.",
]


@pytest.mark.parametrize("answer", GOOD)
def test_a_good_rephrase_has_no_fault(answer: str) -> None:
    assert verdict(answer) is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("I'm sorry, but I can't help with that request about the library meeting.",
         "refusal"),
        ("As an AI language model, I do not have meetings or libraries in a town.",
         "refusal"),
        ("I cannot rephrase this sentence because it may be about private people.",
         "refusal"),
        ("The reference sentence says that the board met to plan a library in town.",
         "echo"),
        ("Sure, here is a rephrased version: the board met on Friday about a library.",
         "echo"),
        ("I am glad. Here's a sentence with 15 words: the board met to plan a library.",
         "echo"),
        ("Use different words as much as possible while keeping the meaning of it all.",
         "echo"),
        ("A board met.", "length"),
        ("word " * 40, "length"),
        ("Комитет собрался в пятницу, чтобы поговорить о новой библиотеке в городе.",
         "script"),
        ("委员会 星期五 开会 讨论 老城区 的 新 图书馆 和 其他 问题 以及 计划",
         "script"),
        ("the new town the new town the new town the new town the new town", "loop"),
        (REFERENCE, "copy"),
        (REFERENCE.replace("Friday", "Monday"), "copy"),
        (" " + REFERENCE + "\n", "copy"),
    ],
)  # fmt: skip
def test_each_rule_catches_its_case(answer: str, reason: str) -> None:
    assert verdict(answer) == reason
    assert reason in REASONS


def test_words_are_counted_by_the_character_where_no_spaces_are_set() -> None:
    assert word_count("It is, as they say, so.") == 6
    assert word_count("今天天气很好") == 6
    assert word_count("私はPythonを書く。") == 7
    long = "委员会在星期五开会讨论了老城区的新图书馆"
    assert verdict("开会了。", long) == "length"
    assert verdict("周五，委员们聚在一起，谈了谈城里要建的书馆。", long) is None


def test_an_answer_that_was_cut_off_is_named_so() -> None:
    assert verdict(GOOD[0], finished=False) == "cut off"


def test_what_the_reference_does_itself_is_no_fault() -> None:
    sorry = "I'm sorry, I can't help with that, but a friend of mine may be able to."
    other = (
        "I'm sorry, I cannot assist here, though perhaps somebody close to me could."
    )
    assert verdict(other, sorry) is None
    chorus = "la la la la la la la la la la la la la la la la"
    assert verdict("na na na na na na na na na na na na na na na na", chorus) is None


def test_a_short_text_may_differ_by_a_few_words() -> None:
    assert verdict("Certainly, that works.", "Yes.") is None
    assert verdict("Certainly, that works for all of us here.", "Yes.") == "length"


@pytest.mark.parametrize(
    ("answer", "reference", "text"),
    [
        ('"Quoted whole."', "Plain.", "Quoted whole."),
        ("Output: A text.", "Plain.", "A text."),
        ("“Curly.”", "Plain.", "Curly."),
        ('"One," she said, "two."', "Plain.", '"One," she said, "two."'),
        ('"Quoted."', '"Also quoted."', '"Quoted."'),
        ('""', "Plain.", '""'),
    ],
)
def test_wrapping_is_taken_off(answer: str, reference: str, text: str) -> None:
    assert cleaned(answer, reference) == text


@given(st.text(max_size=60), st.text(max_size=60), st.floats(0, 1))
def test_edit_distance_agrees_with_the_plain_one_below_its_cutoff(
    one: str, other: str, cutoff: float
) -> None:
    plain = Levenshtein.normalized_distance(one.strip(), other.strip())
    assert edit_distance(one, other) == plain
    assert 0 <= plain <= 1
    if plain < cutoff:
        assert edit_distance(one, other, cutoff) == plain
    else:
        assert edit_distance(one, other, cutoff) >= cutoff


@given(st.text(max_size=200), st.text(max_size=200))
def test_shares_are_shares(one: str, other: str) -> None:
    assert 0 <= repeated_share(one) <= 1
    assert 0 <= other_script_share(one, other) <= 1
    assert other_script_share(one, one) <= 0.5


def test_loops_without_spaces_are_seen() -> None:
    assert repeated_share("今天天气很好我们去公园玩吧。" * 8) > 0.7
    assert repeated_share("Each of these words stands here only once, so no loop.") == 0


def test_a_band_that_leaves_out_the_reference_is_refused() -> None:
    with pytest.raises(ProbeError, match="it must hold 1"):
        Controls(min_ratio=1.2, max_ratio=2)
