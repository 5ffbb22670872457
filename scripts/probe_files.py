"""Probes for benchmarks and campaigns, from a file in either format."""

from __future__ import annotations

from pathlib import Path

from ldeval.errors import ProbeError
from ldeval.probes import ProbeSet, import_reference, read_probes


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
