"""Typed statistics of how checkpoints differ: no files, no printing, no rounding.

| module | holds |
|---|---|
| ``stats`` | the bootstrap-t, ratios of cluster sums, slopes, states |
| ``clusters`` | which rows are independent; estimates from rows |
| ``pairing`` | which tables may be compared, which rows belong together |
| ``delta`` | changes by kind, margins, curves |
| ``flow`` | where probability mass went, exactly or within bounds |
| ``influence`` | how kinds move together |
| ``evidence`` | end values of a run at the verdict level |
| ``thresholds``, ``logic`` | the decision table's numbers and its three values |
| ``provenance``, ``repetition`` | the conditions of two single verdicts |
| ``squeeze`` | the decision table |
| ``run`` | a whole run, put together |
"""

from ldeval.compare.delta import curves, kind_changes, margins
from ldeval.compare.flow import bin_mass, flows, reference_bins
from ldeval.compare.influence import influence
from ldeval.compare.pairing import PairedRows, check_comparable, pair_rows
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
    "PairedRows",
    "Thresholds",
    "bin_mass",
    "check_comparable",
    "compare_run",
    "curves",
    "decide",
    "flows",
    "influence",
    "kind_changes",
    "margins",
    "pair_rows",
    "ratio_estimate",
    "reference_bins",
    "slope_estimate",
    "state",
]
