"""Probe sets in shards, and their tables joined: without any worker."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldeval import errors
from ldeval.bundled import bundled_probes
from ldeval.errors import MismatchError, MissingExtraError, ProbeError, StoreError
from ldeval.files import local_copy, passing_downloads, place, reading
from ldeval.probes import ProbeSet, read_probes
from ldeval.records import ScoreTable
from ldeval.scoring.tables import joined_hash
from ldeval.shards import (
    FOLDER,
    Shard,
    begun_with,
    cut,
    join_step,
    sample_scores,
    seed_step,
)
from ldeval.store import (
    StoredTable,
    open_table,
    read_table,
    step_folder,
    write_table,
)
from tests.test_store import table

PROBES = read_probes(bundled_probes())


@given(count=st.integers(1, 200), size=st.integers(1, 96))
@settings(max_examples=60, deadline=None)
def test_shards_are_the_set_in_order_and_none_is_empty(count: int, size: int) -> None:
    probes = ProbeSet(PROBES.probes[:size])
    shards = cut(probes, count)
    assert len(shards) == min(count, size)
    assert all(len(shard.probes) for shard in shards)
    assert tuple(p for shard in shards for p in shard.probes) == probes.probes
    assert len({shard.name for shard in shards}) == len(shards)


def test_shards_are_about_equally_long() -> None:
    def letters(probes: ProbeSet) -> int:
        return sum(len(r.text) for p in probes for r in p.responses.values())

    sizes = [letters(shard.probes) for shard in cut(PROBES, 4)]
    assert max(sizes) < 1.2 * min(sizes)


def whole_and_parts() -> tuple[ScoreTable, list[ScoreTable]]:
    """A table of the probes a and b, and the same in two shards."""
    whole = table()
    parts = [whole.part(0, 2), whole.part(2, 3)]
    shards = cut(AB, 2)
    excluded = whole.manifest.excluded
    named = [
        replace(
            part,
            manifest=replace(
                whole.manifest,
                run=shard.name,
                probe_set_hash=shard.probes.content_hash,
                n_probes=1,
                n_responses=len(part),
                n_tokens=len(part.tokens),
                excluded=tuple(e for e in excluded if e.probe_id == shard_id),
                split_exceptions=("a",) if shard_id == "a" else (),
                context_hash=hash_,
                seconds=seconds,
            ),
        )
        for part, shard, shard_id, hash_, seconds in zip(
            parts, shards, "ab", ("1" * 16, "2" * 16), (1.0, 2.0), strict=True
        )
    ]
    return whole, named


def opened(run: Path, shards: Sequence[Shard]) -> list[StoredTable]:
    return [open_table(step_folder(run / FOLDER, s.name, 0)) for s in shards]


AB = ProbeSet(
    tuple(replace(PROBES.probes[i], probe_id=name) for i, name in enumerate("ab"))
)


def test_joined_shards_are_the_table_to_the_last_byte(tmp_path: Path) -> None:
    whole, parts = whole_and_parts()
    shards = cut(AB, 2)
    run = tmp_path / "r"
    for shard, part in zip(shards, parts, strict=True):
        write_table(step_folder(run / FOLDER, shard.name, 0), part)
    assert begun_with(run) == 2
    manifest = join_step(run, opened(run, shards), 0, AB, checkpoint="c", floor=None)
    alone = write_table(tmp_path / "alone" / "step_000000", whole)
    assert manifest.files == alone.files
    assert manifest.run == "r"
    assert manifest.probe_set_hash == AB.content_hash
    assert (manifest.n_probes, manifest.n_tokens, manifest.seconds) == (2, 9, 3.0)
    assert manifest.excluded == whole.manifest.excluded
    assert manifest.split_exceptions == ("a",)
    assert manifest.context_hash == "3" * 16


def test_shards_that_were_scored_otherwise_are_not_joined(tmp_path: Path) -> None:
    _, parts = whole_and_parts()
    shards = cut(AB, 2)
    other = replace(parts[1], manifest=replace(parts[1].manifest, dtype="bfloat16"))
    for shard, part in zip(shards, (parts[0], other), strict=True):
        write_table(step_folder(tmp_path / "r" / FOLDER, shard.name, 0), part)
    tables = opened(tmp_path / "r", shards)
    with pytest.raises(MismatchError, match=r"dtype is float32 in .* and bfloat16 in"):
        join_step(tmp_path / "r", tables, 0, AB, checkpoint="c", floor=None)


def test_a_shard_gets_its_part_of_a_step_that_the_run_has(tmp_path: Path) -> None:
    whole, parts = whole_and_parts()
    shards = cut(AB, 2)
    write_table(step_folder(tmp_path, "r", 0), whole)
    seed_step(tmp_path / "r", shards, 0)
    for shard, part in zip(shards, parts, strict=True):
        seeded = read_table(step_folder(tmp_path / "r" / FOLDER, shard.name, 0))
        assert seeded.probe_ids.tolist() == part.probe_ids.tolist()
        np.testing.assert_array_equal(seeded.tokens.ref_ids, part.tokens.ref_ids)
        assert seeded.manifest.probe_set_hash == shard.probes.content_hash


def test_of_a_step_at_a_url_no_copy_stays() -> None:
    whole, _ = whole_and_parts()
    store = place("memory://seeded")
    write_table(step_folder(store, "r", 0), whole)
    before = set(reading._downloads().iterdir())
    seed_step(store / "r", cut(AB, 2), 0)
    assert set(reading._downloads().iterdir()) == before
    with passing_downloads():
        copy = local_copy(store / "r" / "step_000000" / "manifest.json")
        with passing_downloads():
            assert local_copy(store / "r" / "step_000000" / "manifest.json") == copy
        assert copy.is_file()
    assert not copy.exists()


def test_a_shard_of_which_nothing_was_scored_gets_an_empty_part(
    tmp_path: Path,
) -> None:
    whole, _ = whole_and_parts()
    shards = cut(ProbeSet((*AB.probes, replace(PROBES.probes[2], probe_id="c"))), 3)
    run = tmp_path / "r"
    write_table(step_folder(tmp_path, "r", 0), whole)
    kept = step_folder(run / FOLDER, shards[0].name, 0)
    write_table(kept, whole.part(0, 1))
    seed_step(run, shards, 0)
    tables = [read_table(step_folder(run / FOLDER, s.name, 0)) for s in shards]
    assert [len(table) for table in tables] == [1, 1, 0]  # the first is left alone
    assert tables[1].manifest.n_probes == 1
    assert tables[1].tokens.token_ids.tolist() == whole.row(2).token_ids.tolist()


def test_the_sample_is_read_back_as_it_was_scored(tmp_path: Path) -> None:
    whole, parts = whole_and_parts()
    shards = cut(AB, 2)
    for shard, part in zip(shards, parts, strict=True):
        write_table(step_folder(tmp_path / "r" / FOLDER, shard.name, 0), part)
    tables = opened(tmp_path / "r", shards)
    found = sample_scores(tables, AB.probes[1:])
    assert list(found) == [("b", "chosen")]
    score = found["b", "chosen"]
    assert score.logprob_sum == whole.logprob_sums[2]
    assert score.token_ids == tuple(whole.row(2).token_ids.tolist())


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.integers(0, 20))
def test_one_hash_of_many_does_not_depend_on_how_they_are_parted(
    numbers: list[int], at: int
) -> None:
    texts = [f"{number:016x}" for number in numbers]
    parts = [joined_hash(texts[:at]), joined_hash(texts[at:])]
    assert joined_hash(parts) == joined_hash(texts) == joined_hash(reversed(texts))


def test_every_error_travels_between_processes_whole() -> None:
    named = [
        ProbeError("is wrong.", path="f", line=3, field="x", remedy="Mend it."),
        MissingExtraError("ray", "ray"),
        StoreError("gone"),
    ]
    plain = [
        kind("why")
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, errors.LdevalError)
        and kind is not MissingExtraError
    ]
    for error in [*named, *plain]:
        back = pickle.loads(pickle.dumps(error))  # noqa: S301  what Ray does
        assert type(back) is type(error)
        assert str(back) == str(error)
    assert pickle.loads(pickle.dumps(named[0])).line == 3  # noqa: S301
