"""Scores on disk: whole, hash-checked, resumable.

::

    <store>/<run>/
        trained.jsonl           which examples each optimizer step trained on, if known
        probes.jsonl            the probes that were scored
        tokenizer.json          how their tokens are spelled, where there is one
        greedy/                 greedy decodes by step, if kept (:mod:`decodes`)
        step_000120/
            responses.parquet   one row a response: probe_id, kind, n_tokens, sums
            tokens.parquet      one row a token, in the order of the responses
            manifest.json       written last; its presence means complete

Each file is written whole (:mod:`files`); the manifest holds the size and SHA-256 of
the others, so that what is half-written or damaged is never read as scores. A store may
be at a URL: only the manifest's presence is relied on there, since object stores cannot
rename.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldeval.errors import IncompleteError, StoreError
from ldeval.files import (
    file_size,
    local_copy,
    move_tree,
    named,
    own_name,
    place,
    read_text,
    remove,
    remove_tree,
    strict_json,
    understood,
    write_whole,
    written,
)
from ldeval.records import (
    SCHEMA_VERSION,
    Excluded,
    Manifest,
    NoiseFloor,
    ScoreTable,
    TokenScores,
)
from ldeval.records.checked import check_types

MANIFEST = "manifest.json"
RESPONSES = "responses.parquet"
TOKENS = "tokens.parquet"
TRAINED = "trained.jsonl"
_TOKENS_PER_ROW_GROUP = 65_536

_WIDE = ("top_ids", "top_logprobs", "ref_ids", "ref_logprobs")
"""Token columns that hold k values a row."""


@dataclass(frozen=True)
class StoredStep:
    """One step folder of a run."""

    step: int
    folder: Path
    complete: bool


def step_folder(store: str | Path, run: str, step: int) -> Path:
    """Where a step's table stands.

    Raises:
        StoreError: for a run name that would leave the store.
    """
    return run_folder(store, run) / f"step_{step:06d}"


def run_folder(store: str | Path, run: str) -> Path:
    """Where a run stands.

    Raises:
        StoreError: for a run name that would leave the store.
    """
    if not run or run in (".", "..") or any(mark in run for mark in "/\\\0"):
        raise StoreError(
            f"run name {run!r} is not a plain folder name. Give one with --run."
        )
    return place(store) / run


def list_runs(store: str | Path) -> dict[str, list[StoredStep]]:
    """Runs of a store and their steps, by name and step.

    Args:
        store: the store; or one run in it, which then is the only one.

    Raises:
        StoreError: when it does not exist or holds no runs.
    """
    root = place(store)
    with named(root, "Is it there, and can it be reached?", doing="read"):
        if not root.is_dir():
            raise StoreError(
                f"{root}: no such store. Score a run into it: ldeval sweep."
            )
        own = list_steps(root)
        if own:
            return {own_name(root): own}
        runs = {}
        for folder in sorted(root.iterdir(), key=str):
            steps = list_steps(folder) if folder.is_dir() else []
            if steps:
                runs[folder.name] = steps
    if not runs:
        raise StoreError(
            f"{root}: holds no runs. Give a store, or one run in it; 'ldeval sweep' "
            "makes them."
        )
    return runs


def list_steps(run: str | Path) -> list[StoredStep]:
    """The steps of one run, complete or not."""
    root = place(run)
    found = []
    with named(root, "Is it there, and can it be reached?", doing="read"):
        for folder in _named_like(root, "step_"):
            number = folder.name.removeprefix("step_")
            if number.isascii() and number.isdigit() and folder.is_dir():
                complete = (folder / MANIFEST).is_file()
                found.append(StoredStep(int(number), folder, complete))
    return sorted(found, key=lambda item: item.step)


def _named_like(folder: Path, prefix: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return [item for item in folder.iterdir() if item.name.startswith(prefix)]


def set_aside(run: str | Path, steps: Sequence[StoredStep]) -> Path:
    """Move steps out of a run, into ``replaced_N`` in its folder, where nothing reads
    them.

    Raises:
        StoreError: when they cannot be moved.
    """
    root = place(run)
    taken = [path.name for path in _named_like(root, "replaced_")]
    number = 1 + max((int(name[9:]) for name in taken if name[9:].isdigit()), default=0)
    target = root / f"replaced_{number}"
    for item in steps:
        move_tree(item.folder, target / item.folder.name)
    return target


# --------------------------------------------------------------------------- writing


def write_table(folder: str | Path, table: ScoreTable) -> Manifest:
    """Write a table; its manifest last.

    Returns:
        The manifest as written, with the files' sizes and hashes.

    Raises:
        StoreError: when the disk is full or cannot be written; nothing that was
            complete before is touched then.
    """
    return write_parts(folder, table.manifest, [table])


def write_parts(
    folder: str | Path, manifest: Manifest, parts: Iterable[ScoreTable]
) -> Manifest:
    """Write a table that comes in parts, in order, so that it need not fit in memory.

    The files are the same to the last byte, however the responses were parted.

    Args:
        parts: at least one; whole responses each, all with the same columns.

    Returns, Raises: as :func:`write_table`.
    """
    folder = place(folder)
    # incomplete leftovers of a killed run, or a table being replaced: without its
    # manifest it is incomplete from here on
    remove(folder / MANIFEST)
    remove_tree(folder)
    responses, tokens = folder / RESPONSES, folder / TOKENS
    with written(responses) as first, written(tokens) as second:
        start = 0
        with _Groups(first) as rows, _Groups(second) as columns:
            for part in parts:
                rows.add(_responses(part))
                columns.add(_tokens(part, start))
                start += len(part)
        files = {RESPONSES: _described(first), TOKENS: _described(second)}
    written_manifest = dataclasses.replace(manifest, files=files)
    record = manifest_to_json(written_manifest)
    write_whole(folder / MANIFEST, json.dumps(record, indent=1, ensure_ascii=False))
    return written_manifest


class _Groups:
    """A Parquet file in row groups of one size, whatever size its rows come in."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        """Take rows; write the groups that they fill."""
        self._waiting.append(rows)
        if sum(len(table) for table in self._waiting) < _TOKENS_PER_ROW_GROUP:
            return
        joined = pa.concat_tables(self._waiting)
        whole = len(joined) - len(joined) % _TOKENS_PER_ROW_GROUP
        for start in range(0, whole, _TOKENS_PER_ROW_GROUP):
            self._write(joined.slice(start, _TOKENS_PER_ROW_GROUP))
        self._waiting = [joined.slice(whole)]

    def __enter__(self) -> _Groups:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Write what is left; after an error, only let go of the handle."""
        try:
            if error is None:
                left = pa.concat_tables(self._waiting)
                if len(left) or self._writer is None:
                    self._write(left)
                self._close()
        except BaseException:
            self._abandon()
            raise
        if error is not None:
            self._abandon()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _abandon(self) -> None:
        with contextlib.suppress(OSError, pa.ArrowException):
            self._close()

    def _write(self, group: pa.Table) -> None:
        # one chunk a column: pages would else begin where chunks do
        group = group.combine_chunks()
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._handle, group.schema, compression="zstd"
            )
        self._writer.write_table(group, row_group_size=_TOKENS_PER_ROW_GROUP)


