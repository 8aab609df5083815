"""The guide is followed literally: every block of it is run, in order, in one module."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grounding.models.hf import ADAPTERS

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "adding-a-model.md"


def blocks() -> list[str]:
    """The Python blocks of the guide."""
    return re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def follow(blocks: list[str]) -> None:
    """Run them in one namespace; the table is left as it was."""
    before = dict(ADAPTERS)
    try:
        names: dict[str, object] = {"__name__": "guide"}
        for number, block in enumerate(blocks):
            exec(compile(block, f"{GUIDE.name}, block {number}", "exec"), names)
    finally:
        ADAPTERS.clear()
        ADAPTERS.update(before)


def test_the_guide_works_as_it_is_written():
    assert len(blocks()) == 5
    follow(blocks())
    assert "metaclip_2" not in ADAPTERS


@pytest.mark.parametrize(
    ("block", "right", "wrong"),
    [
        (0, '"skip": 1', '"skip": 0'),
        (0, "seen[:, 0]", "seen[:, 1]"),
        (1, '"metaclip_2"', '"metaclip"'),
        (4, "=image+text", "=2+image+text"),
    ],
)
def test_a_mistake_in_it_is_noticed(block, right, wrong):
    parts = blocks()
    assert right in parts[block]
    parts[block] = parts[block].replace(right, wrong)
    with pytest.raises(Exception, match=r"metaclip_2|layers.0|Tensor-likes|model_type|assert|^$"):
        follow(parts)
