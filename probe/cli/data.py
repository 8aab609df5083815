"""``probe data``: list, verify, convert and show benchmarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe.cli.options import (
    AsJson,
    BenchmarkOptions,
    DataSeed,
    Limit,
    Root,
    SkipBad,
    parse_pairs,
    progress_bar,
    show,
    show_table,
)

if TYPE_CHECKING:
    from grounding.benchmarks.verify import Found

app = typer.Typer(name="data", help="Benchmarks: list, verify, convert, and show examples.", no_args_is_help=True)
Benchmark = Annotated[str, typer.Argument(help="Name of the benchmark, as probe data list has it.")]


@app.command("list", epilog="Example: probe data list")
def list_(as_json: AsJson = False) -> None:
    """Every benchmark: its splits, what its root folder must hold, its options with their defaults."""
    from grounding.benchmarks.catalogue import list_benchmarks

    found = list_benchmarks()
    rows = []
    for entry in found:
        options = ", ".join(f"{name}={value}" for name, value in entry.options.items())
        lines = [f"splits: {', '.join(entry.splits)}", f"root: {entry.needs}"]
        rows.append((entry.name, "\n".join([*lines, f"options: {options}"] if options else lines)))
    show_table("Benchmarks", rows, {"benchmarks": [asdict(entry) for entry in found]}, as_json)


@app.command(epilog="Example: probe data verify flickr30k --root FLICKR")
def verify(
    benchmark: Benchmark,
    root: Root = None,
    split: Annotated[list[str] | None, typer.Option(help="Split to check, repeatable; default: all there are.")] = None,
    option: BenchmarkOptions = None,
    limit: Limit = None,
    data_seed: DataSeed = 0,
    as_json: AsJson = False,
) -> None:
    """Check every file, span, box and image; a summary and all faults. Exit code 1 if there is one, or no example."""
    from grounding.benchmarks.verify import verify_benchmark

    with progress_bar("opening images", as_json) as progress:
        found = verify_benchmark(
            benchmark,
            root=root,
            splits=split,
            options=parse_pairs(option, "--option"),
            limit=limit,
            data_seed=data_seed,
            progress=progress,
        )
    lines = [
        f"{benchmark} {name}: {counts.examples} examples, {counts.phrases} phrases, {counts.regions} regions, "
        f"{counts.images} images"
        for name, counts in found.splits.items()
    ]
    lines += [f"not there: {', '.join(found.absent)}"] if found.absent else []
    lines += _excluded_told(found.excluded)
    lines += [f"fault in {fault.split}, {fault.id}: {fault.reason}" for fault in found.faults]
    show(asdict(found), as_json, "\n".join([*lines, f"faults: {len(found.faults)}"]))
    if found.faults:
        raise typer.Exit(1)


def _excluded_told(excluded: Sequence[Found]) -> list[str]:
    """How many whole entries of each split make no example, by reason; ``--json`` names them."""
    reasons = Counter((item.split, item.reason) for item in excluded)
    return [f"left out of {split}: {count} entries ({reason})" for (split, reason), count in reasons.items()]


@app.command(epilog="Example: probe data convert kilogram --root KILOGRAM --split dev --out kilogram-columnar")
def convert(
    benchmark: Benchmark,
    split: Annotated[str, typer.Option(help="Split to convert.")],
    out: Annotated[Path, typer.Option(help="Folder that gets the split as a new folder; other splits in it stay.")],
    root: Root = None,
    images: Annotated[
        str, typer.Option(help="inside (the tables hold them) or reference (they stay files).")
    ] = "inside",
    option: BenchmarkOptions = None,
    limit: Limit = None,
    data_seed: DataSeed = 0,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Write a split as Parquet tables, which the benchmark ``columnar`` reads back as equal examples."""
    from grounding.benchmarks.convert import convert_benchmark

    with progress_bar("writing images", as_json) as progress:
        written = convert_benchmark(
            benchmark,
            split,
            out,
            root=root,
            options=parse_pairs(option, "--option"),
            images=images,
            limit=limit,
            data_seed=data_seed,
            skip_bad=skip_bad,
            progress=progress,
        )
    text = f"{written.folder}: {written.examples} examples, {written.images} images {images}"
    text += "".join(f"\nskipped {item.id}: {item.reason}" for item in written.skipped)
    show(asdict(written), as_json, f"{text}\nNext: probe data verify columnar --root {out} --split {split}")


@app.command("show", epilog="Example: probe data show mini-game mini-game/dev/000003 --out example.png")
def show_(
    benchmark: Benchmark,
    example: Annotated[str, typer.Argument(metavar="ID", help="Id of the example.")],
    out: Annotated[Path, typer.Option(help="File to draw: .png, .svg or .pdf.")],
    root: Root = None,
    split: Annotated[str | None, typer.Option(help="Split of the example; default: as its id says.")] = None,
    option: BenchmarkOptions = None,
    data_seed: DataSeed = 0,
    as_json: AsJson = False,
) -> None:
    """Draw one example: caption with its phrases in colour, images with their regions, target."""
    from grounding.benchmarks.catalogue import find_example
    from grounding.errors import BadInput
    from grounding.folders import check_file, make_folder
    from visualize.case import of_example
    from visualize.overlays import draw_example
    from visualize.style import check_formats, save

    formats = check_formats([out.suffix.removeprefix(".")])
    check_file(out)
    options: dict[str, Any] = parse_pairs(option, "--option")
    found = find_example(benchmark, example, split=split, root=root, options=options, data_seed=data_seed)
    case = of_example(found)
    if case.missing:
        raise BadInput(next(iter(case.missing.values())))
    make_folder(out.parent, "folder of out")
    save(draw_example(case), out.with_suffix(""), formats)
    show({"file": str(out)}, as_json, str(out))
