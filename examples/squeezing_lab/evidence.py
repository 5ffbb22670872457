"""What the lab's runs say about claim E1, over prompts and over seeds apart.

E1: after SFT on both responses DPO takes the other responses down more slowly, and the
argmax up more slowly; at equal steps, and at equal margin gained too, for a run that
simply learned less would decay less. Differences are extend − baseline, in nats per
token since each run's own SFT checkpoint.

Over prompts: one seed's two runs, paired by prompt, 99% intervals; they speak of these
two runs. Over seeds: each run is one number, Welch's 95% interval; it speaks of the
method, with as many units as there are runs. All runs are set side by side at the last
place that every one of them reaches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from ldeval.compare.squeeze import OTHERS
from ldeval.compare.versus import RunInput, compare_runs, welch
from ldeval.records import Claim, Estimate, Scale, Split, Versus
from ldeval.store import open_run

ARGMAX = "argmax:rejected"
SCALES: tuple[Scale, ...] = ("steps", "margin")


@dataclass(frozen=True)
class Part:
    """One of E1's two quantities at one place."""

    scale: Scale
    split: Split
    quantity: Literal["others", "argmax"]
    reached: float
    """The place: steps, or nats of margin."""
    seeds: Estimate | None
    """extend − baseline with runs as the unit; None with a single seed."""
    values_baseline: tuple[float, ...]
    """Δtok of each baseline run there."""
    values_extend: tuple[float, ...]


@dataclass(frozen=True)
class Evidence:
    """Everything that the lab found."""

    claims: dict[str, tuple[Claim, ...]]
    """By scale, E1 of each seed, over prompts."""
    parts: tuple[Part, ...]
    margins: dict[str, tuple[float, ...]]
    """By arm, the margin that each run gained, nats."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; undefined numbers are null."""
        return cast(dict[str, Any], _plain(asdict(self)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def gather(baseline: Sequence[Path], extend: Sequence[Path]) -> Evidence:
    """Compare runs of the two arms, one a seed.

    Raises:
        MismatchError: they must not be compared, or gained no margin.
    """
    claims: dict[str, tuple[Claim, ...]] = {}
    parts: list[Part] = []
    margins: dict[str, tuple[float, ...]] = {}
    for scale in SCALES:
        found = [
            compare_runs(_side(baseline, seed), _side(extend, seed), at=scale)
            for seed in range(len(baseline))
        ]
        claims[scale] = tuple(
            next(claim for claim in versus.claims if claim.name == "E1")
            for versus in found
        )
        for split in ("trained", "heldout"):
            parts += _parts(found, scale, cast(Split, split))
    for arm, runs in (("baseline", baseline), ("extend", extend)):
        margins[arm] = tuple(_margin(run) for run in runs)
    return Evidence(claims, tuple(parts), margins)


def _side(runs: Sequence[Path], first: int) -> list[RunInput]:
    """All runs of an arm, one of them first: it is paired by prompt, and the others
    hold the scale to what every run reaches."""
    order = [runs[first], *(run for place, run in enumerate(runs) if place != first)]
    return [RunInput(run.name, open_run(run)) for run in order]


def _parts(found: Sequence[Versus], scale: Scale, split: Split) -> list[Part]:
    parts = []
    quantities: dict[Literal["others", "argmax"], Sequence[str]] = {
        "others": OTHERS,
        "argmax": (ARGMAX,),
    }
    for quantity, kinds in quantities.items():
        values = []
        for versus in found:
            rows = [d for d in versus.decays if d.kind in kinds and d.split == split]
            if rows:
                values.append(
                    (
                        float(np.mean([row.point.a.value for row in rows])),
                        float(np.mean([row.point.b.value for row in rows])),
                    )
                )
        if not values:
            continue
        one, two = (np.array(side) for side in zip(*values, strict=True))
        parts.append(
            Part(
                scale,
                split,
                quantity,
                found[0].reached,
                welch(one, two) if len(values) > 1 else None,
                tuple(one.tolist()),
                tuple(two.tolist()),
            )
        )
    return parts


def _margin(run: Path) -> float:
    import ldeval

    overall = ldeval.diff(run).overall
    return next(m.delta_sum.value for m in overall.margins if m.split == "trained")


# ------------------------------------------------------------------------------- words


def markdown(found: Evidence, seeds: Sequence[int], model: str) -> str:
    """The report."""
    lines = [
        "# Does SFT on both responses slow squeezing?",
        "",
        f"{model}; seeds {', '.join(map(str, seeds))}. Differences are extend − "
        "baseline in nats per token: positive for the others means that they fell "
        "less, negative for the argmax that it rose less.",
        "",
        f"**{answer(found)}**",
        "",
        "## Over prompts, within a seed (99%, trained probes)",
        "",
        "| at equal | seed | others | argmax along rejected | E1 |",
        "|---|---|---|---|---|",
    ]
    for scale, claims in found.claims.items():
        for seed, claim in zip(seeds, claims, strict=True):
            others, top = (
                claim.effect["others, B - A"],
                claim.effect[f"{ARGMAX}, B - A"],
            )
            state = claim.state.replace("_", " ")
            reason = f" ({claim.reason})" if claim.reason else ""
            lines.append(
                f"| {scale} | {seed} | {_interval(others)} | {_interval(top)} | "
                f"{state}{reason} |"
            )
    lines += [
        "",
        "## Over seeds, runs as the unit (Welch, 95%)",
        "",
        "| at equal | probes | quantity | baseline | extend | difference |",
        "|---|---|---|---|---|---|",
    ]
    for part in found.parts:
        difference = "one seed" if part.seeds is None else _interval(part.seeds)
        lines.append(
            f"| {part.scale} ({part.reached:.3g}) | {part.split} | {part.quantity} | "
            f"{_values(part.values_baseline)} | {_values(part.values_extend)} | "
            f"{difference} |"
        )
    gained = "; ".join(
        f"{arm} {_values(values)}" for arm, values in found.margins.items()
    )
    lines += ["", f"Margin gained on trained probes, nats: {gained}.", ""]
    return "\n".join(lines)


def answer(found: Evidence) -> str:
    """Whether E1 holds here, in a sentence a scale."""
    sentences = []
    for scale, claims in found.claims.items():
        holds = sum(claim.state == "holds" for claim in claims)
        fails = sum(claim.state == "does_not_hold" for claim in claims)
        over = [
            _over_seeds(part)
            for part in found.parts
            if (part.scale, part.split) == (scale, "trained")
        ]
        sentences.append(
            f"At equal {scale}: E1 holds in {holds} of {len(claims)} seeds and does "
            f"not in {fails}; over seeds {'; '.join(over)}."
        )
    return " ".join(sentences)


def _over_seeds(part: Part) -> str:
    """Which arm's path is the flatter one: the others fall, the argmax rises."""
    moves, sign = {"others": ("others fall", 1.0), "argmax": ("argmax rises", -1.0)}[
        part.quantity
    ]
    estimate = part.seeds
    if estimate is None:
        return f"how the {moves} cannot be told from one seed"
    if not math.isfinite(estimate.low):
        return f"how the {moves} cannot be told ({estimate.reason})"
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    if low > 0:
        return f"the {moves} less after extend"
    return f"the {moves} {'more after extend' if high < 0 else 'alike, or unclear'}"


def _interval(estimate: Estimate) -> str:
    if not math.isfinite(estimate.low):
        return f"{estimate.value:+.3f} (no interval: {estimate.reason})"
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _values(values: Sequence[float]) -> str:
    return ", ".join(f"{value:+.3f}" for value in values)
