"""Writing a sweep's tidy table as CSV and JSON, with a page that says in words what it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from grounding.errors import BadInput
from grounding.folders import check_folder, make_folder

if TYPE_CHECKING:
    from extract.reader import Run

SUMMARY, TABLE, DESCRIPTION = "summary.md", "sweep.csv", "sweep.json"
FEWEST_IMAGES = 10  # an interval over fewer images is too narrow to conclude from


def write_tables(table: pd.DataFrame, description: dict[str, Any], out: Path) -> None:
    """Write ``sweep.csv``, ``sweep.json`` (what it rests on, and the rows) and ``summary.md`` into a folder.

    Raises BadInput when ``out`` cannot be a folder.
    """
    make_folder(out)
    table.to_csv(out / TABLE, index=False)
    rows = json.loads(table.to_json(orient="records", double_precision=6))
    (out / DESCRIPTION).write_text(json.dumps(description | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    (out / SUMMARY).write_text(summarise(table, description), encoding="utf-8")


def read_sweep(folder: Path, run: Run, required: bool = True) -> pd.DataFrame | None:
    """The tidy table of a sweep of ``run``. Without one: BadInput, or None where it is not ``required``.

    Raises BadInput for a sweep of another run, whose curves would be taken for this one's.
    """
    if not required and not (folder / TABLE).is_file():
        return None
    for name in (TABLE, DESCRIPTION):
        if not (folder / name).is_file():
            raise BadInput(f"sweep {str(folder)!r} holds no {name}; accepted: a folder that probe sweep wrote")
    swept, own = _swept(folder), run.manifest["identity_hash"]
    if swept != own:
        raise BadInput(f"sweep {str(folder)!r} is of run {swept[:12]}; accepted: a sweep of this run, {own[:12]}")
    return pd.read_csv(folder / TABLE)


def check_out(out: Path, run: Run) -> None:
    """BadInput where ``out`` cannot be a folder, or holds the sweep of another run, which would be lost."""
    check_folder(out)
    own = run.manifest["identity_hash"]
    if (out / DESCRIPTION).is_file() and (swept := _swept(out)) != own:
        raise BadInput(
            f"out {str(out)!r} holds a sweep of another run, {swept[:12]}, not of this one, {own[:12]}; "
            "accepted: another folder"
        )


def _swept(folder: Path) -> str:
    """Identity of the run whose sweep is in ``folder``. Raises BadInput where its description is broken."""
    path = folder / DESCRIPTION
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run"]["identity_hash"])
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path} does not describe a sweep; accepted: a file that probe sweep wrote") from None


def summarise(table: pd.DataFrame, description: dict[str, Any]) -> str:
    """A page of Markdown: for each probe its best site, how it stands against its controls, what follows.

    Nothing is said to follow from fewer than ``FEWEST_IMAGES`` test images. The best site is the one of the lowest
    validation loss of the first seed, so that test figures did not choose it.
    """
    first = description["splits"][0]
    test = first["parts"]["test"]
    lines = [
        "# Which sites know what a phrase refers to?",
        "",
        f"Question: of an image's candidate regions, which one belongs to the phrase? {test['phrases']} test phrases "
        f"in {test['images']} images; 95 % intervals over images. {description['phrases_left_out']} phrases without "
        "a choice to make were left out.",
    ]
    few = test["images"] < FEWEST_IMAGES
    if few:
        counts = f"{test['images']}; at least {FEWEST_IMAGES} are needed"
        lines += ["", f"Too few test images to conclude anything: {counts}."]
    of_seed = table[table["seed"] == first["seed"]]
    choice = of_seed[of_seed["score"] == "choice_accuracy"]
    baselines = [name for name in choice["probe"].unique() if name not in ("linear", "mlp")]
    for name in (name for name in choice["probe"].unique() if name not in baselines):
        lines += ["", f"## {name}", "", *_probe_lines(choice, name, baselines, few)]
        lines += _spread_lines(table, name)
    if first["seen_types"] is not None:
        lines += [
            "",
            f"Control labels could be memorised for the {first['seen_types']:.0%} of test phrases whose type occurs in "
            "train; for the others the control is at chance by construction, which flatters selectivity.",
        ]
    lines += ["", "A probe shows what can be read off a site, not that the model uses it.", ""]
    return "\n".join(lines)


def _probe_lines(choice: pd.DataFrame, name: str, baselines: list[str], few: bool) -> list[str]:
    """Sentences about one probe: best site, controls there, and, unless images are few, the reading."""
    real = choice[(choice["probe"] == name) & (choice["condition"] == "alignment")]
    best = real.loc[real["validation_loss"].idxmin()]
    at_site = choice[choice["site"] == best["site"]]
    lines = [
        f"Best site (by validation loss, of {len(real)}): `{best['site']}`. Its best-scored candidate belongs to the "
        f"phrase for {_figure(best)}; chance {best['chance']:.3f}."
    ]
    others = [at_site[at_site["probe"] == other].iloc[0] for other in baselines]
    lines += [f"The {row['probe']} control at that site: {_figure(row)}." for row in others]
    if not few:
        lines.append(_reading(best, others))
    selectivity = at_site[(at_site["probe"] == name) & (at_site["condition"] == "selectivity")]
    if len(selectivity):
        row = selectivity.iloc[0]
        verdict = "" if few else f", {_verdict(row)}"
        lines.append(f"Selectivity (minus control labels): {_figure(row)}{verdict}.")
    blind = real[~real.apply(lambda row: _above(row, row["chance"]), axis=1)]
    if len(blind) and not few:
        names = ", ".join(f"`{site}`" for site in blind["site"])
        lines.append(f"Cannot be told from chance, since the interval is not above it: {names}.")
    return lines


def _reading(best: pd.Series, others: list[pd.Series]) -> str:
    if not _above(best, best["chance"]):
        return "Nothing can be concluded: the interval reaches chance."
    reach = [row for row in others if not _above(best, np.nanmax([row["value"], row["high"]]))]
    if reach:
        return (
            f"Above chance, but not clearly above {reach[0]['probe']}: which region is meant may be told without "
            "matching it to the phrase."
        )
    against = f" and above {', '.join(row['probe'] for row in others)}" if others else ""
    return f"Above chance{against}: phrase and region can be matched at this site."


def _verdict(selectivity: pd.Series) -> str:
    if _above(selectivity, 0.0):
        return "more than the same probe memorises of random labels"
    return "not clearly more than the same probe memorises of random labels: the score may be the probe's own doing"


def _spread_lines(table: pd.DataFrame, name: str) -> list[str]:
    """How far the seeds (split, start and control labels) differ, at the site where they differ most."""
    seeds = table["seed"].nunique()
    if seeds < 2:
        return []
    chosen = (table["probe"] == name) & (table["condition"] == "alignment") & (table["score"] == "choice_accuracy")
    spread = table[chosen].groupby("site", sort=False)["value"].agg(np.ptp)
    return [f"Over {seeds} seeds a site's figure varies by at most {spread.max():.3f} (`{spread.idxmax()}`)."]


def _above(row: pd.Series, bound: float) -> bool:
    """Is the whole interval above a bound? False where there is no interval."""
    return bool(row["low"] > bound)


def _figure(row: pd.Series) -> str:
    if np.isnan(row["low"]):
        return f"{row['value']:.3f} (no interval)"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
