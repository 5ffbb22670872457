"""The bound on what live probes cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldeval.integrations.budget import Overhead


def test_without_a_bound_everything_is_allowed() -> None:
    budget = Overhead()
    budget.add(1e6)
    assert budget.allows(trained=1.0, done=0.1)


def test_the_first_scoring_is_always_allowed() -> None:
    assert Overhead(0.01).allows(trained=0.0, done=0.0)


def test_scores_that_were_stored_before_tell_what_the_next_one_takes() -> None:
    budget = Overhead(0.5)
    budget.add_kept(seconds=0.1, expected=10.0)
    assert not budget.allows(trained=1.0, done=0.5)
    assert budget.allows(trained=100.0, done=0.5)
    assert budget.share(1.0) == pytest.approx(0.1)
    budget.add(1.0)
    assert budget.allows(trained=10.0, done=1.0)


def test_a_bound_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_overhead is 0"):
        Overhead(0)


def test_the_share_is_of_training_without_probes() -> None:
    budget = Overhead()
    budget.add(10.0)
    assert budget.share(100.0) == pytest.approx(0.1)


@given(
    limit=st.floats(0.01, 1.0),
    cost=st.floats(0.1, 30.0),
    step=st.floats(0.1, 10.0),
    steps=st.integers(1, 200),
)
def test_the_share_stays_within_the_bound_once_the_first_scoring_is_paid_for(
    limit: float, cost: float, step: float, steps: int
) -> None:
    """Whatever scoring and a step cost, as long as scorings cost about the same."""
    budget = Overhead(limit)
    budget.add(cost)
    for number in range(1, steps + 1):
        trained = number * step
        if budget.allows(trained, number / steps):
            budget.add(cost)
    trained = steps * step
    first_alone = cost / trained
    assert budget.share(trained) <= max(limit, first_alone) * (1 + 1e-9)


@given(limit=st.floats(0.05, 1.0), steps=st.integers(2, 300))
def test_the_last_step_is_scored_where_the_run_pays_for_two(
    limit: float, steps: int
) -> None:
    """The steps in between leave room for it."""
    budget = Overhead(limit)
    budget.add(1.0)
    scored = []
    for number in range(1, steps + 1):
        if budget.allows(float(number), number / steps):
            budget.add(1.0)
            scored.append(number)
    affordable = limit * steps >= 2.0
    assert (steps in scored) == affordable
