"""Permutations, derangements and sentence joins."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldeval.probes.perturb import SentencePool, derangement, permute_words

word_lists = st.lists(
    st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=8),
    min_size=0,
    max_size=30,
)


@given(word_lists, st.integers(0, 1000))
def test_a_permutation_keeps_the_words_and_changes_their_order(
    words: list[str], seed: int
) -> None:
    permuted = permute_words(" ".join(words), random.Random(seed))
    if len(set(words)) < 2:
        assert permuted is None
    else:
        assert permuted is not None
        assert sorted(permuted.split()) == sorted(words)
        assert permuted.split() != words


def test_a_permutation_keeps_leading_whitespace() -> None:
    permuted = permute_words(" one two three", random.Random(0))
    assert permuted is not None
    assert permuted.startswith(" ")
    assert not permuted.startswith("  ")


@given(st.integers(2, 200), st.integers(0, 1000))
def test_a_derangement_has_each_index_once_and_none_at_its_own_place(
    size: int, seed: int
) -> None:
    order = derangement(size, random.Random(seed))
    assert sorted(order) == list(range(size))
    assert all(place != item for place, item in enumerate(order))


def test_one_item_cannot_be_deranged() -> None:
    with pytest.raises(ValueError, match="at least two"):
        derangement(1, random.Random(0))


@given(st.lists(st.integers(5, 60), min_size=1, max_size=12), st.integers(0, 99))
def test_sentences_are_used_once_and_come_near_the_wanted_length(
    wanted: list[int], seed: int
) -> None:
    lengths = [6 + n % 19 for n in range(300)]
    sentences = [" ".join([f"s{n}"] * length) for n, length in enumerate(lengths)]
    pool = SentencePool(sentences, random.Random(seed))
    used: list[str] = []
    for words in wanted:
        text = pool.take(words)
        assert abs(len(text.split()) - words) <= 6
        used += list(dict.fromkeys(text.split()))
    assert len(used) == len(set(used))


def test_an_empty_pool_says_so() -> None:
    pool = SentencePool(["one two three"], random.Random(0))
    pool.take(3)
    with pytest.raises(ValueError, match="run out"):
        pool.take(3)
