"""Writing the table of heads as CSV and JSON, with a page that says in words what it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from grounding.errors import BadInput

if TYPE_CHECKING:
    from extract.reader import Run

SUMMARY, TABLE, DESCRIPTION = "summary.md", "heads.csv", "heads.json"
ALPHA = 0.05
_TITLES = {
    "canvas": "On the whole canvas: which candidate, and where in it",
    "candidate": "Within the right candidate alone",
}
_BASELINES = {"even": "chance (an even map)", "centre": "centre of every candidate", "own": "the model's own grounding",
              "ceiling": "ceiling (the truth on the map's own cells)"}  # fmt: skip
_TEXT = {"kind": str, "site": str, "stage": str, "head": str, "scope": str, "measure": str}


def write_heads(table: pd.DataFrame, description: dict[str, Any], out: Path) -> None:
    """Write ``heads.csv``, ``heads.json`` (what it rests on, and the rows) and ``summary.md`` into a folder.

    Raises BadInput when ``out`` cannot be a folder.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"out {str(out)!r} is not a folder") from error
    table.to_csv(out / TABLE, index=False)
    rows = json.loads(table.to_json(orient="records", double_precision=6))
    (out / DESCRIPTION).write_text(json.dumps(description | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    (out / SUMMARY).write_text(summarise_heads(table, description), encoding="utf-8")


def read_heads(folder: Path, run: Run, required: bool = True) -> pd.DataFrame | None:
    """The table of heads of ``run``. Without one: BadInput, or None where it is not ``required``.

    Raises BadInput for the table of another run.
    """
    if not required and not (folder / TABLE).is_file():
        return None
    for name in (TABLE, DESCRIPTION):
        if not (folder / name).is_file():
            raise BadInput(f"heads {str(folder)!r} holds no {name}; accepted: a folder that probe heads wrote")
    scored = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["run"]["identity_hash"]
    own = run.manifest["identity_hash"]
    if scored != own:
        raise BadInput(f"heads {str(folder)!r} is of run {scored[:12]}; accepted: one of this run, {own[:12]}")
    return pd.read_csv(folder / TABLE, dtype=_TEXT, keep_default_na=True).fillna({"site": "", "stage": ""})


def summarise_heads(table: pd.DataFrame, description: dict[str, Any]) -> str:
    """A page of Markdown: baselines, the head that the tuning run chose of each kind, and how many beat the centre."""
    run, select = description["run"], description["select"]
    lines = [
        "# Does attention say where a phrase is?",
        "",
        f"{run['phrases']} phrases in {run['images']} images of split {run['split']}; thresholds and the best head of "
        f"each kind chosen on {select['phrases']} phrases in {select['images']} images of split {select['split']}. "
        "95 % intervals over images; p against the centre baseline, corrected (Holm) for all heads of a scope and "
        "measure.",
    ]
    if run["left_out"]:
        lines += ["", f"{run['left_out']} phrases without a region were left out."]
    if run["alone"] and "sink-filtered" in set(table["kind"]):
        lines += ["", f"{run['alone']} phrases are the only one of their example, so nothing is filtered out of them."]
    for scope in table["scope"].unique():
        of_scope = table[table["scope"] == scope]
        lines += ["", f"## {_TITLES[scope]}"]
        for measure in of_scope["measure"].unique():
            lines += ["", *_measure_lines(of_scope[of_scope["measure"] == measure], measure)]
    lines += ["", "A map that points at a region shows where information is read, not that the answer rests on it.", ""]
    return "\n".join(lines)


def _measure_lines(rows: pd.DataFrame, measure: str) -> list[str]:
    name = {"pointing": "Pointing", "iou": "Mean IoU"}[measure]
    lines = [
        f"### {name}",
        "",
        "| map | where | value | minus centre | p (Holm) | minus own |",
        "|---|---|---|---|---|---|",
    ]
    for kind, words in _BASELINES.items():
        for _, row in rows[(rows["kind"] == kind) & rows["value"].notna()].iterrows():
            lines.append(f"| {words} | | {_figure(row, '')} | | | |")
    for _, row in rows[rows["selected"]].iterrows():
        where = f"{row['site']}, {_head(row['head'])}"
        p = f"{row['p_holm']:.2g}"
        against = _figure(row, "own_gain")
        lines.append(f"| {row['kind']} | {where} | {_figure(row, '')} | {_figure(row, 'gain')} | {p} | {against} |")
    lines.append("")
    for kind, same in rows[rows["p"].notna()].groupby("kind", sort=False):
        beating = int((same["p_holm"] < ALPHA).sum())
        lines.append(f"* {kind}: {beating} of {len(same)} maps are above the centre baseline after correction.")
    return [*lines, "", *_reading(rows)]


def _reading(rows: pd.DataFrame) -> list[str]:
    """What follows from the selected heads, in a sentence."""
    chosen = rows[rows["selected"]]
    found = chosen[chosen["p_holm"] < ALPHA]
    if found.empty:
        return ["No selected head is above the centre baseline: nothing here shows that attention grounds phrases."]
    best = found.loc[found["tuning_value"].idxmax()]
    lines = [
        f"Chosen on the tuning run, `{best['site']}` {_head(best['head'])} ({best['kind']}) is above the centre "
        "baseline: where phrases are can be read off it."
    ]
    if best["own_gain_low"] > 0:
        lines.append("It is also above the model's own grounding.")
    elif best["own_gain_high"] < 0:
        lines.append("The model's own grounding is better still.")
    return lines


def _head(head: str) -> str:
    return {"mean": "mean of heads", "all": "all heads"}.get(head, f"head {head}")


def _figure(row: pd.Series, name: str) -> str:
    value, prefix = row[name or "value"], f"{name}_" if name else ""
    if pd.isna(value):
        return ""
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    sign = "+" if name else ""
    return f"{value:{sign}.3f}" + ("" if pd.isna(low) else f" [{low:{sign}.3f}, {high:{sign}.3f}]")
