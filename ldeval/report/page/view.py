"""What is said on the page: sentences, verdicts side by side, tables of the details.

Numbers that a script draws come from the JSON report as they are; here is what needs
wording or rounding, which scripts leave to this room's other modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ldeval.records import KINDS, VERDICT_NAMES, Comparison, Split, Verdict
from ldeval.report.change_tables import (
    distribution_table,
    margin_table,
    pairs_table,
    share_table,
)
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
    STATES,
    deciding,
    reason_of,
    shared_reason,
)
from ldeval.report.words import (
    SPLIT_NAMES,
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
        "headlines": [_headline(comparison, split) for split in _splits(comparison)],
        "verdicts": _verdicts(comparison),
        "sentences": {s: _sentences(comparison, s) for s in _splits(comparison)},
        "measures": _measures(comparison),
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
        found = [c.n for c in comparison.overall.changes if c.split == split]
        if found and max(found):
            text += f" · {max(found):,} {SPLIT_NAMES[split]} prompts"
    kinds = count(len(comparison.kinds), "kind")
    return f"{text} · {kinds} of response"


def _headline(comparison: Comparison, split: Split) -> dict[str, Any]:
    """The run in one sentence: what holds, or why nothing can be said."""
    found = [v for v in comparison.verdicts if v.split == split]
    held = [v for v in found if v.state == "holds"]
    place = f"On {SPLIT_NAMES[split]} prompts"
    if reason := shared_reason(comparison.verdicts, split):
        text = f"{place} nothing could be decided: {reason}."
    elif not held:
        open_ = sum(v.state == "undecided" for v in found)
        text = f"{place} no pattern holds: {len(found) - open_} of {len(found)} are "
        text += f"ruled out, {open_} undecided."
    else:
        parts = [MEANINGS[v.name] for v in held if v.name in MEANINGS]
        text = f"{place} {'; '.join(parts)}."
    return {"split": split, "text": text, "holds": [TITLES[v.name] for v in held]}


def _verdicts(comparison: Comparison) -> list[dict[str, Any]]:
    found = {(v.name, v.split): v for v in comparison.verdicts}
    shared = {s: shared_reason(comparison.verdicts, s) for s in SPLITS}
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
        for name in names
    ]


def _one(verdict: Verdict, shared: str | None) -> dict[str, Any]:
    conjunct = deciding(verdict)
    details = {
        name: text
        for name, text in verdict.details.items()
        if name != "destination" or verdict.state == "holds"
    }
    return {
        "state": verdict.state,
        "word": STATES[verdict.state],
        "reason": "as all of them, see above" if shared else reason_of(verdict),
        "decides": None if conjunct is None else conjunct.name,
        "details": plain(details),
    }


def _sentences(comparison: Comparison, split: Split) -> list[str]:
    if not comparison.manifests:
        found = [t for t in comparison.trajectories if t.split == split]
        return [path_sentence(path) for path in found]
    return list(split_sentences(comparison.overall, split, comparison.noise_floor))


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
