"""Tables of what changed: kinds, margins, flows, influence and successive pairs.

Each builder takes a comparison (or one pair of it) and returns a ``Table``; nothing is
computed here but the choice of columns and the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ldeval.records import (
    Comparison,
    Estimate,
    Flow,
    KindChange,
    PairComparison,
    Split,
)
from ldeval.report.rounding import (
    UNDEFINED,
    interval,
    level,
    number,
    percent,
    places,
)
from ldeval.report.tables import Column, Table
from ldeval.report.words import SPLIT_NAMES, direction, net_shares

FLOW_BINS = ("label", "argmax", "top", "tail")
"""The bins of a flow, as ``Flow`` names them."""

BIN_NAMES = {
    "label": "label",
    "argmax": "reference argmax",
    "top": "rest of top-k",
    "tail": "tail",
}

EXCLUDES_ZERO = "*"
_TRANSPOSE_ABOVE = 8
"""Successive pairs above this number are rows, since columns would run off the page."""


class Footnotes:
    """Numbers the reasons of undefined cells, each reason once."""

    def __init__(self) -> None:
        self._reasons: list[str] = []

    def cell(self, text: str, estimate: Estimate) -> str:
        """The cell's text; where it is undefined, with the number of its reason."""
        if text != UNDEFINED:
            return text
        reason = estimate.reason or "no reason was given"
        if reason not in self._reasons:
            self._reasons.append(reason)
        return f"{UNDEFINED} ({self._reasons.index(reason) + 1})"

    @property
    def lines(self) -> tuple[str, ...]:
        """One line a reason, in the order of their numbers."""
        return tuple(
            f"({i}) undefined: {reason}" for i, reason in enumerate(self._reasons, 1)
        )


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
        _text_column("kind", [c.kind for c in changes]),
        _number_column("n", [f"{c.n:,}" for c in changes]),
        _number_column(
            "tokens", [number(c.mean_tokens, 1, signed=False) for c in changes]
        ),
        *_estimate_columns("Δsum", [c.delta_sum for c in changes], notes),
        *_estimate_columns("Δtok", [c.delta_tok for c in changes], notes),
        _text_column("direction", [direction(c.delta_tok, floor) for c in changes]),
        _number_column("fell", [percent(c.share_fell) for c in changes]),
    ]
    if not brief:
        columns += _part_columns(changes, notes)
    return _assemble(
        f"Change per kind, {_span(pair)}, {SPLIT_NAMES[split]} probes",
        columns,
        "After − before: Δsum in nats/response, Δtok in nats/token (sum of Δsum over "
        "sum of tokens); below zero, the response became less likely. tokens: mean "
        "length. fell: share of prompts with Δsum < 0."
        + (
            ""
            if brief
            else " first, body, end: Δ of the first token, of those between, "
            "and of the last, nats/token."
        ),
        notes,
    )


_Filled = tuple[Column, list[str]]


def _text_column(heading: str, cells: Iterable[str]) -> _Filled:
    return Column(heading, "left"), list(cells)


def _number_column(heading: str, cells: Iterable[str]) -> _Filled:
    return Column(heading), list(cells)


def _estimate_columns(
    heading: str,
    estimates: Sequence[Estimate],
    notes: Footnotes,
    *,
    signed: bool = True,
) -> list[_Filled]:
    """A column of values and a column of their intervals, rounded alike."""
    digits = places(estimates)
    values = [notes.cell(number(e.value, digits, signed=signed), e) for e in estimates]
    ends = [notes.cell(interval(e, digits, signed=signed), e) for e in estimates]
    return [
        (Column(heading), values),
        (Column(_interval_heading(estimates), tied=True), ends),
    ]


def _interval_heading(estimates: Sequence[Estimate]) -> str:
    levels = sorted({e.level for e in estimates})
    return f"{'/'.join(level(value) for value in levels) or '95%'} interval"


def _part_columns(changes: Sequence[KindChange], notes: Footnotes) -> list[_Filled]:
    columns = []
    for name in ("first", "body", "end"):
        parts: list[Estimate] = [getattr(change, name) for change in changes]
        digits = places(parts)
        cells = [notes.cell(number(e.value, digits), e) for e in parts]
        columns.append(_number_column(name, cells))
    return columns


def _assemble(
    title: str,
    columns: Sequence[_Filled],
    caption: str,
    notes: Footnotes,
    *,
    keys: int = 1,
) -> Table:
    rows = tuple(zip(*(cells for _, cells in columns), strict=True))
    heads = tuple(column for column, _ in columns)
    return Table(title, heads, rows, caption, notes.lines, keys=keys)


def _span(pair: PairComparison) -> str:
    return f"step {pair.before} to step {pair.after}"


