"""Tables of what changed: kinds, margins, flows, influence and successive pairs.

Each builder takes a comparison (or one pair of it) and returns a ``Table``; nothing is
computed here but the choice of columns and the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ldeval.records import (
    QUANTILES,
    SPLIT_NAMES,
    Comparison,
    Estimate,
    Flow,
    KindChange,
    PairComparison,
    Split,
)
from ldeval.report.columns import (
    EXCLUDES_ZERO,
    Filled,
    Footnotes,
    assemble,
    estimate_columns,
    interval_heading,
    mark,
    number_column,
    text_column,
)
from ldeval.report.rounding import (
    UNDEFINED,
    interval,
    number,
    percent,
    places,
    probability,
)
from ldeval.report.tables import Table
from ldeval.report.words import direction, net_shares

FLOW_BINS = ("label", "argmax", "top", "tail")
"""The bins of a flow, as ``Flow`` names them."""

BIN_NAMES = {
    "label": "label",
    "argmax": "reference argmax",
    "top": "rest of top-k",
    "tail": "tail",
}

FLOW_KINDS = ("rejected", "chosen")
STRATUM_NAMES = {"all": "all", "off": "off-label", "on": "on-label"}

DISCOVERY = 0.05
"""False discovery rate at which a successive change is marked."""
_TRANSPOSE_ABOVE = 8
"""Successive pairs above this number are rows, since columns would run off the page."""


def change_table(
    pair: PairComparison, split: Split, floor: float, *, brief: bool = False
) -> Table:
    """Change per kind in one split.

    Args:
        pair: The two checkpoints.
        split: Which probes.
        floor: The noise floor, nats/token, that decides the direction's word.
        brief: Without the columns of first, body and end.
    """
    changes = [change for change in pair.changes if change.split == split]
    notes = Footnotes()
    columns = [
        text_column("kind", [c.kind for c in changes]),
        number_column("n", [f"{c.n:,}" for c in changes]),
        number_column(
            "tokens", [number(c.mean_tokens, 1, signed=False) for c in changes]
        ),
        *estimate_columns("Δsum", [c.delta_sum for c in changes], notes),
        *estimate_columns("Δtok", [c.delta_tok for c in changes], notes),
        text_column("direction", [direction(c.delta_tok, floor) for c in changes]),
        number_column("fell", [percent(c.share_fell) for c in changes]),
    ]
    if not brief:
        columns += _part_columns(changes, notes)
        columns.append(
            number_column("p (Holm)", [probability(c.p_adjusted) for c in changes])
        )
    return assemble(
        f"Change per kind, {_span(pair)}, {SPLIT_NAMES[split]} probes",
        columns,
        "After − before: Δsum in nats/response, Δtok in nats/token (sum of Δsum over "
        "sum of tokens); below zero, the response became less likely. tokens: mean "
        "length. fell: share of prompts with Δsum < 0."
        + (
            ""
            if brief
            else " first, body, end: Δ of the first token, of those between, "
            "and of the last; matched: over as many first tokens as the prompt's "
            "shortest kind has; all in nats/token. p (Holm): paired permutation test, "
            "adjusted for the kinds of the table."
        ),
        notes,
    )


def _part_columns(changes: Sequence[KindChange], notes: Footnotes) -> list[Filled]:
    columns = []
    for name in ("first", "body", "end", "matched"):
        parts: list[Estimate] = [getattr(change, name) for change in changes]
        digits = places(parts)
        cells = [notes.cell(number(e.value, digits), e) for e in parts]
        columns.append(number_column(name, cells))
    return columns


def _span(pair: PairComparison) -> str:
    return f"step {pair.before} to step {pair.after}"


def margin_table(pair: PairComparison) -> Table:
    """Chosen − rejected, one row a split."""
    margins, notes = pair.margins, Footnotes()
    levels = [(m.before_sum, m.after_sum) for m in margins]
    columns = [
        text_column("probes", [SPLIT_NAMES[m.split] for m in margins]),
        number_column("before", [number(before, 1) for before, _ in levels]),
        number_column("after", [number(after, 1) for _, after in levels]),
        *estimate_columns("Δsum", [m.delta_sum for m in margins], notes),
        *estimate_columns("Δtok", [m.delta_tok for m in margins], notes),
    ]
    return assemble(
        f"Margin (chosen − rejected), {_span(pair)}",
        columns,
        "before, after and Δsum in nats/response, Δtok in nats/token; above zero, "
        "chosen gained on rejected. Paired by prompt.",
        notes,
    )


def flow_table(pair: PairComparison) -> Table:
    """Where the mass went along chosen and rejected off the label, one row a bin."""
    notes = Footnotes()
    chosen = [f for f in pair.flows if f.stratum == "off" and f.kind in FLOW_KINDS]
    cells = [(flow, name) for flow in chosen for name in FLOW_BINS]
    bins: list[Estimate] = [getattr(flow, name) for flow, name in cells]
    columns = [
        text_column("along", [flow.kind for flow, _ in cells]),
        text_column("probes", [SPLIT_NAMES[flow.split] for flow, _ in cells]),
        text_column("bin", [BIN_NAMES[name] for _, name in cells]),
        *estimate_columns("Δp", bins, notes),
        number_column("net share", [_share(flow, name) for flow, name in cells]),
        number_column("positions", [f"{flow.positions:,}" for flow, _ in cells]),
        number_column("exact", [percent(flow.exact_share) for flow, _ in cells]),
        number_column("risen", [percent(flow.risen_share) for flow, _ in cells]),
    ]
    return assemble(
        f"Where the mass went at off-label positions, {_span(pair)}",
        columns,
        "Δp in probability/token, after − before; the four bins add up to zero. net "
        "share: of what the label lost (or gained: then the share that the bin paid), "
        "where the label's interval excludes zero. "
        "exact: positions at which every bin is known, elsewhere bounds are inside the "
        "intervals. risen: positions whose later argmax lies outside the bins.",
        notes,
        keys=3,
    )


def _share(flow: Flow, name: str) -> str:
    shares = net_shares(flow)
    return percent(shares[name]) if shares and name in shares else ""


def share_table(pair: PairComparison) -> Table:
    """Of what the labels lost, how much each bin got: every kind, split and stratum."""
    notes, flows = Footnotes(), pair.flows
    columns = [
        text_column("along", [flow.kind for flow in flows]),
        text_column("probes", [SPLIT_NAMES[flow.split] for flow in flows]),
        text_column("positions", [STRATUM_NAMES[flow.stratum] for flow in flows]),
        number_column("n", [f"{flow.positions:,}" for flow in flows]),
        *estimate_columns("label Δp", [flow.label for flow in flows], notes),
        *estimate_columns("argmax", [flow.argmax_share for flow in flows], notes),
        *estimate_columns("top-k", [flow.top_share for flow in flows], notes),
        *estimate_columns("tail", [flow.tail_share for flow in flows], notes),
    ]
    return assemble(
        f"Net shares of the label's mass, {_span(pair)}",
        columns,
        "Of the probability that the labels lost (or gained: then the shares that paid "
        "for it), the part that went to the reference's argmax, the rest of its top-k "
        "and the tail. The three sum to 1, and one may be negative. all: every "
        "position; off-label and on-label: where the reference's argmax is not, or is, "
        "the label.",
        notes,
        keys=3,
    )


def distribution_table(pair: PairComparison, split: Split) -> Table:
    """Quantiles over prompts of each kind's change per token."""
    changes = [change for change in pair.changes if change.split == split]
    columns = [text_column("kind", [c.kind for c in changes])]
    for place, quantile in enumerate(QUANTILES):
        cells = [number(c.quantiles[place], 2) for c in changes]
        columns.append(number_column(f"{quantile:.0%}", cells))
    return assemble(
        f"Spread over prompts, {_span(pair)}, {SPLIT_NAMES[split]} probes",
        columns,
        "Quantiles over responses of Δsum per token, nats/token.",
        Footnotes(),
    )


