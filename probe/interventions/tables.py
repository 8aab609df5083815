"""The tidy table of interventions as CSV and JSON, and a page that says in words what it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from grounding.errors import BadInput
from grounding.folders import make_folder
from probe.interventions.summary import summarise

TABLE, CHECKS, DESCRIPTION, SUMMARY = "interventions.csv", "checks.csv", "interventions.json", "summary.md"
COLUMNS = [
    *("method", "site", "stage", "layer", "target", "pairs", "condition", "score"),
    *("before", "after", "effect", "low", "high", "n", "n_images"),
    *("rank", "removed", "removed_control"),
]


def tidy(rows: Sequence[Mapping[str, Any]], method: str) -> pd.DataFrame:
    """Rows as a table with COLUMNS, in the order given, which is that of computation.

    target: what was changed: a concept, a group of tokens, a reach of knockout. pairs: kind of minimal change, of
    patching. condition: ``intervention``, its ``control``, and ``specific``, the first minus the second. effect, low,
    high: with its 95 % interval over images; a difference (``after`` - ``before``), of patching a normalised logit
    difference. rank, removed: dimensions and share of variance that an erasure took away.
    """
    table = pd.DataFrame(rows).assign(method=method).reindex(columns=COLUMNS)
    for name in ("before", "after", "effect", "low", "high", "removed", "removed_control"):
        table[name] = table[name].astype(float)
    table["pairs"] = table["pairs"].astype(object).fillna("").astype(str)
    table["rank"] = table["rank"].astype("Int64")
    return table


def write_interventions(table: pd.DataFrame, checks: pd.DataFrame, description: Mapping[str, Any], out: Path) -> None:
    """Write ``interventions.csv``, ``checks.csv`` (of erasures), ``interventions.json`` (both, and what they rest on)
    and ``summary.md`` into a folder.
    """
    make_folder(out)
    table.to_csv(out / TABLE, index=False)
    if len(checks):
        checks.to_csv(out / CHECKS, index=False)
    records = {
        name: json.loads(one.to_json(orient="records", double_precision=6))
        for name, one in (("rows", table), ("checks", checks))
    }
    (out / DESCRIPTION).write_text(json.dumps({**description, **records}, indent=1) + "\n", encoding="utf-8")
    (out / SUMMARY).write_text(summarise(table, checks, description), encoding="utf-8")


def read_interventions(folder: Path, checkpoint: str | None = None) -> pd.DataFrame:
    """The tidy table in a folder. checkpoint: content that it must be of; BadInput for another, or without a table."""
    for name in (TABLE, DESCRIPTION):
        if not (folder / name).is_file():
            raise BadInput(f"interventions {str(folder)!r} hold no {name}; accepted: a folder of probe intervene")
    there = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["checkpoint"]["content"]
    if checkpoint is not None and there != checkpoint:
        raise BadInput(
            f"interventions {str(folder)!r} are of checkpoint {there[:12]}; accepted: those of {checkpoint[:15]}"
        )
    return pd.read_csv(folder / TABLE, dtype={"pairs": str}).fillna({"pairs": ""})
