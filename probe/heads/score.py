"""``score_heads``: thresholds and the best head from one run, how well they ground phrases in another.

Nothing is chosen on the images it is reported for: each map's threshold, and the best head of each kind, come from the
tuning run. The table has every head, so p-values are corrected for their number (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import statsmodels.api as statsmodels
import torch
from torch import Tensor

from extract.identity import weights_of
from grounding.errors import BadInput
from grounding.metrics.heatmaps import THRESHOLDS, check_tuning_split, choose_threshold
from grounding.metrics.intervals import Statistic, bootstrap
from probe.heads.maps import BASELINES, FUSED, Kind, baseline_maps, choose_kinds, holding, read_maps
from probe.heads.questions import SCOPES, Block, blocks
from probe.heads.tables import write_heads
from probe.significance import holm

if TYPE_CHECKING:
    from extract.reader import Run

MEASURES = ("pointing", "iou")
OWN = "own"  # the model's own grounding, as extraction stored it
COLUMNS = [
    "kind", "site", "stage", "layer", "head", "scope", "measure", "value", "low", "high", "threshold", "tuning_value",
    "selected", "gain", "gain_low", "gain_high", "p", "p_holm", "own_gain", "own_gain_low", "own_gain_high",
    "n_phrases", "n_images",
]  # fmt: skip
RESAMPLES = 1000
_Scores = dict[tuple[str, str], dict[str, np.ndarray]]  # (scope, head) -> measure -> values of phrases


@dataclass(frozen=True)
class _Series:
    """Maps that are scored together: those of a site's heads, or a baseline. about: columns of the table."""

    about: dict[str, Any]
    read: Callable[[Run, Block], tuple[list[str], Tensor]]


@dataclass(frozen=True)
class _Part:
    """A run's phrases, block by block; rows of its phrase table in that order, and their images."""

    run: Run
    blocks: list[Block]

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate([block.phrase for block in self.blocks])

    @property
    def images(self) -> np.ndarray:
        example = np.concatenate([block.example for block in self.blocks])
        return self.run.examples["group_image"].to_numpy()[example]

    @property
    def scopes(self) -> tuple[str, ...]:
        """Without candidates to choose among, both scopes are one."""
        return SCOPES if any(block.images > 1 for block in self.blocks) else SCOPES[:1]


