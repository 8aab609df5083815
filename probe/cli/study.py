"""``probe study``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grounding.devices import choose_device
from grounding.errors import BadInput, RunFailed, unknown_choice
from grounding.values import check_counts
from probe.cli.engines import Address, ShardIndex
from probe.cli.options import AsJson, BenchmarkOptions, Device, Root, parse_pairs, progress_bar, show

if TYPE_CHECKING:
    from extract.share import Share
    from probe.study import Results, StudyConfig

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
        int | None,
        typer.Option(
            help="Processes that share the cells, from torchrun or Slurm if not given; on ray, cells at a time."
        ),
    ] = None,
    shard_index: ShardIndex = None,
    light_copy: Annotated[
        Path | None,
        typer.Option(
            help="Also copy what the tables are made of (no weights, no activations) there; such a copy is a study "
            "that can go on."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that prepare the batches of a cell.")] = 0,
    logger: Annotated[
        list[str] | None,
        typer.Option(help="Of training: csv, tensorboard, wandb; repeat for several (default the first two)."),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Models x initialisations x fractions of the annotation x seeds: fine-tune to sweep, one table."""
    from extract.share import Share, choose_share
    from grounding.finetune.recipes import laid_over
    from grounding.finetune.trainer import DEFAULT_LOGGERS
    from probe.study import check_light, read_study, run_study

    if engine not in ENGINES:
        raise unknown_choice("engine", engine, ENGINES)
    if engine == "local" and address is not None:
        raise BadInput("--address does not go with --engine local")
    if engine == "ray" and shard_index is not None:
        raise BadInput("--shard-index does not go with --engine ray")
    check_counts(num_workers=num_workers)
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
            study, out, root=root, device=device if engine == "ray" else choose_device(device), workers=workers,
            loggers=logger or DEFAULT_LOGGERS, share=share, engine=engine, address=address or "auto",
            num_workers=num_workers, minutes=minutes, progress=progress, failed=failed,
        )  # fmt: skip
    names = [cell.name for cell in left]
    following = _following([cell.name for cell in study.cells()], names, share or Share(), failed)
    if len(left) == len(study.cells()):
        show({"out": str(out), "left": len(left), "failed": failed}, as_json, following)
    else:
        _tell(study, out, light_copy, as_json, {"left": len(left), "failed": failed}, following)
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise RunFailed(f"{len(failed)} of the cells cannot go on: {reasons}")


def _following(cells: list[str], left: list[str], share: Share, failed: Collection[str]) -> str:
    """What is left to do, and whether it is this process's and can be done; names of cells."""
    if not left:
        return ""
    own = {cells[place] for place in share.of(len(cells))} & set(left)
    if own and own <= set(failed):
        whose = "they cannot go on" if own == set(left) else "this shard's cannot go on"
    else:
        whose = "the same command goes on" if own else "none of them is this shard's"
    return f"Left: {len(left)} of {len(cells)} cells; {whose}"


def _tell(
    study: StudyConfig, out: Path, light_copy: Path | None, as_json: bool, state: Mapping[str, Any], following: str
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
    result = {"out": str(out), **state, "curves": results.curves.to_dict("records")}
    result |= {"enough": results.enough.to_dict("records"), "figures": [str(path) for path in pictures]}
    show(result, as_json, "\n".join([text, *places, *([following] if following else [])]))


def _write(study: StudyConfig, folder: Path) -> tuple[Results, str]:
    """Write tables and summary of what is in the folder of a study, or in a copy of it.

    Again where another process finished a cell meanwhile: whoever ends last leaves tables of all of them.
    """
    from probe.study import collect
    from probe.study.folder import is_whole
    from probe.study.summary import summarise_study

    def missing() -> int:
        return sum(not is_whole(folder, cell, study) for cell in study.cells())

    while True:
        before = missing()
        results = collect(folder)
        results.write(folder)
        text = summarise_study(results, before)
        (folder / "summary.md").write_text(text, encoding="utf-8")
        if missing() == before:
            return results, text
