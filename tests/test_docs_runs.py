"""Every Python block of docs/runs.md, run one after the other on a run of a bundled model."""

from __future__ import annotations

import re
from pathlib import Path

from extract.from_checkpoint import extract_checkpoint

PAGE = Path(__file__).resolve().parent.parent / "docs" / "runs.md"


def test_the_page_runs_as_it_is_written(tmp_path):
    run = extract_checkpoint("vilt-aligner-grounded", "mini-game", "dev", tmp_path / "run", limit=8)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {"folder": tmp_path / "run"}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 3
    assert names["rows"].shape == (len(run.phrases), run.site("block.7").width)
    assert names["two"].shape[0] == 2
    assert names["layers"].shape[:2] == (2, len(run.regions))
    assert names["weights"].ndim == 3
    assert len(names["batch"]["phrase_row"]["text"]) == len(names["batch"]["phrase"]["block.7"])
