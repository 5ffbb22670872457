"""Ask the database of advisories (osv.dev) about what is installed here.

    python scripts/audit_dependencies.py [--path FOLDER] [--url URL]

Exit status: 0 nothing known, or the database cannot be reached, which is said; 1 a
known vulnerability that ``scripts/accepted_advisories.txt`` does not list. With
``LDEVAL_AUDIT=require`` an audit that could not be done is a failure too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ACCEPTED = Path(__file__).with_name("accepted_advisories.txt")
SECONDS = 60
"""After which an audit is given up: a check must not hang on a network."""


def main(arguments: list[str] | None = None) -> int:
    """Audit, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--path", help="site-packages; default: this environment's")
    parser.add_argument("--url", help="of the database; default: osv.dev")
    options = parser.parse_args(arguments)
    found = audit(options.path, options.url)
    if isinstance(found, str):
        print(f"dependency audit: not done, {found}")
        return 1 if os.environ.get("LDEVAL_AUDIT") == "require" else 0
    accepted = accepted_advisories(ACCEPTED.read_text(encoding="utf-8"))
    faults = vulnerabilities(found, accepted)
    for fault in faults:
        print(f"dependency audit: {fault}")
    skipped = [d["name"] for d in found["dependencies"] if "skip_reason" in d]
    print(
        f"dependency audit: packages: {len(found['dependencies']) - len(skipped)}, "
        f"known vulnerabilities: {len(faults)}"
        + (f"; not in the database: {', '.join(skipped)}" if skipped else "")
    )
    return 1 if faults else 0


def audit(path: str | None, url: str | None) -> dict[str, Any] | str:
    """What pip-audit found, or why it found nothing out."""
    place = ["--local"] if path is None else ["--path", path]
    place += [] if url is None else ["--osv-url", url]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip_audit", "-s", "osv", "-f", "json", *place]
        command += ["--timeout", "10", "--progress-spinner", "off", "--skip-editable"]
        try:
            done = subprocess.run(
                [*command, "-o", str(report)],
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"the database has not answered within {SECONDS} seconds"
        if "No module named pip_audit" in done.stderr:
            return "pip-audit is not installed (the extra 'dev' brings it)"
        if not report.is_file() or not report.stat().st_size:
            reason = done.stderr.strip().splitlines() or ["no reason given"]
            return f"database cannot be reached ({reason[-1][:200]})"
        return dict(json.loads(report.read_text(encoding="utf-8")))


def accepted_advisories(text: str) -> dict[str, str]:
    """Reasons by advisory.

    Raises:
        ValueError: a line without a reason.
    """
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    accepted = {}
    for line in filter(None, lines):
        advisory, _, reason = line.partition(" ")
        if not reason.strip():
            raise ValueError(f"{ACCEPTED.name}: {advisory} is accepted without reason.")
        accepted[advisory] = reason.strip()
    return accepted


def vulnerabilities(found: dict[str, Any], accepted: dict[str, str]) -> list[str]:
    """A sentence for each one that is not accepted."""
    return [
        f"{item['name']} {item['version']} has {fault['id']}; fixed in "
        f"{', '.join(fault['fix_versions']) or 'no release yet'}"
        for item in found["dependencies"]
        for fault in item.get("vulns", ())
        if not {fault["id"], *fault.get("aliases", ())} & accepted.keys()
    ]


if __name__ == "__main__":
    sys.exit(main())
