"""Import the paper authors' probe files (thirteen fields a line, no ids).

Separate from :mod:`probe_set` because their files carry faults that a probe set must
not (empty responses, leading spaces in some fields only); each repair is counted and
listed by probe, so that a reader can tell what was changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldeval.errors import ProbeError
from ldeval.probes.probe_set import ProbeSet, parse_probe, read_records
from ldeval.records import REFERENCE_FIELDS, Probe

_SKIPPED_FIELDS = ("chosen_selfr",)


@dataclass(frozen=True)
class ImportReport:
    """What an import changed, each entry ``(probe_id, kind)``."""

    probes: int
    empty: tuple[tuple[str, str], ...]
    """Responses left out because they were empty."""
    respaced: tuple[tuple[str, str], ...]
    """Responses whose leading whitespace was made that of the probe's chosen."""
    same_as_chosen: tuple[tuple[str, str], ...]
    """Permutations that equal their chosen response: kept, but they measure nothing."""
    skipped_fields: int
    """Fields that ldeval does not score (``chosen_selfr``)."""


def import_reference(
    path: str | Path, *, trained: bool = True
) -> tuple[ProbeSet, ImportReport]:
    """Convert a file in the authors' format.

    Leading whitespace is made equal across the responses of a prompt: theirs differs
    between fields, so the first scored token would differ for no reason of content.

    Args:
        path: the authors' JSON Lines file.
        trained: the split of its prompts (theirs come one split a file).

    Raises:
        ProbeError: on a line without prompt or chosen, or that is not JSON.
    """
    path = Path(path)
    probes: list[Probe] = []
    empty: list[tuple[str, str]] = []
    respaced: list[tuple[str, str]] = []
    same: list[tuple[str, str]] = []
    skipped = 0
    for line, record in read_records(path):
        probe_id = f"{path.stem}-{line:04d}"
        fields = _fields(record, path, line)
        skipped += sum(name in record for name in _SKIPPED_FIELDS)
        lead = _leading_space(fields["chosen"])
        responses: dict[str, str] = {}
        for kind, text in fields.items():
            if not text.strip():
                empty.append((probe_id, kind))
                continue
            if _leading_space(text) != lead:
                respaced.append((probe_id, kind))
            responses[kind] = lead + text.lstrip()
        if responses.get("permuted") == responses.get("chosen"):
            same.append((probe_id, "permuted"))
        cleaned = {
            "probe_id": probe_id,
            "prompt": record["prompt"],
            "trained": trained,
            "responses": responses,
        }
        probes.append(parse_probe(cleaned, path=str(path), line=line))
    report = ImportReport(
        len(probes), tuple(empty), tuple(respaced), tuple(same), skipped
    )
    return ProbeSet(tuple(probes), str(path)), report


def _fields(record: Any, path: Path, line: int) -> dict[str, str]:
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ProbeError(
            "is missing or not text.",
            path=path,
            line=line,
            field="prompt",
            remedy="Is this a file in the paper authors' format?",
        )
    known = {*REFERENCE_FIELDS, *_SKIPPED_FIELDS, "prompt"}
    unknown = sorted(set(record) - known)
    if unknown:
        raise ProbeError(
            "is not a field of the authors' format.",
            path=path,
            line=line,
            field=unknown[0],
            remedy=f"Known fields: {', '.join(sorted(known))}.",
        )
    fields = {}
    for name, kind in REFERENCE_FIELDS.items():
        if name not in record:
            continue
        if not isinstance(record[name], str):
            raise ProbeError(
                f"is {type(record[name]).__name__}, not text.",
                path=path,
                line=line,
                field=name,
                remedy="Give a JSON string.",
            )
        fields[kind] = record[name]
    if not fields.get("chosen", "").strip():
        raise ProbeError(
            "is missing or empty.",
            path=path,
            line=line,
            field="chosen",
            remedy="Every probe needs a chosen response.",
        )
    return fields


def _leading_space(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]
