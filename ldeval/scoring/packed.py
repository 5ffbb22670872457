"""A prompt and all its responses in one sequence: nothing is computed twice.

A pack holds prompts, each followed by its responses::

    prompt | response 1 | response 2 | … | next prompt | response 1 | …

Every response attends to its prompt and to itself, and positions restart where the
prompt ends, so that each token gets what it gets in a sequence of its own. The last
token of a response predicts nothing and is left out.

Attention is computed by segments, by a function of ours in the place of the model's
(transformers' attention interface): a mask over the whole pack would cost the square of
its length, of which one part in three or four is used. A model must go by that
interface. :func:`fits` says which may; each is then compared with plain sequences
(:mod:`hf`), since some ignore what they are given without a word.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from ldeval.scoring.batch import ScoreRequest, grouped

ATTENTION = {"eager": "ldeval_packed_eager", "sdpa": "ldeval_packed_sdpa"}
"""Our attention's names among transformers' own, by whose place it takes. They differ
in one thing: transformers' ``sdpa`` leaves a soft cap of the scores out, and so must
what stands in for it."""


ALIKE = {"cpu": 0.75, "cuda": 0.5}
"""Responses of one prompt whose lengths are in this ratio or closer share a branch, by
device: more branches are more calls, fewer are more filling up."""


@dataclass(frozen=True)
class Branch:
    """Responses of one prompt, of like length, that are computed together."""

    places: torch.Tensor
    """[R, L] int64, the places of their tokens, filled up with the prompt's first."""
    filled: torch.Tensor
    """[R, L] bool, which of them are tokens."""
    allowed: torch.Tensor
    """[L, P + L] bool: what each token may attend to, the prompt's P tokens first."""

    def to(self, device: torch.device) -> Branch:
        """The same on a device."""
        return Branch(
            self.places.to(device), self.filled.to(device), self.allowed.to(device)
        )


@dataclass(frozen=True)
class Segments:
    """One prompt of a pack and its responses."""

    start: int
    """Place of the prompt's first token."""
    stop: int
    """One past its last."""
    branches: tuple[Branch, ...]
    """Its responses that have tokens of their own in the pack."""

    def to(self, device: torch.device) -> Segments:
        """The same on a device."""
        moved = tuple(branch.to(device) for branch in self.branches)
        return Segments(self.start, self.stop, moved)


@dataclass(frozen=True)
class Pack:
    """Requests that go through the model together."""

    requests: tuple[int, ...]
    """Their indices."""
    ids: torch.Tensor
    """[1, T] int64."""
    positions: torch.Tensor
    """[1, T] int64, restarting with every prompt and with every response."""
    segments: tuple[Segments, ...]
    """One a prompt."""
    rows: tuple[torch.Tensor, ...]
    """For each request, [n] int64: the places that predict its tokens."""


def fits(model: torch.nn.Module, longest: int) -> str | None:
    """Why a model cannot take packs, as far as its configuration tells; None if it may.

    Flash attention takes no segments of ours; linear attention and state-space layers
    have none; a sliding or chunked window does no harm to sequences that fit into it.

    Args:
        longest: length of the longest sequence, prompt and response.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        return "it has no configuration"
    if sharded(model):
        return "it is sharded over processes"
    text = config.get_text_config()
    attention = getattr(text, "_attn_implementation", None)
    if attention not in ATTENTION:
        return f"attention implementation {attention!r} is not ours to replace"
    windows = {
        "sliding_attention": getattr(text, "sliding_window", None),
        "chunked_attention": getattr(text, "attention_chunk_size", None),
    }
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        kinds = [name for name, size in windows.items() if size] or ["full_attention"]
    for kind in sorted(set(kinds) - {"full_attention"}):
        size = windows.get(kind)
        if size is None:
            return f"layers of type {kind}"
        if size < longest:
            return f"{kind} over {size} tokens, the longest sequence has {longest}"
    missing = {"position_ids", "attention_mask"} - parameters(model)
    if missing:
        return f"its forward pass takes no {', '.join(sorted(missing))}"
    return None


def sharded(model: torch.nn.Module) -> bool:
    """Whether a model's weights are sharded over processes (FSDP, either version)."""
    names = {type(module).__name__ for module in model.modules()}
    return any(name.startswith(("FullyShardedDataParallel", "FSDP")) for name in names)


