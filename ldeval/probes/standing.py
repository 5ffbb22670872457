"""Probe files as they stand, faults included: this project's and the paper authors'.

Apart from :mod:`probe_set`, which refuses what cannot be scored, and from
:mod:`reference`, which mends it: here a look at a file meets its empty responses and
its stray whitespace as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ldeval.errors import ProbeError
from ldeval.probes.corpus import prompt_text
from ldeval.probes.probe_set import iter_probes, probe_to_record, read_records
from ldeval.records import KIND_NAMES, REFERENCE_FIELDS, Message

_SKIPPED_FIELDS = ("chosen_selfr",)


@dataclass(frozen=True)
class StandingProbe:
    """A probe as it stands in its file, faults included."""

    probe_id: str
    prompt: str
    """As JSON, by which equal prompts are told."""
    said: str
    """The text of its prompt, all turns."""
    trained: bool
    texts: Mapping[str, str]
    """May be empty texts, in a foreign format."""
    sources: Mapping[str, str | None] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


class StandingFile:
    """A file, read as often as it is iterated over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped_fields = 0
        """Fields that ldeval does not score, in the last pass."""
        self.reference = path.is_file() and _is_reference(path)
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[StandingProbe]:
        self.skipped_fields = 0
        self._digest = hashlib.sha256()
        return self._foreign() if self.reference else self._own()

    @property
    def content_hash(self) -> str:
        """Of the probes that the last pass read."""
        return "" if self.reference else self._digest.hexdigest()

    def _own(self) -> Iterator[StandingProbe]:
        for probe in iter_probes(self.path):
            record = probe_to_record(probe)
            record.pop("meta", None)
            line = json.dumps(record, sort_keys=True, ensure_ascii=False)
            self._digest.update(line.encode("utf-8") + b"\n")
            missing = probe.meta.get("missing", {})
            yield StandingProbe(
                probe.probe_id,
                prompt_text(probe.prompt),
                _said(probe.prompt),
                probe.trained,
                {kind: r.text for kind, r in probe.responses.items()},
                {kind: r.source for kind, r in probe.responses.items()},
                missing if isinstance(missing, Mapping) else {},
            )

    def _foreign(self) -> Iterator[StandingProbe]:
        for line, record in read_records(self.path):
            prompt = record.get("prompt") if isinstance(record, dict) else None
            if not isinstance(prompt, str):
                raise ProbeError(
                    "is missing or not text.",
                    path=self.path,
                    line=line,
                    field="prompt",
                    remedy="Is every line in the paper authors' format?",
                )
            self.skipped_fields += sum(name in record for name in _SKIPPED_FIELDS)
            texts = {
                kind: record[name]
                for name, kind in REFERENCE_FIELDS.items()
                if isinstance(record.get(name), str)
            }
            for field_name, text in {"prompt": prompt, **texts}.items():
                self._check_text(line, field_name, text)
            name = f"{self.path.stem}-{line:04d}"  # as 'probes import' will call it
            yield StandingProbe(name, prompt_text(prompt), prompt, True, texts)

    def _check_text(self, line: int, name: str, text: str) -> None:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ProbeError(
                f"holds a lone surrogate at character {error.start}, which is no text.",
                path=self.path,
                line=line,
                field=name,
                remedy="Re-export the data as UTF-8, or replace the character.",
            ) from None


def _is_reference(path: Path) -> bool:
    """Whether a file is in the paper authors' format, told from its first record."""
    if path.suffix == ".parquet":
        return False
    for _, record in read_records(path):
        foreign = set(REFERENCE_FIELDS) - set(KIND_NAMES) | set(_SKIPPED_FIELDS)
        return (
            isinstance(record, dict)
            and "responses" not in record
            and bool(foreign & set(record))
        )
    return False


def _said(prompt: str | tuple[Message, ...]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt)
