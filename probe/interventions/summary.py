"""A page of Markdown about interventions: what each did, beside its control, and what does not follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

FEWEST_IMAGES = 10  # an interval over fewer images is too narrow to conclude from
_SCORES = {"accuracy": "Task accuracy", "mean_iou": "Mean IoU"}


def summarise(table: pd.DataFrame, checks: pd.DataFrame, description: Mapping[str, Any]) -> str:
    """The page. Effects are told site by site; nothing is said to follow from fewer than FEWEST_IMAGES images."""
    settings = description["settings"]
    data = description["benchmark"]
    heading, parts = {"erase": (_erasure_heading(settings), _erasure)}[description["method"]]
    lines = [
        f"# {heading}",
        "",
        f"`{description['checkpoint']['name']}` on {data['name']} {data['split']}: {description['examples']} examples"
        + (f", {description['left_out']} left out" if description["left_out"] else "")
        + ". Brackets: 95 % intervals over images, of paired differences.",
    ]
    if table["n_images"].min() < FEWEST_IMAGES:
        counts = f"{table['n_images'].min()}; at least {FEWEST_IMAGES} are needed"
        lines += ["", f"Too few images to conclude anything: {counts}."]
    return "\n".join([*lines, "", *parts(table, checks), ""])


def _erasure_heading(settings: Mapping[str, Any]) -> str:
    return f"Is it used? Erasure by {settings['eraser']}"


def _erasure(table: pd.DataFrame, checks: pd.DataFrame) -> list[str]:
    left = checks[(checks["after_low"] > checks["chance"] + 1e-3)]
    lines = [
        "A linear probe, trained on the erased states of the run, reads "
        + (
            "nothing beyond chance from any of them: the erasure did its work."
            if left.empty
            else f"more than chance at {_names(left['site'])}: there the erasure is not complete on unseen rows."
        ),
        "",
    ]
    lines += _effect_table(table)
    for target, rows in table.groupby("target", sort=False):
        lines += ["", f"## {target}", ""]
        for score, own in rows.groupby("score", sort=False):
            lines.append(_specific(own, str(score)))
    return [
        *lines,
        "",
        f"{_count(table)} intervals are not corrected for their number: about one in twenty leaves 0 out by chance.",
        "An effect beyond the control's says that what is linear in the concept at that site is used later on. None "
        "does not say that it is not: it may be there in another form, or be read again from tokens that were left.",
    ]


def _effect_table(table: pd.DataFrame) -> list[str]:
    rows = table[table["condition"] != "specific"]
    lines = ["| site | what | score | untouched | changed | effect | control |", "|" + "---|" * 7]
    for (site, _, score), pair in rows.groupby(["site", "target", "score"], sort=False):
        own, control = (pair[pair["condition"] == name].iloc[0] for name in ("intervention", "control"))
        lines.append(
            f"| `{site}` | {_what(own)} | {_SCORES[str(score)]} | {own['before']:.3f} | {own['after']:.3f} | "
            f"{figure(own)} | {figure(control)} |"
        )
    return lines


def _what(row: pd.Series) -> str:
    rank = "" if pd.isna(row["rank"]) else f" (rank {row['rank']}, {row['removed']:.0%} of the variance)"
    return f"{row['target']}{rank}"


def _specific(rows: pd.DataFrame, score: str) -> str:
    """Where the intervention did more than its control, in a sentence."""
    name = _SCORES[score]
    found = rows[rows["condition"] == "specific"]
    worse, better = found[found["high"] < 0], found[found["low"] > 0]
    if worse.empty and better.empty:
        return f"{name}: nowhere clearly more than the control."
    parts = []
    if len(worse):
        most = worse.loc[worse["effect"].idxmin()]
        parts.append(f"falls by more than under the control at {_names(worse['site'])}; most at {_at(most)}")
    if len(better):
        most = better.loc[better["effect"].idxmax()]
        parts.append(f"is higher than under the control at {_names(better['site'])}; most at {_at(most)}")
    return f"{name} {'; it '.join(parts)}."


def _at(row: pd.Series) -> str:
    return f"`{row['site']}`: {figure(row)}"


def _names(sites: pd.Series) -> str:
    return ", ".join(f"`{site}`" for site in dict.fromkeys(sites))


def _count(table: pd.DataFrame) -> int:
    return int((table["condition"] == "specific").sum())


def figure(row: pd.Series) -> str:
    """An effect with its interval."""
    if pd.isna(row["low"]):
        return f"{row['effect']:+.3f} (no interval)"
    return f"{row['effect']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
