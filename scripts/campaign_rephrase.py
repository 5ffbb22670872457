"""A full probe set from preference data through a real endpoint, killed and resumed.

    python scripts/campaign_rephrase.py SOURCE --model DIR [--prompts 60] [--url URL]

Serves the model with vLLM (unless --url names a server that has it as "campaign"),
builds all twelve kinds, kills the build with SIGKILL in the middle, resumes it, and
builds once more from the cache alone with no endpoint there. Prints what the controls
rejected, by reason; exits 1 where an answer was asked for twice, or bytes differ.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

NAME = "campaign"
CONCURRENCY = 8


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(model: str, log: Path) -> Iterator[str]:
    """A vLLM server of the model on this machine; gives its address."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model),
        *("--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"),
    ]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        **os.environ,
    }
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as handle:
        server = subprocess.Popen(
            command,
            env=environment,
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until_healthy(url, server, log)
            yield url + "/v1"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers.

    Raises:
        SystemExit: when it ended, or takes more than ten minutes.
    """
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url + "/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"the server did not start; see {log}")


def chats_answered(url: str) -> int:
    """Chat completions that the server has answered since it started."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics") as answer:
        text = answer.read().decode()
    answered = r'handler="/v1/chat/completions".*status="2xx"'
    pattern = rf"http_requests_total\{{{answered}\}} ([\d.e+]+)"
    return sum(int(float(count)) for count in re.findall(pattern, text))


def kept(cache: Path) -> set[str]:
    """Keys of the answers in a cache."""
    if not cache.exists():
        return set()
    try:
        with contextlib.closing(sqlite3.connect(cache, timeout=30)) as database:
            return {
                key
                for (key,) in database.execute(
                    "SELECT key FROM answer WHERE NOT refused"
                )
            }
    except sqlite3.OperationalError:  # the build is just making the table
        return set()


def build_command(
    options: argparse.Namespace, url: str, output: Path, cache: Path
) -> list[str]:
    """``ldeval probes build`` with every kind."""
    heldout = max(options.prompts // 4, 1)
    initial = f"base_url={url}/completions,model={NAME},tokenized_requests=False"
    return [
        *(sys.executable, "-m", "ldeval.cli", "-q", "probes", "build"),
        *(str(options.source), "-o", str(output), "--cache", str(cache)),
        *("--heldout-fraction", "0.3", "--seed", "1"),
        *("--limit", str(options.prompts - heldout), str(heldout)),
        *("--rephraser", url, "--rephraser-model", NAME),
        *("--concurrency", str(CONCURRENCY), "--price", "0.5", "1.5"),
        # an answer that is given up on would be asked for again
        *("--timeout", "900"),
        *("--initial-model", options.model, "--initial-tokens", "64"),
        *("--initial-backend", "local-completions", "--initial-args", initial),
    ]


def without_initial(path: Path) -> list[object]:
    """The probes of a file, but for what is sampled outside the cache."""
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for record in records:
        record["responses"].pop("initial", None)
        record["meta"].pop("initial_model", None)
        record["meta"]["sources"].pop("initial", None)
        record["meta"].get("missing", {}).pop("initial", None)
    return records


def tried_again(printed: str) -> int:
    """How many requests of a build had no answer in time, or a failed one.

    The build names its attempts where they are more than its requests and the one
    before them, which asks for the server's models.
    """
    asked = re.search(r"asked (\d+), cached \d+(?:, (\d+) attempts)?", printed)
    if asked is None:
        raise SystemExit("the build printed no count of its requests")
    return int(asked[2]) - int(asked[1]) - 1 if asked[2] else 0


def run(options: argparse.Namespace, url: str) -> bool:
    """Kill, resume, repeat; whether all holds."""
    output = options.output / "probes.jsonl"
    cache = options.output / "answers.sqlite"
    command = build_command(options, url, output, cache)
    started, before = time.monotonic(), chats_answered(url)
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while len(kept(cache)) < options.kill_after and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = kept(cache)
    print(
        f"killed (exit {process.returncode}) with {len(first)} answers kept; "
        f"output there: {output.exists()}"
    )
    resumed = subprocess.run(command, capture_output=True, text=True, check=False)
    print(resumed.stdout)
    if resumed.returncode:
        print(resumed.stderr[-3000:])
        return False
    whole = kept(cache)
    answered = chats_answered(url) - before
    seconds = time.monotonic() - started
    again = tried_again(resumed.stdout)
    lost = answered - len(whole)
    print(
        f"server answered {answered} requests for {len(whole)} kept answers: {lost} "
        f"were on their way when the build was killed (at most {CONCURRENCY}) or when "
        f"it gave up waiting and tried again ({again}); {seconds:.0f} s in all"
    )
    alone = options.output / "alone.jsonl"
    command = build_command(options, "http://127.0.0.1:9/v1", alone, cache)
    cut = command.index("--initial-model")
    repeated = subprocess.run(
        command[:cut], capture_output=True, text=True, check=False
    )
    if repeated.returncode:
        print(repeated.stderr[-3000:])
        return False
    same = without_initial(alone) == without_initial(output)
    print(f"the cache alone, with no endpoint, gives the same probes: {same}")
    killed = process.returncode == -signal.SIGKILL
    return killed and first < whole and 0 <= lost <= CONCURRENCY + again and same


def main() -> int:
    """Serve, run, look the set over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--kill-after", type=int, help="answers (default: 2 a prompt)")
    parser.add_argument("--url", help="a server that is there already")
    parser.add_argument("-o", "--output", type=Path, default=Path("campaign"))
    options = parser.parse_args()
    options.kill_after = options.kill_after or 2 * options.prompts
    options.output.mkdir(parents=True, exist_ok=True)
    if (options.output / "answers.sqlite").exists():
        raise SystemExit(f"{options.output} holds an earlier run; name another folder")
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(
            served(options.model, options.output / "server.log")
        )
        good = run(options, url)
    check = [sys.executable, "-m", "ldeval.cli", "probes", "check"]
    files = [str(options.output / "probes.jsonl"), "--tokenizer", options.model]
    subprocess.run(
        [*check, *files, "--html", str(options.output / "check.html")], check=good
    )
    print(f"all held: {good}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
