"""All figures of a run, drawn into a folder: what ``probe visualize`` calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grounding.examples import Example
from grounding.folders import check_folder, make_folder, of_run, read_note, refuse_another
from grounding.grounded import GROUNDED_AT
from visualize.curves import check_sweep
from visualize.described import described
from visualize.heads import check_heads
from visualize.interventions import check_interventions
from visualize.plan import Look, make_plan
from visualize.ranked import Gaps
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


def draw(
    run: Run,
    out: Path | str,
    examples: Mapping[str, Example],
    sweep: pd.DataFrame | None = None,
    chosen: Sequence[str] = (),
    look: Look | None = None,
    count: int = 4,
    seed: int = 0,
    formats: Sequence[str] = ("png", "svg"),
    note: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    interventions: Sequence[pd.DataFrame] = (),
    measures: Mapping[str, pd.DataFrame] | None = None,
    heads: pd.DataFrame | None = None,
    gaps: Gaps | None = None,
    against: Run | None = None,
    grounded_at: float = GROUNDED_AT,
) -> list[Drawn]:
    """Draw a run: layer curves, interventions, heads, task against grounding, galleries, single examples.

    Returns what was drawn, in order.

    out: folder for the figures, made if need be. examples: id -> example, for pixels and polygons; one that is
    absent, or whose image cannot be read, is drawn with a placeholder and a note.
    sweep: tidy table of a sweep of this run; without it there are no layer curves.
    chosen: ids to draw on a page of their own; without any, the first of each quadrant's selection.
    look: which maps, sites, heads and grids those pages show.
    count: examples a group in the galleries; half as many, at least one, in each of the four quadrants. seed: of the
    random selections.
    note: printed below task against grounding (a correlation, computed elsewhere).
    progress: called with (figures done, figures in all). interventions: tidy tables of ``probe intervene`` on the run's
    checkpoint, each drawn under the curve of the sweep. measures: tables of the sweep's measures by file name.
    heads: table of ``probe heads`` of this run. gaps: what a probe finds beside what the model shows, for a gallery.
    against: a run of another checkpoint on the same examples, for the gallery of what changed most from it to this one.
    grounded_at: mean IoU (in a run without, share of phrases pointed at) from which on an example counts as grounded.
    ``figures.json`` in ``out`` says of which run the figures are, and lists them.
    Raises BadInput, before anything is drawn, for an empty run, an unknown id, map, site, head, grid or format, for
    tables and runs that do not go with this one, and where ``out`` cannot be a folder, or holds the figures of another
    run.
    """
    formats = check_formats(formats)
    check_folder(out)
    if (there := read_note(Path(out) / DESCRIPTION, "run", "figures")) is not None:
        refuse_another(out, "the figures of another run", there, of_run(run.manifest))
    tables = {
        "sweep": None if sweep is None else check_sweep(sweep),
        "interventions": [table for table in interventions if len(check_interventions(table))],
        "measures": measures or {},
        "heads": None if heads is None else check_heads(heads),
        "note": note,
    }
    figures = described(make_plan(run, examples, chosen, look, count, seed, gaps, against, grounded_at, **tables))
    make_folder(out)
    drawn: list[Drawn] = []
    for make in figures:
        name, title, caption, alternative, figure = make()
        paths = tuple(save(figure, Path(out) / name, formats))
        drawn.append(Drawn(name, title, caption, alternative, paths))
        if progress is not None:
            progress(len(drawn), len(figures))
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
