"""Where runs and steps stand in a store, and which of them are complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldeval.errors import StoreError
from ldeval.files import (
    move_tree,
    named,
    own_name,
    place,
)

MANIFEST = "manifest.json"
RESPONSES = "responses.parquet"
TOKENS = "tokens.parquet"
TRAINED = "trained.jsonl"

WIDE = ("top_ids", "top_logprobs", "ref_ids", "ref_logprobs")
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


def complete_steps(folder: Path) -> list[StoredStep]:
    """The complete steps of a run, by step.

    Raises:
        StoreError: when there is none.
    """
    complete = [item for item in list_steps(folder) if item.complete]
    if not complete:
        raise StoreError(
            f"{folder}: no complete step in it. 'ldeval ls {folder.parent}' shows what "
            "there is; 'ldeval sweep' scores the rest."
        )
    return complete
