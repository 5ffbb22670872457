"""Sample the ``initial`` responses: what the model says before it is trained.

Sampled, not greedy: a greedy response is the argmax by construction, so that its
log-probability can mainly fall; one that is asked for is kept apart, in
``meta.initial_greedy``. Each probe has a seed of its own, derived from its id, so that
a response does not depend on which other probes are asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GenerationConfig

from ldeval.checkpoints import check_weights, describe_checkpoint, weights_hash
from ldeval.errors import CheckpointError, UnsupportedBackendError
from ldeval.records import Checkpoint, Probe, Response
from ldeval.scoring.batch import end_tokens
from ldeval.scoring.encode import as_messages, render, tokenizer_codec
from ldeval.scoring.models import loading, open_tokenizer, start_model, trusts_code

TEMPERATURE = 0.7
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Request:
    """One text to go on from."""

    context: str
    ids: tuple[int, ...]
    """Its tokens."""
    seed: int | None
    """Of the sample; None asks for the greedy continuation."""


class Generator(Protocol):
    """Continues texts: (text, whether it ended by itself) for each request."""

    def __call__(self, requests: Sequence[Request]) -> list[tuple[str, bool]]: ...


class InitialSampler:
    """Adds ``initial`` to probes, from one model that stays loaded."""

    def __init__(
        self,
        model: str,
        *,
        backend: str = "hf",
        model_args: Mapping[str, Any] | None = None,
        seed: int = 0,
        temperature: float = TEMPERATURE,
        max_new_tokens: int = MAX_NEW_TOKENS,
        tries: int = 5,
        greedy: bool = False,
    ) -> None:
        """Args:
        model: folder of a full-weight model with its tokenizer.
        backend: harness model type that generates.
        model_args: of the backend, as in lm_eval.
        seed: with the probe's id, decides the sample.
        tries: how often an empty sample is drawn again.
        greedy: keep the greedy response too, in ``meta.initial_greedy``.

        Raises:
            CheckpointError: when the weights are not whole safetensors, or the model
                cannot be loaded.
            UnsupportedBackendError: for a backend that takes messages, not text.
        """
        check_weights(describe_checkpoint(model, 0))
        trusted = trusts_code(model_args or {})
        self._codec = tokenizer_codec(open_tokenizer(model, trust_remote_code=trusted))
        self._origin = {
            "weights": weights_hash(model),
            "tokenizer": self._codec.tokenizer_hash,
        }
        self._seed = seed
        self._tries = tries
        self._greedy = greedy
        self._generate: Generator
        if backend == "hf" and not model_args:
            self._generate = _Transformers(model, temperature, max_new_tokens)
        else:
            self._generate = _Harness(
                model, backend, model_args or {}, temperature, max_new_tokens
            )

    def __call__(self, probes: Sequence[Probe]) -> list[Probe]:
        """The probes with ``initial``, where a sample was not empty."""
        asked = {p.probe_id: self._request(p) for p in probes}
        left = {name: r for name, r in asked.items() if r.ids}
        texts: dict[str, str] = {}
        for attempt in range(self._tries):
            requests = [
                replace(r, seed=_seed(name, self._seed, attempt))
                for name, r in left.items()
            ]
            texts.update(zip(left, self._texts(requests), strict=True))
            left = {name: r for name, r in left.items() if not texts[name]}
            if not left:
                break
        greedy: dict[str, str] = {}
        if self._greedy:
            whole = {name: r for name, r in asked.items() if r.ids}
            requests = [replace(r, seed=None) for r in whole.values()]
            greedy = dict(zip(whole, self._texts(requests), strict=True))
        return [self._with(p, texts, greedy) for p in probes]

    def _request(self, probe: Probe) -> Request:
        codec = self._codec
        if isinstance(probe.prompt, str) and codec.render is None:
            return Request(probe.prompt, tuple(codec.encode(probe.prompt)), None)
        messages = as_messages(probe.prompt)
        text = render(codec, messages, f"probe {probe.probe_id!r}", opening=True)
        return Request(text, tuple(codec.encode_rendered(text)), None)

    def _texts(self, requests: Sequence[Request]) -> list[str]:
        if not requests:
            return []
        return [
            text.strip() if finished else _whole_sentences(text.strip())
            for text, finished in self._generate(requests)
        ]

    def _with(
        self, probe: Probe, texts: Mapping[str, str], greedy: Mapping[str, str]
    ) -> Probe:
        responses = {k: r for k, r in probe.responses.items() if k != "initial"}
        meta: dict[str, Any] = dict(probe.meta)
        if text := texts.get(probe.probe_id):
            responses["initial"] = Response("initial", text, "sampled")
            meta["initial_model"] = self._origin
        if text := greedy.get(probe.probe_id):
            meta["initial_greedy"] = text
        return replace(probe, responses=responses, meta=meta)


def sample_initial(
    probes: Iterable[Probe],
    model: str,
    *,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    tries: int = 5,
    progress: bool = True,
) -> list[Probe]:
    """Sample one response a probe from a model before training, at T = 0.7.

    Prompts go through the model's chat template where it has one. A response that the
    token limit cuts off is kept up to its last full sentence. An empty one is sampled
    again, up to ``tries`` times; then the probe has no ``initial``.

    Args:
        probes: any; an ``initial`` they have already is replaced.
        model: folder of a full-weight model with its tokenizer.
        seed: with the probe's id, decides the sample.

    Returns:
        The probes; ``meta.initial_model`` names the model's weights and tokenizer.

    Raises:
        CheckpointError: when the weights are not whole safetensors, or the model cannot
            be loaded.
    """
    sampler = InitialSampler(
        model, seed=seed, max_new_tokens=max_new_tokens, tries=tries
    )
    sampled = []
    for probe in tqdm(list(probes), desc="Sampling initial", disable=not progress):
        sampled += sampler([probe])
    return sampled


def _seed(probe_id: str, seed: int, attempt: int) -> int:
    name = f"{seed}/{attempt}/{probe_id}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:6], "big")


class _Transformers:
    """One request at a time through transformers, each with a seed of its own."""

    def __init__(self, model: str, temperature: float, limit: int) -> None:
        self.tokenizer = open_tokenizer(model)
        with loading(model):
            self.model = AutoModelForCausalLM.from_pretrained(
                model,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
            ).eval()
        self._ends = end_tokens(self)
        _forget_preferences(self)
        self._sampling = {"do_sample": True, "temperature": temperature}
        self._limit = limit

    def __call__(self, requests: Sequence[Request]) -> list[tuple[str, bool]]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> tuple[str, bool]:
        prompt = torch.tensor([request.ids])
        how: dict[str, Any] = {"do_sample": False}
        if request.seed is not None:
            how = self._sampling
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            if request.seed is not None:
                torch.manual_seed(request.seed)
            output = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                **how,
                max_new_tokens=self._limit,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            )
        new = output[0, len(request.ids) :].tolist()
        text = str(self.tokenizer.decode(new, skip_special_tokens=True))
        return text, not self._ends.isdisjoint(new)


def _forget_preferences(lm: Any) -> None:
    """Let a model draw from its own probabilities: its generation settings may hold a
    penalty, suppressed tokens or another cut. Only the end tokens stay."""
    ends = sorted(end_tokens(lm))
    lm.model.generation_config = GenerationConfig(
        top_p=1.0, top_k=0, eos_token_id=ends or None
    )


class _Harness:
    """Any harness model type that generates from text."""

    def __init__(
        self,
        model: str,
        backend: str,
        model_args: Mapping[str, Any],
        temperature: float,
        limit: int,
    ) -> None:
        if backend.endswith("chat-completions"):
            raise UnsupportedBackendError(
                f"--initial-backend {backend} takes messages, and the prompts are "
                "rendered here. Use 'local-completions' with the same server."
            )
        for name in ("pretrained", "peft", "lora_local_path"):
            if name in model_args:
                raise CheckpointError(
                    f"--initial-args holds {name}={model_args[name]}, but "
                    f"--initial-model names the checkpoint, {model}. Leave it out."
                )
        # a server's name for the model need not be one that holds a tokenizer
        arguments = {"pretrained": model, "tokenizer": model, **model_args}
        self._lm = start_model(backend, arguments, Checkpoint(model, 0))
        if isinstance(self._lm, HFLM):
            _forget_preferences(self._lm)
        trusted = trusts_code(model_args)
        self._tokenizer = open_tokenizer(model, trust_remote_code=trusted)
        self._temperature = temperature
        self._limit = limit

    def __call__(self, requests: Sequence[Request]) -> list[tuple[str, bool]]:
        if isinstance(self._lm, HFLM):  # seeds are torch's there, not the request's
            texts = []
            for request in requests:
                with torch.random.fork_rng():
                    torch.manual_seed(request.seed or 0)
                    texts += self._run([request], seeded=False)
        else:
            texts = self._run(requests, seeded=True)
        return [(text, self._finished(text)) for text in texts]

    def _run(self, requests: Sequence[Request], *, seeded: bool) -> list[str]:
        from lm_eval.api.instance import Instance

        instances = []
        for number, request in enumerate(requests):
            how: dict[str, Any] = {"until": [], "max_gen_toks": self._limit}
            if request.seed is None:
                how.update(do_sample=False, temperature=0.0)
            else:
                how.update(do_sample=True, temperature=self._temperature)
                if seeded:
                    how["seed"] = request.seed % 2**31
            instances.append(
                Instance("generate_until", {}, (request.context, how), number)
            )
        return [str(text) for text in self._lm.generate_until(instances)]

    def _finished(self, text: str) -> bool:
        """The harness does not say why a text ends; one as long as allowed was cut."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return len(ids) < self._limit - 1


def _whole_sentences(text: str) -> str:
    """Up to the last sentence end; all of it when there is none."""
    end = max(text.rfind(mark) for mark in (". ", "! ", "? ", ".\n"))
    if text.endswith((".", "!", "?")):
        return text
    return text[: end + 1] if end > 0 else text
