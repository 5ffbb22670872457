"""What a look at a probe set found: counts, distributions and confounds, no text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DISTANCE_BINS = 20
"""Bins of equal width that an edit distance in [0, 1] is counted in."""

Distribution = tuple[tuple[int, int], ...]
"""(value, how many) pairs, values ascending: exact, and small for any set."""


@dataclass(frozen=True)
class KindQuality:
    """One response kind over a whole set."""

    kind: str
    trained: int
    """Trained probes that have it."""
    heldout: int
    missing: Mapping[str, int]
    """Probes without it, by reason; "not given" where none is recorded."""
    lengths: Distribution
    """Token counts."""
    tokens_ratio: float
    """Its tokens over those of chosen, summed over the probes that have it; NaN where
    there are none."""
    distances: tuple[int, ...]
    """Edit distances to the probe's chosen over the longer length, counted in
    ``DISTANCE_BINS`` bins; empty for chosen itself."""
    mean_distance: float
    """Their mean; NaN where there are none."""
    same_first_token: int
    """Responses whose first token is that of the probe's chosen."""
    distinct: int
    """Texts that differ from one another within a split, over both splits."""

    @property
    def count(self) -> int:
        """Probes that have it."""
        return self.trained + self.heldout


@dataclass(frozen=True)
class Finding:
    """One kind of fault, and where it stands."""

    code: str
    """Its name; what it means, ``report`` words."""
    count: int
    """Responses, or probes, that have it."""
    by_kind: Mapping[str, int]
    """The same, by kind; empty where it is about prompts."""
    examples: tuple[str, ...]
    """The first of them, as ``probe_id kind``."""


@dataclass(frozen=True)
class QualityReport:
    """A probe set, looked at."""

    path: str
    format: str
    """``probes`` or ``reference`` (the paper authors' files)."""
    content_hash: str
    """As of :class:`~ldeval.probes.ProbeSet`; empty for a foreign format."""
    trained: int
    heldout: int
    unit: str
    """What lengths are counted in."""
    kinds: tuple[KindQuality, ...]
    """In the order of the kind table; only kinds that are there or recorded missing."""
    findings: tuple[Finding, ...]
    """In order of weight; empty for a clean set."""
    skipped_fields: int
    """Fields of a foreign format that ldeval does not score."""
