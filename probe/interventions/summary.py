"""A page of Markdown about interventions: what each did, beside its control, and what does not follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from grounding.values import counted

FEWEST_IMAGES = 10  # an interval over fewer images is too narrow to conclude from
_HEADINGS = {
    "erase": "Is it used? A concept erased at one site",
    "patch": "Where does the minimal change matter? States patched at one site",
    "knockout": "Is it looked up? No attention from phrases to their regions",
}
_SCORES = {"accuracy": "Task accuracy", "mean_iou": "Mean IoU"}


def summarise(table: pd.DataFrame, checks: pd.DataFrame, description: Mapping[str, Any]) -> str:
    """The page. Effects are told site by site; nothing is said to follow from fewer than FEWEST_IMAGES images."""
    data, left_out = description["benchmark"], description.get("left_out", 0)
    what = "pairs" if description["method"] == "patch" else "examples"
    lines = [
        f"# {_HEADINGS[description['method']]}",
        "",
        f"`{description['checkpoint']['name']}` on {data['name']} {data['split']}: {description['examples']} {what}"
        + (f", {left_out} left out because erasers were fitted on their images" if left_out else "")
        + ". Brackets: 95 % intervals over images.",
    ]
    if _is_few(table):
        counts = f"{table['n_images'].min()}; at least {FEWEST_IMAGES} are needed"
        lines += ["", f"Too few images to conclude anything: {counts}."]
    tell = {"erase": _erasure, "patch": _patching, "knockout": _knockout}[description["method"]]
    return "\n".join([*lines, "", *tell(table, checks, description), ""])


def _is_few(table: pd.DataFrame) -> bool:
    return bool(table["n_images"].min() < FEWEST_IMAGES)


def _erasure(table: pd.DataFrame, checks: pd.DataFrame, description: Mapping[str, Any]) -> list[str]:
    left = checks[(checks["after_low"] > checks["chance"] + 1e-3)]
    reads = (
        "nothing beyond chance from any of them: the erasure did its work."
        if left.empty
        else f"more than chance at {_names(left['site'])}: there the erasure is not complete on unseen rows."
    )
    return [
        f"Erased by {description['eraser']}; control: the mean of {description['draws']} random subspaces of equal "
        f"rank, which hold {table['removed_control'].mean():.0%} of the variance on average, where the concept holds "
        f"{table['removed'].mean():.0%}. A linear probe, trained on the erased states of the run, reads {reads}",
        "",
        *_effects(table),
        "An effect beyond the control's says that what is linear in the concept at that site is used later on. None "
        "does not say that it is not: it may be there in another form, or be read again from tokens that were left.",
    ]


def _knockout(table: pd.DataFrame, checks: pd.DataFrame, description: Mapping[str, Any]) -> list[str]:
    return [
        "Attention from each phrase to the patches of its own regions is cut, in one layer or up to it; control: to "
        f"equally many other patches of the same image, the mean of {description['draws']} draws. "
        f"{counted(description['uncut_phrases'], 'phrase')} with too few of them count as they are.",
        "",
        *_effects(table),
        "An effect beyond the control's says that phrases take up something there that is used. None does not say that "
        "grounding does not pass: it can go by other tokens, or from patches to phrases.",
    ]


def _patching(table: pd.DataFrame, checks: pd.DataFrame, description: Mapping[str, Any]) -> list[str]:
    lines = [
        "The changed game runs with the clean game's states in some tokens of one site. Figures are normalised logit "
        "differences: 0, the answer stays that of the changed game; 1, it is again that of the clean one.",
    ]
    for kind, rows in table.groupby("pairs", sort=False):
        counts = description["pairs"][kind]
        lines += ["", f"## {kind} changed", ""]
        lines.append(
            f"{counts['counted']} pairs count: of {counts['pairs']}, {counts['same_tokens']} have equally many tokens, "
            "and of those the others do not move the model the right way."
        )
        targets = list(dict.fromkeys(rows["target"]))
        lines += ["", f"| site | {' | '.join(targets)} |", "|" + "---|" * (1 + len(targets))]
        for site, own in rows.groupby("site", sort=False):
            by_target = {row["target"]: figure(row) for _, row in own.iterrows()}
            lines.append(f"| `{site}` | {' | '.join(by_target.get(name, '') for name in targets)} |")
        parts = rows[rows["target"] != "everything"]
        if len(parts):
            most = parts.loc[parts["effect"].idxmax()]
            lines += ["", f"Most is restored by `{most['target']}` at `{most['site']}`: {figure(most)}."]
    unknown = [kind for kind, counts in description["pairs"].items() if not counts["counted"]]
    if unknown:
        lines += ["", f"No pair of kind {', '.join(unknown)} moves the model the right way: nothing is said of them."]
    return [
        *lines,
        "",
        f"{table['low'].notna().sum()} intervals are not corrected for their number. States that restore the answer "
        "carry what the change decides; that others do not may also mean that the same is carried twice.",
    ]


def _effects(table: pd.DataFrame) -> list[str]:
    """The table of effects, and for each target what exceeds the control, unless images are few."""
    lines = _effect_table(table)
    if _is_few(table):
        return [*lines, ""]
    for target, rows in table.groupby("target", sort=False):
        lines += ["", f"## {target}", ""]
        lines += [_specific(own, str(score)) for score, own in rows.groupby("score", sort=False)]
    count = int((table["condition"] == "specific").sum())
    corrected = f"{count} intervals are not corrected for their number: about one in twenty leaves 0 out by chance."
    return [*lines, "", corrected]


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


def figure(row: pd.Series) -> str:
    """An effect with its interval."""
    if pd.isna(row["low"]):
        return f"{row['effect']:+.3f} (no interval)"
    return f"{row['effect']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
