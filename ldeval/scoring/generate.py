"""Sample the ``initial`` responses: what the model says before it is trained.

Sampled, not greedy: a greedy response is the argmax by construction, so that its
log-probability can mainly fall. Each probe has a seed of its own, derived from its id,
so that a response does not depend on which other probes are asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from ldeval.checkpoints import check_weights, describe_checkpoint, weights_hash
from ldeval.records import Probe, Response
from ldeval.scoring.encode import as_messages, tokenizer_codec

TEMPERATURE = 0.7


def sample_initial(
    probes: Iterable[Probe],
    model: str,
    *,
    seed: int = 0,
    max_new_tokens: int = 64,
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
        CheckpointError: when the weights are not whole safetensors.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_weights(describe_checkpoint(model, 0))
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, use_safetensors=True
    ).eval()
    codec = tokenizer_codec(tokenizer)
    origin = {"weights": weights_hash(model), "tokenizer": codec.tokenizer_hash}
    sampled = []
    for probe in tqdm(list(probes), desc="Sampling initial", disable=not progress):
        if codec.render is None and isinstance(probe.prompt, str):
            ids = codec.encode(probe.prompt)
        elif codec.render is not None:
            text = codec.render(as_messages(probe.prompt), True)
            ids = codec.encode_rendered(text)
        else:
            ids = []
        responses = {k: r for k, r in probe.responses.items() if k != "initial"}
        text = ""
        for attempt in range(tries if ids else 0):
            text = _sample(
                network, tokenizer, ids, _seed(probe, seed, attempt), max_new_tokens
            )
            if text:
                break
        meta: dict[str, Any] = dict(probe.meta)
        if text:
            responses["initial"] = Response("initial", text, "sampled")
            meta["initial_model"] = origin
        sampled.append(replace(probe, responses=responses, meta=meta))
    return sampled


def _seed(probe: Probe, seed: int, attempt: int) -> int:
    name = f"{seed}/{attempt}/{probe.probe_id}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:6], "big")


def _sample(network: Any, tokenizer: Any, ids: list[int], seed: int, limit: int) -> str:
    prompt = torch.tensor([ids])
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        output = network.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=1.0,
            top_k=0,
            max_new_tokens=limit,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )
    new = output[0, len(ids) :].tolist()
    text = str(tokenizer.decode(new, skip_special_tokens=True)).strip()
    finished = tokenizer.eos_token_id in new
    return text if finished else _whole_sentences(text)


def _whole_sentences(text: str) -> str:
    """Up to the last sentence end; all of it when there is none."""
    end = max(text.rfind(mark) for mark in (". ", "! ", "? ", ".\n"))
    if text.endswith((".", "!", "?")):
        return text
    return text[: end + 1] if end > 0 else text
