"""Every Python block of docs/visualizing.md, run one after the other on a run of a bundled model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from extract.export import export
from extract.from_checkpoint import examples_of, extract_checkpoint
from probe.cli.options import MAPS
from visualize.maps import PROBE, TASK, kinds_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "visualizing.md"


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(tmp_path, capsys):
    run = extract_checkpoint("vilt-aligner-grounded", "mini-game", "dev", tmp_path / "run", limit=8)
    examples = examples_of(run)
    export(run, "coco", tmp_path / "coco", examples)
    names = {"folder": tmp_path / "run", "coco": tmp_path / "coco", "examples": examples}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2
    assert (tmp_path / "run" / "layers.png").stat().st_size > 10_000
    assert "Average Recall" in capsys.readouterr().out


def test_the_help_names_every_map_that_a_run_may_hold():
    from types import SimpleNamespace

    from extract.reader import MAPS as VIEWS

    run = SimpleNamespace(sites=[SimpleNamespace(views=VIEWS)])
    every = [*kinds_of(run), PROBE]
    assert MAPS.split(", ") == [kind for kind in every if not kind.endswith(TASK)]
    assert set(VIEWS) <= set(every)
