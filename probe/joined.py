"""Probe and task joined: what probes find of each phrase beside what the model shows of it, and whether it succeeds.

The *expression gap* is the mean IoU of the probe at the best site, chosen on validation, minus that of the model's own
answers on the same phrases: how much better its activations say where phrases are than it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from grounding.grounded import GROUNDED_AT
from grounding.metrics.intervals import Estimate, Statistic, bootstrap, paired_difference
from grounding.metrics.joint import CORRELATIONS, correlations
from probe.questions import QUESTIONS

if TYPE_CHECKING:
    from extract.reader import Run

OWN = "model"  # stands in for probe and site where the model's own answers are measured
COLUMNS = [
    *("run", "question", "probe", "site", "stage", "layer", "seed"),
    *("measure", "value", "low", "high", "p", "n", "n_images", "note"),
]
QUADRANTS = {
    "right_grounded": (True, True),
    "right_not_grounded": (True, False),
    "wrong_grounded": (False, True),
    "wrong_not_grounded": (False, False),
}


def with_own_answers(items: pd.DataFrame, runs: Mapping[str, Run]) -> pd.DataFrame:
    """Items of a sweep with their ids and images, the model's own IoU and pointing of the phrase, the task's outcome.

    items: as ``Judgement.items``, with run, question, site, probe, seed and part. Columns added: example_id, phrase_id
    ('' for an example's item), image, own_iou, own_pointing (NaN where there is none), task_score, task_correct.
    """
    parts = []
    for name, mine in items.groupby("run", sort=False):
        run = runs[str(name)]
        example, phrase = mine["example"].to_numpy(), mine["phrase"].to_numpy()
        known = phrase >= 0
        of_phrase: dict[str, tuple[str, Any]] = {
            "phrase_id": ("id", ""),
            "own_iou": ("iou", np.nan),
            "own_pointing": ("pointing", np.nan),
        }
        columns = {
            new: np.where(known, run.phrases[old].to_numpy()[phrase], missing)
            for new, (old, missing) in of_phrase.items()
        }
        examples = run.examples.iloc[example]
        parts.append(
            mine.assign(
                example_id=examples["id"].to_numpy(),
                image=examples["group_image"].astype(str).to_numpy(),
                task_score=examples["task_score"].to_numpy(float),
                task_correct=examples["task_correct"].to_numpy(bool),
                **columns,
            )
        )
    return pd.concat(parts, ignore_index=True)


def join(items: pd.DataFrame, own_measure: Mapping[tuple[str, str], bool], resamples: int) -> pd.DataFrame:
    """One row a (run, question, probe, site, seed, measure), over phrases and examples of the test part.

    items: of ``with_own_answers``; questions about examples are left out, and so are control probes. own_measure: (run,
    question) -> whether its IoU may be compared with the model's own. Measures:

    pearson, spearman (with the task score), point_biserial (with success): correlation over examples of the task with
    the grounding that the probe finds, the mean over an example's phrases of their IoU (of the share of right choices,
    for a question without IoU). probe and site ``model``: the same with the model's own IoU.
    gap: the probe's mean IoU minus the model's own. expression_gap: that at the site of the best IoU on validation.
    right_grounded, ...: share of examples with that task outcome and a grounding of at least 0.5, or below.
    Intervals are over images; note says why a value is missing.
    """
    rows: list[dict[str, Any]] = []
    phrases = items[items["phrase"] >= 0]
    for (run, question, seed), mine in phrases.groupby(["run", "question", "seed"], sort=False):
        probes = [name for name in mine["probe"].unique() if name in QUESTIONS[question].probes]
        common = {"run": run, "question": question, "seed": seed}
        for probe in probes:
            sides = _Sides.of(mine[mine["probe"] == probe])
            about = common | {"probe": probe}
            rows += [about | row for row in _task_rows(sides.sites, sides.test, "grounding", resamples, seed)]
            if own_measure[run, question]:
                rows += [about | row for row in _gaps(sides, resamples, seed)]
        test = _Sides.of(mine[mine["probe"] == probes[0]]).test
        own = next(iter(test.items()))[1]
        site = pd.DataFrame({"site": [OWN], "stage": [OWN], "layer": [-1]})
        rows += [common | {"probe": OWN} | row for row in _task_rows(site, {OWN: own}, "own_iou", resamples, seed)]
    return pd.DataFrame(rows, columns=COLUMNS)


@dataclass(frozen=True)
class _Sides:
    """A probe's phrases by site. sites: site, stage, layer. validation, test: site -> a row a phrase, in one order."""

    sites: pd.DataFrame
    validation: dict[str, pd.DataFrame]
    test: dict[str, pd.DataFrame]

    @classmethod
    def of(cls, items: pd.DataFrame) -> _Sides:
        measure = "iou" if items["iou"].notna().any() else "correct"
        items = items.assign(grounding=items[measure]).sort_values("phrase", kind="stable")
        parts = {part: dict(iter(rows.groupby("site", sort=False))) for part, rows in items.groupby("part")}
        sites = items[["site", "stage", "layer"]].drop_duplicates("site")
        order = pd.unique(items.sort_index()["site"])
        return cls(sites.set_index("site").loc[order].reset_index(), parts["validation"], parts["test"])


