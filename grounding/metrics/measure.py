"""What is measured (a phrase and what is predicted for it) and how (arithmetic, truth, canvas)."""

from __future__ import annotations

from dataclasses import dataclass

from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, Phrase, PhrasePrediction
from grounding.metrics.boxes import MODES

TRUTHS = ("boxes", "outlines")


@dataclass(frozen=True)
class PhraseItem:
    """A phrase, its example, what a model predicted for it (ranked boxes, or a heatmap), and on what canvas."""

    example: Example
    phrase: Phrase
    prediction: PhrasePrediction
    canvas_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Measure:
    """How phrases are measured.

    mode: ``corrected``, or ``paper``, the original's arithmetic on a canvas of ``canvas_size`` pixels
    (height, width of all candidates, stacked; by default that of each prediction); see ``boxes`` and ``heatmaps``.
    truth: what protocol ``all`` and pointing compare with. ``boxes``: the union of the truth boxes, which serves
    both families of models alike. ``outlines``: of the masks, else polygons, else boxes; ``paper`` knows
    polygons only, and compares predicted boxes with boxes. ``any`` and ``merged`` always take boxes.
    Raises BadInput for unknown names and an impossible canvas size.
    """

    mode: str = "corrected"
    truth: str = "boxes"
    canvas_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_choice("mode", self.mode, MODES)
        if self.truth not in TRUTHS:
            raise unknown_choice("truth", self.truth, TRUTHS)
        if self.canvas_size is not None and min(self.canvas_size) < 1:
            raise BadInput(
                f"canvas_size {self.canvas_size} is too small; accepted: (height, width) in pixels of the stacked "
                "candidates, 1 or more"
            )

    def canvas_of(self, item: PhraseItem) -> tuple[int, int]:
        """Canvas that a phrase is measured on (each block is of one); (0, 0) where none matters. Raises BadInput."""
        if self.mode != "paper":
            return 0, 0
        size = self.canvas_size or item.canvas_size
        if size is None:
            raise BadInput(
                f"example {item.example.id!r}: its prediction has no canvas_size, which mode 'paper' needs; accepted: "
                "(height, width) in pixels of the stacked candidates"
            )
        return size
