"""The demo's own refusals; the demo itself is run by make demo."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from extract.store import FORMAT, MANIFEST
from grounding.errors import BadInput
from probe.cli import demo


def test_too_few_examples_are_refused_before_anything_is_written(tmp_path):
    for examples in (3, 0):
        with pytest.raises(BadInput, match=f"^examples {examples} is too small; accepted: 10 or more$"):
            demo.run_demo(tmp_path / "demo", examples)
    assert not (tmp_path / "demo").exists()


def test_what_is_wrong_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match=r"^seed -1 is too small; accepted: 0 or more$"):
        demo.run_demo(tmp_path / "demo", 12, seed=-1)
    with pytest.raises(BadInput, match="file' is not a folder"):
        demo.run_demo(tmp_path / "file", 12)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_table_fits_eighty_columns_with_no_word_broken(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    names = ("vilt-aligner-task", "vilt-aligner-grounded", "mdetr-task", "mdetr-grounded")
    cell = "0.48 (0.42, 0.55)"
    cells = [(name, cell, cell, cell, "decoder.2", cell, cell) for name in names]
    demo._print_table([SimpleNamespace(cells=lambda row=row: row) for row in cells])
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    words = {"vilt-aligner-", "task", "mdetr-", "grounded", "0.48", "(0.42,", "0.55)", "decoder.2", "accuracy"}
    assert words <= set(" ".join(lines).split())


def test_a_folder_with_a_demo_of_other_examples_says_so(tmp_path, monkeypatch):
    folder = tmp_path / "vilt-aligner-task"
    folder.mkdir()
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "source": {"limit": 240}}))
    with pytest.raises(BadInput) as raised:
        demo.run_demo(tmp_path, 100)
    assert str(raised.value) == (
        f"examples 100: {str(tmp_path)!r} holds a demo of 240; accepted: --examples 240, another folder with --out, "
        "or this one deleted"
    )
    taken: list[Path] = []
    monkeypatch.setattr(demo, "_one", lambda name, folder, *rest: taken.append(folder))
    demo.run_demo(tmp_path, 240)
    assert folder in taken
