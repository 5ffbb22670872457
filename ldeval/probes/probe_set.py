"""Read, validate, write and hash probe sets.

A probe set is a JSON Lines file, one probe a line, or the same as a dataset folder
(:mod:`dataset`)::

    {"probe_id": "rice", "prompt": "How do I cook rice?", "trained": true,
     "responses": {"chosen": "Rinse it …", "rejected": "Boil it …"},
     "meta": {"sources": {"chosen": "written"}}}

``prompt`` is text or a list of chat messages. ``meta.sources`` says, by kind, where a
response came from; ``meta.initial_model`` is the weight hash of the model that
``initial`` was sampled from. Validation lives here alone, so that the harness task, the
sweep and the command line refuse the same files with the same words.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import jsonlines

from ldeval.errors import ProbeError
from ldeval.files import place, strict_json, written
from ldeval.printable import quoted
from ldeval.probes.dataset import is_dataset, read_dataset
from ldeval.records import KIND_NAMES, REFERENCE_FIELDS, Message, Probe, Response

_FIELDS = ("probe_id", "prompt", "responses", "trained", "meta")
_ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclass(frozen=True)
class ProbeSet:
    """Probes in file order, with the file they came from."""

    probes: tuple[Probe, ...]
    path: str | None = None

    def __len__(self) -> int:
        return len(self.probes)

    def __iter__(self) -> Iterator[Probe]:
        return iter(self.probes)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over ids, prompts, responses and splits; ``meta`` does not count,
        since it changes no score."""
        digest = hashlib.sha256()
        for probe in self.probes:
            record = probe_to_record(probe)
            record.pop("meta", None)
            line = json.dumps(record, sort_keys=True, ensure_ascii=False)
            digest.update(line.encode("utf-8"))
            digest.update(b"\n")
        return digest.hexdigest()

    def kinds(self) -> tuple[str, ...]:
        """Kinds that at least one probe has, in the order of the kind table."""
        present = {kind for probe in self.probes for kind in probe.responses}
        return tuple(kind for kind in KIND_NAMES if kind in present)

    def limited(self, trained: int | None, heldout: int | None) -> ProbeSet:
        """The first ``trained`` trained and the first ``heldout`` held-out probes, in
        file order; None keeps all of that split.

        Raises:
            ProbeError: none is left.
        """
        left = {True: trained, False: heldout}
        kept: list[Probe] = []
        for probe in self.probes:
            room = left[probe.trained]
            if room is None:
                kept.append(probe)
            elif room > 0:
                left[probe.trained] = room - 1
                kept.append(probe)
        if not kept:
            here = sum(probe.trained for probe in self.probes)
            raise ProbeError(
                f"has no probe within a limit of {trained} trained and {heldout} "
                f"held-out ones: it has {here} and {len(self) - here}.",
                path=self.path,
                remedy="Give another limit.",
            )
        return replace(self, probes=tuple(kept))


