"""The toys as tables: what ``ldeval theory`` prints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ldeval.records import (
    BigramStudy,
    DigitsStudy,
    FloatArray,
    ResidualPanel,
    SqueezePanel,
)
from ldeval.report.rounding import number, percent
from ldeval.report.tables import Align, Column, Table

_TEXT: Align = "left"


def residuals_table(panels: Sequence[ResidualPanel]) -> Table:
    """−G at each label, loss by loss."""
    rows = []
    for panel in panels:
        parts = ((panel.chosen, panel.chosen_id), (panel.rejected, panel.rejected_id))
        values = ["" if p is None else f"{float(p[i]):+.3g}" for p, i in parts]
        form = "the paper's approximation" if panel.approximation else "exact"
        rows.append((panel.name, *(v.replace("-", "−") for v in values), form))
    return Table(
        "What each loss asks of the logits",
        (
            Column("loss", _TEXT),
            Column("push on y⁺"),
            Column("push on y⁻"),
            Column("form", _TEXT),
        ),
        tuple(rows),
        "−∂ℓ/∂z at the label of one position of the chosen and of the rejected "
        "response; positive raises.",
    )


def squeeze_table(panels: Sequence[SqueezePanel]) -> Table:
    """What one step did, panel by panel."""
    rows = []
    for panel in panels:
        change = panel.after - panel.before
        top = int(panel.before.argmax())
        rows.append(
            (
                panel.name,
                panel.caption,
                f"{max(panel.strengths):.2f}",
                f"{int((change > 0).sum())} of {len(change)}",
                _moved(panel.before[top], panel.after[top]),
                _label(panel, panel.pulled),
                _label(panel, panel.pushed),
                "" if np.isnan(panel.threshold) else f"{panel.threshold:.4f}",
            )
        )
    return Table(
        "One step of gradient descent on one input",
        (
            Column("panel", _TEXT),
            Column("gradient", _TEXT),
            Column("s, nats"),
            Column("rise"),
            Column("largest"),
            Column("pulled"),
            Column("pushed"),
            Column("threshold"),
        ),
        tuple(rows),
        "Probabilities before → after. A class other than the pushed one rises exactly "
        "above the threshold (1/s) ln Z.",
        keys=2,
    )


def _moved(before: float, after: float) -> str:
    return f"{before:.3g} → {after:.3g}"


def _label(panel: SqueezePanel, label: int | None) -> str:
    return "" if label is None else _moved(panel.before[label], panel.after[label])


def bigram_table(study: BigramStudy) -> Table:
    """Where probability went, for every way of training."""
    rows = []
    for outcome in study.outcomes:
        regions = [
            f"{percent(before)} → {percent(after)}"
            for before, after in outcome.regions.values()
        ]
        entropy = " → ".join(number(v, 2, signed=False) for v in outcome.entropy)
        top = " → ".join(percent(value) for value in outcome.top)
        gainer = f"({outcome.gainer[0]}, {outcome.gainer[1]})"
        rows.append((outcome.name, *regions, top, gainer, entropy))
    names = tuple(Column(name) for name in study.outcomes[0].regions)
    return Table(
        "Ten words, responses of two",
        (
            Column("gradient", _TEXT),
            *names,
            Column("likeliest other"),
            Column("gained most"),
            Column("entropy, nats"),
        ),
        tuple(rows),
        f"After {study.steps} steps at η = {study.rate:g}. Likeliest other: the "
        "likeliest response of before, y⁻ apart.",
    )


def digits_table(study: DigitsStudy) -> Table:
    """The digits experiment in a few numbers."""
    step = agreement(study.step.predicted.ravel(), study.step.actual.ravel())
    whole = agreement(study.accumulated.ravel(), study.moved.ravel())
    off = ~np.eye(len(study.influence), dtype=bool)
    pairs = ", ".join(f"{u} pulls {o}" for o, u in strongest_pairs(study, 5))
    same = float(np.diag(study.influence).mean() / study.influence[off].mean())
    stable = study.rank_stability
    rows = (
        ("images", study.source),
        ("parameters", f"{study.parameters:,}"),
        ("held-out accuracy", " → ".join(percent(a) for a in study.accuracy)),
        ("one step, measured on −η A K G", _agreement(step)),
        (
            "remainder against η, log–log slope",
            number(study.error_slope, 3, signed=False),
        ),
        (f"all {study.kernels[-1].step} steps, measured on Σ", _agreement(whole)),
        ("strongest pulls between classes", pairs),
        ("pull within a class, against between", f"{same:.1f} times"),
        (
            "likeness of classes and pull, Spearman",
            number(study.pull_on_likeness, 2),
        ),
        (
            "ranks of ‖K‖_F, first against last",
            number(float(stable[0, -1]), 2, signed=False),
        ),
        (
            "ranks of ‖K‖_F, last two moments",
            number(float(stable[-2, -1]), 2, signed=False),
        ),
    )
    return Table(
        "A, K and G of a network that learns to read digits",
        (Column("quantity", _TEXT), Column("value", _TEXT)),
        rows,
    )


def agreement(predicted: FloatArray, measured: FloatArray) -> tuple[float, float]:
    """Pearson's r, and the slope of measured on predicted."""
    slope = float(np.polyfit(predicted, measured, 1)[0])
    return float(np.corrcoef(predicted, measured)[0, 1]), slope


def _agreement(found: tuple[float, float]) -> str:
    r, slope = found
    return f"r = {number(r, 4, signed=False)}, slope {number(slope, 3, signed=False)}"


def strongest_pairs(study: DigitsStudy, count: int) -> list[tuple[int, int]]:
    """The pairs (observed, pulling) of different classes, strongest first."""
    same = np.eye(len(study.influence), dtype=bool)
    values = np.where(same, -np.inf, study.influence)
    order = np.argsort(values, axis=None)[::-1][:count]
    return [(int(i) // len(values), int(i) % len(values)) for i in order]
