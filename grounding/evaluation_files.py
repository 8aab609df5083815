"""An evaluation as files, not over those of another: tidy tables as CSV and Parquet, a summary as JSON, Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from grounding.comparison import differences_told
from grounding.evaluation import Evaluation
from grounding.folders import check_folder, make_folder, read_note, refuse_another

SUMMARY, DIFFERENCES = "summary.json", "differences.json"
PLACES = ("checkpoint", "predictions", "root")  # where something is, which says nothing of what it is


def check_evaluation_out(out: Path | str | None, about: Mapping[str, Any]) -> None:
    """BadInput where ``out`` cannot be a folder, or holds an evaluation of something else, which would be lost.

    about: as in ``Evaluation``. A checkpoint, predictions and benchmark files are the same anywhere as long as their
    content is.
    """
    check_folder(out)
    there = None if out is None else read_note(Path(out) / SUMMARY, "about", "an evaluation")
    if out is not None and there is not None and _anywhere(there) != _anywhere(about):
        refuse_another(out, "another evaluation", there, about)


def _anywhere(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in about.items() if key not in PLACES}


def check_comparison_out(out: Path | str | None, names: Sequence[str]) -> None:
    """BadInput where ``out`` cannot be a folder, or holds the comparison of other checkpoints than those ``names``."""
    check_folder(out)
    if out is not None and (there := read_note(Path(out) / DIFFERENCES, "about", "a comparison")) is not None:
        refuse_another(out, "another comparison", there, _compared(names))


def write_comparison(differences: pd.DataFrame, names: Sequence[str], out: Path | str) -> None:
    """Write ``differences`` as ``.csv``, ``.parquet`` and ``.md``, and in ``.json`` the checkpoints they are of."""
    out = make_folder(out)
    write_table(differences, out / "differences")
    (out / "differences.md").write_text(differences_told(differences), encoding="utf-8")
    (out / DIFFERENCES).write_text(json.dumps({"about": _compared(names)}, indent=1) + "\n", encoding="utf-8")


def _compared(names: Sequence[str]) -> dict[str, list[str]]:
    return {"checkpoints": sorted(names)}


def write_evaluation(evaluation: Evaluation, out: Path | str) -> None:
    """Write ``examples``, ``phrases``, ``settings`` (IoU of each phrase under every protocol, rank and threshold),
    ``joint`` (correlations under each of them) and ``bars`` as ``.csv`` and ``.parquet``, and ``summary.json`` and
    ``.md``.
    """
    out = make_folder(out)
    summary = evaluation.summary()
    tables = {
        "examples": evaluation.per_example,
        "phrases": evaluation.per_phrase,
        "settings": evaluation.sensitivity,
        "joint": evaluation.joint_table(),
        "bars": evaluation.bars(),
    }
    for name, table in tables.items():
        write_table(table, out / name)
    (out / SUMMARY).write_text(json.dumps(evaluation.to_json(summary), indent=1) + "\n", encoding="utf-8")
    (out / "summary.md").write_text(evaluation.to_markdown(summary), encoding="utf-8")


def write_table(table: pd.DataFrame, stem: Path) -> None:
    """The table as ``stem.csv`` and ``stem.parquet``."""
    table.to_csv(stem.with_suffix(".csv"), index=False)
    table.to_parquet(stem.with_suffix(".parquet"), index=False)
