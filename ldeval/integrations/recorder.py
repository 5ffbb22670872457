"""Which examples each optimizer step trained on, written while it trains.

    trainer = DPOTrainer(..., train_dataset=data)
    ldeval.record_examples(trainer, ids="probe_id")
    trainer.train()

A callback is given no batch, so the ids travel inside it: the collator of the training
data adds them as a tensor, which every way of loading, sharding and moving batches
leaves alone, and the training step takes them out again before the model sees them.
What is written is therefore what was trained on, whatever the sampler did.

::

    <output_dir>/
        trained.jsonl             what all processes trained on: step, examples, tokens
        trained/rank_00000.jsonl  what one process trained on, a line a step

A line is written when its step is done; a process that is killed loses none before. The
merged file is written anew with every checkpoint and at the end. Training that goes on
from a checkpoint drops the lines of later steps.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ldeval.errors import TrainedRecordError
from ldeval.files import copy_whole, lenient_json, named, write_whole
from ldeval.integrations.order import example_id, refuse_shuffled
from ldeval.store import TRAINED

log = logging.getLogger(__name__)

COLUMN = "ldeval_example_ids"
"""What the ids are called inside a batch."""
WIDTH = 64
"""Bytes of an id, filled up with zeros."""
FOLDER = "trained"
RANKS = "rank_*.jsonl"
IGNORED = -100
"""The label of a token that the loss leaves out, as in torch and transformers."""


def record_examples(trainer: Any, ids: str | Sequence[str]) -> ExampleRecorder:
    """Let a trainer write which examples each of its optimizer steps trained on.

    Args:
        trainer: of transformers or TRL, before ``train``.
        ids: the column of the training data that holds each example's id; or one id a
            row, in the order of the trainer's data. ``ldeval diff`` takes them for
            ``probe_id``.

    Returns:
        The recorder, which is a callback of the trainer now.

    Raises:
        TrainedRecordError: when no row of the training data is one example.
    """
    column = _prepared_column(trainer, ids)
    recorder = ExampleRecorder()
    _record_in_collator(trainer, column)
    _take_out_in_step(trainer, recorder)
    trainer.add_callback(recorder)
    # first, so that whoever reads the record at the end of a step finds the step in it
    callbacks = trainer.callback_handler.callbacks
    callbacks.insert(0, callbacks.pop(callbacks.index(recorder)))
    return recorder


# ------------------------------------------------------------------------- the batches


def _prepared_column(trainer: Any, ids: str | Sequence[str]) -> str:
    """Make sure that every training example carries an id; returns the column."""
    if getattr(trainer.args, "packing", False):
        raise TrainedRecordError(
            "the trainer packs examples (packing=True): a row of its data holds parts "
            "of several, and their ids are lost. Train without packing to record them."
        )
    data = trainer.train_dataset
    if data is None:
        raise TrainedRecordError("the trainer has no train_dataset")
    columns = getattr(data, "column_names", None)
    if isinstance(ids, str):
        if columns is not None and ids not in columns:
            raise TrainedRecordError(
                f"the trainer's data has no column {ids!r}, only "
                f"{', '.join(columns)}. Put one id a row into the dataset, or give "
                "ids=[…], one a row."
            )
        return ids
    refuse_shuffled(trainer.args)
    if not hasattr(data, "__len__") or len(ids) != len(data):
        count = len(data) if hasattr(data, "__len__") else "an unknown number of"
        raise TrainedRecordError(
            f"{len(ids)} ids were given for {count} rows (after the trainer's own "
            "filters). Put the ids into the dataset as a column and give its name."
        )
    values = [example_id(item) for item in ids]
    if hasattr(data, "add_column"):
        trainer.train_dataset = data.add_column(COLUMN, values)
    else:
        trainer.train_dataset = _WithIds(data, values)
    return COLUMN


class _WithIds(torch.utils.data.Dataset[Any]):
    """A map-style dataset whose examples carry an id."""

    def __init__(self, data: Any, ids: Sequence[str]) -> None:
        self._data, self._ids = data, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._data[index], COLUMN: self._ids[index]}


class RecordingCollator:
    """Another collator, with the examples' ids beside its batch."""

    def __init__(self, inner: Any, column: str) -> None:
        self._inner, self._column = inner, column

    def __call__(self, examples: Sequence[Any]) -> Any:
        ids, rest = [], []
        for example in examples:
            example = dict(example)
            if self._column not in example:
                raise TrainedRecordError(
                    f"an example has no {self._column!r}: {sorted(example)}"
                )
            ids.append(example_id(example.pop(self._column)))
            rest.append(example)
        batch = self._inner(rest)
        if not isinstance(batch, Mapping):
            raise TrainedRecordError(
                f"the collator gives {type(batch).__name__}, not a mapping, so that "
                "ids cannot travel with it"
            )
        batch[COLUMN] = encoded_ids(ids)  # type: ignore[index]  # dict or BatchEncoding
        return batch


