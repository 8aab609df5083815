"""A unit of a sweep: one question, some sites of a run, one probe, one seed; what an engine hands out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from grounding.errors import BadInput
from grounding.metrics.intervals import Estimate, difference, estimated, resampled
from probe.conditions import DIFFERENCES, Condition, Fitted, controls_of, fit_under
from probe.estimators import BilinearProbe
from probe.measures import Measured
from probe.measures.asked import IN_BITS, measures_of, take
from probe.questions import QUESTIONS, Judgement, Question
from probe.questions.base import matching_sites
from probe.questions.pairs import PairQuestion
from probe.selection import Chosen
from probe.settings import BASELINES, SweepSettings
from probe.significance import p_above

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo

_MEMORY = 2**29  # bytes of features trained together
READ = ("phrase", "region", "tokens")  # the views that questions read
OVER = tuple(DIFFERENCES.values())


@dataclass(frozen=True)
class Unit:
    """What is done, and stored, as a whole. run, question, probe: names. sites: of equal widths. measure: by name, that
    is taken instead of scores."""

    run: str
    question: str
    sites: tuple[str, ...]
    probe: str
    seed: int
    measure: str = ""


@dataclass(frozen=True)
class Answered:
    """Rows of the tidy table, and one row an item of validation and test (see ``Judgement.items``), of a unit."""

    rows: list[dict[str, Any]]
    items: pd.DataFrame


@dataclass
class Asker:
    """Answers units; keeps the questions that it has opened, and of the last ones the features and the baselines.

    runs: by their names. twins: of them with fresh weights, for the control random-model. Picklable, so that workers
    elsewhere can have one.
    """

    runs: Mapping[str, Run]
    settings: SweepSettings
    twins: Mapping[str, Run] = field(default_factory=dict)
    _questions: dict[tuple[str, str], Question] = field(default_factory=dict)
    _read: tuple[Any, list[Any]] | None = None
    _baselines: tuple[Any, dict[str, Fitted]] | None = None

    def question(self, run: str, name: str) -> Question:
        """A question about a run. Raises BadInput where it cannot be asked."""
        if (run, name) not in self._questions:
            self._questions[run, name] = QUESTIONS[name](self.runs[run], self.settings)
        return self._questions[run, name]

    def own_measures(self) -> dict[tuple[str, str], bool]:
        """(run, question) -> ``Question.own_measure``."""
        return {(run, q): self.question(run, q).own_measure for run in self.runs for q in self.settings.questions}

    def sites(self, run: str) -> dict[str, list[SiteInfo]]:
        """Question -> the sites of a run that it is asked of: of those in the settings, the ones that it has.

        Raises BadInput for a site that no question has of any run, and for a question that is left with none.
        """
        questions = [self.question(run, name) for name in self.settings.questions]
        if self.settings.sites is None:
            return {question.name: question.sites() for question in questions}
        everywhere = [self.question(one, name) for one in self.runs for name in self.settings.questions]
        known = {site.name: site for question in everywhere for site in question.sites()}
        chosen = [site.name for site in matching_sites(list(known.values()), self.settings.sites)]
        found = {}
        for question in questions:
            usable = {site.name: site for site in question.sites()}
            found[question.name] = [usable[name] for name in chosen if name in usable]
            if not found[question.name]:
                raise BadInput(
                    f"run {run!r}: question {question.name!r} cannot be asked of {', '.join(chosen)}; "
                    f"accepted: {', '.join(usable)}"
                )
        return found

    def units(self) -> Iterator[Unit]:
        """All units, in the order in which features are read least often. Raises BadInput for what cannot be asked."""
        settings = self.settings
        for run in self.runs:
            chosen = self.sites(run)
            for name in settings.questions:
                question, probes = self.question(run, name), probes_of(name, settings)
                for sites in _batches(question, chosen[name]):
                    for seed in settings.seeds:
                        yield from (Unit(run, name, sites, probe, seed) for probe in probes)
                        measures = measures_of(name, settings)
                        yield from (Unit(run, name, sites, probe, seed, measure) for measure, probe in measures)

    def check(self) -> None:
        """Raise BadInput where a split, a control or a shard's rows of any question are missing, before it is asked."""
        for run in self.runs:
            for name, sites in self.sites(run).items():
                question = self.question(run, name)
                for site, view in ((site, view) for site in sites for view in READ if view in site.views):
                    self.runs[run].count(site.name, view)
                for seed in self.settings.seeds:
                    question.check_split(question.split(seed), seed)

    def answer(self, unit: Unit) -> Answered:
        """Fit a unit's probe at each of its sites, and under its controls, and score it on test; or measure it."""
        question = self.question(unit.run, unit.question)
        known = {site.name: site for site in question.sites()}
        sites = [known[name] for name in unit.sites]
        features = self._features(question, unit, sites)
        split = question.split(unit.seed)
        real = Condition(question.name, features, question.widths(sites[0]))
        conditions = self._controls(question, unit, sites, features, split)
        if unit.measure:
            assert isinstance(question, PairQuestion)  # no other has measures
            under = [real, *conditions] if unit.measure in IN_BITS else [real]
            found = take(unit.measure, question, under, sites, unit.probe, split, unit.seed)
            return _measured(found, unit)
        if unit.probe in BASELINES:
            fitted = self._baseline(unit.probe, question, unit, real, split)
        else:
            fitted = fit_under(real, question, unit.probe, split, unit.seed)
        controls = {
            condition.name: fit_under(condition, question, unit.probe, split, unit.seed, fitted.chosen)
            for condition in conditions
        }
        if unit.probe in question.probes:
            for name in baselines_of(unit.question, self.settings):
                controls[name] = self._baseline(name, question, unit, real, split)
        rows, items = [], []
        for number, site in enumerate(sites):
            judged = _judged(question, fitted, number)
            drawn = self._drawn(judged[1], unit)
            common = _common(unit, site, fitted.chosen[number])
            against: list[dict[str, Any]] = []
            for name, control in controls.items():
                other = _judged(question, control, number)[1]
                beside = self._drawn(other, unit)
                if name not in BASELINES:  # which are units, with rows of their own
                    about = _common(unit, site, control.chosen[number])
                    against += _rows(about | {"condition": name}, other, beside)
                about = common | {"condition": DIFFERENCES[name], "validation_loss": None}
                against += _differences(about, judged[1], drawn, other, beside)
            rows += _rows(common | {"condition": question.name}, judged[1], drawn, against) + against
            named = {name: common[name] for name in ("run", "question", "site", "stage", "layer", "probe", "seed")}
            for part, judgement in zip(("validation", "test"), judged, strict=True):
                items.append(judgement.items.assign(**named, part=part))
        return Answered(rows, pd.concat(items, ignore_index=True))

    def _features(self, question: Question, unit: Unit, sites: Sequence[SiteInfo]) -> list[Any]:
        key = (unit.run, unit.question, unit.sites)
        if self._read is None or self._read[0] != key:
            self._read = self._baselines = None  # the last ones go before the next come
            self._read = key, [question.features(site) for site in sites]
        return self._read[1]

    def _baseline(self, name: str, question: Question, unit: Unit, real: Condition, split: np.ndarray) -> Fitted:
        """A baseline at a unit's sites: a unit itself, and a control of the probes there."""
        key = (unit.run, unit.question, unit.sites, unit.seed)
        if self._baselines is None or self._baselines[0] != key:
            self._baselines = key, {}
        known = self._baselines[1]
        if name not in known:
            known[name] = fit_under(real, question, name, split, unit.seed)
        return known[name]

    def _controls(
        self, question: Question, unit: Unit, sites: Sequence[SiteInfo], features: Sequence[Any], split: np.ndarray
    ) -> Iterator[Condition]:
        """The conditions in which a unit's probe must fail; none for a baseline, which is a control itself."""
        if unit.probe not in question.probes:
            return
        twin = self.twins.get(unit.run)
        yield from controls_of(question, self.settings.controls, sites, features, split, unit.seed, twin)

    def _drawn(self, judged: Judgement, unit: Unit) -> dict[str, np.ndarray]:
        """Its scores over the same draws of the images as all others of a unit."""
        figures = {name: score.statistic for name, score in judged.scores.items()}
        return resampled(figures, self.settings.resamples, unit.seed)