def _described(handle: BinaryIO) -> dict[str, Any]:
    handle.seek(0)
    digest = hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]
    return {"bytes": handle.tell(), "sha256": digest}


def _responses(table: ScoreTable) -> pa.Table:
    columns: dict[str, Any] = {
        "probe_id": pa.array(table.probe_ids.tolist(), pa.string()),
        "kind": pa.array(table.kinds.tolist(), pa.string()),
        "trained": table.trained,
        "text_hash": pa.array(table.text_hashes.tolist(), pa.string()),
        "n_tokens": table.n_tokens.astype(np.int32),
        "logprob_sum": table.logprob_sums,
    }
    if table.tokens.argmax_logprobs is not None:
        columns["argmax_logprob_sum"] = table.sums(table.tokens.argmax_logprobs)
    return pa.table(columns)


def _tokens(table: ScoreTable, start: int) -> pa.Table:
    """Rows of tokens; ``start``: responses that came before."""
    lengths = table.n_tokens
    numbers = np.arange(start, start + len(table), dtype=np.int32)
    columns: dict[str, Any] = {"response": np.repeat(numbers, lengths)}
    for field in dataclasses.fields(TokenScores):
        column = getattr(table.tokens, field.name)
        if column is None:
            continue
        if field.name in _WIDE:
            flat = pa.array(np.ascontiguousarray(column).reshape(-1))
            columns[field.name] = pa.FixedSizeListArray.from_arrays(
                flat, column.shape[1]
            )
        else:
            columns[field.name] = column
    return pa.table(columns)


