"""The tables of docs/study.md as the CSV files of the study have them. ``python tests/study_tables.py`` prints them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

DOCS = Path(__file__).resolve().parent.parent / "docs"
MODELS = {"vilt-aligner": "ViLT-Aligner", "mdetr": "MDETR"}
FRACTIONS = {0: "0", 0.1: "10 %", 0.3: "30 %", 1: "100 %"}
PHRASES = {0: "0", 0.1: "10,488 (10 %)", 0.3: "31,466 (30 %)", 1: "104,885 (all)"}
FIGURES = {"accuracy": "accuracy", "mean_iou": "mean IoU", "pearson": "task x grounding (r)"}
FIGURE_NAMES = ("accuracy", "mean_iou", "pointing", "pearson")
_IOU = ("mean_iou", "embedding")
_ACCURACY = ("accuracy", "embedding")
ERASED = {
    "vilt-aligner": (_IOU, ("mean_iou", "block.3"), ("mean_iou", "block.7"), _ACCURACY),
    "mdetr": (_IOU, ("mean_iou", "encoder.0"), ("mean_iou", "encoder.1"), _ACCURACY, ("accuracy", "encoder.0")),
}


def tables(folder: Path) -> dict[str, list[str]]:
    """The rows of each table by its name; intervals over images, of several seeds the means of theirs."""
    curves, best, gaps, effects, changes, enough = (
        pd.read_csv(folder / f"{name}.csv") for name in ("curves", "best", "gaps", "effects", "interventions", "enough")
    )
    found = {"gains": list(_gains(effects, enough)), "gaps": list(_gaps(gaps))}
    for model in MODELS:
        found[f"{model} figures"] = list(_figures(curves[curves["model"] == model]))
        found[f"{model} layers"] = list(_layers(best[best["model"] == model]))
        found[f"{model} erased"] = list(_erased(changes[changes["model"] == model], model))
    return found


def kilogram_table(docs: Path) -> list[str]:
    """The rows of both orders of colours, one seed each; intervals over drawings."""
    rows = []
    for order, told in (("random", "random colours"), ("caption", "the caption's order")):
        figures = pd.read_csv(docs / f"study-kilogram-{order}" / "figures.csv")
        for fraction, own in figures.groupby("fraction"):
            by = own.set_index("figure")
            learned = f"{by['learned_phrases'].iloc[0]:,}"
            share = {0: "", 1: " (all)"}.get(fraction, f" ({fraction:.0%})".replace("%", " %"))
            name = f"{told}: {learned}" if fraction == 0 else f"{learned}{share}"
            values = (_told(*by.loc[figure, ["value", "low", "high"]]) for figure in FIGURE_NAMES)
            rows.append(_row(name, *values))
    return rows


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _told(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f}, {high:.3f})"


def _of(row: pd.Series) -> str:
    return _told(row["value"], row["images_low"], row["images_high"])


def _figures(curves: pd.DataFrame) -> Iterator[str]:
    for fraction, rows in curves.groupby("fraction"):
        by = rows.set_index("figure")
        yield _row(PHRASES[fraction], by.loc["accuracy", "seeds"], *(_of(by.loc[name]) for name in FIGURE_NAMES))


def _gains(effects: pd.DataFrame, enough: pd.DataFrame) -> Iterator[str]:
    most = enough.set_index(["model", "figure"])
    for _, row in effects[effects["figure"].isin(FIGURES)].iterrows():
        needed = most.loc[(row["model"], row["figure"])]
        over = [f"{row[f'{what}low']:.3f} to {row[f'{what}high']:.3f}" for what in ("images_", "")]
        nine = f"{needed['fraction']:g} ({needed['low']:g} to {needed['high']:g})"
        yield _row(MODELS[row["model"]], FIGURES[row["figure"]], f"{row['gain']:.3f}", *over, row["seeds"], nine)


def _layers(best: pd.DataFrame) -> Iterator[str]:
    for fraction, rows in best[best["question"] == "alignment"].sort_values("seed").groupby("fraction"):
        sites = ", ".join(f"`{site}`" for site in dict.fromkeys(rows["site"]))
        means = rows.mean(numeric_only=True)
        scores = [
            _told(*means[[name, f"{less}low", f"{less}high"]])
            for name, less in (("value", ""), ("selectivity", "selectivity_"))
        ]
        yield _row(FRACTIONS[fraction], sites, *scores, ", ".join(f"{n:g}" for n in rows["sites_above"]))


def _gaps(gaps: pd.DataFrame) -> Iterator[str]:
    for fraction, rows in gaps.groupby("fraction"):
        by = rows.set_index("model")
        yield _row(FRACTIONS[fraction], *(_of(by.loc[model]) for model in MODELS))


def _erased(changes: pd.DataFrame, model: str) -> Iterator[str]:
    by = changes.set_index(["fraction", "score", "site"])
    for fraction in sorted(changes["fraction"].unique()):
        yield _row(FRACTIONS[fraction], *(_of(by.loc[(fraction, *cell)]) for cell in ERASED[model]))


if __name__ == "__main__":
    for name, rows in {**tables(DOCS / "study"), "kilogram": kilogram_table(DOCS)}.items():
        print(name, *rows, "", sep="\n")
