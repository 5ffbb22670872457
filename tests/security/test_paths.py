"""A store or a checkpoint of somebody else names no file outside itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from ldeval.bundled import bundled_probes
from ldeval.checkpoints import check_weights, describe_checkpoint, weight_files
from ldeval.cli import main
from ldeval.decodes import write_decodes
from ldeval.errors import CheckpointError, StoreError
from ldeval.files import write_whole
from ldeval.imported import write_levels
from ldeval.lease import LOCK, writing
from ldeval.probes import probe_to_record, read_probes
from ldeval.records import GreedyDecodes, LevelRun
from ldeval.store import (
    MANIFEST,
    open_run,
    read_table,
    run_folder,
    step_folder,
    write_table,
)
from ldeval.texts import find_texts
from tests.tiny import save_run

OUTSIDE = ("../x", "/etc/passwd", "a/b", "..", "..\\x", "C:\\x", "sub/../../x")
NOT_NAMES = ("", ".", "..", "../x", "a/b", "/x", "a\0b")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store."""
    folder = save_run(tmp_path_factory.mktemp("paths"), [1])
    command = ["-q", "sweep", str(folder / "run"), "--store", str(folder / "store")]
    assert main([*command, "--limit", "2", "1", "--model_args", "device=cpu"]) == 0
    return folder / "store"


@pytest.fixture
def store(scored: Path, tmp_path: Path) -> Path:
    """A copy of it, since the tests damage it."""
    return Path(shutil.copytree(scored, tmp_path / "store"))


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_of_shards_names_files_of_its_folder_only(
    tmp_path: Path, name: str
) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        weight_files(tmp_path)


@pytest.mark.parametrize("record", ["[]", "{}", '{"weight_map": ["a"]}', "null"])
def test_an_index_that_is_none_is_refused(tmp_path: Path, record: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(record)
    with pytest.raises(CheckpointError, match="index"):
        weight_files(tmp_path)


def test_an_adapter_upon_itself_is_refused(tmp_path: Path) -> None:
    base = save_run(tmp_path, [1]) / "run" / "checkpoint-1"
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, below in ((one, two), (two, one)):
        folder.mkdir()
        weights = (base / "model.safetensors").read_bytes()
        (folder / "adapter_model.safetensors").write_bytes(weights)
        config = {"base_model_name_or_path": str(below)}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="upon itself"):
        check_weights(describe_checkpoint(one, 0))
    (two / "adapter_config.json").write_text('{"base_model_name_or_path": 5}')
    check_weights(describe_checkpoint(one, 0))


@pytest.mark.parametrize("name", NOT_NAMES)
def test_a_run_is_named_by_a_plain_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="not a plain folder name"):
        step_folder(tmp_path, name, 1)
    levels = LevelRun(name, "trl", "x", "trained", (1,), "steps", ())
    with pytest.raises(StoreError, match="not a plain folder name"):
        write_levels(tmp_path, levels)


def test_files_that_a_manifest_names_are_not_opened(store: Path) -> None:
    folder = store / "run" / "step_000001"
    secret = store.parent / "secret.parquet"
    secret.write_bytes(b"not for you")
    manifest = json.loads((folder / MANIFEST).read_text())
    described = manifest["files"].pop("tokens.parquet")
    manifest["files"] |= {"../../../secret.parquet": described, str(secret): described}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"does not list tokens\.parquet"):
        read_table(folder)


def test_the_run_and_step_that_a_manifest_claims_do_not_choose_a_folder(
    store: Path,
) -> None:
    folder = store / "run" / "step_000001"
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest |= {"run": "../../elsewhere", "step": 7}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    before = sorted(store.parent.parent.iterdir())
    assert main(["ls", str(store)]) == 0
    assert main(["report", str(store / "run"), "-o", str(store / "out")]) in (0, 2)
    assert sorted(store.parent.parent.iterdir()) == before
    assert {path.name for path in store.iterdir()} <= {"run", "out"}


def test_only_a_tokenizer_json_is_read_where_a_manifest_points(store: Path) -> None:
    folder = store / "run"
    (folder / "tokenizer.json").unlink()
    path = folder / "step_000001" / MANIFEST
    manifest = json.loads(path.read_text())
    for place in ("/etc/passwd", "/dev/zero", "s3://bucket/x", "\\\\host\\share", ""):
        path.write_text(json.dumps(manifest | {"checkpoint": place}))
        assert find_texts(folder, open_run(folder)).tokenizer is None


def test_a_step_that_is_a_link_is_not_emptied(store: Path, tmp_path: Path) -> None:
    folder = store / "run" / "step_000001"
    table = read_table(folder)
    kept = tmp_path / "kept"
    folder.rename(kept)
    folder.symlink_to(kept, target_is_directory=True)
    before = sorted(kept.iterdir())
    with pytest.raises(StoreError, match=r"step_000001: is a link.*delete the link"):
        write_table(folder, table)
    assert sorted(kept.iterdir()) == before


def test_nothing_is_written_through_a_run_that_is_a_link(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    store = tmp_path / "store"
    store.mkdir()
    (store / "run").symlink_to("../home", target_is_directory=True)
    with (
        pytest.raises(StoreError, match=r"store/run: is a link.*delete the link"),
        writing(run_folder(store, "run")),
    ):
        pass
    assert not list(home.iterdir())


def test_no_decodes_are_written_through_a_link(tmp_path: Path) -> None:
    decodes = GreedyDecodes(0, "w", "p", 0, 1, "hf", "float32", ())
    run = tmp_path / "run"
    assert write_decodes(run, decodes).is_file()
    (run / "greedy").rename(tmp_path / "kept")
    (run / "greedy").symlink_to(tmp_path / "kept", target_is_directory=True)
    with pytest.raises(StoreError, match=r"greedy: is a link"):
        write_decodes(run, decodes)


def test_a_store_that_is_a_link_is_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "store").symlink_to(disk, target_is_directory=True)
    with writing(run_folder(tmp_path / "store", "run")):
        assert (disk / "run" / LOCK).is_file()


def test_the_lock_of_a_run_follows_no_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(mine)
    with (
        pytest.raises(StoreError, match="cannot be written"),
        writing(tmp_path / "run"),
    ):
        pass
    assert mine.read_text() == "mine"


def test_what_is_written_follows_no_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "probes.jsonl").symlink_to(mine)
    write_whole(tmp_path / "probes.jsonl", "theirs")
    assert mine.read_text() == "mine"
    assert not (tmp_path / "probes.jsonl").is_symlink()


def test_a_probe_id_chooses_no_file(tmp_path: Path) -> None:
    probe = read_probes(bundled_probes()).probes[0]
    hostile = dataclasses.replace(probe, probe_id="../../escape")
    path = tmp_path / "in" / "probes.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(probe_to_record(hostile)) + "\n")
    html = tmp_path / "in" / "page.html"
    assert main(["probes", "check", str(path), "--html", str(html)]) == 0
    assert main(["probes", "export", str(path), "-o", str(tmp_path / "in" / "x")]) == 0
    assert {item.name for item in tmp_path.iterdir()} == {"in"}
