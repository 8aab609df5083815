"""Predictions of any program, checked against the examples that they are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from grounding.benchmarks.base import Skipped
from grounding.errors import BadInput
from grounding.examples import Example, Phrase, PhrasePrediction, Prediction, ReferenceGame
from grounding.metrics.measure import PhraseItem

DROPPED = "has no tokens, or not all of them within the model's token limit"


class Predictions(list[Prediction]):
    """Predictions in the order of their examples, and what has none.

    skipped: examples left out because they are broken. dropped_phrases: (example id, phrase id) of phrases
    without tokens, or with some beyond the model's token limit. Both are excluded from scores and reported.
    """

    def __init__(self, predictions: Iterable[Prediction] = ()):
        super().__init__(predictions)
        self.skipped: list[Skipped] = []
        self.dropped_phrases: list[tuple[str, str]] = []

    def add(self, others: Predictions) -> None:
        """Append the predictions of other examples, with what those lack."""
        self.extend(others)
        self.skipped += others.skipped
        self.dropped_phrases += others.dropped_phrases


def match(
    examples: Sequence[Example], predictions: Sequence[Prediction], need_answers: bool = True
) -> tuple[list[tuple[Example, Prediction]], list[PhraseItem]]:
    """Pair examples with predictions, and phrases that have regions with theirs, by id, in the examples' order.

    Raises BadInput, naming the example, for anything missing, unknown, given twice, not finite, or of the wrong
    shape or format; and as ``check_examples`` does. need_answers: whether a task answer that is None is missing.
    """
    check_examples(examples)
    known = predictions if isinstance(predictions, Predictions) else Predictions()
    skipped, dropped = {skip.id for skip in known.skipped}, set(known.dropped_phrases)
    wanted = [example for example in examples if example.id not in skipped]
    if not wanted:
        raise BadInput(f"all {len(examples)} examples were skipped: nothing is left to evaluate")
    by_id = {prediction.example_id: prediction for prediction in predictions}
    _check_ids("prediction", "example", [e.id for e in wanted], [p.example_id for p in predictions])
    pairs, items = [], []
    for example in wanted:
        prediction = by_id[example.id]
        where = f"prediction for example {example.id!r}"
        if prediction.answer is not None:
            _check_answer(example, prediction, where)
        elif need_answers and example.has_task:
            raise BadInput(f"{where}: no task answer; accepted: one each, unless grounding alone is evaluated")
        phrases = [phrase for phrase in example.phrases if (example.id, phrase.id) not in dropped]
        given = [phrase.phrase_id for phrase in prediction.phrases]
        _check_ids(where, "phrase", [phrase.id for phrase in phrases], given)
        of_phrase = dict(zip(given, prediction.phrases, strict=True))
        pairs.append((example, prediction))
        size = prediction.canvas_size
        items += [_item(example, phrase, of_phrase[phrase.id], size, where) for phrase in phrases if phrase.regions]
    return pairs, items


def check_examples(examples: Sequence[Example]) -> None:
    """BadInput for no examples, an id given twice, examples of both tasks, or one without the group ``image``."""
    if not examples:
        raise BadInput("there are no examples to evaluate")
    name, count = Counter(example.id for example in examples).most_common(1)[0]
    if count > 1:
        raise BadInput(f"example id {name!r} occurs {count} times; accepted: once")
    if len({isinstance(example.task, ReferenceGame) for example in examples}) > 1:
        raise BadInput("examples mix reference games and spatial descriptions; accepted: one task")
    for example in examples:
        if not example.groups.get("image"):
            raise BadInput(f"example {example.id!r} has no group 'image', which intervals resample")


def _check_ids(where: str, kind: str, wanted: list[str], given: list[str]) -> None:
    """Every wanted id is given, once, and no other."""
    counts = Counter(given)
    missing = [name for name in wanted if name not in counts]
    if missing:
        raise BadInput(f"{where}: {len(counts)} {kind}s are predicted of {len(wanted)}; none for {kind} {missing[0]!r}")
    unknown = set(counts) - set(wanted)
    if unknown:
        raise BadInput(f"{where}: {kind} {min(unknown)!r} is predicted but not among the {len(wanted)} asked for")
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise BadInput(f"{where}: {kind} {twice[0]!r} is predicted {counts[twice[0]]} times; accepted: once")


def _check_answer(example: Example, prediction: Prediction, where: str) -> None:
    if not np.isfinite(prediction.score):
        raise BadInput(f"{where}: score {prediction.score} is not finite")
    answer: Any = prediction.answer
    if not isinstance(example.task, ReferenceGame):
        if np.shape(answer) != (2,) or not np.isfinite(answer).all():
            raise BadInput(f"{where}: answer {answer!r} is not a point; accepted: (x, y), finite, relative")
    elif not isinstance(answer, (int, np.integer)) or not 0 <= answer < len(example.images):
        raise BadInput(f"{where}: answer {answer!r} is none of the candidates 0..{len(example.images) - 1}")
    elif bool(prediction.correct) != (answer == example.task.target_index):
        raise BadInput(
            f"{where}: correct is {bool(prediction.correct)}, but the answer is {answer} and the target "
            f"{example.task.target_index}"
        )


def _item(
    example: Example, phrase: Phrase, prediction: PhrasePrediction, canvas_size: tuple[int, int] | None, where: str
) -> PhraseItem:
    where = f"{where}, phrase {phrase.id!r}"
    if (prediction.boxes is None) == (prediction.heatmap is None):
        raise BadInput(f"{where}: accepted: either ranked boxes or a heatmap")
    if prediction.heatmap is not None:
        _check_heatmap(np.asarray(prediction.heatmap), len(example.images), where)
    else:
        _check_boxes(np.asarray(prediction.boxes), prediction, len(example.images), where)
    return PhraseItem(example, phrase, prediction, canvas_size)


def _check_heatmap(heatmap: np.ndarray, n_images: int, where: str) -> None:
    if heatmap.ndim != 3 or len(heatmap) != n_images or not heatmap.size:
        raise BadInput(f"{where}: heatmap has shape {heatmap.shape}; accepted: [{n_images} candidates, h, w]")
    if not np.isfinite(heatmap).all():
        raise BadInput(f"{where}: heatmap holds {int((~np.isfinite(heatmap)).sum())} numbers that are not finite")
    if heatmap.min() < 0 or heatmap.max() <= 0:
        raise BadInput(
            f"{where}: heatmap is in {heatmap.min():g}..{heatmap.max():g}; accepted: 0 or more, and a positive peak "
            "(probabilities, not their logarithms)"
        )


def _check_boxes(boxes: np.ndarray, prediction: PhrasePrediction, n_images: int, where: str) -> None:
    image_index, scores = prediction.image_index, prediction.scores
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise BadInput(f"{where}: boxes have shape {boxes.shape}; accepted: [K, 4]")
    if not np.isfinite(boxes).all():
        raise BadInput(f"{where}: boxes hold {int((~np.isfinite(boxes)).sum())} numbers that are not finite")
    check_box_format(boxes, n_images, where)
    if scores is not None and (np.shape(scores) != (len(boxes),) or not np.isfinite(scores).all()):
        given = np.asarray(scores).tolist()
        raise BadInput(f"{where}: scores are {given[:5]} for {len(boxes)} boxes; accepted: a finite one each")
    index = np.asarray(image_index if image_index is not None else ())
    if index.shape != (len(boxes),) or ((index < 0) | (index >= n_images)).any():
        raise BadInput(
            f"{where}: image_index is {index.tolist()[:5]} for {len(boxes)} boxes; accepted: one of "
            f"0..{n_images - 1} a box"
        )


def check_box_format(boxes: np.ndarray, n_images: int, where: str) -> None:
    """BadInput, with a hint, unless boxes ``[K, 4]`` can be xyxy, relative to one of ``n_images`` stacked candidates.

    A box may reach out of its candidate, even over all the others, but not farther than that.
    """
    far = [2.0, n_images + 1.0, 2.0, n_images + 1.0]
    outside = ((boxes > far) | (boxes < [1 - value for value in far])).any(1)
    if outside.any():
        box = tuple(np.round(boxes[outside][0], 3).tolist())
        raise BadInput(
            f"{where}: box {box} is far outside of 0..1; it looks like pixels: divide by the image's width and height; "
            "accepted: xyxy, relative"
        )
    reversed_ = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if reversed_.any():
        box = tuple(np.round(boxes[reversed_][0], 3).tolist())
        raise BadInput(
            f"{where}: box {box} ends before it begins; it looks like (x, y, width, height) or (centre x, centre y, "
            "width, height): convert with torchvision.ops.box_convert; accepted: xyxy, relative"
        )
