"""The overview of a report: the figures that the other modules draw, and the summaries in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.figure import Figure
from PIL import Image

from grounding.best_site import best_site
from grounding.values import counted
from visualize.curves import SCORE_NAMES, layer_curves, task_and_grounding
from visualize.described import file_name
from visualize.heads import head_maps
from visualize.measures import FIGURES, draw_measure
from visualize.report.subject import Subject, Words
from visualize.style import save

if TYPE_CHECKING:
    import pandas as pd

DOTS_AN_INCH = 96
PNG_DOTS = 150
MANY = 1500  # points, from which on a scatter chart is smaller as pixels


@dataclass(frozen=True)
class Chart:
    """A figure to be drawn: name of the file, title, caption, what it shows in words; as pixels or as outlines."""

    name: str
    title: str
    caption: str
    alternative: str
    figure: Figure
    pixels: bool = False


@dataclass(frozen=True)
class Overview:
    """Records of charts and summaries, of each run; and of the summaries that all runs share."""

    charts: list[list[dict[str, Any]]]
    words: list[list[dict[str, Any]]]
    shared: list[dict[str, Any]]


def write_overview(subjects: Sequence[Subject], shared: Sequence[Words], folder: Path) -> Overview:
    """Draw the figures of all runs into the folder, and put the charts of summaries beside them."""
    charts = [write_charts(subject, number, folder) for number, subject in enumerate(subjects)]
    words = [write_words(subject.words, number, folder) for number, subject in enumerate(subjects)]
    return Overview(charts, words, write_words(shared, len(subjects), folder))


def write_charts(subject: Subject, number: int, folder: Path) -> list[dict[str, Any]]:
    """Draw the figures of run ``number`` into the folder, one after the other, and return their records."""
    records = []
    for chart in _charts(subject):
        width, height = (round(side * DOTS_AN_INCH) for side in chart.figure.get_size_inches())
        formats = ("png",) if chart.pixels else ("svg",)
        (path,) = save(chart.figure, folder / f"{number}-{chart.name}", formats, dpi=PNG_DOTS)
        records.append(
            {"src": path.name, "title": chart.title, "caption": chart.caption, "alternative": chart.alternative}
            | {"width": width, "height": height}
        )
    return records


def write_words(words: Sequence[Words], number: int, folder: Path) -> list[dict[str, Any]]:
    """Summaries as blocks of text, with their charts copied into the folder. number: tells files of runs apart."""
    records = []
    for place, one in enumerate(words):
        charts = [_copied(chart, f"{number}-{place}", folder) for chart in one.charts]
        records.append({"title": one.title, "blocks": list(blocks(one.markdown)), "figures": charts})
    return records


def _copied(chart: Path, prefix: str, folder: Path) -> dict[str, Any]:
    with Image.open(chart) as image:
        width, height = image.size
    name = f"{prefix}-{file_name(chart.name)}"
    copyfile(chart, folder / name)
    title = chart.stem.replace("-", " ").capitalize()
    about = f"Chart {chart.stem} of the evaluation; its figures are in the summary above."
    return {"src": name, "title": title, "caption": "", "alternative": about, "width": width, "height": height}


def blocks(markdown: str) -> Iterator[dict[str, Any]]:
    """Markdown as plain blocks: ``{kind: heading | text | list | table | code, …}``, whose texts hold no markup.

    >>> list(blocks("# A\\n\\nb `c`"))
    [{'kind': 'heading', 'level': 1, 'text': 'A'}, {'kind': 'text', 'text': 'b c'}]
    """
    tokens = iter(MarkdownIt("commonmark").enable("table").parse(markdown))
    for token in tokens:
        if token.type == "heading_open":
            yield {"kind": "heading", "level": int(token.tag[1:]), "text": _text(next(tokens))}
        elif token.type == "paragraph_open":
            yield {"kind": "text", "text": _text(next(tokens))}
        elif token.type in ("bullet_list_open", "ordered_list_open"):
            inside = _until(tokens, token.type.replace("open", "close"))
            yield {"kind": "list", "items": [_text(one) for one in inside if one.type == "inline"]}
        elif token.type == "table_open":
            yield {"kind": "table", "rows": list(_rows(_until(tokens, "table_close")))}
        elif token.type in ("fence", "code_block", "html_block"):
            yield {"kind": "code", "text": token.content}


def _rows(tokens: Sequence[Token]) -> Iterator[list[str]]:
    row: list[str] = []
    for token in tokens:
        if token.type == "inline":
            row.append(_text(token))
        elif token.type == "tr_close":
            yield row
            row = []


def _until(tokens: Iterator[Token], end: str) -> list[Token]:
    """The tokens before the one that closes what is open."""
    inside: list[Token] = []
    depth, begin = 1, end.replace("close", "open")
    for token in tokens:
        depth += (token.type == begin) - (token.type == end)
        if not depth:
            break
        inside.append(token)
    return inside


def _text(token: Token) -> str:
    """The words of an inline token, markup left out; raw HTML stays as it was typed, and lines are kept."""
    broken = ("softbreak", "hardbreak")
    return "".join("\n" if child.type in broken else child.content for child in token.children or ())


def _charts(subject: Subject) -> Iterator[Chart]:
    outcomes = subject.outcomes
    if not outcomes.linked.empty:
        yield Chart(
            "task-and-grounding",
            "Do task and grounding go together?",
            f"Each point is an example: its task score against its {outcomes.measure}, grounded from "
            f"{outcomes.threshold:g} on.",
            f"Scatter chart of {counted(len(outcomes.linked), 'example')}; the table has the counts of its quadrants.",
            task_and_grounding(outcomes),
            pixels=len(outcomes.linked) > MANY,
        )
    if subject.sweep is not None:
        for question, table in subject.sweep.groupby("question", sort=False):
            yield _curves(str(question), table)
        for name in FIGURES:
            if name in subject.measures:
                yield from _measures(subject, name)
    if subject.heads is not None:
        for scope in subject.heads["scope"].unique():
            where = "on the whole canvas" if scope == "canvas" else "within the right candidate"
            yield Chart(
                f"heads-{scope}",
                f"Which heads say where a phrase is, {where}?",
                "Red is better than a map that knows no phrase; a dot: above it after correction; a frame: the head "
                "that the tuning run chose.",
                f"Heat map of layers and heads, {where}.",
                head_maps(subject.heads, scope),
            )


def _curves(question: str, table: pd.DataFrame) -> Chart:
    score = table["score"].iloc[0]
    own = table[(table["score"] == score) & (table["condition"] == question) & (table["seed"] == table["seed"].iloc[0])]
    best = ", ".join(
        f"{probe} best, by validation loss, at {row['site']} ({row['value']:.2f})"
        for probe, rows in own[own["value"].notna() & own["validation_loss"].notna()].groupby("probe", sort=False)
        for row in [best_site(rows)]
    )
    measured = SCORE_NAMES.get(score, score)
    return Chart(
        f"layer-curves-{question}",
        "Where grounding can be read" if question == "alignment" else f"Probes: {question}",
        "What probes read at each site: solid lines the real question, dashed ones controls, of which only what lies "
        "above counts. Bands are 95 % intervals over images.",
        f"Line chart of {measured} at {table['site'].nunique()} sites: {best or 'no value is defined'}.",
        layer_curves(table, title=None if question == "alignment" else f"{question.capitalize()}: what probes read"),
    )


def _measures(subject: Subject, name: str) -> Iterator[Chart]:
    words = name.replace("-", " ").capitalize()
    for question in subject.measures[name]["question"].unique():
        sites = subject.measures[name]["site"].nunique()
        figure = draw_measure(name, subject.measures, question)
        yield Chart(
            f"{name}-{question}", f"{words}: {question}", FIGURES[name][1], f"{words} at {sites} sites.", figure
        )
