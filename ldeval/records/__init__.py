"""Every type that is stored or crosses rooms, and the one table of response kinds.

They stand apart from the code that makes and reads them so that scoring and analysis
meet only here and on disk. Everything is frozen; log-probabilities are natural
(nats, temperature 1); a change Δ is always *after − before*. What a backend could not
give is ``None`` (absent), never zero; what is undefined is NaN with a reason.
"""

from __future__ import annotations

from ldeval.records.comparison import (
    Comparison,
    Conjunct,
    CurvePoint,
    Estimate,
    Flow,
    InfluenceCell,
    KindChange,
    Margin,
    PairComparison,
    State,
    Truth,
    Verdict,
)
from ldeval.records.kinds import (
    KIND_BY_NAME,
    KIND_GROUPS,
    KIND_NAMES,
    KINDS,
    OBJECTIVES,
    REFERENCE_FIELDS,
    REGIONS,
    VERDICT_NAMES,
    KindInfo,
    Region,
    Split,
    split_name,
    task_name,
)
from ldeval.records.probes import (
    Checkpoint,
    Message,
    Probe,
    Response,
)
from ldeval.records.quality import (
    DISTANCE_BINS,
    Distribution,
    Finding,
    KindQuality,
    QualityReport,
)
from ldeval.records.scores import (
    SCHEMA_VERSION,
    TOP_K,
    Excluded,
    FloatArray,
    IntArray,
    Manifest,
    NoiseFloor,
    ScoreTable,
    Span,
    TokenScores,
)

__all__ = [
    "DISTANCE_BINS",
    "KINDS",
    "KIND_BY_NAME",
    "KIND_GROUPS",
    "KIND_NAMES",
    "OBJECTIVES",
    "REFERENCE_FIELDS",
    "REGIONS",
    "SCHEMA_VERSION",
    "TOP_K",
    "VERDICT_NAMES",
    "Checkpoint",
    "Comparison",
    "Conjunct",
    "CurvePoint",
    "Distribution",
    "Estimate",
    "Excluded",
    "Finding",
    "FloatArray",
    "Flow",
    "InfluenceCell",
    "IntArray",
    "KindChange",
    "KindInfo",
    "KindQuality",
    "Manifest",
    "Margin",
    "Message",
    "NoiseFloor",
    "PairComparison",
    "Probe",
    "QualityReport",
    "Region",
    "Response",
    "ScoreTable",
    "Span",
    "Split",
    "State",
    "TokenScores",
    "Truth",
    "Verdict",
    "split_name",
    "task_name",
]
