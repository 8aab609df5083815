"""Questions that probes are asked at the sites of a run: one file each, and a registry."""

from probe.questions.alignment import Alignment
from probe.questions.base import Judgement, Part, Question, Score

QUESTIONS: dict[str, type[Question]] = {question.name: question for question in (Alignment,)}

__all__ = ["QUESTIONS", "Judgement", "Part", "Question", "Score"]
