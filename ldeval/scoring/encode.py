"""From a prompt and its responses to token ids and the scored span.

The prompt and every prompt + response are tokenized whole; a response is what follows
the longest token prefix that they all share with the prompt. TRL splits a pair this way
(``DPOTrainer``, release 1.16); taken over *all* responses of a prompt, every kind is
scored in the same context even where a tokenizer merges the prompt's last characters
with a response's first. Such probes are reported, since their span begins inside the
prompt.

Message prompts always go through the chat template, and the template's tail (end of
turn, newline) belongs to the response, as it does in TRL. Text prompts get the end
token appended once; they go through the template only when that is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from ldeval.errors import ProbeError, ScoringError, UnsupportedBackendError
from ldeval.records import KIND_NAMES, Excluded, Message, Probe, Span


@dataclass(frozen=True)
class TextCodec:
    """How one model's text becomes tokens: what a backend lends to the encoder."""

    encode: Callable[[str], list[int]]
    """Plain text to ids, with the special tokens that the model's settings ask for."""
    encode_rendered: Callable[[str], list[int]]
    """Template output to ids: special tokens are in the text already."""
    render: Callable[[Sequence[Message], bool], str] | None
    """(messages, add_generation_prompt) to text; None without a chat template."""
    end_token: str | None
    """Text of the end token, or None where the tokenizer has none."""
    max_length: int | None
    """Longest scorable sequence, prompt and response, in tokens."""
    tokenizer_hash: str
    template_hash: str | None
    """Hash of the chat template; None where the tokenizer has none."""


@dataclass(frozen=True)
class EncodedResponse:
    """One response ready to be scored."""

    kind: str
    ids: tuple[int, ...]
    """The whole sequence: shared context, then the response."""
    start: int
    """Index of the first scored token; equal for all responses of a probe."""
    stop: int
    """One past the last scored token."""


@dataclass(frozen=True)
class EncodedProbe:
    """All responses of one probe, in the order of the kind table."""

    probe_id: str
    responses: tuple[EncodedResponse, ...]
    merged: bool
    """Whether tokens merge across the end of the prompt in some response."""
    excluded: tuple[Excluded, ...]
    """Responses that cannot be scored (too long, say), with the reason."""

    def context_hash(self) -> str:
        """Hash of the token ids that every response is scored after."""
        first = self.responses[0]
        return _short_hash(_canonical(first.ids[: first.start]))


def encode_probe(
    probe: Probe,
    codec: TextCodec,
    *,
    span: Span = "trl",
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
) -> EncodedProbe:
    """Tokenize a probe.

    Args:
        span: ``trl`` scores the whole response with its end; ``no_end`` leaves out what
            the template or the end token adds after the answer.

    Raises:
        UnsupportedBackendError: when a template is needed and the tokenizer has none,
            or one that refuses the messages.
        ProbeError: when the prompt leaves nothing to predict the first token from.
    """
    if span not in ("trl", "no_end"):
        raise ScoringError(
            f"span {span!r} cannot be encoded here. Valid: 'trl', 'no_end'."
        )
    templated = apply_chat_template or not isinstance(probe.prompt, str)
    texts = {k: probe.responses[k].text for k in KIND_NAMES if k in probe.responses}
    if templated:
        prompt_ids, whole, bare = _encode_messages(
            probe, texts, codec, system_instruction
        )
    else:
        prompt_ids, whole, bare = _encode_text(probe, texts, codec, system_instruction)
    own = {k: common_prefix_length(prompt_ids, ids) for k, ids in whole.items()}
    start = min(own.values())
    if start == 0:
        raise ProbeError(
            f"probe {probe.probe_id!r}: prompt and responses share no first token, so "
            "nothing predicts the response. Give the prompt a beginning, or use a "
            "tokenizer with a begin-of-sequence token (add_bos_token=True)."
        )
    kept: list[EncodedResponse] = []
    excluded: list[Excluded] = []
    for kind, ids in whole.items():
        stop, answer = len(ids), bare[kind]
        if span == "no_end" and answer is not None:
            stop = max(common_prefix_length(answer, ids), start)
        fault = _fault(len(ids), start, stop, codec.max_length)
        if span == "no_end" and answer is None:
            fault = "changed by the chat template, so that its end cannot be told apart"
        if fault is None:
            kept.append(EncodedResponse(kind, tuple(ids), start, stop))
        else:
            excluded.append(Excluded(probe.probe_id, kind, fault))
    merged = any(length < len(prompt_ids) for length in own.values())
    return EncodedProbe(probe.probe_id, tuple(kept), merged, tuple(excluded))


