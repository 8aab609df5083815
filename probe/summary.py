"""A page of words: for each question and probe the best site, how it stands against its controls, what follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from grounding.best_site import best_site
from probe.conditions import DIFFERENCES as NAMES
from probe.questions import QUESTIONS, Question
from probe.settings import BASELINES
from probe.significance import LEVEL, enough_resamples
from probe.summary_joined import joined_lines
from probe.wording import figure

# Of a difference from the same probe on something else: how its line begins, and what follows from one above 0.
DIFFERENCES = {
    "selectivity": ("Selectivity (minus control labels)", "more than the same probe memorises of random labels"),
    "above-position-only": (
        "Above the same probe on places instead of states",
        "more than where candidates lie tells it",
    ),
    "above-random-model": (
        "Above the same probe on a model with fresh weights",
        "more than the architecture gives without training",
    ),
}
_OWN = {
    "selectivity": "the score may be the probe's own doing",
    "above-position-only": "places may be all that is read",
    "above-random-model": "the model may have learned none of it",
}
FEWEST_IMAGES = 10  # an interval over fewer images is too narrow to conclude from


def summarise(table: pd.DataFrame, joined: pd.DataFrame, description: dict[str, Any]) -> str:
    """A page of Markdown: what can and cannot be concluded, of each question about each run.

    Nothing is said to follow from fewer than ``FEWEST_IMAGES`` test images. The best site is the one of the lowest
    validation loss of the first seed, so that test figures did not choose it.
    """
    lines = [
        "# What can be read off which sites?",
        "",
        "Figures are of the test part, with 95 % intervals over images.",
    ]
    several = len(description["runs"]) > 1
    for asked in description["asked"]:
        of = f", run `{asked['run']}`" if several else ""
        lines += ["", f"## {asked['question']}{of}", ""]
        rows, beside = (t[(t["run"] == asked["run"]) & (t["question"] == asked["question"])] for t in (table, joined))
        lines += _question_lines(rows, beside, asked, description["settings"])
    lines += ["", "A probe shows what can be read off a site, not that the model uses it.", ""]
    return "\n".join(lines)


def few_images(description: dict[str, Any]) -> set[tuple[str, str]]:
    """The (run, question) whose test images are too few to conclude anything."""
    return {(asked["run"], asked["question"]) for asked in description["asked"] if _is_few(asked)}


def _is_few(asked: dict[str, Any]) -> bool:
    return asked["splits"][0]["parts"]["test"]["images"] < FEWEST_IMAGES


def _question_lines(
    table: pd.DataFrame, joined: pd.DataFrame, asked: dict[str, Any], settings: dict[str, Any]
) -> list[str]:
    question, first = QUESTIONS[asked["question"]], asked["splits"][0]
    test = first["parts"]["test"]
    count = test.get("phrases", test.get("items"))
    lines = [
        f"Question: {question.words} {count} test {question.per}s in {test['images']} images. {asked['left_out']} "
        f"{question.per}s that cannot be asked about were left out."
    ]
    lines += [*asked["notes"], *_control_lines(asked["controls"], question, settings["controls"])]
    few = _is_few(asked)
    if few:
        counts = f"{test['images']}; at least {FEWEST_IMAGES} are needed"
        lines += ["", f"Too few test images to conclude anything: {counts}."]
    main = table[table["score"] == question.scores[0]]
    of_seed = main[main["seed"] == first["seed"]]
    baselines = [name for name in of_seed["probe"].unique() if name in BASELINES]
    lines += _resample_lines(of_seed["site"].nunique(), settings["resamples"])
    for name in (name for name in of_seed["probe"].unique() if name not in baselines):
        lines += ["", f"### {name}", "", *_probe_lines(of_seed, name, question, baselines, few)]
        lines += _spread_lines(main, name, question)
        lines += joined_lines(
            joined[joined["seed"] == first["seed"]], name, _best(of_seed, name, question)["site"], few
        )
    if first["seen_types"] is not None:
        lines += ["", _memorable(first["seen_types"])]
    return lines


def _memorable(seen: float) -> str:
    """How much of the test part the control labels could be memorised for."""
    told = f"Control labels could be memorised for the {seen:.0%} of test phrases whose type occurs in train"
    if seen == 1:
        return f"{told}."
    return f"{told}; for the others the control is at chance by construction, which flatters selectivity."


def _control_lines(used: list[str], question: type[Question], asked: list[str]) -> list[str]:
    """Which of the sweep's controls are not of the question, and that it stands alone where none is."""
    lacked = [name for name in asked if name not in used]
    lines = [f"Not of this question, and so not beside it: the control(s) {', '.join(lacked)}."] if lacked else []
    if not used:
        has = f"it has: {', '.join(question.controls)}" if question.controls else "the question has none"
        lines.append(f"No control stands beside its figures; {has}.")
    return lines


