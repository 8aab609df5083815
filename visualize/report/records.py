"""Plain records of examples, as the pages read them: numbers rounded, what is unknown is None."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from grounding.examples import Example, Phrase

if TYPE_CHECKING:
    from visualize.report.subject import Subject

DIGITS = 4  # of relative coordinates and scores
PREDICTED = tuple(f"predicted_{corner}" for corner in ("x1", "y1", "x2", "y2"))


@dataclass(frozen=True)
class Series:
    """What one probe found of phrases, layer by layer.

    found: phrase row -> whether it was found, 0 to 1, at each of ``sites`` (NaN where it was not asked). ious: the same
    of the IoU of what was found, empty where the question has none.
    """

    question: str
    probe: str
    sites: tuple[str, ...]
    found: Mapping[int, np.ndarray]
    ious: Mapping[int, np.ndarray]

    def record(self) -> dict[str, Any]:
        """The series without its values."""
        return {"question": self.question, "probe": self.probe, "sites": list(self.sites)}


def series_of(items: pd.DataFrame | None) -> list[Series]:
    """The series of a sweep's items, of its first seed; questions about examples are left out."""
    if items is None or items.empty:
        return []
    items = items[(items["phrase"] >= 0) & (items["seed"] == items["seed"].min())]
    made = []
    for (question, probe), mine in items.groupby(["question", "probe"], sort=False):
        sites = list(dict.fromkeys(mine["site"]))
        found, ious = ({} if mine[name].isna().all() else _by_phrase(mine, name, sites) for name in ("correct", "iou"))
        made.append(Series(str(question), str(probe), tuple(sites), found, ious))
    return made


def _by_phrase(items: pd.DataFrame, values: str, sites: list[str]) -> dict[int, np.ndarray]:
    wide = items.pivot_table(index="phrase", columns="site", values=values, sort=False).reindex(columns=sites)
    return dict(zip(wide.index.to_numpy(), wide.to_numpy(np.float32), strict=True))


def example_record(
    subjects: Sequence[Subject],
    rows: Sequence[int],
    series: Sequence[Sequence[Series]],
    example: Example | None,
    images: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """One example with what every run has of it.

    rows: its row in each run. series: of each run. example: for polygons. images: records of ``ImageFolder``.
    Phrases are those of all runs by id, in the order in which they come, then those that every run leaves out, as far
    as ``example`` tells of them; a run that lacks one has None for it, and counts it in ``leftOut``.
    """
    first = subjects[0].columns["examples"]
    known = {phrase.id: phrase for phrase in example.phrases} if example is not None else {}
    phrases: dict[str, dict[str, Any]] = {}
    own: list[dict[str, dict[str, Any]]] = []
    for subject, row, mine in zip(subjects, rows, series, strict=True):
        found = {}
        for number, phrase_row in enumerate(subject.phrase_rows([row])[0]):
            key = str(subject.columns["phrases"]["id"][phrase_row])
            if key not in phrases:
                polygons = _polygons(known[key]) if key in known else []
                phrases[key] = _phrase(subject, int(phrase_row)) | {"polygons": polygons}
            found[key] = _found(subject, int(phrase_row), mine) | {"map": number}
        own.append(found)
    name = str(first["id"][rows[0]])
    lost = [subject.left_out.get(name, frozenset()) for subject in subjects]
    for phrase in known.values():
        if phrase.id not in phrases and any(phrase.id in ids for ids in lost):
            phrases[phrase.id] = _unread(phrase, str(first["caption"][rows[0]]))
    outcomes = [
        _outcome(subject, row) | {"part": subject.probed.part.get(int(row)) if subject.probed is not None else None}
        for subject, row in zip(subjects, rows, strict=True)
    ]
    return {
        "id": name,
        "caption": str(first["caption"][rows[0]]),
        "images": list(images),
        "target": _target(first, rows[0]),
        "phrases": list(phrases.values()),
        "runs": [
            outcome | {"leftOut": len(without), "phrases": [found.get(key) for key in phrases]}
            for outcome, found, without in zip(outcomes, own, lost, strict=True)
        ],
    }


def rounded(value: Any, digits: int = DIGITS) -> float | None:
    """A number for a page; None for NaN and infinities."""
    number = float(value)
    return round(number, digits) if np.isfinite(number) else None


def _phrase(subject: Subject, row: int) -> dict[str, Any]:
    table, regions = subject.columns["phrases"], subject.columns["regions"]
    own = subject.region_rows(row)
    boxes = np.stack([regions[corner][own] for corner in ("x1", "y1", "x2", "y2")], 1)
    return {
        "id": str(table["id"][row]),
        "text": str(table["text"][row]),
        "type": str(table["type"][row]),
        "spans": json.loads(table["spans"][row]),
        "image": int(table["image_index"][row]),
        "boxes": _points(boxes),
    }


def _unread(phrase: Phrase, caption: str) -> dict[str, Any]:
    """A phrase that no run holds, as its example has it."""
    return {
        "id": phrase.id,
        "text": phrase.text(caption),
        "type": phrase.type,
        "spans": [list(span) for span in phrase.spans],
        "image": phrase.image_index,
        "boxes": _points([region.box for region in phrase.regions]),
        "polygons": _polygons(phrase),
    }


def _polygons(phrase: Phrase) -> list[list[list[float]]]:
    return [_points(polygon) for region in phrase.regions for polygon in region.polygons]


def _found(subject: Subject, row: int, series: Sequence[Series]) -> dict[str, Any]:
    """Where a run puts a phrase, and what its probes find. ``probes``, ``ious``: number of the series -> values."""
    table = subject.columns["phrases"]
    box = [rounded(table[name][row]) for name in PREDICTED] if PREDICTED[0] in table else [None]
    index = int(table["predicted_image_index"][row]) if "predicted_image_index" in table else -1
    predicted = {"image": index, "box": box} if index >= 0 and None not in box else None
    probes, ious = (
        {number: [rounded(value, 3) for value in held[row]] for number, held in enumerate(of) if row in held}
        for of in ([one.found for one in series], [one.ious for one in series])
    )
    return {
        "iou": rounded(table["iou"][row]),
        "pointing": rounded(table["pointing"][row]),
        "predicted": predicted,
        "probes": probes,
        "ious": ious,
    }


def _outcome(subject: Subject, row: int) -> dict[str, Any]:
    """The task's answer (None without one, and where there is no choice), its score, whether it is right.

    Right or not is None where there is no choice, and where the run answers nothing.
    """
    table = subject.columns["examples"]
    answer: Any
    if table["task"][row] == "game":
        answer = int(table["answer_index"][row])
        answer = None if answer < 0 else answer
    else:
        answer = [rounded(table[name][row]) for name in ("answer_x", "answer_y")]
        answer = None if None in answer else answer
    correct = subject.correct[row]
    return {
        "answer": answer,
        "correct": None if correct is pd.NA else bool(correct),
        "score": None if answer is None else rounded(table["task_score"][row]),
    }


def _target(table: Mapping[str, np.ndarray], row: int) -> Any:
    """The right candidate of a game, the point of a spatial description."""
    if table["task"][row] == "game":
        return int(table["target_index"][row])
    return [rounded(table["target_x"][row]), rounded(table["target_y"][row])]


def _points(points: Any) -> list[list[float]]:
    return np.round(np.asarray(points, dtype=float), DIGITS).tolist()
