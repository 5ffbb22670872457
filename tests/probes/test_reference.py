"""Importing the paper authors' files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldeval.errors import ProbeError
from ldeval.probes import import_reference
from ldeval.records import KIND_NAMES


def test_the_authors_file_is_repaired_and_every_repair_is_listed(
    hh_probes: Path,
) -> None:
    probes, report = import_reference(hh_probes)
    assert report.probes == len(probes) == 500
    assert [kind for _, kind in report.empty].count("initial") == 21
    assert [kind for _, kind in report.empty].count("rejected") == 1
    assert len(report.empty) == 22
    assert len(report.same_as_chosen) == 8
    assert report.skipped_fields == 500
    assert probes.kinds() == KIND_NAMES
    for probe in probes:
        leads = {
            response.text[: len(response.text) - len(response.text.lstrip())]
            for response in probe.responses.values()
        }
        assert len(leads) == 1


def test_what_is_not_the_authors_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "score": 1}) + "\n")
    with pytest.raises(ProbeError, match="field 'score': is not a field"):
        import_reference(path)
    path.write_text(json.dumps({"prompt": "a", "chosen": ""}) + "\n")
    with pytest.raises(ProbeError, match="field 'chosen': is missing or empty"):
        import_reference(path)
