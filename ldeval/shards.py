"""Probe sets in shards: cut, and what was scored of them joined again.

A shard is a run of its own over part of the probes, in a store inside the run::

    <store>/<run>/shards/shard_0000_of_0004/step_000120/   as any step

so that resumption, hash checks and broken checkpoints are a sweep's. Here is what is
new: which probes go where, and how the shards' tables become the run's. No table is
ever in memory whole. Apart from the distributed sweep, which decides who scores what.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np

from ldeval.decodes import kept_decodes, write_decodes
from ldeval.errors import MismatchError
from ldeval.files import passing_downloads
from ldeval.probes import ProbeSet
from ldeval.records import (
    GreedyDecodes,
    Manifest,
    NoiseFloor,
    Probe,
    ScoreTable,
)
from ldeval.scoring.score import Key, ResponseScore
from ldeval.scoring.tables import joined_hash
from ldeval.store import (
    MANIFEST,
    StoredTable,
    open_table,
    step_folder,
    write_parts,
)

FOLDER = "shards"
_NAME = re.compile(r"shard_\d{4,}_of_(\d{4,})")
_ALIKE = (
    "weights_hash",
    "tokenizer_hash",
    "span",
    "backend",
    "tier",
    "dtype",
    "vocab_size",
    "stored_dtype",
    "reference_step",
)
"""What the tables of one step must agree in, whoever scored them."""


@dataclass(frozen=True)
class Shard:
    """Part of a probe set."""

    number: int
    of: int
    probes: ProbeSet

    @property
    def name(self) -> str:
        """Of its run in the store of shards."""
        return f"shard_{self.number:04d}_of_{self.of:04d}"


def cut(probes: ProbeSet, count: int) -> tuple[Shard, ...]:
    """Shards of about equal length of text, in the order of the file.

    Args:
        count: at least 1; no more than there are probes are made.
    """
    count = min(count, len(probes.probes))
    reached = list(accumulate(map(_letters, probes.probes)))
    # shard k begins where k / count of the text is behind, and holds at least one
    starts = [0]
    for number in range(1, count):
        wanted = int(np.searchsorted(reached, reached[-1] * number / count))
        starts.append(max(starts[-1] + 1, min(wanted, len(reached) - count + number)))
    ends = [*starts[1:], len(reached)]
    return tuple(
        Shard(number, count, ProbeSet(probes.probes[start:end], probes.path))
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    )


def _letters(probe: Probe) -> int:
    prompt = str(probe.prompt)
    return len(prompt) + sum(len(r.text) for r in probe.responses.values())


def begun_with(run: Path) -> int | None:
    """How many shards an unfinished sweep of this run was cut into; None without one.

    Args:
        run: ``STORE/RUN``.
    """
    store = run / FOLDER
    if not store.is_dir():
        return None
    names = [_NAME.fullmatch(folder.name) for folder in store.iterdir()]
    return max((int(found[1]) for found in names if found), default=None)


# ---------------------------------------------------------------------------- joining


def join_step(
    run: Path,
    tables: Sequence[StoredTable],
    step: int,
    probes: ProbeSet,
    *,
    checkpoint: str,
    floor: NoiseFloor | None,
) -> Manifest:
    """Write a step of the run from those of its shards.

    Args:
        run: ``STORE/RUN``; its name is the table's.
        tables: of all shards, in order.
        probes: the whole set.
        checkpoint: path of the checkpoint, as the whole sweep names it.
        floor: the noise floor, where it was measured with this step.

    Raises:
        MismatchError: the shards were not scored alike.
        StoreError: one is damaged, or the disk cannot be written.
    """
    manifest = replace(
        _joined([table.manifest for table in tables]),
        run=run.name,
        step=step,
        checkpoint=checkpoint,
        probe_set_hash=probes.content_hash,
        noise_floor=floor,
    )
    parts = (part for table in tables for part in table.chunks())
    return write_parts(step_folder(run.parent, run.name, step), manifest, parts)


def _joined(manifests: Sequence[Manifest]) -> Manifest:
    first = manifests[0]
    for other in manifests[1:]:
        for name in _ALIKE:
            mine, theirs = getattr(first, name), getattr(other, name)
            if mine != theirs:
                raise MismatchError(
                    f"step {first.step}: {name} is {mine} in {first.run} and {theirs} "
                    f"in {other.run}. Do all workers have the same model files and "
                    "packages? Delete the folder of shards to score it again."
                )
    hashes = [m.context_hash for m in manifests if m.context_hash is not None]
    templates = (m.template_hash for m in manifests if m.template_hash is not None)
    return replace(
        first,
        template_hash=next(templates, None),
        n_probes=sum(m.n_probes for m in manifests),
        n_responses=sum(m.n_responses for m in manifests),
        n_tokens=sum(m.n_tokens for m in manifests),
        excluded=tuple(item for m in manifests for item in m.excluded),
        split_exceptions=tuple(item for m in manifests for item in m.split_exceptions),
        notes=tuple(dict.fromkeys(note for m in manifests for note in m.notes)),
        context_hash=joined_hash(hashes) if hashes else None,
        seconds=sum(m.seconds for m in manifests),
    )


def seed_step(run: Path, shards: Sequence[Shard], step: int) -> None:
    """Give each shard its part of a step that the run has, where it has none: the
    reference of its later steps.

    Raises:
        StoreError: the step is damaged, or the disk cannot be written.
    """
    folders = [step_folder(run / FOLDER, shard.name, step) for shard in shards]
    wanted = [n for n, item in enumerate(folders) if not (item / MANIFEST).is_file()]
    if not wanted:
        return
    with passing_downloads():
        whole = open_table(step_folder(run.parent, run.name, step))
        owners = {p.probe_id: n for n, shard in enumerate(shards) for p in shard.probes}
        # shards lie in the order of the rows: one reading gives all their parts
        parts = groupby(_pieces(whole, owners), key=itemgetter(0))
        left = set(wanted)
        for number, pieces in parts:
            if number in left:
                left.remove(number)
                _seed(folders[number], whole.manifest, shards[number], pieces)
        for number in left:  # nothing of it was scored
            empty = next(iter(whole.chunks())).part(0, 0)
            _seed(folders[number], whole.manifest, shards[number], [(number, empty)])


def _pieces(
    whole: StoredTable, owners: Mapping[str, int]
) -> Iterator[tuple[int, ScoreTable]]:
    """(shard, part of its rows) of a table, in order."""
    for part in whole.chunks():
        of = np.array([owners[str(name)] for name in part.probe_ids], int)
        edges = [0, *(np.flatnonzero(np.diff(of)) + 1).tolist(), len(of)]
        for start, stop in pairwise(edges):
            if start < stop:
                yield int(of[start]), part.part(start, stop)


def _seed(
    folder: Path,
    whole: Manifest,
    shard: Shard,
    pieces: Iterable[tuple[int, ScoreTable]],
) -> None:
    names = {probe.probe_id for probe in shard.probes}
    manifest = replace(
        whole,
        run=shard.name,
        probe_set_hash=shard.probes.content_hash,
        n_probes=len(names),
        excluded=tuple(item for item in whole.excluded if item.probe_id in names),
        split_exceptions=tuple(n for n in whole.split_exceptions if n in names),
        noise_floor=None,
    )
    write_parts(folder, manifest, (part for _, part in pieces))


def seed_decodes(run: Path, shards: Sequence[Shard], step: int) -> None:
    """Give each shard its part of the greedy decodes that the run has of a step: those
    that the decodes of later steps follow.

    Raises:
        StoreError: they are damaged, or the disk cannot be written.
    """
    whole = kept_decodes(run, step, {})
    if whole is None:
        return
    for shard in shards:
        names = {probe.probe_id for probe in shard.probes}
        part = replace(
            whole,
            probe_set_hash=shard.probes.content_hash,
            decodes=tuple(d for d in whole.decodes if d.probe_id in names),
            excluded=tuple(e for e in whole.excluded if e.probe_id in names),
            # a number of all shards together: the first one has it
            off_argmax=0 if shard.number else whole.off_argmax,
        )
        write_decodes(run / FOLDER / shard.name, part)


def sample_scores(
    tables: Iterable[StoredTable], sample: Sequence[Probe]
) -> dict[Key, ResponseScore]:
    """The stored scores of some probes, as a model had given them."""
    names = {probe.probe_id for probe in sample}
    return dict(_scores(tables, names))


def _scores(
    tables: Iterable[StoredTable], names: set[str]
) -> Iterator[tuple[Key, ResponseScore]]:
    for table in tables:
        native = table.manifest.tier == "native"
        for part in table.chunks():
            for row in np.flatnonzero(np.isin(part.probe_ids, list(names))).tolist():
                tokens = part.row(row)
                yield (
                    (str(part.probe_ids[row]), str(part.kinds[row])),
                    ResponseScore(
                        float(part.logprob_sums[row]),
                        tokens if native else None,
                        tuple(tokens.token_ids.tolist()),
                    ),
                )


def join_decodes(
    run: Path, shards: Sequence[Shard], step: int, probes: ProbeSet
) -> GreedyDecodes | None:
    """Write the greedy decodes of a step from those of its shards; None where a shard
    has none.

    Raises:
        StoreError: one is damaged, or the disk cannot be written.
    """
    found = [kept_decodes(run / FOLDER / shard.name, step, {}) for shard in shards]
    kept = [item for item in found if item is not None]
    if len(kept) < len(found):
        return None
    joined = replace(
        kept[0],
        probe_set_hash=probes.content_hash,
        decodes=tuple(decode for item in kept for decode in item.decodes),
        excluded=tuple(out for item in kept for out in item.excluded),
        off_argmax=sum(item.off_argmax for item in kept),
    )
    write_decodes(run, joined)
    return joined
