"""The demo's own refusals; the demo itself is run by make demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from extract.store import FORMAT, MANIFEST
from grounding.errors import BadInput
from probe.cli import demo


def test_too_few_examples_are_refused_before_anything_is_written(tmp_path):
    for examples in (3, 0):
        with pytest.raises(BadInput, match=f"^examples {examples} is too small; accepted: 10 or more$"):
            demo.run_demo(tmp_path / "demo", examples)
    assert not (tmp_path / "demo").exists()


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
