"""The bundled probe set keeps what its README promises."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from pathlib import Path

import pytest
from rapidfuzz.distance import Levenshtein

from ldeval.bundled import bundled_probes
from ldeval.checkpoints import weights_hash
from ldeval.probes import ProbeSet, read_probes
from ldeval.records import KIND_BY_NAME, KIND_NAMES

WRITTEN = (
    "chosen",
    "chosen_semantic",
    "chosen_format",
    "rejected",
    "rejected_semantic",
    "rejected_format",
    "random_sentence",
)


@pytest.fixture(scope="module")
def probes() -> ProbeSet:
    return read_probes(bundled_probes())


def test_initial_was_sampled_from_the_demo_model(
    probes: ProbeSet, demo_model: Path
) -> None:
    digest = weights_hash(demo_model)
    assert {p.meta["initial_model"]["weights"] for p in probes} == {digest}


def test_texts_have_15_to_120_tokens(probes: ProbeSet, demo_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(demo_model))
    for probe in probes:
        for kind in WRITTEN:
            length = len(tokenizer(probe.responses[kind].text)["input_ids"])
            assert 15 <= length <= 120, (probe.probe_id, kind, length)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def test_there_are_enough_probes_and_every_one_has_every_kind(
    probes: ProbeSet,
) -> None:
    assert sum(p.trained for p in probes) >= 64
    assert sum(not p.trained for p in probes) >= 32
    for probe in probes:
        assert tuple(probe.responses) == KIND_NAMES, probe.probe_id
        assert set(probe.meta["initial_model"]) == {"weights", "tokenizer"}


def test_every_response_says_where_it_came_from(probes: ProbeSet) -> None:
    ids = {probe.probe_id for probe in probes}
    for probe in probes:
        for kind, response in probe.responses.items():
            assert response.source in ids | {"written", "sampled"}, kind


def test_no_two_written_texts_share_eight_words(probes: ProbeSet) -> None:
    owners: dict[tuple[str, ...], set[tuple[str, str]]] = defaultdict(set)
    for probe in probes:
        for kind in WRITTEN:
            text = words(probe.responses[kind].text)
            source = KIND_BY_NAME[kind].rephrase_of or kind
            for start in range(len(text) - 7):
                run = tuple(text[start : start + 8])
                owners[run].add((probe.probe_id, source))
    shared = {run: who for run, who in owners.items() if len(who) > 1}
    assert not shared


@pytest.mark.parametrize("kind", ["chosen", "rejected"])
def test_semantic_rephrases_use_other_words(probes: ProbeSet, kind: str) -> None:
    distances = [
        Levenshtein.normalized_distance(
            probe.responses[kind].text, probe.responses[f"{kind}_semantic"].text
        )
        for probe in probes
    ]
    assert statistics.median(distances) >= 0.4


def test_chosen_and_rejected_are_of_like_length(probes: ProbeSet) -> None:
    ratios = [
        len(words(p.responses["chosen"].text))
        / len(words(p.responses["rejected"].text))
        for p in probes
    ]
    inside = sum(0.7 <= ratio <= 1.4 for ratio in ratios)
    assert inside >= 0.9 * len(ratios)


def test_irrelevant_train_uses_each_trained_text_at_most_once_a_split(
    probes: ProbeSet,
) -> None:
    chosen = {probe.probe_id: probe.responses["chosen"].text for probe in probes}
    trained = {probe.probe_id for probe in probes if probe.trained}
    for split in (True, False):
        sources = []
        for probe in probes:
            if probe.trained is split:
                response = probe.responses["irrelevant_train"]
                assert response.source in trained
                assert response.source != probe.probe_id
                assert response.text == chosen[response.source]
                sources.append(response.source)
        assert len(sources) == len(set(sources))


def test_irrelevant_test_comes_from_held_out_prompts_evenly(probes: ProbeSet) -> None:
    heldout = {probe.probe_id for probe in probes if not probe.trained}
    uses: dict[str, int] = defaultdict(int)
    for probe in probes:
        response = probe.responses["irrelevant_test"]
        assert response.source in heldout
        assert response.source != probe.probe_id
        if probe.trained:
            uses[str(response.source)] += 1
    assert max(uses.values()) - min(uses.values()) <= 1


def test_random_words_are_the_words_of_this_probes_irrelevant_test(
    probes: ProbeSet,
) -> None:
    for probe in probes:
        ordered = probe.responses["irrelevant_test"].text.split()
        shuffled = probe.responses["random_words"].text.split()
        assert sorted(ordered) == sorted(shuffled)
        assert ordered != shuffled


def test_permuted_are_the_words_of_chosen(probes: ProbeSet) -> None:
    for probe in probes:
        ordered = probe.responses["chosen"].text.split()
        shuffled = probe.responses["permuted"].text.split()
        assert sorted(ordered) == sorted(shuffled)
        assert ordered != shuffled
