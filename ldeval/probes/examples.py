"""Rows to training examples: a prompt, its chosen response and perhaps a rejected one.

The formats are TRL's (preference and prompt-completion, standard and conversational,
with and without an explicit prompt; unpaired preference; ``messages``) and the
harness's own sample files. The format is told row by row, from the fields. A row that
gives no example is returned as a :class:`~ldeval.probes.sources.BadRow` with its
reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ldeval.errors import ProbeError
from ldeval.printable import quoted
from ldeval.probes.prompts import shared_messages, shared_text_prompt
from ldeval.probes.sources import BadRow, Row
from ldeval.probes.surface import without_ending
from ldeval.records import Message

PROMPT_LIMIT_FACTOR = 10
"""A prompt may be so many times longer than a response."""
REPEATED_PROMPT = 20
"""Characters from which a prompt that both responses begin with counts as repeated in
them; a shorter one ("Hi") may be an answer's own beginning."""

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
_KNOWN_ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclass(frozen=True)
class FieldMap:
    """Which fields hold what, where a row is in no known format; dots go deeper."""

    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None


@dataclass(frozen=True)
class Example:
    """One training example, cleaned of its format."""

    place: str
    """File and line that it came from."""
    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str | None
    missing: Mapping[str, str]
    """Why it has no rejected response, where the row held one that is unusable."""
    prompt_shared: bool = False
    """Whether the prompt was taken from the shared beginning of the responses."""


class _UnusableError(Exception):
    """The reason why a row gives no example; never leaves this module."""


def read_examples(
    rows: Iterable[Row | BadRow],
    *,
    fields: FieldMap | None = None,
    max_chars: int = 20_000,
) -> Iterator[Example | BadRow]:
    """An example, or the reason why there is none, for each row.

    Args:
        fields: names of the fields, for formats that are not known.
        max_chars: longest response in characters; a prompt may be ten times longer.

    Raises:
        ProbeError: when the first 1,000 rows give nothing: a wrong format.
    """
    reader = _Reader(fields or FieldMap(), max_chars)
    found, seen, first = 0, 0, None
    for row in rows:
        example = row if isinstance(row, BadRow) else reader.read(row)
        seen += 1
        if isinstance(example, Example):
            found += 1
        elif first is None:
            first = (example, row)
        if not found and seen == 1000:
            break
        yield example
    if not found and first is not None:
        bad, row = first
        names = ", ".join(map(str, row.values)) if isinstance(row, Row) else ""
        raise ProbeError(
            f"none of {seen} rows gives an example; the first: {bad.reason}.",
            path=bad.place,
            remedy=f"Its fields: {names}. Name them with --prompt-field, "
            "--chosen-field and --rejected-field."
            if names
            else "Is this a data file?",
        )


@dataclass(frozen=True)
class _Reader:
    fields: FieldMap
    max_chars: int

    def read(self, row: Row) -> Example | BadRow:
        try:
            return self._checked(_parsed(row, self.fields))
        except _UnusableError as reason:
            return BadRow(row.place, str(reason))

    def _checked(self, example: Example) -> Example:
        prompt = example.prompt
        texts = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt]
        if not any(text.strip() for text in texts):
            raise _UnusableError("the prompt is empty")
        _check_texts(texts, "the prompt", PROMPT_LIMIT_FACTOR * self.max_chars)
        if not without_ending(example.chosen).strip():
            raise _UnusableError("the chosen response is empty")
        _check_texts([example.chosen], "the chosen response", self.max_chars)
        if example.rejected is None:
            return example
        if example.rejected.strip() == example.chosen.strip():
            raise _UnusableError("chosen and rejected are the same")
        try:
            if not without_ending(example.rejected).strip():
                raise _UnusableError("empty")
            _check_texts([example.rejected], "it", self.max_chars)
        except _UnusableError as reason:
            missing = {"rejected": str(reason)}
            return replace(example, rejected=None, missing=missing)
        return example


def _check_texts(texts: Sequence[str], what: str, limit: int) -> None:
    if sum(map(len, texts)) > limit:
        raise _UnusableError(f"{what} has more than {limit} characters")
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise _UnusableError(f"{what} holds a lone surrogate") from None


