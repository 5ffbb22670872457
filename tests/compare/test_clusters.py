"""Which rows are independent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldeval.compare.clusters import Term, cluster_labels, estimate, estimate_between
from ldeval.compare.stats import Bootstrap


def term(prompts, texts, numerators=None, **more):
    rows = len(prompts)
    values = np.ones(rows) if numerators is None else np.asarray(numerators, float)
    texts = {kind: np.array(column, dtype=str) for kind, column in texts.items()}
    return Term(
        np.array(list(prompts), dtype=str), texts, values, np.ones(rows), **more
    )


def partition(terms):
    """The clusters as sets of prompts."""
    labels, clusters = cluster_labels(terms)
    found = [set() for _ in range(clusters)]
    for one, column in zip(terms, labels, strict=True):
        for prompt, label in zip(one.prompts.tolist(), column.tolist(), strict=True):
            found[label].add(prompt)
    return sorted(map(sorted, found))


def test_prompts_whose_texts_differ_are_clusters_of_their_own():
    assert partition([term("abc", {"chosen": ["1", "2", "3"]})]) == [
        ["a"],
        ["b"],
        ["c"],
    ]


def test_prompts_that_share_a_text_share_a_cluster():
    texts = {"irrelevant_train": ["1", "2", "1"]}
    assert partition([term("abc", texts)]) == [["a", "c"], ["b"]]


def test_sharing_runs_through_chains_of_prompts_and_over_kinds():
    first = term("abc", {"chosen": ["1", "1", "2"]})
    second = term("bcd", {"rejected": ["3", "3", "4"]})
    assert partition([first, second]) == [["a", "b", "c"], ["d"]]


def test_equal_texts_of_different_kinds_join_nothing():
    first = term("ab", {"chosen": ["1", "2"]})
    second = term("ab", {"rejected": ["2", "1"]})
    assert partition([first, second]) == [["a"], ["b"]]


def test_a_text_that_one_estimate_does_not_use_joins_nothing_in_it():
    rows = term("ab", {"chosen": ["1", "2"]})
    other = term("ab", {"rejected": ["3", "3"]})
    assert partition([rows]) == [["a"], ["b"]]
    assert partition([rows, other]) == [["a", "b"]]


def test_repeated_texts_widen_the_standard_error():
    values = np.repeat(np.random.default_rng(0).normal(size=20), 2)
    prompts = [f"p{i:02d}" for i in range(40)]
    apart = term(prompts, {"irrelevant_train": prompts}, values)
    shared = term(prompts, {"irrelevant_train": np.repeat(prompts[:20], 2)}, values)
    options = {"unit": "nats", "bootstrap": Bootstrap(0, 199)}
    one, two = estimate([apart], **options), estimate([shared], **options)
    assert one.value == pytest.approx(two.value)
    assert (one.clusters, two.clusters) == (40, 20)
    assert two.se / one.se == pytest.approx(math.sqrt(2 * 39 / 38))


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_neither_row_order_nor_prompt_names_change_an_estimate(seed):
    rng = np.random.default_rng(seed)
    prompts = np.array([f"p{i:02d}" for i in range(20)])
    texts = rng.integers(0, 15, 20).astype(str)
    values = rng.normal(size=20)
    names = rng.permutation([f"q{i:02d}" for i in range(20)])
    order = rng.permutation(20)
    options = {"unit": "nats", "bootstrap": Bootstrap(0, 199)}
    one = estimate([term(prompts, {"initial": texts}, values)], **options)
    other = estimate(
        [term(names[order], {"initial": texts[order]}, values[order])], **options
    )
    assert (other.clusters, other.n) == (one.clusters, one.n)
    assert [other.value, other.se, other.low, other.high] == pytest.approx(
        [one.value, one.se, one.low, one.high]
    )


def test_a_term_without_rows_makes_the_estimate_undefined_with_its_reason():
    empty = term([], {"chosen": []}, missing="chosen was not scored")
    full = term("ab", {"chosen": ["1", "2"]})
    found = estimate([full, empty], unit="nats", bootstrap=Bootstrap(0, 199))
    assert math.isnan(found.value)
    assert found.reason == "chosen was not scored"


def test_an_estimate_between_bounds_covers_every_value_between_them():
    rng = np.random.default_rng(0)
    prompts = [f"p{i:02d}" for i in range(30)]
    low = rng.normal(size=30)
    high = low + rng.uniform(0, 1, 30)
    options = {"unit": "nats", "bootstrap": Bootstrap(0, 199)}
    texts = {"chosen": prompts}
    lower, upper = (term(prompts, texts, side) for side in (low, high))
    joint = estimate_between([lower], [upper], **options)
    for share in (0.0, 0.3, 1.0):
        inside = term(prompts, texts, low + share * (high - low))
        value = estimate([inside], **options).value
        assert joint.low <= value <= joint.high
