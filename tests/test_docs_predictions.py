"""``docs/predictions.md`` is followed literally: what it asks for, gives, runs and prints."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from test_probe_cli import run

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "predictions.md"


def blocks(language: str) -> list[str]:
    """The blocks of the guide in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_ids_and_phrases_are_those_that_it_shows(capsys):
    (code,) = blocks("python")
    exec(compile(code, GUIDE.name, "exec"), {})
    assert capsys.readouterr().out == blocks("text")[0]


def test_the_file_gives_the_figures_that_it_shows(monkeypatch, capsys, tmp_path):
    (content,), (command,) = blocks("json"), blocks("sh")
    (tmp_path / "theirs.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(monkeypatch, capsys, *shlex.split(command)[1:])
    assert code == 0
    shown = blocks("text")[1].splitlines()
    assert len(shown) == 6
    assert [line for line in out.splitlines() if line in shown] == shown


def test_every_field_of_an_exported_file_is_explained(monkeypatch, capsys, tmp_path):
    for name in ("mdetr-grounded", "vilt-aligner-grounded"):
        words = ["--ckpt", name, "--benchmark", "mini-game", "--limit", 1, "--export-predictions", tmp_path / "p.json"]
        assert run(monkeypatch, capsys, "evaluate", *words)[0] == 0
        exported = json.loads((tmp_path / "p.json").read_text())
        fields = {*exported} | {field for name in ("images", "annotations", "answers") for field in exported[name][0]}
        named = set(re.findall(r"`([a-z_]+)`", GUIDE.read_text(encoding="utf-8")))
        assert fields <= named
