"""Responses to tensors, and their log-probabilities as a function of the weights.

Responses of one prompt go through the model in one sequence, as scoring packs them
(:mod:`ldeval.scoring.packed`), but with the mask written out: derivatives of both kinds
then go through the model's own attention. A model that takes no packs gets one response
at a time. Apart from what is differentiated and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ldeval.dynamics.causal_lm import CausalLM
from ldeval.dynamics.precision import whole_precision
from ldeval.records import Excluded, Probe, Span
from ldeval.scoring import packed
from ldeval.scoring.batch import ScoreRequest
from ldeval.scoring.encode import encode_probe

TOKENS = 512
"""Tokens that go through a model at once; the mask takes their square."""


@dataclass(frozen=True)
class Pass:
    """One pass through the model."""

    requests: tuple[int, ...]
    """Indices of the responses in it."""
    inputs: Mapping[str, Any]
    """What the model is called with."""
    rows: Tensor
    """[n] places that predict a response token."""
    labels: Tensor
    """[n] the tokens that they predict."""
    owner: Tensor
    """[n] which of ``requests`` each belongs to."""
    tokens: int
    """Length of the pass."""


def encode(
    lm: CausalLM,
    probes: Sequence[Probe],
    *,
    kinds: Sequence[str] | None = None,
    span: Span = "trl",
    apply_chat_template: bool = False,
) -> tuple[list[ScoreRequest], list[Excluded]]:
    """Responses ready to be computed, probe by probe, and those that do not fit.

    Args:
        kinds: those wanted; None for all that a probe has.
    """
    requests: list[ScoreRequest] = []
    excluded: list[Excluded] = []
    for probe in probes:
        encoded = encode_probe(
            probe, lm.codec, span=span, apply_chat_template=apply_chat_template
        )
        excluded += encoded.excluded
        requests += [
            ScoreRequest(probe.probe_id, r.kind, r.ids, r.start, r.stop)
            for r in encoded.responses
            if kinds is None or r.kind in kinds
        ]
    return requests, excluded


def sequences(
    lm: CausalLM, requests: Sequence[ScoreRequest], *, tokens: int = TOKENS
) -> Iterator[Pass]:
    """Passes that hold every request once.

    Args:
        tokens: most tokens in a pass; a prompt with a single response may exceed it.
    """
    if not requests:
        return
    longest = max(len(request.ids) for request in requests)
    if len(requests) > 1 and packed.fits(lm.model, longest) is None:
        for pack in packed.packs(requests, tokens=tokens):
            yield _packed(lm, pack, requests)
        return
    for index, request in enumerate(requests):
        yield _single(lm, index, request)


def _single(lm: CausalLM, index: int, request: ScoreRequest) -> Pass:
    ids = torch.tensor([request.ids[: request.stop - 1]], device=lm.device)
    rows = torch.arange(request.start - 1, request.stop - 1, device=lm.device)
    inputs = {"input_ids": ids, "use_cache": False}
    labels = torch.tensor(request.ids[request.start : request.stop], device=lm.device)
    owner = torch.zeros_like(labels)
    return Pass((index,), inputs, rows, labels, owner, ids.shape[1])


def _packed(lm: CausalLM, pack: packed.Pack, requests: Sequence[ScoreRequest]) -> Pass:
    members = [requests[i] for i in pack.requests]
    device, length = lm.device, pack.ids.shape[1]
    allowed = torch.zeros((length, length), dtype=torch.bool)
    for part in pack.segments:
        prompt = slice(part.start, part.stop)
        size = part.stop - part.start
        allowed[prompt, prompt] = torch.ones((size, size), dtype=torch.bool).tril()
    contexts = {part.stop - 1: slice(part.start, part.stop) for part in pack.segments}
    for rows in pack.rows:
        own = slice(int(rows[1]), int(rows[-1]) + 1) if len(rows) > 1 else slice(0, 0)
        size = own.stop - own.start
        allowed[own, contexts[int(rows[0])]] = True
        allowed[own, own] = torch.ones((size, size), dtype=torch.bool).tril()
    mask = torch.zeros((1, 1, length, length), dtype=lm.dtype)
    mask.masked_fill_(~allowed, torch.finfo(lm.dtype).min)
    inputs = {
        "input_ids": pack.ids.to(device),
        "position_ids": pack.positions.to(device),
        "attention_mask": mask.to(device),
        "use_cache": False,
    }
    labels = [token for r in members for token in r.ids[r.start : r.stop]]
    owner = [place for place, r in enumerate(members) for _ in range(r.n_tokens)]
    return Pass(
        pack.requests,
        inputs,
        torch.cat(pack.rows).to(device),
        torch.tensor(labels, device=device),
        torch.tensor(owner, device=device),
        length,
    )


def logits(
    lm: CausalLM, sequence: Pass, parameters: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Logits of the places that predict a response token, [n, V].

    Args:
        parameters: tensors in the place of the model's own, by name.
    """
    inputs = dict(sequence.inputs)
    cut = "logits_to_keep" in packed.parameters(lm.model)
    if cut:
        # the model's own way to its logits, for the rows that count alone
        inputs["logits_to_keep"] = sequence.rows
    with whole_precision(lm.dtype):
        if parameters is None:
            out: Tensor = lm.model(**inputs).logits[0]
        else:
            out = functional_call(lm.model, dict(parameters), (), inputs).logits[0]
    return out if cut else out[sequence.rows]


def log_probs(
    lm: CausalLM, sequence: Pass, parameters: Mapping[str, Tensor] | None = None
) -> Tensor:
    """ln π of each response of a pass, summed over its tokens: [R], nats.

    Log-softmax in float32 at least, sums in float64.
    """
    rows = logits(lm, sequence, parameters)
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.float()
    chosen = rows.gather(-1, sequence.labels.unsqueeze(-1)).squeeze(-1)
    each = (chosen - rows.logsumexp(-1)).double()
    total = each.new_zeros(len(sequence.requests))
    return total.index_add(0, sequence.owner, each)


def scored(
    lm: CausalLM, requests: Sequence[ScoreRequest], *, tokens: int = TOKENS
) -> Tensor:
    """ln π of every response, [R] float64, without a derivative."""
    found = torch.zeros(len(requests), dtype=torch.float64)
    with torch.no_grad():
        for sequence in sequences(lm, requests, tokens=tokens):
            found[list(sequence.requests)] = log_probs(lm, sequence).cpu()
    return found
