"""``probe intervene``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from grounding.devices import choose_device
from probe.cli.options import (
    AsJson,
    BatchSize,
    BenchmarkName,
    BenchmarkOptions,
    Checkpoint,
    ChosenWeights,
    DataSeed,
    Device,
    Limit,
    ModelSizes,
    Root,
    Seed,
    Split,
    Tokenizer,
    loading,
    parse_list,
    parse_pairs,
    progress_bar,
    show,
)

NAME = "intervene"
EPILOG = (
    "Example: probe intervene --ckpt vilt-aligner-grounded --benchmark mini-game --split dev --limit 200 "
    "--method erase --run runs/vilt --sites 'block.*' --out runs/vilt/erase"
)

Method = Annotated[
    str,
    typer.Option(
        help="erase: remove a concept's linear trace; patch: put states of a game into its minimal change; "
        "knockout: cut attention from phrases to their regions."
    ),
]
Sites = Annotated[
    list[str] | None, typer.Option(help="Comma-separated sites, block.* for a stage; default all that can be changed.")
]
Out = Annotated[Path, typer.Option(help="Folder for tables, summary and figure.")]
OfRun = Annotated[
    Path | None,
    typer.Option("--run", help="erase: a run of the same checkpoint (probe extract), to fit on its train part."),
]
ChosenConcept = Annotated[
    list[str] | None,
    typer.Option(
        help="erase: place (box and candidate, from phrases) or membership (in a phrase's region, from patches); "
        "repeat for both (default what a site has tokens of)."
    ),
]
ChosenEraser = Annotated[str, typer.Option(help="erase: leace, inlp or mean (projection).")]
Pairs = Annotated[
    list[str] | None,
    typer.Option(
        help="patch: kinds of change (mini-game: caption, target, distractor; kilogram: colour, distractor); repeat "
        "for several (default all)."
    ),
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        help="patch: tokens (phrase, other-text, region, other-patches, queries, everything); repeat for several "
        "(default all that a site has).",
    ),
]
Draws = Annotated[int, typer.Option(help="erase, knockout: random controls a site, of which the mean is taken.")]
Threshold = Annotated[
    float | None, typer.Option(help="Of heatmaps, as a share of their maximum; default: the checkpoint's own.")
]
Sweep = Annotated[
    Path | None, typer.Option(help="Folder of a sweep of the run, drawn over the effects; default: sweep in --run.")
]


def command(
    ckpt: Checkpoint,
    benchmark: BenchmarkName,
    out: Out,
    split: Split = "dev",
    method: Method = "erase",
    sites: Sites = None,
    run: OfRun = None,
    concept: ChosenConcept = None,
    eraser: ChosenEraser = "leace",
    pairs: Pairs = None,
    group: Groups = None,
    draws: Draws = 3,
    root: Root = None,
    option: BenchmarkOptions = None,
    limit: Limit = None,
    threshold: Threshold = None,
    sweep: Sweep = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    data_seed: DataSeed = 0,
    seed: Seed = 0,
    tokenizer: Tokenizer = None,
    weights: ChosenWeights = None,
    config: ModelSizes = None,
    as_json: AsJson = False,
) -> None:
    """Change a live model at its sites: is what a probe reads there used, by the task and by grounding?"""
    from probe.interventions.intervene import intervene
    from probe.interventions.tables import SUMMARY

    swept = _sweep(run, sweep)
    with progress_bar(method, as_json) as progress:
        found = intervene(
            ckpt,
            benchmark,
            split,
            method,
            sites=parse_list(sites),
            out=out,
            run=run,
            concepts=concept,
            eraser=eraser,
            pairs=pairs,
            groups=group,
            draws=draws,
            root=root,
            options=parse_pairs(option, "--option"),
            limit=limit,
            threshold=threshold,
            batch_size=batch_size,
            device=choose_device(device),
            data_seed=data_seed,
            seed=seed,
            progress=progress,
            **loading(tokenizer, weights, config),
        )
    files = _draw(found.table, swept, out)
    result = {"out": str(out), "files": files, **found.description}
    for name, table in (("rows", found.table), ("checks", found.checks)):
        result[name] = table.astype(object).where(table.notna(), None).to_dict("records")  # JSON knows no NaN
    text = (out / SUMMARY).read_text(encoding="utf-8")
    show(result, as_json, f"{text}\nTables and figure: {out}")


def _sweep(run: Path | None, sweep: Path | None) -> Any:
    """The tidy table of the sweep to draw, or None."""
    from extract.reader import Run
    from grounding.errors import BadInput
    from probe.tables import read_sweep

    if run is None:
        if sweep is not None:
            raise BadInput(f"sweep {str(sweep)!r} without its run; give --run")
        return None
    return read_sweep(sweep or run / "sweep", Run.open(run), required=sweep is not None)


def _draw(table: Any, sweep: Any, out: Path) -> list[str]:
    from visualize.interventions import intervention_curves
    from visualize.style import save

    return [str(path) for path in save(intervention_curves(table, sweep), out / "interventions")]