def _fault(length: int, start: int, stop: int, limit: int | None) -> str | None:
    if limit is not None and length > limit:
        return f"truncated: {length} tokens with its prompt, the model takes {limit}"
    if stop <= start:
        return "no tokens of its own after the prompt"
    return None


_Encoded = tuple[list[int], dict[str, list[int]], Mapping[str, list[int] | None]]
"""Prompt ids; by kind, ids of prompt + response with and without its end: None where
it does not stand in what the template made of it."""


def _encode_text(
    probe: Probe,
    texts: Mapping[str, str],
    codec: TextCodec,
    system_instruction: str | None,
) -> _Encoded:
    assert isinstance(probe.prompt, str)
    prompt = _with_system(probe.prompt, system_instruction)
    bare = {k: codec.encode(prompt + text) for k, text in texts.items()}
    end = codec.end_token
    if end is None:
        return codec.encode(prompt), bare, bare
    whole = {
        k: bare[k] if text.endswith(end) else codec.encode(prompt + text + end)
        for k, text in texts.items()
    }
    return codec.encode(prompt), whole, bare


def _encode_messages(
    probe: Probe,
    texts: Mapping[str, str],
    codec: TextCodec,
    system_instruction: str | None,
) -> _Encoded:
    whose = f"probe {probe.probe_id!r}"
    messages = as_messages(probe.prompt, system_instruction)
    opening = render(codec, messages, whose, opening=True)
    whole: dict[str, list[int]] = {}
    bare: dict[str, list[int] | None] = {}
    for kind, text in texts.items():
        answer = {"role": "assistant", "content": text}
        rendered = render(codec, [*messages, answer], whose, opening=False)
        whole[kind] = codec.encode_rendered(rendered)
        place, end = rendered.rfind(text.strip()), len(text.strip())
        bare[kind] = (
            None if place < 0 else codec.encode_rendered(rendered[: place + end])
        )
    return codec.encode_rendered(opening), whole, bare


def encode_prompt(
    prompt: str | Sequence[Message],
    codec: TextCodec,
    *,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
) -> list[int]:
    """The tokens that a response follows: with a template, up to its opening.

    Raises:
        UnsupportedBackendError: when a template is needed and the tokenizer has none,
            or one that refuses the messages.
    """
    if isinstance(prompt, str) and not apply_chat_template:
        return codec.encode(_with_system(prompt, system_instruction))
    messages = as_messages(prompt, system_instruction)
    return codec.encode_rendered(render(codec, messages, "a prompt", opening=True))


def render(
    codec: TextCodec, messages: Sequence[Message], whose: str, *, opening: bool
) -> str:
    """Messages as the model's chat template writes them.

    Args:
        whose: the probe, for errors.
        opening: up to where the assistant's turn opens.

    Raises:
        UnsupportedBackendError: when the tokenizer has no template, or one that refuses
            the messages.
    """
    if codec.render is None:
        raise UnsupportedBackendError(
            f"{whose} needs a chat template (its prompt is messages, or a template was "
            "asked for), and the tokenizer has none. Score text prompts without "
            "--apply_chat_template, or set a template."
        )
    try:
        return codec.render(messages, opening)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UnsupportedBackendError(
            f"{whose}: the tokenizer's chat template refuses its messages ({error}); "
            f"their roles: {roles}. Leave such messages, or --system_instruction, out, "
            "or set a template that takes them."
        ) from error


def _with_system(prompt: str, system_instruction: str | None) -> str:
    if not system_instruction:
        return prompt
    return f"{system_instruction}\n\n{prompt}"


def as_messages(
    prompt: str | Sequence[Message], system_instruction: str | None = None
) -> list[Message]:
    """The prompt as chat messages, a system instruction first when there is one."""
    if isinstance(prompt, str):
        messages: list[Message] = [{"role": "user", "content": prompt}]
    else:
        messages = [dict(message) for message in prompt]
    if system_instruction:
        messages.insert(0, {"role": "system", "content": system_instruction})
    return messages


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length


