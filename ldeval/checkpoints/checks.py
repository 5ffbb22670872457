"""Is a checkpoint whole? One that cannot be used is reported with its reason, never
passed over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ldeval.checkpoints.layout import (
    ADAPTER,
    describe_checkpoint,
    no_weights,
    read_json,
    weight_files,
)
from ldeval.errors import CheckpointError, MissingExtraError
from ldeval.records import Checkpoint


@dataclass(frozen=True)
class BrokenCheckpoint:
    """A checkpoint folder that cannot be scored, and why."""

    path: str
    step: int
    reason: str


def check_weights(checkpoint: Checkpoint) -> None:
    """Open every weight file, an adapter's base too, and check that it is whole.

    Raises:
        CheckpointError: naming the file, what is wrong and what to do.
    """
    for item in _with_bases(checkpoint):
        files = weight_files(item.folder)
        if not files:
            raise no_weights(Path(item.folder))
        for path in files:
            _check_whole(path)


def _with_bases(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """A checkpoint and what an adapter stands upon, as far as it is on this disk."""
    passed: set[Path] = set()
    while True:
        folder = Path(checkpoint.folder)
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder}: no such folder. Give a local folder; a model of a hub must "
                "be downloaded first."
            )
        passed.add(folder.resolve())
        if checkpoint.layout == "adapter":
            read_json(folder / ADAPTER)
        yield checkpoint
        base = checkpoint.base
        if checkpoint.layout != "adapter" or base is None or not Path(base).is_dir():
            return
        if Path(base).resolve() in passed:
            raise CheckpointError(
                f"{folder}: an adapter upon itself: {ADAPTER} names {base} as the "
                "base. Name the model that it was trained upon."
            )
        checkpoint = describe_checkpoint(base, 0)


def _check_whole(path: Path) -> None:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "hf") from error
    try:
        with safe_open(str(path), framework="np") as handle:
            names = len(handle.keys())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: is gone. Was the checkpoint deleted while it was read, or is a "
            "shard that the index names missing?"
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({error}); it has "
            f"{path.stat().st_size} bytes. "
            "Was it cut short while being written or copied? Save or copy it again."
        ) from error
    if not names:
        raise CheckpointError(f"{path}: holds no tensors.")