def parameters(model: torch.nn.Module) -> set[str]:
    """Names that a model's forward pass takes; an adapter's are its base model's."""
    unwrap: Any = getattr(model, "get_base_model", None)
    inner = model if unwrap is None else unwrap()
    return set(inspect.signature(inner.forward).parameters)


# ------------------------------------------------------------------------------- packs


def packs(
    requests: Sequence[ScoreRequest], *, tokens: int, alike: float = 0.75
) -> Iterator[Pack]:
    """Pack requests, those with one context together, largest groups first.

    Args:
        tokens: most tokens in a pack; a prompt with a single response may exceed it.
        alike: see :data:`ALIKE`.
    """
    for groups in packed_together(requests, tokens=tokens):
        yield _pack(groups, requests, alike)


def packed_together(
    requests: Sequence[ScoreRequest], *, tokens: int
) -> Iterator[list[list[int]]]:
    """Which requests share a pack: their indices, by context; as :func:`packs` does
    it, and nothing made of them."""
    pack: list[list[int]] = []
    used = 0
    for group in grouped(requests):
        opened = False
        # longest first, so that like lengths lie side by side
        for index in sorted(group, key=lambda i: -requests[i].n_tokens):
            request = requests[index]
            context = 0 if opened else request.start
            if used and used + context + request.n_tokens - 1 > tokens:
                yield pack
                pack, used, opened = [], 0, False
            if not opened:
                pack.append([])
                used += request.start
                opened = True
            pack[-1].append(index)
            used += request.n_tokens - 1
    if pack:
        yield pack


def _pack(
    groups: Sequence[Sequence[int]], requests: Sequence[ScoreRequest], alike: float
) -> Pack:
    ids: list[int] = []
    positions: list[int] = []
    segments = []
    rows: dict[int, torch.Tensor] = {}
    for members in groups:
        context = requests[members[0]].ids[: requests[members[0]].start]
        start = len(ids)
        ids += context
        positions += range(len(context))
        stop = len(ids)
        spans = []
        for index in members:
            request = requests[index]
            own = request.ids[request.start : request.stop - 1]
            places = range(len(ids), len(ids) + len(own))
            rows[index] = torch.tensor([stop - 1, *places])
            spans.append(places)
            ids += own
            positions += range(len(context), len(context) + len(own))
        branches = tuple(_branches(spans, start, stop - start, alike))
        segments.append(Segments(start, stop, branches))
    return Pack(
        requests=tuple(rows),
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        segments=tuple(segments),
        rows=tuple(rows.values()),
    )


def _branches(
    spans: Sequence[range], filler: int, context: int, alike: float
) -> Iterator[Branch]:
    for together in like_lengths(spans, alike):
        yield _branch(together, filler, context)


def like_lengths(spans: Sequence[range], alike: float) -> Iterator[list[range]]:
    """Spans of places, longest first, that share a branch; empty ones left out."""
    together: list[range] = []
    for span in spans:
        if together and len(span) < alike * len(together[0]):
            yield together
            together = []
        if len(span):
            together.append(span)
    if together:
        yield together


def _branch(spans: Sequence[range], filler: int, context: int) -> Branch:
    width = len(spans[0])
    places = torch.full((len(spans), width), filler)
    filled = torch.zeros((len(spans), width), dtype=torch.bool)
    for row, span in enumerate(spans):
        places[row, : len(span)] = torch.tensor(span)
        filled[row, : len(span)] = True
    prompt = torch.ones((width, context), dtype=torch.bool)
    own = torch.ones((width, width), dtype=torch.bool).tril()
    return Branch(places, filled, torch.cat([prompt, own], dim=1))


# --------------------------------------------------------------------------- attention


