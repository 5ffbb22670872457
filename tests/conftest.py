"""What tests share: places, the demo model, small models, and the rule about skips."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
DEMO_MODEL = ROOT / "models" / "smollm2-135m-instruct"

ALLOWED_SKIPS = ("shared data absent", "no accelerator")
"""In CI every other skip fails the run: a test that does not run proves nothing."""

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note every skip that CI does not allow, also of tests in another process."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            _skipped.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With CI=true a skipped test fails the run."""
    if os.environ.get("CI") == "true" and _skipped:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name the skips that made CI fail."""
    if os.environ.get("CI") == "true" and _skipped:
        terminalreporter.section("skipped tests are failures in CI")
        for line in _skipped:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def hh_probes() -> Path:
    """The paper authors' 500 HH probes."""
    path = SHARED / "hh_probes_reference_format.jsonl"
    if not path.is_file():
        pytest.skip("shared data absent")
    return path


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct as scripts/get_demo_model.py leaves it."""
    if not (DEMO_MODEL / "config.json").is_file():
        pytest.skip("the demo model is absent: run scripts/get_demo_model.py")
    return DEMO_MODEL
