"""Which examples a finished run trained on when, computed again from its settings.

Apart from the recorder, which sees the batches themselves. A random sampler with a
seed draws the same order again, so that the order of a finished run can be told where
nothing else decided it: one process, one example a row, no grouping by length, no
stream. Where something else did, this refuses and says what.

The trainer's own state beside the checkpoints is held against the settings: its batch
size, its steps, and the epoch that it logged at each step, which tells the number of
batches in an epoch. The seed leaves no such trace; it is taken as given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldeval.checkpoints import find_checkpoints
from ldeval.errors import TrainedRecordError
from ldeval.files import lenient_json, write_whole
from ldeval.store import TRAINED

_EPOCH_TOLERANCE = 1e-6


@dataclass(frozen=True)
class OrderSettings:
    """What decides the order in which a trainer takes its examples."""

    batch: int
    """Examples in a batch."""
    accumulation: int = 1
    """Batches in an optimizer step."""
    seed: int = 42
    """``data_seed`` where it was set, otherwise ``seed``."""
    shuffled: bool = True
    """Whether the sampler was random; otherwise the order is that of the data."""
    drop_last: bool = False
    """Whether an epoch's last, smaller batch is left out."""
    examples: int | None = None
    """Rows of the training data, where they are known."""

    @classmethod
    def of(cls, trainer: Any) -> OrderSettings:
        """The settings of a trainer that was set up as the run's was.

        Raises:
            TrainedRecordError: where they do not decide the order; it names why.
        """
        args = trainer.args
        reason = _undecided(trainer)
        if reason is not None:
            raise TrainedRecordError(
                f"the order of the examples cannot be computed again: {reason}. Record "
                "it while it trains (ldeval.record_examples)."
            )
        return cls(
            batch=args.train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            seed=args.seed if args.data_seed is None else args.data_seed,
            shuffled=_sampler(trainer) != "SequentialSampler",
            drop_last=args.dataloader_drop_last,
            examples=len(trainer.train_dataset),
        )


def _undecided(trainer: Any) -> str | None:
    """Why a trainer's settings do not tell its order; None where they do."""
    args = trainer.args
    if args.world_size > 1:
        return f"{args.world_size} processes share the data"
    if getattr(args, "packing", False):
        return "examples are packed (packing=True): a row holds parts of several"
    if not hasattr(trainer.train_dataset, "__len__"):
        return "the data is a stream, without a length"
    if args.ignore_data_skip:
        return "ignore_data_skip=True: a resumed run begins its epoch anew"
    if args.dataloader_num_workers and not getattr(args, "dataloader_in_order", True):
        return "dataloader_in_order=False: batches come as the workers have them ready"
    if args.auto_find_batch_size:
        return "auto_find_batch_size=True: the batch size may have changed"
    sampler = _sampler(trainer)
    if sampler in ("SeedableRandomSampler", "SequentialSampler"):
        return None
    if sampler == "RandomSampler":
        return "use_seedable_sampler=False: the order hangs on every random draw before"
    return f"the sampler is {sampler}, neither random with a seed nor sequential"


def _sampler(trainer: Any) -> str:
    """The class of the sampler that the trainer's data loader ends up with."""
    loader = trainer.get_train_dataloader()
    batches = getattr(loader, "batch_sampler", None)
    return type(getattr(batches, "sampler", batches)).__name__


def recompute_examples(
    run: str | Path,
    ids: str | Sequence[str],
    settings: Any,
) -> dict[int, tuple[str, ...]]:
    """Compute what each optimizer step of a finished run trained on, and write it
    beside its checkpoints (``trained.jsonl``), unless a record is there.

    Args:
        run: the run's output folder.
        ids: one a row of the training data, in its order, as the trainer kept it; or,
            with a trainer, the column of its data that holds them.
        settings: :class:`OrderSettings`; or a trainer that is set up as the run's was.

    Returns:
        By optimizer step, the ids in the order in which they were trained.

    Raises:
        TrainedRecordError: where the settings do not decide the order, or the run was
            trained with others.
        CheckpointError: no checkpoint is in the folder.
    """
    if not isinstance(settings, OrderSettings):
        trainer, settings = settings, OrderSettings.of(settings)
        ids = _ids_of(trainer, ids)
    elif isinstance(ids, str):
        raise TrainedRecordError(
            f"ids={ids!r} names a column, which only a trainer has. Give the ids, one "
            "a row."
        )
    state = _trainer_state(Path(run))
    _check_state(state, settings, len(ids), Path(run))
    steps = {}
    for step, rows in example_order(settings, len(ids), int(state["global_step"])):
        steps[step] = tuple(example_id(ids[row]) for row in rows)
    _write(Path(run) / TRAINED, steps)
    return steps


def refuse_shuffled(args: Any) -> None:
    """Refuse a list of ids where the trainer has put its data into another order.

    Raises:
        TrainedRecordError: naming the setting.
    """
    if getattr(args, "shuffle_dataset", False):
        raise TrainedRecordError(
            "the trainer has shuffled its rows (shuffle_dataset=True), so that a list "
            "of ids does not fit them. Put the ids into the dataset as a column, and "
            "give its name."
        )


