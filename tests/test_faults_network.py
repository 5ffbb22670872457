"""Stores at addresses that misbehave: silence, errors, answers that break off.

Real servers on loopback, which speak as much of HTTP as it takes to be asked. Apart
from ``test_faults``, whose commands run whole; here each way to a store is taken alone.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from fsspec.config import conf
from moto.server import ThreadedMotoServer

from ldeval.cli import main
from ldeval.errors import StoreError
from ldeval.files import place, places, write_whole
from ldeval.lease import writing
from ldeval.store import list_runs, read_table, step_folder, write_table
from tests.test_store import table

HUNG = 60.0
"""Seconds after which a call counts as hung; those here take a few."""
STORE = "s3://probes/faults"

Misbehaviour = Callable[[socket.socket], None]


def silent(connection: socket.socket) -> None:
    """Take what is asked and say nothing."""
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


def failing(connection: socket.socket) -> None:
    """Answer every request with an internal error."""
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            body = b"<Error><Code>InternalError</Code><Message>no</Message></Error>"
            connection.sendall(
                b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/xml\r\n"
                b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )


def breaking_off(connection: socket.socket) -> None:
    """Begin an answer and go away in the midst of it."""
    with contextlib.suppress(OSError):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n<half")


@contextlib.contextmanager
def misbehaving(how: Misbehaviour) -> Iterator[str]:
    """A server; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    threading.Thread(
                        target=answer, args=(held[-1],), daemon=True
                    ).start()

        def answer(connection: socket.socket) -> None:
            how(connection)
            connection.close()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in held:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A client with little patience; gives what turns it to an address."""
    import s3fs

    patience = {"connect_timeout": 1, "read_timeout": 0.5}
    patience["retries"] = cast(Any, {"max_attempts": 0})
    monkeypatch.setitem(conf, "s3", {"config_kwargs": patience})
    monkeypatch.setattr(places, "PAUSE", 0.01)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-seen")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    def turn_to(address: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem.clear_instance_cache()

    return turn_to


def lease(store: str) -> None:
    with writing(place(store) / "r", patience=0.2):
        pass


WAYS: dict[str, Callable[[str], object]] = {
    "write": lambda store: write_whole(place(store) / "r" / "file", b"x"),
    "write a table": lambda store: write_table(step_folder(store, "r", 1), table()),
    "lease": lease,
    "list": list_runs,
    "read": lambda store: read_table(step_folder(store, "r", 1)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", [silent, failing, breaking_off])
def test_every_way_to_a_store_that_misbehaves_ends_with_its_name(
    client: Callable[[str], None], how: Misbehaviour, way: str
) -> None:
    # in this order, so that a call that hangs ends when the server goes away
    with ThreadPoolExecutor(1) as pool, misbehaving(how) as address:
        client(address)
        ended = pool.submit(WAYS[way], STORE)
        with pytest.raises(StoreError) as caught:
            ended.result(timeout=HUNG)
    said = str(caught.value)
    assert said.startswith(STORE)
    assert "not-to-be-seen" not in said
    assert said.endswith((".", "?"))


def test_a_place_that_comes_from_another_process_waits_no_longer(
    client: Callable[[str], None],
) -> None:
    """As the settings of a shard come to a worker of Ray, which has no client yet."""
    with ThreadPoolExecutor(1) as pool, misbehaving(silent) as address:
        client(address)
        sent = pickle.dumps(place(STORE))
        client(address)
        store = pickle.loads(sent)  # noqa: S301  what Ray does
        ended = pool.submit(write_table, step_folder(store, "r", 1), table())
        with pytest.raises(StoreError, match=STORE):
            ended.result(timeout=HUNG)
        assert store.fs.retries == 1


def test_a_command_says_so_in_one_line_without_the_password_of_the_address(
    client: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with misbehaving(silent) as address:
        client(address.replace("://", "://user:not-to-be-seen@"))
        assert main(["-q", "ls", STORE]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ldeval: error: {STORE}: cannot be read (")
    assert "Is it there, and can it be reached?" in said
    assert "not-to-be-seen" not in said
    assert len(said.splitlines()) == 1


def test_the_message_keeps_the_password_of_the_address_to_itself(
    client: Callable[[str], None],
) -> None:
    with misbehaving(silent) as address:
        client(address.replace("://", "://user:not-to-be-seen@"))
        with pytest.raises(StoreError) as caught:
            write_whole(place(STORE) / "file", b"x")
    assert "not-to-be-seen" not in str(caught.value)
    assert "Can it be reached" in str(caught.value)


def test_what_was_finished_stays_and_the_same_goes_on_when_the_store_is_back(
    client: Callable[[str], None],
) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        client(f"http://{host}:{port}")
        cast(Any, place(STORE)).fs.mkdirs("probes", exist_ok=True)
        first = write_table(step_folder(STORE, "r", 1), table())
        with misbehaving(silent) as away:
            client(away)
            with pytest.raises(StoreError, match="the same command goes on"):
                write_table(step_folder(STORE, "r", 2), table(2))
        client(f"http://{host}:{port}")
        assert [s.step for s in list_runs(STORE)["r"] if s.complete] == [1]
        assert read_table(step_folder(STORE, "r", 1)).manifest.files == first.files
        write_table(step_folder(STORE, "r", 2), table(2))
        assert [s.step for s in list_runs(STORE)["r"] if s.complete] == [1, 2]
    finally:
        server.stop()


def test_waits_are_short_unless_the_user_asks_for_others(
    client: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    client("http://127.0.0.1:9")
    monkeypatch.setitem(conf, "s3", {})
    assert cast(Any, place(STORE)).fs.config_kwargs == places.TIMEOUTS
    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"read_timeout": 77}})
    asked = cast(Any, place(f"{STORE}/other")).fs.config_kwargs
    assert asked == {**places.TIMEOUTS, "read_timeout": 77}
    assert isinstance(place("a/folder"), Path)
