"""A sample of the coverage campaign: intervals cover, null runs stay silent.

The whole is ``scripts/campaign_coverage.py``; the bounds here leave room for the
chance of fewer repetitions.
"""

from __future__ import annotations

import pytest

from scripts import campaign_coverage as campaign

REPETITIONS = 300
SLACK = 0.04
"""Three standard errors of a share of 0.95 over so many repetitions."""


@pytest.mark.parametrize("size", campaign.SIZES)
@pytest.mark.parametrize("statistic", campaign.STATISTICS)
def test_intervals_of_normal_changes_cover(size: int, statistic: str) -> None:
    found = campaign.coverage(
        campaign.made_population("normal"), size, statistic, REPETITIONS, replicates=499
    )
    assert campaign.LOW - SLACK <= found <= campaign.HIGH + SLACK


@pytest.mark.parametrize("statistic", campaign.STATISTICS)
def test_intervals_of_heavy_tailed_changes_cover(statistic: str) -> None:
    found = campaign.coverage(
        campaign.made_population("t3"), 64, statistic, REPETITIONS, replicates=499
    )
    assert campaign.LOW - SLACK <= found <= campaign.HIGH + SLACK


def test_null_runs_hold_no_verdict() -> None:
    held = [campaign.null_run(seed, probes=32) for seed in range(12)]
    assert sum(map(bool, held)) <= 1


def test_an_injected_squeeze_is_found_and_sharpening_is_not_taken_for_one() -> None:
    squeezed = [campaign.squeezed_run(seed) for seed in range(4)]
    assert sum("squeezing_chosen_held" in names for names in squeezed) >= 3
    sharpened = [campaign.sharpened_run(seed) for seed in range(4)]
    assert not any(n.startswith("squeezing") for names in sharpened for n in names)
