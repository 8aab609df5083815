"""The annotations that a run learns from: its share of them, made worse if asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from grounding.errors import BadInput
from grounding.examples import Example
from grounding.finetune.budget import annotated_phrases, annotation_budget
from grounding.finetune.settings import FinetuneSettings


@dataclass(frozen=True)
class Annotations:
    """Training examples with what is learned of their annotations; annotated phrases there were, and are learned."""

    examples: list[Example]
    phrases: int
    learned_phrases: int

    @classmethod
    def learned(cls, examples: Sequence[Example], settings: FinetuneSettings) -> Self:
        """What ``settings`` leave of the annotations; without the grounding loss none, whatever the fraction.

        Raises BadInput where the loss is on and nothing is annotated, or nothing stays.
        """
        phrases = annotated_phrases(examples)
        if not settings.grounding:  # a run without annotations never holds one
            return cls([replace(example, phrases=()) for example in examples], phrases, 0)
        if not phrases:
            raise BadInput(f"split {settings.train_split!r} has no annotated regions, but the grounding loss is on")
        kept = annotation_budget(
            examples, settings.grounding_fraction, settings.budget_by, settings.seed, settings.budget
        )
        spoilt = settings.quality.apply(kept, settings.seed)
        learned = annotated_phrases(spoilt)
        if not learned:
            raise BadInput(f"drop_rate {settings.drop_rate} leaves no annotation, but the grounding loss is on")
        return cls(spoilt, phrases, learned)
