"""Add the kinds that need no model to a hand-written probe set held in memory.

The derived kinds are controls: ``irrelevant_train`` against ``irrelevant_test`` shows
what training on *another* prompt's answer does here, ``permuted`` and ``random_words``
what happens to word strings that no grammar allows. Each derived response keeps the id
of the probe its words came from.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ldeval.errors import ProbeError
from ldeval.probes.perturb import SentencePool, derangement, permute_words
from ldeval.records import Probe, Response


def derive_offline_kinds(
    probes: Sequence[Probe], sentences: Sequence[str], *, seed: int
) -> list[Probe]:
    """Add irrelevant_train, irrelevant_test, random_sentence, permuted, random_words.

    - irrelevant_train: the chosen of another *trained* probe, each text once in each
      split (a derangement among the trained probes; drawing with replacement would
      repeat texts and make standard errors 1.3 times too small).
    - irrelevant_test: the chosen of a held-out probe, never the probe's own; where
      there are fewer held-out than trained probes, each text is used equally often,
      and the repeats share a cluster in every statistic.
    - random_words: the words of *this probe's* irrelevant_test, shuffled, so that the
      two differ in order alone.

    Args:
        probes: with chosen responses, at least two in each split.
        sentences: a pool of unconnected sentences; each is used once.
        seed: everything random follows from it.

    Raises:
        ProbeError: when a split has fewer than two probes.
    """
    trained = [probe for probe in probes if probe.trained]
    heldout = [probe for probe in probes if not probe.trained]
    for name, group in (("trained", trained), ("held-out", heldout)):
        if len(group) < 2:
            raise ProbeError(
                f"{len(group)} {name} probes; the irrelevant kinds need at least two.",
                remedy="Add probes, or set 'trained' on some of them.",
            )
    sources = {
        "irrelevant_train": {
            **_deranged(trained, seed),
            **_dealt(heldout, trained, seed + 1),
        },
        "irrelevant_test": {
            **_dealt(trained, heldout, seed + 2),
            **_deranged(heldout, seed + 3),
        },
    }
    pool = SentencePool(sentences, random.Random(seed + 4))
    rng = random.Random(seed + 5)
    return [_derive(probe, sources, pool, rng) for probe in probes]


def _deranged(probes: Sequence[Probe], seed: int) -> dict[str, Probe]:
    order = derangement(len(probes), random.Random(seed))
    return {p.probe_id: probes[i] for p, i in zip(probes, order, strict=True)}


def _dealt(to: Sequence[Probe], source: Sequence[Probe], seed: int) -> dict[str, Probe]:
    """Deal the sources out in rounds, each round in a new order."""
    rng = random.Random(seed)
    deck: list[Probe] = []
    while len(deck) < len(to):
        deck.extend(rng.sample(list(source), len(source)))
    return {p.probe_id: s for p, s in zip(to, deck, strict=False)}


def _derive(
    probe: Probe,
    sources: Mapping[str, Mapping[str, Probe]],
    pool: SentencePool,
    rng: random.Random,
) -> Probe:
    chosen = probe.responses["chosen"].text
    added: dict[str, Response] = {}
    for kind, source_of in sources.items():
        source = source_of[probe.probe_id]
        text = source.responses["chosen"].text
        added[kind] = Response(kind, text, source.probe_id)
    sentence = pool.take(len(chosen.split()))
    added["random_sentence"] = Response("random_sentence", sentence, "written")
    irrelevant = added["irrelevant_test"]
    for kind, text, origin in (
        ("permuted", chosen, probe.probe_id),
        ("random_words", irrelevant.text, irrelevant.source),
    ):
        permuted = permute_words(text, rng)
        if permuted is not None:
            added[kind] = Response(kind, permuted, origin)
    return replace(probe, responses={**probe.responses, **added})


def read_sentences(path: Path) -> list[str]:
    """One sentence a line; empty lines are skipped.

    Raises:
        ProbeError: when the file cannot be read as UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeError(
            f"cannot be read ({error}).",
            path=path,
            remedy="Give a text file in UTF-8, one sentence a line.",
        ) from error
    return [line.strip() for line in lines if line.strip()]