def text_hash(text: str) -> str:
    """Short hash of a response text, by which equal texts are recognised."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def probe_to_record(probe: Probe) -> dict[str, Any]:
    """The JSON object of a probe, as it stands in a file."""
    prompt: Any = probe.prompt
    if not isinstance(prompt, str):
        prompt = [dict(message) for message in prompt]
    record: dict[str, Any] = {
        "probe_id": probe.probe_id,
        "prompt": prompt,
        "trained": probe.trained,
        "responses": {k: probe.responses[k].text for k in _ordered(probe.responses)},
    }
    meta = dict(probe.meta)
    sources = {
        k: source
        for k in _ordered(probe.responses)
        if (source := probe.responses[k].source) is not None
    }
    if sources:
        meta["sources"] = sources
    if meta:
        record["meta"] = meta
    return record


def _ordered(responses: Mapping[str, Response]) -> list[str]:
    return [kind for kind in KIND_NAMES if kind in responses]


# --------------------------------------------------------------------------- parsing


@dataclass(frozen=True)
class _Place:
    """Where a record stands, for messages."""

    path: str | None
    line: int | None

    def fault(self, field: str, message: str, remedy: str) -> ProbeError:
        return ProbeError(
            message, path=self.path, line=self.line, field=field, remedy=remedy
        )


def _text(value: object, field: str, place: _Place) -> str:
    if not isinstance(value, str):
        raise place.fault(
            field, f"is {_shown(value)}, not text.", "Give a JSON string."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise place.fault(
            field,
            f"holds a lone surrogate at character {error.start}, which is not text.",
            "Re-export the data as UTF-8, or replace the character.",
        ) from None
    return value


def _printed(name: object) -> str:
    """A name in a message: half a character, which nothing can print, as its escape."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def parse_prompt(
    value: object, place: _Place, field: str = "prompt"
) -> str | tuple[Message, ...]:
    """Validate a prompt: text, or messages that end before the assistant's turn."""
    if isinstance(value, str):
        if not _text(value, field, place):
            raise place.fault(field, "is empty.", "Every probe needs a prompt.")
        return value
    if not isinstance(value, list) or not value:
        raise place.fault(
            field,
            f"is {_shown(value)}.",
            'Give text, or a list of messages such as [{"role": "user", "content": '
            '"…"}].',
        )
    messages = []
    for number, message in enumerate(value):
        where = f"{field}[{number}]"
        if not isinstance(message, dict):
            raise place.fault(where, f"is {_shown(message)}.", "Give role and content.")
        role = _text(message.get("role"), f"{where}.role", place)
        if role not in _ROLES:
            raise place.fault(
                f"{where}.role",
                f"is {quoted(role)}.",
                f"Valid roles: {', '.join(_ROLES)}.",
            )
        content = _text(message.get("content"), f"{where}.content", place)
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] == "assistant":
        raise place.fault(
            field,
            "ends with an assistant message.",
            "The prompt ends where the response begins: move it to 'responses'.",
        )
    return tuple(messages)


def _parse_responses(
    value: object, sources: Mapping[str, Any], place: _Place
) -> dict[str, Response]:
    if not isinstance(value, dict):
        raise place.fault("responses", f"is {_shown(value)}.", "Give {kind: text}.")
    unknown = [kind for kind in value if kind not in KIND_NAMES]
    if unknown:
        remedy = f"Valid kinds: {', '.join(KIND_NAMES)}."
        if unknown[0] in REFERENCE_FIELDS:
            remedy = (
                "This is a field of the paper authors' files: convert them with "
                "'ldeval probes import --format reference'."
            )
        name = f"responses.{_printed(unknown[0])}"
        raise place.fault(name, "is not a known kind.", remedy)
    if "chosen" not in value:
        raise place.fault(
            "responses.chosen", "is missing.", "Every probe needs a chosen response."
        )
    responses = {}
    for kind in KIND_NAMES:
        if kind not in value:
            continue
        text = _text(value[kind], f"responses.{kind}", place)
        if not text.strip():
            raise place.fault(
                f"responses.{kind}",
                f"is empty ({text!r}).",
                "Leave the kind out of this probe instead.",
            )
        source = sources.get(kind)
        responses[kind] = Response(kind, text, None if source is None else str(source))
    return responses


def parse_probe(
    record: object, *, path: str | None = None, line: int | None = None
) -> Probe:
    """Validate one record.

    Raises:
        ProbeError: naming file, line, field and remedy.
    """
    place = _Place(path, line)
    if not isinstance(record, dict):
        raise ProbeError(
            f"holds {_shown(record)}, not a JSON object.",
            path=path,
            line=line,
            remedy="One probe a line.",
        )
    for field in record:
        if field not in _FIELDS:
            raise place.fault(
                _printed(field),
                "is not a field of a probe.",
                f"Valid fields: {', '.join(_FIELDS)}; anything else goes into 'meta'.",
            )
    probe_id = _text(record.get("probe_id"), "probe_id", place)
    if not probe_id:
        raise place.fault("probe_id", "is empty.", "Give each probe its own id.")
    if "\0" in probe_id:
        # arrays of texts drop it at the end: two ids would become one
        raise place.fault(
            "probe_id", "holds a NUL character.", "Give an id that can be written out."
        )
    trained = record.get("trained")
    if not isinstance(trained, bool):
        raise place.fault(
            "trained",
            f"is {_shown(trained)}.",
            "Say true if this prompt is trained on, false if it is held out.",
        )
    meta = record.get("meta", {})
    if not isinstance(meta, dict):
        raise place.fault("meta", f"is {_shown(meta)}.", "Give a JSON object.")
    _check_meta(meta, place)
    sources = meta.get("sources", {})
    if not isinstance(sources, dict):
        raise place.fault("meta.sources", f"is {_shown(sources)}.", "Give {kind: id}.")
    return Probe(
        probe_id=probe_id,
        prompt=parse_prompt(record.get("prompt"), place),
        responses=_parse_responses(record.get("responses"), sources, place),
        trained=trained,
        meta={key: value for key, value in meta.items() if key != "sources"},
    )


