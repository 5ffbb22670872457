"""Tables from scores, and the reference columns in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldeval.probes import ProbeSet, text_hash
from ldeval.records import KIND_NAMES, ScoreTable, TokenScores
from ldeval.scoring.batch import ScoreRequest, checked, lookup, with_argmax
from ldeval.scoring.score import score_probes
from ldeval.scoring.tables import (
    as_reference,
    attach_reference,
    build_table,
    reference_ids,
)
from tests.scoring.conftest import open_hf


@pytest.fixture(scope="module")
def table(tiny: Path, few_probes: ProbeSet) -> ScoreTable:
    scored = score_probes(open_hf(tiny), few_probes.probes[::-1], progress=False)
    return build_table(
        few_probes.probes,
        scored,
        run="r",
        step=3,
        checkpoint="c",
        weights_hash="w",
        probe_set_hash=few_probes.content_hash,
    )


def test_rows_are_in_probe_order_and_kinds_in_table_order(
    table: ScoreTable, few_probes: ProbeSet
) -> None:
    expected = [
        (probe.probe_id, kind)
        for probe in few_probes
        for kind in KIND_NAMES
        if kind in probe.responses and kind != "initial"
    ]
    assert list(table.index()) == expected
    texts = {
        (probe.probe_id, kind): response.text
        for probe in few_probes
        for kind, response in probe.responses.items()
    }
    for row, key in enumerate(expected):
        assert table.text_hashes[row] == text_hash(texts[key])
        own = table.row(row)
        assert own.logprobs.sum(dtype=float) == pytest.approx(table.logprob_sums[row])
    assert table.manifest.n_tokens == len(table.tokens)
    assert {item.kind for item in table.manifest.excluded} == {"initial"}


def test_the_first_table_is_its_own_reference(table: ScoreTable) -> None:
    first = as_reference(table)
    assert first.tokens.ref_ids is table.tokens.top_ids
    assert first.manifest.reference_step == 3


def test_reference_columns_come_from_the_stored_top_tokens_or_are_unknown(
    table: ScoreTable,
) -> None:
    rng = np.random.default_rng(0)
    reference = {
        key: rng.integers(0, 512, ids.shape)
        for key, ids in reference_ids(table).items()
    }
    attached = attach_reference(table, reference, 0)
    assert attached.manifest.reference_step == 0
    tokens = attached.tokens
    assert tokens.ref_ids is not None
    assert tokens.ref_logprobs is not None
    assert tokens.top_ids is not None
    assert tokens.top_logprobs is not None
    known = np.isfinite(tokens.ref_logprobs)
    assert 0 < known.sum() < known.size
    for row, column in zip(*np.nonzero(known), strict=True):
        wanted = tokens.ref_ids[row, column]
        stored = dict(zip(tokens.top_ids[row], tokens.top_logprobs[row], strict=True))
        stored.setdefault(tokens.token_ids[row], tokens.logprobs[row])
        assert tokens.ref_logprobs[row, column] == stored[wanted]
    for row, column in zip(*np.nonzero(~known), strict=True):
        wanted = tokens.ref_ids[row, column]
        assert wanted not in tokens.top_ids[row]
        assert wanted != tokens.token_ids[row]


def test_without_a_reference_for_every_response_there_are_no_columns(
    table: ScoreTable,
) -> None:
    reference = reference_ids(table)
    reference.pop(next(iter(reference)))
    assert attach_reference(table, reference, 0).tokens.ref_ids is None


@given(st.integers(0, 1000))
def test_lookup_agrees_with_a_dictionary(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(12)[:4] for _ in range(3)])
    logprobs = rng.random((3, 4)).astype(np.float32)
    label, own = rng.integers(0, 12, 3), rng.random(3).astype(np.float32)
    wanted = rng.integers(0, 12, (3, 5))
    found = lookup(wanted, ids, logprobs, label, own)
    for row in range(3):
        stored = dict(zip(ids[row], logprobs[row], strict=True))
        stored[label[row]] = own[row]
        for column in range(5):
            value = stored.get(wanted[row, column], np.float32(np.nan))
            np.testing.assert_equal(found[row, column], value)


def test_the_argmax_is_the_lowest_id_on_a_tie() -> None:
    scores = with_argmax(
        token_ids=np.array([1, 1]),
        logprobs=np.array([-1.0, -1.0], np.float32),
        top_ids=np.array([[7, 3, 5], [2, 9, 1]]),
        top_logprobs=np.array([[-0.5, -0.5, -0.9], [-0.1, -0.2, -0.3]], np.float32),
    )
    assert scores.argmax_ids is not None
    assert scores.argmax_ids.tolist() == [3, 2]


@pytest.mark.parametrize(
    ("ids", "logprobs", "words"),
    [
        ([5, 6], [-1.0, np.nan], "log-probability nan"),
        ([5, 6], [-1.0, 0.5], "log-probability 0.5"),
        ([5, 7], [-1.0, -1.0], "scored other tokens"),
        ([5], [-1.0], "1 instead of 2"),
    ],
)
def test_a_score_that_cannot_be_is_refused_naming_the_response(
    ids: list[int], logprobs: list[float], words: str
) -> None:
    from ldeval.errors import ScoringError

    asked = ScoreRequest("p", "chosen", (4, 5, 6), 1, 3)
    given_scores = TokenScores(np.array(ids), np.array(logprobs, np.float32))
    with pytest.raises(ScoringError, match=words) as caught:
        checked(asked, given_scores)
    assert "probe 'p', response 'chosen'" in str(caught.value)


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="ranks holds 1 rows for 2 tokens"):
        TokenScores(np.zeros(2, int), np.zeros(2), ranks=np.zeros(1, int))


def test_half_a_column_is_no_column() -> None:
    full = TokenScores(np.zeros(2, int), np.zeros(2), ranks=np.ones(2, int))
    bare = TokenScores(np.zeros(1, int), np.zeros(1))
    joined = TokenScores.concatenate([full, bare])
    assert len(joined) == 3
    assert joined.ranks is None
    filled = replace(bare, ranks=np.ones(1, int))
    assert TokenScores.concatenate([full, filled]).ranks is not None
