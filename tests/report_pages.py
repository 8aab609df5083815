"""Reports of small runs made by hand, for tests of their files and of the pages in a browser."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from fake_gallery import SITES, FakeRun, make_example, make_run

from visualize.report import Subject, Words, write_report

EVIL = '<script>window.hacked=1</script><img src=x onerror="window.hacked=2"></script>\u2028'
HEADS = 4


def chunk(report: Path, name: str):
    """What a chunk of a report holds."""
    text = (report / "data" / f"{name}.js").read_text(encoding="ascii")
    found = re.fullmatch(r'probeReport\.chunk\("([^"]+)",(.*)\);\n', text, flags=re.DOTALL)
    assert found is not None
    assert found[1] == name
    return json.loads(found[2])


def unpack(text: str, dtype=np.uint8) -> np.ndarray:
    """The bytes of a packed array."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


@dataclass(frozen=True)
class PlantedProbes:
    """Maps of probes ``[phrases, rows, columns]`` at the first site, half of them at the second."""

    run: FakeRun
    cells: np.ndarray
    part: Mapping[int, str]
    sites: tuple[str, ...] = SITES[:2]

    def read(self, site: str, phrases: np.ndarray) -> np.ndarray:
        return self.cells[phrases].ravel() / (1 + self.sites.index(site))


def write_probed(out: Path, count: int):
    """A report of so many examples with maps of probes, which find the second phrase of the second example alone.

    Returns its subject, and the examples by id.
    """
    examples = [make_example(number) for number in range(count)]
    run = make_run(examples)
    cells = np.zeros((len(run.phrases), 24, 4))
    cells[4, 9, 2] = 0.75
    probed = PlantedProbes(run, cells, {0: "train", 1: "test"})
    subject = Subject(run, "x", probed=probed)
    write_report([subject], out, by_id(examples))
    return subject, by_id(examples)


def items_of(run: FakeRun, right: bool = True) -> pd.DataFrame:
    """A probe that finds every other phrase from the second layer on; the last phrase was not asked."""
    asked = range(len(run.phrases) - 1)
    rows = [
        {"question": "alignment", "probe": "linear", "site": site, "seed": 0, "phrase": phrase, "iou": np.nan,
         "correct": float(layer > 0 and phrase % 2 == 0)}
        for phrase in asked
        for layer, site in enumerate(SITES)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def plant_attention(run: FakeRun, row: int, head: int, cell: tuple[int, int]) -> None:
    """All attention of a phrase's head in one cell of the canvas."""
    run.attentions[row][head] = 0
    run.attentions[row][head][cell] = 1


def two_runs(count: int = 6, **options):
    """Two runs of the same examples, the second with heatmaps and a sweep; and the examples."""
    examples = [make_example(number) for number in range(count)]
    one, other = make_run(examples, seed=1, **options), make_run(examples, heatmaps=True, seed=2, **options)
    other.examples["task_correct"] = ~other.examples["task_correct"]
    right = other.examples["task_correct"]
    target = other.examples["target_index"]
    other.examples["answer_index"] = np.where(right, target, (target + 1) % 6)
    return one, other, examples


def write_two(out: Path, count: int = 6):
    """A report of two runs; returns (what was written, subjects, examples)."""
    one, other, examples = two_runs(count)
    found = "# Found\n\nBest site `block.1`: **0.5**.\n\n| a | b |\n|---|---|\n| x | 1 |\n"
    words = [Words("What can be read off", found)]
    subjects = [Subject(one, "first"), Subject(other, "second", items=items_of(other), words=words)]
    return write_report(subjects, out, by_id(examples), budget_mb=30), subjects, examples


def by_id(examples):
    """Examples by id."""
    return {example.id: example for example in examples}
