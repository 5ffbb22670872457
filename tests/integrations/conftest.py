"""What trainers of the integration tests start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset

from tests.tiny import save_tiny
from tests.training import examples, short_probes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    return examples(short_probes(), "dpo")
