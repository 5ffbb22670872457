"""The same command against a real ``vllm serve``: nothing is faked.

One server serves the module; it takes about a minute to start.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldeval.cli import main
from ldeval.probes import read_probes
from ldeval.records import KIND_NAMES
from scripts.campaign_rephrase import NAME, served
from tests.conftest import ROOT

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Iterator[str]:
    """The address of a real server of the demo model."""
    with served(str(demo_model), tmp_path_factory.mktemp("vllm") / "log") as url:
        yield url


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Preference data in TRL's format, made of the bundled probes."""
    from ldeval.bundled import bundled_probes

    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": probe.prompt,
            "chosen": probe.responses["chosen"].text,
            "rejected": probe.responses["rejected"].text,
        }
        for probe in read_probes(bundled_probes())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_killed_build_resumes_and_asks_nothing_twice(
    server: str, hh_probes: Path, demo_model: Path, tmp_path: Path
) -> None:
    """The campaign over four HH prompts: SIGKILL, resume, repeat without a server."""
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "campaign_rephrase.py")),
            *(str(hh_probes), "--model", str(demo_model), "--url", server),
            *("--prompts", "4", "--kill-after", "9", "-o", str(tmp_path / "c")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed (exit -9)" in done.stdout
    probes = read_probes(tmp_path / "c" / "probes.jsonl")
    assert len(probes) == 4
    assert set(probes.kinds()) >= set(KIND_NAMES) - {"rejected_format"}


def test_the_controls_reject_what_a_weak_model_writes(
    server: str, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "probes.jsonl"
    status = main(
        [
            *("-q", "probes", "build", str(prompts), "-o", str(output)),
            *("--limit", "4", "1", "--rephraser", server, "--rephraser-model", NAME),
        ]
    )
    assert status == 0
    record = json.loads(Path(f"{output}.build.json").read_text())["rephrased"]
    rejected = sum(sum(by.values()) for by in record["rejected_answers"].values())
    accepted = sum(record["accepted"].values())
    left_out = sum(sum(by.values()) for by in record["left_out"].values())
    assert rejected > 0
    assert accepted > 0
    assert accepted + left_out == 25
    assert sum(record["answers"].values()) == accepted + rejected


def test_a_model_that_the_server_does_not_have_is_an_error(
    server: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(
        [
            *("-q", "probes", "build", str(prompts), "-o", str(tmp_path / "p.jsonl")),
            *("--limit", "2", "1", "--rephraser", server, "--rephraser-model", "gpt"),
        ]
    )
    assert status == 2
    assert "knows no model 'gpt'" in capsys.readouterr().err
