"""Commands that were given secrets leave them nowhere: on no terminal, in no file."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldeval.commands.output import print_traceback
from ldeval.logs import CleanFormatter, clean
from ldeval.store import read_manifest
from tests.security.answering import JsonHandler, served
from tests.tiny import save_run

PASSWORD = "pa55-of-the-address"
TOKEN = "t0ken-among-the-arguments"
KEY = "k3y-in-the-environment"
SECRETS = (PASSWORD, TOKEN, KEY)
ENVIRONMENT = {
    "OPENAI_API_KEY": KEY,
    "HF_TOKEN": f"{KEY}-hf",
    "AWS_SECRET_ACCESS_KEY": f"{KEY}-aws",
    "UNNAMED": f"{KEY}-unnamed",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Gossip(JsonHandler):
    """An endpoint that repeats the key in what it complains of."""

    def do_GET(self) -> None:
        self._complain()

    def do_POST(self) -> None:
        self._complain()

    def _complain(self) -> None:
        said = self.headers.get("Authorization", "no key")
        self.answer(404, {"error": {"message": f"no model for {said}"}})


@pytest.fixture(scope="module")
def gossip() -> Iterator[str]:
    with served(Gossip) as address:
        yield f"user:{PASSWORD}@{address}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("secrets"), [1]) / "run"


def told(folder: Path, *arguments: str) -> tuple[int, str]:
    """Status and output of a command, after a look for secrets everywhere."""
    done = subprocess.run(
        [sys.executable, "-m", "ldeval.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
    )
    output = done.stdout + done.stderr
    written = [path for path in folder.rglob("*") if path.is_file()]
    for secret in SECRETS:
        assert secret not in output
        for path in written:
            assert secret.encode() not in path.read_bytes(), path
            assert secret not in path.name
    assert "Traceback" not in output, output
    return done.returncode, output


def test_a_sweep_keeps_no_token_and_goes_on_with_another(
    run: Path, tmp_path: Path
) -> None:
    command = ["sweep", str(run), "--store", "store", "--limit", "1", "1"]
    arguments = f"device=cpu,dtype=float32,token={TOKEN}"
    status, _ = told(tmp_path, *command, "--model_args", arguments)
    assert status == 0
    manifest = read_manifest(tmp_path / "store" / "run" / "step_000001")
    assert manifest.settings["model_args"]["token"] == "***"
    assert manifest.settings["model_args"]["dtype"] == "float32"
    status, output = told(tmp_path, *command, "--model_args", f"{arguments}-renewed")
    assert status == 0
    assert "kept 1" in output


@pytest.mark.parametrize(
    ("key", "reason"), [(KEY, "a key is set too"), ("", "the server refuses with 404")]
)
def test_a_server_that_refuses_is_named_without_the_password(
    run: Path,
    tmp_path: Path,
    gossip: str,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    reason: str,
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "OPENAI_API_KEY", key)
    address = f"base_url=http://{gossip}/v1/completions,model=tiny,max_retries=1"
    address += f",tokenizer={run / 'checkpoint-1'}"
    status, output = told(
        tmp_path,
        *("sweep", str(run), "--store", "store", "--model", "local-completions"),
        *("--limit", "1", "1", "--model_args", address),
    )
    assert status in (1, 2)
    assert "127.0.0.1" in output
    assert reason in output


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "UNNAMED"])
def test_a_rephraser_that_repeats_the_key_is_not_repeated(
    tmp_path: Path, gossip: str, variable: str
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": f"Say {n}.",
            "chosen": f"It is {n} now.",
            "rejected": f"No {n} here.",
        }
        for n in ("one", "two", "three", "four")
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, output = told(
        tmp_path,
        *("probes", "build", str(pairs), "-o", "probes.jsonl", "--retries", "0"),
        *("--rephraser", f"http://{gossip}/v1", "--rephraser-model", "m"),
        *("--rephraser-key", variable),
    )
    assert status == 2
    assert "knows no model" in output
    assert variable in output


def test_a_store_at_a_url_is_named_without_its_credentials(tmp_path: Path) -> None:
    status, output = told(tmp_path, "ls", f"s3://AKEY:{PASSWORD}@b.invalid/store")
    assert status == 2
    assert "ldeval: error" in output


@pytest.mark.parametrize("given", [[f"--api_key={TOKEN}"], ["--api_key", TOKEN]])
def test_a_command_line_that_is_wrong_is_not_repeated_whole(
    tmp_path: Path, given: list[str]
) -> None:
    status, output = told(tmp_path, "ls", "store", *given)
    assert status == 2
    shown = " ".join(given).replace(TOKEN, "***")
    assert f"unrecognized arguments: {shown}" in output


def test_log_records_and_tracebacks_are_cleaned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    record = logging.LogRecord(
        "aiohttp", logging.ERROR, "", 1, "sent %s \x1b[31m", ({"token": TOKEN},), None
    )
    shown = CleanFormatter("%(message)s").format(record)
    assert TOKEN not in shown
    assert "\\x1b[31m" in shown
    try:
        raise RuntimeError(f"http://u:{PASSWORD}@host and {KEY}")
    except RuntimeError as error:
        print_traceback(type(error), error, error.__traceback__)
    printed = capsys.readouterr().err
    assert "RuntimeError: http://***@host and ***" in printed
    assert "\n" in printed


def test_what_is_printed_cannot_move_the_cursor() -> None:
    assert clean("a\x1b]0;title\x07\n\tb\x9b2J\u202ec") == (
        "a\\x1b]0;title\\x07\n\tb\\x9b2J\\u202ec"
    )