# ------------------------------------------------------------- codecs from tokenizers


def codec_of(lm: Any) -> TextCodec:
    """The codec of a harness model that has a transformers tokenizer.

    ``add_bos_token`` and the like are honoured, since plain text goes through the
    model's own ``tok_encode``; so are ``chat_template_args`` and ``enable_thinking``.

    Raises:
        ScoringError: when the model has no tokenizer.
        UnsupportedBackendError: its ``max_length`` is no number.
    """
    tokenizer = getattr(lm, "tokenizer", None)
    if tokenizer is None or not callable(getattr(lm, "tok_encode", None)):
        raise ScoringError(f"{type(lm).__name__} has no tokenizer to encode with")
    options = dict(getattr(lm, "chat_template_args", None) or {})
    if getattr(lm, "enable_thinking", None) is not None:
        options.setdefault("enable_thinking", lm.enable_thinking)
    if getattr(lm, "hf_chat_template", None) is not None:
        options["chat_template"] = lm.hf_chat_template
    return tokenizer_codec(
        tokenizer,
        encode=lambda text: _ids(lm.tok_encode(text)),
        max_length=_limit(lm),
        template_options=options,
    )


def _limit(lm: Any) -> int | None:
    limit = getattr(lm, "max_length", None)
    try:
        return None if limit is None else int(limit)
    except ValueError as error:
        raise UnsupportedBackendError(
            f"max_length={limit!r} in --model_args is no number of tokens. Give one, "
            "or leave it out."
        ) from error


def tokenizer_codec(
    tokenizer: Any,
    *,
    encode: Callable[[str], list[int]] | None = None,
    max_length: int | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> TextCodec:
    """A codec straight from a transformers tokenizer."""
    remote = _remote_description(tokenizer)
    described = {} if remote is None else remote
    template = described.get("chat_template", getattr(tokenizer, "chat_template", None))
    options = dict(template_options or {})

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        if remote is not None:
            return _render_remote(messages, add_generation_prompt, remote, options)
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **options,
        )
        return str(text)

    def encode_rendered(text: str) -> list[int]:
        return _ids(tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_plain(text: str) -> list[int]:
        return _ids(tokenizer(text)["input_ids"])

    return TextCodec(
        encode=encode or encode_plain,
        encode_rendered=encode_rendered,
        render=render if template else None,
        end_token=getattr(tokenizer, "eos_token", None),
        max_length=max_length,
        tokenizer_hash=tokenizer_hash(tokenizer),
        template_hash=_short_hash(_canonical(template)) if template else None,
    )


def _remote_description(tokenizer: Any) -> Mapping[str, Any] | None:
    """What a server says of its tokenizer; None where the tokenizer is here."""
    description = getattr(tokenizer, "tokenizer_info", None)
    return description if isinstance(description, Mapping) else None


def _render_remote(
    messages: Sequence[Message],
    add_generation_prompt: bool,
    description: Mapping[str, Any],
    options: Mapping[str, Any],
) -> str:
    """Render a server's template as transformers would its own: the harness's way runs
    it outside a sandbox, and keeps whitespace that transformers takes away."""
    from transformers.utils.chat_template_utils import render_jinja_template

    settings = {"chat_template": description["chat_template"], **options}
    tokens = {name: v for name, v in description.items() if name.endswith("_token")}
    (text,), _ = render_jinja_template(
        [[dict(message) for message in messages]],
        add_generation_prompt=add_generation_prompt,
        **{**tokens, **settings},
    )
    return str(text)


def _ids(value: Any) -> list[int]:
    return [int(token) for token in value]


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of what decides the token ids: vocabulary, merges, normalisation, special
    tokens. The chat template is hashed apart. ``unknown`` for a server's tokenizer,
    which does not show its vocabulary."""
    if _remote_description(tokenizer) is not None:
        return "unknown"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        # set by the last call that padded or truncated, not part of the vocabulary
        rules.pop("padding", None)
        rules.pop("truncation", None)
        return _short_hash(_canonical(rules))
    vocabulary = sorted(tokenizer.get_vocab().items())
    special = sorted(map(str, getattr(tokenizer, "all_special_tokens", [])))
    return _short_hash(_canonical([vocabulary, special]))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
