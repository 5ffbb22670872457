"""A small completions server for tests: right answers by a plain forward pass of a tiny
model, and, when told so, every kind of wrong one."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Fault = Callable[["Handler", dict[str, Any]], None]
"""Answers one post; given what the right answer would be."""


class CompletionsServer(ThreadingHTTPServer):
    """Serves a tiny model; ``faults`` answer the next posts for scores, in turn."""

    daemon_threads = True

    def __init__(self, folder: Path, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.knows = {"prompt_logprobs", "echo"}
        self.describes_tokenizer = False
        self.pause = 0.0
        """Seconds that an answer takes."""
        self.posts: list[dict[str, Any]] = []
        """Posts for scores, as they came."""
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/v1/completions"

    def answer(self, payload: dict[str, Any]) -> dict[str, Any]:
        prompts = payload["prompt"]
        with self.lock:  # torch is not asked by two threads at once
            choices = [self._choice(i, ids, payload) for i, ids in enumerate(prompts)]
        return {"choices": choices[::-1]}  # the protocol promises no order

    def _choice(
        self, index: int, ids: list[int], payload: dict[str, Any]
    ) -> dict[str, Any]:
        with torch.inference_mode():
            logits = self.model(torch.tensor([ids])).logits[0].float()
        logprobs = torch.log_softmax(logits, -1)
        choice: dict[str, Any] = {"index": index, "text": ""}
        if "prompt_logprobs" in payload and "prompt_logprobs" in self.knows:
            count = payload["prompt_logprobs"]
            rows = [_row(logprobs[at - 1], ids[at], count) for at in range(1, len(ids))]
            choice["prompt_logprobs"] = [None, *rows]
        if payload.get("echo") and "echo" in self.knows:
            sampled = int(logprobs[-1].argmax())
            tokens = [*ids[1:], sampled]
            values = [float(logprobs[at, token]) for at, token in enumerate(tokens)]
            best = [{"best": float(row.max())} for row in logprobs]
            choice["logprobs"] = {
                "token_logprobs": [None, *values],
                "top_logprobs": [None, *best],
            }
        return choice


def _row(logprobs: torch.Tensor, label: int, count: int) -> dict[str, Any]:
    top = logprobs.topk(count)
    row = {
        str(label): {
            "logprob": float(logprobs[label]),
            "rank": int((logprobs >= logprobs[label]).sum()),
        }
    }
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    for rank, (token, value) in enumerate(pairs, 1):
        row[str(token)] = {"logprob": value, "rank": rank}
    return row


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: CompletionsServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/tokenizer_info" and self.server.describes_tokenizer:
            tokenizer = self.server.tokenizer
            self.reply(
                200,
                {
                    "tokenizer_class": "TinyTokenizer",
                    "eos_token": tokenizer.eos_token,
                    "chat_template": tokenizer.chat_template,
                },
            )
        else:
            self.reply(404, {"error": "not here"})

    def do_POST(self) -> None:
        server = self.server
        length = int(self.headers["Content-Length"])
        payload = json.loads(self.rfile.read(length))
        if self.path == "/tokenize" and server.describes_tokenizer:
            ids = server.tokenizer(payload["prompt"])["input_ids"]
            self.reply(200, {"tokens": ids})
            return
        work = payload.get("prompt_logprobs", 0) > 1
        with server.lock:
            server.headers.append(dict(self.headers))
            if work:
                server.posts.append(payload)
                server.times.append(time.monotonic())
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            fault = server.always
            if work and server.faults:
                fault = server.faults.pop(0)
        time.sleep(server.pause)
        answer = server.answer(payload)
        with server.lock:
            server.at_once -= 1
        if fault is None:
            self.reply(200, answer)
        else:
            fault(self, answer)

    def reply(
        self, status: int, body: Any, *, headers: dict[str, str] | None = None
    ) -> None:
        """Answer with JSON, or with bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""