# ---------------------------------------------------------------------- formats


def _parsed(row: Row, fields: FieldMap) -> Example:
    values = row.values
    if fields != FieldMap():
        prompt = _named(values, fields.prompt, "prompt")
        chosen = _named(values, fields.chosen, "chosen")
        rejected = _named(values, fields.rejected, "rejected")
        if chosen is None and fields.chosen is None:
            chosen = values.get("completion")
        return _preference(row.place, prompt, chosen, rejected)
    if "chosen" in values:
        return _preference(
            row.place, values.get("prompt"), values["chosen"], values.get("rejected")
        )
    if "completion" in values:
        if values.get("label") in (False, 0):
            raise _UnusableError("an unpaired response that is not preferred")
        return _preference(row.place, values.get("prompt"), values["completion"], None)
    for name in ("messages", "conversations", "conversation"):
        if name in values:
            return _conversation(row.place, values[name])
    if "doc" in values and "arguments" in values:
        return _harness_sample(row.place, values)
    raise _UnusableError("its fields are of no known format")


def _named(values: Mapping[str, Any], name: str | None, usual: str) -> Any:
    if name is None:
        return values.get(usual)
    value: Any = values
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise _UnusableError(f"it has no field {name!r}")
        value = value[part]
    return value


def _preference(place: str, prompt: Any, chosen: Any, rejected: Any) -> Example:
    if _is_messages(chosen) or _is_messages(rejected):
        return _of_messages(place, prompt, chosen, rejected)
    if not isinstance(chosen, str):
        raise _UnusableError("the chosen response is missing or not text")
    if rejected is not None and not isinstance(rejected, str):
        raise _UnusableError("chosen and rejected are of different types")
    if _is_messages(prompt):
        messages = tuple(_messages(prompt))
        return Example(place, _ending_before_answer(messages), chosen, rejected, {})
    if prompt is None:
        if rejected is None:
            raise _UnusableError("it has no prompt")
        shared = shared_text_prompt(chosen, rejected)
        if not shared.strip():
            raise _UnusableError("no prompt, and the responses share no beginning")
        cut = len(shared)
        return Example(place, shared, chosen[cut:], rejected[cut:], {}, True)
    if not isinstance(prompt, str):
        raise _UnusableError("the prompt is not text")
    if len(prompt) >= REPEATED_PROMPT and all(
        text is None or text.startswith(prompt) for text in (chosen, rejected)
    ):
        chosen = chosen[len(prompt) :]
        rejected = None if rejected is None else rejected[len(prompt) :]
    return Example(place, prompt, chosen, rejected, {})


def _of_messages(place: str, prompt: Any, chosen: Any, rejected: Any) -> Example:
    if rejected is not None and not _is_messages(rejected):
        raise _UnusableError("chosen and rejected are of different types")
    if not _is_messages(chosen):
        raise _UnusableError("the chosen response is missing or not text")
    won = _messages(chosen)
    lost = None if rejected is None else _messages(rejected)
    if len(won) == 1:
        before = _prompt_messages(prompt)
        shared = False
    else:
        before = won[:-1] if lost is None else shared_messages(won, lost)
        shared = True
    size = len(before) if shared else 0
    text = _answer(won[size:])
    other = None if lost is None else _answer(lost[size:])
    if shared and _is_messages(prompt):
        before = _joined(_messages(prompt), before)
    return Example(place, _ending_before_answer(tuple(before)), text, other, {}, shared)


def _joined(prompt: list[Message], shared: list[Message]) -> list[Message]:
    """The prompt and what the responses add to it, without what they repeat of it."""
    for size in range(min(len(prompt), len(shared)), -1, -1):
        if prompt[len(prompt) - size :] == shared[:size]:
            return [*prompt, *shared[size:]]
    return [*prompt, *shared]


def _conversation(place: str, value: Any) -> Example:
    if not _is_messages(value):
        raise _UnusableError("it holds no messages")
    messages = _messages(value)
    answer = _answer(messages[-1:])
    return Example(place, _ending_before_answer(tuple(messages[:-1])), answer, None, {})


