"""How well the task is solved: reference games by accuracy, spatial description by distance in pixels.

Distance and accuracy at a distance are those of Touchdown (Chen et al., arXiv 1811.12354, section 6).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from grounding.errors import BadInput
from grounding.examples import Point

SDR_SIZE = (3712, 800)  # width and height of Touchdown's panoramas
SDR_THRESHOLDS = (40, 80, 120)  # pixels
SDR_SOLVED = 80  # pixels; an answer nearer than that solves its example (arXiv 2309.02691, section 5)


def game_accuracy(correct: Sequence[bool] | np.ndarray) -> float:
    """Share of games ``[E]`` whose target was chosen."""
    return float(_some(correct, "correct").mean())


def nested_weights(annotations: Sequence[str] | np.ndarray, tangrams: Sequence[str] | np.ndarray) -> np.ndarray:
    """Weights ``[E]`` (sum 1) that turn a weighted mean over games into the nested mean.

    An annotation is a group within its tangram: the same label under two tangrams is two annotations.
    """
    if len(annotations) != len(tangrams):
        raise BadInput(f"{len(annotations)} annotations for {len(tangrams)} tangrams; accepted: one each a game")
    table = pd.DataFrame({"annotation": np.asarray(annotations), "tangram": np.asarray(tangrams)})
    if table.isna().any(axis=None):
        raise BadInput("a game has no annotation or no tangram")
    games = table.groupby(["tangram", "annotation"])["annotation"].transform("size")
    annotations_each = table.groupby("tangram")["annotation"].transform("nunique")
    return (1 / (games * annotations_each * table["tangram"].nunique())).to_numpy()


def nested_accuracy(
    correct: Sequence[bool] | np.ndarray,
    annotations: Sequence[str] | np.ndarray,
    tangrams: Sequence[str] | np.ndarray,
) -> float:
    """KiloGram's accuracy: mean over an annotation's games, over a tangram's annotations, over tangrams.

    As in Ji et al., "Abstract Visual Reasoning with Tangram Shapes" (arXiv 2211.16492) and Kojima et al.
    """
    values = _some(correct, "correct")
    if len(values) != len(annotations):
        raise BadInput(f"{len(annotations)} annotations for {len(values)} games; accepted: one each")
    return float(values @ nested_weights(annotations, tangrams))


def sdr_distances(answers: np.ndarray, targets: np.ndarray, size: tuple[int, int] = SDR_SIZE) -> np.ndarray:
    """Euclidean distances ``[E]`` in pixels of an image of ``size`` (width, height).

    answers, targets: ``[E, 2]``, (x, y) relative to the image (0..1).
    """
    answers, targets = np.asarray(answers, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if answers.shape != targets.shape or answers.ndim != 2 or answers.shape[1] != 2:
        raise BadInput(f"answers {answers.shape} and targets {targets.shape} do not fit; accepted: [E, 2] each")
    if min(size) <= 0:
        raise BadInput(f"size {size} is not a width and a height in pixels")
    return np.hypot(*((answers - targets) * size).T)


def sdr_solved(answer: Point, target: Point) -> bool:
    """Whether a point solves a spatial description of a panorama: it is nearer than ``SDR_SOLVED`` pixels."""
    return bool(sdr_distances(np.array([answer]), np.array([target]))[0] < SDR_SOLVED)


def distance_accuracy(
    distances: Sequence[float] | np.ndarray, thresholds: Sequence[float] = SDR_THRESHOLDS
) -> dict[float, float]:
    """Share of distances ``[E]`` (pixels) strictly below each threshold."""
    values = _some(distances, "distances")
    return {threshold: float((values < threshold).mean()) for threshold in thresholds}


def consistency(
    distances: Sequence[float] | np.ndarray,
    captions: Sequence[str] | np.ndarray,
    thresholds: Sequence[float] = SDR_THRESHOLDS,
) -> dict[float, float]:
    """Share of captions whose descriptions are all solved: every distance ``[E]`` (pixels) below the threshold.

    captions: E labels; one caption describes the same point in several panoramas (Chen et al., section 6).
    """
    values = _some(distances, "distances")
    if len(values) != len(captions):
        raise BadInput(f"{len(captions)} captions for {len(values)} distances; accepted: one each")
    worst = pd.Series(values).groupby(np.asarray(captions)).max()
    return {threshold: float((worst < threshold).mean()) for threshold in thresholds}


def mean_distance(distances: Sequence[float] | np.ndarray) -> float:
    """Mean of distances ``[E]`` (pixels)."""
    return float(_some(distances, "distances").mean())


def _some(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise BadInput(f"{name} has shape {array.shape}; accepted: [E] finite numbers, 1 or more")
    return array
