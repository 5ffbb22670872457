"""Make the surface form of a probe's responses alike: their beginning and their end.

A kind that alone begins with a space, or alone ends with a newline or an end-of-turn
marker, differs from the others in its first or last scored token for no reason of
content. Leading whitespace is made that of the probe's chosen response; trailing
whitespace and written-out end markers go, since scoring adds the model's own end.
"""

from __future__ import annotations

END_MARKERS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|end|>",
    "</s>",
    "<eos>",
    "\n\nHuman:",
    "\n\nUser:",
)
"""Ends of turn as text, in the common formats."""
NEXT_TURNS = ("\n\nHuman:", "\n\nUser:", "<|im_start|>", "<|user|>", "<start_of_turn>")
"""Where a sample of a model goes on as somebody else."""


def leading_space(text: str) -> str:
    """The whitespace that a text begins with."""
    return text[: len(text) - len(text.lstrip())]


def without_ending(text: str) -> str:
    """The text without trailing whitespace and end-of-turn markers."""
    end = len(text)
    while True:
        before = end
        while end and text[end - 1].isspace():
            end -= 1
        # a marker may begin with the newlines that were just passed over
        for marker in END_MARKERS:
            if text.endswith(marker.rstrip(), 0, end):
                end -= len(marker.rstrip())
                break
        if end == before:
            return text[:end]


def until_next_turn(text: str) -> str:
    """A sample up to the place where the model goes on as the other speaker."""
    found = [place for turn in NEXT_TURNS if (place := text.find(turn)) >= 0]
    return text[: min(found)] if found else text


def matched_form(text: str, lead: str) -> str:
    """The text with a given leading whitespace and without an ending; empty where
    nothing else is left."""
    body = without_ending(text).lstrip()
    return lead + body if body else ""
