"""Tell a prompt from its responses: the shared beginning of chosen and rejected.

Implicit-prompt preference data keeps whole texts or conversations; the prompt is what
they share. Cut by character, as TRL's ``extract_prompt`` does, the prompt would also
take the words that two answers happen to begin with, or half a word: so a text is cut
after the last assistant marker that both share, and without one at a word boundary.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from rapidfuzz.distance import Prefix

from ldeval.records import Message

ASSISTANT_MARKER = re.compile(
    r"\n\n(?:Assistant|ASSISTANT|AI|Bot):"
    r"|<\|im_start\|>assistant\n"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n"
    r"|<start_of_turn>model\n"
    r"|<\|assistant\|>\n?"
    r"|\[/INST\]"
    r"|### (?:Response|Assistant):\n?"
)
"""Where the assistant's turn begins in common text formats; the answer follows."""


def shared_text_prompt(chosen: str, rejected: str) -> str:
    """The prompt of two texts that begin with it; empty where there is none to tell.

    For every result ``p``, both texts begin with ``p``, and no word is cut in two. One
    space before the responses stays with them, as TRL leaves it.
    """
    shared = chosen[: Prefix.similarity(chosen, rejected)]
    markers = list(ASSISTANT_MARKER.finditer(shared))
    if markers:
        return shared[: markers[-1].end()]
    end = len(shared)
    if end == min(len(chosen), len(rejected)):
        return ""  # one text is the beginning of the other: nothing says where it ends
    while end and any(_inside_word(text, end) for text in (chosen, rejected)):
        end -= 1
    return shared[:end].removesuffix(" ")


def _inside_word(text: str, place: int) -> bool:
    """Whether a cut before ``text[place]`` would part a word (or a character)."""
    return (
        0 < place < len(text) and _of_word(text[place - 1]) and _of_word(text[place])
    ) or (place < len(text) and unicodedata.combining(text[place]) != 0)


def _of_word(character: str) -> bool:
    return character.isalnum() or unicodedata.combining(character) != 0


def shared_messages(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> list[Message]:
    """The messages that two conversations share, their last messages aside."""
    shared: list[Message] = []
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared.append(one)
    return shared


def conversation_key(prompt: str | Sequence[Message]) -> str:
    """What two turns of one conversation have in common: its first user turn.

    Prompts that are earlier and later turns of one conversation must fall into the same
    split; otherwise a held-out prompt holds text that was trained on.
    """
    if isinstance(prompt, str):
        marker = ASSISTANT_MARKER.search(prompt)
        return prompt if marker is None else prompt[: marker.start()]
    for message in prompt:
        if message["role"] == "user":
            return message["content"]
    return prompt[0]["content"]
