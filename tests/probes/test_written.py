"""The derived kinds, on made-up probes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldeval.errors import ProbeError
from ldeval.probes import derive_offline_kinds, parse_probe
from ldeval.records import Probe

SENTENCES = [f"sentence number {n} has a few words of its own" for n in range(400)]


def made(trained: int, heldout: int) -> list[Probe]:
    return [
        parse_probe(
            {
                "probe_id": f"p{n}",
                "prompt": f"question {n}",
                "trained": n < trained,
                "responses": {"chosen": f"the answer to question {n} is plain"},
            }
        )
        for n in range(trained + heldout)
    ]


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 50))
def test_sources_never_are_the_probe_itself(
    trained: int, heldout: int, seed: int
) -> None:
    probes = derive_offline_kinds(made(trained, heldout), SENTENCES, seed=seed)
    split = {p.probe_id: p.trained for p in probes}
    for probe in probes:
        train = probe.responses["irrelevant_train"].source
        test = probe.responses["irrelevant_test"].source
        assert probe.probe_id not in (train, test)
        assert split[str(train)]
        assert not split[str(test)]


def test_the_same_seed_gives_the_same_probes() -> None:
    first = derive_offline_kinds(made(9, 5), SENTENCES, seed=3)
    again = derive_offline_kinds(made(9, 5), SENTENCES, seed=3)
    other = derive_offline_kinds(made(9, 5), SENTENCES, seed=4)
    assert first == again
    assert first != other


def test_a_split_of_one_is_refused() -> None:
    with pytest.raises(ProbeError, match="1 held-out probes"):
        derive_offline_kinds(made(5, 1), SENTENCES, seed=0)
