"""``docs/differences.md`` decides on every oddity that came with the reference numbers, and names real options."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from grounding.finetune.settings import FinetuneSettings
from grounding.models.mdetr import MdetrConfig
from probe.cli.app import app

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "differences.md"


def test_every_recorded_oddity_has_a_decision(shared_data):
    readme = (shared_data / "reference" / "README.md").read_text()
    oddities = re.findall(r"^(\d+)\. ", readme.partition("## 4. Oddities")[2], re.MULTILINE)
    assert len(oddities) == 18
    rows = dict(re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE))
    assert list(rows) == oddities
    assert all(len(decision) > 5 for decision in rows.values())


def test_the_options_it_names_are_there():
    text = DOCUMENT.read_text()
    command = typer.main.get_command(app)
    known = {o for c in command.commands.values() for parameter in c.params for o in parameter.opts}  # type: ignore[attr-defined]
    named = set(re.findall(r"(?<![-\w])--[a-z][a-z-]+", text))
    assert {"--losses", "--metrics", "--config", "--data-seed"} <= named <= known
    fields = set(re.findall(r"--config (\w+)=", text))
    assert {"task_layer", "shorter_side"} <= fields <= set(MdetrConfig.__dataclass_fields__)
    assert "losses" in FinetuneSettings.__dataclass_fields__
