"""The notebook runs from top to bottom, in a kernel of its own."""

from __future__ import annotations

import nbformat
from nbclient import NotebookClient

from tests.conftest import ROOT

PATH = ROOT / "examples" / "paper_walkthrough.ipynb"


def test_the_notebook_runs_and_draws_its_figures() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "stored bare"
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) == 6
    text = "".join(o.get("text", "") for o in outputs)
    assert "K is (10, 1, 10, 10)" in text
    assert "the likeliest response takes 14% before and 22% after" in text
