"""Probes for benchmarks and campaigns, from a file in either format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ldeval.errors import ProbeError
from ldeval.probes import ProbeSet, import_reference, read_probes
from ldeval.records import Probe


def load(path: Path, limit: int, *, full: bool = False) -> ProbeSet:
    """The first probes of a file: a probe set, or the paper authors' format.

    Args:
        limit: how many.
        full: only probes with all twelve kinds.
    """
    try:
        probes = read_probes(path)
    except ProbeError:
        probes, _ = import_reference(path)
    kept = [p for p in probes if not full or len(p.responses) == 12]
    return ProbeSet(tuple(kept[:limit]))


def first_words(probe: Probe, words: int | None) -> Probe:
    """The probe with only the first words of each response; None keeps all."""
    if words is None:
        return probe
    responses = {
        kind: replace(r, text=" ".join(r.text.split()[:words]))
        for kind, r in probe.responses.items()
    }
    return replace(probe, responses=responses)
