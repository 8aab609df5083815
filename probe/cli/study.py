"""``probe study``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grounding.devices import choose_device
from grounding.errors import BadInput, RunFailed, unknown_choice
from probe.cli.engines import Address, ShardIndex
from probe.cli.options import AsJson, BenchmarkOptions, Device, Root, parse_pairs, progress_bar, show

if TYPE_CHECKING:
    from probe.study import Cell, Results, StudyConfig

NAME = "study"
EPILOG = "Example: probe study miniature --out runs/study --minutes 45   (again, until nothing is left)"
ENGINES = ("local", "ray")


def command(
    config: Annotated[
        str,
        typer.Argument(help="YAML file of a study, or miniature, kilogram, kilogram-small, flickr30k, touchdown-sdr."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the study; the same command goes on with it.")],
    root: Root = None,
    option: BenchmarkOptions = None,
    minutes: Annotated[
        float | None, typer.Option(help="Begin nothing after so many minutes, and stop training.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local: this process, or its share of the cells; ray: a cluster.")
    ] = "local",
    address: Address = None,
    num_workers: Annotated[
        int | None, typer.Option(help="Processes that share the cells; from torchrun or Slurm if not given.")
    ] = None,
    shard_index: ShardIndex = None,
    light_copy: Annotated[
        Path | None,
        typer.Option(
            help="Also copy what the tables are made of (no weights, no activations) there; such a copy is a study "
            "that can go on."
        ),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Models x initialisations x fractions of the annotation x seeds: fine-tune to sweep, one table."""
    from extract.share import choose_share
    from grounding.finetune.recipes import laid_over
    from probe.study import check_light, read_study, run_study

    if engine not in ENGINES:
        raise unknown_choice("engine", engine, ENGINES)
    if engine == "local" and address is not None:
        raise BadInput("--address does not go with --engine local")
    study = read_study(config)
    if option:
        given = {"benchmark_options": parse_pairs(option, "--option")}
        study = replace(study, settings=laid_over(study.settings, given))
    if light_copy is not None:
        check_light(study, out, light_copy)
    share = choose_share(shard_index, num_workers) if engine == "local" else None
    failed: dict[str, str] = {}
    with progress_bar("study", as_json) as progress:
        left = run_study(
            study, out, root=root, device=choose_device(device), share=share, engine=engine,
            address=address or "auto", minutes=minutes, progress=progress, failed=failed,
        )  # fmt: skip
    if len(left) == len(study.cells()):
        told = f"No cell is whole yet; the same command goes on with {out}"
        show({"out": str(out), "left": len(left), "failed": failed}, as_json, told)
    else:
        _tell(study, out, left, light_copy, as_json, failed)
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise RunFailed(f"{len(failed)} of the cells cannot go on: {reasons}")


def _tell(
    study: StudyConfig, out: Path, left: list[Cell], light_copy: Path | None, as_json: bool, failed: dict[str, str]
) -> None:
    """Write tables, summary and figures of what is there, also in a light copy, and print what was found."""
    from probe.study import copy_light
    from visualize.study import draw_study

    results, text = _write(study, out)
    pictures = draw_study(vars(results), out / "figures")
    places = [f"Tables: {out}", f"Figures: {out / 'figures'}"]
    if light_copy is not None:
        copied = copy_light(study, out, light_copy)
        _write(study, light_copy)
        places.append(f"Light copy: {light_copy}, {len(copied)} cells")
    result = {"out": str(out), "left": len(left), "failed": failed, "curves": results.curves.to_dict("records")}
    result |= {"enough": results.enough.to_dict("records"), "figures": [str(path) for path in pictures]}
    following = "" if not left else f"\nLeft: {len(left)} of {len(study.cells())} cells; the same command goes on"
    show(result, as_json, text + "\n" + "\n".join(places) + following)


def _write(study: StudyConfig, folder: Path) -> tuple[Results, str]:
    """Write tables and summary of what is in the folder of a study, or in a copy of it."""
    from probe.study import collect
    from probe.study.folder import is_whole
    from probe.study.summary import summarise_study

    results = collect(folder)
    results.write(folder)
    missing = sum(not is_whole(folder, cell, study) for cell in study.cells())
    text = summarise_study(results, missing)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    return results, text
