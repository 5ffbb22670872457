"""One ``vllm serve`` for a whole run (``ldeval sweep --serve``), as a child process.

It goes through the checkpoints as the engine in this process does
(:mod:`vllm_engine`), over HTTP: weights are swapped in place through the server's
development endpoint, LoRA adapters are loaded and unloaded through its own. The server
listens on the loopback address alone, under a key made for the run; vLLM does not ask
for it at the development endpoints, which other users of the machine could reach.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import requests

from ldeval.errors import (
    CheckpointError,
    MissingExtraError,
    ScoringError,
    UnsupportedBackendError,
)
from ldeval.records import Checkpoint
from ldeval.scoring.models import lend_tokenizer, start_model
from ldeval.scoring.served import ServerFacts
from ldeval.scoring.server_process import ServerProcess
from ldeval.scoring.vllm_engine import WORKER_EXTENSION, VllmEngine, check_targets

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
NAME = "checkpoint"
"""What the server calls the model that it was started with."""
START_LIMIT = 1800.0
"""Seconds until a server that is not ready counts as stuck."""
CONTROL_LIMIT = 600.0
"""Seconds for one swap."""
LOG_LINES = 40
"""Lines of the server's log that an error shows."""

CLIENT_DEFAULTS: Mapping[str, Any] = {
    "num_concurrent": 16,
    "timeout": 1800,
    "max_retries": 3,
}
"""Model arguments of ``local-completions`` that may stand among those of vLLM. The
server works for this run alone: only a stuck one takes so long to answer."""
_ENCODING = ("enable_thinking", "chat_template_args")
"""Those that the harness's vLLM model keeps for the chat template."""
_SECRET = ("api_key", "hf_token")
"""Those that no command line may hold, which every user of the machine can read."""
_UNSERVED = frozenset(
    {"batch_size", "device", "max_gen_toks", "prefix_token_id", "swap_space"}
    | {"think_end_token", "truncation_side", "add_bos_token"}
    | {*CLIENT_DEFAULTS, *_ENCODING}
)
"""Model arguments that are none of the server's."""
_RENAMED = {"max_length": "max_model_len", "max_batch_size": "max_num_seqs"}


