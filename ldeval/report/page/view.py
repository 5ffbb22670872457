"""What is said on the page: sentences, verdicts side by side, tables of the details.

Numbers that a script draws come from the JSON report as they are; here is what needs
wording or rounding, which scripts leave to this room's other modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ldeval.records import (
    KINDS,
    SPLIT_NAMES,
    VERDICT_NAMES,
    Comparison,
    Split,
    Truth,
    Verdict,
)
from ldeval.report.change_tables import (
    distribution_table,
    margin_table,
    pairs_table,
    share_table,
)
from ldeval.report.greedy_tables import greedy_sentence, greedy_table
from ldeval.report.json_report import plain
from ldeval.report.markdown import HOW_TO_READ
from ldeval.report.measure_tables import (
    law_table,
    leak_table,
    location_table,
    path_sentence,
    pull_table,
    richer_table,
    similarity_table,
    spill_table,
    threshold_table,
    trajectory_table,
)
from ldeval.report.palette import STROKES, css_name, dash_array
from ldeval.report.provenance import (
    checkpoint_table,
    common_table,
    excluded_table,
    notes_table,
)
from ldeval.report.rounding import count
from ldeval.report.tables import Table
from ldeval.report.verdict_tables import (
    MEANINGS,
    deciding,
    shared_reason,
)
from ldeval.report.words import (
    SPLITS,
    split_sentences,
    standing_sentences,
)

TITLES: Mapping[str, str] = {
    "squeezing": "Squeezing",
    "squeezing_chosen_held": "Squeezing, chosen held",
    "likelihood_displacement": "Likelihood displacement",
    "learning": "Learning",
    "hallucination_pull": "Hallucination pull",
    "ungrammatical_leakage": "Ungrammatical leakage",
    "repetition": "Repetition",
}
"""Each verdict as a heading."""

CONDITIONS: Mapping[str, str] = {
    "S1": "S1 rejected pushed down",
    "S2": "S2 the others fall",
    "S3": "S3 mass to the top choice",
    "S4": "S4 chosen held",
    "C up": "chosen up",
    "C down": "chosen down",
    "M up": "margin up",
}
"""Conditions in a few words, where their names are signs."""


def kind_records() -> list[dict[str, Any]]:
    """Every kind that can be drawn, with what it is and how it looks."""
    found = [
        {"name": k.name, "symbol": k.symbol, "region": k.region, "summary": k.summary}
        for k in KINDS
    ]
    for name in STROKES:
        if ":" in name:
            along = name.partition(":")[2]
            summary = f"the model's most probable token at each position along {along}"
            found.append(
                {"name": name, "symbol": "y*", "region": "derived", "summary": summary}
            )
    for record in found:
        line = STROKES[record["name"]]
        record["css"] = css_name(record["name"])
        record["dash"] = dash_array(line)
        record["width"] = str(line.width)
    return [dict(record) for record in found]


def how_to_read() -> list[list[str]]:
    """Name and paragraph of every notion."""
    return [[name, text] for name, text in HOW_TO_READ]


def run_view(comparison: Comparison) -> dict[str, Any]:
    """Everything worded of one run."""
    return {
        "introduction": _introduction(comparison),
        "standing": list(standing_sentences(comparison)),
        "headlines": _headlines(comparison),
        "verdicts": _verdicts(comparison),
        "sentences": {s: _sentences(comparison, s) for s in _splits(comparison)},
        "measures": _measures(comparison),
        "greedy": _greedy(comparison),
        "sources": _sources(comparison),
    }


def _splits(comparison: Comparison) -> list[Split]:
    have = {v.split for v in comparison.verdicts}
    have |= {change.split for change in comparison.overall.changes}
    return [split for split in SPLITS if split in have]


def _introduction(comparison: Comparison) -> str:
    steps = comparison.steps
    text = f"{count(len(steps), 'checkpoint')}, step {steps[0]:,} to {steps[-1]:,}"
    for split in SPLITS:
        sizes = [c.n for c in comparison.overall.changes if c.split == split]
        if most := max(sizes, default=0):
            text += f" · {most:,} {SPLIT_NAMES[split]} prompts"
    kinds = count(len(comparison.kinds), "kind")
    return f"{text} · {kinds} of response"


def _headlines(comparison: Comparison) -> list[dict[str, Any]]:
    """The run in a sentence or two: what holds, or why nothing can be said."""
    found: dict[tuple[str, tuple[str, ...]], list[Split]] = {}
    for split in _splits(comparison):
        found.setdefault(_reading(comparison, split), []).append(split)
    lines = []
    for (text, held), splits in found.items():
        names = " and ".join(SPLIT_NAMES[split] for split in splits)
        lines.append({"text": f"On {names} prompts {text}.", "holds": list(held)})
    return lines


def _reading(comparison: Comparison, split: Split) -> tuple[str, tuple[str, ...]]:
    found = [v for v in comparison.verdicts if v.split == split]
    held = [v for v in found if v.state == "holds"]
    if reason := shared_reason(comparison.verdicts, split):
        return f"nothing could be decided: {reason}", ()
    if held:
        text = "; ".join(MEANINGS[v.name] for v in held)
        return text, tuple(TITLES[v.name] for v in held)
    undecided = sum(v.state == "undecided" for v in found)
    ruled_out = f"{len(found) - undecided} of {len(found)} patterns are ruled out"
    return f"{ruled_out}, {undecided} undecided, and none holds", ()


def _verdicts(comparison: Comparison) -> list[dict[str, Any]]:
    """One a name: those that hold in a split first, then the undecided ones."""
    found = {(v.name, v.split): v for v in comparison.verdicts}
    shared = {s: shared_reason(comparison.verdicts, s) for s in SPLITS}

    def rank(name: str) -> int:
        states = [found[name, s].state for s in SPLITS if (name, s) in found]
        return min(_RANKS[state] for state in states)

    names = [n for n in VERDICT_NAMES if any(key[0] == n for key in found)]
    return [
        {
            "name": name,
            "title": TITLES[name],
            "meaning": MEANINGS[name],
            "splits": {
                split: _one(found[name, split], shared[split])
                for split in SPLITS
                if (name, split) in found
            },
        }
        for name in sorted(names, key=rank)
    ]


_RANKS: Mapping[Truth, int] = {"holds": 0, "undecided": 1, "does_not_hold": 2}


def _one(verdict: Verdict, shared: str | None) -> dict[str, Any]:
    conjunct = deciding(verdict)
    details = {
        name: text
        for name, text in verdict.details.items()
        if name != "destination" or verdict.state == "holds"
    }
    reason = None
    if verdict.state == "undecided" and not shared:
        reason = verdict.reason or (conjunct.reason if conjunct else None)
    return {
        "state": verdict.state,
        "reason": reason,
        "shared": bool(shared),
        "decides": None if conjunct is None else conjunct.name,
        "conditions": [CONDITIONS.get(c.name, c.name) for c in verdict.conjuncts],
        "details": plain(details),
    }


def _sentences(comparison: Comparison, split: Split) -> list[str]:
    if not comparison.manifests:
        found = [t for t in comparison.trajectories if t.split == split]
        return [path_sentence(path) for path in found]
    floors = comparison.noise_floor, comparison.flow_floor
    return list(split_sentences(comparison.overall, split, *floors))


def _greedy(comparison: Comparison) -> dict[str, Any] | None:
    path = comparison.greedy
    if path is None:
        return None
    said = [text for s in SPLITS if (text := greedy_sentence(path, s)) is not None]
    tables = [greedy_table(path, s) for s in SPLITS]
    return {
        "said": [*said, *path.notes],
        "tables": [table_record(table) for table in tables if table.rows],
    }


def _measures(comparison: Comparison) -> list[dict[str, Any]]:
    pair = comparison.overall
    crossed = (location_table, pull_table, spill_table, similarity_table)
    groups: dict[str, Iterable[Table]] = {
        "Paths through the run: peak, rise, fall and end": [
            trajectory_table(comparison, s) for s in SPLITS
        ],
        "Margin of chosen over rejected": [margin_table(pair)],
        "Spread over prompts": [distribution_table(pair, s) for s in SPLITS],
        "Net shares of the label's mass, every kind": [share_table(pair)],
        "Squeeze or temperature; do the rich get richer": [
            make(comparison) for make in (law_table, threshold_table, richer_table)
        ],
        "Pull, location, spill-over, likeness, crossover leak": [
            *(make(cross) for cross in comparison.cross for make in crossed),
            leak_table(comparison),
        ],
        "Successive checkpoints, side by side": [
            pairs_table(comparison, s) for s in SPLITS
        ],
    }
    found = []
    for summary, tables in groups.items():
        if filled := [table_record(table) for table in tables if table.rows]:
            found.append({"summary": summary, "tables": filled})
    return found


def _sources(comparison: Comparison) -> list[dict[str, Any]]:
    tables = (
        excluded_table(comparison),
        notes_table(comparison),
        common_table(comparison),
        checkpoint_table(comparison),
    )
    return [table_record(table) for table in tables if table.rows]


def table_record(table: Table) -> dict[str, Any]:
    """A table as plain values."""
    return {
        "title": table.title,
        "columns": [{"heading": c.heading, "align": c.align} for c in table.columns],
        "rows": [list(row) for row in table.rows],
        "caption": table.caption,
        "notes": list(table.notes),
    }
