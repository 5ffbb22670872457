"""Sampling ``initial``: seeded by probe, greedy apart, through any backend."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ldeval.errors import CheckpointError, UnsupportedBackendError
from ldeval.probes import parse_probe
from ldeval.records import Probe
from ldeval.scoring.encode import as_messages
from ldeval.scoring.generate import InitialSampler, Request, _Transformers
from tests.tiny import save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("generate") / "model"))


def probes(count: int = 5) -> list[Probe]:
    return [
        parse_probe(
            {
                "probe_id": f"p{n}",
                "prompt": f"How do I cook rice {n}?",
                "trained": True,
                "responses": {"chosen": "Rinse it."},
            }
        )
        for n in range(count)
    ]


def texts(sampled: list[Probe]) -> list[str]:
    return [p.responses["initial"].text if "initial" in p.responses else ""
            for p in sampled]  # fmt: skip


BACKENDS = [("hf", {}), ("hf", {"device": "cpu", "dtype": "float32"})]


@pytest.mark.parametrize(("backend", "arguments"), BACKENDS)
def test_a_sample_follows_from_its_seed_and_probe_alone(
    model: str, backend: str, arguments: dict[str, str]
) -> None:
    def sampled(seed: int, items: list[Probe]) -> list[str]:
        sampler = InitialSampler(
            model, backend=backend, model_args=arguments, seed=seed, max_new_tokens=12
        )
        return texts(sampler(items))

    whole = sampled(1, probes())
    assert len(set(whole)) == 5
    assert sampled(1, probes()[::-1]) == whole[::-1]
    assert sampled(1, probes()[2:3]) == whole[2:3]
    assert sampled(2, probes()) != whole


@pytest.mark.parametrize(("backend", "arguments"), BACKENDS)
def test_the_greedy_response_is_the_argmax_and_kept_apart(
    model: str, backend: str, arguments: dict[str, str]
) -> None:
    sampler = InitialSampler(
        model, backend=backend, model_args=arguments, max_new_tokens=6, greedy=True
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for probe in sampler(probes(3)):
        text = tokenizer.apply_chat_template(
            as_messages(probe.prompt), tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        new: list[int] = []
        for _ in range(6):
            with torch.inference_mode():
                logits = network(torch.tensor([ids + new])).logits[0, -1]
            new.append(int(logits.argmax()))
            if new[-1] == tokenizer.eos_token_id:
                break
        expected = tokenizer.decode(new, skip_special_tokens=True).strip()
        assert expected.startswith(probe.meta.get("initial_greedy", ""))
        assert probe.meta["initial_greedy"]
        assert set(probe.responses) <= {"chosen", "initial"}


@pytest.mark.parametrize(("backend", "arguments"), BACKENDS)
def test_a_models_generation_settings_bend_no_sample(
    model: str, tmp_path: Path, backend: str, arguments: dict[str, str]
) -> None:
    other = Path(shutil.copytree(model, tmp_path / "m"))
    settings = GenerationConfig.from_pretrained(model)
    settings.update(repetition_penalty=5.0, top_k=1, do_sample=True)
    settings.save_pretrained(other)

    def sampled(folder: str) -> list[tuple[str, str]]:
        sampler = InitialSampler(
            folder, backend=backend, model_args=arguments, max_new_tokens=8, greedy=True
        )
        found = sampler(probes(3))
        greedy = [str(probe.meta["initial_greedy"]) for probe in found]
        return list(zip(texts(found), greedy, strict=True))

    assert sampled(str(other)) == sampled(model)


def test_an_end_of_the_models_own_ends_a_sample(model: str, tmp_path: Path) -> None:
    # Gemma's, for one: its tokenizer names another end than that of a turn
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = [300, 301]
    for _ in range(3):
        with torch.no_grad():
            ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
    assert len(set(ids)) == 5
    other = Path(shutil.copytree(model, tmp_path / "m"))
    settings = GenerationConfig.from_pretrained(model)
    settings.eos_token_id = [settings.eos_token_id, ids[-1]]
    settings.save_pretrained(other)

    generate = _Transformers(str(other), 0.7, 8)
    text = AutoTokenizer.from_pretrained(model).decode(ids[2:])
    assert generate([Request("", (300, 301), None)]) == [(text, True)]


def test_a_model_without_a_template_goes_on_from_the_text(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", tokenizer=tiny_tokenizer(template=None))
    sampler = InitialSampler(str(folder), max_new_tokens=8)
    (sampled,) = sampler(probes(1))
    assert "initial" in sampled.responses
    talk = ({"role": "user", "content": "Hi"},)
    with pytest.raises(UnsupportedBackendError, match="'p0' needs a chat template"):
        sampler([replace(probes(1)[0], prompt=talk)])


def test_a_backend_that_takes_messages_is_refused(model: str) -> None:
    with pytest.raises(UnsupportedBackendError, match="local-completions"):
        InitialSampler(model, backend="local-chat-completions")


def test_arguments_that_name_another_checkpoint_are_refused(model: str) -> None:
    with pytest.raises(CheckpointError, match="Leave it out"):
        InitialSampler(model, model_args={"pretrained": "other"})
