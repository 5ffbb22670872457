"""Texts and keys go to the address that was given: where a server redirects to another,
that one sees nothing, and the refusal names it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldeval.cli import main
from ldeval.errors import ScoringError
from ldeval.scoring import completions
from ldeval.scoring.backends import backend_of
from ldeval.scoring.completions import Connection, RefusedError
from tests.security.answering import JsonHandler, served
from tests.tiny import save_run

SECRET = "k3y-of-the-header"
QUERY = "sig=s1gned-for-the-other"
Output = pytest.CaptureFixture[str]


@contextlib.contextmanager
def redirecting(status: int) -> Iterator[tuple[str, str, list[str]]]:
    """``host:port`` of a server that redirects, of the other, and what that one saw."""
    seen: list[str] = []

    class Other(JsonHandler):
        def do_GET(self) -> None:
            self._see()

        def do_POST(self) -> None:
            self._see()

        def _see(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.append(f"{self.headers}{body!r}")
            self.answer(404, {"error": {"message": "nothing here"}})

    with served(Other) as other:

        class Redirecting(JsonHandler):
            def do_GET(self) -> None:
                self._redirect()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._redirect()

            def _redirect(self) -> None:
                self.send_response(status)
                address = f"http://user:{SECRET}@{other}{self.path}?{QUERY}"
                self.send_header("Location", address)
                self.send_header("Content-Length", "0")
                self.end_headers()

        with served(Redirecting) as first:
            yield first, other, seen


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("redirects"), [1]) / "run"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_scoring_server_sends_prompts_and_key_to_nobody_else(
    status: int,
    run: Path,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with redirecting(status) as (first, other, seen):
        arguments = f"base_url=http://{first}/v1/completions,model=tiny,max_retries=2"
        arguments += f",tokenizer_backend=huggingface,tokenizer={run / 'checkpoint-1'}"
        asked = ("--model", "local-completions", "--model_args", arguments)
        store = ("--store", str(tmp_path / "store"), "--limit", "1", "1")
        assert main(["-q", "sweep", str(run), *store, *asked]) != 0
    told = "".join(capsys.readouterr())
    assert f"redirects to http://{other}/v1/completions;" in told
    assert "give it as base_url" in told
    assert SECRET not in told
    assert QUERY not in told
    assert not seen


def test_a_header_that_is_no_authorization_goes_to_nobody_else(run: Path) -> None:
    """HTTP clients keep such a header where they follow a redirect."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    with redirecting(307) as (first, other, seen):
        lm = LocalCompletionsAPI(
            base_url=f"http://{first}/v1/completions",
            model="tiny",
            tokenizer=str(run / "checkpoint-1"),
            tokenizer_backend="huggingface",
            header={"api-key": SECRET},
            max_retries=2,
        )

        async def ask() -> None:
            async with Connection(lm) as connection:
                await connection.post({"prompt": [[1, 2]]})

        with pytest.raises(RefusedError, match=f"redirects to http://{other}/"):
            completions.run(ask)
        assert not seen


def test_texts_for_a_servers_tokenizer_go_to_nobody_else() -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    seen: list[bytes] = []

    class Other(JsonHandler):
        def do_POST(self) -> None:
            seen.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(200, {"tokens": [1, 2]})

    with served(Other) as other:

        class Tokenizing(JsonHandler):
            """Redirects once the harness has seen that it encodes."""

            def do_GET(self) -> None:
                self.answer(200, {"eos_token": "e"})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if json.loads(body).get("prompt") == "test":
                    self.answer(200, {"tokens": [1]})
                    return
                self.send_response(307)
                self.send_header("Location", f"http://{other}{self.path}")
                self.send_header("Content-Length", "0")
                self.end_headers()

        with served(Tokenizing) as first:
            lm = LocalCompletionsAPI(
                base_url=f"http://{first}/v1/completions",
                model="tiny",
                tokenizer_backend="remote",
                max_retries=1,
            )
            with pytest.raises(ScoringError, match="tokenizer does not answer"):
                backend_of(lm)
    assert not seen


@pytest.mark.parametrize("status", [302, 307])
def test_a_rephraser_sends_texts_and_key_to_nobody_else(
    status: int, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    rows = [
        {"prompt": f"Say {n}.", "chosen": f"It is {n} now.", "rejected": f"No {n}."}
        for n in ("one", "two", "three", "four")
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with redirecting(status) as (first, other, seen):
        status_of_it = main(
            [
                *("-q", "probes", "build", str(pairs), "-o", f"{tmp_path}/out.jsonl"),
                *("--rephraser", f"http://{first}/v1", "--rephraser-model", "m"),
                *("--retries", "0"),
            ]
        )
    told = "".join(capsys.readouterr())
    assert status_of_it == 2
    assert "redirects to" in told
    assert other in told
    assert "--rephraser" in told
    assert SECRET not in told
    assert QUERY not in told
    assert not seen
