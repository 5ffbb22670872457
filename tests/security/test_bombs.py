"""Files of kilobytes that unpack to more than memory holds are refused first."""

from __future__ import annotations

import hashlib
import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ldeval.errors import StoreError
from ldeval.imported import LARGEST, LEVELS, PROMPTS, read_levels, write_levels
from ldeval.records import LevelColumn, LevelRun


def _array(shape: tuple[int, ...]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.zeros(shape))
    return sink.getvalue()


def _run(folder: Path, arrays: dict[str, bytes]) -> Path:
    """A store of somebody else with two columns and two steps, its hashes right."""
    values = (-1.0, -2.0)
    columns = tuple(LevelColumn(name, "kind", name, values) for name in ("a", "b"))
    levels = LevelRun("r", "trl", "f", "trained", (0, 1), "steps", columns)
    run = write_levels(folder, levels)
    assert read_levels(run) == levels
    with zipfile.ZipFile(run / PROMPTS, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(name, content)
    record = json.loads((run / LEVELS).read_text())
    digest = hashlib.sha256((run / PROMPTS).read_bytes()).hexdigest()
    (run / LEVELS).write_text(json.dumps(record | {"prompts_sha256": digest}))
    return run


def test_arrays_of_the_claimed_columns_and_steps_are_read(tmp_path: Path) -> None:
    run = _run(tmp_path, {"a.npy": _array((2, 3)), "b.npy": _array((2, 3))})
    assert {n: v.shape for n, v in read_levels(run).prompts.items()} == {
        "a": (2, 3),
        "b": (2, 3),
    }


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a.npy": _array((2, LARGEST // 16))}, "a.npy unpacks to"),
        ({n: _array((2, LARGEST // 24)) for n in ("a.npy", "b.npy")}, "bytes unpack"),
        ({"a.npy": _array((2, 3)), "c.npy": _array((2, 3))}, "not its columns"),
        ({"a.npy": _array((2, 3)), "b.npy": _array((2, 4))}, "not equally many"),
        ({"a.npy": _array((3, 3))}, r"of shape \(3, 3\), not of 2 steps"),
        ({"a.npy": _array((2,))}, r"of shape \(2,\)"),
        ({"a.npy": _array((2, 9999)).replace(b"9999", b"1e9 ")}, "cannot be read"),
        (
            {"a.npy": _array((2, 9999)).replace(b"9999)", b"99999")},
            r"npz: cannot be read",
        ),
    ],
    ids=["one", "together", "name", "prompts", "steps", "rank", "no header", "cut"],
)
def test_prompts_of_an_import_are_what_its_levels_say_or_are_not_unpacked(
    tmp_path: Path, arrays: dict[str, bytes], message: str
) -> None:
    run = _run(tmp_path, arrays)
    assert (run / PROMPTS).stat().st_size < 2**18
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=message):
            read_levels(run)
        assert tracemalloc.get_traced_memory()[1] < LARGEST / 8
    finally:
        tracemalloc.stop()


def test_levels_are_looked_at_before_their_arrays(tmp_path: Path) -> None:
    run = _run(tmp_path, {"a.npy": _array((2, 3))})
    record = json.loads((run / LEVELS).read_text())
    (run / LEVELS).write_text(json.dumps(record | {"steps": [0.5, 1]}))
    (run / PROMPTS).unlink()
    with pytest.raises(StoreError, match="steps"):
        read_levels(run)


def test_an_array_that_asks_for_a_password_is_refused(tmp_path: Path) -> None:
    """zipfile's own error for it is one that says nothing of a file."""
    run = _run(tmp_path, {"a.npy": _array((2, 3))})
    content = bytearray((run / PROMPTS).read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 8] |= 1
    (run / PROMPTS).write_bytes(content)
    record = json.loads((run / LEVELS).read_text())
    digest = hashlib.sha256(content).hexdigest()
    (run / LEVELS).write_text(json.dumps(record | {"prompts_sha256": digest}))
    with pytest.raises(StoreError, match=r"prompts\.npz: .*a\.npy is encrypted"):
        read_levels(run)
