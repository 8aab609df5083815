"""The notebooks run from top to bottom, and show what their text says."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """All outputs of a MIME type, in order."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    data = (output.get("data", {}) for cell in cells for output in cell.outputs)
    return [found[kind] for found in data if kind in found]


def printed(notebook: nbformat.NotebookNode) -> str:
    """Everything written to standard output."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return "".join(o.text for cell in cells for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


@pytest.mark.parametrize("saved", [True, False], ids=["as saved", "executed"])
def test_quickstart(saved: bool, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS / "quickstart.ipynb", as_version=4)
    if not saved:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "100 examples," in printed(notebook)
    tables = outputs(notebook, "text/html")
    assert "vilt-aligner-task" in tables[0]
    assert "mean_iou" in tables[0]
    pictures = outputs(notebook, "image/png")
    assert len(pictures) == 3  # layer curves, gallery, one example
    assert min(len(picture) for picture in pictures) > 10_000
