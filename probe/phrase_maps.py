"""Where a probe puts each phrase: its heatmaps layer by layer, as arrays that others can draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from grounding.errors import BadInput, unknown_choice
from probe.conditions import Condition, fit_under
from probe.features import PairFeatures
from probe.questions.base import matching_sites
from probe.questions.localisation import Localisation
from probe.settings import SweepSettings
from probe.tokens import ranges, read_tokens

if TYPE_CHECKING:
    import pandas as pd

    from extract.reader import Run, SiteInfo
    from probe.estimators import PairProbe


@dataclass(frozen=True)
class PhraseMaps:
    """Heatmaps of one probe. site: where it reads. cells: row of the phrase -> ``[rows, columns]`` of the canvas, 0..1.

    part: example row -> the part of the split it is in; only ``test`` was seen by neither fitting nor choosing.
    """

    site: str
    cells: dict[int, np.ndarray]
    part: dict[int, str]


@dataclass(frozen=True)
class PhraseProbes:
    """Fitted probes of localisation (``fit_probes``), which draw a phrase's map when it is asked for.

    probes: name of the site -> the probe, and the site that its patches are read from. part: as in ``PhraseMaps``.
    asked: rows of the phrases that have regions.
    """

    run: Run
    probes: Mapping[str, tuple[PairProbe, SiteInfo]]
    part: Mapping[int, str]
    asked: np.ndarray

    @property
    def sites(self) -> list[str]:
        """Names of the sites, in order."""
        return list(self.probes)

    def read(self, site: str, phrases: np.ndarray) -> np.ndarray:
        """Maps of phrases (rows of the run's table) at a site, cell by cell, one below the other: float ``[n]``, 0..1.

        Only the tokens of their examples are read: memory does not grow with the run.
        """
        probe, image_site = self.probes[site]
        example = self.run.phrases["example"].to_numpy()[phrases]
        examples, place = np.unique(example, return_inverse=True)
        if not len(examples):
            return np.empty(0, dtype=np.float32)
        cells = self.run.examples[["grid_rows", "grid_columns"]].to_numpy(np.int64)[examples].prod(axis=1)
        features = PairFeatures(
            np.asarray(self.run.read(site, "phrase", rows=phrases), dtype=np.float32),
            read_tokens(self.run, image_site, "image", examples),
            np.repeat(np.arange(len(phrases)), cells[place]),
            ranges((np.cumsum(cells) - cells)[place], cells[place]),
            np.repeat(place, cells[place]),
        )
        return expit(probe.decision_function(features))


def fit_probes(
    run: Run,
    sites: Sequence[str] | None = None,
    probe: str = "linear",
    settings: SweepSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
    strengths: Mapping[str, float] | None = None,
) -> PhraseProbes:
    """Probes of the question of localisation at each site, whose probability for a cell is that it is the phrase's.

    A probe is fitted on the train part, its strength chosen on the validation part, exactly as the sweep with the same
    settings does it (``Localisation``), under the first of its seeds.
    sites: names, ``block.*`` for a stage, or None for all. settings: of the sweep; its defaults if None. progress:
    called with (sites done, sites in all). strengths: of sites where it is chosen already (``swept_strengths``).
    Raises BadInput for a run without tokens or phrase rows, and an unknown site or probe.
    """
    if probe not in Localisation.probes:
        raise unknown_choice("probe", probe, Localisation.probes)
    settings, given = settings or SweepSettings(), strengths or {}
    question, seed = Localisation(run, settings), settings.seeds[0]
    usable = question.sites()
    chosen = usable if sites is None else matching_sites(usable, sites)
    split = question.split(seed)
    found = {}
    for number, site in enumerate(chosen):
        condition = Condition(question.name, [question.features(site)], question.widths(site))
        tried: dict[str, Any] = {f"{probe}_strengths": (given[site.name],)} if site.name in given else {}
        asked = copy(question)
        asked.settings = replace(settings, **tried)
        fitted = fit_under(condition, asked, probe, split, seed)
        found[site.name] = fitted.chosen[0].probe, question.image_site(site)
        if progress is not None:
            progress(number + 1, len(chosen))
    part = dict(zip(question.example.tolist(), split.tolist(), strict=True))
    return PhraseProbes(run, found, part, np.unique(question.pairs.phrase))


def probe_maps(
    run: Run,
    examples: Sequence[int] | np.ndarray,
    sites: Sequence[str] | None = None,
    probe: str = "linear",
    settings: SweepSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[PhraseMaps]:
    """The heatmaps of ``fit_probes`` for the phrases with regions of some examples, one entry a site in order.

    examples: rows of the run's table. The rest, and what is raised: as there; also BadInput for rows out of range.
    """
    rows = np.asarray(examples, dtype=np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(run.examples):
        raise BadInput(f"example rows {rows.min()} to {rows.max()} are not all in the run's {len(run.examples)}")
    probes = fit_probes(run, sites, probe, settings, progress)
    example = run.phrases["example"].to_numpy()
    asked = probes.asked[np.isin(example[probes.asked], rows)]
    grids = run.examples[["grid_rows", "grid_columns"]].to_numpy(np.int64)[example[asked]]
    part = {int(row): probes.part[int(row)] for row in np.unique(example[asked])}
    found = []
    for site in probes.sites:
        parts = np.split(probes.read(site, asked), np.cumsum(grids.prod(axis=1))[:-1])
        # Of no phrases split makes one part, which strict would complain about.
        cells = {int(row): cells.reshape(grid) for row, cells, grid in zip(asked, parts, grids, strict=False)}
        found.append(PhraseMaps(site, cells, part))
    return found


def swept_strengths(sweep: pd.DataFrame, seed: int) -> dict[str, float]:
    """Strength of the linear probe that a sweep chose at each site for localisation; empty where it did not ask that.

    sweep: rows of one run (``probe.tables.read_sweep``).
    """
    own = sweep[(sweep["condition"] == Localisation.name) & (sweep["probe"] == "linear") & (sweep["seed"] == seed)]
    return {site: float(strength) for site, strength in zip(own["site"], own["strength"], strict=True)}


def unseen_examples(run: Run, settings: SweepSettings | None = None) -> np.ndarray:
    """Rows of the examples in the test part of ``fit_probes`` of those settings, int64. Raises BadInput as it does."""
    question = Localisation(run, settings or SweepSettings())
    return np.unique(question.example[question.split(question.settings.seeds[0]) == "test"])
