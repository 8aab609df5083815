"""``probe extract``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grounding.errors import BadInput
from probe.cli.engines import (
    Address,
    CpusPerWorker,
    Engine,
    EngineName,
    GpusPerWorker,
    NumWorkers,
    ShardIndex,
    run_engine,
)
from probe.cli.options import (
    AsJson,
    BenchmarkOptions,
    ChosenWeights,
    DataSeed,
    Device,
    Limit,
    ModelSizes,
    Root,
    Seed,
    SkipBad,
    Split,
    Tokenizer,
    choose_device,
    loading,
    parse_list,
    parse_pairs,
    progress_bar,
    show,
    show_table,
)

if TYPE_CHECKING:
    from extract.reader import Run

NAME = "extract"
# Written out as the options are: help does not build models.
SITES = (
    "vilt-aligner: embedding, block.K, norm; "
    "mdetr: backbone, text.K, embedding, encoder.K, norm where pre_norm is on, decoder.K"
)
EPILOG = (
    "Example: probe extract --ckpt vilt-aligner-grounded --benchmark mini-game --split dev --limit 200 "
    "--out runs/vilt-grounded"
)

# What a manifest says of a run that goes on.
SAID = (
    "split", "option", "limit", "views", "sites", "batch_size", "dtype", "precision", "compression", "tokenizer",
    "weights", "config", "seed", "data_seed", "skip_bad", "shard_size", "estimate",
)  # fmt: skip

Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--ckpt",
        help="Checkpoint folder or file, a bundled one (vilt-aligner-grounded, ...) or owner/name. Without --ckpt and "
        "--benchmark, the run in --out goes on as its manifest says.",
    ),
]
BenchmarkName = Annotated[
    str | None, typer.Option("--benchmark", help="Name of a benchmark; probe data list shows them.")
]
Out = Annotated[Path, typer.Option(help="Folder of the run; one that holds a part of it is completed.")]
Views = Annotated[str, typer.Option(help="Comma-separated: phrase, region, attention, tokens.")]
Sites = Annotated[str | None, typer.Option(help=f"Comma-separated, block.* for a stage; default all ({SITES}).")]
AddViews = Annotated[
    str | None,
    typer.Option("--add-view", help="Views to add to the run in --out, at its sites or at those of --add-site."),
]
AddSites = Annotated[
    str | None, typer.Option("--add-site", help="Sites to add to the run in --out, with its views or --add-view's.")
]
BatchSize = Annotated[str, typer.Option("--batch-size", help="Examples a batch; auto takes the fastest that fits.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Read what is there again; write damaged shards, and only those, anew.")
]
OnlyEstimate = Annotated[bool, typer.Option("--estimate", help="Tell size and time from a few batches; write nothing.")]


def command(
    context: typer.Context,
    out: Out,
    ckpt: Checkpoint = None,
    benchmark: BenchmarkName = None,
    split: Split = "dev",
    root: Root = None,
    option: BenchmarkOptions = None,
    limit: Limit = None,
    views: Views = "phrase,region,attention",
    sites: Sites = None,
    add_view: AddViews = None,
    add_site: AddSites = None,
    batch_size: BatchSize = "16",
    dtype: Annotated[str, typer.Option(help="Of storage: float16, bfloat16 or float32.")] = "float16",
    precision: Annotated[str, typer.Option(help="Of computing: fp32, bf16 or fp16.")] = "fp32",
    compression: Annotated[str, typer.Option(help="Of the views on disk: none, lzf or gzip.")] = "none",
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="Processes that open images, of each worker.")] = 0,
    shard_size: Annotated[int, typer.Option(help="Examples a shard, the unit of resuming and of sharing out.")] = 256,
    engine: EngineName = "local",
    num_workers: NumWorkers = None,
    shard_index: ShardIndex = None,
    address: Address = None,
    gpus_per_worker: GpusPerWorker = None,
    cpus_per_worker: CpusPerWorker = None,
    tokenizer: Tokenizer = None,
    weights: ChosenWeights = None,
    config: ModelSizes = None,
    seed: Seed = 0,
    data_seed: DataSeed = 0,
    skip_bad: SkipBad = False,
    verify: Verify = False,
    estimate: OnlyEstimate = False,
    as_json: AsJson = False,
) -> None:
    """Run a checkpoint over a split and store its activations, predictions and annotations as HDF5."""
    from extract.from_checkpoint import estimate_checkpoint, prepare_checkpoint, prepare_continued
    from extract.identity import command_line

    faults = _verified(out) if verify else []
    engines: Engine = {
        "engine": engine,
        "num_workers": num_workers,
        "shard_index": shard_index,
        "address": address,
        "gpus_per_worker": gpus_per_worker,
        "cpus_per_worker": cpus_per_worker,
    }
    where: dict[str, Any] = {"root": root, "device": device, "workers": workers}
    there: dict[str, Any] = {"out": out, "command": command_line()}
    new_views, new_sites = _items(add_view), _items(add_site)
    if benchmark is None:
        _refuse_beside(context)
        there |= {"ckpt": ckpt, "add_views": new_views, "add_sites": new_sites}
        with progress_bar("extracting", as_json) as progress:
            run, left = run_engine(prepare_continued, there | where, engines, progress)
        _report(run, left, out, faults, as_json)
        return
    if ckpt is None:
        raise BadInput("ckpt is missing; accepted: --ckpt CHECKPOINT, or no --benchmark either to go on with --out")
    add = bool(new_views or new_sites)
    chosen = (new_views, new_sites) if add else (parse_list(views), _items(sites))
    where |= {"views": chosen[0] or None, "sites": chosen[1] or None}
    where |= {"options": parse_pairs(option, "--option"), "limit": limit, "data_seed": data_seed}
    where |= {"batch_size": _batch_size(batch_size), "dtype": dtype, "precision": precision, "seed": seed}
    where |= {"compression": compression, "skip_bad": skip_bad, **loading(tokenizer, weights, config)}
    where |= {"ckpt": ckpt, "benchmark": benchmark, "split": split, "shard_size": shard_size}
    if estimate:
        _tell(estimate_checkpoint(**{**where, "device": choose_device(device)}), out, as_json)
        return
    with progress_bar("extracting", as_json) as progress:
        run, left = run_engine(prepare_checkpoint, there | where | {"add": add}, engines, progress)
    _report(run, left, out, faults, as_json)


def _refuse_beside(context: typer.Context) -> None:
    """Raise BadInput for an option that says what a run holds where its manifest does."""
    for name in SAID:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise BadInput(f"{option} needs --ckpt and --benchmark; without them, --out goes on as its manifest says")


def _report(run: Run | None, left: str, out: Path, faults: list[str], as_json: bool) -> None:
    from grounding.predictions import DROPPED

    if run is None:
        show({"run": str(out), "complete": False, "left": left}, as_json, left)
        return
    skipped = run.manifest["skipped_on_load"] + run.manifest["skipped"]
    size = sum(path.stat().st_size for path in out.glob("*.h5"))
    counts = {"examples": len(run.examples), "phrases": len(run.phrases), "regions": len(run.regions)}
    dropped = [{"example": example, "phrase": phrase} for example, phrase in run.manifest["dropped_phrases"]]
    result = {"run": str(out), **counts, "sites": len(run.sites), "bytes": size, "skipped": skipped}
    result |= {"dropped_phrases": dropped, "written_anew": faults}
    text = "".join(f"{fault}: written anew\n" for fault in faults)
    text += f"{out}: " + ", ".join(f"{value} {name}" for name, value in counts.items())
    text += f", {len(run.sites)} sites, {size / 1e6:.1f} MB"
    text += "".join(f"\nskipped {item['id']}: {item['reason']}" for item in skipped)
    text += "".join(f"\nphrase {item['phrase']} of {item['example']} {DROPPED}" for item in dropped)
    show(result, as_json, text + f"\nNext: probe sweep {out}")


def _tell(estimate: Any, out: Path, as_json: bool) -> None:
    from extract.estimate import told

    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    result = told(estimate, shutil.disk_usage(place).free)
    rows = [(name, f"{result[name]:,}") for name in ("examples", "batch_size", "shards")]
    rows += [
        (f"view {view}" if view != "meta" else "tables", f"{size / 1e6:,.1f} MB")
        for view, size in result["bytes"].items()
    ]
    rows += [("all", f"{result['total_bytes'] / 1e6:,.1f} MB of {result['free_bytes'] / 1e6:,.0f} MB free")]
    rows += [("time", f"about {result['seconds']:,.0f} s, told from {result['sampled']} examples")]
    show_table(f"Estimate for {out}", rows, result, as_json)


def _verified(out: Path) -> list[str]:
    from extract.store import verify_run

    return verify_run(out, drop=True)


def _items(text: str | None) -> list[str]:
    return parse_list(text) if text else []


def _batch_size(text: str) -> Any:
    if text == "auto" or text.lstrip("-").isdigit():
        return text if text == "auto" else int(text)
    raise BadInput(f"batch-size {text!r} is not a number; accepted: 1 or more, or auto")