def _task_rows(
    sites: pd.DataFrame, test: Mapping[str, pd.DataFrame], grounding: str, resamples: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Correlations and quadrants of every site; grounding: the column that is averaged over an example's phrases."""
    means = {site: _example_means(test[site], grounding) for site in sites["site"]}
    first = next(iter(means.values()))
    task = {"pearson": first["task_score"], "spearman": first["task_score"], "point_biserial": first["task_correct"]}
    groundings = np.stack([mean["grounding"] for mean in means.values()], 1)
    for kind in CORRELATIONS:
        found = correlations(
            kind, task[kind].to_numpy(float), groundings, first["image"].to_numpy(), resamples, resamples, seed
        )
        for place, one in zip(sites.to_dict("records"), found, strict=True):
            yield place | {"measure": kind} | _figures(one) | {"p": one.p}
    for place, mean in zip(sites.to_dict("records"), means.values(), strict=True):
        sides = _quadrant_statistics(mean)
        for name, share in bootstrap(sides, resamples, seed).items():
            yield place | {"measure": name} | _figures(share)


def _example_means(phrases: pd.DataFrame, grounding: str) -> pd.DataFrame:
    """One row an example that has an answer and a known grounding."""
    table = phrases.groupby("example", sort=True).agg(
        grounding=(grounding, "mean"), task_score=("task_score", "first"),
        task_correct=("task_correct", "first"), image=("image", "first"),
    )  # fmt: skip
    return table[table["grounding"].notna() & table["task_score"].notna()]


def _quadrant_statistics(mean: pd.DataFrame) -> dict[str, Statistic]:
    correct, grounded = mean["task_correct"].to_numpy(bool), mean["grounding"].to_numpy() >= GROUNDED_AT
    image = mean["image"].to_numpy()
    return {
        name: Statistic.mean(((correct == right) & (grounded == ground)).astype(float), image)
        for name, (right, ground) in QUADRANTS.items()
    }


def _gaps(sides: _Sides, resamples: int, seed: int) -> Iterator[dict[str, Any]]:
    """The gap at every site, and once more at the one that is best on validation."""
    places = sides.sites.to_dict("records")
    on_validation = [sides.validation[place["site"]]["grounding"].mean() for place in places]
    best = places[int(np.argmax(on_validation))]
    for measure, place in [*(("gap", place) for place in places), ("expression_gap", best)]:
        phrases = sides.test[place["site"]]
        phrases = phrases[phrases["own_iou"].notna()]
        image = phrases["image"].to_numpy()
        probe, own = (Statistic.mean(phrases[name].to_numpy(float), image) for name in ("grounding", "own_iou"))
        yield place | {"measure": measure} | _figures(paired_difference(probe, own, resamples, seed))


def _figures(found: Estimate) -> dict[str, Any]:
    return {
        **{name: getattr(found, name) for name in ("value", "low", "high", "n")},
        "n_images": found.groups,
        "note": found.reason or "",
    }