def encoded_ids(ids: Sequence[str]) -> torch.Tensor:
    """Ids as [B, :data:`WIDTH`] uint8.

    Raises:
        TrainedRecordError: for one that is too long.
    """
    rows = torch.zeros((len(ids), WIDTH), dtype=torch.uint8)
    for row, name in enumerate(ids):
        content = name.encode("utf-8")
        if not 0 < len(content) <= WIDTH or b"\0" in content:
            raise TrainedRecordError(
                f"example id {name!r} has {len(content)} bytes; give ids of 1 to "
                f"{WIDTH}, without NUL"
            )
        rows[row, : len(content)] = torch.frombuffer(
            bytearray(content), dtype=torch.uint8
        )
    return rows


def decoded_ids(rows: torch.Tensor) -> list[str]:
    """The inverse."""
    return [bytes(row).rstrip(b"\0").decode("utf-8") for row in rows.cpu().numpy()]


def _record_in_collator(trainer: Any, column: str) -> None:
    """Record training batches, not those of evaluation: the collator and the list of
    columns that reach it are others only while the training data is set up."""
    make = trainer.get_train_dataloader

    def get_train_dataloader() -> Any:
        collator, columns = trainer.data_collator, trainer._signature_columns
        trainer._set_signature_columns_if_needed()
        known = trainer._signature_columns
        trainer._signature_columns = [*known, column]
        trainer.data_collator = RecordingCollator(collator, column)
        try:
            return make()
        finally:
            trainer.data_collator = collator
            trainer._signature_columns = columns

    trainer.get_train_dataloader = get_train_dataloader


def _take_out_in_step(trainer: Any, recorder: ExampleRecorder) -> None:
    step = trainer.training_step
    config = getattr(trainer.model, "config", None)
    shifted = getattr(
        trainer,
        "_loss_shifts_labels",  # transformers tells since its version 5
        not getattr(config, "is_encoder_decoder", False),
    )

    def training_step(model: Any, inputs: Any, *others: Any, **named: Any) -> Any:
        recorder.see(inputs.pop(COLUMN), trained_tokens(inputs, shifted=shifted))
        return step(model, inputs, *others, **named)

    trainer.training_step = training_step


def trained_tokens(
    inputs: Mapping[str, Any], *, shifted: bool = True
) -> torch.Tensor | None:
    """How many tokens of a batch the loss counts, a scalar; None where it is not told.

    Labels say so in most trainers, TRL's completion mask in those of preferences.

    Args:
        inputs: the batch.
        shifted: whether the loss holds each label against the position before it, so
            that nothing predicts the first.
    """
    labels, mask = inputs.get("labels"), inputs.get("completion_mask")
    moved = inputs.get("shift_labels")
    if isinstance(moved, torch.Tensor):
        return (moved != IGNORED).sum()
    if isinstance(labels, torch.Tensor):
        return ((labels[..., 1:] if shifted else labels) != IGNORED).sum()
    if isinstance(mask, torch.Tensor):
        return mask.sum()
    return None


# ---------------------------------------------------------------------------- the file


