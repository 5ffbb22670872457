"""A look at a probe set as one HTML file: no script, nothing loaded, light and dark.

The text in it is untrusted (paths, ids, reasons): jinja2 escapes all of it, what has no
glyph is named, and the policy in the head allows one style sheet, by its hash, and
nothing else. Figures are drawn as numbers here and as SVG in the template.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ldeval.records import DISTANCE_BINS, KindQuality, QualityReport
from ldeval.report.escape import visible
from ldeval.report.palette import style_variables
from ldeval.report.probe_tables import kinds_table, missing_table
from ldeval.report.probe_words import percentile, wording

LENGTH_BINS = 40
_WIDTH, _LEFT, _RIGHT = 900, 170, 880
_ROW, _TALLEST, _TOP = 34, 26, 10


@dataclass(frozen=True)
class Bar:
    """One bin of a ridge, in SVG units."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Ridge:
    """The distribution of one kind, on a line of its own."""

    kind: str
    base: float
    bars: tuple[Bar, ...]
    middle: float | None


@dataclass(frozen=True)
class Tick:
    """A mark of the axis."""

    x: float
    label: str


@dataclass(frozen=True)
class Figure:
    """Ridges above one axis."""

    title: str
    ridges: tuple[Ridge, ...]
    ticks: tuple[Tick, ...]
    reference: float | None
    width: int = _WIDTH
    left: int = _LEFT
    right: int = _RIGHT

    @property
    def floor(self) -> int:
        """Where the axis is."""
        return _TOP + _ROW * len(self.ridges)

    @property
    def height(self) -> int:
        """Of the whole."""
        return self.floor + 24


def quality_html(report: QualityReport) -> str:
    """The whole page."""
    folder = files("ldeval.report") / "templates"
    css = style_variables() + "".join(
        (folder / name).read_text(encoding="utf-8")
        for name in ("theme.css", "probes.css")
    )
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    template = environment.from_string(
        (folder / "probes.html.j2").read_text(encoding="utf-8")
    )
    whole = report.trained + report.heldout
    return template.render(
        css=Markup(css),  # ours, and byte for byte what the hash is of
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'",
        name=PurePath(report.path).name,
        summary=f"{whole} probes, {report.trained} trained and {report.heldout} held "
        f"out. {_about(report)}",
        unit=report.unit,
        findings=[
            {
                "count": finding.count,
                "title": wording(finding).title,
                "danger": wording(finding).danger,
                "remedy": wording(finding).remedy,
                "by_kind": list(finding.by_kind.items()),
                "examples": finding.examples,
            }
            for finding in report.findings
        ],
        kinds=kinds_table(report),
        missing=missing_table(report),
        lengths=length_figure(report.kinds),
        distances=distance_figure(report.kinds),
    )


def _about(report: QualityReport) -> str:
    if report.content_hash:
        return f"Content hash {report.content_hash}."
    return "A file in the paper authors' format."


def length_figure(kinds: Sequence[KindQuality]) -> Figure:
    """Token counts of each kind, up to a length that few exceed."""
    present = [kind for kind in kinds if kind.count]
    longest = max((percentile(k.lengths, 0.98) for k in present), default=1.0)
    step = _step(longest)
    top = step * math.ceil(longest / step) if longest else step
    width = top / LENGTH_BINS
    ridges = []
    for row, kind in enumerate(present):
        bins = [0] * LENGTH_BINS
        for value, count in kind.lengths:
            bins[min(int(value / width), LENGTH_BINS - 1)] += count
        titles = [
            f"{width * n:.0f} to {width * (n + 1):.0f}: {count}"
            for n, count in enumerate(bins)
        ]
        middle = _place(min(percentile(kind.lengths, 0.5), top) / top)
        ridges.append(_ridge(kind.kind, row, bins, titles, middle))
    chosen = next((k.lengths for k in present if k.kind == "chosen"), ())
    return Figure(
        "Lengths of each kind",
        tuple(ridges),
        tuple(
            Tick(_place(n * step / top), f"{n * step:g}")
            for n in range(round(top / step) + 1)
        ),
        _place(min(percentile(chosen, 0.5), top) / top) if chosen else None,
    )


def distance_figure(kinds: Sequence[KindQuality]) -> Figure:
    """Edit distances to chosen, of each kind but chosen."""
    present = [kind for kind in kinds if sum(kind.distances)]
    ridges = []
    for row, kind in enumerate(present):
        titles = [
            f"{n / DISTANCE_BINS:.2f} to {(n + 1) / DISTANCE_BINS:.2f}: {count}"
            for n, count in enumerate(kind.distances)
        ]
        middle = _place(kind.mean_distance)
        ridges.append(_ridge(kind.kind, row, kind.distances, titles, middle))
    ticks = tuple(Tick(_place(n / 5), f"{n / 5:g}") for n in range(6))
    return Figure("Edit distance of each kind to chosen", tuple(ridges), ticks, None)


def _ridge(
    kind: str, row: int, bins: Sequence[int], titles: Sequence[str], middle: float
) -> Ridge:
    base = _TOP + _ROW * (row + 1)
    tallest = max(bins)
    width = (_RIGHT - _LEFT) / len(bins)
    bars = tuple(
        Bar(
            round(_LEFT + n * width + 0.5, 2),
            round(base - _TALLEST * count / tallest, 2),
            round(width - 1, 2),
            round(_TALLEST * count / tallest, 2),
            titles[n],
        )
        for n, count in enumerate(bins)
        if count
    )
    return Ridge(kind, base, bars, middle)


def _place(share: float) -> float:
    return round(_LEFT + (_RIGHT - _LEFT) * share, 2)


def _step(longest: float) -> float:
    """A round distance between marks, for about six of them."""
    rough = max(longest, 1) / 6
    size = 10.0 ** math.floor(math.log10(rough))
    return max(1.0, next(size * f for f in (1, 2, 5, 10) if size * f >= rough))
