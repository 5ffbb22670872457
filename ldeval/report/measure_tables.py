"""Tables of what is measured over a whole run: paths, laws, influence, claims."""

from __future__ import annotations

from collections.abc import Mapping

from ldeval.records import (
    SPLIT_NAMES,
    Claim,
    Comparison,
    CrossInfluence,
    Split,
    State,
    Trajectory,
)
from ldeval.report.columns import (
    Footnotes,
    assemble,
    estimate_columns,
    number_column,
    text_column,
)
from ldeval.report.rounding import number, percent, quote
from ldeval.report.tables import Column, Table
from ldeval.report.verdict_tables import STATES
from ldeval.report.words import SPLITS

STATE_WORDS: Mapping[State, str] = {
    "up": "up",
    "down": "down",
    "flat": "flat",
    "unclear": "unclear",
}


def trajectory_table(comparison: Comparison, split: Split) -> Table:
    """The shape of each kind's path, one row a kind."""
    paths = [t for t in comparison.trajectories if t.split == split]
    notes = Footnotes()
    columns = [
        text_column("kind", [t.kind for t in paths]),
        *estimate_columns("end", [t.end for t in paths], notes),
        text_column("state", [STATE_WORDS[t.state] for t in paths]),
        text_column("peak at step", [_peak(t) for t in paths]),
        *estimate_columns("rise", [t.rise for t in paths], notes),
        *estimate_columns("fall", [t.fall for t in paths], notes),
        *estimate_columns("slope", [t.slope for t in paths], notes),
        number_column("σc", [number(t.spread, 3, signed=False) for t in paths]),
    ]
    return assemble(
        f"Paths through the run, {SPLIT_NAMES[split]} probes",
        columns,
        "nats/token since the first checkpoint (nats/response where token counts are "
        "not known). end: mean of the last checkpoints, with the interval that its "
        "state rests on, widened by their spread σc. rise and fall: to and from the "
        "peak, each half of the prompts measured at the other half's peak. slope: "
        "change over the run, by least squares.",
        notes,
    )


def _peak(path: Trajectory) -> str:
    if path.peak_low == path.peak_high:
        return str(path.peak_step)
    return f"{path.peak_step} ({path.peak_low} to {path.peak_high})"


def path_sentence(path: Trajectory) -> str:
    """The end of one kind's path in words, where there is no change per token."""
    words = {"up": "rose", "down": "fell", "flat": "did not change"}
    verb = words.get(path.state, "moved in no clear direction")
    return f"{path.kind} {verb}: {quote(path.end)}."


# ------------------------------------------------------------------------------- laws


def law_table(comparison: Comparison) -> Table:
    """Which law explains the change of the top tokens."""
    laws, notes = comparison.laws, Footnotes()
    columns = [
        text_column("along", [law.kind for law in laws]),
        text_column("probes", [SPLIT_NAMES[law.split] for law in laws]),
        text_column("reads as", [law.reading for law in laws]),
        *estimate_columns("on p", [law.squeeze for law in laws], notes),
        number_column("R²", [number(law.squeeze_r2, 3, signed=False) for law in laws]),
        *estimate_columns("on ln p", [law.temperature for law in laws], notes),
        number_column(
            "R² of ln p", [number(law.temperature_r2, 3, signed=False) for law in laws]
        ),
        *estimate_columns("difference", [law.difference for law in laws], notes),
    ]
    return assemble(
        "Squeeze or temperature?",
        columns,
        "Δ ln p of the reference's top tokens other than the label, within positions, "
        "first to last checkpoint: a squeeze step makes it linear in p, a temperature "
        "linear in ln p. R² on prompts left out; difference: R² of p − R² of ln p.",
        notes,
        keys=2,
    )


def richer_table(comparison: Comparison) -> Table:
    """Δ ln p by earlier probability."""
    notes = Footnotes()
    rows = [(curve, item) for curve in comparison.richer for item in curve.bins]
    columns = [
        text_column("along", [curve.kind for curve, _ in rows]),
        text_column("probes", [SPLIT_NAMES[curve.split] for curve, _ in rows]),
        text_column("earlier p", [f"{b.low:.2g} to {b.high:.2g}" for _, b in rows]),
        number_column("tokens", [f"{b.tokens:,}" for _, b in rows]),
        *estimate_columns("Δ ln p", [b.change for _, b in rows], notes),
    ]
    return assemble(
        "Do the rich get richer?",
        columns,
        "Mean Δ ln p (nats) of the reference's top tokens other than the label, by "
        "decile of their earlier probability, first to last checkpoint.",
        notes,
        keys=3,
    )


def threshold_table(comparison: Comparison) -> Table:
    """The same on either side of the closed-form threshold."""
    curves, notes = comparison.richer, Footnotes()
    columns = [
        text_column("along", [c.kind for c in curves]),
        text_column("probes", [SPLIT_NAMES[c.split] for c in curves]),
        number_column("τ", [number(c.threshold, 4) for c in curves]),
        *estimate_columns("above τ", [c.above for c in curves], notes),
        *estimate_columns("below τ", [c.below for c in curves], notes),
        *estimate_columns("difference", [c.contrast for c in curves], notes),
        number_column("valleys", [percent(c.valleys) for c in curves]),
    ]
    return assemble(
        "The closed-form threshold",
        columns,
        "A squeeze step raises tokens with p > τ = ‖π‖² − p(label), to first order. "
        "τ: its median. above, below: mean Δ ln p of such tokens, nats. valleys: "
        "positions with τ > 0, along rejected after the first token that differs from "
        "chosen's.",
        notes,
        keys=2,
    )