def score_heads(
    run: Run,
    select: Run,
    kinds: Sequence[str] = (),
    sites: Sequence[str] | None = None,
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Score the attention of every layer and head as a grounder of phrases: one row a map, scope and measure.

    run: what is reported. select: another run of the same checkpoint, not on a test split, on which thresholds and the
    best head of each kind are chosen. kinds: of ``KINDS``; without any, all that both runs hold. sites: names, or
    ``block.*`` for a stage. out: folder for ``heads.csv``, ``heads.json`` and ``summary.md``. progress: called with
    (sites done, all of them).

    Columns (``COLUMNS``): kind, site, stage, layer, head (a number, ``mean``, or ``all`` where a method makes one map
    of them all); scope: the whole ``canvas``, or the right ``candidate`` alone; measure: ``pointing`` or ``iou``;
    value on ``run`` with its 95 % interval over images; threshold and tuning_value of ``select``; selected: the best of
    its kind there; gain: value minus the centre baseline's, with interval, one-sided p (mean over phrases, errors
    clustered by image) and ``p_holm``, over all heads of a scope and measure; own_gain: minus the model's own
    grounding's, over phrases where that is known. Baselines are rows of the kinds ``even``, ``centre``, ``ceiling`` and
    ``own``. Raises BadInput for runs that do not go together or hold no such maps, and for unknown names.
    """
    _check(run, select)
    tuning, reported = _Part(select, blocks(select)), _Part(run, blocks(run))
    series, scopes = list(_series(run, select, kinds, sites)), reported.scopes
    rows: list[dict[str, Any]] = []
    scores: list[dict[str, np.ndarray]] = []
    for number, one in enumerate(series):
        tuned = _scores(tuning, one, scopes)
        thresholds = {key: _threshold(select, values["curve"]) for key, values in tuned.items()}
        for key, values in _scores(reported, one, scopes, thresholds).items():
            level = thresholds[key]
            at = THRESHOLDS.index(level)
            first = {"pointing": tuned[key]["pointing"].mean(), "iou": tuned[key]["curve"][:, at].mean()}
            rows.append({**one.about, "scope": key[0], "head": key[1], "threshold": level, "tuning": first})
            scores.append({"pointing": values["pointing"], "iou": values["curve"][:, 0]})
        if progress is not None:
            progress(number + 1, len(series))
    table = _table(rows, scores, reported, resamples, seed)
    if out is not None:
        write_heads(table, _describe(run, select, tuning, reported, resamples, seed), out)
    return table


def _check(run: Run, select: Run) -> None:
    """Raise BadInput for runs of two checkpoints, on the same images, or for a tuning run on a test split."""
    first, second = run.manifest["identity"], select.manifest["identity"]
    check_tuning_split(second["split"])
    if weights_of(first) != weights_of(second):
        raise BadInput(
            f"select {str(select.path)!r} is of another checkpoint than {str(run.path)!r}; accepted: a run of the same"
        )
    images = run.examples["group_image"]
    shared = sorted(set(images) & set(select.examples["group_image"]))
    if shared:
        raise BadInput(
            f"{len(shared)} images are in both runs ({shared[0]!r}, ...): heads would be chosen on what they are "
            "reported for; accepted: a select run on other images"
        )
    scored = images[run.examples.index.isin(run.phrases["example"])].nunique()
    if scored < 2:
        raise BadInput(f"run {str(run.path)!r} has phrases in {scored} image; accepted: 2 or more, for intervals")


def _series(run: Run, select: Run, kinds: Sequence[str], sites: Sequence[str] | None) -> Iterator[_Series]:
    """Baselines, then every site of every kind that both runs hold."""
    for name in BASELINES:
        yield _Series(_nowhere(name), _baseline(name))
    chosen = choose_kinds(kinds, run, select)
    for kind in chosen:
        there = {site.name for site in holding(select, kind)}
        for site in holding(run, kind, sites):
            if site.name not in there:
                raise BadInput(
                    f"select {str(select.path)!r} holds no {kind.view} of {site.name}; add it: probe extract --out "
                    f"{select.path} --add-view {kind.view} --add-site {site.name}"
                )
            about = {"kind": kind.name, "site": site.name, "stage": site.stage, "layer": site.layer}
            yield _Series(about, _stored(site.name, kind))


def _nowhere(kind: str) -> dict[str, Any]:
    """Columns of what belongs to no site."""
    return {"kind": kind, "site": "", "stage": "", "layer": -1}


def _stored(site: str, kind: Kind) -> Callable[[Run, Block], tuple[list[str], Tensor]]:
    return lambda run, block: read_maps(run, site, kind, block)


def _baseline(name: str) -> Callable[[Run, Block], tuple[list[str], Tensor]]:
    return lambda run, block: ([FUSED], baseline_maps(name, block)[:, None])


def _scores(
    part: _Part,
    series: _Series,
    scopes: Sequence[str],
    thresholds: Mapping[tuple[str, str], float] | None = None,
) -> _Scores:
    """``curve``, IoU under the head's own threshold (None: under all) ``[P, T]``, and ``pointing`` ``[P]``."""
    found: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}
    for block in part.blocks:
        heads, maps = series.read(part.run, block)
        for channel, head in enumerate(heads):
            for scope in scopes:
                levels = THRESHOLDS if thresholds is None else (thresholds[scope, head],)
                found.setdefault((scope, head), []).append(block.score(maps[:, channel], scope, levels))
    joined = {key: [torch.cat(part).numpy() for part in zip(*parts, strict=True)] for key, parts in found.items()}
    return {key: {"curve": curve, "pointing": pointed} for key, (curve, pointed) in joined.items()}


def _threshold(select: Run, curve: np.ndarray) -> float:
    return choose_threshold(curve, select.manifest["identity"]["split"], "iou").value


