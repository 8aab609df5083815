"""What the pages of a report show, piece by piece: written one after the other, or made when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from visualize.maps import completeness_told
from visualize.report.index import Table, grounding_column, run_record
from visualize.report.maps import read_maps
from visualize.report.records import example_record, series_of
from visualize.style import PHRASE_COLOURS, heat_colours

if TYPE_CHECKING:
    from grounding.examples import Example
    from visualize.report.budget import Choice, Held
    from visualize.report.overview import Overview
    from visualize.report.subject import Subject


class Content:
    """Runs of the same examples. rows: of each run, the row of every example. examples: id -> example."""

    def __init__(self, subjects: Sequence[Subject], rows: Sequence[np.ndarray], examples: Mapping[str, Example]):
        self.subjects, self.rows, self.examples = subjects, rows, examples
        self.series = [series_of(subject.items) for subject in subjects]
        self.table = Table(len(subjects))
        self._groundings = [grounding_column(subject) for subject in subjects]

    @property
    def count(self) -> int:
        """How many examples there are."""
        return len(self.rows[0])

    @property
    def title(self) -> str:
        """The names of the runs, or how many there are."""
        names = [subject.name for subject in self.subjects]
        return " and ".join(names) if len(names) < 3 else f"{len(names)} runs"

    def example(self, place: int) -> tuple[Example | None, int]:
        """The example at a place, None where it was not given; and how many images it has."""
        table, row = self.subjects[0].columns["examples"], self.rows[0][place]
        return self.examples.get(table["id"][row]), int(table["n_images"][row])

    def record(self, place: int, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """An example with what every run has of it. images: records of ``ImageFolder``."""
        own = [int(rows[place]) for rows in self.rows]
        return example_record(self.subjects, own, self.series, self.example(place)[0], images)

    def add_to_index(self, place: int, record: Mapping[str, Any]) -> None:
        """Add an example to the index, in the order of places."""
        groundings = [column[rows[place]] for column, rows in zip(self._groundings, self.rows, strict=True)]
        self.table.add(record, groundings)

    def maps(self, number: int, held: Held, chunk: int) -> dict[str, Any]:
        """Maps of one view of run ``number`` for the ``held.chunk`` examples of a chunk.

        remarks: of each unit that has any, a sentence a phrase: the completeness check of integrated gradients.
        """
        subject, begin = self.subjects[number], chunk * held.chunk
        phrases = subject.phrase_rows(self.rows[number][begin : begin + held.chunk])
        flat = np.concatenate([*phrases, np.empty(0, np.int64)]).astype(np.int64)
        firsts = np.cumsum([0, *(len(each) for each in phrases)])[:-1].tolist()
        told = (completeness_told(subject.run, unit.site, held.view, flat.tolist()) for unit in held.units)
        remarks = [list(sentences.values()) or None for sentences in told]
        return {"firsts": firsts, "remarks": remarks} | read_maps(subject, held.view, flat, held.units).record()

    def index(
        self, title: str | None, overview: Overview, choices: Sequence[Choice], chunk: int, missing: int = 0
    ) -> dict[str, Any]:
        """The index, once all examples are in it. chunk: examples a file. missing: images that cannot be shown."""
        runs = [
            run_record(subject, series, choice.held, choice.left_out) | {"figures": figures, "words": words}
            for subject, series, choice, figures, words in zip(
                self.subjects, self.series, choices, overview.charts, overview.words, strict=True
            )
        ]
        about = {"title": title or self.title, "runs": runs, "words": overview.shared, "chunk": chunk}
        return about | {"missing": missing} | _look() | self.table.record()


def _look() -> dict[str, Any]:
    """Colours of the pages: those of the figures."""
    heat = (np.asarray(heat_colours()(np.arange(256)))[:, :3] * 255).round().astype(int).tolist()
    return {"heat": heat, "phraseColours": list(PHRASE_COLOURS)}