# -------------------------------------------------------------------------- influence


def pull_table(cross: CrossInfluence) -> Table:
    """How far each kind moved, relative to what training moved."""
    pulls, notes = cross.pulls, Footnotes()
    columns = [
        text_column("kind", [p.kind for p in pulls]),
        *estimate_columns("pull", [p.relative for p in pulls], notes),
        *estimate_columns("per margin", [p.per_margin for p in pulls], notes),
        *estimate_columns(
            "normalised", [p.normalised for p in pulls], notes, signed=False
        ),
        *estimate_columns("SignDelta", [p.sign_delta for p in pulls], notes),
    ]
    return assemble(
        f"Pull, {SPLIT_NAMES[cross.split]} probes",
        columns,
        "pull: Δtok over that of chosen. per margin: what a response lost for each nat "
        "that the margin gained (below zero: it gained too). normalised: mean "
        "δ²/(1 − 2p + ‖π‖²), nats². SignDelta: change of the vocabulary's mean ln p; "
        "it says nothing about the response's own tokens.",
        notes,
    )


def location_table(cross: CrossInfluence) -> Table:
    """Where in chosen and rejected the change sits."""
    places, notes = cross.locations, Footnotes()
    columns = [
        text_column("kind", [p.kind for p in places]),
        *estimate_columns("first", [p.first for p in places], notes),
        *estimate_columns("shared", [p.shared for p in places], notes),
        *estimate_columns("contrastive", [p.contrastive for p in places], notes),
        *estimate_columns("end", [p.end for p in places], notes),
    ]
    return assemble(
        f"Where the change sits, {SPLIT_NAMES[cross.split]} probes",
        columns,
        "nats/response; the four add up to Δsum. shared: tokens in a longest common "
        "subsequence of chosen and rejected; contrastive: the others.",
        notes,
    )


def spill_table(cross: CrossInfluence) -> Table:
    """Pairs that trained on a prompt against those that did not."""
    spill, notes = cross.spill, Footnotes()
    columns = [
        text_column("kind", [s.kind for s in spill]),
        *estimate_columns("direct", [s.direct for s in spill], notes),
        *estimate_columns("spill-over", [s.spill for s in spill], notes),
        *estimate_columns("difference", [s.contrast for s in spill], notes),
    ]
    return assemble(
        f"Direct and spill-over, {SPLIT_NAMES[cross.split]} probes",
        columns,
        "Δtok between successive checkpoints that trained on the prompt, and between "
        "those that did not, nats/token.",
        notes,
    )


def similarity_table(cross: CrossInfluence) -> Table:
    """Does likeness to chosen carry the change?"""
    points, notes = cross.similarity, Footnotes()
    columns = [
        number_column("step", [str(p.step) for p in points]),
        *estimate_columns("slope", [p.slope for p in points], notes),
    ]
    return assemble(
        f"Likeness to chosen, {SPLIT_NAMES[cross.split]} probes",
        columns,
        "Slope over responses of Δsum per token since the first checkpoint on their "
        "tokens' likeness to chosen's (0 to 1), nats/token: above zero, what is like "
        "chosen rose more.",
        notes,
    )


def leak_table(comparison: Comparison) -> Table:
    """Crossover leak, one row a split."""
    found, notes = comparison.cross, Footnotes()
    columns = [
        text_column("probes", [SPLIT_NAMES[c.split] for c in found]),
        *estimate_columns("leak", [c.leak for c in found], notes),
    ]
    return assemble(
        "Crossover leak",
        columns,
        "How much of what a trained response gained under its own prompt it gained "
        "under another's, minus the same for untrained ones; without unit.",
        notes,
    )


# ----------------------------------------------------------------------------- claims


def claim_table(comparison: Comparison, *, brief: bool = False) -> Table:
    """The paper's claims on this run, one row a claim.

    Args:
        brief: without what decides each, and without those undecided on both splits.
    """
    by_name: dict[str, dict[Split, Claim]] = {}
    for claim in comparison.claims:
        by_name.setdefault(claim.name, {})[claim.split] = claim
    rows = []
    for name, found in by_name.items():
        one = next(iter(found.values()))
        states = [STATES[found[s].state] if s in found else "–" for s in SPLITS]
        if brief and all(claim.state == "undecided" for claim in found.values()):
            continue
        why = () if brief else (_why(found),)
        rows.append((name, one.statement, *states, *why))
    return Table(
        "The paper's claims on this run",
        (
            Column("claim", "left"),
            Column("says", "left"),
            *(Column(SPLIT_NAMES[split], "left") for split in SPLITS),
            *(() if brief else (Column("what decides it", "left"),)),
        ),
        tuple(rows),
        "Ren & Sutherland (ICLR 2025); S about SFT, D about preference training, E "
        "about SFT on both responses first. 99% intervals; it speaks of this run.",
    )


_QUOTED = 3


def _why(found: Mapping[Split, Claim]) -> str:
    parts: dict[str, list[str]] = {}
    for split, claim in found.items():
        shown = [f"{n}: {quote(e)}" for n, e in list(claim.effect.items())[:_QUOTED]]
        if len(claim.effect) > _QUOTED:
            shown.append(f"and {len(claim.effect) - _QUOTED} more in the JSON")
        text = "; ".join([*([claim.reason] if claim.reason else []), *shown])
        parts.setdefault(text, []).append(SPLIT_NAMES[split])
    if len(parts) == 1:
        return next(iter(parts))
    return " | ".join(f"{'/'.join(names)}: {text}" for text, names in parts.items())
