"""``probe sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probe.cli.options import AsJson, parse_list, progress_bar, show

NAME = "sweep"
EPILOG = "Example: probe sweep runs/vilt-grounded --probe linear --probe mlp --control all"


def command(
    run: Annotated[Path, typer.Argument(help="Folder of a run made by probe extract.")],
    probe: Annotated[list[str] | None, typer.Option(help="linear or mlp; repeat for several (default both).")] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="labels, concatenation, phrase-only, region-only, all or none; repeat for several "
            "(default labels and concatenation)."
        ),
    ] = None,
    sites: Annotated[str | None, typer.Option(help="Comma-separated sites, block.* for a stage; default all.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed of splits and probes; repeat for several (default 0).")
    ] = None,
    group: Annotated[str, typer.Option(help="Never split apart: image, caption, annotation or tangram.")] = "image",
    out: Annotated[Path | None, typer.Option(help="Folder for the tables; default: sweep in the run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Layer by layer: does this phrase belong to this region? Probes, controls, intervals, one tidy table."""
    from extract.reader import Run
    from probe.sweep import PROBES, sweep
    from probe.tables import SUMMARY

    target = out or run / "sweep"
    with progress_bar("probing", as_json) as progress:
        table = sweep(
            Run.open(run),
            probe or PROBES,
            _controls(control or ["labels", "concatenation"]),
            None if sites is None else parse_list(sites),
            seed or (0,),
            target,
            progress,
            group=group,
        )
    rows = table.astype(object).where(table.notna(), None).to_dict("records")  # JSON knows no NaN
    result = {"out": str(target), "rows": rows}
    text = (target / SUMMARY).read_text(encoding="utf-8")
    elsewhere = "" if out is None else f" --sweep {out}"
    show(result, as_json, f"{text}\nTables: {target}\nNext: probe visualize {run}{elsewhere}")


def _controls(names: list[str]) -> list[str]:
    """The controls asked for: their names, or ``all``, or ``none``. Raises BadInput for another name."""
    from grounding.errors import unknown_choice
    from probe.sweep import CONTROLS

    for name in names:
        if name not in (*CONTROLS, "all", "none"):
            raise unknown_choice("control", name, (*CONTROLS, "all", "none"))
    return list(CONTROLS) if "all" in names else [name for name in names if name != "none"]