def influence_table(pair: PairComparison, split: Split) -> Table:
    """Kind × kind slopes: a row explains, a column is explained."""
    cells = [cell for cell in pair.influence if cell.split == split]
    by_pair = {(cell.source, cell.target): cell.slope for cell in cells}
    sources = _in_order(cell.source for cell in cells)
    targets = {cell.target for cell in cells}
    notes = Footnotes()
    digits = places(by_pair.values(), least=2)
    columns = [text_column("source", sources)]
    for target in _in_order([*sources, *(cell.target for cell in cells)]):
        if target not in targets:
            continue
        slopes = [by_pair.get((source, target)) for source in sources]
        texts = [_slope(slope, digits, notes) for slope in slopes]
        columns.append(number_column(target, texts))
    return assemble(
        f"How kinds moved together, {_span(pair)}, {SPLIT_NAMES[split]} probes",
        columns,
        "Slope over prompts of the column's Δtok on the row's, without unit, with its "
        f"{interval_heading(list(by_pair.values()))}; {EXCLUDES_ZERO} marks intervals "
        "that exclude zero. A slope says that two kinds moved together, not that one "
        "moved the other.",
        notes,
    )


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _slope(slope: Estimate | None, digits: int, notes: Footnotes) -> str:
    if slope is None:
        return ""
    value = notes.cell(number(slope.value, digits) + mark(slope), slope)
    ends = interval(slope, digits)
    return value if ends == UNDEFINED else f"{value} ({ends})"


def pairs_table(comparison: Comparison, split: Split) -> Table:
    """Δtok of every kind between successive checkpoints, as one matrix."""
    tokens = {
        (f"{pair.before} to {pair.after}", change.kind): change.delta_tok
        for pair in comparison.pairs
        for change in pair.changes
        if change.split == split
    }
    flags = {
        (f"{pair.before} to {pair.after}", c.kind): EXCLUDES_ZERO
        for pair in comparison.pairs
        for c in pair.changes
        if c.split == split and c.p_adjusted < DISCOVERY
    }
    spans = _in_order(span for span, _ in tokens)
    kinds = _in_order(kind for _, kind in tokens)
    digits, notes = places(tokens.values()), Footnotes()

    def cell(span: str, kind: str) -> str:
        estimate = tokens.get((span, kind))
        if estimate is None:
            return ""
        shown = number(estimate.value, digits) + flags.get((span, kind), "")
        return notes.cell(shown, estimate)

    columns = _matrix(spans, kinds, cell)
    return assemble(
        f"Δtok between successive checkpoints, {SPLIT_NAMES[split]} probes",
        columns,
        f"nats/token, after − before; {EXCLUDES_ZERO} marks changes that the paired "
        "permutation test keeps at a false discovery rate of "
        f"{DISCOVERY:.0%} over all kinds and pairs here (Benjamini and Hochberg). "
        "Exploratory: no verdict rests on this table.",
        notes,
    )


def _matrix(
    spans: list[str], kinds: list[str], cell: Callable[[str, str], str]
) -> list[Filled]:
    if len(spans) > _TRANSPOSE_ABOVE:
        columns = [text_column("steps", spans)]
        for kind in kinds:
            columns.append(number_column(kind, [cell(span, kind) for span in spans]))
        return columns
    columns = [text_column("kind", kinds)]
    for span in spans:
        columns.append(number_column(span, [cell(span, kind) for kind in kinds]))
    return columns
