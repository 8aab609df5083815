"""``probe demo``: the whole way once, on the bundled models, offline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grounding.best_site import best_site
from grounding.devices import choose_device
from probe.cli.options import AsJson, Device, Seed, progress_bar, show

if TYPE_CHECKING:
    import pandas as pd

    from grounding.metrics.intervals import Estimate
    from visualize.page import Section

NAME = "demo"
EPILOG = "Example: probe demo --out demo --examples 200"
BENCHMARK, SPLIT = "mini-game", "dev"
FEWEST = 10  # examples: the sweep needs images for five parts
COLUMNS = ("checkpoint", "accuracy", "mean IoU", "task x grounding (r)", "best layer", "linear probe", "random labels")


@dataclass(frozen=True)
class Result:
    """What the demo found for one checkpoint."""

    name: str
    figures: dict[str, Estimate]
    probes: pd.DataFrame
    sections: list[Section]

    def cells(self) -> tuple[str, ...]:
        """The checkpoint's row of the table: figures with their 95 % intervals."""
        best, control = best_layer(self.probes)
        figures = (self.figures[name] for name in ("accuracy", "mean_iou", "pearson"))
        return (
            self.name,
            *(_with_interval(f.value, f.low, f.high) for f in figures),
            str(best["site"]),
            *(_with_interval(row["value"], row["low"], row["high"]) for row in (best, control)),
        )


def command(
    out: Annotated[Path, typer.Option(help="Folder for the runs, figures and index.html.")] = Path("demo"),
    examples: Annotated[int, typer.Option(help="Games to look at.")] = 240,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Extract, evaluate, probe and draw the bundled models on the miniature game: offline, in minutes, on a CPU."""
    results = run_demo(out, examples, choose_device(device), seed, quiet=as_json)
    page = _write_page(out, results)
    if as_json:
        rows = [dict(zip(COLUMNS, result.cells(), strict=True)) for result in results]
        show({"page": str(page), "rows": rows}, as_json, "")
        return
    _print_table(results)
    typer.echo(f"\nOpen {page}\n\nNext, for example:")
    for text, line in next_steps(out):
        typer.echo(f"  {line}\n      {text}")


def run_demo(out: Path, examples: int = 240, device: str = "cpu", seed: int = 0, quiet: bool = False) -> list[Result]:
    """Take every bundled fine-tuned checkpoint the whole way, into ``out``; runs that are there are reused.

    Raises BadInput for too few examples or a seed below 0, and where ``out`` holds a demo of another number of them.
    """
    from grounding.checkpoint import bundled_checkpoints
    from grounding.errors import BadInput
    from grounding.folders import check_folder

    names = [name for name in reversed(bundled_checkpoints()) if not name.endswith("-pretrained")]
    if seed < 0:
        raise BadInput(f"seed {seed} is too small; accepted: 0 or more")
    check_folder(out)
    _check_examples(examples, out, names)
    results = []
    with progress_bar("demo", quiet) as progress:
        for place, name in enumerate(names):
            progress(place, len(names))
            results.append(_one(name, out / name, examples, device, seed))
    return results


def best_layer(probes: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The linear probe's row at the site of the lowest validation loss, and its control's there."""
    rows = probes[(probes["probe"] == "linear") & (probes["score"] == "choice_accuracy")]
    best = best_site(rows[rows["condition"] == "alignment"])
    control = rows[(rows["condition"] == "control-labels") & (rows["site"] == best["site"])].iloc[0]
    return best, control


def next_steps(out: Path) -> list[tuple[str, str]]:
    """What to try after the demo: a sentence and a command."""
    run = out / "vilt-aligner-task"
    return [
        (
            "all controls, three seeds",
            f"probe sweep {run} --control all --seed 0 --seed 1 --seed 2 --out {run}/all-controls",
        ),
        ("the attention of another layer", f"probe visualize {run} --site block.2 --out {run}/block2"),
        (
            "your own split, to disk",
            f"probe extract --ckpt vilt-aligner-grounded --benchmark {BENCHMARK} --split test --out runs/test",
        ),
        (
            "a model of your own",
            f"probe finetune --model vilt-aligner --benchmark {BENCHMARK} --init vilt-aligner-pretrained "
            "--out runs/mine",
        ),
    ]


def _check_examples(examples: int, out: Path, names: list[str]) -> None:
    from extract.store import MANIFEST, read_manifest
    from grounding.errors import BadInput

    if examples < FEWEST:
        raise BadInput(f"examples {examples} is too small; accepted: {FEWEST} or more")
    for name in names:
        if not (out / name / MANIFEST).is_file():
            continue
        there = read_manifest(out / name)["source"].get("limit")
        if there != examples:
            raise BadInput(
                f"examples {examples}: {str(out)!r} holds a demo of {there}; accepted: --examples {there}, "
                "another folder with --out, or this one deleted"
            )


def _one(name: str, folder: Path, limit: int, device: str, seed: int) -> Result:
    from extract.from_checkpoint import examples_of, extract_checkpoint
    from grounding.evaluate_checkpoint import evaluate_checkpoint
    from probe.sweep import sweep
    from visualize.figures import draw
    from visualize.page import Section

    run = extract_checkpoint(name, BENCHMARK, SPLIT, folder, limit=limit, device=device, batch_size=32)
    evaluation = evaluate_checkpoint(
        name, BENCHMARK, SPLIT, limit=limit, device=device, out=folder / "evaluation", batch_size=32
    )
    figures = evaluation.summary()
    probes = sweep(run, controls=("labels", "concatenation"), out=folder / "sweep", seeds=(seed,))
    pearson = figures["pearson"]
    note = f"Pearson r of task score and mean IoU: {_with_interval(pearson.value, pearson.low, pearson.high)}"
    drawn = draw(run, folder / "figures", examples_of(run), sweep=probes, count=2, seed=seed, note=note)
    return Result(name, figures, probes, [Section(name, drawn)])


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.2f}" if low is None else f"{value:.2f} ({low:.2f}, {high:.2f})"


def _print_table(results: list[Result]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    names, *rows = zip(COLUMNS, *(result.cells() for result in results), strict=True)
    # Lines are broken here, where they can be read, so that the table fits a terminal of 80 columns.
    table = Table(title="Bundled models on mini-game (95 % intervals over images)", box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column("-\n".join(name.rsplit("-", 1)), overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace(" (", "\n(") for cell in row))
    Console().print(table)


def _write_page(out: Path, results: list[Result]) -> Path:
    from visualize.page import Step, Table, write_page

    figures: dict[str, Any] = {
        "title": "Do the bundled models ground the phrases they read?",
        "lead": (
            "Each model chooses the one of six scenes that a caption describes. Those called grounded also learned "
            "where each phrase is; those called task did not. Chance is 0.17 for the task."
        ),
        "tables": [Table("In figures", COLUMNS, [result.cells() for result in results], NOTE)],
        "sections": [section for result in results for section in result.sections],
        "steps": [Step(text, line) for text, line in next_steps(out)],
    }
    return write_page(out / "index.html", **figures)


NOTE = (
    "Values with 95 % intervals over images. mean IoU: the model's own boxes or heatmaps against the annotated "
    "regions. linear probe: how often a probe on frozen activations of the best layer picks a region of the phrase "
    "among the image's candidates; random labels: the same probe taught labels that say nothing of alignment."
)
