"""Typed statistics of how checkpoints differ: no files, no printing, no rounding.

| module | holds |
|---|---|
| ``stats``, ``ranks`` | the bootstrap-t, ratios of cluster sums, slopes, ranks |
| ``significance``, ``families`` | permutation tests; which are adjusted together |
| ``fieller`` | intervals of ratios whose denominator may be near zero |
| ``clusters`` | which rows are independent; estimates from rows |
| ``pairing`` | which tables may be compared, which rows belong together |
| ``stored`` | probabilities from what a table stores, exact or bounded |
| ``reference`` | what the first checkpoint fixes: bins, shared tokens, likeness |
| ``digest``, ``chunk``, ``positions`` | one checkpoint reduced to sums a response |
| ``delta`` | changes by kind, margins, curves |
| ``flow`` | where probability mass went, exactly or within bounds |
| ``laws`` | squeeze or temperature; do the rich get richer |
| ``influence``, ``cross``, ``memory`` | how responses moved one another |
| ``series``, ``shape``, ``trajectory`` | rise, fall, slope and end of a path |
| ``evidence`` | end values of a run at the verdict level |
| ``thresholds``, ``logic`` | the decision table's numbers and its three values |
| ``provenance``, ``repetition`` | the conditions of two single verdicts |
| ``squeeze``, ``claims`` | the decision table; the paper's claims |
| ``run`` | a whole run, put together |
| ``versus``, ``versus_claims`` | one run against another |
| ``levels``, ``imported`` | what imported means can say |
"""

from ldeval.compare.delta import curves, kind_changes, margins
from ldeval.compare.digest import Digest, digest, digests
from ldeval.compare.flow import flows
from ldeval.compare.influence import influence
from ldeval.compare.pairing import PairedRows, check_comparable, pair_rows
from ldeval.compare.reference import Reference, build_reference
from ldeval.compare.run import compare_run
from ldeval.compare.squeeze import decide
from ldeval.compare.stats import (
    Bootstrap,
    ratio_estimate,
    slope_estimate,
    state,
)
from ldeval.compare.thresholds import Thresholds

__all__ = [
    "Bootstrap",
    "Digest",
    "PairedRows",
    "Reference",
    "Thresholds",
    "build_reference",
    "check_comparable",
    "compare_run",
    "curves",
    "decide",
    "digest",
    "digests",
    "flows",
    "influence",
    "kind_changes",
    "margins",
    "pair_rows",
    "ratio_estimate",
    "slope_estimate",
    "state",
]