class ExampleRecorder(TrainerCallback):  # type: ignore[misc]  # untyped
    """Writes a line for every optimizer step of this process."""

    def __init__(self) -> None:
        self._seen: list[torch.Tensor] = []
        self._tokens: list[torch.Tensor | None] = []
        self._path: Path | None = None

    def see(self, rows: torch.Tensor, tokens: torch.Tensor | None) -> None:
        """A batch that is about to be trained on, and how many of its tokens count."""
        self._seen.append(rows)
        self._tokens.append(tokens)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, **objects: Any
    ) -> None:
        """Go on after the step that training starts from."""
        self._seen, self._tokens = [], []
        folder = Path(args.output_dir) / FOLDER
        with named(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"rank_{args.process_index:05d}.jsonl"
        _forget_after(state.global_step, self._path)
        if args.process_index == 0:
            # of more processes, in earlier training
            for path in folder.glob(RANKS):
                if _rank(path) >= args.world_size:
                    _forget_after(state.global_step, path)

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Write the step's line."""
        assert self._path is not None
        ids = [name for rows in self._seen for name in decoded_ids(rows)]
        line = {"step": state.global_step, "examples": ids, "world": args.world_size}
        counted = [int(n) for n in self._tokens if n is not None]
        if counted and len(counted) == len(self._tokens):
            line["tokens"] = sum(counted)
        self._seen, self._tokens = [], []
        with named(self._path), self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")

    def on_save(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Merge what the processes wrote."""
        _merge(args)

    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Merge what the processes wrote."""
        _merge(args)


def _rank(path: Path) -> int:
    digits = path.stem.removeprefix("rank_")
    return int(digits) if digits.isdecimal() else -1


def _forget_after(step: int, path: Path) -> None:
    """Drop the lines of training that was lost."""
    _rewrite(path, [record for record in _lines(path) if record["step"] <= step])


def forget_lost(output_dir: Path, step: int) -> None:
    """Drop what is recorded of steps after one: training that goes on from there, be it
    recorded or not, does them anew."""
    for path in (output_dir / FOLDER).glob(RANKS):
        _forget_after(step, path)


def _merge(args: Any) -> None:
    if args.world_size > 1:
        torch.distributed.barrier()
    if args.process_index == 0:
        merge_records(args.output_dir)


def merge_records(output_dir: str | Path) -> int:
    """Write ``trained.jsonl`` from what each process wrote.

    A step counts once every process that took part in it has written its line.

    Returns:
        How many steps it holds.

    Raises:
        TrainedRecordError: a line is damaged.
    """
    folder = Path(output_dir) / FOLDER
    steps: dict[int, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob(RANKS)):
        for record in _lines(path):
            steps.setdefault(record["step"], {})[_rank(path)] = record
    whole = []
    for step, parts in sorted(steps.items()):
        world = parts[0]["world"] if 0 in parts else 0
        own = [parts[rank] for rank in range(world) if rank in parts]
        if own and [part["world"] for part in own] == [world] * world:
            whole.append(_joined(step, own))
    _rewrite(Path(output_dir) / TRAINED, whole)
    return len(whole)


def _joined(step: int, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all processes trained on in one step."""
    joined = {"step": step, "examples": [n for part in parts for n in part["examples"]]}
    if all("tokens" in part for part in parts):
        joined["tokens"] = sum(part["tokens"] for part in parts)
    return joined


def copy_records(output_dir: Path, run: Path) -> None:
    """Bring a run's record of its examples beside its scores, if it has one."""
    if (output_dir / FOLDER).is_dir():
        merge_records(output_dir)
    source = output_dir / TRAINED
    if source.is_file() and run.is_dir():
        copy_whole(source, run / TRAINED)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a process's file; a last one that was cut short is not one."""
    if not path.is_file():
        return []
    found = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = lenient_json(line)
            found.append(
                {
                    "step": int(record["step"]),
                    "examples": [str(name) for name in record["examples"]],
                    "world": int(record["world"]),
                    **({"tokens": int(record["tokens"])} if "tokens" in record else {}),
                }
            )
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise TrainedRecordError(
                f"{path}:{number}: not a record of step and examples ({error}). Delete "
                "the line."
            ) from error
    return found


def _rewrite(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    write_whole(path, "".join(f"{line}\n" for line in lines))
