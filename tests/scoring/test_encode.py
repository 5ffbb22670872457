"""Prompt and responses to token ids and the scored span."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldeval.errors import ProbeError, UnsupportedBackendError
from ldeval.probes import ProbeSet, parse_probe
from ldeval.records import Probe
from ldeval.scoring.encode import (
    common_prefix_length,
    encode_probe,
    encode_prompt,
    tokenizer_codec,
    tokenizer_hash,
)
from tests.tiny import TEMPLATE, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CODEC = tokenizer_codec(TOKENIZER)


def probe(prompt: Any = "Why?", **responses: str) -> Probe:
    return parse_probe(
        {
            "probe_id": "a",
            "prompt": prompt,
            "trained": True,
            "responses": {"chosen": " Because.", **responses},
        }
    )


def trl_dataset(rows: list[dict[str, Any]], folder: Path) -> Any:
    """What a real DPOTrainer makes of preference pairs."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        tiny_model("llama", len(TOKENIZER)),
        tiny_model("llama", len(TOKENIZER)),
        args=DPOConfig(output_dir=str(folder), report_to="none", use_cpu=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )
    return trainer.train_dataset


@pytest.mark.parametrize("conversational", [False, True])
def test_chosen_and_rejected_are_split_as_trl_splits_them(
    few_probes: ProbeSet, tmp_path: Path, conversational: bool
) -> None:
    def side(role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if conversational else text

    pairs = [
        parse_probe(
            {
                "probe_id": item.probe_id,
                "prompt": side("user", str(item.prompt)),
                "trained": True,
                "responses": {
                    kind: ("" if conversational else " ") + item.responses[kind].text
                    for kind in ("chosen", "rejected")
                },
            }
        )
        for item in few_probes
    ]
    rows = [
        {
            "prompt": [dict(m) for m in p.prompt] if conversational else p.prompt,
            "chosen": side("assistant", p.responses["chosen"].text),
            "rejected": side("assistant", p.responses["rejected"].text),
        }
        for p in pairs
    ]
    dataset = trl_dataset(rows, tmp_path)
    for item, row in zip(pairs, dataset, strict=True):
        encoded = {r.kind: r for r in encode_probe(item, CODEC).responses}
        for kind in ("chosen", "rejected"):
            ids = encoded[kind].ids
            assert list(ids[: encoded[kind].start]) == row["prompt_ids"]
            assert list(ids[encoded[kind].start :]) == row[f"{kind}_ids"]


def test_text_gets_the_end_token_once() -> None:
    end = TOKENIZER.eos_token_id
    encoded = encode_probe(probe(rejected=" No." + TOKENIZER.eos_token), CODEC)
    for response in encoded.responses:
        assert response.ids.count(end) == 1
        assert response.ids[-1] == end
        assert response.stop == len(response.ids)


def test_the_span_without_end_leaves_the_end_out() -> None:
    text = encode_probe(probe(), CODEC, span="no_end").responses[0]
    assert TOKENIZER.decode(text.ids[text.start : text.stop]) == " Because."
    chat = encode_probe(
        probe(), CODEC, span="no_end", apply_chat_template=True
    ).responses[0]
    assert TOKENIZER.decode(chat.ids[chat.start : chat.stop]).strip() == "Because."


def test_an_end_that_cannot_be_told_apart_is_excluded_by_name() -> None:
    # as templates of reasoning models do
    thought = "{{ message['content'].split('</think>')[-1] }}"
    template = TEMPLATE.replace("{{ message['content'] }}", thought)
    codec = tokenizer_codec(tiny_tokenizer(template=template))
    item = probe([{"role": "user", "content": "Why?"}], rejected="So</think> it is.")
    encoded = encode_probe(item, codec, span="no_end")
    assert [r.kind for r in encoded.responses] == ["chosen"]
    (excluded,) = encoded.excluded
    assert excluded.kind == "rejected"
    assert excluded.reason.startswith("changed by the chat template")
    assert not encode_probe(item, codec).excluded


def test_the_templates_tail_belongs_to_the_response() -> None:
    messages = [{"role": "user", "content": "Why?"}]
    response = encode_probe(probe(messages), CODEC).responses[0]
    spoken = TOKENIZER.decode(response.ids[response.start :])
    assert spoken == " Because.<|end|>\n"
    assert TOKENIZER.decode(response.ids[: response.start]) == (
        "<|user|>\nWhy?<|end|>\n<|assistant|>\n"
    )


def test_text_with_the_template_is_the_same_as_one_message() -> None:
    messages = [{"role": "user", "content": "Why?"}]
    as_text = encode_probe(probe("Why?"), CODEC, apply_chat_template=True)
    assert as_text.responses == encode_probe(probe(messages), CODEC).responses


def test_a_system_instruction_comes_first() -> None:
    encoded = encode_probe(
        probe(), CODEC, apply_chat_template=True, system_instruction="Be brief."
    )
    text = TOKENIZER.decode(encoded.responses[0].ids)
    assert text.startswith("<|system|>\nBe brief.<|end|>\n<|user|>\nWhy?")


@given(
    prompt=st.text(st.characters(categories=["L", "Z", "P"]), min_size=1, max_size=20),
    texts=st.lists(
        st.text(st.characters(categories=["L", "Z", "P"]), min_size=1, max_size=20),
        min_size=1,
        max_size=5,
    ),
)
def test_every_response_of_a_probe_has_the_same_context(
    prompt: str, texts: list[str]
) -> None:
    kinds = ("rejected", "initial", "permuted", "random_words", "random_sentence")
    named = {k: t for k, t in zip(kinds, texts, strict=False) if t.strip()}
    whole = [CODEC.encode(prompt + text) for text in (" Because.", *named.values())]
    if any(ids[0] != CODEC.encode(prompt)[0] for ids in whole):
        with pytest.raises(ProbeError, match="share no first token"):
            encode_probe(probe(prompt, **named), CODEC)
        return
    encoded = encode_probe(probe(prompt, **named), CODEC)
    contexts = {r.ids[: r.start] for r in encoded.responses}
    assert len(contexts) == 1
    context = contexts.pop()
    prompt_ids = CODEC.encode(prompt)
    assert list(context) == prompt_ids[: len(context)]
    assert encoded.merged == (len(context) < len(prompt_ids))


def test_a_merge_across_the_boundary_is_reported() -> None:
    # the tokenizer joins "th" and "e" into one token, so the context ends before "th"
    whole = CODEC.encode("of the")
    assert len(whole) < len(CODEC.encode("of th")) + len(CODEC.encode("e"))
    encoded = encode_probe(
        parse_probe(
            {
                "probe_id": "a",
                "prompt": "of th",
                "trained": True,
                "responses": {"chosen": "e end", "rejected": " end"},
            }
        ),
        CODEC,
    )
    assert encoded.merged
    assert len({r.start for r in encoded.responses}) == 1


def test_what_does_not_fit_is_excluded_by_name() -> None:
    codec = tokenizer_codec(TOKENIZER, max_length=40)
    encoded = encode_probe(probe(rejected=" word" * 60), codec)
    assert [r.kind for r in encoded.responses] == ["chosen"]
    (excluded,) = encoded.excluded
    assert (excluded.probe_id, excluded.kind) == ("a", "rejected")
    assert excluded.reason.startswith("truncated: ")
    assert excluded.reason.endswith("the model takes 40")


def test_messages_without_a_template_are_refused() -> None:
    codec = tokenizer_codec(tiny_tokenizer(template=None))
    with pytest.raises(UnsupportedBackendError, match="needs a chat template"):
        encode_probe(probe([{"role": "user", "content": "x"}]), codec)


def test_messages_that_the_template_refuses_are_refused_by_name() -> None:
    # as Gemma's and Mistral's templates do
    template = (
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
    )
    codec = tokenizer_codec(tiny_tokenizer(template=template))
    talk = [{"role": "user", "content": "x"}]
    assert encode_probe(probe(talk), codec).responses
    with pytest.raises(UnsupportedBackendError) as caught:
        encode_probe(probe(talk), codec, system_instruction="Be brief.")
    for part in ("'a'", "System role not supported", "system, user"):
        assert part in str(caught.value)
    with pytest.raises(UnsupportedBackendError, match="System role not supported"):
        encode_prompt(talk, codec, system_instruction="Be brief.")


def test_the_tokenizer_hash_ignores_padding_state_and_template() -> None:
    first, second = tiny_tokenizer(), tiny_tokenizer(template=None)
    second("a b", padding="max_length", max_length=8, truncation=True)
    assert tokenizer_hash(first) == tokenizer_hash(second)
    assert tokenizer_hash(first) != tokenizer_hash(tiny_tokenizer(400))


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_the_common_prefix_is_common_and_longest(a: list[int], b: list[int]) -> None:
    n = common_prefix_length(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]
