"""Completions servers that fail, and what is said of them; right numbers otherwise."""

from __future__ import annotations

import gzip
import logging
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldeval.errors import ScoringError, UnsupportedBackendError
from ldeval.probes import ProbeSet
from ldeval.scoring import served
from ldeval.scoring.backends import backend_of
from ldeval.scoring.completions import LARGEST_ANSWER
from ldeval.scoring.encode import codec_of
from ldeval.scoring.score import (
    Scored,
    encode_probes,
    score_probes,
    score_requests,
)
from tests.scoring.completions_server import CompletionsServer, Fault, Handler
from tests.scoring.conftest import plain_logprobs

TOP_K = 5
OPTIONS: dict[str, Any] = {
    "span": "trl",
    "apply_chat_template": False,
    "system_instruction": None,
}


@pytest.fixture
def server(tiny: Path) -> Iterator[CompletionsServer]:
    with running(CompletionsServer(tiny)) as found:
        yield found


class running:
    """A server that works in a thread until the block ends."""

    def __init__(self, server: CompletionsServer) -> None:
        self.server = server

    def __enter__(self) -> CompletionsServer:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self.server

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def probes(few_probes: ProbeSet) -> ProbeSet:
    """One probe of two responses, so that a fault meets a known one."""
    probe = few_probes.probes[0]
    two = {kind: probe.responses[kind] for kind in ("chosen", "rejected")}
    return ProbeSet((replace(probe, responses=two),))


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "")


def client(server: CompletionsServer, tiny: Path, **arguments: Any) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    settings = {
        "base_url": server.url,
        "model": "tiny",
        "tokenizer": str(tiny),
        "tokenizer_backend": "huggingface",
        "max_length": 257,
        "max_retries": 2,
        "timeout": 20,
    }
    return LocalCompletionsAPI(**{**settings, **arguments})


def score(lm: Any, probes: ProbeSet) -> Scored:
    return score_probes(lm, probes.probes, top_k=TOP_K, progress=False)


def assert_right(
    server: CompletionsServer, lm: Any, probes: ProbeSet, scored: Scored
) -> None:
    encoded = encode_probes(lm, probes.probes, **OPTIONS)
    left_out = {(item.probe_id, item.kind) for item in scored.excluded}
    requests = [
        r
        for r in score_requests(encoded, None, {})
        if (r.probe_id, r.kind) not in left_out
    ]
    assert scored.scores.keys() == {(r.probe_id, r.kind) for r in requests}
    for request in requests:
        tokens = scored.scores[(request.probe_id, request.kind)].tokens
        assert tokens is not None
        logprobs = plain_logprobs(
            server.model, list(request.ids), request.start, request.stop
        )
        labels = torch.tensor(request.ids[request.start : request.stop])
        label = logprobs.gather(1, labels[:, None])
        top = logprobs.topk(TOP_K)
        np.testing.assert_allclose(tokens.logprobs, label[:, 0], atol=1e-4)
        np.testing.assert_allclose(tokens.top_logprobs, top.values, atol=1e-4)
        np.testing.assert_array_equal(tokens.ranks, 1 + (logprobs > label).sum(-1))
        np.testing.assert_array_equal(tokens.argmax_ids, logprobs.argmax(-1))


