"""MNIST files are parsed safely: sizes checked, nothing unpickled."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ldeval.dynamics.images import MOST_BYTES, Digits, read_mnist, scikit_digits
from ldeval.errors import TheoryError

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 28, 28)).astype(np.uint8)
LABELS = (np.arange(30) % 10).astype(np.uint8)


def idx(data: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, data.ndim]) + b"".join(
        int(size).to_bytes(4, "big") for size in data.shape
    )
    return head + data.tobytes()


def write_idx(folder: Path, images: bytes, labels: bytes, *, packed: bool) -> None:
    for name, data in (
        ("train-images-idx3-ubyte", images),
        ("train-labels-idx1-ubyte", labels),
    ):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_give_the_images_they_were_made_from(
    packed: bool, tmp_path: Path
) -> None:
    write_idx(tmp_path, idx(IMAGES), idx(LABELS), packed=packed)
    found = read_mnist(tmp_path)
    assert np.array_equal(found.images * 255, IMAGES)
    assert np.array_equal(found.labels, LABELS)


def test_an_npz_gives_the_images_it_was_made_from(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:2])
    found = read_mnist(path)
    assert np.array_equal(found.images * 255, IMAGES)
    assert found.source == "MNIST (mnist.npz)"


def test_scikit_learns_digits_are_in_the_unit_interval() -> None:
    found = scikit_digits()
    assert found.images.shape == (1797, 8, 8)
    assert found.images.min() == 0
    assert found.images.max() == 1


BROKEN = {
    "cut short": (idx(IMAGES)[:-5], "ends after"),
    "too long": (idx(IMAGES) + b"x", "longer than"),
    "another type": (b"\x00\x00\x0d\x03" + idx(IMAGES)[4:], "starts with 00000d03"),
    "empty": (b"", "starts with nothing"),
    "header cut": (idx(IMAGES)[:9], "ends after 5 of 12"),
    "a claim of terabytes": (
        idx(IMAGES)[:4] + b"\xff" * 12 + b"x",
        f"at most {MOST_BYTES}",
    ),
    "of another count": (idx(IMAGES[:7]), "do not belong together"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_idx_file_is_refused(name: str, packed: bool, tmp_path: Path) -> None:
    data, message = BROKEN[name]
    write_idx(tmp_path, data, idx(LABELS), packed=packed)
    with pytest.raises(TheoryError, match=message):
        read_mnist(tmp_path)


def test_a_damaged_gzip_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, idx(IMAGES), idx(LABELS), packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TheoryError, match="not a whole gzip file"):
        read_mnist(tmp_path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(TheoryError, match="not a whole gzip file"):
        read_mnist(tmp_path)


class Trap:
    """Unpickled, this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_inside_an_npz_is_never_opened(tmp_path: Path) -> None:
    path, mark = tmp_path / "mnist.npz", tmp_path / "mark"
    np.savez(path, x_train=np.array([Trap(mark)], dtype=object), y_train=LABELS)
    with pytest.raises(TheoryError, match="not an npz of plain arrays"):
        read_mnist(path)
    assert not mark.exists()


def test_an_npz_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldeval.dynamics.images.MOST_BYTES", 10_000)
    path = tmp_path / "mnist.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", bytes(10_001))
    with pytest.raises(TheoryError, match="unpacks to"):
        read_mnist(path)


def test_what_is_no_mnist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TheoryError, match="no train-images"):
        read_mnist(tmp_path)
    with pytest.raises(TheoryError, match="no such file"):
        read_mnist(tmp_path / "absent")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(TheoryError, match="not an npz"):
        read_mnist(tmp_path / "text.npz")
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr("x_train.npy", b"\x93NUMPY\x01\x00\x08\x00{broken\n")
    with pytest.raises(TheoryError, match="not an npz"):
        read_mnist(tmp_path / "odd.npz")
    np.savez(tmp_path / "other.npz", y_train=LABELS)
    with pytest.raises(TheoryError, match="x_train is missing"):
        read_mnist(tmp_path / "other.npz")
    np.savez(tmp_path / "floats.npz", x_train=IMAGES / 255, y_train=LABELS)
    with pytest.raises(TheoryError, match="unsigned bytes"):
        read_mnist(tmp_path / "floats.npz")
    np.savez(tmp_path / "eleven.npz", x_train=IMAGES[:11], y_train=np.arange(11))
    with pytest.raises(TheoryError, match="labels from 0 to 10"):
        read_mnist(tmp_path / "eleven.npz")


@pytest.mark.parametrize("rows", [30, 10**15])
def test_a_header_that_lies_inside_an_npz_is_refused(rows: int, tmp_path: Path) -> None:
    """An array that claims more than the archive, or the machine, holds."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": (rows, 28, 28)}
    )
    path = tmp_path / "mnist.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", stream.getvalue() + b"few")
        labels = io.BytesIO()
        np.save(labels, LABELS)
        archive.writestr("y_train.npy", labels.getvalue())
    with pytest.raises(TheoryError, match=r"claims .* bytes and holds"):
        read_mnist(path)


def test_images_too_small_for_two_poolings_are_refused() -> None:
    with pytest.raises(TheoryError, match="at least 4 × 4"):
        Digits(np.zeros((2, 3, 8)), np.array([0, 1]), "tiny")
