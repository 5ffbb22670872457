"""What live probes may cost: their share of the time that training takes.

Apart from the callback, so that the arithmetic can be read and tested without a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Overhead:
    """Seconds spent on probes against seconds of training without them.

    The share is probes / training: 0.1 means that a run which takes ten minutes takes
    eleven with probes.
    """

    limit: float | None = None
    """The largest share; None: no bound."""
    spent: float = 0.0
    """Seconds of probing so far."""
    costs: list[float] = field(default_factory=list)
    """Seconds of each scoring."""
    expected: float | None = None
    """Seconds that the next scoring is taken to need before there was one."""

    def __post_init__(self) -> None:
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"max_overhead is {self.limit}; it must be above 0")

    def add(self, seconds: float) -> None:
        """Count one scoring."""
        self.costs.append(seconds)
        self.spent += seconds

    def add_kept(self, seconds: float, expected: float) -> None:
        """Count the look at scores that were stored before.

        Args:
            seconds: what it took.
            expected: what these scores took when they were computed.
        """
        self.spent += seconds
        self.expected = expected

    def share(self, trained: float) -> float:
        """The share so far.

        Args:
            trained: seconds of training, probing left out.
        """
        return self.spent / trained if trained > 0 else float("inf")

    def allows(self, trained: float, done: float) -> bool:
        """Whether another scoring stays within the limit.

        What has been earned so far must pay for it, and unless it is the last one, the
        whole run must be able to pay for the last one too.

        Args:
            trained: seconds of training so far, probing left out.
            done: share of the run's steps that are done, 0 to 1.
        """
        known = self.costs[-3:] or [c for c in (self.expected,) if c is not None]
        if self.limit is None or not known:
            return True
        next_cost = max(known)
        if self.spent + next_cost > self.limit * trained:
            return False
        if done >= 1:
            return True
        whole = trained / done if done > 0 else 0.0
        return self.spent + 2 * next_cost <= self.limit * whole
