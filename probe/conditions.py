"""The conditions of a unit: the question itself, and those in which the same probe must fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone

from grounding.errors import BadInput, unknown_choice
from probe.questions import QUESTIONS, Part, Question
from probe.questions.pairs import PairQuestion
from probe.selection import Chosen, choose_strength, fit_all
from probe.settings import BASELINES, CONTROLS, DEFAULT_CONTROLS

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo

# What the question's figure minus the condition's, or the baseline's, is called.
DIFFERENCES = {
    "control-labels": "selectivity",
    **{name: f"above-{name}" for name in ("position-only", "random-model", *BASELINES)},
}
TABLES = {"phrases": ["id", "example"], "regions": ["example", "image_index", "x1", "y1", "x2", "y2", "phrase"]}


@dataclass(frozen=True)
class Condition:
    """What a probe reads, features of ``widths`` at each site, and is to say: the real answers, or ``target``."""

    name: str
    features: Sequence[Any]
    widths: tuple[int, ...]
    target: np.ndarray | None = None


@dataclass(frozen=True)
class Fitted:
    """Probes under a condition, one a site, and the parts that they are judged on."""

    chosen: Sequence[Chosen]
    validation: Sequence[Part]
    test: Sequence[Part]


def choose_controls(asked: Sequence[str] | str | None, questions: Sequence[str]) -> tuple[str, ...]:
    """The controls of a sweep of some questions: those asked for by name; of "all", or of ``DEFAULT_CONTROLS`` for
    None, those that one of the questions has.

    Raises BadInput for a name that is unknown, or that none of the questions has.
    """
    having = [name for name in CONTROLS if any(name in QUESTIONS[question].controls for question in questions)]
    if asked is None or asked == "all":
        return tuple(name for name in having if asked == "all" or name in DEFAULT_CONTROLS)
    if isinstance(asked, str):
        raise unknown_choice("controls", asked, ["all", *CONTROLS])
    for name in asked:
        if name not in CONTROLS:
            raise unknown_choice("control", name, CONTROLS)
        if name not in having:
            raise BadInput(
                f"control {name!r} is not of the question{'s' if len(questions) > 1 else ''} {', '.join(questions)}; "
                f"accepted: {', '.join(having) or 'none'}"
            )
    return tuple(asked)


def controls_of(
    question: Question,
    controls: Sequence[str],
    sites: Sequence[SiteInfo],
    features: Sequence[Any],
    split: np.ndarray,
    seed: int,
    twin: Run | None,
) -> Iterator[Condition]:
    """The controls of those that a question has in which a probe of it is fitted on something else.

    labels: random answers a phrase type. position-only: where candidates are instead of their states. random-model:
    the states of ``twin``, the run's twin with fresh weights. Raises BadInput for a control that cannot be built.
    """
    widths = question.widths(sites[0])
    asked = [name for name in controls if name in question.controls]
    if "labels" in asked and isinstance(question, PairQuestion):
        yield Condition("control-labels", features, widths, question.control_target(seed))
    if "position-only" in asked and isinstance(question, PairQuestion):
        places = [question.position_only(rows) for rows in features]
        yield Condition("position-only", places, (widths[0], places[0].region.shape[1]))
    if "random-model" in asked and twin is not None:
        require_twin(question.run, twin)
        states = question.reading(twin)
        yield Condition("random-model", [states.features(site) for site in sites], widths)


def fit_under(
    condition: Condition, question: Question, probe: str, split: np.ndarray, seed: int, real: Sequence[Chosen] = ()
) -> Fitted:
    """Fit a probe by name under a condition at each site. real: the probes of the question itself, if they are there.

    Selectivity compares one probe on two tasks, so control labels keep the strengths of ``real``; what reads something
    else has its strength chosen on the validation part, for a control must not be weaker than it could be.
    """
    parts = [question.parts(rows, split, condition.target) for rows in condition.features]
    train, validation, test = zip(*parts, strict=True)
    held_out = [part.features for part in validation], validation[0].target
    if condition.name == "control-labels" and real:
        probes = [clone(each.probe).set_params(strength=each.probe.strength) for each in real]
        fit_all(probes, [part.features for part in train], train[0].target, held_out)
        return Fitted([Chosen(each, float("nan")) for each in probes], validation, test)
    prototype, strengths = prototype_under(condition, question, probe, seed)
    chosen = choose_strength(prototype, [part.features for part in train], train[0].target, *held_out, strengths)
    return Fitted(chosen, validation, test)


def prototype_under(condition: Condition, question: Question, probe: str, seed: int) -> tuple[Any, tuple[float, ...]]:
    """An unfitted probe by name for what a condition reads, and the strengths to try."""
    prototype, strengths = question.probe(probe, condition.widths, seed)
    if getattr(prototype, "rank", None) is not None and condition.name == "position-only":
        prototype.set_params(rank=min(prototype.rank, *condition.widths))
    return prototype, strengths


def require_twin(run: Run, twin: Run) -> None:
    """Raise BadInput unless two runs hold the same phrases and regions, row for row."""
    for table, columns in TABLES.items():
        one, other = (getattr(each, table)[columns].reset_index(drop=True) for each in (run, twin))
        if not one.equals(other):
            raise BadInput(
                f"run {str(twin.path)!r} is no twin of {str(run.path)!r}: its {table} differ; remove it, or leave out "
                "the control 'random-model'"
            )