def arguments(pack: Pack, device: torch.device) -> dict[str, Any]:
    """What a model is called with, inside :func:`segment_attention`."""
    return {
        "input_ids": pack.ids.to(device),
        "position_ids": pack.positions.to(device),
        # a mask of four dimensions is handed on as it is: the model makes none
        "attention_mask": torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=device),
        "use_cache": False,
        "ldeval_segments": tuple(part.to(device) for part in pack.segments),
    }


@contextlib.contextmanager
def segment_attention(model: torch.nn.Module) -> Iterator[None]:
    """Let a model compute attention by the segments of a pack."""
    found = [getattr(module, "config", None) for module in model.modules()]
    known = (c for c in found if hasattr(c, "_attn_implementation"))
    configs: dict[int, Any] = {id(config): config for config in known}
    # an adapter's configuration knows no attention and has none to restore
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            own = config._attn_implementation
            config._attn_implementation = ATTENTION.get(own, own)
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    ldeval_segments: Sequence[Segments] | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within a pack, as transformers' attention interface asks for it.

    Args:
        query: [1, H, T, D]; key and value may have fewer heads.
        scaling: of the scores; None for 1/√D.
        softcap: scores go through softcap · tanh(score / softcap).

    Returns:
        [1, T, H, D], and no weights.

    Raises:
        ValueError: when the segments did not come through, or the model asks for
            something that is not computed here.
    """
    if ldeval_segments is None:
        raise ValueError("the model does not hand the segments of a pack on")
    for name in ("s_aux", "position_bias", "sinks", "indices"):
        if others.get(name) is not None:
            raise ValueError(f"attention with {name} is not computed in packs")
    out = query.new_empty((*query.shape[:3], value.shape[-1]))
    for part in ldeval_segments:
        prompt = slice(part.start, part.stop)
        out[:, :, prompt] = _attention(
            query[:, :, prompt],
            key[:, :, prompt],
            value[:, :, prompt],
            None,
            scaling,
            softcap,
        )
        for branch in part.branches:
            own = _attention(
                _gathered(query, branch.places),
                _continued(key, prompt, branch.places),
                _continued(value, prompt, branch.places),
                branch.allowed,
                scaling,
                softcap,
            )
            places = branch.places[branch.filled]
            out[0, :, places] = own.transpose(0, 1)[:, branch.filled]
    return out.transpose(1, 2).contiguous(), None


def attend_uncapped(
    *states: Any, softcap: float | None = None, **options: Any
) -> tuple[torch.Tensor, None]:
    """The same without a soft cap."""
    return attend(*states, **options)


AttentionInterface.register(ATTENTION["eager"], attend)
AttentionInterface.register(ATTENTION["sdpa"], attend_uncapped)


def missing_cap(model: torch.nn.Module) -> str | None:
    """What to know about a model whose attention leaves out a cap that it should have;
    None where there is no such thing."""
    text = model.config.get_text_config()  # type: ignore[union-attr, operator]
    cap = getattr(text, "attn_logit_softcapping", None)
    if not cap or text._attn_implementation != "sdpa":
        return None
    return (
        f"the model caps its attention scores at {cap}, and transformers' sdpa "
        "attention leaves the cap out. For the model as it was trained, load it with "
        "attn_implementation=eager."
    )


def _gathered(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[1, H, T, D] at [R, L] places: [R, H, L, D]."""
    return states[0][:, places].transpose(0, 1)


def _continued(
    states: torch.Tensor, prompt: slice, places: torch.Tensor
) -> torch.Tensor:
    """The prompt's states before each response's: [R, H, P + L, D]."""
    shared = states[:, :, prompt].expand(len(places), -1, -1, -1)
    return torch.cat([shared, _gathered(states, places)], dim=2)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    allowed: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """[B, H, L, D]; causal where ``allowed`` [L, S] is None."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and (query.device.type != "cpu" or softcap is not None):
        # with fewer heads and a mask, accelerators fall back to a slow kernel
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
        groups = 1
    if softcap is None:
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=allowed,
            is_causal=allowed is None,
            scale=scaling,
            enable_gqa=groups > 1,
        )
    if allowed is None:
        length = query.shape[2]
        allowed = torch.ones((length, length), dtype=torch.bool, device=query.device)
        allowed = allowed.tril()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * scale
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value
