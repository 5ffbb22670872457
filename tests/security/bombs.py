"""Files that act when they are read by what trusts them, and folders that name others'
files: the attacks that the tests of this folder try."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

PICKLED_NAMES = (
    "pytorch_model.bin",
    "adapter_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "random_states_0.pkl",
)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._marker,)


def pickled(marker: Path) -> bytes:
    """A bare pickle."""
    return pickle.dumps(Bomb(marker))


def as_torch(marker: Path) -> bytes:
    """As ``torch.save`` writes it: a zip archive with a pickle in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(marker))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return stream.getvalue()


def as_array(marker: Path) -> bytes:
    """An ``.npy`` of objects."""
    stream = io.BytesIO()
    np.save(stream, np.array([Bomb(marker)], object), allow_pickle=True)
    return stream.getvalue()


def plant(folder: Path, marker: Path) -> None:
    """Every pickle that trainers leave in a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICKLED_NAMES:
        (folder / name).write_bytes(as_torch(marker))