def says(status: int, body: Any, **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def fault(handler: Handler, _: dict[str, Any]) -> None:
        handler.reply(status, body, headers=named)

    return fault


def half_a_body(handler: Handler, _: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def hangs_up(handler: Handler, _: dict[str, Any]) -> None:
    handler.close_connection = True


def silence(handler: Handler, _: dict[str, Any]) -> None:
    time.sleep(3)
    handler.close_connection = True


def drips(handler: Handler, _: dict[str, Any]) -> None:
    """A byte now and then: each read succeeds, and the answer never ends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _byte in range(12):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.25)
    handler.close_connection = True


def bomb(size: int) -> Fault:
    """A packed answer of a hundredth of what it unpacks to."""
    packed = gzip.compress(b'{"a": "' + b" " * size + b'"}')

    def fault(handler: Handler, _: dict[str, Any]) -> None:
        handler.reply(200, packed, headers={"Content-Encoding": "gzip"})

    return fault


# --------------------------------------------------------------------- right answers


@pytest.mark.parametrize("settings", [{}, {"batch_size": 5}, {"num_concurrent": 3}])
def test_a_served_models_scores_are_those_of_a_plain_forward_pass(
    server: CompletionsServer,
    tiny: Path,
    few_probes: ProbeSet,
    settings: dict[str, Any],
) -> None:
    lm = client(server, tiny, **settings)
    scored = score(lm, few_probes)
    assert (scored.backend.name, scored.backend.tier) == ("served", "native")
    assert (scored.backend.dtype, scored.backend.vocab_size) == ("unknown", None)
    assert_right(server, lm, few_probes, scored)
    sizes = {len(post["prompt"]) for post in server.posts}
    assert max(sizes) == settings.get("batch_size", 1)


def test_no_more_posts_are_under_way_than_num_concurrent(
    server: CompletionsServer, tiny: Path, few_probes: ProbeSet
) -> None:
    server.pause = 0.05
    score(client(server, tiny, num_concurrent=3), few_probes)
    assert server.most_at_once == 3


def test_reference_ids_are_known_where_they_are_among_the_top(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    lm = client(server, tiny)
    (encoded,) = encode_probes(lm, probes.probes, **OPTIONS)
    response = encoded.responses[0]
    ids = np.tile([7, 9], (response.stop - response.start, 1))
    key = (encoded.probe_id, response.kind)
    scored = score_probes(
        lm, probes.probes, wanted=[key], reference={key: ids}, top_k=9, progress=False
    )
    tokens = scored.scores[key].tokens
    assert tokens is not None
    assert tokens.ref_logprobs is not None
    assert tokens.top_ids is not None
    logprobs = plain_logprobs(
        server.model, list(response.ids), response.start, response.stop
    )
    known = ~np.isnan(tokens.ref_logprobs)
    among = np.stack([(tokens.top_ids == i).any(1) for i in (7, 9)], axis=1)
    own = tokens.token_ids[:, None] == ids
    np.testing.assert_array_equal(known, among | own)
    np.testing.assert_allclose(
        tokens.ref_logprobs[known], logprobs[:, [7, 9]].numpy()[known], atol=1e-4
    )
    assert "reference ids where" in scored.notes[-1]


def test_scoring_works_where_an_event_loop_runs(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    import asyncio

    lm = client(server, tiny)

    async def notebook() -> Scored:
        return score(lm, probes)

    # in a thread of its own: a browser's tests may have left a loop in this one
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(asyncio.run, notebook()).result()
    assert_right(server, lm, probes, found)


def test_minus_infinity_comes_back_from_what_json_can_hold(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    def clamp(handler: Handler, answer: dict[str, Any]) -> None:
        rows = answer["choices"][0]["prompt_logprobs"]
        for entry in rows[-1].values():
            if entry["rank"] >= TOP_K:
                entry["logprob"] = served.CLAMPED
        handler.reply(200, answer)

    server.faults = [clamp]
    lm = client(server, tiny)
    scored = score(lm, probes)
    tops = [s.tokens.top_logprobs for s in scored.scores.values() if s.tokens]
    assert sum(int(np.isneginf(top).sum()) for top in tops if top is not None) == 1


# ------------------------------------------------------------------ failures that pass


@pytest.mark.parametrize(
    "fault",
    [
        says(429, {"error": "slow down"}, Retry_After="0"),
        says(429, {"error": "slow down"}),
        says(500, {"error": "oops"}),
        says(503, b"<html>busy</html>"),
        half_a_body,
        hangs_up,
    ],
    ids=["429-with-wait", "429", "500", "503", "half-a-body", "hang-up"],
)
def test_a_failure_that_passes_is_asked_again(
    server: CompletionsServer, tiny: Path, probes: ProbeSet, fault: Fault
) -> None:
    server.faults = [fault]
    lm = client(server, tiny)
    scored = score(lm, probes)
    assert_right(server, lm, probes, scored)
    assert len(server.posts) == 3
    assert "1 of them sent again" in scored.notes[-1]


def test_the_server_says_how_long_to_wait(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    server.faults = [says(429, {}, Retry_After="2")]
    score(client(server, tiny), probes)
    assert server.times[1] - server.times[0] >= 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (says(500, {"error": "out of memory"}), "answers 500: .*out of memory"),
        (says(429, b""), "answers 429: nothing"),
        (half_a_body, "the connection failed"),
        (hangs_up, "the connection failed"),
        (silence, "no whole answer within 1 seconds"),
        (drips, "no whole answer within 1 seconds"),
    ],
    ids=["500", "429", "half-a-body", "hang-up", "silence", "drip"],
)
def test_a_failure_that_stays_names_probe_kind_address_and_remedy(
    server: CompletionsServer, tiny: Path, probes: ProbeSet, fault: Fault, words: str
) -> None:
    server.faults = [fault] * 9
    with pytest.raises(ScoringError, match=words) as caught:
        score(client(server, tiny, timeout=1), probes)
    for part in (probes.probes[0].probe_id, "'chosen'", server.url, "(2 times)"):
        assert part in str(caught.value).replace("'rejected'", "'chosen'")
    assert len(server.posts) == 2


def test_a_server_that_is_not_there_is_named(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    lm = client(server, tiny, base_url="http://127.0.0.1:9/v1/completions")
    with pytest.raises(ScoringError, match=r"127\.0\.0\.1:9.*connection failed"):
        score(lm, probes)


# ------------------------------------------------------------------------ wrong answers


def changed(change: Callable[[dict[str, Any]], Any]) -> Fault:
    """The right answer but for one change in its first choice."""

    def fault(handler: Handler, answer: dict[str, Any]) -> None:
        change(answer["choices"][0])
        handler.reply(200, answer)

    return fault


def other_label(choice: dict[str, Any]) -> None:
    row = choice["prompt_logprobs"][-1]
    choice["prompt_logprobs"][-1] = {str(int(k) + 1): v for k, v in row.items()}


def every_logprob(value: Any) -> Callable[[dict[str, Any]], None]:
    def change(choice: dict[str, Any]) -> None:
        for entry in choice["prompt_logprobs"][-1].values():
            entry["logprob"] = value

    return change


def swapped_ranks(choice: dict[str, Any]) -> None:
    for entry in choice["prompt_logprobs"][-1].values():
        if entry["rank"] <= 2:
            entry["rank"] = 3 - entry["rank"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (says(200, b"<html>It works!</html>"), "not JSON: .*It works"),
        (says(200, [1]), "not an object"),
        (says(200, {"object": "list"}), "no choices, but .'object'"),
        (says(200, {"choices": []}), r"answers prompts \[\] of the 1"),
        (says(200, {"choices": [None]}), "no choices"),
        (changed(lambda c: c.update(index=4)), r"answers prompts \[4\]"),
        (changed(lambda c: c.pop("prompt_logprobs")), "the server returned none"),
        (changed(lambda c: c["prompt_logprobs"].pop()), r"returned \d+ positions"),
        (changed(lambda c: c.update(prompt_token_ids=[1, 2])), "other token ids"),
        (changed(other_label), "not .*, which was sent"),
        (
            changed(lambda c: c["prompt_logprobs"].__setitem__(-1, None)),
            "no log-probabilities but 'None'",
        ),
        (changed(every_logprob(None)), "no log-probabilities but"),
        (changed(every_logprob("-1.5")), "no log-probabilities but"),
        (changed(every_logprob(float("nan"))), "not log-probabilities"),
        (changed(swapped_ranks), "ranks are not those of its values"),
        (changed(every_logprob(-0.01)), "not log-probabilities: .* sum to"),
        (
            changed(lambda c: c["prompt_logprobs"][-1].popitem()),
            r"returned those of ranks|which was sent",
        ),
        (says(401, {"error": "who?"}), "refuses with 401: .*OPENAI_API_KEY"),
        (says(404, {}), "refuses with 404: .*/v1/completions"),
        (says(400, {"error": "too long: 256"}), "too long: .*Is max_length"),
    ],
)
def test_an_answer_that_cannot_be_trusted_is_refused_at_once(
    server: CompletionsServer, tiny: Path, probes: ProbeSet, fault: Fault, words: str
) -> None:
    server.faults = [fault] * 9
    with pytest.raises(ScoringError, match=words) as caught:
        score(client(server, tiny), probes)
    assert probes.probes[0].probe_id in str(caught.value)
    assert server.url in str(caught.value)
    assert len(server.posts) == 1


def test_an_answer_that_unpacks_to_fill_memory_is_refused_while_it_is_read(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    server.faults = [bomb(8 * LARGEST_ANSWER)]
    tracemalloc.start()
    try:
        with pytest.raises(ScoringError, match=r"more than [0-9,]+ bytes") as caught:
            score(client(server, tiny), probes)
        assert tracemalloc.get_traced_memory()[1] < 4 * LARGEST_ANSWER
    finally:
        tracemalloc.stop()
    assert server.url in str(caught.value)
    assert len(server.posts) == 1


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000])
def test_an_answer_nested_without_end_is_refused(
    server: CompletionsServer, tiny: Path, probes: ProbeSet, body: bytes
) -> None:
    server.faults = [says(200, body)]
    with pytest.raises(ScoringError, match="not JSON") as caught:
        score(client(server, tiny), probes)
    assert server.url in str(caught.value)


def test_one_bad_answer_in_a_post_of_many_names_its_response(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    server.faults = [changed(other_label)]
    with pytest.raises(ScoringError, match="which was sent") as caught:
        score(client(server, tiny, batch_size=8), probes)
    names = [kind for kind in ("'chosen'", "'rejected'") if kind in str(caught.value)]
    assert len(names) == 1


def test_a_server_with_fewer_top_tokens_names_its_argument(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    server.faults = [says(400, {"error": "Requested prompt logprobs of 5, max 2"})]
    with pytest.raises(UnsupportedBackendError, match=f"--max-logprobs {TOP_K}"):
        score(client(server, tiny), probes)


# ----------------------------------------------------------------------- other servers


def test_a_server_that_only_echoes_gives_sums_and_says_so_once(
    server: CompletionsServer,
    tiny: Path,
    probes: ProbeSet,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.knows = {"echo"}
    lm = client(server, tiny)
    with caplog.at_level(logging.WARNING, "ldeval"):
        scored = score(lm, probes)
    assert scored.backend.tier == "tokens"
    told = [m for m in caplog.messages if "gives one sum a response" in m]
    assert len(told) == 1
    encoded = encode_probes(lm, probes.probes, **OPTIONS)
    for request in score_requests(encoded, None, {}):
        logprobs = plain_logprobs(
            server.model, list(request.ids), request.start, request.stop
        )
        labels = torch.tensor(request.ids[request.start : request.stop])
        known = float(logprobs.gather(1, labels[:, None]).double().sum())
        found = scored.scores[(request.probe_id, request.kind)].logprob_sum
        assert abs(found - known) / len(labels) < 1e-4


@pytest.mark.parametrize("refuses", [False, True])
def test_a_server_without_prompt_scores_is_refused_before_the_work(
    server: CompletionsServer, tiny: Path, probes: ProbeSet, refuses: bool
) -> None:
    server.knows = set()
    if refuses:
        server.always = says(400, {"error": "unknown field"})
    with pytest.raises(UnsupportedBackendError, match="must support prompt_logprobs"):
        score(client(server, tiny), probes)
    assert server.posts == []


def test_a_chat_model_is_not_taken_for_a_completions_server(
    server: CompletionsServer, tiny: Path
) -> None:
    from lm_eval.models.openai_completions import LocalChatCompletion

    lm = LocalChatCompletion(base_url=server.url, model="tiny")
    assert backend_of(lm).tier == "text"
    assert server.headers == []


@pytest.mark.parametrize("url", [None, "127.0.0.1:8000", "file:///etc/hosts"])
def test_an_address_that_is_none_is_refused(
    server: CompletionsServer, tiny: Path, probes: ProbeSet, url: str | None
) -> None:
    with pytest.raises(UnsupportedBackendError, match="base_url=http://HOST:PORT"):
        score(client(server, tiny, base_url=url), probes)


# ------------------------------------------------------------- keys and certificates


def test_the_key_is_sent_and_never_shown(
    server: CompletionsServer,
    tiny: Path,
    probes: ProbeSet,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    key, password = "sk-verysecret-1234567", "hunter2hunter2"
    monkeypatch.setenv("OPENAI_API_KEY", key)

    def blabs(handler: Handler, _: dict[str, Any]) -> None:
        handler.reply(500, {"error": f"you sent {handler.headers['Authorization']}"})

    server.faults = [blabs] * 9
    lm = client(server, tiny)
    lm.base_url = server.url + f"?password={password}"
    with caplog.at_level(logging.DEBUG), pytest.raises(ScoringError) as caught:
        score(lm, probes)
    assert server.headers[-1]["Authorization"] == f"Bearer {key}"
    shown = [str(caught.value), caplog.text, *capfd.readouterr()]
    error: BaseException | None = caught.value
    while error is not None:
        shown.append(repr(error))
        error = error.__cause__
    assert "you sent ***" in shown[0]
    assert not [text for text in shown if key in text or password in text]


def test_a_header_of_the_users_own_replaces_the_key(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    score(client(server, tiny, header={"X-Token": "abc"}), probes)
    assert {h.get("X-Token") for h in server.headers} == {"abc"}
    assert {h.get("Authorization") for h in server.headers} == {None}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate in one file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(path), "-out", str(path) + ".crt"]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


def test_certificates_are_verified_as_the_model_says(
    tiny: Path, probes: ProbeSet, certificate: Path
) -> None:
    with running(CompletionsServer(tiny, certificate)) as server:
        with pytest.raises(ScoringError, match=r"connection failed.*certificate"):
            score(client(server, tiny, max_retries=1), probes)
        for trusted in (
            {"verify_certificate": False},
            {"ca_cert_path": f"{certificate}.crt"},
        ):
            lm = client(server, tiny, **trusted)
            assert_right(server, lm, probes, score(lm, probes))
        lm = client(server, tiny, ca_cert_path="nowhere.pem")
        with pytest.raises(UnsupportedBackendError, match=r"ca_cert_path=nowhere\.pem"):
            score(lm, probes)


# ----------------------------------------------------------------- remote tokenizers


def test_a_remote_tokenizer_encodes_as_the_local_one(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    server.describes_tokenizer = True
    local = client(server, tiny)
    remote = client(server, tiny, tokenizer=None, tokenizer_backend="remote")
    for template in (False, True):
        options = {**OPTIONS, "apply_chat_template": template}
        assert encode_probes(remote, probes.probes, **options) == encode_probes(
            local, probes.probes, **options
        )
    assert codec_of(remote).tokenizer_hash == "unknown"
    assert codec_of(remote).template_hash == codec_of(local).template_hash
    assert_right(server, remote, probes, score(remote, probes))


def test_what_a_remote_tokenizer_passes_over_is_refused(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    server.describes_tokenizer = True
    lm = client(
        server, tiny, tokenizer=None, tokenizer_backend="remote", add_bos_token=True
    )
    with pytest.raises(UnsupportedBackendError, match="add_bos_token=True"):
        score(lm, probes)


def test_a_servers_template_runs_in_a_sandbox(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    server.describes_tokenizer = True
    server.tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    remote = client(server, tiny, tokenizer=None, tokenizer_backend="remote")
    with pytest.raises(UnsupportedBackendError, match=r"'__class__' .* is unsafe"):
        score_probes(remote, probes.probes, apply_chat_template=True, progress=False)


def test_responses_over_the_models_length_are_excluded_by_name(
    server: CompletionsServer, tiny: Path, probes: ProbeSet
) -> None:
    scored = score(client(server, tiny, max_length=60), probes)
    assert scored.excluded
    assert all("the model takes 59" in item.reason for item in scored.excluded)