def _measured(found: Measured, unit: Unit) -> Answered:
    about = {"run": unit.run, "question": unit.question}
    details = pd.DataFrame() if found.details is None else found.details.assign(**about)
    table = found.table.assign(**about).astype(object)
    return Answered(table.where(table.notna(), None).to_dict("records"), details)


def _judged(question: Question, fitted: Fitted, site: int) -> tuple[Judgement, Judgement]:
    return question.judge(fitted.chosen[site].probe, fitted.validation[site], fitted.test[site])


def probes_of(question: str, settings: SweepSettings) -> list[str]:
    """The probes, then the baselines, that are asked for and that a question has.

    Raises BadInput where no probe is left.
    """
    known = QUESTIONS[question]
    probes = [name for name in settings.probes if name in known.probes]
    if not probes:
        raise BadInput(
            f"question {question!r} has no probe {', '.join(settings.probes)}; accepted: {', '.join(known.probes)}"
        )
    return [*probes, *baselines_of(question, settings)]


def baselines_of(question: str, settings: SweepSettings) -> list[str]:
    """The baselines that are asked for and that a question has."""
    return [name for name in settings.controls if name in QUESTIONS[question].controls and name in BASELINES]


def _batches(question: Question, sites: Sequence[SiteInfo]) -> Iterator[tuple[str, ...]]:
    """Sites of equal widths, as many together as fit the memory."""
    widths = {site.name: question.widths(site) for site in sites}
    for width in dict.fromkeys(widths.values()):
        alike = [site for site in sites if widths[site.name] == width]
        together = max(1, _MEMORY // max(1, question.size(alike[0])))
        for begin in range(0, len(alike), together):
            yield tuple(site.name for site in alike[begin : begin + together])


def _rows(
    common: dict[str, Any],
    judged: Judgement,
    drawn: Mapping[str, np.ndarray],
    against: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """A row a score. against: rows of the differences from its controls, of which the least sure one counts."""
    rows = []
    for name, score in judged.scores.items():
        found = estimated(score.statistic, drawn[name])
        over = [row["p_chance"] for row in against if row["score"] == name and row["condition"] in OVER]
        p = {"p_chance": p_above(drawn[name], score.chance), "p_control": max(over, default=None)}
        rows.append(_row(common | p, name, found, score.chance, judged))
    return rows


def _differences(
    common: dict[str, Any],
    real: Judgement,
    drawn: Mapping[str, np.ndarray],
    control: Judgement,
    beside: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """A row a score. drawn, beside: the scores of both over the same draws of the images."""
    rows = []
    for name, score in real.scores.items():
        less = drawn[name] - beside[name]
        found = estimated(difference(score.statistic, control.scores[name].statistic), less)
        rows.append(_row(common | {"p_chance": p_above(less)}, name, found, 0.0, real))
    return rows


def _common(unit: Unit, site: SiteInfo, best: Chosen) -> dict[str, Any]:
    probe = best.probe
    rank = None
    if isinstance(probe, BilinearProbe):
        rank = min(probe.coef_.shape) if probe.rank is None else probe.rank
    return {
        "run": unit.run,
        "question": unit.question,
        "site": site.name,
        "stage": site.stage,
        "layer": site.layer,
        "probe": unit.probe,
        "seed": unit.seed,
        "strength": probe.strength,
        "rank": rank,
        "validation_loss": best.validation_loss,
    }


def _row(common: dict[str, Any], score: str, found: Estimate, blind: float, judged: Judgement) -> dict[str, Any]:
    numbers = {"value": found.value, "low": found.low, "high": found.high, "chance": blind}
    return common | {"score": score, **numbers, "n_phrases": len(judged.items), "n_images": found.groups}
