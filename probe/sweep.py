"""Every site, every probe, every control, as one tidy table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from grounding.errors import BadInput, unknown_choice
from grounding.metrics.intervals import Estimate
from probe.controls import control_labels, seen_types
from probe.estimators import (
    BilinearProbe,
    ConcatenationProbe,
    MLPProbe,
    PairProbe,
    PhraseOnlyProbe,
    RegionOnlyProbe,
    fit_together,
)
from probe.features import PairFeatures, choose_sites, read_features
from probe.pairs import PairTable, alignment_pairs
from probe.scores import RESAMPLES, SCORES, ScoredPairs, chance, estimate, estimate_difference
from probe.selection import Chosen, choose_strength
from probe.splits import PARTS, split_examples
from probe.tables import check_out, write_tables

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo

PROBES = ("linear", "mlp")
BASELINES = ("concatenation", "phrase-only", "region-only")
CONTROLS = ("labels", *BASELINES)
FULL_FORM = 256 * 256  # largest bilinear form learned in full; above it, LOW_RANK
LOW_RANK = 32
_MEMORY = 2**29  # bytes of features trained together

COLUMNS = [
    *("site", "stage", "layer", "probe", "condition", "score"),
    *("value", "low", "high", "chance", "n_phrases", "n_images"),
    *("seed", "strength", "rank", "validation_loss"),
]


@dataclass(frozen=True)
class SweepSettings:
    """What a sweep depends on besides the run; plain values, stored beside its tables.

    group: what is never split apart (image, caption, annotation, tangram). folds: a fold is test, one validation.
    iou: overlap that makes a region the phrase's. linear_strengths, mlp_strengths: tried on the validation split.
    rank: of the bilinear form; None learns it in full up to 256 x 256 and with rank 32 above.
    """

    probes: tuple[str, ...] = PROBES
    controls: tuple[str, ...] = ("labels", "concatenation")
    seeds: tuple[int, ...] = (0,)
    group: str = "image"
    folds: int = 5
    iou: float = 0.5
    linear_strengths: tuple[float, ...] = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
    mlp_strengths: tuple[float, ...] = (10.0, 3.0, 1.0)
    rank: int | None = None
    resamples: int = RESAMPLES
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, values, accepted in (
            ("probe", self.probes, PROBES),
            ("control", self.controls, CONTROLS),
        ):
            for value in values:
                if value not in accepted:
                    raise unknown_choice(name, value, accepted)
        if not self.probes or not self.seeds:
            raise BadInput(f"probes {self.probes} and seeds {self.seeds}; accepted: at least one of each")
        if min(self.seeds) < 0:
            raise BadInput(f"seed {min(self.seeds)} is too small; accepted: 0 or more")


def sweep(
    run: Run,
    probes: Sequence[str] = PROBES,
    controls: Sequence[str] | str = ("labels", "concatenation"),
    sites: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    out: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Ask of every site whether phrases can be matched with their regions there, and what its controls say.

    controls: names of CONTROLS, "all" or (). sites: names, ``stage.*``, or None for all. out: folder for
    ``sweep.csv``, ``sweep.json`` and ``summary.md``. progress: called with (steps done, steps in all).
    settings: further fields of SweepSettings.

    Returns one row a (site, probe, condition, score, seed). Conditions: "alignment", the real question;
    "control-labels", the same probe and strength on random labels a phrase type; "selectivity", the difference.
    value, low, high: the score and its 95 % interval over images of the test part, chance beside it.
    Raises BadInput for whatever cannot be probed, and where ``out`` holds the sweep of another run.
    """
    if out is not None:
        check_out(Path(out), run)
    controls = CONTROLS if controls == "all" else controls
    if isinstance(controls, str):
        raise unknown_choice("controls", controls, ["all", *CONTROLS])
    options = SweepSettings(tuple(probes), tuple(controls), tuple(int(s) for s in seeds), **settings)
    chosen = choose_sites(run, sites)
    pairs = alignment_pairs(run, options.iou)
    tasks = [_Task.prepare(run, pairs, seed, options) for seed in options.seeds]
    batches = list(_site_batches(run, chosen, pairs))
    names = [*options.probes, *(name for name in options.controls if name in BASELINES)]
    total = len(batches) * len(tasks) * len(names)
    rows: list[dict[str, Any]] = []
    done = 0
    for batch in batches:
        features = [read_features(run, site.name, pairs) for site in batch]
        for task in tasks:
            for name in names:
                rows += _probe_batch(batch, features, task, name, options)
                done += 1
                if progress is not None:
                    progress(done, total)
    table = _tidy(rows, chosen)
    if out is not None:
        write_tables(table, _describe(run, pairs, tasks, options), Path(out))
    return table


