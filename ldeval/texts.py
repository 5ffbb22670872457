"""The texts behind stored scores: which probes they are of, and how tokens are spelled.

A table holds ids and hashes. A sweep keeps its probes and its tokenizer beside the
tables; for runs that were stored without them they are looked for where they may be,
and taken only where they fit what was scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldeval.bundled import bundled_probes
from ldeval.errors import MismatchError
from ldeval.files import copy_whole, local_copy
from ldeval.probes import ProbeSet, read_probes, text_hash, write_probes
from ldeval.store import StoredTable

PROBES = "probes.jsonl"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Texts:
    """What could be found of a run's texts."""

    probes: ProbeSet | None
    tokenizer: Path | None
    """A ``tokenizer.json``."""


def keep_texts(run: Path, probes: ProbeSet, folders: Iterable[str | Path]) -> None:
    """Put the probes and the first tokenizer of some folders beside a run's tables.

    Raises:
        StoreError: the disk cannot be written.
    """
    write_probes(run / PROBES, probes)
    found = _first(Path(folder) / TOKENIZER for folder in folders)
    if found is not None:
        copy_whole(found, run / TOKENIZER)


def find_texts(
    run: Path,
    tables: Sequence[StoredTable],
    *,
    probes: Path | None = None,
    tokenizer: Path | None = None,
) -> Texts:
    """The probes and the tokenizer of a stored run.

    Args:
        run: its folder, where a sweep keeps both.
        tables: its checkpoints.
        probes: a probe file to take instead.
        tokenizer: a ``tokenizer.json``, or a folder with one, to take instead.

    Raises:
        MismatchError: the probe file that was named is not what was scored.
        ProbeError: it is malformed.
    """
    if probes is not None:
        named = read_probes(probes)
        if not fits(named, tables[0]):
            raise MismatchError(
                f"{probes}: content hash {named.content_hash[:12]}, but {run} was "
                f"scored on {tables[0].manifest.probe_set_hash[:12]}, and not all of "
                "its responses are in that file. Name the probe file of the sweep."
            )
        found: ProbeSet | None = named
    else:
        places = [run / PROBES, bundled_probes()]
        sets = (read_probes(local_copy(p)) for p in places if p.is_file())
        found = next((item for item in sets if fits(item, tables[0])), None)
    if tokenizer is None:
        folders = [run, *(Path(table.manifest.checkpoint) for table in tables)]
        tokenizer = _first(folder / TOKENIZER for folder in folders)
    elif tokenizer.is_dir():
        tokenizer = tokenizer / TOKENIZER
    return Texts(found, None if tokenizer is None else local_copy(tokenizer))


def fits(probes: ProbeSet, table: StoredTable) -> bool:
    """Whether these are the probes that were scored, or hold them all."""
    if probes.content_hash == table.manifest.probe_set_hash:
        return True
    hashes = {
        (probe.probe_id, kind): text_hash(response.text)
        for probe in probes
        for kind, response in probe.responses.items()
    }
    narrow = StoredTable(table.folder, table.manifest, ("token_ids", "logprobs"))
    for chunk in narrow.chunks():
        rows = zip(
            chunk.probe_ids.tolist(),
            chunk.kinds.tolist(),
            chunk.text_hashes.tolist(),
            strict=True,
        )
        if any(hashes.get((probe, kind)) != found for probe, kind, found in rows):
            return False
    return True


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)