def _check_meta(meta: Mapping[str, Any], place: _Place) -> None:
    """What is carried along must be writable again as JSON and as UTF-8."""
    if not meta:
        return
    try:
        json.dumps(meta, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise place.fault(
            "meta",
            f"cannot be written again ({error}).",
            "Give JSON without NaN, Infinity and lone surrogates.",
        ) from None


def _loads(text: str | bytes) -> Any:
    """JSON; half a character stays, for the message that names its field."""
    return strict_json(text, surrogates=True)


class _CountedLines:
    """The lines of a file, counted: jsonlines does not tell where a value stood."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self.number = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self._handle:
            self.number += 1
            yield line


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, JSON value) of each non-empty line of a JSON Lines file.

    Raises:
        ProbeError: on a missing file, a line that is not UTF-8 or not JSON.
    """
    try:
        handle = path.open("rb")
    except OSError as error:
        raise ProbeError(
            f"cannot be opened ({error.strerror}).",
            path=path,
            remedy="Check the path.",
        ) from error
    with handle:
        lines = _CountedLines(handle)
        reader = jsonlines.Reader(lines, loads=_loads)
        while True:
            try:
                value = reader.read(skip_empty=True)
            except EOFError:
                return
            except (jsonlines.InvalidLineError, RecursionError) as error:
                raise ProbeError(
                    f"is not valid JSON ({error.__cause__ or error}).",
                    path=path,
                    line=lines.number,
                    remedy="Each line must be one JSON object in UTF-8.",
                ) from None
            yield lines.number, value


def _placed_records(path: Path) -> Iterator[tuple[str, int, Any]]:
    """(file, line or row, record) of a JSON Lines file or a dataset folder."""
    if is_dataset(path):
        yield from read_dataset(path)
    else:
        for line, record in read_records(path):
            yield str(path), line, record


def iter_probes(path: str | Path) -> Iterator[Probe]:
    """Read and validate probe by probe; ids are not compared.

    Raises:
        ProbeError: at the first fault, naming file, line, field and remedy.
    """
    for file, line, record in _placed_records(Path(path)):
        yield parse_probe(record, path=file, line=line)


def read_probes(path: str | Path) -> ProbeSet:
    """Read and validate a whole probe file or dataset folder.

    Raises:
        ProbeError: at the first fault, naming file, line, field and remedy.
    """
    path = Path(path)
    probes: list[Probe] = []
    seen: dict[str, int] = {}
    for file, line, record in _placed_records(path):
        probe = parse_probe(record, path=file, line=line)
        if probe.probe_id in seen:
            raise ProbeError(
                f"repeats {quoted(probe.probe_id, 200)} of line "
                f"{seen[probe.probe_id]}.",
                path=file,
                line=line,
                field="probe_id",
                remedy="Ids must be unique in a set.",
            )
        seen[probe.probe_id] = line
        probes.append(probe)
    if not probes:
        raise ProbeError(
            "holds no probes.", path=path, remedy="Give at least one JSON line."
        )
    return ProbeSet(tuple(probes), str(path))


def write_probes(path: str | Path, probes: Iterable[Probe]) -> None:
    """Write a probe file, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    with written(place(path)) as handle:
        lines = io.TextIOWrapper(handle, "utf-8")
        jsonlines.Writer(lines).write_all(probe_to_record(probe) for probe in probes)
        lines.detach()  # flushed, and the handle still open


def count_kinds(probes: Sequence[Probe]) -> dict[str, int]:
    """How many probes have each kind, in the order of the kind table."""
    return {k: sum(k in probe.responses for probe in probes) for k in KIND_NAMES}
