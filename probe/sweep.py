"""Every run, question, site, probe, control and seed, as one tidy table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from grounding.devices import choose_device
from grounding.errors import BadInput, unknown_choice
from probe.conditions import choose_controls
from probe.joined import join, with_own_answers
from probe.measures.asked import measure_tables, measures_of
from probe.questions import QUESTIONS
from probe.questions.pairs import PairQuestion
from probe.settings import PROBES, SweepSettings
from probe.significance import enough_resamples, with_holm
from probe.tables import check_out, write_tables
from probe.unit_store import UnitStore
from probe.units import Answered, Asker, Unit, probes_of

if TYPE_CHECKING:
    from extract.reader import Run

Engine = Callable[[Asker, Sequence[Unit]], Iterable[tuple[Unit, Answered]]]

COLUMNS = [
    *("run", "question", "site", "stage", "layer", "probe", "condition", "score"),
    *("value", "low", "high", "chance", "n_phrases", "n_images"),
    *("p_chance", "p_chance_holm", "p_control", "p_control_holm"),
    *("seed", "seed_spread", "strength", "rank", "validation_loss"),
]


def sweep(
    runs: Run | Sequence[Run] | Mapping[str, Run],
    probes: Sequence[str] = PROBES,
    controls: Sequence[str] | str | None = None,
    sites: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    out: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    questions: Sequence[str] = ("alignment",),
    engine: Engine | None = None,
    measures: Sequence[str] = (),
    twins: Mapping[str, Run] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Ask questions of every site of some runs, and what the controls say.

    runs: one, several (named after their folders), or by name. questions: names of ``probe.questions.QUESTIONS``.
    probes: a question takes those that it has. controls: names, "all" that the questions have, () for none, or None for
    those of ``DEFAULT_CONTROLS`` that they have; a question goes without one that it has not. sites: names,
    ``stage.*``, or None for all. out: folder for the tables (``probe.tables``); a sweep that was interrupted there goes
    on where it was. progress: called with (units done, units in all). engine: answers units; this process if None.
    measures: of ``probe.measures``, taken besides, each with tables of its own in ``out``. twins: of the runs, by their
    names, with fresh weights, for the control random-model; if None, those of ``extract.twin.random_twin``, which are
    extracted where they are not there. settings: further fields of SweepSettings; device "auto" takes cuda where there
    is one, and resamples are by default as many as Holm's correction over the sites needs (``enough_resamples``).

    Returns one row a (run, question, site, probe, condition, score, seed). Conditions: the question's name for the real
    one; "control-labels", the same probe and strength on random labels a phrase type; "position-only" and
    "random-model", the same probe on other features (``probe.conditions``); and the differences of the real one from
    them, "selectivity", "above-position-only" and "above-random-model", and from each baseline, "above-concatenation"
    and so on (a baseline itself is a probe of its own). value, low, high: the score and its 95 % interval
    over images of the test part, chance beside it. p_chance: one-sided p that it is not above chance (a difference: not
    above 0); p_control: the largest p of its differences; each also corrected over the sites (``with_holm``).
    seed_spread: the standard deviation of value over seeds (NaN for one).
    Raises BadInput for whatever cannot be probed, and where ``out`` holds another sweep.
    """
    named = name_runs(runs)
    most = max(len(run.sites) for run in named.values())
    options = SweepSettings(
        tuple(questions), tuple(probes), _controls(controls, questions), None if sites is None else tuple(sites),
        tuple(int(seed) for seed in seeds), tuple(measures),
        **{"resamples": enough_resamples(most)} | settings | {"device": choose_device(settings.get("device", "cpu"))},
    )  # fmt: skip
    for name in options.questions:
        probes_of(name, options)
        measures_of(name, options)
    if options.measures and out is None:
        raise BadInput("measures are written as tables of their own; give out, the folder for them")
    if out is not None:
        check_out(Path(out), named.values())
    asker = Asker(named, options, twins or {})
    units = list(asker.units())
    asker.check()
    store = None if out is None else UnitStore(Path(out), _about(asker))
    if "random-model" in options.controls and twins is None:
        from extract.twin import random_twin  # imports the models, which nothing else here needs

        asker.twins = {name: random_twin(run, device=options.device) for name, run in asker.runs.items()}
    found = _answer_all(asker, units, store, engine or _here, progress)
    table = tidy([row for unit in units if not unit.measure for row in found[unit].rows], asker)
    if out is not None:
        _write(table, found, asker, Path(out))
    return table


def _controls(controls: Sequence[str] | str | None, questions: Sequence[str]) -> tuple[str, ...]:
    """Those that the questions, whose names are checked first, are asked with."""
    for name in questions:
        if name not in QUESTIONS:
            raise unknown_choice("question", name, QUESTIONS)
    return choose_controls(controls, questions)