# --------------------------------------------------------------------------- reading


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a step.

    Raises:
        IncompleteError: when there is none.
        StoreError: when it is damaged, or of another schema version.
    """
    path = place(folder) / MANIFEST
    try:
        record = strict_json(read_text(path))
    except FileNotFoundError:
        raise IncompleteError(
            f"{folder}: no {MANIFEST}, so scoring into it never finished. Run the same "
            "'ldeval sweep' again: it goes on from here."
        ) from None
    except ValueError as error:
        raise StoreError(
            f"{path}: cannot be read ({error}). Delete this step's folder and run the "
            "sweep again."
        ) from error
    return manifest_from_json(record, str(path))


def read_table(folder: str | Path, *, verify: bool = True) -> ScoreTable:
    """Read a step.

    Args:
        verify: check each file's size and SHA-256 against the manifest.

    Raises:
        StoreError: when it is incomplete or damaged, naming the file.
    """
    stored = open_table(folder, verify=verify)
    parts = list(stored.chunks())
    if len(parts) == 1:
        return parts[0]
    return _joined(stored.manifest, parts)


@dataclass(frozen=True)
class StoredTable:
    """A step on disk, read part by part: its tokens never stand in memory at once."""

    folder: Path
    manifest: Manifest
    columns: tuple[str, ...] | None = None
    """Token columns that are read, ``token_ids`` and ``logprobs`` among them; None: all
    that are stored. The others are then absent."""

    def chunks(self) -> Iterator[ScoreTable]:
        """Parts of whole responses, about a row group each.

        Raises:
            StoreError: a file is damaged.
        """
        responses_file, tokens_file = (
            local_copy(self.folder / name, _digest(self.manifest, name))
            for name in (RESPONSES, TOKENS)
        )
        try:
            responses = pq.read_table(responses_file)
            _check_responses(responses)
            with pq.ParquetFile(tokens_file) as file:
                yield from _parts(self.manifest, responses, file, self.columns)
        except (
            OSError,
            pa.ArrowException,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise StoreError(
                f"{self.folder}: the tables cannot be read ({error}). Delete this "
                "step's folder and run the sweep again."
            ) from error


def open_table(folder: str | Path, *, verify: bool = True) -> StoredTable:
    """A step, ready to be read part by part.

    Args:
        verify: check each file's size and SHA-256 against the manifest.

    Raises:
        StoreError: when it is incomplete or damaged, naming the file.
    """
    folder = place(folder)
    manifest = read_manifest(folder)
    if verify:
        for name in (RESPONSES, TOKENS):
            _verify(folder / name, manifest.files.get(name))
    return StoredTable(folder, manifest)


def open_run(run: str | Path) -> list[StoredTable]:
    """All complete steps of a run, ready to be read part by part.

    Raises:
        StoreError: when there is none, or one is damaged.
    """
    return [open_table(item.folder) for item in _complete(place(run))]


def _parts(
    manifest: Manifest,
    responses: pa.Table,
    file: pq.ParquetFile,
    columns: tuple[str, ...] | None,
) -> Iterator[ScoreTable]:
    """Whole responses as their tokens come in; the rest waits for the next group."""
    lengths = responses["n_tokens"].to_numpy()
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if total != file.metadata.num_rows:
        raise ValueError(f"{file.metadata.num_rows} tokens for {total} in {RESPONSES}")
    stored = file.schema_arrow.names
    wanted = None if columns is None else [n for n in columns if n in stored]
    start, read = 0, 0
    waiting: list[TokenScores] = []
    for group in range(file.num_row_groups):
        found = file.read_row_group(group, columns=wanted, use_threads=False)
        part = _token_scores(found)
        read += len(part)
        waiting.append(part)
        stop = int(np.searchsorted(ends, read, side="right"))
        if stop == start and group < file.num_row_groups - 1:
            continue
        tokens = TokenScores.concatenate(waiting) if len(waiting) > 1 else waiting[0]
        if group == file.num_row_groups - 1:
            stop = len(lengths)
        first = int(ends[start - 1]) if start else 0
        used = (int(ends[stop - 1]) if stop else 0) - first
        yield _table(manifest, responses.slice(start, stop - start), tokens, used)
        waiting = [tokens.slice(used, len(tokens))]
        start = stop
    if not file.num_row_groups:
        empty = TokenScores(np.zeros(0, np.int32), np.zeros(0, np.float32))
        yield _table(manifest, responses, empty, 0)


def _table(
    manifest: Manifest, responses: pa.Table, tokens: TokenScores, used: int
) -> ScoreTable:
    lengths = responses["n_tokens"].to_numpy()
    return ScoreTable(
        manifest=manifest,
        probe_ids=np.array(responses["probe_id"].to_pylist(), dtype=np.str_),
        kinds=np.array(responses["kind"].to_pylist(), dtype=np.str_),
        trained=responses["trained"].to_numpy().astype(np.bool_),
        text_hashes=np.array(responses["text_hash"].to_pylist(), dtype=np.str_),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        tokens=tokens.slice(0, used),
        logprob_sums=responses["logprob_sum"].to_numpy(),
    )


def _check_responses(responses: pa.Table) -> None:
    """Columns that numpy would take whatever they hold: null becomes the text 'None',
    and a length below zero another response's tokens."""
    for name in ("probe_id", "kind", "text_hash", "trained", "n_tokens"):
        if responses[name].null_count:
            raise ValueError(f"column {name!r} of {RESPONSES} has empty cells")
    for name in ("probe_id", "kind", "text_hash"):
        if not pa.types.is_string(responses.schema.field(name).type):
            raise ValueError(f"column {name!r} of {RESPONSES} is not text")
    if not pa.types.is_boolean(responses.schema.field("trained").type):
        raise ValueError(f"column 'trained' of {RESPONSES} is not true or false")
    if not pa.types.is_int32(responses.schema.field("n_tokens").type):
        raise ValueError(f"column 'n_tokens' of {RESPONSES} is not int32")
    if not pa.types.is_floating(responses.schema.field("logprob_sum").type):
        raise ValueError(f"column 'logprob_sum' of {RESPONSES} is not floating point")
    if len(responses) and responses["n_tokens"].to_numpy().min() < 0:
        raise ValueError(f"{RESPONSES} has a response of less than no tokens")


