"""``probe visualize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probe.cli.options import AsJson, Root, Seed, progress_bar, show

NAME = "visualize"
EPILOG = "Example: probe visualize runs/vilt-grounded --site block.4 --out runs/vilt-grounded/figures"


def command(
    run: Annotated[Path, typer.Argument(help="Folder of a run made by probe extract.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the figures; default: figures in the run.")] = None,
    sweep: Annotated[Path | None, typer.Option(help="Folder of its sweep; default: sweep in the run.")] = None,
    interventions: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of probe intervene on the run's checkpoint, drawn under the sweep; repeatable."),
    ] = None,
    example: Annotated[list[str] | None, typer.Option(help="Id of an example to draw; repeat for several.")] = None,
    site: Annotated[
        str | None, typer.Option(help="Site whose attention is drawn; default: the last that has it.")
    ] = None,
    head: Annotated[int | None, typer.Option(help="One attention head; default: their mean.")] = None,
    count: Annotated[int, typer.Option(help="Examples a group in the galleries.")] = 3,
    root: Root = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Draw layer curves, measures, galleries of right and wrong answers, and chosen examples, as PNG and SVG."""
    from extract.from_checkpoint import examples_of
    from extract.reader import Run
    from probe.interventions.tables import read_interventions
    from probe.tables import read_measures, read_sweep
    from visualize.figures import draw

    opened = Run.open(run)
    folder = sweep or run / "sweep"
    content = opened.manifest["identity"].get("checkpoint")
    with progress_bar("drawing", as_json) as progress:
        drawn = draw(
            opened,
            out or run / "figures",
            examples_of(opened, root=root),
            sweep=read_sweep(folder, opened, required=sweep is not None),
            measures=read_measures(folder, opened),
            chosen=example or (),
            site=site,
            head=head,
            count=count,
            seed=seed,
            progress=progress,
            interventions=[read_interventions(place, content) for place in interventions or ()],
        )
    files = [str(path) for figure in drawn for path in figure.paths]
    show({"files": files}, as_json, "\n".join(files))
