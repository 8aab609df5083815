"""``probe visualize``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grounding.grounded import GROUNDED_AT
from probe.cli.options import MAPS, AsJson, GroundedAt, Root, Seed, progress_bar, show

if TYPE_CHECKING:
    from extract.reader import Run
    from probe.settings import SweepSettings
    from visualize.maps import SiteMaps
    from visualize.ranked import Gaps

NAME = "visualize"
EPILOG = (
    "Example: probe visualize runs/vilt-grounded --site block.4 --out runs/vilt-grounded/figures. Layer by layer: "
    "probe visualize runs/vilt-grounded --map attention --map probe --grid layers"
)


def command(
    run: Annotated[Path, typer.Argument(help="Folder of a run made by probe extract.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the figures; default: figures in the run.")] = None,
    sweep: Annotated[Path | None, typer.Option(help="Folder of its sweep; default: sweep in the run.")] = None,
    heads: Annotated[Path | None, typer.Option(help="Folder of its probe heads; default: heads in the run.")] = None,
    interventions: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of probe intervene on the run's checkpoint, drawn under the sweep; repeatable."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Run of another checkpoint on the same examples: a gallery of those that changed most."),
    ] = None,
    example: Annotated[list[str] | None, typer.Option(help="Id of an example to draw; repeat for several.")] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", help=f"Map to draw over images, repeatable: {MAPS}. Default: attention."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(help="Also an example by rows of layers, heads, or (maps) every kind the run holds; repeatable."),
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="Site whose maps are drawn; default: the last that has them.")
    ] = None,
    head: Annotated[int | None, typer.Option(help="One attention head; default: their mean.")] = None,
    grounded_at: GroundedAt = GROUNDED_AT,
    count: Annotated[
        int, typer.Option(help="Examples a group in the galleries; in each of the four quadrants half as many.")
    ] = 3,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="png, svg or pdf; repeatable. Default: png and svg.")
    ] = None,
    root: Root = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Draw layer curves, heads, measures, galleries, and chosen examples with any stored map, as PNG, SVG and PDF."""
    from extract.from_checkpoint import examples_of
    from extract.identity import weights_of
    from extract.reader import Run
    from probe.heads.tables import read_heads
    from probe.interventions.tables import read_interventions
    from probe.tables import read_measures, read_settings, read_sweep
    from visualize.figures import draw
    from visualize.plan import Look

    opened = Run.open(run)
    folder, other = sweep or run / "sweep", None if against is None else Run.open(against)
    tables: dict[str, Any] = {
        "sweep": read_sweep(folder, opened, required=sweep is not None),
        "measures": read_measures(folder, opened),
        "heads": read_heads(heads or run / "heads", opened, required=heads is not None),
        "gaps": _gaps(folder, opened),
        "interventions": [
            read_interventions(place, weights_of(opened.manifest["identity"])) for place in interventions or ()
        ],
    }
    with progress_bar("drawing", as_json) as progress:
        chosen, probed = list(example or ()), []
        if "probe" in (maps or ()):
            settings = read_settings(folder, opened)
            rows = _probed_rows(opened, settings, chosen, tables["gaps"], count, seed)
            probed = _probe_maps(opened, settings, rows, lambda done, total: progress(done, total, "fitting probes"))
            chosen = chosen or opened.examples["id"].iloc[rows].tolist()
        drawn = draw(
            opened,
            out or run / "figures",
            examples_of(opened, root=root),
            chosen=chosen,
            look=Look(tuple(maps or ()), site, head, tuple(grid or ()), probed),
            count=count,
            seed=seed,
            formats=tuple(formats or ("png", "svg")),
            progress=lambda done, total: progress(done, total, "drawing"),
            against=other,
            grounded_at=grounded_at,
            **tables,
        )
    files = [str(path) for figure in drawn for path in figure.paths]
    show({"files": files}, as_json, "\n".join(files))


def _gaps(folder: Path, run: Run) -> Gaps | None:
    from probe.gaps import example_gaps
    from visualize.ranked import Gaps

    found = example_gaps(folder, run)
    if found is None:
        return None
    return Gaps(found.table, f"the {found.probe} probe at {found.site} ({found.question}, test images)")


def _probed_rows(
    run: Run, settings: SweepSettings, chosen: Sequence[str], gaps: Gaps | None, count: int, seed: int
) -> list[int]:
    """Rows of the examples that maps of probes are drawn of: those chosen, else the biggest gaps, else test images."""
    from probe.phrase_maps import unseen_examples
    from visualize.case import find_row
    from visualize.ranked import biggest_gaps

    if chosen:
        return [find_row(run, example_id) for example_id in chosen]
    if gaps is not None and (rows := biggest_gaps(gaps, count, seed).rows):
        return list(rows)
    return unseen_examples(run, settings)[:count].tolist()


def _probe_maps(
    run: Run, settings: SweepSettings, rows: Sequence[int], progress: Callable[[int, int], None]
) -> list[SiteMaps]:
    """The maps of linear probes at every site, fitted as the sweep did it, if there is one."""
    from probe.phrase_maps import probe_maps
    from visualize.maps import PROBE, SiteMaps

    example = run.phrases["example"].to_numpy()
    words = "linear probe's probability that a cell is the phrase's,"
    found = []
    for maps in probe_maps(run, rows, settings=settings, progress=progress):
        part = {row: maps.part[int(example[row])] for row in maps.cells}
        seen = {row: f"the probe saw this image ({name} part)" for row, name in part.items() if name != "test"}
        found.append(SiteMaps(PROBE, maps.site, maps.cells, remarks=seen, words=words, label="linear probe"))
    return found
