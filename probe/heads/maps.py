"""Kinds of maps: what a layer's head says of where a phrase is; and maps that know nothing of the phrase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from extract.relevance.kinds import PREFIX, RELEVANCE
from grounding.errors import BadInput, unknown_choice
from grounding.sinks import without_sinks
from probe.heads.questions import Block

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo

MEAN, FUSED = "mean", "all"  # the heads' mean; a map that the method itself makes of all heads
BASELINES = ("even", "centre", "ceiling")
_SPREAD = 0.25  # of the centre's Gaussian, in sides of the image; the threshold is tuned, so that it hardly matters


def as_stored(cells: np.ndarray, block: Block) -> np.ndarray:
    """The maps as they are."""
    return cells


def sink_filtered(cells: np.ndarray, block: Block) -> np.ndarray:
    """What a phrase looks at beyond the mean of the example's other phrases (``without_sinks``)."""
    return without_sinks(cells, block.example)


@dataclass(frozen=True)
class Kind:
    """A kind of maps. view: where they are stored; transform: of cells ``[P, C, cells]`` of a block."""

    name: str
    view: str
    transform: Callable[[np.ndarray, Block], np.ndarray] = as_stored


KINDS = {
    kind.name: kind
    for kind in (
        Kind("raw", "attention"),
        Kind("sink-filtered", "attention", sink_filtered),
        *(Kind(view.removeprefix(PREFIX), view) for view in RELEVANCE),
    )
}


def choose_kinds(names: Sequence[str], *runs: Run) -> list[Kind]:
    """The kinds of those names; without any, all that every run holds maps for.

    Raises BadInput for an unknown name, and for a run without the maps, with the command that adds them.
    """
    for name in names:
        if name not in KINDS:
            raise unknown_choice("kind", name, KINDS)
    held = [{view for site in run.sites for view in site.views} for run in runs]
    chosen = [kind for kind in KINDS.values() if (kind.name in names if names else all(kind.view in h for h in held))]
    for run, views in zip(runs, held, strict=True):
        lacking = [kind.view for kind in chosen if kind.view not in views] or ([] if chosen else ["attention"])
        if lacking:
            raise BadInput(
                f"run {str(run.path)!r} holds no {lacking[0]}; add it: probe extract --out {run.path} --add-view "
                f"{lacking[0]}"
            )
    return chosen


def holding(run: Run, kind: Kind, sites: Sequence[str] | None = None) -> list[SiteInfo]:
    """The sites of a run, or those of them that are named (``block.*`` takes a stage), that hold a kind's maps.

    Raises BadInput for a name of none of them.
    """
    there = [site for site in run.sites if kind.view in site.views]
    if sites is None:
        return there
    chosen = []
    for name in sites:
        found = [s for s in there if s.name == name or (name.endswith(".*") and s.stage == name[:-2])]
        if not found:
            raise unknown_choice("site", name, [site.name for site in there])
        chosen += [site for site in found if site not in chosen]
    return chosen


def read_maps(run: Run, site: str, kind: Kind, block: Block) -> tuple[list[str], Tensor]:
    """Names of the heads (their mean last, where there are several), and their maps ``[P, C, N, h, w]``."""
    cells = block.grid[0] * block.grid[1]
    rows = run.cell_offsets[block.phrase][:, None] + np.arange(cells)
    values = run.read(site, kind.view, rows.ravel()).reshape(len(block.phrase), cells, -1).transpose(0, 2, 1)
    if values.shape[1] == 1:
        return [FUSED], block.candidates(kind.transform(values, block))
    heads = [*map(str, range(values.shape[1])), MEAN]
    every = np.concatenate([values, values.mean(1, keepdims=True)], axis=1)
    return heads, block.candidates(kind.transform(every, block))


def baseline_maps(name: str, block: Block) -> Tensor:
    """Maps ``[P, N, h, w]`` that no phrase has a say in, or, for ``ceiling``, the truth itself.

    even: all cells alike; its pointing is chance. centre: the nearer to the middle of a candidate, the higher, the
    baseline of the pointing game (Zhang et al. 2016, arXiv 1608.00507). ceiling: the share of each cell that the truth
    covers: about the best that a map with so few cells can do.
    """
    height, width = block.coverage.shape[2:]
    shape = (len(block.phrase), block.images, height, width)
    if name == "even":
        return torch.ones(shape)
    if name == "centre":
        y, x = (((torch.arange(length) + 0.5) / length - 0.5) ** 2 for length in (height, width))
        return torch.exp(-(y[:, None] + x) / (2 * _SPREAD**2)).expand(shape)
    maps = torch.zeros(shape)
    maps[torch.arange(len(maps)), block.index] = block.coverage[:, 0].float()
    return maps