def example_id(value: Any) -> str:
    """A row's id as text; a number, in a tensor or an array too, is its digits."""
    return str(value.item() if hasattr(value, "item") else value)


def _ids_of(trainer: Any, ids: str | Sequence[str]) -> Sequence[str]:
    """One a row of a trainer's data.

    Raises:
        TrainedRecordError: they are not in it, or lie in another order.
    """
    if not isinstance(ids, str):
        refuse_shuffled(trainer.args)
        return ids
    columns = getattr(trainer.train_dataset, "column_names", None) or ()
    if ids not in columns:
        raise TrainedRecordError(
            f"the trainer's data has no column {ids!r}, only {', '.join(columns)}."
        )
    return list(map(example_id, trainer.train_dataset[ids]))


def example_order(
    settings: OrderSettings, examples: int, steps: int
) -> Iterator[tuple[int, list[int]]]:
    """(step, rows trained on) of the first steps of a run.

    Args:
        examples: rows of the training data.
        steps: how many optimizer steps.
    """
    step = epoch = 0
    while step < steps:
        order = _epoch_order(settings, examples, epoch)
        batches = [
            order[start : start + settings.batch]
            for start in range(0, examples, settings.batch)
        ]
        if settings.drop_last and len(batches[-1]) < settings.batch:
            batches.pop()
        if not batches:
            raise TrainedRecordError(
                f"{examples} examples do not fill a batch of {settings.batch}"
            )
        for start in range(0, len(batches), settings.accumulation):
            step += 1
            if step > steps:
                return
            own = batches[start : start + settings.accumulation]
            yield step, [row for batch in own for row in batch]
        epoch += 1


def _epoch_order(settings: OrderSettings, examples: int, epoch: int) -> list[int]:
    if not settings.shuffled:
        return list(range(examples))
    from accelerate.data_loader import SeedableRandomSampler

    # the trainer's own class, so that the order stays its own
    sampler = SeedableRandomSampler(range(examples), data_seed=settings.seed)
    sampler.set_epoch(epoch)
    return list(sampler)


# ------------------------------------------------------------- what the run itself says


def _trainer_state(run: Path) -> Mapping[str, Any]:
    """Of the last checkpoint."""
    path = Path(find_checkpoints(run)[-1].path) / "trainer_state.json"
    try:
        record = lenient_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainedRecordError(f"{path}: cannot be read ({error})") from error
    if not isinstance(record, dict) or "global_step" not in record:
        raise TrainedRecordError(f"{path}: is not a trainer's state")
    return record


def recorded_batch(run: str | Path) -> int:
    """Examples in a batch, as the trainer wrote it down.

    Raises:
        TrainedRecordError: it did not.
    """
    batch = _trainer_state(Path(run)).get("train_batch_size")
    if not isinstance(batch, int):
        raise TrainedRecordError(
            f"{run}: its trainer_state.json names no train_batch_size. Give it "
            "(--batch)."
        )
    return batch


def _check_state(
    state: Mapping[str, Any], settings: OrderSettings, examples: int, run: Path
) -> None:
    """Hold the settings against what the trainer wrote.

    Raises:
        TrainedRecordError: naming both values.
    """
    if settings.examples not in (None, examples):
        raise TrainedRecordError(
            f"{examples} ids were given for {settings.examples} rows of training data"
        )
    batch = state.get("train_batch_size")
    if batch is not None and batch != settings.batch:
        raise TrainedRecordError(
            f"{run}: was trained in batches of {batch}, the settings say "
            f"{settings.batch}"
        )
    whole = examples // settings.batch if settings.drop_last else None
    batches = whole or math.ceil(examples / settings.batch)
    updates = math.ceil(batches / settings.accumulation)
    for step, epoch in _logged(state, run):
        passes, left = divmod(step, updates)
        expected = passes + left * settings.accumulation / batches
        if abs(epoch - expected) > _EPOCH_TOLERANCE:
            raise TrainedRecordError(
                f"{run}: its trainer was at epoch {epoch} after step {step}; with "
                f"{examples} examples in batches of {settings.batch}, "
                f"{settings.accumulation} a step and one process, it would be at "
                f"{expected}. Were there other examples (after the trainer's filters, "
                "or packed), more processes, or another accumulation?"
            )


def _write(path: Path, steps: Mapping[int, Sequence[str]]) -> None:
    if path.exists():
        return
    lines = (
        json.dumps({"step": step, "examples": list(ids)}, ensure_ascii=False)
        for step, ids in steps.items()
    )
    write_whole(path, "".join(f"{line}\n" for line in lines))


def _logged(state: Mapping[str, Any], run: Path) -> list[tuple[int, float]]:
    """Steps and the epochs that the trainer was at after each, where it says both."""
    try:
        entries = [*state.get("log_history", ()), state]
        pairs = [(e.get("step", e.get("global_step")), e.get("epoch")) for e in entries]
        return [(int(s), float(e)) for s, e in pairs if None not in (s, e)]
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise TrainedRecordError(
            f"{run}: the log in its trainer_state.json is not a trainer's ({error})"
        ) from error