def margin_table(pair: PairComparison) -> Table:
    """Chosen − rejected, one row a split."""
    margins, notes = pair.margins, Footnotes()
    levels = [(m.before_sum, m.after_sum) for m in margins]
    columns = [
        _text_column("probes", [SPLIT_NAMES[m.split] for m in margins]),
        _number_column("before", [number(before, 1) for before, _ in levels]),
        _number_column("after", [number(after, 1) for _, after in levels]),
        *_estimate_columns("Δsum", [m.delta_sum for m in margins], notes),
        *_estimate_columns("Δtok", [m.delta_tok for m in margins], notes),
    ]
    return _assemble(
        f"Margin (chosen − rejected), {_span(pair)}",
        columns,
        "before, after and Δsum in nats/response, Δtok in nats/token; above zero, "
        "chosen gained on rejected. Paired by prompt.",
        notes,
    )


def flow_table(pair: PairComparison) -> Table:
    """Where the mass went at off-label positions, one row a bin."""
    notes = Footnotes()
    cells = [(flow, name) for flow in pair.flows for name in FLOW_BINS]
    bins: list[Estimate] = [getattr(flow, name) for flow, name in cells]
    columns = [
        _text_column("along", [flow.kind for flow, _ in cells]),
        _text_column("probes", [SPLIT_NAMES[flow.split] for flow, _ in cells]),
        _text_column("bin", [BIN_NAMES[name] for _, name in cells]),
        *_estimate_columns("Δp", bins, notes),
        _number_column("net share", [_share(flow, name) for flow, name in cells]),
        _number_column("positions", [f"{flow.positions:,}" for flow, _ in cells]),
        _number_column("exact", [percent(flow.exact_share) for flow, _ in cells]),
        _number_column("risen", [percent(flow.risen_share) for flow, _ in cells]),
    ]
    return _assemble(
        f"Where the mass went at off-label positions, {_span(pair)}",
        columns,
        "Δp in probability/token, after − before; the four bins add up to zero. net "
        "share: of what the label lost, where the label's interval is below zero. "
        "exact: positions at which every bin is known, elsewhere bounds are inside the "
        "intervals. risen: positions whose later argmax lies outside the bins.",
        notes,
        keys=3,
    )


def _share(flow: Flow, name: str) -> str:
    shares = net_shares(flow)
    return percent(shares[name]) if shares and name in shares else ""


def influence_table(pair: PairComparison, split: Split) -> Table:
    """Kind × kind slopes: a row explains, a column is explained."""
    cells = [cell for cell in pair.influence if cell.split == split]
    by_pair = {(cell.source, cell.target): cell.slope for cell in cells}
    sources = _in_order(cell.source for cell in cells)
    targets = {cell.target for cell in cells}
    notes = Footnotes()
    digits = places(by_pair.values(), least=2)
    columns = [_text_column("source", sources)]
    for target in _in_order([*sources, *(cell.target for cell in cells)]):
        if target not in targets:
            continue
        slopes = [by_pair.get((source, target)) for source in sources]
        texts = [_slope(slope, digits, notes) for slope in slopes]
        columns.append(_number_column(target, texts))
    return _assemble(
        f"How kinds moved together, {_span(pair)}, {SPLIT_NAMES[split]} probes",
        columns,
        "Slope over prompts of the column's Δtok on the row's, without unit, with its "
        f"{_interval_heading(list(by_pair.values()))}; {EXCLUDES_ZERO} marks intervals "
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


def mark(estimate: Estimate) -> str:
    """``*`` where the interval lies on one side of zero."""
    return EXCLUDES_ZERO if estimate.low > 0 or estimate.high < 0 else ""


def pairs_table(comparison: Comparison, split: Split) -> Table:
    """Δtok of every kind between successive checkpoints, as one matrix."""
    tokens = {
        (f"{pair.before} to {pair.after}", change.kind): change.delta_tok
        for pair in comparison.pairs
        for change in pair.changes
        if change.split == split
    }
    spans = _in_order(span for span, _ in tokens)
    kinds = _in_order(kind for _, kind in tokens)
    digits, notes = places(tokens.values()), Footnotes()

    def cell(span: str, kind: str) -> str:
        estimate = tokens.get((span, kind))
        if estimate is None:
            return ""
        return notes.cell(number(estimate.value, digits) + mark(estimate), estimate)

    columns = _matrix(spans, kinds, cell)
    return _assemble(
        f"Δtok between successive checkpoints, {SPLIT_NAMES[split]} probes",
        columns,
        f"nats/token, after − before; {EXCLUDES_ZERO} marks "
        f"{_interval_heading(list(tokens.values()))}s that exclude zero. Exploratory: "
        "many pairs are looked at, and no verdict rests on this table.",
        notes,
    )


def _matrix(
    spans: list[str], kinds: list[str], cell: Callable[[str, str], str]
) -> list[_Filled]:
    if len(spans) > _TRANSPOSE_ABOVE:
        columns = [_text_column("steps", spans)]
        for kind in kinds:
            columns.append(_number_column(kind, [cell(span, kind) for span in spans]))
        return columns
    columns = [_text_column("kind", kinds)]
    for span in spans:
        columns.append(_number_column(span, [cell(span, kind) for kind in kinds]))
    return columns
