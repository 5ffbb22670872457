"""A look at a probe set, and a build of one, as text for a terminal."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from ldeval.probes.endpoint import Usage
from ldeval.records import KindQuality, QualityReport
from ldeval.report.escape import visible
from ldeval.report.probe_words import percentile, wording
from ldeval.report.rounding import number
from ldeval.report.tables import Column, Table, to_terminal

LISTED = 5
"""Examples named for each finding on a terminal."""


def kinds_table(report: QualityReport) -> Table:
    """Counts, lengths and distance, a row a kind."""
    columns = (
        Column("kind", "left"),
        Column("trained"),
        Column("held out"),
        Column("median"),
        Column("5–95%"),
        Column("× chosen"),
        Column("edit distance"),
        Column("first token as chosen"),
        Column("distinct"),
    )
    rows = tuple(tuple(_cells(kind)) for kind in report.kinds)
    return Table(f"Kinds (lengths in {report.unit})", columns, rows)


def _cells(kind: KindQuality) -> list[str]:
    low, middle, high = (percentile(kind.lengths, s) for s in (0.05, 0.5, 0.95))
    chosen = kind.kind == "chosen"
    share = f"{kind.same_first_token} of {kind.count}"
    return [
        kind.kind,
        str(kind.trained),
        str(kind.heldout),
        number(middle, 0, signed=False),
        f"{number(low, 0, signed=False)}–{number(high, 0, signed=False)}",
        "" if chosen else number(kind.tokens_ratio, 2, signed=False),
        "" if chosen else number(kind.mean_distance, 2, signed=False),
        "" if chosen else share,
        str(kind.distinct),
    ]


def missing_table(report: QualityReport) -> Table:
    """What is missing, and why, a row a kind and reason."""
    rows = tuple(
        (kind.kind, str(count), visible(reason, 80))
        for kind in report.kinds
        for reason, count in kind.missing.items()
    )
    columns = (Column("kind", "left"), Column("probes"), Column("why", "left"))
    return Table("Missing", columns, rows)


def quality_text(report: QualityReport) -> str:
    """The whole look, for a terminal."""
    whole = report.trained + report.heldout
    about = (
        f"hash {report.content_hash[:16]}"
        if report.content_hash
        else "in the paper authors' format"
    )
    lines = [
        f"{visible(report.path)}: {whole} probes ({report.trained} trained, "
        f"{report.heldout} held out), {about}",
        "",
        to_terminal(kinds_table(report)),
    ]
    missing = missing_table(report)
    if missing.rows:
        lines += ["", to_terminal(missing)]
    if report.skipped_fields:
        lines += ["", f"fields not scored (chosen_selfr): {report.skipped_fields}"]
    lines += [
        "",
        f"{len(report.findings)} warnings" if report.findings else "no warnings",
    ]
    for finding in report.findings:
        words = wording(finding)
        lines += ["", f"{words.title}: {finding.count}"]
        if finding.by_kind:
            kinds = ", ".join(f"{k} {n}" for k, n in finding.by_kind.items())
            lines.append(f"  {kinds}")
        if finding.examples:
            named = ", ".join(visible(e, 60) for e in finding.examples[:LISTED])
            more = finding.count - min(len(finding.examples), LISTED)
            lines.append(f"  {named}" + (f" and {more} more" if more > 0 else ""))
        lines.append(f"  endangers: {words.danger}")
        lines.append(f"  remedy: {words.remedy}")
    return "\n".join(lines)


def build_text(record: Mapping[str, Any]) -> str:
    """What a build did, for a terminal; ``record`` as in ``.build.json``."""
    probes = record["probes"]
    lines = [f"{probes['trained']} trained and {probes['heldout']} held-out probes"]
    for name, title in (("source", "source"), ("heldout_source", "held-out source")):
        intake = record[name]
        if not intake["read"]:
            continue
        lines.append(f"{title}: {intake['read']} rows read")
        for reason, count in intake["reasons"].items():
            places = ", ".join(
                visible(p, 40) for p in intake["listed"].get(reason, [])[:3]
            )
            lines.append(
                f"  {count} left out, {visible(reason, 80)}: {places}".rstrip(": ")
            )
        if intake["prompts_shared"]:
            lines.append(
                f"  {intake['prompts_shared']} prompts taken from the shared beginning "
                "of chosen and rejected"
            )
    columns = (Column("kind", "left"), Column("trained"), Column("held out"))
    kinds = record["kinds"]
    rows = tuple(
        (k, str(kinds["trained"][k]), str(kinds["heldout"][k]))
        for k in kinds["trained"]
    )
    lines += ["", to_terminal(Table("Responses", columns, rows))]
    rephrased = record.get("rephrased")
    if rephrased is not None:
        lines += ["", to_terminal(rephrased_table(rephrased))]
    left_out = tuple(
        (kind, str(count), visible(reason, 80))
        for kind, reasons in record["missing"].items()
        for reason, count in reasons.items()
    )
    if left_out:
        columns = (Column("kind", "left"), Column("probes"), Column("why", "left"))
        lines += ["", to_terminal(Table("Left out", columns, left_out))]
    return "\n".join(lines)


def rephrased_table(rephrased: Mapping[str, Any]) -> Table:
    """Answers of the rephrasing model, a row a kind, a column a reason."""
    rejected = rephrased["rejected_answers"]
    reasons = sorted({reason for by in rejected.values() for reason in by})
    columns = (
        Column("kind", "left"),
        Column("answers"),
        Column("accepted"),
        *(Column(reason) for reason in reasons),
    )
    rows = tuple(
        (
            kind,
            str(count),
            str(rephrased["accepted"].get(kind, 0)),
            *(str(rejected.get(kind, {}).get(reason, 0)) for reason in reasons),
        )
        for kind, count in rephrased["answers"].items()
    )
    return Table("Answers, and what was rejected", columns, rows)


def usage_text(usage: Usage, cached: int, prices: tuple[float, float] | None) -> str:
    """What a build has asked so far, and what it cost."""
    text = f"asked {usage.requests}, cached {cached}"
    if usage.attempts > usage.requests + 1:
        text += f", {usage.attempts} attempts"
    text += f", {usage.prompt_tokens + usage.completion_tokens} tokens"
    if prices is not None:
        text += f", cost {usage.cost(prices):.4f}"
    return text


def quality_json(report: QualityReport) -> str:
    """The look as JSON, unrounded; what is undefined is null."""

    def finite(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return value

    return json.dumps(finite(dataclasses.asdict(report)), indent=1) + "\n"