def _write(table: pd.DataFrame, found: Mapping[Unit, Answered], asker: Asker, out: Path) -> None:
    """The files of a sweep: its table, what was found of each item, probe and task joined, measures, words."""
    items = pd.concat([answered.items for unit, answered in found.items() if not unit.measure], ignore_index=True)
    items = with_own_answers(items, asker.runs)
    joined = join(items, asker.own_measures(), asker.settings.resamples)
    taken = [(unit.measure, answered.rows, answered.items) for unit, answered in found.items() if unit.measure]
    measured = {name: _in_order(rows, asker) for name, rows in measure_tables(taken).items()}
    write_tables(table, items, joined, measured, describe(asker), out)


def name_runs(runs: Run | Sequence[Run] | Mapping[str, Run]) -> dict[str, Run]:
    """Runs by the names of their folders. Raises BadInput for none, and for two of one name."""
    if isinstance(runs, Mapping):
        return dict(runs)
    several = list(runs) if isinstance(runs, Sequence) else [runs]
    named = {_name(run): run for run in several}
    if not several or len(named) < len(several):
        names = [_name(run) for run in several]
        raise BadInput(f"runs {names} cannot be told apart; accepted: one or more, in folders of different names")
    return named


def tidy(rows: list[dict[str, Any]], asker: Asker) -> pd.DataFrame:
    """Rows in the order of runs, questions and their sites, columns in the documented order."""
    table = _in_order(pd.DataFrame(rows), asker)
    for name in ("value", "low", "high", "p_chance", "p_control", "validation_loss"):
        table[name] = table[name].astype(float)
    table["rank"] = table["rank"].astype("Int64")
    same = ["run", "question", "site", "probe", "condition", "score"]
    table["seed_spread"] = table.groupby(same, sort=False)["value"].transform("std")
    family = ["run", "question", "probe", "condition", "score", "seed"]
    return with_holm(table, ["p_chance", "p_control"], family)[COLUMNS]


def _in_order(table: pd.DataFrame, asker: Asker) -> pd.DataFrame:
    """Rows in the order of runs, questions and their sites, whatever was trained together."""
    place: dict[tuple[str, str, str], int] = {}
    for run in asker.runs:
        for name in asker.settings.questions:
            for site in asker.question(run, name).sites():
                place[run, name, site.name] = len(place)
    order = [place[key] for key in zip(table["run"], table["question"], table["site"], strict=True)]
    return table.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)


def describe(asker: Asker) -> dict[str, Any]:
    """What the tables rest on, as JSON values."""
    asked = []
    for run in asker.runs:
        for name in asker.settings.questions:
            question = asker.question(run, name)
            splits, notes = [], question.notes(question.split(asker.settings.seeds[0]))
            for seed in asker.settings.seeds:
                part = question.split(seed)
                seen = None
                if isinstance(question, PairQuestion) and "labels" in asker.settings.controls:
                    seen = question.seen_types(part)
                splits.append({"seed": seed, "parts": question.sizes(part), "seen_types": seen})
            about = {"run": run, "question": name, "left_out": question.left_out, "notes": notes, "splits": splits}
            asked.append(about | {"controls": [each for each in asker.settings.controls if each in question.controls]})
    return {
        "runs": [{"name": name, **_identity(run)} for name, run in asker.runs.items()],
        "settings": asdict(asker.settings),
        "asked": asked,
    }


def _answer_all(
    asker: Asker, units: Sequence[Unit], store: UnitStore | None, engine: Engine, progress: Any
) -> dict[Unit, Answered]:
    """What was found of every unit: those on disk are read, the others done, and kept one by one."""
    found: dict[Unit, Answered] = {}
    for unit in units:
        stored = None if store is None else store.load(unit)
        if stored is not None:
            found[unit] = stored
    missing = [unit for unit in units if unit not in found]
    if found and progress is not None:
        progress(len(found), len(units))
    for unit, answered in engine(asker, missing):
        found[unit] = answered
        if store is not None:
            store.save(unit, answered)
        if progress is not None:
            progress(len(found), len(units))
    return {unit: found[unit] for unit in units}


def _here(asker: Asker, units: Sequence[Unit]) -> Iterator[tuple[Unit, Answered]]:
    return ((unit, asker.answer(unit)) for unit in units)


def _name(run: Run) -> str:
    return Path(run.path).resolve().name


def _identity(run: Run) -> dict[str, Any]:
    return {name: run.manifest.get(name) for name in ("identity_hash", "identity")}


def _about(asker: Asker) -> dict[str, Any]:
    """What stored units depend on; the device is not of it."""
    settings = {name: value for name, value in asdict(asker.settings).items() if name != "device"}
    return settings | {"runs": {name: run.manifest["identity_hash"] for name, run in asker.runs.items()}}
