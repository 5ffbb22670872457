"""Images of digits that need no download: scikit-learn's, or MNIST from a local file.

MNIST files come from anywhere, so they are parsed here with every size checked before
anything is read into memory, and nothing is unpickled.
"""

from __future__ import annotations

import gzip
import math
import tokenize
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ldeval.errors import MissingExtraError, TheoryError
from ldeval.files import claimed_shape
from ldeval.records import FloatArray, IntArray

CLASSES = 10
MOST_BYTES = 256 * 2**20
"""Uncompressed; MNIST's training images are 45 MiB."""
_UNSIGNED_BYTE = 8
"""The idx format's code of the one type that MNIST is in."""
_IDX_NAMES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
)


@dataclass(frozen=True)
class Digits:
    """Grey images with their classes."""

    images: FloatArray
    """[N, H, W] in [0, 1], float32 or float64."""
    labels: IntArray
    """[N] 0–9."""
    source: str

    def __post_init__(self) -> None:
        if self.images.ndim != 3 or len(self.images) != len(self.labels):
            raise TheoryError(
                f"{self.source}: images of shape {self.images.shape} and "
                f"{self.labels.shape} labels do not belong together."
            )
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < 10:
            raise TheoryError(
                f"{self.source}: labels from {self.labels.min()} to "
                f"{self.labels.max()}; digits are 0 to 9."
            )
        if min(self.images.shape[1:]) < 4:
            raise TheoryError(
                f"{self.source}: images of {self.images.shape[1:]} pixels are too "
                "small; at least 4 × 4."
            )


def scikit_digits() -> Digits:
    """1,797 images of 8 × 8, which scikit-learn brings along.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "toys") from error
    found: Any = load_digits()
    return Digits(
        found.images.astype(np.float64) / 16,
        found.target.astype(np.int64),
        "scikit-learn's digits",
    )


def read_mnist(path: Path) -> Digits:
    """MNIST's training images from a local file or folder.

    Args:
        path: Keras's ``mnist.npz`` (``x_train``, ``y_train``), or a folder with the
            original ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``,
            each plain or ``.gz``.

    Raises:
        TheoryError: nothing of the kind is there, or a file is not what it claims.
    """
    if path.is_dir():
        for names in _IDX_NAMES:
            files = [_plain_or_packed(path / name) for name in names]
            if files[0] is not None and files[1] is not None:
                images, labels = _read_idx(files[0], 3), _read_idx(files[1], 1)
                return _digits(images, labels, path)
        raise TheoryError(
            f"{path}: no {_IDX_NAMES[0][0]} and {_IDX_NAMES[0][1]} (plain or .gz) "
            "there. Name the folder that holds them, or an mnist.npz."
        )
    if not path.is_file():
        raise TheoryError(f"{path}: there is no such file or folder.")
    return _read_npz(path)


def _plain_or_packed(path: Path) -> Path | None:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    return None


def _digits(images: Any, labels: Any, path: Path) -> Digits:
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise TheoryError(
            f"{path}: images of shape {images.shape} and labels of shape "
            f"{labels.shape} do not belong together."
        )
    if images.dtype != np.uint8 or labels.dtype.kind not in "ui":
        raise TheoryError(
            f"{path}: images are {images.dtype} and labels {labels.dtype}; MNIST's "
            "are unsigned bytes and integers."
        )
    return Digits(
        images.astype(np.float32) / 255, labels.astype(np.int64), f"MNIST ({path.name})"
    )


def _read_idx(path: Path, dimensions: int) -> Any:
    """An idx file of unsigned bytes: 0, 0, 8, rank, sizes (big-endian), data."""
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as stream:
            return _idx_data(stream, path, dimensions)
    except (gzip.BadGzipFile, EOFError) as error:
        raise TheoryError(f"{path}: not a whole gzip file ({error}).") from error


def _idx_data(stream: IO[bytes], path: Path, dimensions: int) -> Any:
    head = stream.read(4)
    if head != bytes([0, 0, _UNSIGNED_BYTE, dimensions]):
        raise TheoryError(
            f"{path}: starts with {head.hex() or 'nothing'}; an idx file of bytes in "
            f"{dimensions} dimension(s) starts with 000008{dimensions:02x}."
        )
    sizes = np.frombuffer(_exactly(stream, 4 * dimensions, path), dtype=">u4")
    shape = tuple(int(size) for size in sizes)
    data = _exactly(stream, math.prod(shape), path)
    if stream.read(1):
        raise TheoryError(f"{path}: longer than its header's {shape} bytes.")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _exactly(stream: IO[bytes], size: int, path: Path) -> bytes:
    if size > MOST_BYTES:
        raise TheoryError(f"{path}: {size} bytes of data; at most {MOST_BYTES}.")
    data = stream.read(size)
    if len(data) != size:
        raise TheoryError(f"{path}: ends after {len(data)} of {size} bytes.")
    return data


def _read_npz(path: Path) -> Digits:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("x_train.npy", "y_train.npy"):
                _check_claim(archive, name, path)
        with np.load(path, allow_pickle=False) as arrays:
            return _digits(arrays["x_train"], arrays["y_train"], path)
    except TheoryError:
        raise
    except (zipfile.BadZipFile, ValueError, EOFError, tokenize.TokenError) as error:
        raise TheoryError(f"{path}: not an npz of plain arrays: {error}") from error


def _check_claim(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    names = archive.namelist()
    if name not in names:
        wanted = name.removesuffix(".npy")
        held = ", ".join(names) or "nothing"
        raise TheoryError(f"{path}: holds {held}; {wanted} is missing.")
    claimed_shape(archive, name, MOST_BYTES)
