"""An evaluation as files: tidy tables as CSV and Parquet, a summary as JSON and Markdown."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from grounding.evaluation import Evaluation


def write_evaluation(evaluation: Evaluation, out: Path | str) -> None:
    """Write ``examples``, ``phrases``, ``settings`` (IoU of each phrase under every protocol, rank and threshold),
    ``joint`` (correlations under each of them) and ``bars`` as ``.csv`` and ``.parquet``, and ``summary.json`` and
    ``.md``.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
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
    (out / "summary.json").write_text(json.dumps(evaluation.to_json(summary), indent=1) + "\n", encoding="utf-8")
    (out / "summary.md").write_text(evaluation.to_markdown(summary), encoding="utf-8")


def write_table(table: pd.DataFrame, stem: Path) -> None:
    """The table as ``stem.csv`` and ``stem.parquet``."""
    table.to_csv(stem.with_suffix(".csv"), index=False)
    table.to_parquet(stem.with_suffix(".parquet"), index=False)
