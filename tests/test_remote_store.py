"""A store at a URL: a real S3 server on loopback, and one that fails."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from moto.server import ThreadedMotoServer

import ldeval
from ldeval import lease
from ldeval.cli import main
from ldeval.errors import StoreError
from ldeval.files import place, places, reading, remove_tree, write_whole
from ldeval.lease import writing
from ldeval.store import list_runs, read_table, set_aside, step_folder, write_table
from tests.test_store import table
from tests.tiny import save_run, save_tiny


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3-compatible server of this machine, with an empty bucket ``probes``."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def client(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials and address, as a user gives them: in the environment."""
    import s3fs

    for name, value in {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "not-to-be-seen",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(places, "PAUSE", 0.01)
    monkeypatch.setattr(lease, "SETTLE", 0.1)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdirs("probes", exist_ok=True)


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    """A store of this test's own."""
    return f"s3://probes/{abs(hash(request.node.name))}"


def test_a_table_reads_back_alike_and_damage_is_named(bucket: str) -> None:
    folder = step_folder(bucket, "r", 7)
    manifest = write_table(folder, table())
    back = read_table(folder)
    assert back.logprob_sums.tolist() == table().logprob_sums.tolist()
    assert back.manifest.files == manifest.files
    assert [s.step for s in list_runs(bucket)["r"] if s.complete] == [7]
    (folder / "tokens.parquet").write_bytes(b"cut")
    reading._downloads.cache_clear()
    with pytest.raises(StoreError, match=r"tokens\.parquet.*cut short"):
        read_table(folder)
    (folder / "manifest.json").unlink()
    assert not list_runs(bucket)["r"][0].complete


def test_the_bytes_are_those_of_a_store_on_a_disk(bucket: str, tmp_path: Path) -> None:
    there = write_table(step_folder(bucket, "r", 1), table())
    here = write_table(step_folder(tmp_path, "r", 1), table())
    assert there.files == here.files


def test_steps_are_set_aside_and_folders_removed(bucket: str) -> None:
    for step in (1, 2):
        write_table(step_folder(bucket, "r", step), table(step))
    moved = set_aside(place(bucket) / "r", list_runs(bucket)["r"][1:])
    assert [s.step for s in list_runs(bucket)["r"]] == [1]
    assert read_table(moved / "step_000002").manifest.step == 2
    remove_tree(place(bucket) / "r")
    with pytest.raises(StoreError, match=r"no such store|holds no runs"):
        list_runs(bucket)


def test_a_sweep_into_a_bucket_is_the_sweep_into_a_folder(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = save_run(tmp_path, [10, 20])
    command = ["sweep", str(trained / "run"), "--base", str(trained / "base")]
    command += ["--limit", "3", "2", "--apply_chat_template", "--greedy", "4"]
    command += ["--model_args", "dtype=float32,device=cpu"]
    for store in (bucket, str(tmp_path / "store")):
        assert main(["-q", *command, "--store", store]) == 0
    assert main(["-q", *command, "--store", bucket]) == 0  # all kept
    assert "scored 0 checkpoints, kept 3" in capsys.readouterr().out
    there, here = (
        [t.manifest for t in ldeval.load_run(f"{store}/run")]
        for store in (bucket, tmp_path / "store")
    )
    assert [m.files for m in there] == [m.files for m in here]
    assert main(["ls", bucket]) == 0
    assert main(["validate", bucket]) == 0
    assert main(["diff", f"{bucket}/run", "--json", str(tmp_path / "d.json")]) == 0
    page = tmp_path / "page.html"
    assert main(["report", f"{bucket}/run", "--html", str(page)]) == 0
    assert "not-to-be-seen" not in page.read_text() + capsys.readouterr().out
    assert ldeval.diff(f"{bucket}/run").run == "run"


# ------------------------------------------------------------------------ one writer


@pytest.mark.parametrize("remote", [True, False])
def test_one_process_writes_a_run(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    run = (place(bucket) if remote else tmp_path) / "r"
    with writing(run):
        second = writing(run, patience=0.5)
        with pytest.raises(
            StoreError, match="is being written by another thread of this process"
        ):
            second.__enter__()
    with writing(run):
        pass  # given back


def test_a_lease_that_stands_still_is_taken_over_whatever_the_clock_says(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = place(bucket) / "r"
    write_whole(
        run / lease.LEASE,
        json.dumps({"process": 1, "host": "gone", "token": "t", "count": 9}),
    )
    monkeypatch.setattr(time, "time", lambda: -1e9)  # a clock that jumped
    with writing(run, patience=0.3):
        held = json.loads((run / lease.LEASE).read_text())
        assert held["token"] != "t"
    assert not (run / lease.LEASE).exists()


def test_a_writer_that_was_away_for_long_learns_that_it_lost_the_run(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    run = place(bucket) / "r"
    with writing(run) as still_held:
        still_held()
        other = {"process": 7, "host": "elsewhere", "token": "t", "count": 0}
        write_whole(run / lease.LEASE, json.dumps(other))
        time.sleep(0.5)
        with pytest.raises(StoreError, match="by process 7 on elsewhere"):
            still_held()
    assert json.loads((run / lease.LEASE).read_text())["token"] == "t"


def test_a_writer_that_wakes_up_late_learns_that_before_its_next_sign_of_life(
    bucket: str,
) -> None:
    run = place(bucket) / "r"
    with writing(run) as still_held:
        other = {"process": 7, "host": "elsewhere", "token": "t", "count": 0}
        write_whole(run / lease.LEASE, json.dumps(other))
        with pytest.raises(StoreError, match="by process 7 on elsewhere"):
            still_held()


def test_of_two_that_take_a_lease_at_once_one_has_it(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    run = place(bucket) / "r"
    inside, refused, most = [0], [0], [0]

    def work() -> None:
        try:
            with writing(run, patience=0.4):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(2)
                inside[0] -= 1
        except StoreError:
            refused[0] += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert refused[0] == 2


def test_a_store_that_creates_over_what_is_there_keeps_a_living_lease_all_the_same(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As S3-compatible servers do that pass over ``If-None-Match``."""
    monkeypatch.setattr(lease, "BEAT", 0.05)
    run = place(bucket) / "r"
    filesystem = cast(Any, run).fs
    real = filesystem.pipe_file

    def pipe(path: str, value: bytes, mode: str = "create") -> None:
        real(path, value)

    monkeypatch.setattr(filesystem, "pipe_file", pipe)
    with writing(run) as still_held:
        with (
            pytest.raises(StoreError, match="is being written by"),
            writing(run, patience=0.5),
        ):
            pass
        time.sleep(0.2)
        still_held()


def test_of_two_that_create_a_lease_at_once_the_later_has_it(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = place(bucket) / "r"
    other = {"process": 7, "host": "elsewhere", "token": "t", "count": 0}

    def create(mine: lease._Lease) -> bool:
        write_whole(mine.path, mine.content)
        write_whole(mine.path, json.dumps(other))  # just after
        return True

    monkeypatch.setattr(lease, "_create", create)
    with pytest.raises(StoreError, match="by process 7 on elsewhere"), writing(run):
        pass


# --------------------------------------------------------------------------- failures


def test_a_network_that_fails_once_is_tried_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from botocore.exceptions import ReadTimeoutError

    target = place(bucket) / "r" / "file"
    filesystem = cast(Any, target).fs
    real, calls = filesystem.put_file, []

    def put(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ReadTimeoutError(endpoint_url="http://store")
        return real(*arguments, **options)

    monkeypatch.setattr(filesystem, "put_file", put)
    with caplog.at_level(logging.WARNING):
        write_whole(target, b"whole")
    assert target.read_bytes() == b"whole"
    assert "attempt 2 of 3" in caplog.text


def test_a_network_that_stays_away_is_named_and_what_was_finished_stays(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(step_folder(bucket, "r", 1), table())
    folder = step_folder(bucket, "r", 2)
    filesystem = cast(Any, folder).fs

    def put(*_: Any, **__: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(filesystem, "put_file", put)
    with pytest.raises(StoreError, match=r"s3://.*timed out.*the same command goes on"):
        write_table(folder, table(2))
    monkeypatch.undo()
    assert [s.step for s in list_runs(bucket)["r"] if s.complete] == [1]


def test_a_url_of_no_known_kind_is_refused_on_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["ls", "nonsense://key:secret@bucket/store"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "nonsense" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "command",
    [
        ["sweep", "s3://key:secret@bucket/run", "--store", "store"],
        ["sweep", "run", "--store", "store", "--base", "s3://key:secret@bucket/base"],
        ["report", "store/run", "-o", "s3://key:secret@bucket/report"],
        ["diff", "store/run", "--json", "s3://key:secret@bucket/diff.json"],
    ],
)
def test_what_is_no_store_is_refused_at_a_url(
    tmp_path: Path,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder named ``s3:`` would be looked for, or made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "only a store may be at one" in said
    assert "secret" not in said
    assert not list(tmp_path.iterdir())


def test_a_trainer_keeps_its_live_scores_in_a_bucket(
    bucket: str, tmp_path: Path
) -> None:
    from tests.training import examples, short_probes, trainer

    probes = short_probes(4, 2)
    model = save_tiny(tmp_path / "model")
    probing = ldeval.ProbeCallback(
        probes, bucket, every=2, apply_chat_template=True, objective="sft"
    )
    run = trainer(
        model,
        tmp_path / "run",
        examples(probes, "sft"),
        "sft",
        callbacks=[probing],
        max_steps=2,
        save_strategy="no",
    )
    run.train()
    assert probing.failures == {}
    assert [t.manifest.step for t in ldeval.load_run(f"{bucket}/run")] == [0, 2]
    with writing(place(bucket) / "run", patience=0.1):
        pass  # the trainer gave it back
