"""What several subcommands share: option declarations, key=value parsing, progress bars, printing results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grounding.errors import BadInput

if TYPE_CHECKING:
    from grounding.checkpoint import Loading

# Written out, because help is shown without importing what it is about; a test compares.
SPLITS = (
    "kilogram, flickr30k and refcocog: train, dev, test; touchdown-sdr: train, tune, dev, test, debug; "
    "refcoco and refcoco+: train, dev, testA, testB; coco-json: train, tune, dev, test; "
    "columnar: pretrain, train, tune, dev, test, testA, testB, debug; "
    "mini-game and mini-sdr: pretrain, train, tune, dev, test"
)
OPTIONS = (
    "kilogram: colour_order (random, caption), annotations (dense, dense10), image_size, candidates; "
    "touchdown-sdr: images (folder), annotations (study, raw); "
    "flickr30k: images (folder), annotations (entities, mdetr), candidates, encoder (tfidf), games (file); "
    "refcoco, refcoco+, refcocog, coco-json and columnar: images (folder); "
    "mini-game: difficulty (hard, easy, single); mini-sdr: none"
)
MAPS = (
    "attention, attention.back, sink-filtered, relevance.rollout, relevance.gradient, relevance.gradient-attention, "
    "relevance.integrated-gradients, relevance.grad-cam, relevance.occlusion, probe"
)

Checkpoint = Annotated[
    str,
    typer.Option("--ckpt", help="Checkpoint folder or file, a bundled one (vilt-aligner-grounded, ...) or owner/name."),
]
BenchmarkName = Annotated[str, typer.Option("--benchmark", help="Name of a benchmark; probe data list shows them.")]
Root = Annotated[Path | None, typer.Option("--root", help="Folder of the benchmark's files, where it has any.")]
Split = Annotated[str, typer.Option("--split", help=f"Split of the benchmark ({SPLITS}).")]
Limit = Annotated[int | None, typer.Option("--limit", help="Only the first so many examples.")]
BenchmarkOptions = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help=f"Option of the benchmark, repeatable ({OPTIONS})."),
]
DataSeed = Annotated[int, typer.Option("--data-seed", help="Seed of splits, games and generated scenes.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Examples a batch.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
GroundedAt = Annotated[
    float,
    typer.Option("--grounded-at", help="Mean IoU from which on an example counts as grounded (quadrants, galleries)."),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out broken examples and list them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="tokenizer.json, its folder, or a name, instead of the checkpoint's.")
]
ChosenWeights = Annotated[
    str | None, typer.Option("--weights", help="ema (averaged) or raw, where a file has both; default ema.")
]
ModelSizes = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="KEY=VALUE", help="Field of the configuration that the file does not tell."),
]


def parse_pairs(pairs: Sequence[str] | None, option: str) -> dict[str, Any]:
    """``KEY=VALUE`` strings as a mapping; values are read as JSON where they are, else as text."""
    parsed: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise BadInput(f"{option} {pair!r} is not of the form KEY=VALUE")
        try:
            parsed[key.replace("-", "_")] = json.loads(value)
        except ValueError:
            parsed[key.replace("-", "_")] = value
    return parsed


def loading(tokenizer: str | None, weights: str | None, config: Sequence[str] | None) -> Loading:
    """What ``--tokenizer``, ``--weights`` and ``--config`` say, for the functions that load a checkpoint."""
    return {"tokenizer": tokenizer, "weights": weights, "config": parse_pairs(config, "--config")}


def parse_list(texts: Sequence[str] | None) -> list[str] | None:
    """The items of an option that may come several times, each a comma-separated list; None where it is not given."""
    return [item.strip() for text in texts for item in text.split(",")] if texts else None


@contextmanager
def progress_bar(title: str, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error, where that is a terminal.

    Yields a function to call with (done, total) and, to change it, the title.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total, title=None: bar.update(task, completed=done, total=total, description=title)


def show(result: Mapping[str, Any], as_json: bool, text: str) -> None:
    """Print a result: JSON for machines, with null for numbers that are not finite; text for people."""
    typer.echo(json.dumps(_finite(result), indent=1, default=str, allow_nan=False) if as_json else text)


def _finite(value: Any) -> Any:
    """The same values, None where JSON has no number."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def first_few(lines: Sequence[str], most: int = 10) -> list[str]:
    """The first lines, and how many are left out, which ``--json`` has."""
    left = len(lines) - most
    return [*lines[:most], f"and {left} more (--json lists all)"] if left > 0 else list(lines)


def show_table(title: str, rows: Sequence[tuple[str, str]], result: Mapping[str, Any], as_json: bool) -> None:
    """Print a result: JSON for machines, a table of two columns for people."""
    if as_json:
        show(result, as_json, "")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, show_header=False)
    for name, value in rows:
        table.add_row(Text(name), Text(value, overflow="fold"))
    Console().print(table)