def _token_scores(table: pa.Table) -> TokenScores:
    for name in ("token_ids", "logprobs"):
        if name not in table.column_names:
            raise ValueError(f"no column {name!r}")
    names = [field.name for field in dataclasses.fields(TokenScores)]
    tokens = TokenScores(**{name: _column(table, name) for name in names})
    check_types(tokens)
    return tokens


def _joined(manifest: Manifest, parts: list[ScoreTable]) -> ScoreTable:
    counts = np.concatenate([part.n_tokens for part in parts])
    return ScoreTable(
        manifest=manifest,
        probe_ids=np.concatenate([part.probe_ids for part in parts]),
        kinds=np.concatenate([part.kinds for part in parts]),
        trained=np.concatenate([part.trained for part in parts]),
        text_hashes=np.concatenate([part.text_hashes for part in parts]),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        tokens=TokenScores.concatenate([part.tokens for part in parts]),
        logprob_sums=np.concatenate([part.logprob_sums for part in parts]),
    )


def _column(table: pa.Table, name: str) -> Any:
    if name not in table.column_names:
        return None
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    kind = column.type
    if name in _WIDE:
        if not pa.types.is_fixed_size_list(kind) or column.null_count:
            raise ValueError(f"column {name!r} of {TOKENS} is {kind}, or has gaps")
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"column {name!r} of {TOKENS} is {kind}, not numbers")
    if name not in _WIDE:
        return column.to_numpy(zero_copy_only=False)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def _verify(path: Path, expected: Mapping[str, Any] | None) -> None:
    remedy = "Delete this step's folder and run the sweep again."
    if expected is None:
        raise StoreError(
            f"{path.parent / MANIFEST}: does not list {path.name}. {remedy}"
        )
    if not path.is_file():
        raise StoreError(f"{path}: is not there. {remedy}")
    copy = local_copy(path, str(expected.get("sha256")))
    with named(path, remedy, doing="read"), copy.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != expected.get("sha256"):
        raise StoreError(
            f"{path}: SHA-256 is {digest[:12]}… in {file_size(copy)} bytes, the "
            f"manifest says {str(expected.get('sha256'))[:12]}… in "
            f"{expected.get('bytes')}. It was changed or cut short. {remedy}"
        )