def _table(
    rows: Sequence[dict[str, Any]], scores: Sequence[dict[str, np.ndarray]], part: _Part, resamples: int, seed: int
) -> pd.DataFrame:
    """Every map under both measures, with intervals, and what it gains on the centre and on the model itself."""
    images, stored = part.images, part.run.phrases.iloc[part.rows]
    own = {measure: stored[measure].to_numpy(dtype=float) for measure in MEASURES}
    centre = {row["scope"]: values for row, values in zip(rows, scores, strict=True) if row["kind"] == "centre"}
    long: list[dict[str, Any]] = []
    for row, values in zip(rows, scores, strict=True):
        for measure in MEASURES:
            rivals = {} if row["kind"] in BASELINES else {"gain": centre[row["scope"]][measure]}
            if rivals and row["scope"] == "canvas":
                rivals["own_gain"] = own[measure]
            about = {**row, "measure": measure, "tuning_value": row["tuning"][measure]}
            long.append(about | _figures(values[measure], rivals, images, resamples, seed))
    for measure in MEASURES:
        about = {**_nowhere(OWN), "head": FUSED, "scope": "canvas", "measure": measure}
        long.append(about | _figures(own[measure], {}, images, resamples, seed))
    table = pd.DataFrame(long).reindex(columns=COLUMNS)
    table["selected"] = False
    heads = table[table["p"].notna()]
    for _, family in heads.groupby(["scope", "measure"]):
        table.loc[family.index, "p_holm"] = holm(family["p"].to_numpy())
    best = heads.groupby(["kind", "scope", "measure"])["tuning_value"].idxmax()
    table.loc[best, "selected"] = True
    return table


def _figures(
    values: np.ndarray, rivals: Mapping[str, np.ndarray], images: np.ndarray, resamples: int, seed: int
) -> dict[str, Any]:
    """Mean over phrases, and over its differences to rivals, with intervals over images; NaN values are unknown."""
    statistics = {"value": values, **{name: values - rival for name, rival in rivals.items()}}
    known = {name: np.isfinite(one) for name, one in statistics.items()}
    asked = {n: Statistic.mean(one[known[n]], images[known[n]]) for n, one in statistics.items() if known[n].any()}
    found: dict[str, Any] = {"n_phrases": int(known["value"].sum()), "n_images": len(set(images[known["value"]]))}
    for name, estimate in bootstrap(asked, resamples, seed).items():
        prefix = "" if name == "value" else f"{name}_"
        found |= {name: estimate.value, f"{prefix}low": estimate.low, f"{prefix}high": estimate.high}
    if "gain" in statistics:
        found["p"] = above_zero(statistics["gain"], images)
    return found


def above_zero(differences: np.ndarray, images: np.ndarray) -> float:
    """One-sided p of a mean above zero: t-test of the constant, errors clustered by image (Cameron, Gelbach and Miller
    2008); where all differences are the same, 0 if they are above zero and else 1."""
    if np.ptp(differences) == 0:
        return float(differences[0] <= 0)
    codes = np.unique(images, return_inverse=True)[1]
    fit = statsmodels.OLS(differences, np.ones(len(differences))).fit(
        cov_type="cluster", cov_kwds={"groups": codes}, use_t=True
    )
    two_sided = float(fit.pvalues[0])
    return two_sided / 2 if fit.params[0] > 0 else 1 - two_sided / 2


def _describe(run: Run, select: Run, tuning: _Part, reported: _Part, resamples: int, seed: int) -> dict[str, Any]:
    """What the table rests on."""

    def facts(run: Run, part: _Part) -> dict[str, Any]:
        identity = run.manifest["identity"]
        counts = {"phrases": len(part.rows), "images": len(set(part.images))}
        counts["left_out"] = len(run.phrases) - counts["phrases"]
        alone = sum(int((np.unique(block.example, return_counts=True)[1] == 1).sum()) for block in part.blocks)
        return {"split": identity["split"], "identity_hash": run.manifest["identity_hash"], **counts, "alone": alone}

    about = {"run": facts(run, reported), "select": facts(select, tuning)}
    return about | {"settings": {"resamples": resamples, "seed": seed, "criterion": "iou"}}