@dataclass(frozen=True)
class _Task:
    """The pairs of one seed: which part each is in, and its control label (None without that control)."""

    seed: int
    pairs: PairTable
    part: np.ndarray
    image: np.ndarray
    control: np.ndarray | None
    seen_types: float | None

    @classmethod
    def prepare(cls, run: Run, pairs: PairTable, seed: int, options: SweepSettings) -> _Task:
        examples = np.unique(pairs.example)
        parts = np.full(len(run.examples), "", dtype="<U10")
        parts[examples] = split_examples(run.examples.iloc[examples], options.group, options.folds, seed)
        part = parts[pairs.example]
        image = run.examples["group_image"].astype(str).to_numpy()[pairs.example]
        control, seen = None, None
        if "labels" in options.controls:
            types = run.phrases["type"].astype(str).to_numpy()
            control = control_labels(pairs, types, run.regions, seed)
            seen = seen_types(pairs, types, part == "train", part == "test")
            if seen == 0:
                raise BadInput(
                    "control labels cannot be built: no phrase type of the test part occurs in train; "
                    "split by image, or leave out the control 'labels'"
                )
        return cls(seed, pairs, part, image, control, seen)

    def sizes(self) -> dict[str, dict[str, int]]:
        """Phrases, pairs and images of each part."""
        return {
            name: {
                "images": len(np.unique(self.image[self.part == name])),
                "phrases": len(np.unique(self.pairs.phrase[self.part == name])),
                "pairs": int((self.part == name).sum()),
            }
            for name in PARTS
        }


def make_probe(
    name: str, options: SweepSettings, widths: tuple[int, int], seed: int
) -> tuple[PairProbe, tuple[float, ...]]:
    """An unfitted probe by name, and the strengths to try for it."""
    if name == "linear":
        low = min(LOW_RANK, *widths) if widths[0] * widths[1] > FULL_FORM else None
        rank = low if options.rank is None else options.rank
        # A loss that is right to four digits is enough for choosing and for scoring.
        return BilinearProbe(rank=rank, tol=1e-4, device=options.device), options.linear_strengths
    if name == "mlp":
        return MLPProbe(seed=seed, device=options.device), options.mlp_strengths
    kind = {"concatenation": ConcatenationProbe, "phrase-only": PhraseOnlyProbe, "region-only": RegionOnlyProbe}
    return kind[name](tol=1e-4, device=options.device), options.linear_strengths


