"""Every number that the decision table uses, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from ldeval.compare.stats import VERDICT_LEVEL


@dataclass(frozen=True)
class Thresholds:
    """Numbers of the decision table.

    Calibrated on a published per-prompt array of a Pythia-410M DPO run: with signs
    flipped per prompt any verdict holds in at most 0.6% of draws (20, 32 and 64
    prompts); on the data as they are squeezing_chosen_held is found in 37, 64 and
    96%. So at least 64 trained probes make a verdict worth having.
    """

    level: float = VERDICT_LEVEL
    """Confidence level of the intervals behind verdicts."""
    change_nats: float = 0.01
    """Smallest change worth the name, nats/token; a larger noise floor replaces it."""
    change_probability: float = 0.001
    """The same for flows, probability/token."""
    min_clusters: int = 20
    """Below this many clusters every verdict is undecided."""
    min_evaluations: int = 2
    """Below this many distinct evaluations every verdict is undecided."""
    persistence_checkpoints: int = 8
    """With fewer checkpoints the end value is the last checkpoint's."""
    window_max: int = 5
    """The end value is a mean over at most so many of the last checkpoints …"""
    window_divisor: int = 4
    """… and over at most one part in so many of all."""
    wander_quantile: float = 2.58
    """Multiplies σ_c, the checkpoints' own wandering, in the half-widths."""
    wander_scale: float = 1.48
    """Turns a median absolute first difference into a standard deviation."""
    others_falling: float = 0.7
    """S2: at least this share of the other kinds lies below −m."""
    others_rising: float = 0.1
    """S2: at most this share of them is up."""
    others_kinds: int = 5
    """S2: at least so many other kinds are scored …"""
    others_regions: int = 2
    """… from at least so many regions of the response space."""
    held_share: float = 0.1
    """S4: chosen lost less than this share of what rejected changed by."""
    sources_trained: float = 0.8
    """hallucination_pull: at least this share of the source texts of irrelevant_train
    was trained between the two checkpoints …"""
    controls_trained: float = 0.05
    """… and at most this share of those of irrelevant_test."""
    entropy_ratio: float = 0.7
    """repetition: the entropy falls below this share of what it was (uncalibrated)."""
    simpson_ratio: float = 1.5
    """repetition: the concentration of argmax ids rises above this multiple
    (uncalibrated)."""

    def persistence(self, checkpoints: int) -> bool:
        """Whether there are enough checkpoints to average the last few."""
        return checkpoints >= self.persistence_checkpoints

    def window(self, checkpoints: int) -> int:
        """W, how many of the last checkpoints the end value averages."""
        if not self.persistence(checkpoints):
            return 1
        return min(self.window_max, checkpoints // self.window_divisor)

    def nats(self, noise_floor: float | None) -> float:
        """m for changes, nats/token."""
        return max(noise_floor or 0.0, self.change_nats)

    def probability(self, noise_floor: float | None) -> float:
        """m for flows, probability/token.

        The noise floor, in nats, serves here too: |Δp| ≤ |Δ ln p|, so it bounds the
        noise of a probability from above.
        """
        return max(noise_floor or 0.0, self.change_probability)
