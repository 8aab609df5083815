"""What the measures of a sweep say, in sentences; sites are chosen on train or validation, never on test."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import pandas as pd

from grounding.best_site import best_site
from probe.wording import figure

_CASE = ["run", "question", "probe"]


def measure_lines(tables: Mapping[str, pd.DataFrame], few: Collection[tuple[str, str]] = ()) -> list[str]:
    """Markdown lines about the tables of the measures, of the first seed; none without any.

    few: (run, question) of too few test images for anything to follow.
    """
    lines = []
    for name, title, said in (
        ("description-length", "Description length", _code),
        ("usable-information", "Usable information", _information),
        ("learning-curve", "Learning curve", _curve),
        ("frontier", "Accuracy and complexity", _frontier),
    ):
        if name in tables:
            table = tables[name]
            first = table[table["seed"] == table["seed"].iloc[0]]
            lines += ["", f"### {title}", "", *said(first, few)]
    return ["", "## Measures", *lines, ""] if lines else []


def _code(table: pd.DataFrame, few: Collection[tuple[str, str]]) -> Iterator[str]:
    blind = table[table["probe"] == "majority"]
    for case, rows in _cases(table[table["probe"] != "majority"]):
        best = _real(rows).sort_values("bits").iloc[0]
        at_site = rows[(rows["site"] == best["site"]) & (rows["condition"] != best["condition"])]
        others = [(row["condition"], row["value"]) for _, row in at_site.iterrows()]
        there = blind[(blind[["run", "question", "site"]] == best[["run", "question", "site"]]).all(axis=1)]
        others += [("the share of positives alone", row["value"]) for _, row in there.iterrows()]
        told = "; ".join(f"{name} {value:.2f}" for name, value in others)
        yield (
            f"{case}: the shortest code is at `{best['site']}`, {best['bits']:,.0f} bits for {best['n_labels']:,} "
            f"labels, compression {figure(best, 2)}" + (f" ({told})." if told else ".")
        )


def _information(table: pd.DataFrame, few: Collection[tuple[str, str]]) -> Iterator[str]:
    for case, rows in _cases(table):
        best = best_site(_real(rows))
        certain = best["low"] > 0 or _key(rows) in few
        reading = "" if certain else "; no more than without the input, as far as the test images tell"
        at_site = rows[(rows["site"] == best["site"]) & (rows["condition"] != best["condition"])]
        told = "".join(f"; {row['condition']} {row['value']:.2f}" for _, row in at_site.iterrows())
        yield (
            f"{case}: {figure(best, 2)} of {best['entropy_without']:.2f} bits a phrase at `{best['site']}`, the site "
            f"of the lowest validation loss{told}{reading}."
        )


def _curve(table: pd.DataFrame, few: Collection[tuple[str, str]]) -> Iterator[str]:
    for case, rows in _cases(table):
        last = rows[rows["images"] == rows["images"].max()]
        site = best_site(last)["site"]
        line = rows[rows["site"] == site].sort_values("images")
        told = ", ".join(f"{row['value']:.3f} from {row['images']}" for _, row in line.iterrows())
        steps = [row for _, row in line.iterrows()]
        flat = len(steps) > 1 and steps[-2]["high"] >= steps[-1]["value"]
        reading = " The last step is within the interval before it." if flat else " It still rises: more may help."
        yield f"{case}, at `{site}`: {told} train images." + ("" if _key(last) in few else reading)


def _frontier(table: pd.DataFrame, few: Collection[tuple[str, str]]) -> Iterator[str]:
    for case, rows in _cases(table):
        best = best_site(rows)
        line = rows[rows["site"] == best["site"]].sort_values("complexity")
        told = ", ".join(f"{row['value']:.3f} at {row['complexity']}" for _, row in line.iterrows())
        what = "units" if best["probe"] == "mlp" else "ranks"
        yield (f"{case}, at `{best['site']}`: {told} ({what}). The lowest validation loss is at {best['complexity']}.")


def _cases(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of each run, question and probe, of the first score, and what to call them."""
    if "score" in table:
        table = table[table["score"] == table["score"].iloc[0]]
    several = table["run"].nunique() > 1
    for (run, question, probe), rows in table.groupby(_CASE, sort=False):
        yield f"{question}, {probe}" + (f", run `{run}`" if several else ""), rows


def _key(rows: pd.DataFrame) -> tuple[str, str]:
    return rows["run"].iloc[0], rows["question"].iloc[0]


def _real(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["condition"] == rows["question"]]
