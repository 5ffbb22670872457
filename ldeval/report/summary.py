"""The short account of a comparison that a terminal shows when a run is done."""

from __future__ import annotations

from ldeval.records import Comparison
from ldeval.report.change_tables import change_table, margin_table
from ldeval.report.escape import for_ascii, visible
from ldeval.report.greedy_tables import greedy_sentence
from ldeval.report.measure_tables import claim_table, trajectory_table
from ldeval.report.provenance import excluded_table
from ldeval.report.tables import Style, to_terminal, wrap
from ldeval.report.verdict_tables import verdict_table
from ldeval.report.words import SPLITS, floor_sentence


def print_summary(
    comparison: Comparison, *, width: int = 100, style: Style = "unicode"
) -> str:
    """Changes on trained probes, the margin and the verdicts, as text.

    Held-out probes stand in for trained ones where there are none.

    Args:
        comparison: The run.
        width: Characters in a line of the terminal.
        style: ``ascii`` for a terminal that knows nothing else.

    Returns:
        The text; nothing is printed.
    """
    pair, floor = comparison.overall, comparison.noise_floor
    there = {change.split for change in pair.changes}
    split = next((s for s in SPLITS if s in there), SPLITS[0])
    tables = [change_table(pair, split, floor, brief=True)]
    if not comparison.manifests:
        # an import of sums: there are no token counts for the other table
        tables = [trajectory_table(comparison, split)]
    if pair.margins:
        tables.append(margin_table(pair))
    if comparison.verdicts:
        tables.append(verdict_table(comparison))
    if any(claim.state != "undecided" for claim in comparison.claims):
        tables.append(claim_table(comparison, brief=True))
    if (left_out := excluded_table(comparison)).rows:
        tables.append(left_out)
    parts = [to_terminal(table, width=width, style=style) for table in tables]
    said, notes = [floor_sentence(comparison)], [*comparison.notes]
    if (path := comparison.greedy) is not None:
        said = [*filter(None, [greedy_sentence(path, split)]), *said]
        notes = [*path.notes, *notes]
    lines: list[str] = []
    for text in (" ".join(said), *(f"- {note}" for note in notes)):
        shown = visible(text)
        lines += wrap(for_ascii(shown) if style == "ascii" else shown, width)
    heading = visible(comparison.run)
    heading = for_ascii(heading) if style == "ascii" else heading
    return "\n".join([heading, "", *parts, *lines]) + "\n"