def _site_batches(run: Run, sites: list[SiteInfo], pairs: PairTable) -> Iterator[list[SiteInfo]]:
    """Sites of equal widths, as many together as fit the memory."""
    widths = {site.name: _widths(run, site) for site in sites}
    for width in dict.fromkeys(widths.values()):
        alike = [site for site in sites if widths[site.name] == width]
        size = 4 * (len(run.phrases) * width[0] + len(run.regions) * width[1])
        together = max(1, _MEMORY // max(1, size))
        for begin in range(0, len(alike), together):
            yield alike[begin : begin + together]


def _widths(run: Run, site: SiteInfo) -> tuple[int, int]:
    """Channels of a site's phrase and region rows, which may be its partners'."""
    phrase, region = (run.read(site.name, view, rows=np.array([0])).shape[1] for view in ("phrase", "region"))
    return phrase, region


def _probe_batch(
    sites: list[SiteInfo], features: list[PairFeatures], task: _Task, name: str, options: SweepSettings
) -> list[dict[str, Any]]:
    """Fit one probe at each of some sites, with its label control, and score it on test."""
    masks = [task.part == part for part in PARTS]
    train, validation, test = ([rows[mask] for rows in features] for mask in masks)
    label = task.pairs.label
    widths = features[0].phrase.shape[1], features[0].region.shape[1]
    prototype, strengths = make_probe(name, options, widths, task.seed)
    chosen = choose_strength(prototype, train, label[masks[0]], validation, label[masks[1]], strengths)
    control: list[PairProbe] | None = None
    if task.control is not None and name in PROBES:
        # Selectivity compares one probe on two tasks, so the control keeps the strength.
        control = [clone(c.probe).set_params(strength=c.probe.strength) for c in chosen]
        fit_together(control, train, task.control[masks[0]], (validation, task.control[masks[1]]))
    rows = []
    for number, (site, best) in enumerate(zip(sites, chosen, strict=True)):
        common = _common(site, name, best, task)
        real = _scored(best.probe, test[number], task, label)
        rows += _score_rows(common | {"condition": "alignment"}, real, options)
        if control is not None and task.control is not None:
            random = _scored(control[number], test[number], task, task.control)
            without = common | {"condition": "control-labels", "validation_loss": None}
            rows += _score_rows(without, random, options)
            rows += _difference_rows(without | {"condition": "selectivity"}, real, random, options)
    return rows


def _common(site: SiteInfo, name: str, best: Chosen, task: _Task) -> dict[str, Any]:
    probe = best.probe
    rank = None
    if isinstance(probe, BilinearProbe):
        rank = min(probe.coef_.shape) if probe.rank is None else probe.rank
    return {
        "site": site.name,
        "stage": site.stage,
        "layer": site.layer,
        "probe": name,
        "seed": task.seed,
        "strength": probe.strength,
        "rank": rank,
        "validation_loss": best.validation_loss,
    }


def _scored(probe: PairProbe, test: PairFeatures, task: _Task, label: np.ndarray) -> ScoredPairs:
    asked = task.part == "test"
    return ScoredPairs(task.pairs.phrase[asked], task.image[asked], label[asked], probe.decision_function(test))


def _score_rows(common: dict[str, Any], pairs: ScoredPairs, options: SweepSettings) -> list[dict[str, Any]]:
    return [
        _row(common, pairs, score, estimate(pairs, score, options.resamples, common["seed"]), chance(pairs, score))
        for score in SCORES
    ]


def _difference_rows(
    common: dict[str, Any], real: ScoredPairs, control: ScoredPairs, options: SweepSettings
) -> list[dict[str, Any]]:
    return [
        _row(common, real, score, estimate_difference(real, control, score, options.resamples, common["seed"]), 0.0)
        for score in SCORES
    ]


def _row(common: dict[str, Any], pairs: ScoredPairs, score: str, found: Estimate, blind: float) -> dict[str, Any]:
    numbers = {"value": found.value, "low": found.low, "high": found.high, "chance": blind}
    return common | {"score": score, **numbers, "n_phrases": pairs.n_phrases, "n_images": pairs.n_images}


def _tidy(rows: list[dict[str, Any]], sites: list[SiteInfo]) -> pd.DataFrame:
    """Rows in the run's order of sites, columns in the documented order."""
    table = pd.DataFrame(rows)
    order = {site.name: number for number, site in enumerate(sites)}
    table = table.iloc[np.argsort(table["site"].map(order).to_numpy(), kind="stable")].reset_index(drop=True)
    for name in ("value", "low", "high", "validation_loss"):
        table[name] = table[name].astype(float)
    table["rank"] = table["rank"].astype("Int64")
    return table[COLUMNS]


def _describe(run: Run, pairs: PairTable, tasks: list[_Task], options: SweepSettings) -> dict[str, Any]:
    """What the tables rest on, as JSON values."""
    return {
        "run": {name: run.manifest.get(name) for name in ("identity_hash", "identity")},
        "question": "alignment",
        "settings": asdict(options),
        "phrases_left_out": pairs.left_out,
        "splits": [{"seed": task.seed, "parts": task.sizes(), "seen_types": task.seen_types} for task in tasks],
    }
