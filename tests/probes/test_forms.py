"""Surface form, lengths and the rule for format variants."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldeval.errors import ProbeError
from ldeval.probes.lengths import LengthBand, match_length
from ldeval.probes.perturb import FUNCTION_WORDS, exchange_content_words
from ldeval.probes.surface import (
    END_MARKERS,
    leading_space,
    matched_form,
    until_next_turn,
    without_ending,
)
from ldeval.probes.tokens import token_counter
from tests.tiny import tiny_tokenizer

pieces = st.lists(
    st.sampled_from(["a", "Bc", " ", "\n", "\u2003", *END_MARKERS]), max_size=12
).map("".join)


@given(pieces)
def test_an_ending_goes_whole_and_once(text: str) -> None:
    bare = without_ending(text)
    assert text.startswith(bare)
    assert without_ending(bare) == bare
    assert bare == bare.rstrip()
    assert not any(bare.endswith(marker.strip()) for marker in END_MARKERS)


@given(pieces, st.sampled_from(["", " ", "\n\n"]))
def test_forms_are_alike_after_matching(text: str, lead: str) -> None:
    formed = matched_form(text, lead)
    if formed:
        assert leading_space(formed) == lead
        assert matched_form(formed, lead) == formed
    else:
        assert not without_ending(text).strip()


@pytest.mark.parametrize("unit", [" ", "</s>", " x", "\n\nHuman:"])
def test_a_megabyte_of_endings_is_no_trap(unit: str) -> None:
    """Would not come back within hours if the time were quadratic."""
    assert without_ending(unit * 250_000 + "!").endswith("!")
    assert without_ending("!" + unit * 250_000).startswith("!")


def test_a_sample_ends_where_the_model_speaks_for_another() -> None:
    assert until_next_turn(" Yes.\n\nHuman: More?\n\nAssistant: No") == " Yes."
    assert until_next_turn(" Yes.") == " Yes."


COUNT = token_counter().count


@given(st.text(max_size=300), st.integers(1, 40), st.floats(1.01, 3))
def test_a_matched_text_is_a_beginning_within_its_band(
    text: str, target: int, ratio: float
) -> None:
    band = LengthBand(ratio)
    matched = match_length(text, target, band, COUNT)
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    fits = [
        end
        for end in (len(text), *ends)
        if band.low(target) <= COUNT(text[:end]) <= band.high(target)
    ]
    assert (matched is not None) == bool(fits)
    if matched is not None:
        assert text.startswith(matched)
        assert len(matched) in fits


def test_a_cut_prefers_the_end_of_a_sentence() -> None:
    text = "One two three four. Five six seven eight nine ten."
    assert match_length(text, 6, LengthBand(1.25), COUNT) == "One two three four."
    assert match_length("short", 6, LengthBand(1.25), COUNT) is None


def test_a_tokenizer_that_was_saved_to_cut_and_fill_up_counts_every_token(
    tmp_path: Path,
) -> None:
    tokenizer = tiny_tokenizer()
    whole = len(tokenizer("rice " * 50, add_special_tokens=False)["input_ids"])
    tokenizer("rice", padding="max_length", max_length=8, truncation=True)
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    counter = token_counter(tmp_path)
    assert counter.count("rice " * 50) == whole > 8
    assert counter.count("a") == 1


def test_a_tokenizer_file_counts_as_the_model_does(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    counter = token_counter(tmp_path)
    for text in ("How do I cook rice?", " a", "é😀", ""):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert counter.count(text) == len(ids)
    assert " rice and beans".startswith(counter.first(" rice and beans"))
    with pytest.raises(ProbeError, match="is not there"):
        token_counter(tmp_path / "no")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ProbeError, match="not a tokenizer"):
        token_counter(tmp_path)


TEXT = "The baker quickly mixed 3 large bowls of flour, and then she rested."
DONOR = "Our planets slowly turned around some distant stars while comets passed."


@given(st.integers(0, 200))
def test_the_rule_keeps_the_form_and_changes_the_content(seed: int) -> None:
    made = exchange_content_words(TEXT, DONOR, random.Random(seed))
    assert made is not None
    assert made == exchange_content_words(TEXT, DONOR, random.Random(seed))
    old, new = TEXT.split(), made.split()
    assert len(old) == len(new)
    assert [w[0].isupper() for w in old] == [w[0].isupper() for w in new]
    for before, after in zip(old, new, strict=True):
        assert (before in FUNCTION_WORDS) <= (before == after)
    changed = sum(a != b for a, b in zip(old, new, strict=True))
    assert changed >= 5


def test_the_rule_gives_up_where_there_is_nothing_to_exchange() -> None:
    assert (
        exchange_content_words("And then it was so.", DONOR, random.Random(0)) is None
    )
    assert exchange_content_words(TEXT, "", random.Random(0)) is None
