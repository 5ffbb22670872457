"""The checkpoints of a run, in order of their steps."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

from ldeval.checkpoints.foreign import conversion, foreign_steps
from ldeval.checkpoints.layout import (
    describe_checkpoint,
    has_weights,
    read_json,
    weight_files,
)
from ldeval.checkpoints.tensors import same_weights, weights_hash
from ldeval.errors import CheckpointError
from ldeval.records import Checkpoint

log = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def find_checkpoints(run: str | Path) -> list[Checkpoint]:
    """The ``checkpoint-N`` folders of a run, by step; last what training ended with, if
    it was saved in the run's own folder at a later step.

    Folders are not opened: whether the weights can be read shows when they are. Only
    where the run's own may be those of its best checkpoint
    (``load_best_model_at_end``), the two are compared, and the run's own left out where
    they are the same.

    Raises:
        CheckpointError: when the folder is missing or holds no checkpoints; where they
            are of another layout, it names the command that converts them.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder. Give the run's output_dir.")
    found = sorted(
        (int(match.group(1)), path)
        for path in folder.iterdir()
        if path.is_dir() and (match := _CHECKPOINT.fullmatch(path.name))
    )
    end = _end_of_training(folder)
    later = end is not None and (not found or end > found[-1][0])
    if end is not None and later and not _holds_the_best(folder, end):
        found.append((end, folder))
    if not found:
        raise _no_checkpoints(folder)
    return [describe_checkpoint(path, step) for step, path in found]


def ended_with(run: str | Path) -> Checkpoint:
    """The checkpoint of a run that training from it goes on from: the one whose weights
    stand in the run's own folder, which after ``load_best_model_at_end`` is not the
    last; the last one where none or others stand there.

    Raises:
        CheckpointError: as :func:`find_checkpoints`.
    """
    found = find_checkpoints(run)
    folder, last = Path(run), found[-1]
    if Path(last.path) == folder or not has_weights(folder):
        return last
    for checkpoint in reversed(found):
        try:
            same = same_weights(folder, checkpoint.path)
        except CheckpointError as error:
            log.info("%s: not compared with the run's end: %s", checkpoint.path, error)
            continue
        if same and checkpoint != last:
            log.warning(
                "%s: its own weights are those of step %d, not of step %d: what is "
                "trained from it is taken to start there",
                run,
                checkpoint.step,
                last.step,
            )
        if same:
            return checkpoint
    return last


def _end_of_training(folder: Path) -> int | None:
    """The step of the weights in a run's own folder; None where it is not told."""
    state = folder / "trainer_state.json"
    if not state.is_file() or not has_weights(folder):
        return None
    step = read_json(state).get("global_step")
    return step if isinstance(step, int) and step > 0 else None


def _holds_the_best(run: Path, end: int) -> bool:
    """Whether the weights in a run's own folder are those of its best checkpoint, which
    the trainer went back to after the last step. Where that checkpoint is gone they are
    taken for the last step's, with a warning."""
    step = _best_step(read_json(run / "trainer_state.json"))
    if step is None or step >= end:
        return False
    return _same_as_best(run, run / f"checkpoint-{step}", end, _stamps(run))


def _best_step(state: dict[str, Any]) -> int | None:
    # the folder first: that is what the trainer loads, and older ones name no step
    best = state.get("best_model_checkpoint")
    if isinstance(best, str):
        match = _CHECKPOINT.fullmatch(PureWindowsPath(best).name)
        if match:
            return int(match.group(1))
    step = state.get("best_global_step")
    return step if isinstance(step, int) and step > 0 else None


def _stamps(run: Path) -> tuple[tuple[int, int], ...]:
    """Size and time of the weight files: others once they are written anew."""
    try:
        found = [path.stat() for path in weight_files(run) if path.is_file()]
    except CheckpointError:
        return ()  # which is named where they are compared
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in found)


@lru_cache(maxsize=64)
def _same_as_best(
    run: Path, best: Path, end: int, stamps: tuple[tuple[int, int], ...]
) -> bool:
    """Compared and told once, though a run is looked through many times."""
    del stamps
    doubt = (
        f"{run}: its weights are taken for those of step {end}, and may be those of "
        f"{best.name} (load_best_model_at_end), which"
    )
    if not best.is_dir():
        log.warning("%s is gone", doubt)
        return False
    try:
        same = weights_hash(run) == weights_hash(best)
    except CheckpointError as error:
        log.warning("%s cannot be compared: %s", doubt, error)
        return False
    if same:
        log.warning(
            "%s: left out, since its weights are those of %s, the best checkpoint, and "
            "not of step %d (load_best_model_at_end)",
            run,
            best.name,
            end,
        )
    return same


def _no_checkpoints(folder: Path) -> CheckpointError:
    foreign = list(foreign_steps(folder))
    if foreign:
        step, path = foreign[0]
        more = f" (and {len(foreign) - 1} more like it)" if len(foreign) > 1 else ""
        target = folder / f"checkpoint-{step}"
        return CheckpointError(f"{path}{more} holds {conversion(path, target)}")
    found = conversion(folder)
    if found is not None:
        return CheckpointError(f"{folder} holds {found}")
    return CheckpointError(
        f"{folder}: no checkpoint-N folders in it. Give the run's output_dir, and "
        "save checkpoints while training (save_strategy='steps')."
    )


def is_saved(checkpoint: Checkpoint) -> bool:
    """Whether the trainer has finished writing it: the trainer state comes last."""
    folder = Path(checkpoint.path)
    return (folder / "trainer_state.json").is_file() and has_weights(folder)
