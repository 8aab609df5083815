"""What will be drawn of a run, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example
from grounding.grounded import GROUNDED_AT
from visualize.case import Case, find_row, gather
from visualize.gallery import Outcomes, Selection, four_quadrants, grounded_or_not, right_and_wrong
from visualize.maps import (
    ATTENTION,
    HEADED,
    PROBE,
    TASK,
    SiteMaps,
    kinds_of,
    read_heads,
    read_layers,
    read_maps,
    sites_with,
)
from visualize.measures import FIGURES
from visualize.ranked import Changes, Gaps, biggest_gaps, most_changed

if TYPE_CHECKING:
    import pandas as pd

    from extract.reader import Run

GRIDS = ("layers", "heads", "maps")


@dataclass(frozen=True)
class Look:
    """Which maps of examples are drawn, and how.

    maps: kinds (``visualize.maps.kinds_of``, and ``probe``); none: attention, where the run has it. site, head: whose;
    a kind's last site, and the mean over heads, by default. grids: of ``GRIDS``: pages of an example with a row for
    each layer, each head, or each kind of map. probed: maps of probes, a site each, for ``probe``.
    """

    maps: Sequence[str] = ()
    site: str | None = None
    head: int | None = None
    grids: Sequence[str] = ()
    probed: Sequence[SiteMaps] = ()


@dataclass(frozen=True)
class Plan:
    """What will be drawn of a run. See ``visualize.figures.draw``."""

    run: Run
    examples: Mapping[str, Example]
    outcomes: Outcomes
    galleries: Mapping[str, Sequence[Sequence[Selection]]]
    rows: tuple[int, ...]
    look: Look
    sweep: pd.DataFrame | None = None
    note: str | None = None
    interventions: Sequence[pd.DataFrame] = ()
    measures: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    heads: pd.DataFrame | None = None
    gaps: Gaps | None = None
    against: Run | None = None
    changes: Changes | None = None

    @property
    def measured(self) -> list[tuple[str, str]]:
        """(measure, question) of each figure of a measure."""
        held = [name for name in FIGURES if name in self.measures]
        return [(name, question) for name in held for question in self.measures[name]["question"].unique()]

    def maps(self, case: Case) -> list[SiteMaps]:
        """The maps that a case is drawn with, each kind at one site."""
        if not case.phrases:
            return []
        return [self._at_one_site(case, kind) for kind in self.look.maps]

    def kinds_in(self, grid: str) -> list[str]:
        """The kinds of maps that a grid has a page for; of ``maps``, which is one page of all kinds, no name."""
        if grid == "maps":
            return [""]
        return [kind for kind in self.look.maps if grid == "layers" or kind.removesuffix(TASK) in HEADED]

    def grid(self, case: Case, grid: str, kind: str) -> list[SiteMaps]:
        """The rows of a grid of a case. Raises BadInput as ``read_maps`` and ``read_heads`` do."""
        if grid == "maps":
            every = [*kinds_of(self.run), *([PROBE] if self.look.probed else [])]
            return [self._at_one_site(case, one) for one in every]
        if grid == "heads":
            return read_heads(self.run, case, kind, self._site(kind))
        return list(self.look.probed) if kind == PROBE else read_layers(self.run, case, kind, self.look.head)

    def _at_one_site(self, case: Case, kind: str) -> SiteMaps:
        if kind != PROBE:
            return read_maps(self.run, case, kind, self._site(kind), self.look.head)
        named = [maps for maps in self.look.probed if maps.site == self.look.site]
        return (named or list(self.look.probed))[-1]

    def _site(self, kind: str) -> str | None:
        """The site that was asked for where the kind is held there, else (of several kinds) the kind's last."""
        names = [site.name for site in sites_with(self.run, kind)]
        return self.look.site if self.look.site in names else names[-1]


def make_plan(
    run: Run,
    examples: Mapping[str, Example],
    chosen: Sequence[str] = (),
    look: Look | None = None,
    count: int = 4,
    seed: int = 0,
    gaps: Gaps | None = None,
    against: Run | None = None,
    grounded_at: float = GROUNDED_AT,
    **tables: Any,
) -> Plan:
    """The plan of a run: which examples are drawn, in which galleries, with which maps.

    Arguments are those of ``draw``; tables: further fields of the plan. Raises BadInput as ``draw`` does.
    """
    if not len(run.examples):
        raise BadInput("the run holds no examples: there is nothing to draw")
    outcomes = Outcomes.of(run, grounded_at)
    galleries = _galleries(outcomes, count, seed)
    rows = _rows(run, galleries, chosen)
    if gaps is not None:
        galleries = galleries | {"expression-gap": [[biggest_gaps(gaps, count, seed)]]}
    changes = None if against is None else most_changed(against, run, count, seed)
    look = _checked(run, look or Look())
    plan = Plan(
        run, examples, outcomes, galleries, rows, look, gaps=gaps, against=against, changes=changes, **tables
    )  # fmt: skip
    for first in [gather(run, row, {}) for row in rows[:1]]:  # refuses what is not there
        plan.maps(first)
        for grid in plan.look.grids:
            for kind in plan.kinds_in(grid):
                plan.grid(first, grid, kind)
    return plan


def _rows(run: Run, galleries: Mapping[str, Sequence[Sequence[Selection]]], chosen: Sequence[str]) -> tuple[int, ...]:
    """The examples with a page of their own: those chosen by id, else the first of each group of the last
    gallery, or where there is no gallery the first of the run."""
    if chosen:
        return tuple(find_row(run, example_id) for example_id in chosen)
    firsts = ([s.rows[0] for band in g for s in band if s.rows] for g in reversed(list(galleries.values())))
    return tuple(next(filter(None, firsts), (0,)))


def _galleries(outcomes: Outcomes, count: int, seed: int) -> dict[str, list[list[Selection]]]:
    """Those that there is something to show in; without a task, or a model that answers it, grounding alone."""
    answered, known = (bool(outcomes.table[name].notna().any()) for name in ("score", "grounding"))
    if not answered:
        return {"grounded-or-not": grounded_or_not(outcomes, count, seed)} if known else {}
    found = {"right-and-wrong": right_and_wrong(outcomes, count, seed)}
    return found | ({"quadrants": four_quadrants(outcomes, max(count // 2, 1), seed)} if known else {})


def _checked(run: Run, look: Look) -> Look:
    """The look with its default map filled in. Raises BadInput for maps, sites and grids that are not there."""
    for grid in look.grids:
        if grid not in GRIDS:
            raise unknown_choice("grid", grid, GRIDS)
    kinds = tuple(look.maps)
    if not kinds:
        kinds = (ATTENTION,) if look.site or look.head is not None or look.grids or ATTENTION in kinds_of(run) else ()
    sites = {kind: [site.name for site in sites_with(run, kind)] for kind in kinds if kind != PROBE}
    known = [name for names in sites.values() for name in names] + [maps.site for maps in look.probed]
    if look.site is not None and look.site not in known:
        raise unknown_choice("site", look.site, list(dict.fromkeys(known)))
    if "heads" in look.grids and not any(kind.removesuffix(TASK) in HEADED for kind in kinds):
        raise BadInput(f"grid 'heads': {', '.join(kinds)} has one map of all heads; accepted: with {', '.join(HEADED)}")
    if PROBE in kinds and not look.probed:
        raise BadInput(f"map {PROBE!r}: no maps of probes were given; accepted: {', '.join(kinds_of(run)) or 'none'}")
    return replace(look, maps=kinds)