def _digest(manifest: Manifest, name: str) -> str:
    return str(manifest.files.get(name, {}).get("sha256"))


def load_run(run: str | Path) -> list[ScoreTable]:
    """All complete tables of a run, by step.

    Raises:
        StoreError: when there is none.
    """
    return [read_table(item.folder) for item in _complete(place(run))]


def _complete(folder: Path) -> list[StoredStep]:
    complete = [item for item in list_steps(folder) if item.complete]
    if not complete:
        raise StoreError(
            f"{folder}: no complete step in it. 'ldeval ls {folder.parent}' shows what "
            "there is; 'ldeval sweep' scores the rest."
        )
    return complete


# ------------------------------------------------------------------- what was trained


def read_trained(run: str | Path) -> dict[int, frozenset[str]] | None:
    """Which examples each optimizer step trained on; None where it is not known.

    Raises:
        StoreError: when the record is damaged, naming the line.
    """
    path = place(run) / TRAINED
    if not path.is_file():
        return None
    steps: dict[int, frozenset[str]] = {}
    for step, examples, _ in _trained_lines(path):
        steps[step] = steps.get(step, frozenset()) | examples
    return steps


def read_trained_tokens(run: str | Path) -> dict[int, int] | None:
    """How many tokens the loss of each optimizer step counted; None where one step
    does not tell, or nothing was recorded.

    Raises:
        StoreError: when the record is damaged, naming the line.
    """
    path = place(run) / TRAINED
    if not path.is_file():
        return None
    steps: dict[int, int] = {}
    for step, _, tokens in _trained_lines(path):
        if tokens is None:
            return None
        steps[step] = steps.get(step, 0) + tokens
    return steps


def _trained_lines(path: Path) -> Iterator[tuple[int, frozenset[str], int | None]]:
    """Step, examples and tokens (if told) of each line."""
    with local_copy(path).open("rb") as handle:
        for number, line in enumerate(handle, 1):
            with understood(
                path.with_name(f"{path.name}:{number}"),
                'Delete the line, or the file to go without it; a line is {"step": 1, '
                '"examples": ["a", "b"]}.',
            ):
                record = strict_json(line)
                ids, tokens = record["examples"], record.get("tokens")
                if not isinstance(ids, list):
                    raise TypeError(f"examples is {type(ids).__name__}, not a list")
                examples = frozenset(_example_id(item) for item in ids)
                step = _count("step", record["step"])
                tokens = None if tokens is None else _count("tokens", tokens)
            yield step, examples, tokens


def _example_id(value: object) -> str:
    """An id; a number, as some data number their rows, is its digits."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"an example is {type(value).__name__}, not an id")
    return str(value)


def _count(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError(f"{name} is {str(value)[:40]!r}, not a count")
    return value


# --------------------------------------------------------------------------- manifest


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as strict JSON; an unknown duration is null."""
    record = dataclasses.asdict(manifest)
    if math.isnan(manifest.seconds):
        record["seconds"] = None
    return record


def manifest_from_json(record: Any, place: str) -> Manifest:
    """Read a manifest back.

    Raises:
        StoreError: on another schema version or a missing field.
    """
    if not isinstance(record, dict):
        raise StoreError(f"{place}: holds {type(record).__name__}, not a manifest.")
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{place}: schema version {version!r}; this ldeval reads {SCHEMA_VERSION}. "
            "Score again, or use the ldeval that wrote it."
        )
    fields = {field.name for field in dataclasses.fields(Manifest)}
    remedy = "Delete this step's folder and run the sweep again."
    with understood(Path(place), remedy):
        values = {key: value for key, value in record.items() if key in fields}
        values["excluded"] = tuple(Excluded(**item) for item in record["excluded"])
        for name in ("split_exceptions", "notes"):
            if not isinstance(record[name], list):
                raise TypeError(f"{name} is {type(record[name]).__name__}, not a list")
            values[name] = tuple(record[name])
        floor = record.get("noise_floor")
        values["noise_floor"] = None if floor is None else NoiseFloor(**floor)
        seconds = record["seconds"]
        values["seconds"] = math.nan if seconds is None else float(seconds)
        manifest = Manifest(**values)
        check_types(manifest)
        return manifest
