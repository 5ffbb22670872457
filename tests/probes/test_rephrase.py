"""Rephrases from an endpoint, against a small hostile server.

The server is a fake at the I/O seam; ``test_rephrase_vllm`` runs the real thing.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ldeval.errors import EndpointError, ProbeError, StoreError
from ldeval.probes import write_probes
from ldeval.probes.answers import Answer, AnswerCache
from ldeval.probes.build import Build, BuildSettings
from ldeval.probes.endpoint import Endpoint, EndpointSettings
from ldeval.probes.rephrase import (
    Instructions,
    Rephraser,
    RephraseSettings,
    read_instructions,
)

Reply = Callable[["Handler", dict[str, Any]], None]


class Server(ThreadingHTTPServer):
    """Keeps what it was asked; answers as it is told."""

    daemon_threads = True

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = reply
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    """Speaks as much of the protocol as the tests need."""

    server: Server

    def do_GET(self) -> None:
        self.send(200, {"object": "list", "data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
        self.server.reply(self, body)

    def send(self, status: int, body: object, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", headers.pop("kind", "application/json"))
        self.send_header("Content-Length", headers.pop("length", str(len(data))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def say(self, text: object, finish: str = "stop") -> None:
        self.send(
            200,
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": finish,
                        "message": {"role": "assistant", "content": text},
                    }
                ],
                "usage": {
                    "prompt_tokens": 10,
                    "completion_tokens": 5,
                    "total_tokens": 15,
                },
            },
        )

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving(reply: Reply) -> Iterator[Server]:
    server = Server(reply)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def told(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def reword(text: str) -> str:
    """Another text, of the same length: letters moved on by one."""
    return "".join(
        chr((ord(c) - 97 + 1) % 26 + 97) if "a" <= c <= "z" else c for c in text
    )


def good(handler: Handler, body: dict[str, Any]) -> None:
    if "random sentence" in told(body):
        count = int(told(body).split("with ")[1].split()[0])
        handler.say(" ".join(f"r{body['seed']}x{n}" for n in range(count)))
        return
    reference = told(body).split("Reference sentence: ")[1].removesuffix("\nOutput:")
    handler.say(reword(reference) + (" indeed" if "format" in told(body) else ""))


ROWS = [
    {
        "prompt": f"Question {n}?",
        "chosen": f"the {['first', 'second', 'third', 'fourth'][n % 4]} answer is "
        f"number{'abcdefghij'[n % 10]} of several long ones",
        "rejected": f"a worse answer would be number{'abcdefghij'[n % 10]} instead",
    }
    for n in range(10)
]


def endpoint(url: str, **options: Any) -> Endpoint:
    return Endpoint(EndpointSettings(url, "m", **{"retries": 2, **options}))


def build(
    folder: Path,
    url: str,
    rows: list[dict[str, Any]] = ROWS,
    *,
    name: str = "out.jsonl",
    settings: RephraseSettings | None = None,
    embedder: Endpoint | None = None,
    **options: Any,
) -> tuple[Build, Rephraser]:
    path = folder / "s.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with AnswerCache(folder / "answers.sqlite") as cache:
        rephraser = Rephraser(
            endpoint(url, **options),
            cache,
            settings or RephraseSettings(),
            embedder=embedder,
        )
        made = Build(
            BuildSettings(str(path), heldout_share=0.3),
            work=folder,
            rephraser=rephraser,
        )
        write_probes(folder / name, made.probes())
        rephraser.close()
        return made, rephraser


def left_out(rephraser: Rephraser) -> Counter[str]:
    counts: Counter[str] = Counter()
    for (_, reason), count in rephraser.tally.left_out.items():
        counts[reason] += count
    return counts


def test_every_rephrased_kind_comes_back_and_a_rerun_asks_nothing(
    tmp_path: Path,
) -> None:
    with serving(good) as server:
        made, rephraser = build(tmp_path, server.url)
        assert len(server.asked) == 50
        assert rephraser.endpoint.usage.prompt_tokens == 500
        assert rephraser.endpoint.usage.cost((1e6, 2e6)) == 500 + 2 * 250
        kinds = made.report.to_record()["kinds"]
        for kind in ("chosen_semantic", "rejected_format", "random_sentence"):
            assert kinds["trained"][kind] + kinds["heldout"][kind] == 10
        _, again = build(tmp_path, server.url, name="again.jsonl")
        assert len(server.asked) == 50
        assert again.endpoint.usage.attempts == 0
    # from the cache alone, with nobody there
    build(tmp_path, "http://127.0.0.1:9/v1", name="alone.jsonl")
    first = (tmp_path / "out.jsonl").read_bytes()
    assert first == (tmp_path / "again.jsonl").read_bytes()
    assert first == (tmp_path / "alone.jsonl").read_bytes()


def test_the_order_of_arrival_changes_nothing(tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 16)):
        folder = tmp_path / name
        folder.mkdir()
        with serving(good) as server:
            build(folder, server.url, concurrency=workers)
    assert (tmp_path / "a/out.jsonl").read_bytes() == (
        tmp_path / "b/out.jsonl"
    ).read_bytes()


def test_the_papers_instructions_and_sampling_are_sent(tmp_path: Path) -> None:
    with serving(good) as server:
        build(tmp_path, server.url, ROWS[:3])
    asked = server.asked[0]
    assert asked["messages"][0]["content"] == "You are a helpful assistant."
    assert (asked["temperature"], asked["top_p"]) == (0.7, 1.0)
    texts = {told(body) for body in server.asked}
    assert any(
        t.startswith(
            "Given the reference sentence, please generate an output sentence. Please "
            "use different words as much as possible while keeping the meaning"
        )
        for t in texts
    )
    assert any("while keeping the format of it. Please only return" in t for t in texts)
    words = len(ROWS[0]["chosen"].split())
    assert f"Please generate a random sentence with {words} words." in texts


def test_template_syntax_in_a_text_stays_text(tmp_path: Path) -> None:
    text = "{{ 7 * 7 }} and {% raw %} of {reference} in the %s middle of it all"
    rows = [{**row, "chosen": f"{text} {n}"} for n, row in enumerate(ROWS[:3])]
    with serving(good) as server:
        build(tmp_path, server.url, rows)
    assert any(f"Reference sentence: {text} 0\n" in told(b) for b in server.asked)


def test_equal_requests_are_asked_once_even_at_the_same_time(tmp_path: Path) -> None:
    rows = [{**row, "chosen": ROWS[0]["chosen"]} for row in ROWS]
    settings = RephraseSettings(kinds=("chosen_semantic",))
    with serving(good) as server:
        _, rephraser = build(tmp_path, server.url, rows, settings=settings)
    assert len(server.asked) == 1
    assert rephraser.tally.accepted["chosen_semantic"] == 10


def test_answers_that_break_a_rule_are_asked_again_and_then_left_out(
    tmp_path: Path,
) -> None:
    seen: Counter[str] = Counter()

    def stubborn(handler: Handler, body: dict[str, Any]) -> None:
        seen[told(body)] += 1
        if "a worse" in told(body):
            handler.say("I'm sorry, but I can't help with that request at all.")
        elif seen[told(body)] < 3 and "random" not in told(body):
            handler.say("")
        else:
            good(handler, body)

    with serving(stubborn) as server:
        made, rephraser = build(tmp_path, server.url)
    assert left_out(rephraser) == {"refusal": 20}
    assert rephraser.tally.rejected["chosen_semantic", "empty"] == 20
    assert rephraser.tally.accepted["chosen_semantic"] == 10
    assert rephraser.tally.asked["chosen_semantic"] == 30
    record = made.report.to_record()
    assert record["missing"]["rejected_semantic"] == {"refusal": 10}
    assert record["rephrased"]["rejected_answers"]["rejected_format"] == {"refusal": 30}
    line = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert line["meta"]["missing"]["rejected_semantic"] == "refusal"


def test_each_attempt_has_a_seed_of_its_own(tmp_path: Path) -> None:
    with serving(lambda handler, body: handler.say("")) as server:
        build(tmp_path, server.url, ROWS[:2])
    seeds = Counter(body["seed"] for body in server.asked)
    assert set(seeds.values()) == {1}


def test_a_random_sentence_that_another_probe_has_is_drawn_again(
    tmp_path: Path,
) -> None:
    def same(handler: Handler, body: dict[str, Any]) -> None:
        handler.say("whatever happens everybody hears these very same few words")

    settings = RephraseSettings(kinds=("random_sentence",))
    with serving(same) as server:
        _, rephraser = build(tmp_path, server.url, settings=settings)
    assert rephraser.tally.accepted["random_sentence"] == 1
    assert left_out(rephraser) == {"duplicate": 9}


def limited_at_first(status: int) -> Reply:
    count = iter(range(10**6))

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        if next(count) < 4:
            handler.send(status, {"error": {"message": "later"}}, retry_after_ms="20")
        else:
            good(handler, body)

    return reply


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_passing_fault_is_retried(tmp_path: Path, status: int) -> None:
    with serving(limited_at_first(status)) as server:
        _, rephraser = build(tmp_path, server.url, ROWS[:3], concurrency=2, retries=5)
    assert not left_out(rephraser)
    assert rephraser.endpoint.usage.attempts > rephraser.endpoint.usage.requests


def garbage(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(200, b"<html>Bad gateway</html>", kind="text/html")


def broken_json(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(200, b'{"choices": [{"message"')


def half_a_body(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(200, b'{"choices": [', length="5000", Retry_After_Ms="10")


def no_choices(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(200, {"choices": []})


def wrong_types(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(200, {"choices": [{"message": {"content": {"a": 1}}}], "usage": 7})


def refused(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(400, {"error": {"message": "context length exceeded"}})


@pytest.mark.parametrize(
    "reply", [garbage, broken_json, half_a_body, no_choices, wrong_types, refused]
)
def test_requests_without_a_usable_answer_are_counted_and_the_rest_goes_on(
    tmp_path: Path, reply: Reply
) -> None:
    def partly(handler: Handler, body: dict[str, Any]) -> None:
        (reply if "numbera" in told(body) else good)(handler, body)

    with serving(partly) as server:
        made, rephraser = build(
            tmp_path, server.url, ROWS, retries=1, concurrency=1, timeout=10
        )
    reason = "refused" if reply is refused else "no answer"
    assert left_out(rephraser) == {reason: 4}
    assert made.report.to_record()["missing"]["chosen_semantic"] == {reason: 1}
    assert len(read_lines(tmp_path / "out.jsonl")) == 10


def test_a_refusal_is_kept_until_it_is_to_be_asked_again(tmp_path: Path) -> None:
    def partly(handler: Handler, body: dict[str, Any]) -> None:
        (refused if "numbera" in told(body) else good)(handler, body)

    with serving(partly) as server:
        build(tmp_path, server.url)
    # nobody is there, and nobody is asked
    _, kept = build(tmp_path, "http://127.0.0.1:9/v1", name="again.jsonl")
    assert left_out(kept) == {"refused": 4}
    first = (tmp_path / "out.jsonl").read_bytes()
    assert first == (tmp_path / "again.jsonl").read_bytes()
    settings = RephraseSettings(retry_refused=True)
    with serving(good) as server:
        _, rephraser = build(tmp_path, server.url, settings=settings)
        assert len(server.asked) == 4
    assert not left_out(rephraser)


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_an_answer_of_a_megabyte_is_counted_as_too_long(tmp_path: Path) -> None:
    def long(handler: Handler, body: dict[str, Any]) -> None:
        handler.say("word " * 200_000)

    with serving(long) as server:
        _, rephraser = build(tmp_path, server.url, ROWS[:2])
    assert set(left_out(rephraser)) == {"length"}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda h, b: h.send(401, {"error": {"message": "no"}}), "refuses the key"),
        (lambda h, b: h.send(404, {"error": {"message": "no"}}), "knows no model 'm'"),
        (garbage, "failed 20 times in a row"),
    ],
)
def test_an_endpoint_that_cannot_be_used_ends_the_build_with_a_remedy(
    tmp_path: Path, reply: Reply, message: str
) -> None:
    with serving(reply) as server, pytest.raises(EndpointError, match=message) as error:
        build(tmp_path, server.url, retries=0)
    assert "run the same command again" in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_endpoint_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="cannot be reached"):
        build(tmp_path, "http://127.0.0.1:9/v1", ROWS[:2])


def test_the_pace_holds_for_every_attempt(tmp_path: Path) -> None:
    """By the pace's own arithmetic, not by a clock: starts are handed out in turn."""
    with serving(limited_at_first(429)) as server:
        made = endpoint(server.url, requests_per_minute=6000, retries=5)
        made.complete([{"role": "user", "content": "random sentence with 3 words"}],
                      {"seed": 1})  # fmt: skip
        first, second = made._pace.reserve(), made._pace.reserve()
        made.close()
    assert second - first == pytest.approx(0.01)
    assert made.usage.attempts == 6  # one greeting, four refusals, one answer


