"""What a report is of: a run with what was computed of it, and how the examples of several runs go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from grounding.errors import BadInput
from grounding.grounded import GROUNDED_AT, check_grounded_at
from visualize.gallery import Outcomes

if TYPE_CHECKING:
    import pandas as pd

    from extract.reader import Run


@dataclass(frozen=True)
class Words:
    """A summary that was written elsewhere, as Markdown, with the charts that lie beside it (PNG)."""

    title: str
    markdown: str
    charts: Sequence[Path] = ()


class ProbeMaps(Protocol):
    """Maps of probes, computed when they are asked for; the probes are fitted elsewhere (``probe.phrase_maps``).

    sites: names of those that have a probe. part: row of the example -> the part of the probes' split it is in; only
    ``test`` was seen by neither fitting nor choosing.
    """

    @property
    def sites(self) -> Sequence[str]: ...

    @property
    def part(self) -> Mapping[int, str]: ...

    def read(self, site: str, phrases: np.ndarray) -> np.ndarray:
        """Maps of these rows of the phrases at a site, cell by cell, one below the other: float ``[cells]``."""
        ...


@dataclass(frozen=True, eq=False)
class Subject:
    """A run, its name on the pages, and what was computed of it.

    grounded_at: grounding from which on an example counts as grounded. sweep, measures: tidy tables of its sweep.
    items: what the sweep's probes found of each phrase (columns question, probe, site, seed, phrase, correct, iou).
    heads: table of ``probe heads``. words: summaries. probed: where probes put phrases. Raises BadInput for a
    ``grounded_at`` that is not above 0, and at most 1.
    """

    run: Run
    name: str
    sweep: pd.DataFrame | None = None
    items: pd.DataFrame | None = None
    heads: pd.DataFrame | None = None
    measures: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    words: Sequence[Words] = ()
    probed: ProbeMaps | None = None
    grounded_at: float = GROUNDED_AT

    def __post_init__(self) -> None:
        check_grounded_at(self.grounded_at)

    @cached_property
    def outcomes(self) -> Outcomes:
        """Task and grounding of every example."""
        return Outcomes.of(self.run, self.grounded_at)

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether each example's task is solved, missing as in ``Outcomes``: object ``[examples]``."""
        return self.outcomes.table["correct"].to_numpy(object)

    @cached_property
    def left_out(self) -> dict[str, frozenset[str]]:
        """Example -> phrases that the run leaves out, by their ids: their words lie beyond the token limit."""
        lost: dict[str, set[str]] = {}
        for example, phrase in self.run.manifest.get("dropped_phrases", ()):
            lost.setdefault(example, set()).add(phrase)
        return {example: frozenset(phrases) for example, phrases in lost.items()}

    @cached_property
    def columns(self) -> dict[str, dict[str, np.ndarray]]:
        """The tables of the run as arrays: table -> column -> values; a row of them is read a hundred times faster."""
        tables = {"examples": self.run.examples, "phrases": self.run.phrases, "regions": self.run.regions}
        return {name: {column: table[column].to_numpy() for column in table} for name, table in tables.items()}

    def phrase_rows(self, example_rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Rows of the phrases of each of these examples, in the table's order."""
        return [self._phrases[self._first_phrase[row] : self._first_phrase[row + 1]] for row in example_rows]

    def region_rows(self, phrase_row: int) -> np.ndarray:
        """Rows of the annotated regions of a phrase."""
        return self._regions[self._first_region[phrase_row] : self._first_region[phrase_row + 1]]

    @cached_property
    def _phrases(self) -> np.ndarray:
        return np.argsort(self.columns["phrases"]["example"], kind="stable")

    @cached_property
    def _first_phrase(self) -> np.ndarray:
        return _firsts(self.columns["phrases"]["example"], len(self.run.examples))

    @cached_property
    def _regions(self) -> np.ndarray:
        regions = self.columns["regions"]
        rows = np.flatnonzero((regions["kind"] == "annotated") & (regions["phrase"] >= 0))
        return rows[np.argsort(regions["phrase"][rows], kind="stable")]

    @cached_property
    def _first_region(self) -> np.ndarray:
        return _firsts(self.columns["regions"]["phrase"][self._regions], len(self.run.phrases))


def _firsts(owner: np.ndarray, count: int) -> np.ndarray:
    """Where the rows of each of ``count`` owners begin among all, sorted by owner; and where the last ones end."""
    return np.concatenate([[0], np.cumsum(np.bincount(owner.astype(np.int64), minlength=count))])


def match_runs(subjects: Sequence[Subject]) -> list[np.ndarray]:
    """For each run the rows of the examples in the order of the first run.

    Raises BadInput for no runs, a run without examples, names that are not unique, and runs of different examples.
    """
    if not subjects:
        raise BadInput("runs: none given; accepted: one or more")
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise BadInput(f"runs are called {', '.join(map(repr, names))}; accepted: a name of its own for each")
    first = subjects[0]
    if not len(first.run.examples):
        raise BadInput(f"run {first.name!r} holds no examples: there is nothing to report")
    return [_rows_of(first, subject) for subject in subjects]


def _rows_of(first: Subject, other: Subject) -> np.ndarray:
    (ids, captions), (own_ids, own_captions) = (
        (s.columns["examples"]["id"], s.columns["examples"]["caption"]) for s in (first, other)
    )
    places = {name: row for row, name in enumerate(own_ids)}
    shared = [name for name in ids if name in places]
    if len(shared) < len(ids) or len(places) != len(ids):
        raise BadInput(
            f"runs {first.name!r} and {other.name!r} hold different examples: {len(ids)} and {len(own_ids)}, "
            f"{len(shared)} of them shared; accepted: runs of the same examples"
        )
    rows = np.array([places[name] for name in ids], dtype=np.int64)
    differs = np.flatnonzero(captions != own_captions[rows])
    if len(differs):
        name = ids[differs[0]]
        raise BadInput(f"example {name!r} has another caption in run {other.name!r} than in {first.name!r}")
    return rows
