"""From a predicted point on the canvas to the answer of a task, and back to each candidate's own coordinates."""

from __future__ import annotations

import numpy as np

from grounding.errors import BadInput
from grounding.examples import Example, PhrasePrediction, Point, Prediction, ReferenceGame, SpatialDescription
from grounding.metrics.tasks import sdr_solved


def target_point(example: Example) -> Point:
    """The point a model should give, relative to the stacked canvas: for a game the target's centre."""
    if isinstance(example.task, ReferenceGame):
        return 0.5, (example.task.target_index + 0.5) / len(example.images)
    return example.task.target_xy


def point_score(example: Example, point: Point) -> float:
    """How close a point is to the one it should be (``target_point``): minus the sum of both relative distances."""
    x, y = target_point(example)
    return -(abs(point[0] - x) + abs(point[1] - y))


def answer(example: Example, point: Point, score: float, phrases: tuple[PhrasePrediction, ...]) -> Prediction:
    """Prediction for a point (x, y) on the canvas: floor(y * N) is the candidate; ``sdr_solved`` judges a point.

    Raises BadInput for a point or score that is not finite: the model's weights are broken.
    """
    if not np.isfinite((*point, score)).all():
        raise BadInput(
            f"the model's answer to example {example.id!r} is {point} with score {score}, not finite; accepted: "
            "a model whose training did not diverge"
        )
    if isinstance(example.task, SpatialDescription):
        return Prediction(example.id, point, score, sdr_solved(point, example.task.target_xy), phrases)
    chosen = min(int(point[1] * len(example.images)), len(example.images) - 1)
    return Prediction(example.id, chosen, score, chosen == example.task.target_index, phrases)


def canvas_boxes_to_candidates(boxes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """xyxy boxes ``[K, 4]`` on a canvas of ``count`` stacked candidates -> boxes in their own, and which it is.

    A box belongs to the candidate that its centre is in; it is not clipped, so nothing is lost.
    """
    index = np.clip(((boxes[:, 1] + boxes[:, 3]) / 2 * count).astype(np.int64), 0, count - 1)
    own = boxes.copy()
    own[:, [1, 3]] = boxes[:, [1, 3]] * count - index[:, None]
    return own, index


def candidate_box_to_canvas(box: tuple[float, float, float, float], index: int, count: int) -> np.ndarray:
    """xyxy box in candidate ``index`` -> the same box on the stacked canvas."""
    x1, y1, x2, y2 = box
    return np.array([x1, (index + y1) / count, x2, (index + y2) / count], dtype=np.float32)