def _prompt_messages(prompt: Any) -> list[Message]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not _is_messages(prompt):
        raise _UnusableError("it has no prompt")
    return _messages(prompt)


def _ending_before_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if not messages:
        raise _UnusableError("no message comes before the response")
    if messages[-1]["role"] == "assistant":
        raise _UnusableError("the prompt ends with an assistant message")
    return messages


def _answer(messages: Sequence[Message]) -> str:
    if len(messages) != 1:
        raise _UnusableError(f"the response is {len(messages)} messages, not one")
    if messages[0]["role"] != "assistant":
        raise _UnusableError(f"the response has the role {quoted(messages[0]['role'])}")
    return messages[0]["content"]


def _is_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) or (
        isinstance(value, Mapping) and bool({"role", "from"} & set(value))
    )


def _messages(value: Any) -> list[Message]:
    items = [value] if isinstance(value, Mapping) else value
    if not items:
        raise _UnusableError("a list of messages is empty")
    return [_message(item) for item in items]


def _message(item: Any) -> Message:
    if not isinstance(item, Mapping):
        raise _UnusableError("a message is not an object")
    role = item.get("role", item.get("from"))
    role = _ROLES.get(str(role), role)
    if role not in _KNOWN_ROLES:
        raise _UnusableError(f"a message has the role {quoted(role)}")
    content = item.get("content", item.get("value"))
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise _UnusableError("a message has no text")
    return {"role": str(role), "content": content}


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise _UnusableError("a message holds something other than text")


# ------------------------------------------------------------- the harness's samples


def _harness_sample(place: str, values: Mapping[str, Any]) -> Example:
    """One line of ``samples_*.jsonl``: the first request's context is the prompt.

    The chosen response is the target. Of a multiple-choice sample the rejected one is
    the wrong choice that the model found likeliest; a generated answer is not taken as
    rejected, since nothing says that it was wrong.
    """
    requests = _requests(values["arguments"])
    if not requests or not isinstance(requests[0][0], str):
        raise _UnusableError("a harness sample without a text request")
    prompt, target = requests[0][0], values.get("target")
    choices = [request[1] for request in requests if isinstance(request[1], str)]
    if len(choices) == len(requests) > 1:
        right = _choice(target, choices)
        likely = _loglikelihoods(values.get("resps"), len(choices))
        wrong = [n for n in range(len(choices)) if n != right]
        return Example(
            place,
            prompt,
            choices[right],
            choices[max(wrong, key=likely.__getitem__)],
            {},
        )
    if len(choices) == 1:
        return Example(place, prompt, choices[0], None, {})
    if isinstance(target, list) and target:
        target = target[0]
    if not isinstance(target, str):
        raise _UnusableError("a harness sample whose target is not text")
    return Example(place, prompt, target, None, {})


def _requests(arguments: Any) -> list[Sequence[Any]]:
    """Each request's (context, continuation or settings)."""
    if isinstance(arguments, Mapping):
        arguments = [
            [value for _, value in sorted(request.items())]
            for _, request in sorted(
                arguments.items(), key=lambda item: _number(item[0])
            )
            if isinstance(request, Mapping)
        ]
    if not isinstance(arguments, list):
        raise _UnusableError("a harness sample without requests")
    return [(*request, None, None)[:2] for request in arguments if request]


def _number(name: str) -> int:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def _choice(target: Any, choices: Sequence[str]) -> int:
    if isinstance(target, str) and target.strip() in [c.strip() for c in choices]:
        return [c.strip() for c in choices].index(target.strip())
    if str(target).isdigit() and int(target) < len(choices):
        return int(target)
    raise _UnusableError("a harness sample whose target is none of its choices")


def _loglikelihoods(resps: Any, count: int) -> list[float]:
    """ln p of each choice; 0 for each where the file does not hold them."""
    try:
        found = [float(item[0][0]) for item in resps]
    except (TypeError, ValueError, IndexError, KeyError):
        return [0.0] * count
    return found if len(found) == count else [0.0] * count
