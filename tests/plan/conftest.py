"""A tiny run, and the store of its sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldeval.sweep import sweep
from tests.sweeping import sweep_settings
from tests.tiny import save_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and run/checkpoint-{10,20}."""
    return save_run(tmp_path_factory.mktemp("trained"), [10, 20])


@pytest.fixture(scope="session")
def scored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the finished sweep."""
    store = tmp_path_factory.mktemp("store")
    sweep(trained / "run", sweep_settings(trained, store))
    return store