def _resample_lines(sites: int, resamples: int) -> list[str]:
    """That nothing can pass the correction, where p cannot be small enough for it."""
    if sites / (1 + resamples) <= LEVEL:
        return []
    return [
        "",
        f"With {resamples:,} resamples p is at least {1 / (1 + resamples):.2g}, so that nothing can pass Holm's "
        f"correction over {sites} sites: {enough_resamples(sites):,} resamples are enough.",
    ]


def _probe_lines(main: pd.DataFrame, name: str, question: type[Question], baselines: list[str], few: bool) -> list[str]:
    """Sentences about one probe: best site, controls there, and, unless images are few, the reading."""
    real, best = _real(main, name, question), _best(main, name, question)
    at_site = main[main["site"] == best["site"]]
    lines = [
        f"Best site (by validation loss, of {len(real)}): `{best['site']}`. {question.figure} {figure(best)}; "
        f"chance {best['chance']:.3f}."
    ]
    mine = at_site[at_site["probe"] == name].set_index("condition", drop=False)
    over = {other: mine.loc[NAMES[other]] for other in baselines}
    others = [at_site[at_site["probe"] == other].iloc[0] for other in baselines]
    lines += [f"The {row['probe']} control at that site: {figure(row)}." for row in others]
    differences = mine[mine["condition"].isin(list(DIFFERENCES))]
    if not few:
        lines.append(_reading(best, over, differences, question))
    lines += [f"Above the {other} control: {figure(row)}." for other, row in over.items()]
    silent = few or not _above(best, best["chance"])  # beside nothing, a difference has no reading
    for _, row in differences.iterrows():
        introduction, more = DIFFERENCES[row["condition"]]
        verdict = more if _above(row, 0.0) else f"not clearly {more}: {_OWN[row['condition']]}"
        lines.append(f"{introduction}: {figure(row)}{'' if silent else f', {verdict}'}.")
    return lines if few else lines + _corrected_lines(real)


def _corrected_lines(real: pd.DataFrame) -> list[str]:
    """Which sites are above chance, and above every control of the same probe, corrected for how many there are."""
    after = f"after Holm's correction over {len(real)} sites" if len(real) > 1 else "at 5 %"
    lines = []
    for column, bound in (("p_chance_holm", "chance"), ("p_control_holm", "every one of its controls")):
        known = real[real[column].notna()]
        missed = known[known[column] > LEVEL]
        if len(missed):
            names = ", ".join(f"`{site}`" for site in missed["site"])
            lines.append(f"Not shown to be above {bound} {after}: {names}.")
    return lines


def _real(main: pd.DataFrame, name: str, question: type[Question]) -> pd.DataFrame:
    return main[(main["probe"] == name) & (main["condition"] == question.name)]


def _best(main: pd.DataFrame, name: str, question: type[Question]) -> pd.Series:
    """The row of the site of the lowest validation loss."""
    return best_site(_real(main, name, question))


def _reading(best: pd.Series, over: dict[str, pd.Series], differences: pd.DataFrame, question: type[Question]) -> str:
    """What follows. over: the differences from baselines, by their names; differences: those from other controls."""
    if pd.isna(best["low"]):
        return "Nothing can be concluded: the figure has no interval."
    if not _above(best, best["chance"]):
        return "Nothing can be concluded: the interval reaches chance."
    reach = [name for name, row in over.items() if not _above(row, 0.0)]
    if reach:
        return f"Above chance, but not clearly above {reach[0]}: {question.instead}"
    if not all(_above(row, 0.0) for _, row in differences.iterrows()):
        return "Above chance, but not clearly above each of the controls below."
    against = f" and above {', '.join(over)}" if over else ""
    return f"Above chance{against}: {question.shows}"


def _spread_lines(main: pd.DataFrame, name: str, question: type[Question]) -> list[str]:
    """How far the seeds (split, start and control labels) differ, at the site where they differ most."""
    seeds = main["seed"].nunique()
    if seeds < 2:
        return []
    spread = _real(main, name, question).groupby("site", sort=False)["value"].agg(np.ptp)
    return [
        f"Over {seeds} seeds a site's figure varies by at most {spread.max():.3f} (`{spread.idxmax()}`); the "
        "intervals, each of one seed, do not hold that."
    ]


def _above(row: pd.Series, bound: float) -> bool:
    """Is the whole interval above a bound? False where there is no interval."""
    return bool(row["low"] > bound)
