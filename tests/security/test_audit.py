"""Dependencies are audited where that can be done, and it is said where it cannot."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security.answering import JsonHandler, served

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit_dependencies.py"
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("audit_dependencies", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Database(JsonHandler):
    """Knows of one vulnerability, of every version of ``holey``."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        package = {"name": "holey", "ecosystem": "PyPI"}
        advisory = {
            "id": "PYSEC-2099-1",
            "aliases": ["CVE-2099-1"],
            "summary": "It leaks.",
            "affected": [
                {
                    "package": package,
                    "ranges": [
                        {"type": "ECOSYSTEM", "events": [{"introduced": "0"}]},
                    ],
                }
            ],
        }
        known = query["package"]["name"] == "holey"
        self.answer(200, {"vulns": [advisory]} if known else {})


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with served(Database) as address:
        yield f"http://{address}/v1/query"


def install(folder: Path, *names: str) -> str:
    for name in names:
        place = folder / f"{name}-1.0.dist-info"
        place.mkdir(parents=True)
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        (place / "METADATA").write_text(about)
    return str(folder)


def test_a_known_vulnerability_fails_the_check_and_is_named(
    script: Any, database: str, tmp_path: Path, capsys: Output
) -> None:
    path = install(tmp_path, "holey", "whole")
    assert script.main(["--path", path, "--url", database]) == 1
    told = capsys.readouterr().out
    assert "holey 1.0 has PYSEC-2099-1" in told
    assert "packages: 2, known vulnerabilities: 1" in told


def test_an_environment_without_any_passes(
    script: Any, database: str, tmp_path: Path, capsys: Output
) -> None:
    assert script.main(["--path", install(tmp_path, "whole"), "--url", database]) == 0
    assert "packages: 1, known vulnerabilities: 0" in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "status"), [("", 0), ("require", 1)])
def test_without_the_database_it_is_said_and_fails_only_where_required(
    script: Any,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    status: int,
) -> None:
    monkeypatch.setenv("LDEVAL_AUDIT", asked)
    nobody = "http://127.0.0.1:9/v1/query"
    found = script.main(["--path", install(tmp_path, "whole"), "--url", nobody])
    assert found == status
    said = capsys.readouterr().out
    assert said.startswith("dependency audit: not done, database cannot be reached")


def test_an_advisory_is_accepted_with_a_reason_only(script: Any) -> None:
    accepted = script.accepted_advisories("# none\nCVE-1 not reachable from here\n")
    fault = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": []}
    item = {"name": "a", "version": "1", "vulns": [fault]}
    assert script.vulnerabilities({"dependencies": [item]}, accepted) == []
    assert script.vulnerabilities({"dependencies": [item]}, {}) == [
        "a 1 has PYSEC-1; fixed in no release yet"
    ]
    with pytest.raises(ValueError, match="without reason"):
        script.accepted_advisories("CVE-1\n")


def test_every_test_that_the_threat_model_names_is_there() -> None:
    root = Path(__file__).parents[2]
    text = (root / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|scripts|docs)/[\w/.]+)`", text)
    assert len(named) > 20
    assert [path for path in named if not (root / path).is_file()] == []
