"""``probe heads``, from two runs of a bundled model to tables and figures, and what it says of runs without maps."""

from __future__ import annotations

import json

import pytest
from test_probe_cli import run as probe

from extract.reader import Run

MODEL = ("--ckpt", "mdetr-grounded", "--benchmark", "mini-game", "--limit", "4")


@pytest.mark.slow
def test_from_runs_to_a_table_of_heads(tmp_path, monkeypatch, capsys):
    dev, tune = tmp_path / "dev", tmp_path / "tune"
    for split, out in (("dev", dev), ("tune", tune)):
        words = ("--split", split, "--views", "phrase", "--out", out)
        assert probe(monkeypatch, capsys, "extract", *MODEL, *words)[0] == 0
    code, _, err = probe(monkeypatch, capsys, "heads", dev, "--select", tune)
    assert code == 2
    assert f"holds no attention; add it: probe extract --out {dev} --add-view attention" in err
    for out in (dev, tune):
        assert (
            probe(monkeypatch, capsys, "extract", "--out", out, "--add-view", "attention", "--add-view", "relevance")[0]
            == 0
        )
    assert "relevance.gradient-attention" in Run.open(dev).site("decoder.2").views
    code, out, err = probe(monkeypatch, capsys, "heads", dev, "--select", tune, "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    kinds = {row["kind"] for row in rows}
    assert kinds == {
        "even", "centre", "ceiling", "own", "raw", "sink-filtered", "rollout", "gradient", "gradient-attention"
    }  # fmt: skip
    assert {path.name for path in (dev / "heads").iterdir()} == {
        "heads.csv", "heads.json", "summary.md", "heads-canvas.png", "heads-canvas.svg", "heads-candidate.png",
        "heads-candidate.svg",
    }  # fmt: skip
    code, out, _ = probe(monkeypatch, capsys, "heads", dev, "--select", tune, "--kind", "raw", "--sites", "encoder.*")
    assert code == 0
    assert "| raw | encoder." in out
    code, _, err = probe(monkeypatch, capsys, "heads", dev, "--select", dev)
    assert (code, "4 images are in both runs" in err) == (2, True)
