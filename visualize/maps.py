"""Maps of an example's phrases over its images: attention, relevance, probes; and what they are in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from extract.reader import ATTENTION, BACK
from grounding.errors import BadInput, unknown_choice
from grounding.sinks import without_sinks
from visualize.canvas import signed_strength, spread_canvas, strength
from visualize.case import Case

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo

FILTERED, PROBE = "sink-filtered", "probe"
TASK = "-task"
INTEGRATED = "relevance.integrated-gradients"
HEADED = (ATTENTION, BACK, FILTERED, "relevance.gradient-attention")  # a map for each head
_NAMES = {
    ATTENTION: ("attention from each phrase", "at"),
    BACK: ("attention back, from each image cell to the phrase", "at"),
    FILTERED: ("attention beyond that of the other phrases (sinks filtered out)", "at"),
    "relevance.rollout": ("attention rollout", "up to"),
    "relevance.gradient": ("gradient-weighted relevance", "up to"),
    "relevance.gradient-attention": ("attention times its gradient", "at"),
    INTEGRATED: ("integrated gradients", "at"),
    "relevance.grad-cam": ("Grad-CAM", "at"),
    "relevance.occlusion": ("occlusion: how much the score falls without a cell", "at"),
}
KINDS = (*_NAMES, *(f"{name}{TASK}" for name in _NAMES if name.startswith("relevance.")))


@dataclass(frozen=True)
class SiteMaps:
    """Maps of one kind from a case's phrases to the canvas at one site.

    cells: row of the phrase -> ``[rows, columns]`` over the stacked candidates. head: None for the mean over ``heads``
    heads, or where the kind has one map of all of them (heads 1). remarks: row of the phrase -> what is to be known of
    its map. words: what the maps are, if the kind alone does not say it; label: the same in a word or two, for a row of
    a grid.
    """

    kind: str
    site: str
    cells: Mapping[int, np.ndarray]
    head: int | None = None
    heads: int = 1
    remarks: Mapping[int, str] = field(default_factory=dict)
    words: str = ""
    label: str = ""

    @property
    def title(self) -> str:
        """What the maps are, in words."""
        name, where = _NAMES.get(self.kind.removesuffix(TASK), (self.kind, "at"))
        name = self.words or name
        explained = " of the task's score" if self.kind.endswith(TASK) else ""
        return f"{name[0].upper()}{name[1:]}{explained} {where} {self.site}{self._of_heads(', ')}"

    @property
    def parts(self) -> tuple[str, str, str]:
        """Kind, site and heads, in a word or two each."""
        return self.label or self.kind.removeprefix("relevance."), self.site, self._of_heads("")

    def _of_heads(self, comma: str) -> str:
        if self.head is not None:
            return f"{comma}head {self.head} of {self.heads}"
        return f"{comma}mean over {self.heads} heads" if self.heads > 1 else ""

    @property
    def signed(self) -> bool:
        """Whether some cells speak against their phrase: values below 0."""
        return any(bool((cells < 0).any()) for cells in self.cells.values())

    def painted(self, case: Case, row: int) -> list[np.ndarray]:
        """A phrase's map as strengths of colour (0..1; signed: -1..1) at each candidate's pixels, ``[height, width]``.

        Cells lie where the token layout has them: nothing is interpolated.
        """
        cells = np.nan_to_num(np.asarray(self.cells[row], dtype=np.float32))
        return spread_canvas(signed_strength(cells) if self.signed else strength(cells), case.sizes)


def view_of(kind: str) -> str:
    """The view of a run that a kind of maps is read from."""
    return ATTENTION if kind == FILTERED else kind


def kinds_of(run: Run) -> list[str]:
    """The kinds of maps that a run holds somewhere: ``attention``, ``sink-filtered``, ``relevance.METHOD``."""
    held = {view for site in run.sites for view in site.views}
    return [kind for kind in KINDS if view_of(kind) in held]


def sites_with(run: Run, kind: str) -> list[SiteInfo]:
    """The sites that hold a kind of maps, in the run's order. Raises BadInput for an unknown kind, and for none."""
    if kind not in KINDS:
        raise unknown_choice("map", kind, [*KINDS, PROBE])
    view = view_of(kind)
    found = [site for site in run.sites if view in site.views]
    if not found:
        held = f", only {', '.join(kinds)}" if (kinds := kinds_of(run)) else ""
        added = f"probe extract --out {run.path} --add-view {view}"
        raise BadInput(f"map {kind!r}: this run holds no {view}{held}; add it: {added}")
    return found


def read_maps(
    run: Run, case: Case, kind: str = ATTENTION, site: str | None = None, head: int | None = None
) -> SiteMaps:
    """Stored maps of a case's phrases at a site (None: the last that holds any): one head (0-based), or their mean.

    kind: of ``kinds_of``. head: of no account where a kind has one map of all heads. Integrated gradients come with
    their completeness check. Raises BadInput for a kind, site or head that the run does not have.
    """
    held = {one.name: one for one in sites_with(run, kind)}
    site = list(held)[-1] if site is None else site
    if site not in held:
        raise unknown_choice("site", site, held)
    of_query = kind == ATTENTION and "text" not in held[site].streams
    maps, heads = {}, 1
    for phrase in case.phrases:
        every = run.maps(site, view_of(kind), phrase.row)
        heads = len(every)
        if head is not None and heads > 1 and not 0 <= head < heads:
            raise BadInput(f"head {head} is not at site {site!r}; accepted: 0 to {heads - 1}, or none for their mean")
        maps[phrase.row] = every.mean(axis=0) if head is None or heads == 1 else every[head]
    if kind == FILTERED and maps:
        filtered = without_sinks(np.stack(list(maps.values())), np.zeros(len(maps), dtype=np.int64))
        maps = dict(zip(maps, filtered, strict=True))
    remarks = completeness_told(run, site, kind, list(maps))
    words = "cross-attention from each phrase's query" if of_query else ""
    return SiteMaps(kind, site, maps, head if heads > 1 else None, heads, remarks, words)


def read_layers(
    run: Run, case: Case, kind: str = ATTENTION, head: int | None = None, sites: Sequence[str] | None = None
) -> list[SiteMaps]:
    """A kind of maps at every site that holds it (or at ``sites``), in the order of computation."""
    names = sites or [site.name for site in sites_with(run, kind)]
    return [read_maps(run, case, kind, name, head) for name in names]


def read_heads(run: Run, case: Case, kind: str = ATTENTION, site: str | None = None) -> list[SiteMaps]:
    """The map of every head at a site (None: the last that holds any), then their mean.

    Raises BadInput for a kind that has one map of all heads, and as ``read_maps`` does.
    """
    mean = read_maps(run, case, kind, site)
    if mean.heads == 1 and case.phrases:
        raise BadInput(f"map {kind!r} at site {mean.site!r} is one of all heads; accepted: a map with heads, attention")
    return [*(read_maps(run, case, kind, mean.site, head) for head in range(mean.heads)), mean]


def completeness_told(run: Run, site: str, view: str, rows: Sequence[int]) -> dict[int, str]:
    """Of each phrase's integrated gradients: by how much they fail to sum to the change of the score; {} of others."""
    if view.removesuffix(TASK) != INTEGRATED:
        return {}
    table = run.completeness(site, view)
    told = {}
    for row in rows:
        change, missed = (float(value) for value in table[row])
        share = f" ({abs(missed / change):.1%})" if change else ""
        told[row] = f"completeness check: the sum misses the score's change of {change:.3g} by {abs(missed):.2g}{share}"
    return told
