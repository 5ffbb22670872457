"""Small real models for tests: a tokenizer trained on the bundled probes, and randomly
initialised networks of several architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ldeval.bundled import bundled_probes
from ldeval.probes import read_probes

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PACKED = ("llama", "llama_tied", "gpt2", "gpt_neox", "qwen2", "gemma2", "cohere")
"""Architectures that take packs; the last two scale or cap their logits."""
FALLBACK = ("mistral_window", "bloom", "mamba")
"""A window of 8 tokens, attention of its own with no positions, and no attention."""
ARCHITECTURES = (*PACKED, *FALLBACK)


def tiny_tokenizer(size: int = 512, template: str | None = TEMPLATE) -> Any:
    """A byte-level BPE tokenizer with an end token and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    probes = read_probes(bundled_probes())
    texts = [r.text for p in probes for r in p.responses.values()]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    fast.chat_template = template
    return fast


def tiny_model(architecture: str, vocabulary: int, seed: int = 0) -> Any:
    """A two-layer network with weights large enough to disagree on tokens."""
    torch.manual_seed(seed)
    shared: dict[str, Any] = {"vocab_size": vocabulary}
    llama = {
        **shared,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
    }
    if architecture == "llama":
        config = LlamaConfig(**llama, tie_word_embeddings=False)
        return LlamaForCausalLM(config)
    if architecture == "llama_tied":
        return LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=True))
    if architecture == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**llama))
    if architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                **shared,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=256,
                initializer_range=0.3,
            )
        )
    if architecture == "gpt_neox":
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(
                **shared,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=256,
                initializer_range=0.3,
            )
        )
    if architecture == "gemma2":
        # two soft caps: on attention scores and on logits
        return Gemma2ForCausalLM(
            Gemma2Config(
                **llama,
                head_dim=8,
                sliding_window=512,
                attn_logit_softcapping=5.0,
                final_logit_softcapping=3.0,
            )
        )
    if architecture == "cohere":
        return CohereForCausalLM(CohereConfig(**llama, logit_scale=0.5))
    if architecture == "mistral_window":
        return MistralForCausalLM(MistralConfig(**llama, sliding_window=8))
    if architecture == "bloom":
        return BloomForCausalLM(
            BloomConfig(
                **shared, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3
            )
        )
    if architecture == "mamba":
        return MambaForCausalLM(
            MambaConfig(**shared, hidden_size=32, num_hidden_layers=2, state_size=8)
        )
    raise ValueError(f"no tiny model of architecture {architecture!r}")


def save_tiny(
    folder: Path,
    *,
    architecture: str = "llama",
    seed: int = 0,
    tokenizer: Any = None,
) -> Path:
    """Save a tiny model with its tokenizer."""
    tokenizer = tokenizer or tiny_tokenizer()
    model = tiny_model(architecture, len(tokenizer), seed)
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def perturb(model: Any, scale: float, seed: int) -> None:
    """Move every weight a little: what a few steps of training do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(scale * noise)


def save_run(folder: Path, steps: list[int], *, architecture: str = "llama") -> Path:
    """A base model in ``folder/base`` and ``folder/run/checkpoint-N``."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(architecture, len(tokenizer))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for step in steps:
        perturb(model, 0.02, step)
        checkpoint = folder / "run" / f"checkpoint-{step}"
        model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        (checkpoint / "trainer_state.json").write_text(
            f'{{"global_step": {step}, "max_steps": {steps[-1]}}}'
        )
    return folder