def test_similarity_of_semantic_rephrases_is_recorded(tmp_path: Path) -> None:
    """Vectors that count letters: a fake whose cosine is known."""

    def embed(handler: Handler, body: dict[str, Any]) -> None:
        data = [
            {"index": n, "embedding": [float(text.count(c)) for c in "abcdefgh z"]}
            for n, text in enumerate(body["input"])
        ]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        handler.send(200, {"data": data, "model": "e", "usage": usage})

    with serving(embed) as vectors, serving(good) as server:
        build(tmp_path, server.url, ROWS[:3], embedder=endpoint(vectors.url))
        count = len(vectors.asked)
        build(tmp_path, server.url, ROWS[:3], embedder=endpoint(vectors.url))
        assert len(vectors.asked) == count, "embeddings are kept, too"
    for line in read_lines(tmp_path / "out.jsonl"):
        record = json.loads(line)
        similarity = record["meta"]["similarity"]
        assert set(similarity) == {"chosen_semantic", "rejected_semantic"}
        for kind, value in similarity.items():
            texts = record["responses"]
            one, other = (
                [t.strip().count(c) for c in "abcdefgh z"]
                for t in (texts[kind], texts[kind.split("_")[0]])
            )
            norm = (sum(x * x for x in one) * sum(x * x for x in other)) ** 0.5
            expected = sum(a * b for a, b in zip(one, other, strict=True)) / norm
            assert value == pytest.approx(expected, abs=1e-6)


