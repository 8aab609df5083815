"""All figures of a run, drawn into a folder: what ``probe visualize`` calls."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example
from grounding.folders import check_folder, make_folder, of_run, read_note, refuse_another
from visualize.case import Case, find_row, gather
from visualize.curves import check_sweep, layer_curves, task_and_grounding
from visualize.gallery import Outcomes, Selection, draw_gallery, four_quadrants, grounded_or_not, right_and_wrong
from visualize.interventions import check_interventions, intervention_curves
from visualize.measures import FIGURES, draw_measure
from visualize.overlays import Attention, draw_example, read_attention
from visualize.style import check_formats, save

if TYPE_CHECKING:
    import pandas as pd

    from extract.reader import Run


DESCRIPTION = "figures.json"


@dataclass(frozen=True)
class Drawn:
    """A figure on disk. caption explains it; alternative says in words what is to be seen; paths: one a format."""

    name: str
    title: str
    caption: str
    alternative: str
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Plan:
    """What will be drawn of a run, checked before anything is written. See ``draw``."""

    run: Run
    examples: Mapping[str, Example]
    outcomes: Outcomes
    galleries: Mapping[str, Sequence[Sequence[Selection]]]
    rows: tuple[int, ...]
    site: str | None
    head: int | None
    sweep: pd.DataFrame | None = None
    note: str | None = None
    interventions: Sequence[pd.DataFrame] = ()
    measures: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def measured(self) -> list[tuple[str, str]]:
        """(measure, question) of each figure of a measure."""
        held = [name for name in FIGURES if name in self.measures]
        return [(name, question) for name in held for question in self.measures[name]["question"].unique()]

    def __len__(self) -> int:
        joint = not self.outcomes.linked.empty
        curves = 0 if self.sweep is None else self.sweep["question"].nunique()
        charts = curves + len(self.measured) + len(self.interventions)
        return charts + joint + len(self.galleries) + len(self.rows)


def draw(
    run: Run,
    out: Path | str,
    examples: Mapping[str, Example],
    sweep: pd.DataFrame | None = None,
    chosen: Sequence[str] = (),
    site: str | None = None,
    head: int | None = None,
    count: int = 4,
    seed: int = 0,
    formats: Sequence[str] = ("png", "svg"),
    note: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    interventions: Sequence[pd.DataFrame] = (),
    measures: Mapping[str, pd.DataFrame] | None = None,
) -> list[Drawn]:
    """Draw a run: layer curves, interventions, task against grounding, galleries, single examples.

    Returns what was drawn, in order.

    out: folder for the figures, made if need be. examples: id -> example, for pixels and polygons; one that is
    absent, or whose image cannot be read, is drawn with a placeholder and a note.
    sweep: tidy table of a sweep of this run; without it there are no layer curves.
    chosen: ids to draw on a page of their own; without any, the first of each quadrant's selection.
    site, head: whose attention to draw: the run's last site that holds any, and the mean over heads, by default.
    count: examples on each side of the gallery. seed: of the random selections.
    note: printed below task against grounding (a correlation, computed elsewhere).
    progress: called with (figures done, figures in all). interventions: tidy tables of ``probe intervene`` on the run's
    checkpoint, each drawn under the curve of the sweep. measures: tables of the sweep's measures by file name.
    ``figures.json`` in ``out`` says of which run the figures are, and lists them.
    Raises BadInput, before anything is drawn, for an empty run, an unknown id, site, head or format, and where ``out``
    cannot be a folder, or holds the figures of another run.
    """
    formats = check_formats(formats)
    check_folder(out)
    if (there := read_note(Path(out) / DESCRIPTION, "run", "figures")) is not None:
        refuse_another(out, "the figures of another run", there, of_run(run.manifest))
    plan = _plan(run, examples, sweep, chosen, site, head, count, seed, note)
    tables = [table for table in interventions if len(check_interventions(table))]
    plan = replace(plan, interventions=tables, measures=measures or {})
    make_folder(out)
    drawn: list[Drawn] = []
    for name, title, caption, alternative, figure in _figures(plan):
        paths = tuple(save(figure, Path(out) / name, formats))
        drawn.append(Drawn(name, title, caption, alternative, paths))
        if progress is not None:
            progress(len(drawn), len(plan))
    _describe(run, drawn, Path(out))
    return drawn


def _describe(run: Run, drawn: Sequence[Drawn], out: Path) -> None:
    """Write ``figures.json``: the run, and title, caption and files of each figure."""
    listed = [
        {"title": figure.title, "caption": figure.caption, "files": [path.name for path in figure.paths]}
        for figure in drawn
    ]
    description = {"run": of_run(run.manifest), "figures": listed}
    (out / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _plan(
    run: Run,
    examples: Mapping[str, Example],
    sweep: pd.DataFrame | None,
    chosen: Sequence[str],
    site: str | None,
    head: int | None,
    count: int,
    seed: int,
    note: str | None,
) -> Plan:
    if not len(run.examples):
        raise BadInput("the run holds no examples: there is nothing to draw")
    outcomes = Outcomes.of(run)
    galleries = _galleries(outcomes, count, seed)
    if chosen:
        rows = tuple(find_row(run, example_id) for example_id in chosen)
    else:
        firsts = ([s.rows[0] for band in g for s in band if s.rows] for g in reversed(galleries.values()))
        rows = tuple(next(filter(None, firsts), ()))
    site = _attention_site(run, site, head)
    checked = None if sweep is None else check_sweep(sweep)
    plan = Plan(run, examples, outcomes, galleries, rows, site, head, checked, note)
    if site is not None and head is not None:
        _attention(plan, gather(run, rows[0], {}))  # refuses a head that is not there
    return plan


def _galleries(outcomes: Outcomes, count: int, seed: int) -> dict[str, list[list[Selection]]]:
    """Those that there is something to show in; without a task, or a model that answers it, grounding alone."""
    answered, known = (bool(outcomes.table[name].notna().any()) for name in ("score", "grounding"))
    if not answered:
        return {"grounded-or-not": grounded_or_not(outcomes, count, seed)} if known else {}
    found = {"right-and-wrong": right_and_wrong(outcomes, count, seed)}
    return found | ({"quadrants": four_quadrants(outcomes, max(count // 2, 1), seed)} if known else {})


def _attention_site(run: Run, site: str | None, head: int | None) -> str | None:
    holding = [s.name for s in run.sites if "attention" in s.views]
    if site is None and head is None:
        return holding[-1] if holding else None
    if not holding:
        raise BadInput(f"site {site!r}, head {head}: this run holds no attention; extract the view 'attention'")
    if site is not None and site not in holding:
        raise unknown_choice("site", site, holding)
    return site or holding[-1]


Described = tuple[str, str, str, str, Figure]


def _figures(plan: Plan) -> Iterator[Described]:
    if plan.sweep is not None:
        for question, rows in plan.sweep.groupby("question", sort=False):
            yield _curves(str(question), rows)
    for name, question in plan.measured:
        yield _measure(plan, name, question)
    for table in plan.interventions:
        yield _interventions(table, plan.sweep)
    if not plan.outcomes.linked.empty:
        yield _joint(plan)
    for name, selections in plan.galleries.items():
        yield _gallery(plan, name, selections)
    for row in plan.rows:
        yield _example(plan, row)


def _curves(question: str, sweep: pd.DataFrame) -> Described:
    asked, name, title = f"Question: {question}.", f"layer-curves-{question}", f"Probes: {question}"
    heading: str | None = f"{question.capitalize()}: what probes read at each site"
    if question == "alignment":
        asked = "Among an image's candidate regions, a probe on frozen activations picks the one that a phrase means."
        name, title, heading = "layer-curves", "Where grounding can be read", None
    caption = (
        f"{asked} Solid: the real question; dashed: controls, what is read without grounding: only what lies above "
        "them counts. Bands and bars are 95 % intervals over images."
    )
    sites, probes = sweep["site"].nunique(), ", ".join(sweep["probe"].unique())
    alternative = f"Line chart of probe scores ({probes}) and their controls at {sites} sites."
    return name, title, caption, alternative, layer_curves(sweep, title=heading)


def _interventions(table: pd.DataFrame, sweep: pd.DataFrame | None) -> Described:
    method = table["method"].iloc[0]
    above = " Above: what probes read at the same sites." if sweep is not None else ""
    caption = (
        "What becomes of the model's answers when its states are changed at one site, beside controls that change as "
        f"much elsewhere.{above} Bars are 95 % intervals over images."
    )
    alternative = f"Chart of effects ({method}) at {table['site'].nunique()} sites."
    return f"interventions-{method}", "Is it used?", caption, alternative, intervention_curves(table, sweep)


def _measure(plan: Plan, name: str, question: str) -> Described:
    words = name.replace("-", " ").capitalize()
    table = plan.measures[name]
    sites, probes = table["site"].nunique(), ", ".join(table["probe"].unique())
    alternative = f"{words} of probes ({probes}) at {sites} sites."
    file = name if question == "alignment" else f"{name}-{question}"
    return file, f"{words}: {question}", FIGURES[name][1], alternative, draw_measure(name, plan.measures, question)


def _joint(plan: Plan) -> Described:
    outcomes = plan.outcomes
    caption = (
        f"Each point is an example: its task score against its {outcomes.measure}. Right: examples in each quadrant, "
        f"grounded from {outcomes.threshold:g} on. {plan.note or ''}"
    ).strip()
    counts = {
        (correct, grounded): len(outcomes.matching(correct, grounded))
        for correct in (True, False)
        for grounded in (True, False)
    }
    alternative = (
        f"Task right and grounded: {counts[True, True]} examples; right, not grounded: {counts[True, False]}; "
        f"wrong, grounded: {counts[False, True]}; wrong, not grounded: {counts[False, False]}."
    )
    title = "Do task and grounding go together?"
    return "task-and-grounding", title, caption, alternative, task_and_grounding(outcomes, plan.note)


def _gallery(plan: Plan, name: str, selections: Sequence[Sequence[Selection]]) -> Described:
    drawn = [selection for band in selections for selection in band]
    cases = {row: gather(plan.run, row, plan.examples) for s in drawn for row in s.rows}
    title = {
        "right-and-wrong": "Task right and task wrong",
        "quadrants": "The four quadrants",
        "grounded-or-not": "Grounded and not grounded",
    }[name]
    caption = "Words and boxes of a phrase share a colour: solid boxes are the truth, dashed ones "
    if any(case.has_heatmaps for case in cases.values()):
        caption += (
            "lie round the model's heatmap in the image of its peak. IoU is that of the whole heatmap above its "
            "threshold, in all images."
        )
    else:
        caption += "the model's."
    listed = (f"{s.title} ({s.rule}): {', '.join(cases[row].id for row in s.rows)}" for s in drawn if s.rows)
    return name, title, caption, ". ".join(listed) + ".", draw_gallery(selections, cases, plan.outcomes)


def _example(plan: Plan, row: int) -> Described:
    case = gather(plan.run, row, plan.examples)
    attention = _attention(plan, case)
    answered = case.answer is not None
    caption = f"“{case.caption}”" + (f" Task {'right' if case.correct else 'wrong'}." if answered else "")
    if attention is not None:
        caption += f" {attention.title}."
    overlaps = ", ".join(f"{p.text} {p.iou:.2f}" for p in case.phrases if p.iou is not None)
    told = f"Target {case.target}, answer {case.answer}. " if answered else ""
    alternative = f"{told}IoU of phrases: {overlaps or 'unknown'}."
    figure = draw_example(case, attention)
    return f"example-{file_name(case.id)}", f"Example {case.id}", caption, alternative, figure


def _attention(plan: Plan, case: Case) -> Attention | None:
    if plan.site is None or not case.phrases:
        return None
    return read_attention(plan.run, case, plan.site, plan.head)


def file_name(example_id: str) -> str:
    """A file name for an example: its id where that is one, else its safe characters and eight digits of its hash.

    >>> file_name("mini-3"), file_name("a/b")[:4]
    ('mini-3', 'a-b-')
    """
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", example_id).strip(".-")[:80]
    if safe == example_id:
        return safe
    return f"{safe}-{hashlib.sha256(example_id.encode()).hexdigest()[:8]}".lstrip("-")
