"""Scores on disk."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ldeval import store
from ldeval.errors import IncompleteError, StoreError
from ldeval.records import Excluded, Manifest, ScoreTable, TokenScores
from ldeval.store import (
    list_runs,
    load_run,
    missing_steps,
    read_table,
    read_trained,
    read_trained_counts,
    step_folder,
    write_table,
)


def table(step: int = 0, *, full: bool = True) -> ScoreTable:
    rng = np.random.default_rng(step)
    lengths = [3, 1, 5]
    total = sum(lengths)
    logprobs = -rng.random(total).astype(np.float32)
    tokens = TokenScores(rng.integers(0, 9, total).astype(np.int32), logprobs)
    if full:
        top = -rng.random((total, 4)).astype(np.float32)
        reference = top.copy()
        reference[0, 0] = np.nan
        tokens = replace(
            tokens,
            argmax_ids=rng.integers(0, 9, total).astype(np.int32),
            argmax_logprobs=top[:, 0],
            entropies=rng.random(total).astype(np.float32),
            top_ids=rng.integers(0, 9, (total, 4)).astype(np.int32),
            top_logprobs=top,
            ref_ids=rng.integers(0, 9, (total, 4)).astype(np.int32),
            ref_logprobs=reference,
        )
    manifest = Manifest(
        run="r",
        step=step,
        checkpoint="somewhere",
        weights_hash="w",
        probe_set_hash="p",
        tokenizer_hash="t",
        template_hash=None,
        span="trl",
        backend="hf",
        tier="native",
        dtype="float32",
        vocab_size=9,
        versions={"torch": "2"},
        n_probes=2,
        n_responses=3,
        n_tokens=total,
        excluded=(Excluded("b", "permuted", "truncated: é"),),
        split_exceptions=("a",),
        notes=("a note",),
        settings={"model": "hf"},
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return ScoreTable(
        manifest=manifest,
        probe_ids=np.array(["a", "a", "b"]),
        kinds=np.array(["chosen", "rejected", "chosen"]),
        trained=np.array([True, True, False]),
        text_hashes=np.array(["x", "y", "z"]),
        offsets=offsets,
        tokens=tokens,
        logprob_sums=np.add.reduceat(logprobs.astype(float), offsets[:-1]),
    )


@pytest.mark.parametrize("full", [True, False])
def test_what_is_written_reads_back_alike(tmp_path: Path, full: bool) -> None:
    written = table(full=full)
    folder = step_folder(tmp_path, "r", 7)
    write_table(folder, written)
    back = read_table(folder)
    for name in ("probe_ids", "kinds", "trained", "text_hashes", "offsets"):
        np.testing.assert_array_equal(getattr(back, name), getattr(written, name))
    np.testing.assert_array_equal(back.logprob_sums, written.logprob_sums)
    for name in TokenScores.__dataclass_fields__:
        first, second = getattr(written.tokens, name), getattr(back.tokens, name)
        if first is None:
            assert second is None, name
        else:
            np.testing.assert_array_equal(first, second, err_msg=name)
            assert first.dtype == second.dtype, name
    assert replace(back.manifest, files={}, seconds=0.0) == replace(
        written.manifest, files={}, seconds=0.0
    )
    assert set(back.manifest.files) == {"responses.parquet", "tokens.parquet"}


def test_without_a_manifest_a_step_is_incomplete(tmp_path: Path) -> None:
    folder = step_folder(tmp_path, "r", 1)
    write_table(folder, table())
    (folder / "manifest.json").unlink()
    with pytest.raises(IncompleteError, match="never finished"):
        read_table(folder)
    (step,) = list_runs(tmp_path)["r"]
    assert not step.complete
    with pytest.raises(StoreError, match="no complete step"):
        load_run(tmp_path / "r")


@pytest.mark.parametrize("name", ["responses.parquet", "tokens.parquet"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damage_is_found_and_named(tmp_path: Path, name: str, damage: str) -> None:
    folder = step_folder(tmp_path, "r", 1)
    write_table(folder, table())
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(StoreError) as caught:
        read_table(folder)
    assert name in str(caught.value)
    assert "run the sweep again" in str(caught.value)


def test_a_damaged_or_foreign_manifest_is_refused(tmp_path: Path) -> None:
    folder = step_folder(tmp_path, "r", 1)
    write_table(folder, table())
    path = folder / "manifest.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "schema_version": 99}))
    with pytest.raises(StoreError, match="schema version 99; this ldeval reads 1"):
        read_table(folder)
    path.write_text(json.dumps({**record, "schema_version": "a-" * 10_000}))
    with pytest.raises(StoreError, match="schema version 'a-a") as caught:
        read_table(folder)
    assert len(str(caught.value)) < len(str(path)) + 300
    del record["tokenizer_hash"]
    path.write_text(json.dumps(record))
    with pytest.raises(StoreError, match="tokenizer_hash"):
        read_table(folder)
    path.write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        read_table(folder)


@pytest.mark.parametrize("name", ["..", "a/b", "", "."])
def test_a_run_name_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="not a plain folder name"):
        step_folder(tmp_path, name, 1)


def test_a_full_disk_leaves_no_manifest_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = step_folder(tmp_path, "r", 1)
    write_table(done, table())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(StoreError, match=r"No space left on device.*Free space"):
        write_table(step_folder(tmp_path, "r", 2), table(2))
    monkeypatch.undo()
    assert [step.step for step in list_runs(tmp_path)["r"] if step.complete] == [1]
    read_table(done)


def test_writing_again_replaces_the_whole_step(tmp_path: Path) -> None:
    folder = step_folder(tmp_path, "r", 1)
    write_table(folder, table())
    (folder / "tokens.parquet.17.partial").write_bytes(b"half")
    write_table(folder, table(3))
    assert {path.name for path in folder.iterdir()} == {
        "responses.parquet",
        "tokens.parquet",
        "manifest.json",
    }
    np.testing.assert_array_equal(
        read_table(folder).logprob_sums, table(3).logprob_sums
    )


def test_what_was_trained_is_read_by_step_and_a_bad_line_is_named(
    tmp_path: Path,
) -> None:
    assert read_trained(tmp_path) is None
    path = tmp_path / "trained.jsonl"
    path.write_text(
        '{"step": 1, "examples": ["a", "b"]}\n{"step": 2, "examples": ["c"]}\n'
    )
    assert read_trained(tmp_path) == {1: frozenset("ab"), 2: frozenset("c")}
    with path.open("a") as record:
        record.write('{"step": 2, "examples": ["c", "c"]}\n')
    assert read_trained(tmp_path) == {1: frozenset("ab"), 2: frozenset("c")}
    assert read_trained_counts(tmp_path) == {1: 2, 2: 3}
    path.write_text('{"step": 1, "examples": ["a"]}\n{"step": "x"}\n')
    with pytest.raises(StoreError, match=r"trained.jsonl:2"):
        read_trained(tmp_path)


def test_steps_that_a_record_does_not_tell_of_are_counted() -> None:
    record = (0, 1, 2, 4, 9, 20)
    assert missing_steps(record, 0, 2) == (0, 3)
    assert missing_steps(record, 0, 9) == (5, 3)
    assert missing_steps(record, 9, 10**18) == (10**18 - 9 - 1, 10)


@pytest.mark.parametrize("group", [1, 2, 4, 100])
def test_a_table_read_in_parts_is_the_table_whatever_the_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr(store.writing, "_TOKENS_PER_ROW_GROUP", group)
    written = table()
    write_table(tmp_path / "step_000000", written)
    parts = list(store.open_table(tmp_path / "step_000000").chunks())
    assert sum(map(len, parts)) == len(written)
    for part in parts:
        assert part.offsets[-1] == len(part.tokens)
    whole = read_table(tmp_path / "step_000000")
    assert whole.probe_ids.tolist() == written.probe_ids.tolist()
    assert whole.offsets.tolist() == written.offsets.tolist()
    for name in ("token_ids", "logprobs", "top_ids", "ref_logprobs"):
        mine, theirs = getattr(whole.tokens, name), getattr(written.tokens, name)
        assert np.array_equal(mine, theirs, equal_nan=name == "ref_logprobs")


def test_tokens_that_do_not_match_the_responses_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "step_000000"
    write_table(folder, table())
    tokens = pq.read_table(folder / "tokens.parquet")
    pq.write_table(tokens.slice(0, 5), folder / "tokens.parquet")
    stored = store.open_table(folder, verify=False)
    with pytest.raises(StoreError, match="5 tokens for 9"):
        list(stored.chunks())


@pytest.mark.parametrize("group", [1, 4, 100])
def test_a_table_that_comes_in_parts_is_written_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    whole = table()
    monkeypatch.setattr(store.writing, "_TOKENS_PER_ROW_GROUP", group)
    first = write_table(tmp_path / "step_000000", whole)
    cuts = [(0, 1), (1, 1), (1, 3)]
    parts = [responses(whole, *cut) for cut in cuts]
    second = store.write_parts(tmp_path / "step_000001", whole.manifest, parts)
    assert first.files == second.files


def responses(whole: ScoreTable, start: int, stop: int) -> ScoreTable:
    """Some responses of a table."""
    first, last = whole.offsets[start], whole.offsets[stop]
    return replace(
        whole,
        probe_ids=whole.probe_ids[start:stop],
        kinds=whole.kinds[start:stop],
        trained=whole.trained[start:stop],
        text_hashes=whole.text_hashes[start:stop],
        offsets=whole.offsets[start : stop + 1] - first,
        tokens=whole.tokens.slice(int(first), int(last)),
        logprob_sums=whole.logprob_sums[start:stop],
    )