class ServedVllm(VllmEngine):
    """One server for all checkpoints of a run; arguments as :class:`VllmEngine`."""

    _server: VllmServer | None = None

    def open(self, checkpoint: Checkpoint) -> Any:
        """A ``local-completions`` model whose server computes with this checkpoint."""
        if self._server is not None and not self._server.alive:
            self.close()
        return super().open(checkpoint)

    def _start(self, checkpoint: Checkpoint, extra: Mapping[str, Any]) -> Any:
        arguments = {**self._args, **extra, "worker_extension_cls": WORKER_EXTENSION}
        lend_tokenizer(arguments, checkpoint, self._base)
        self._server = VllmServer(checkpoint, arguments)
        (facts,) = self._server.rpc("ldeval_facts")[:1]
        return self._model(checkpoint, arguments, facts)

    def _model(
        self,
        checkpoint: Checkpoint,
        arguments: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> Any:
        """The harness's model of the server, with the tokenizer settings of its vLLM
        model."""
        assert self._server is not None
        bos = arguments.get("add_bos_token")
        lm = start_model(
            "local-completions",
            {
                "base_url": f"{self._server.address}/v1/completions",
                "model": NAME,
                "header": self._server.header,
                "tokenizer_backend": "huggingface",
                "tokenizer": arguments.get("tokenizer", checkpoint.folder),
                "trust_remote_code": arguments.get("trust_remote_code", False),
                # None leaves it to the tokenizer there, as True does here
                "add_bos_token": True if bos is None else bos,
                "max_length": facts["max_model_len"],
                **{k: arguments.get(k, v) for k, v in CLIENT_DEFAULTS.items()},
            },
            checkpoint,
        )
        for name in _ENCODING:
            setattr(lm, name, arguments.get(name))
        lm.server_facts = ServerFacts(
            dtype=facts["dtype"].removeprefix("torch."),
            vocab_size=facts["vocab_size"],
            versions={name: metadata.version(name) for name in ("vllm", "torch")},
        )
        return lm

    def _rpc(self, method: str, *arguments: Any) -> Any:
        assert self._server is not None
        return self._server.rpc(method, *arguments)

    def _forget_prefixes(self) -> None:
        assert self._server is not None
        if not self._server.post("/reset_prefix_cache").json().get("success"):
            raise CheckpointError("the server could not reset its prefix cache")

    def _load(self, adapter: Checkpoint, folder: str) -> Any:
        assert self._server is not None
        check_targets(adapter)
        name = f"{Path(folder).name}-{secrets.token_hex(4)}"  # never used twice
        try:
            self._server.post(
                "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}
            )
        except ScoringError as error:
            raise CheckpointError(
                f"{adapter.path}: vLLM does not take this adapter ({error}). Score the "
                "run with --model hf, or merge the adapter into its base."
            ) from error
        log.info("loaded adapter %s", adapter.path)
        return name

    def _use(self, request: Any) -> None:
        """Ask for an adapter by name, or for the base; the others are unloaded."""
        assert self._server is not None
        for folder, name in list(self._requests.items()):
            if name != request:
                self._server.post("/v1/unload_lora_adapter", {"lora_name": name})
                del self._requests[folder]
        self._lm.model = NAME if request is None else request

    def _shut_down(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


class VllmServer:
    """A running ``vllm serve``."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        arguments: Mapping[str, Any],
        *,
        limit: float = START_LIMIT,
    ) -> None:
        """Start it and wait until it answers.

        Args:
            checkpoint: the model that it loads.
            arguments: of the harness's vLLM model.
            limit: seconds until it counts as stuck.

        Raises:
            CheckpointError: when it ends or is stuck; with the end of its log.
            MissingExtraError: without vLLM.
        """
        if importlib.util.find_spec("vllm") is None:
            raise MissingExtraError("vllm", "vllm")
        flags = [text for item in server_arguments(arguments) for text in item]
        port = _free_port()
        key = secrets.token_urlsafe(32)
        self.address = f"http://{HOST}:{port}"
        self.header = {"Authorization": f"Bearer {key}"}
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy stands before the loopback address
        self._session.headers.update(self.header)
        self._folder = tempfile.TemporaryDirectory(prefix="ldeval-serve-")
        self._process = ServerProcess(
            [
                *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"),
                *(checkpoint.folder, "--host", HOST, "--port", str(port)),
                *("--served-model-name", NAME, "--disable-uvicorn-access-log", *flags),
            ],
            {**os.environ, **server_environment(arguments, key)},
            Path(self._folder.name) / "log",
        )
        self.ready = False
        """Whether it has answered, and was not stopped."""
        try:
            self._wait(checkpoint, limit)
            self.ready = True
        except BaseException:  # an interrupt too must leave no server behind
            self.stop()
            raise

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.status is None

    def rpc(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of the worker extension; what each worker returns.

        The endpoint takes texts alone, so that truth values go as "true", "false".
        """
        texts = [json.dumps(a) if isinstance(a, bool) else str(a) for a in arguments]
        answer = self.post("/collective_rpc", {"method": method, "args": texts})
        results: list[Any] = answer.json()["results"]
        return results

    def post(self, path: str, body: Any = None) -> requests.Response:
        """Post to the server.

        Raises:
            ScoringError: with the server's own words.
        """
        try:
            answer = self._session.post(
                self.address + path, json=body, timeout=CONTROL_LIMIT
            )
        except requests.RequestException as error:
            last = self._process.last_lines(LOG_LINES)
            raise ScoringError(
                f"vllm serve, {path}: {error}. Its last words:\n{last}"
            ) from error
        if not answer.ok:
            raise ScoringError(
                f"vllm serve, {path}: {answer.status_code} {answer.text[:500]}"
            )
        return answer

    def stop(self) -> None:
        """End the server; safe to call again."""
        if self.ready and not self._healthy():
            last = self._process.last_lines(LOG_LINES)
            log.error("vllm serve broke down. Its last words:\n%s", last)
        self.ready = False
        self._process.stop()
        self._session.close()
        self._folder.cleanup()

    def _wait(self, checkpoint: Checkpoint, limit: float) -> None:
        log.info("%s: starting vllm serve at %s", checkpoint.path, self.address)
        started = said = time.monotonic()
        while not self._healthy():
            now = time.monotonic()
            if not self.alive or now - started > limit:
                raise CheckpointError(
                    f"{checkpoint.path}: vllm serve {self._fate(limit)}. Its last "
                    f"words:\n{self._process.last_lines(LOG_LINES)}"
                )
            if now - said > 15:
                said = now
                log.info("vllm serve is starting: %.0f s", now - started)
            time.sleep(0.25)
        log.info("server started in %.1f s", time.monotonic() - started)

    def _fate(self, limit: float) -> str:
        if self.alive:
            return f"was not ready after {limit:.0f} seconds"
        return f"ended with status {self._process.status} before it was ready"

    def _healthy(self) -> bool:
        if not self.alive:
            return False
        try:
            return self._session.get(f"{self.address}/health", timeout=5).ok
        except requests.RequestException:
            return False


def server_arguments(arguments: Mapping[str, Any]) -> list[list[str]]:
    """``--model_args`` of the harness's vLLM model as flags of ``vllm serve``.

    Raises:
        UnsupportedBackendError: for several engines, which a swap would not all reach.
    """
    if int(arguments.get("data_parallel_size") or 1) > 1:
        raise UnsupportedBackendError(
            f"data_parallel_size={arguments['data_parallel_size']} cannot be served: "
            "swapped weights would reach one engine. Use tensor_parallel_size."
        )
    flags = []
    for name, value in arguments.items():
        if name in _UNSERVED or value is None:
            continue
        if name in _SECRET and not isinstance(value, bool):
            continue
        flag = _RENAMED.get(name, name).replace("_", "-")
        if isinstance(value, bool):
            flags.append([f"--{flag}" if value else f"--no-{flag}"])
        elif isinstance(value, Mapping):
            flags.append([f"--{flag}", json.dumps(value)])
        elif isinstance(value, list | tuple):
            flags.append([f"--{flag}", *map(str, value)])
        else:
            flags.append([f"--{flag}={value}"])
    return flags


def server_environment(arguments: Mapping[str, Any], key: str) -> dict[str, str]:
    """Variables of ``vllm serve``, among them what its command line may not hold.

    Args:
        arguments: of the harness's vLLM model; an ``api_key`` among them gives way.
        key: what the server asks for.
    """
    token = arguments.get("hf_token")
    return {
        "VLLM_API_KEY": key,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        **(
            {} if token is None or isinstance(token, bool) else {"HF_TOKEN": str(token)}
        ),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
