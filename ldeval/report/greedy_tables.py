"""Greedy decodes worded: a table by checkpoint, a sentence by split."""

from __future__ import annotations

from ldeval.records import SPLIT_NAMES, GreedyPath, GreedyStep, Split, Truth
from ldeval.report.columns import (
    Footnotes,
    assemble,
    estimate_columns,
    number_column,
)
from ldeval.report.rounding import percent, quote
from ldeval.report.tables import Column, Table

_SURER: dict[Truth, str] = {
    "holds": "the model has become surer of what it says by itself",
    "does_not_hold": "the model has not become surer of what it says by itself",
    "undecided": "whether the model is surer of what it says by itself is not settled",
}
_LEFT: dict[Truth, str] = {
    "holds": "what the first checkpoint said has become less probable",
    "does_not_hold": "what the first checkpoint said has not become less probable",
    "undecided": "whether what the first checkpoint said became less probable is not "
    "settled",
}
_SHOWN = 8


def greedy_table(path: GreedyPath, split: Split) -> Table:
    """Every later checkpoint beside the first, one row each."""
    steps = [step for step in path.steps if step.split == split]
    notes = Footnotes()
    parts = [
        ("first's decode, nats/token", [s.reference_tok for s in steps]),
        ("own decode, nats/token", [s.own_tok for s in steps]),
        ("length, tokens", [s.length for s in steps]),
        ("repeated 4-grams", [s.repeated for s in steps]),
    ]
    columns = [
        number_column("step", [str(s.step) for s in steps]),
        number_column("n", [str(s.n) for s in steps]),
        number_column("same text", [str(s.same) for s in steps]),
        number_column("shared start", [percent(s.shared) for s in steps]),
        number_column("ended", [str(s.ended) for s in steps]),
    ]
    for heading, estimates in parts:
        columns += estimate_columns(heading, estimates, notes)
    return assemble(
        f"Greedy decodes, {SPLIT_NAMES[split]}",
        columns,
        f"Against step {path.reference_step}; at most {path.max_tokens} tokens a "
        "decode. First's decode: change of the log-probability of what the first "
        "checkpoint says; own decode: that of what this one says, less that of what "
        "the first said under the first.",
        notes,
    )


def greedy_sentence(path: GreedyPath, split: Split) -> str | None:
    """What the last checkpoint's decodes say; None where the split has none."""
    last = last_step(path, split)
    if last is None:
        return None
    return (
        f"Greedy decodes of {SPLIT_NAMES[split]} prompts at step {last.step}: "
        f"{_SURER[path.surer[split]]}, {quote(last.own_tok)}; "
        f"{_LEFT[path.left[split]]}, {quote(last.reference_tok)}. "
        f"{last.same} of {last.n} decodes are the same text."
    )


def last_step(path: GreedyPath, split: Split) -> GreedyStep | None:
    """The last checkpoint's row."""
    found = [step for step in path.steps if step.split == split]
    return found[-1] if found else None


def moves_table(path: GreedyPath) -> Table:
    """The prompts whose first decode fell most, with what is said before and after."""
    moves = path.moves[:_SHOWN]
    rows = tuple(
        (m.probe_id, SPLIT_NAMES[m.split], f"{m.delta_sum:+.2f}", m.before, m.after)
        for m in moves
    )
    return Table(
        "Whose greedy decode fell most",
        (
            Column("prompt", "left"),
            Column("split", "left"),
            Column("Δ, nats"),
            Column("the first checkpoint says", "left"),
            Column("the last one says", "left"),
        ),
        rows,
        f"{len(moves)} of {len(path.moves)} prompts; all are in the JSON."
        if len(path.moves) > len(moves)
        else "",
    )
