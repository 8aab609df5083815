"""What is erased, read off a stored run: where a phrase's region is, and whether a patch belongs to any phrase.

Never the pair label, whether this phrase belongs to this region: a bilinear form of phrase and region survives the
erasure of it (DESIGN.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from grounding.errors import BadInput
from grounding.models.base import Site
from probe.interventions.erasers import Concept
from probe.splits import split_examples

if TYPE_CHECKING:
    from extract.reader import Run

_BOX = ["x1", "y1", "x2", "y2"]


@dataclass(frozen=True)
class Rows:
    """Rows of a concept, the same for every site. index: int64 ``[n]``, which rows of the view. example: ``[n]``."""

    concept: Concept
    index: np.ndarray
    example: np.ndarray


@dataclass(frozen=True)
class Question:
    """A concept by name: the stored view that it is read from, and the stream and group of tokens it is erased from."""

    view: str
    stream: str
    rows: Callable[[Run], Rows]


def place_rows(run: Run) -> Rows:
    """Of every phrase with regions: the box round them (in its own candidate) and which candidate it is in."""
    regions = run.regions[run.regions["phrase"] >= 0]
    boxes = regions.groupby("phrase").agg({"x1": "min", "y1": "min", "x2": "max", "y2": "max"})
    index = boxes.index.to_numpy()
    x1, y1, x2, y2 = boxes[_BOX].to_numpy().T
    numbers = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)
    candidate = run.phrases["image_index"].to_numpy()[index]
    indicators = candidate[:, None] == np.unique(candidate)
    classes = {"candidate index": candidate} if indicators.shape[1] > 1 else {}
    values = np.concatenate([numbers, indicators], axis=1).astype(np.float64)
    return Rows(Concept(values, classes, {"box": numbers}), index, run.phrases["example"].to_numpy()[index])


def membership_rows(run: Run) -> Rows:
    """Of every stored region: whether it is annotated with any phrase, or one of the boxes drawn beside those."""
    belongs = (run.regions["phrase"].to_numpy() >= 0).astype(np.int64)
    if len(np.unique(belongs)) < 2:
        raise BadInput(
            "the run's regions are all of phrases, or none is; extract again with annotations and extra boxes"
        )
    concept = Concept(belongs[:, None].astype(np.float64), {"membership": belongs}, {})
    return Rows(concept, np.arange(len(belongs)), run.regions["example"].to_numpy())


CONCEPTS: Mapping[str, Question] = {
    "place": Question("phrase", "text", place_rows),
    "membership": Question("region", "image", membership_rows),
}


def read_states(run: Run, site: Site, question: Question, rows: Rows) -> np.ndarray:
    """The site's own states of those rows, float64 ``[n, D]``. Raises BadInput where the run does not hold them."""
    if question.view not in run.site(site.name).views:
        raise BadInput(
            f"run {str(run.path)!r} holds no {question.view} rows of site {site.name!r}; extract them: --views "
            f"{question.view} --sites {site.name}"
        )
    states = run.read(site.name, question.view, rows.index).astype(np.float64)
    if not np.isfinite(states).all():
        raise BadInput(
            f"site {site.name!r}: {int((~np.isfinite(states)).any(1).sum())} {question.view} rows are not finite; "
            "leave the site out, or extract it again in float32 or bfloat16"
        )
    return states


def train_part(run: Run, seed: int) -> np.ndarray:
    """Which examples of a run erasers are fitted on, bool ``[examples]``: all but two fifths, images kept whole."""
    return split_examples(run.examples, "image", seed=seed) == "train"
