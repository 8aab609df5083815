"""The notebooks run from top to bottom, and show what their text says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list:
    """All outputs of a MIME type, in order."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    data = (output.get("data", {}) for cell in cells for output in cell.outputs)
    return [found[kind] for found in data if kind in found]


def printed(notebook: nbformat.NotebookNode) -> str:
    """Everything written to standard output."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return "".join(o.text for cell in cells for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def pictures(notebook: nbformat.NotebookNode) -> int:
    """How many pictures there are; none of them is empty."""
    found = outputs(notebook, "image/jpeg")
    assert min(len(picture) for picture in found) > 10_000
    return len(found)


def numbers(notebook: nbformat.NotebookNode, table: int) -> list[float]:
    """The numbers in the cells of a table."""
    html = outputs(notebook, "text/html")[table]
    return [float(cell) for cell in re.findall(r"<td>(-?[\d.]+)</td>", html)]


def quickstart(notebook: nbformat.NotebookNode) -> None:
    """All that the quickstart shows."""
    assert "100 examples," in printed(notebook)
    tables = outputs(notebook, "text/html")
    assert "vilt-aligner-task" in tables[0]
    assert "mean_iou" in tables[0]
    assert pictures(notebook) == 3  # layer curves, gallery, one example
    assert len(outputs(notebook, WIDGET)) == 1


def grounding_failures(notebook: nbformat.NotebookNode) -> None:
    """As many games are won with and without grounding; the games that the text tells of are chosen."""
    right, iou, right_grounded, iou_grounded = numbers(notebook, 0)
    assert abs(right - right_grounded) < 0.1
    assert iou_grounded > iou + 0.15
    assert pictures(notebook) == 3  # gallery, layers, most changed
    assert len(outputs(notebook, WIDGET)) == 1
    assert "mini-game/dev/000009" in outputs(notebook, "text/html")[1]


def layerwise_probing(notebook: nbformat.NotebookNode) -> None:
    """The grounded model is above its controls at both ends, the other loses on the way what it had."""
    assert pictures(notebook) == 2  # the curves of both models
    cells = re.findall(r"<td>(-?[\d.]+) \((-?[\d.]+) to (-?[\d.]+)\)</td>", outputs(notebook, "text/html")[0])
    task_first, task_last, first, last = ([float(low) for _, low, _ in cells[3 * i : 3 * i + 3]] for i in range(4))
    assert min(first + last) > 0.08  # above chance, random labels and places
    assert min(task_first) > 0
    assert max(task_last[1:]) < 0
    own = dict(zip(("task", "grounded"), numbers(notebook, 1)[-2:], strict=True))
    assert own["grounded"] > own["task"] + 0.15
    assert len(outputs(notebook, WIDGET)) == 1


def own_model_and_data(notebook: nbformat.NotebookNode) -> None:
    """A network that learned nothing is far above random labels and places."""
    assert "80 examples, 240 phrases, (240, 32)" in printed(notebook)
    assert pictures(notebook) == 2  # an example, layer curves
    for above_position, alignment, _, _, selectivity in np.reshape(numbers(notebook, 0), (2, 5)):
        assert alignment > 0.5
        assert min(above_position, selectivity) > 0.25
    assert len(outputs(notebook, WIDGET)) == 1


CHECKS: dict[str, Callable[[nbformat.NotebookNode], None]] = {
    "quickstart": quickstart,
    "layerwise_probing": layerwise_probing,
    "grounding_failures": grounding_failures,
    "own_model_and_data": own_model_and_data,
}


def read(name: str) -> nbformat.NotebookNode:
    """A notebook as saved."""
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def check(name: str, notebook: nbformat.NotebookNode) -> list:
    """The cells of code, each of which was run, in order, and whose outputs are what they have to be."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    CHECKS[name](notebook)
    return code


def test_every_notebook_is_checked() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_saved_is_whole(name: str) -> None:
    notebook = read(name)
    code = check(name, notebook)
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 400_000
    shown = re.sub(r'"image/(png|jpeg)": "[^"]*"', "", text)
    assert re.findall(r"/(?:tmp|root|home|work|usr)/", shown) == []
    assert [o.name for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    notebook = read(name)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert check(name, notebook)
