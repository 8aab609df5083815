"""``probe heads``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from probe.cli.options import AsJson, Seed, parse_list, progress_bar, show

NAME = "heads"
EPILOG = "Example: probe heads runs/vilt-dev --select runs/vilt-tune"
# Written out as the options are; a test compares.
KIND_NAMES = (
    "raw, sink-filtered, rollout, gradient, gradient-attention, integrated-gradients, grad-cam, occlusion, "
    "gradient-task, gradient-attention-task, integrated-gradients-task, grad-cam-task, occlusion-task"
)


def command(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run with the view attention (or relevance): what is reported.")
    ],
    select: Annotated[
        Path,
        typer.Option(
            help="Another run of the same checkpoint, not on a test split: thresholds and heads are chosen on it."
        ),
    ],
    kind: Annotated[
        list[str] | None,
        typer.Option(help=f"Maps to score: {KIND_NAMES}; repeat for several (default: all that both runs hold)."),
    ] = None,
    sites: Annotated[
        list[str] | None, typer.Option(help="Comma-separated sites, block.* for a stage; default all.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for tables and figures; default: heads in the run.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Attention as grounding: does a head's attention from a phrase say where the phrase is?"""
    from extract.reader import Run
    from probe.heads.score import score_heads
    from probe.heads.tables import SUMMARY
    from visualize.heads import draw_head_maps

    target = out or run / "heads"
    with progress_bar("scoring", as_json) as progress:
        table = score_heads(
            Run.open(run),
            Run.open(select),
            kind or (),
            parse_list(sites),
            target,
            progress,
            seed=seed,
        )
    drawn = draw_head_maps(table, target)
    result = {
        "out": str(target),
        "figures": [str(path) for path in drawn],
        "rows": json.loads(table.to_json(orient="records")),
    }
    text = (target / SUMMARY).read_text(encoding="utf-8")
    figures = "".join(f"\n{path}" for path in drawn if path.suffix == ".png")
    show(result, as_json, f"{text}\nTables: {target}{figures}")
