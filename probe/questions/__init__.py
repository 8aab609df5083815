"""Questions that probes are asked at the sites of a run: one file each, and a registry."""

from probe.questions.aligner_head import AlignerHead
from probe.questions.alignment import Alignment
from probe.questions.base import Judgement, Part, Question, Score
from probe.questions.boxes import Boxes
from probe.questions.localisation import Localisation
from probe.questions.outcome import Outcome
from probe.questions.queries import Queries

QUESTIONS: dict[str, type[Question]] = {
    question.name: question for question in (Alignment, Localisation, Boxes, AlignerHead, Queries, Outcome)
}

__all__ = ["QUESTIONS", "Judgement", "Part", "Question", "Score"]
