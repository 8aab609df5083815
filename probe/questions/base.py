"""What every question has in common: items with answers, features of a site, probes, and how answers are judged."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd

from grounding.errors import unknown_choice
from grounding.metrics.intervals import Statistic
from probe.settings import SweepSettings
from probe.splits import PARTS, split_examples

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo


@dataclass(frozen=True)
class Score:
    """A figure over some items. statistic: as a function of how often each image is drawn. chance: a blind guess's."""

    statistic: Statistic
    chance: float


@dataclass(frozen=True)
class Judgement:
    """How a probe answered some items.

    scores: by the names of ``Question.scores``. items: one row a phrase (or example): ``example`` and ``phrase`` (row
    numbers of the run's tables, phrase -1 where it is not of one), ``score`` (the probe's own, higher is surer),
    ``correct`` (0..1) and ``iou`` (NaN where the question has none).
    """

    scores: dict[str, Score]
    items: pd.DataFrame


@dataclass(frozen=True)
class Part:
    """Some of a question's items. chosen: bool ``[n]``; features and target: of those items alone.

    real: False where the target is a control's.
    """

    chosen: np.ndarray
    features: Any
    target: np.ndarray
    real: bool = True


class Question(ABC):
    """A question about a run that probes can be asked at its sites. A new one is a subclass, in a file of its own.

    Raises BadInput, when made, for a run that does not hold what the question needs, saying what makes it.

    name, words: on the command line, and in a sentence. probes, controls, measures: those of SweepSettings that it has;
    of the controls any question can have ``random-model``, those of pairs (``probe.questions.pairs``) have them all,
    and measures.
    scores: names of its figures, the main one first. per: what an item of its table is. figure, shows, instead: for the
    page of words, a main figure's introduction, what follows from one above chance and controls, and what may be so
    where it is not above the controls.

    example: int64 ``[n]``, the run's example that each item belongs to. target: ``[n]`` or ``[n, k]``, the answers.
    left_out: phrases (or examples) of the run that cannot be asked about. own_measure: whether its IoU is measured as
    that of the model's own answers is, so that the two can be compared.
    """

    name: ClassVar[str]
    words: ClassVar[str]
    probes: ClassVar[tuple[str, ...]]
    controls: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]] = ()
    scores: ClassVar[tuple[str, ...]]
    per: ClassVar[str] = "phrase"
    figure: ClassVar[str]
    shows: ClassVar[str]
    instead: ClassVar[str]

    example: np.ndarray
    target: np.ndarray
    left_out: int = 0
    own_measure: bool = False

    def __init__(self, run: Run, settings: SweepSettings):
        self.run, self.settings = run, settings

    @abstractmethod
    def sites(self) -> list[SiteInfo]:
        """The sites that it can be asked of, in the run's order; never none."""

    @abstractmethod
    def widths(self, site: SiteInfo) -> tuple[int, ...]:
        """Channels of a site's features: sites of equal widths are trained together."""

    @abstractmethod
    def features(self, site: SiteInfo) -> Any:
        """What probes read at a site: n items, which a bool mask ``[n]`` or index array chooses from."""

    @abstractmethod
    def probe(self, name: str, widths: tuple[int, ...], seed: int) -> tuple[Any, tuple[float, ...]]:
        """An unfitted estimator (``fit(X, y)``, ``log_loss(X, y)``, ``strength``) and the strengths to try."""

    @abstractmethod
    def judge(self, probe: Any, validation: Part, test: Part) -> tuple[Judgement, Judgement]:
        """How a fitted probe answers the two parts; whatever must be tuned is tuned on validation."""

    def size(self, site: SiteInfo) -> int:
        """Bytes that the features of a site take."""
        return 4 * len(self.example) * sum(self.widths(site))

    def notes(self, part: np.ndarray) -> list[str]:
        """Sentences that the page of words has beside the figures, about the parts of one split."""
        return []

    def reading(self, run: Run) -> Self:
        """The same items and answers with the states of another run, which holds the same phrases and regions."""
        other = copy.copy(self)
        other.run = run
        return other

    def split(self, seed: int) -> np.ndarray:
        """Part of each item: ``[n]`` strings of ``probe.splits.PARTS``. Raises BadInput as ``split_examples`` does."""
        examples = np.unique(self.example)
        parts = np.full(len(self.run.examples), "", dtype="<U10")
        settings = self.settings
        parts[examples] = split_examples(self.run.examples.iloc[examples], settings.group, settings.folds, seed)
        return parts[self.example]

    def check_split(self, part: np.ndarray, seed: int) -> None:  # noqa: B027 (most can be asked with any split)
        """Raise BadInput where the split of a seed cannot be learned from or judged, or not with the controls asked."""

    def parts(self, features: Any, part: np.ndarray, control: np.ndarray | None = None) -> tuple[Part, Part, Part]:
        """Train, validation and test of a site's features, with the real answers or those of a control."""
        target, real = (self.target, True) if control is None else (control, False)
        masks = [part == name for name in PARTS]
        train, validation, test = (Part(mask, features[mask], target[mask], real) for mask in masks)
        return train, validation, test

    def image(self, chosen: np.ndarray) -> np.ndarray:
        """Labels of the images that items (bool ``[n]``) belong to: what intervals resample."""
        return self.run.examples["group_image"].astype(str).to_numpy()[self.example[chosen]]

    def sizes(self, part: np.ndarray) -> dict[str, dict[str, int]]:
        """Images and items of each part."""
        names = [(name, part == name) for name in PARTS]
        return {name: {"images": len(np.unique(self.image(mask))), "items": int(mask.sum())} for name, mask in names}


def matching_sites(usable: Sequence[SiteInfo], names: Sequence[str]) -> list[SiteInfo]:
    """Those of the usable sites that are named, in the order of the names; ``block.*`` takes a stage."""
    chosen: list[SiteInfo] = []
    for name in names:
        matches = [s for s in usable if s.name == name or (name.endswith(".*") and s.stage == name[:-2])]
        if not matches:
            raise unknown_choice("site", name, [s.name for s in usable])
        chosen += [site for site in matches if site not in chosen]
    return chosen
