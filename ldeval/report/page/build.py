"""The file itself: shell, style sheet, scripts, policy, and the data as blocks.

The policy in the head lets run the one script and the one style sheet that are here, by
their hashes, and loads nothing. Blocks are data: they are decoded when they are needed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ldeval.errors import MismatchError
from ldeval.records import Comparison, IntArray, Probe, ScoreSource
from ldeval.report.dynamics_json import EXAMPLES, results_json
from ldeval.report.dynamics_match import Joined
from ldeval.report.dynamics_tables import PULLED_KINDS
from ldeval.report.escape import visible
from ldeval.report.json_report import REPORT_SCHEMA_VERSION, to_json
from ldeval.report.page.blocks import (
    LOWEST,
    MISSING,
    STEPS_PER_NAT,
    as_json,
    packed_json,
)
from ldeval.report.page.dynamics import dynamics_view
from ldeval.report.page.pieces import Pieces
from ldeval.report.page.scores import PromptScores, texts_of
from ldeval.report.page.view import how_to_read, kind_records, run_view
from ldeval.report.palette import style_variables

STYLES = ("theme.css", "report.css")
SCRIPTS = (
    "dom.js",
    "format.js",
    "data.js",
    "export.js",
    "table.js",
    "chart.js",
    "verdicts.js",
    "curves.js",
    "changes.js",
    "flow.js",
    "influence.js",
    "claims.js",
    "greedy.js",
    "foretold.js",
    "movers.js",
    "risk.js",
    "tokens.js",
    "prompts.js",
    "page.js",
)
"""In this order one after the other, in one scope."""
WORST = 50
"""Prompts whose tokens can be followed through every checkpoint."""

_CHECKED = 40
_SPELLED = 0.5


@dataclass(frozen=True)
class PageRun:
    """One run of a page."""

    comparison: Comparison
    scores: Sequence[ScoreSource] = ()
    """Its checkpoints by step; none for an import of means, which has no prompts."""
    probes: Sequence[Probe] | None = None
    """The probes that were scored; without them prompts are known by id alone."""
    pieces: Pieces | None = None
    """What token ids spell; without them tokens are shown by id."""
    pieces_named: bool = False
    """Whether they were asked for: then it is an error where they do not fit."""
    dynamics: Sequence[Joined] = ()
    """Results of first order that fit it."""


def render_page(
    runs: Sequence[PageRun], *, title: str = "What training changed", worst: int = WORST
) -> str:
    """The page of one run, or of several stages in their order.

    Args:
        runs: At least one.
        title: The heading.
        worst: How many prompts have their tokens at every checkpoint.

    Raises:
        ValueError: there is no run.
        MismatchError: a tokenizer does not spell the responses that were scored.
    """
    if not runs:
        raise ValueError("a page needs at least one run; none came")
    blocks: dict[str, str] = {}
    records = [_run(run, number, worst, blocks) for number, run in enumerate(runs)]
    core = {
        "schema_version": REPORT_SCHEMA_VERSION,
        "title": title,
        "kinds": kind_records(),
        "how_to_read": how_to_read(),
        "steps_per_nat": STEPS_PER_NAT,
        "lowest": LOWEST,
        "missing": MISSING,
        "pulled_kinds": list(PULLED_KINDS),
        "examples_shown": EXAMPLES,
        "runs": records,
    }
    style = style_variables() + "".join(_asset(name) for name in STYLES)
    body = "".join(_asset(f"report/{name}") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{body}}})();\n'
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.from_string(_asset("report.html.j2"))
    return template.render(
        title=visible(title),
        policy=_policy(style, script),
        # ours, and byte for byte what the hashes are of
        style=Markup(style),
        script=Markup(script),
        core=Markup(as_json(core)),
        blocks=[(name, Markup(text)) for name, text in blocks.items()],
    )


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; "
        f"style-src '{_digest(style)}'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'"
    )


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _asset(name: str) -> str:
    place = files("ldeval.report") / "templates"
    return (place / name).read_text(encoding="utf-8")


def _run(
    run: PageRun, number: int, worst: int, blocks: dict[str, str]
) -> dict[str, Any]:
    """The record of one run; its blocks are put into ``blocks``."""
    report = to_json(run.comparison)
    blocks[f"pairs-{number}"] = packed_json(report.pop("pairs"))
    for place, joined in enumerate(run.dynamics):
        blocks[f"dynamics-{number}-{place}"] = packed_json(results_json(joined))
    record = {
        "report": report,
        "view": run_view(run.comparison),
        "dynamics": [dynamics_view(joined) for joined in run.dynamics],
        "prompts": None,
    }
    if run.scores:
        ordered = sorted(run.scores, key=lambda source: source.manifest.step)
        scores = PromptScores(ordered, worst)
        ids = scores.token_ids()
        pieces = _fitting(scores, run)
        found = _prompts(scores, ids, run.probes, pieces)
        blocks[f"prompts-{number}"] = packed_json(found)
        blocks[f"sums-{number}"] = scores.sum_block()
        for place, (start, stop) in enumerate(scores.groups()):
            blocks[f"ends-{number}-{place}"] = scores.end_block(start, stop, ids)
        for probe in scores.worst:
            blocks[f"steps-{number}-{probe}"] = scores.step_block(probe, ids)
        record["prompts"] = {
            "count": len(scores.probes),
            "texts": run.probes is not None,
            "pieces": pieces is not None,
        }
    return record


def _prompts(
    scores: PromptScores,
    ids: IntArray,
    probes: Sequence[Probe] | None,
    pieces: Pieces | None,
) -> dict[str, Any]:
    prompts, texts = texts_of(scores, {p.probe_id: p for p in probes or ()})
    return scores.record(ids) | {
        "prompts": prompts,
        "texts": texts,
        "ids": ids.tolist(),
        "pieces": None if pieces is None else [pieces.text(int(i)) for i in ids],
    }


def _fitting(scores: PromptScores, run: PageRun) -> Pieces | None:
    """The pieces, unless they do not spell the responses.

    Raises:
        MismatchError: they do not, and were asked for by name.
    """
    misfit = _misspelled(scores, run)
    if misfit is None:
        return run.pieces
    if run.pieces_named:
        raise MismatchError(misfit)
    return None


def _misspelled(scores: PromptScores, run: PageRun) -> str | None:
    """What is wrong with the tokenizer, judged by a sample of the responses."""
    if run.pieces is None or run.probes is None:
        return None
    _, texts = texts_of(scores, {probe.probe_id: probe for probe in run.probes})
    rows = [row for row, text in enumerate(texts) if text and scores.lengths[row]]
    rows = rows[:: max(len(rows) // _CHECKED, 1)][:_CHECKED]
    wrong = []
    for row in rows:
        labels = scores.labels[scores.offsets[row] : scores.offsets[row + 1]]
        spelled = run.pieces.joined(labels.tolist())
        if _letters(texts[row] or "") not in _letters(spelled):
            wrong.append((row, spelled))
    if len(wrong) <= _SPELLED * len(rows):
        return None
    row, spelled = wrong[0]
    return (
        f"{run.pieces.path}: spells {visible(spelled, 60)!r} where {scores.kinds[row]} "
        f"of probe {scores.probes[scores.probe_of[row]]!r} reads "
        f"{visible(texts[row] or '', 60)!r}. Name the tokenizer that the run was "
        "scored with: --tokenizer."
    )


def _letters(text: str) -> str:
    """Text without what tokenizers are free to change: spaces and case."""
    return "".join(text.split()).casefold()