def test_other_instructions_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "told.toml"
    path.write_text('semantic = "Umformulieren: {{ reference }}"\nsystem = ""\n')
    instructions = read_instructions(path)
    assert instructions.format == Instructions().format

    def german(handler: Handler, body: dict[str, Any]) -> None:
        if told(body).startswith("Umformulieren: "):
            assert len(body["messages"]) == 1
            handler.say(reword(told(body).removeprefix("Umformulieren: ")))
        else:
            good(handler, body)

    settings = RephraseSettings(instructions=instructions)
    with serving(german) as server:
        _, rephraser = build(tmp_path, server.url, ROWS[:3], settings=settings)
    assert rephraser.tally.accepted["chosen_semantic"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("semantic = ", "cannot be read as TOML"),
        ('other = "x"', "is not an instruction"),
        ("semantic = 3", "not text"),
        ('semantic = "no place for it"', "uses no variable"),
        ('semantic = "{{ reference }} {{ secret }}"', "nothing else"),
        ('semantic = "{{ reference "', "not a Jinja template"),
    ],
)
def test_faulty_instructions_say_so(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "told.toml"
    path.write_text(content)
    with pytest.raises(ProbeError, match=message):
        read_instructions(path)


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_text("hello, I am no database, " * 100)
    with pytest.raises(StoreError, match="not a cache of answers"):
        AnswerCache(path)


def test_a_cache_keeps_what_it_was_given_first(tmp_path: Path) -> None:
    first = Answer("ü\x00 \n", True, 3, 4)
    with AnswerCache(tmp_path / "c") as cache:
        cache.put("k", first)
        cache.put("k", Answer("other", False, 0, 0))
    with AnswerCache(tmp_path / "c") as cache:
        assert cache.get("k") == first
        assert cache.get("l") is None
        assert (len(cache), cache.hits) == (1, 1)
