"""Every figure of a plan with its file name, title, caption, and what is to be seen in words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from grounding.values import counted
from visualize.case import gather
from visualize.curves import layer_curves, task_and_grounding
from visualize.gallery import Selection, draw_gallery
from visualize.games import choices, draw_choices
from visualize.grid import draw_grid
from visualize.heads import head_maps
from visualize.interventions import intervention_curves
from visualize.measures import FIGURES, draw_measure
from visualize.overlays import draw_example
from visualize.plan import Plan
from visualize.ranked import Changes, draw_changed

if TYPE_CHECKING:
    from extract.reader import Run


class Described(NamedTuple):
    """A figure, made. name: of its files; caption explains it; alternative says in words what is to be seen."""

    name: str
    title: str
    caption: str
    alternative: str
    figure: Figure


def described(plan: Plan) -> list[Callable[[], Described]]:
    """The figures of a plan in order, each made when it is called."""
    made: list[Callable[[], Described]] = []
    if plan.sweep is not None:
        for question, rows in plan.sweep.groupby("question", sort=False):
            made.append(partial(_curves, str(question), rows))
    made += [partial(_measure, plan, name, question) for name, question in plan.measured]
    made += [partial(_interventions, table, plan.sweep) for table in plan.interventions]
    if plan.heads is not None:
        made += [partial(_heads, plan.heads, scope) for scope in plan.heads["scope"].unique()]
    if not plan.outcomes.linked.empty:
        made.append(partial(_joint, plan))
    if len(counts := choices(plan.run.examples)):
        made.append(partial(_choices, counts))
    made += [partial(_gallery, plan, name, selections) for name, selections in plan.galleries.items()]
    if plan.changes is not None and plan.against is not None:
        made.append(partial(_changed, plan, plan.changes, plan.against))
    for row in plan.rows:
        made.append(partial(_example, plan, row))
        made += [partial(_grid, plan, row, grid, kind) for grid in plan.look.grids for kind in plan.kinds_in(grid)]
    return made


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
    return Described(name, title, caption, alternative, layer_curves(sweep, title=heading))


def _interventions(table: pd.DataFrame, sweep: pd.DataFrame | None) -> Described:
    method = table["method"].iloc[0]
    above = " Above: what probes read at the same sites." if sweep is not None else ""
    caption = (
        "What becomes of the model's answers when its states are changed at one site, beside controls that change as "
        f"much elsewhere.{above} Bars are 95 % intervals over images."
    )
    alternative = f"Chart of effects ({method}) at {table['site'].nunique()} sites."
    figure = intervention_curves(table, sweep)
    return Described(f"interventions-{method}", "Is it used?", caption, alternative, figure)


def _measure(plan: Plan, name: str, question: str) -> Described:
    words = name.replace("-", " ").capitalize()
    table = plan.measures[name]
    sites, probes = table["site"].nunique(), ", ".join(table["probe"].unique())
    alternative = f"{words} of probes ({probes}) at {sites} sites."
    file = name if question == "alignment" else f"{name}-{question}"
    figure = draw_measure(name, plan.measures, question)
    return Described(file, f"{words}: {question}", FIGURES[name][1], alternative, figure)


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
    both = counted(counts[True, True], "example")
    alternative = (
        f"Task right and grounded: {both}; right, not grounded: {counts[True, False]}; "
        f"wrong, grounded: {counts[False, True]}; wrong, not grounded: {counts[False, False]}."
    )
    title = "Do task and grounding go together?"
    return Described("task-and-grounding", title, caption, alternative, task_and_grounding(outcomes, plan.note))


def _gallery(plan: Plan, name: str, selections: Sequence[Sequence[Selection]]) -> Described:
    drawn = [selection for band in selections for selection in band]
    cases = {row: gather(plan.run, row, plan.examples) for s in drawn for row in s.rows}
    title = {
        "right-and-wrong": "Task right and task wrong",
        "quadrants": "The four quadrants",
        "grounded-or-not": "Grounded and not grounded",
        "expression-gap": "The probe finds it, the model does not show it",
    }[name]
    remarks = plan.gaps.remarks if name == "expression-gap" and plan.gaps is not None else None
    caption = "Words and boxes of a phrase share a colour: solid boxes are the truth, dashed ones "
    if any(case.has_heatmaps for case in cases.values()):
        caption += (
            "lie round the model's heatmap in the image of its peak. IoU is that of the whole heatmap above its "
            "threshold, in all images."
        )
    else:
        caption += "the model's."
    listed = (f"{s.title} ({s.rule}): {', '.join(cases[row].id for row in s.rows)}" for s in drawn if s.rows)
    figure = draw_gallery(selections, cases, plan.outcomes, remarks=remarks)
    return Described(name, title, caption, ". ".join(listed) + ".", figure)


def _heads(table: pd.DataFrame, scope: str) -> Described:
    where = "on the whole canvas" if scope == "canvas" else "within the right candidate"
    caption = (
        "How well the map of each head says where a phrase is, beside an even look at the centre: red is better, blue "
        "worse. A dot: better after correction for all heads; a frame: chosen on the tuning run."
    )
    rows = table[(table["scope"] == scope) & table["gain"].notna()]
    chosen = "; ".join(
        f"{row['kind']} at {row['site']}, head {row['head']}: {row['measure']} {row['value']:.2f}"
        for row in rows[rows["selected"]].to_dict("records")
    )
    alternative = (
        f"Heat maps of {rows['site'].nunique()} sites and {rows['kind'].nunique()} kinds of maps; chosen on the tuning "
        f"run: {chosen or 'none'}."
    )
    return Described(f"heads-{scope}", f"Which heads point at phrases, {where}?", caption, alternative,
                     head_maps(table, scope))  # fmt: skip


def _choices(counts: np.ndarray) -> Described:
    caption = (
        "Left: games by the place of their target (rows) and of the candidate chosen (columns). Right: how often each "
        "place is the target and is chosen; a place chosen much more often than it is the target is preferred."
    )
    solved, games = int(np.trace(counts)), int(counts.sum())
    place = int(counts.sum(0).argmax())
    alternative = (
        f"{solved} of {games} games solved. Chosen most often: candidate {place}, {counts[:, place].sum()} times."
    )
    return Described("candidates", "Which candidates are confused?", caption, alternative, draw_choices(counts))


def _changed(plan: Plan, changes: Changes, against: Run) -> Described:
    pairs = [(gather(against, old, plan.examples), gather(plan.run, new, plan.examples)) for old, new in changes.pairs]
    told = (f"{new.id}: {', then '.join(remark)}" for (_, new), remark in zip(pairs, changes.remarks, strict=True))
    caption = f"The same examples under {changes.names[0]} (left) and {changes.names[1]} (right)."
    title = "Most changed between two checkpoints"
    return Described("most-changed", title, caption, "; ".join(told) + ".", draw_changed(changes, pairs))


def _example(plan: Plan, row: int) -> Described:
    case = gather(plan.run, row, plan.examples)
    maps = plan.maps(case)
    answered = case.answer is not None
    caption = f"“{case.caption}”" + (f" Task {'right' if case.correct else 'wrong'}." if answered else "")
    caption += "".join(f" {one.title}." for one in maps)
    overlaps = ", ".join(f"{p.text} {p.iou:.2f}" for p in case.phrases if p.iou is not None)
    told = f"Target {case.target}, answer {case.answer}. " if answered else ""
    alternative = f"{told}IoU of phrases: {overlaps or 'unknown'}."
    figure = draw_example(case, maps)
    return Described(f"example-{file_name(case.id)}", f"Example {case.id}", caption, alternative, figure)


def _grid(plan: Plan, row: int, grid: str, kind: str) -> Described:
    case = gather(plan.run, row, plan.examples)
    rows = plan.grid(case, grid, kind)
    titles = {"layers": "layer by layer", "heads": "head by head", "maps": "under each kind of map"}
    same = rows[0].parts[0] if rows else kind
    heading = {
        "layers": f"{same}, layer by layer",
        "heads": f"{same} at {rows[0].site if rows else ''}, head by head",
        "maps": "One example under each kind of map",
    }[grid]
    heading = heading[0].upper() + heading[1:]
    name = "-".join(filter(None, (grid, kind.replace(".", "-"), file_name(case.id))))
    caption = f"{heading}: a row for each, a column for each phrase. Colours go from a map's mean to its largest value."
    sites = ", ".join(maps.title for maps in rows)
    title = f"Example {case.id}, {titles[grid]}"
    return Described(name, title, caption, f"Maps: {sites}.", draw_grid(case, rows, heading))


def file_name(example_id: str) -> str:
    """A file name for an example: its id where that is one, else its safe characters and eight digits of its hash.

    >>> file_name("mini-3"), file_name("a/b")[:4]
    ('mini-3', 'a-b-')
    """
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", example_id).strip(".-")[:80]
    if safe == example_id:
        return safe
    return f"{safe}-{hashlib.sha256(example_id.encode()).hexdigest()[:8]}".lstrip("-")
