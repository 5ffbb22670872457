"""Every type that is stored or crosses rooms, and the one table of response kinds.

They stand apart from the code that makes and reads them so that scoring and analysis
meet only here and on disk. Everything is frozen; log-probabilities are natural
(nats, temperature 1); a change Δ is always *after − before*. What a backend could not
give is ``None`` (absent), never zero; what is undefined is NaN with a reason.
"""

from __future__ import annotations

from ldeval.records.comparison import (
    QUANTILES,
    Comparison,
    Conjunct,
    CurvePoint,
    Flow,
    InfluenceCell,
    KindChange,
    Margin,
    PairComparison,
    Stratum,
    Verdict,
)
from ldeval.records.estimate import Estimate
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
from ldeval.records.levels import LEVELS_VERSION, LevelColumn, LevelRun
from ldeval.records.measures import (
    Claim,
    CrossInfluence,
    LawTest,
    Location,
    Pull,
    RicherBin,
    RicherCurve,
    SimilarityPoint,
    SpillOver,
    State,
    Trajectory,
    Truth,
)
from ldeval.records.probes import (
    Checkpoint,
    Message,
    Probe,
    Response,
)
from ldeval.records.scores import (
    SCHEMA_VERSION,
    TOP_K,
    Excluded,
    FloatArray,
    IntArray,
    Manifest,
    ScoreSource,
    ScoreTable,
    Span,
    TokenScores,
)
from ldeval.records.versus import Decay, Scale, Versus, VersusPoint

__all__ = [
    "KINDS",
    "KIND_BY_NAME",
    "KIND_GROUPS",
    "KIND_NAMES",
    "LEVELS_VERSION",
    "OBJECTIVES",
    "QUANTILES",
    "REFERENCE_FIELDS",
    "REGIONS",
    "SCHEMA_VERSION",
    "TOP_K",
    "VERDICT_NAMES",
    "Checkpoint",
    "Claim",
    "Comparison",
    "Conjunct",
    "CrossInfluence",
    "CurvePoint",
    "Decay",
    "Estimate",
    "Excluded",
    "FloatArray",
    "Flow",
    "InfluenceCell",
    "IntArray",
    "KindChange",
    "KindInfo",
    "LawTest",
    "LevelColumn",
    "LevelRun",
    "Location",
    "Manifest",
    "Margin",
    "Message",
    "PairComparison",
    "Probe",
    "Pull",
    "Region",
    "Response",
    "RicherBin",
    "RicherCurve",
    "Scale",
    "ScoreSource",
    "ScoreTable",
    "SimilarityPoint",
    "Span",
    "SpillOver",
    "Split",
    "State",
    "Stratum",
    "TokenScores",
    "Trajectory",
    "Truth",
    "Verdict",
    "Versus",
    "VersusPoint",
    "split_name",
    "task_name",
]
