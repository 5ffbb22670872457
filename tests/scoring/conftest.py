"""Models and an independent computation for the scoring tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ldeval.bundled import bundled_probes
from ldeval.probes import ProbeSet, read_probes
from ldeval.scoring.score import ResponseScore
from tests.tiny import save_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer and a chat template."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def few_probes() -> ProbeSet:
    """Four trained and two held-out bundled probes."""
    return read_probes(bundled_probes()).limited(4, 2)


def open_hf(folder: Path, **arguments: Any) -> Any:
    """The harness's transformers model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", **arguments)


def plain_logprobs(model: Any, ids: list[int], start: int, stop: int) -> torch.Tensor:
    """ln p over the vocabulary at each position of a span, by one plain forward pass of
    one unpadded sequence: [stop − start, V]. The reference for every backend."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].float()
    return torch.log_softmax(logits, dim=-1)[start - 1 : stop - 1]


def worst_per_token(
    scores: dict[tuple[str, str], ResponseScore],
    expected: dict[tuple[str, str], float],
    lengths: dict[tuple[str, str], int],
) -> float:
    """The largest difference of sums, in nats per token."""
    return max(
        abs(scores[key].logprob_sum - expected[key]) / lengths[key] for key in expected
    )
