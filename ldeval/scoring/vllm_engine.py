"""One vLLM engine for a whole run: it takes most of a minute to start, a swap a second.

Full-weight checkpoints are swapped in place. vLLM's own reload is silently wrong for
tied embeddings (the output layer stays at the old matrix), so the engine starts with
them taken apart and answers wrongly until the first swap: every checkpoint is swapped
in, the first one too. LoRA adapters are loaded beside a base that stays as it is. After
either, the caller compares a few responses with an independent computation of that
checkpoint (:mod:`known_answers`).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ldeval.checkpoints import base_of, tensor_shapes
from ldeval.errors import CheckpointError
from ldeval.files import lenient_json
from ldeval.records import Checkpoint
from ldeval.scoring.models import (
    lend_tokenizer,
    open_config,
    start_model,
    trusts_code,
)

log = logging.getLogger(__name__)

WORKER_EXTENSION = "ldeval.scoring.vllm_worker.WorkerExtension"

CPU_BLOCK_SIZE = 32
"""Tokens in a block of the key-value cache on the CPU, where vLLM's own 128 would leave
most prompts without a full block to read; it takes multiples of 32 there."""

ADAPTERS_LOADED = 4
"""Adapters held by the engine at once."""


class VllmEngine:
    """One engine for all checkpoints of a run."""

    swapped = True

    def __init__(
        self,
        model_args: Mapping[str, Any],
        *,
        base: str | None,
        adapters: Sequence[Checkpoint] = (),
    ) -> None:
        """Nothing is started yet.

        Args:
            model_args: of the harness's vLLM model, without ``pretrained``.
            base: lends its tokenizer, and is what adapters are loaded upon that do not
                name their base.
            adapters: the adapters to come, so that the engine has room for them.
        """
        self._args = dict(model_args)
        self._base = base
        self._lm: Any = None
        self._tied = False
        self._upon: str | None = None  # the base, while adapters are loaded beside it
        self._rank = 0
        self._bases: set[str] = set()
        for adapter in adapters:
            # a broken one is named when its turn comes
            with contextlib.suppress(CheckpointError):
                self._rank = max(self._rank, lora_rank(adapter.folder))
                self._bases.add(_resolved(base_of(adapter, base)))
        self._requests: dict[str, Any] = {}

    def open(self, checkpoint: Checkpoint) -> Any:
        """Start the engine at the first checkpoint; swap weights or adapter at each."""
        if checkpoint.layout == "adapter":
            return self._with_adapter(checkpoint)
        if _resolved(checkpoint.folder) in self._bases:
            return self._base_alone(checkpoint)
        if self._lm is None or self._upon is not None or not self.swapped:
            self.close()
            self._lm = self._start_swappable(checkpoint)
        folder = _resolved(checkpoint.folder)
        started = time.monotonic()
        try:
            loaded = self._rpc("ldeval_swap", folder, self._tied)
            self._forget_prefixes()
        except Exception as error:  # what a worker raises arrives so
            self.close()  # its weights are half of one checkpoint, half of another
            raise CheckpointError(
                f"{checkpoint.path}: cannot be swapped into the engine ({error})"
            ) from error
        log.info(
            "swapped in %s: %s tensors in %.2f s",
            checkpoint.path,
            loaded[0],
            time.monotonic() - started,
        )
        self.swapped = True
        return self._lm

    def restart(self, checkpoint: Checkpoint) -> Any:
        """An engine started from this checkpoint's own files; no swap."""
        self.close()
        if checkpoint.layout == "adapter":
            lm = self._with_adapter(checkpoint)
        else:
            lm = self._lm = self._start(checkpoint, {})
        self.swapped = False
        return lm

    def close(self) -> None:
        """Shut the engine down."""
        self._shut_down()
        self._lm = None
        self._upon = None
        self._requests = {}
        gc.collect()

    # ------------------------------------------- what differs where a server computes

    def _rpc(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker extension; what each worker returns."""
        return self._lm.model.collective_rpc(method, args=arguments)

    def _forget_prefixes(self) -> None:
        """Empty the prefix cache, which holds keys and values of other weights."""
        self._lm.model.reset_prefix_cache()

    def _use(self, request: Any) -> None:
        """Score with a loaded adapter, or with the base alone (None)."""
        self._lm.lora_request = request

    def _shut_down(self) -> None:
        if self._lm is not None:
            core = self._lm.model.llm_engine.engine_core
            shutdown = getattr(core, "shutdown", None)
            if callable(shutdown):
                shutdown()

    # ------------------------------------------------------------------- full weights

    def _start_swappable(self, checkpoint: Checkpoint) -> Any:
        self._tied = ties_embeddings(
            checkpoint.folder, trust_remote_code=trusts_code(self._args)
        )
        extra: dict[str, Any] = {"worker_extension_cls": WORKER_EXTENSION}
        if self._tied:
            overrides = dict(self._args.get("hf_overrides") or {})
            extra["hf_overrides"] = {**overrides, "tie_word_embeddings": False}
        return self._start(checkpoint, extra)

    def _start(self, checkpoint: Checkpoint, extra: Mapping[str, Any]) -> Any:
        arguments = {**self._args, "pretrained": checkpoint.folder, **extra}
        if _on_cpu():
            arguments.setdefault("block_size", CPU_BLOCK_SIZE)
        lend_tokenizer(arguments, checkpoint, self._base)
        started = time.monotonic()
        lm = start_model("vllm", arguments, checkpoint)
        log.info("engine started in %.1f s", time.monotonic() - started)
        return lm

    # ----------------------------------------------------------------------- adapters

    def _base_alone(self, checkpoint: Checkpoint) -> Any:
        """The base of adapters to come, without any of them."""
        self._start_base(checkpoint.folder, self._rank)
        self._use(None)
        self.swapped = False  # started from its own files
        return self._lm

    def _with_adapter(self, adapter: Checkpoint) -> Any:
        self._start_base(base_of(adapter, self._base), lora_rank(adapter.folder))
        folder = _resolved(adapter.folder)
        if folder not in self._requests:
            self._requests[folder] = self._load(adapter, folder)
        self._use(self._requests[folder])
        self.swapped = True
        return self._lm

    def _load(self, adapter: Checkpoint, folder: str) -> Any:
        from vllm.lora.request import LoRARequest

        check_targets(adapter)
        number = len(self._requests) + 1
        request = LoRARequest(f"{Path(folder).name}-{number}", number, folder)
        try:
            self._lm.model.llm_engine.add_lora(request)
        except Exception as error:  # what a worker raises arrives so
            raise CheckpointError(
                f"{adapter.path}: vLLM does not take this adapter ({_first_line(error)}"
                "). Score the run with --model hf, or merge the adapter into its base."
            ) from error
        log.info("loaded adapter %s", adapter.path)
        return request

    def _start_base(self, base: str, rank: int) -> None:
        """An engine at the base with room for adapters, unless it runs already."""
        folder = _resolved(base)
        if self._lm is not None and self._upon == folder and rank <= self._rank:
            return
        self.close()
        self._rank = max(self._rank, rank)
        extra = {
            "enable_lora": True,
            "max_lora_rank": _allowed_rank(self._rank),
            "max_loras": self._args.get("max_loras", ADAPTERS_LOADED),
            "worker_extension_cls": WORKER_EXTENSION,
        }
        self._lm = self._start(Checkpoint(base, 0), extra)
        self._rpc("ldeval_plain_logits")
        self._upon = folder


def lora_rank(folder: str | Path) -> int:
    """The largest rank in an adapter's configuration.

    Raises:
        CheckpointError: when it cannot be read, or is not of a LoRA adapter.
    """
    path = Path(folder) / "adapter_config.json"
    try:
        config = lenient_json(path.read_text(encoding="utf-8"))
        ranks = [
            int(config["r"]),
            *map(int, (config.get("rank_pattern") or {}).values()),
        ]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        raise CheckpointError(
            f"{path}: no LoRA rank can be read from it ({type(error).__name__}: "
            f"{error}). vLLM takes LoRA adapters alone; others are scored with "
            "--model hf."
        ) from error
    return max(ranks)


def check_targets(adapter: Checkpoint) -> None:
    """vLLM gives no prompt scores beside an adapter of the output layer."""
    for name in tensor_shapes(adapter.folder):
        if "lm_head" in name or "embed_tokens" in name:
            raise CheckpointError(
                f"{adapter.path}: vLLM does not take this adapter: it changes the "
                f"embedding or the output layer ({name}). Score the run with --model "
                "hf, or merge the adapter into its base."
            )


def _allowed_rank(rank: int) -> int:
    """The smallest rank that vLLM can be started with and that holds ``rank``."""
    from vllm.config.lora import MaxLoRARanks

    allowed = sorted(get_args(MaxLoRARanks))
    for size in allowed:
        if rank <= size:
            return int(size)
    raise CheckpointError(
        f"an adapter of rank {rank}: vLLM takes ranks up to {allowed[-1]}. Score the "
        "run with --model hf."
    )


def ties_embeddings(folder: str | Path, *, trust_remote_code: bool = False) -> bool:
    """Whether a checkpoint's output layer is its input embedding."""
    config = open_config(folder, trust_remote_code=trust_remote_code)
    return bool(config.get_text_config().tie_word_embeddings)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _resolved(folder: str | Path) -> str:
    path = Path(folder)
    return str(path.resolve()) if path.exists() else str(folder)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
