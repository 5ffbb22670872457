"""The notebook runs from top to bottom, in a kernel of its own."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import DEMO_MODEL, ROOT

PATH = ROOT / "examples" / "paper_walkthrough.ipynb"


@pytest.mark.model
def test_the_notebook_runs_and_draws_its_figures(demo_model: Path) -> None:
    assert demo_model == DEMO_MODEL, "the folder that the notebook names"
    notebook = nbformat.read(PATH, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "stored bare"
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) == 8
    text = "".join(o.get("text", "") for o in outputs)
    assert "K is (10, 1, 10, 10)" in text
    assert "the likeliest response takes 14% before and 22% after" in text
