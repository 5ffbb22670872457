"""Greedy decodes on disk: whole or refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import ldeval.decodes
from ldeval.decodes import read_decodes, run_decodes, write_decodes
from ldeval.errors import StoreError
from ldeval.records import Excluded, GreedyDecode, GreedyDecodes


def made(step: int = 0) -> GreedyDecodes:
    rng = np.random.default_rng(step)
    decodes = []
    for number in range(40):
        n = int(rng.integers(1, 30))
        ids = rng.integers(0, 500, n).astype(np.int32)
        logprobs = -rng.exponential(size=n).astype(np.float32)
        text = "</script>\u202e\0\n" * number
        decodes.append(
            GreedyDecode(f"p{number}", number % 2 == 0, ids, logprobs, text, n < 20,
                         logprobs[: n // 2])
        )  # fmt: skip
    return GreedyDecodes(
        step=step,
        weights_hash=f"w{step}",
        probe_set_hash="p",
        reference_step=0,
        max_tokens=30,
        backend="hf",
        dtype="float32",
        decodes=tuple(decodes),
        settings={"span": "trl", "system_instruction": None},
        excluded=(Excluded("p99", "greedy", "no room"),),
        off_argmax=3,
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for step in (20, 0):
        write_decodes(tmp_path, made(step))
    for found, wanted in zip(run_decodes(tmp_path), (made(0), made(20)), strict=True):
        for item in dataclasses.fields(GreedyDecodes):
            if item.name != "decodes":
                assert getattr(found, item.name) == getattr(wanted, item.name)
        for one, other in zip(found.decodes, wanted.decodes, strict=True):
            for item in dataclasses.fields(GreedyDecode):
                np.testing.assert_array_equal(
                    getattr(one, item.name), getattr(other, item.name)
                )


def test_no_damaged_file_is_read(tmp_path: Path) -> None:
    path = write_decodes(tmp_path, made())
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError, match=r"step_000000\.parquet"):
            read_decodes(path)


def test_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ldeval.decodes, "DECODES_VERSION", 2)
    path = write_decodes(tmp_path, made())
    monkeypatch.undo()
    with pytest.raises(StoreError, match="version 2"):
        read_decodes(path)


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "greedy").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        write_decodes(tmp_path, made())
