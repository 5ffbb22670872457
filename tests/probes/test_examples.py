"""Rows to examples: TRL's formats, the harness's samples, and the shared prompt."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ldeval.errors import ProbeError
from ldeval.probes.examples import Example, FieldMap, read_examples
from ldeval.probes.prompts import (
    conversation_key,
    shared_messages,
    shared_text_prompt,
)
from ldeval.probes.sources import BadRow, Row


def one(values: dict[str, Any], fields: FieldMap | None = None) -> Example:
    (found,) = read_examples([Row("f:1", values)], fields=fields)
    assert isinstance(found, Example), found
    return found


def fault(values: dict[str, Any], fields: FieldMap | None = None) -> str:
    good = Row("f:1", {"prompt": "q", "chosen": "a", "p": "q", "c": "a"})
    _, bad = read_examples([good, Row("f:2", values)], fields=fields)
    assert isinstance(bad, BadRow), bad
    return bad.reason


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


Q = "What colour is the sky at noon?"
EARLIER = [user("Hi"), said("Hello!")]


@pytest.mark.parametrize(
    ("values", "prompt", "chosen", "rejected"),
    [
        ({"prompt": "Q", "chosen": "a", "rejected": "b"}, "Q", "a", "b"),
        ({"prompt": "Q", "chosen": "a"}, "Q", "a", None),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."},
         "The sky is", " blue.", " green."),
        ({"prompt": [user(Q)], "chosen": [said("a")], "rejected": [said("b")]},
         (user(Q),), "a", "b"),
        ({"prompt": Q, "chosen": [said("a")], "rejected": [said("b")]},
         (user(Q),), "a", "b"),
        ({"chosen": [user(Q), said("a")], "rejected": [user(Q), said("b")]},
         (user(Q),), "a", "b"),
        # UltraFeedback: the prompt is text, and the responses repeat it as a message
        ({"prompt": Q, "chosen": [user(Q), said("a")],
          "rejected": [user(Q), said("b")]},
         (user(Q),), "a", "b"),
        # the responses repeat the prompt's end, or go on from it
        ({"prompt": [user("s"), said("t"), user(Q)],
          "chosen": [user(Q), said("a")], "rejected": [user(Q), said("b")]},
         (user("s"), said("t"), user(Q)), "a", "b"),
        ({"prompt": EARLIER, "chosen": [user(Q), said("a")],
          "rejected": [user(Q), said("b")]}, (*EARLIER, user(Q)), "a", "b"),
        ({"chosen": [*EARLIER, user(Q), said("a")],
          "rejected": [*EARLIER, user(Q), said("b")]}, (*EARLIER, user(Q)), "a", "b"),
        ({"prompt": Q, "chosen": Q + " a", "rejected": Q + " b"}, Q, " a", " b"),
        ({"prompt": "Q", "completion": "a"}, "Q", "a", None),
        ({"prompt": [user(Q)], "completion": [said("a")]}, (user(Q),), "a", None),
        ({"prompt": "Q", "completion": "a", "label": True}, "Q", "a", None),
        ({"messages": [*EARLIER, user(Q), said("a")]}, (*EARLIER, user(Q)), "a", None),
        ({"conversations": [{"from": "human", "value": Q},
                            {"from": "gpt", "value": "a"}]},
         (user(Q),), "a", None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]},
                       said("a")]}, (user(Q),), "a", None),
    ],
)  # fmt: skip
def test_a_known_format_gives_its_example(
    values: dict[str, Any], prompt: Any, chosen: str, rejected: str | None
) -> None:
    found = one(values)
    assert (found.prompt, found.chosen, found.rejected) == (prompt, chosen, rejected)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"text": "just text"}, "no known format"),
        ({"prompt": "Q", "chosen": 3}, "missing or not text"),
        ({"prompt": "Q", "chosen": "  \n"}, "chosen response is empty"),
        ({"prompt": "Q", "chosen": "</s>\n"}, "chosen response is empty"),
        ({"prompt": " ", "chosen": "a"}, "prompt is empty"),
        ({"prompt": "Q", "chosen": "a", "rejected": " a"}, "are the same"),
        ({"prompt": "Q", "chosen": "a\ud800"}, "lone surrogate"),
        ({"prompt": "Q\udfff", "chosen": "a"}, "the prompt holds a lone surrogate"),
        ({"prompt": "Q", "chosen": "x" * 1_000_000}, "more than 20000 characters"),
        ({"prompt": "x" * 1_000_000, "chosen": "a"}, "more than 200000 characters"),
        ({"prompt": "Q", "completion": "a", "label": False}, "not preferred"),
        ({"chosen": "yes", "rejected": "no"}, "share no beginning"),
        ({"chosen": "yes"}, "no prompt"),
        ({"chosen": [said("a")], "rejected": [said("b")]}, "no prompt"),
        ({"prompt": "Q", "chosen": [said("a")], "rejected": "b"}, "different types"),
        ({"messages": [user(Q)]}, "the role 'user'"),
        ({"messages": [said("a")]}, "no message comes before"),
        ({"messages": [user(Q), said("a"), said("b")]}, "ends with an assistant"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "the role 'robot'"),
        ({"messages": [user(Q), {"role": "assistant", "content": None}]}, "no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, said("a")]},
         "other than text"),
        ({"messages": []}, "is empty"),
        ({"messages": ["hello"]}, "not an object"),
        ({"chosen": [user(Q), said("a"), user("more"), said("b")],
          "rejected": [user(Q), said("c")]}, "is 3 messages, not one"),
    ],
)  # fmt: skip
def test_a_row_that_gives_no_example_says_why(
    values: dict[str, Any], reason: str
) -> None:
    assert reason in fault(values)


@pytest.mark.parametrize("text", ["", "  ", "x" * 30_000, "b\ud800"])
def test_an_unusable_rejected_response_is_left_out_by_name(text: str) -> None:
    found = one({"prompt": "Q", "chosen": "a", "rejected": text})
    assert found.rejected is None
    assert set(found.missing) == {"rejected"}


def test_fields_are_found_by_name_and_by_depth() -> None:
    fields = FieldMap("doc.question", "best", "worst")
    found = one({"doc": {"question": "Q"}, "best": "a", "worst": "b"}, fields)
    assert (found.prompt, found.chosen, found.rejected) == ("Q", "a", "b")
    assert "no field 'c'" in fault({"p": "Q"}, FieldMap("p", "c"))


def test_a_source_of_the_wrong_format_is_an_error_that_names_its_fields() -> None:
    rows = (Row(f"f:{n}", {"alpha": 1, "beta": 2}) for n in range(10**9))
    with pytest.raises(ProbeError, match=r"none of 1000 rows.*alpha, beta.*--prompt-"):
        list(read_examples(rows))


def test_harness_samples_give_their_context_and_target() -> None:
    generated = {
        "doc": {},
        "target": "Paris",
        "resps": [["London"]],
        "arguments": {"gen_args_0": {"arg_0": "Capital?", "arg_1": {"until": []}}},
    }
    found = one(generated)
    assert (found.prompt, found.chosen, found.rejected) == ("Capital?", "Paris", None)
    choices = {
        "doc": {},
        "target": "2",
        "resps": [[["-9.0", "False"]], [["-2.0", "False"]], [["-1.0", "True"]]],
        "arguments": {
            f"gen_args_{n}": {"arg_0": "Q", "arg_1": f" {c}"}
            for n, c in enumerate("abc")
        },
    }
    found = one(choices)
    assert (found.chosen, found.rejected) == (" c", " b")
    assert "target" in fault({**choices, "target": "7"})
    assert "requests" in fault({**choices, "arguments": 3})


HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"


def test_a_marked_turn_ends_the_prompt_whatever_the_answers_share() -> None:
    shared = shared_text_prompt(HH + " I think so.", HH + " I think not.")
    assert shared == HH
    chat = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert shared_text_prompt(chat + "The end", chat + "The start") == chat


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: hi A: yes", "Q: hi A: no", "Q: hi A:"),
        ("Q: hi\nthink", "Q: hi\nthought", "Q: hi\n"),
        ("I think", "I thought", "I"),
        ("A:yes", "A:no", "A:"),
        ("naïve", "naïf", ""),
        ("cafe\u0301 x", "cafe\u0300 x", ""),
        ("same", "same and more", ""),
        ("", "x", ""),
    ],
)
def test_without_a_marker_the_cut_is_at_a_word(
    chosen: str, rejected: str, prompt: str
) -> None:
    assert shared_text_prompt(chosen, rejected) == prompt


texts = st.text(
    st.sampled_from("ab .\n:é\u0301ß😀")
    | st.characters(categories=["L", "N", "Zs", "Mn"]),
    max_size=20,
)


@given(texts, texts, texts)
@example(HH, " yes", " no")
def test_the_shared_prompt_begins_both_texts_and_cuts_no_word(
    beginning: str, one: str, other: str
) -> None:
    chosen, rejected = beginning + one, beginning + other
    prompt = shared_text_prompt(chosen, rejected)
    assert prompt == shared_text_prompt(rejected, chosen)
    for text in (chosen, rejected):
        assert text.startswith(prompt)
        rest = text[len(prompt) :]
        if prompt and rest:
            assert not (prompt[-1].isalnum() and rest[0].isalnum()) or rest[0] == " "
            assert not unicodedata.combining(rest[0])
    if prompt:
        assert chosen[len(prompt) :] != "" or HH in prompt


@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4), texts, texts)
def test_shared_messages_leave_each_side_an_answer(
    shared: list[str], rest: list[str], one: str, other: str
) -> None:
    chosen = [*map(user, shared), said(one)]
    rejected = [*map(user, shared), *map(user, rest), said(other)]
    found = shared_messages(chosen, rejected)
    assert found == chosen[: len(found)] == rejected[: len(found)]
    assert len(found) == len(shared)


def test_two_turns_of_a_conversation_have_one_key() -> None:
    later = HH + " Because.\n\nHuman: And then?\n\nAssistant:"
    assert conversation_key(HH) == conversation_key(later) == "\n\nHuman: Hi"
    system = {"role": "system", "content": "Be kind."}
    assert conversation_key((system, user("Hi"))) == "Hi"
    assert conversation_key((user("Hi"), said("x"), user("y"))) == "Hi"
