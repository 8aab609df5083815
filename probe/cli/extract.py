"""``probe extract``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grounding.devices import choose_device
from grounding.errors import BadInput
from grounding.values import counted
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
    first_few,
    loading,
    parse_list,
    parse_pairs,
    progress_bar,
    show,
    show_table,
)

if TYPE_CHECKING:
    from extract.estimate import Estimate
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
    "split", "option", "limit", "views", "sites", "module", "batch_size", "dtype", "precision", "compression",
    "tokenizer", "weights", "config", "seed", "data_seed", "skip_bad", "shard_size", "estimate",
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
Views = Annotated[
    list[str] | None,
    typer.Option(
        help="Comma-separated: phrase, region, attention (the default, where the model has them), tokens, "
        "attention.back (from image cells to phrases), relevance (relevance.rollout, .gradient and "
        ".gradient-attention), relevance.grad-cam, .integrated-gradients, .occlusion; all but .rollout also with "
        "-task, of the task's score instead of the phrase's."
    ),
]
Modules = Annotated[
    list[str] | None,
    typer.Option(
        "--module",
        metavar="PATH[=MEANING]",
        help="Modules by path, * for one name, repeatable: 'blocks.*.mlp', 'encoder.*[0]' for a part of an output. "
        "MEANING of its tokens, where it is not found by itself: a site's name, 1+image, text+image, ... or tokens. "
        "With it, a Hugging Face folder may be of any model.",
    ),
]
Sites = Annotated[list[str] | None, typer.Option(help=f"Comma-separated, block.* for a stage; default all ({SITES}).")]
AddViews = Annotated[
    list[str] | None,
    typer.Option(
        "--add-view",
        help="Views to add to the run in --out, at its sites or at those of --add-site; comma-separated or repeated.",
    ),
]
AddSites = Annotated[
    list[str] | None,
    typer.Option("--add-site", help="Sites to add to the run in --out, with its views or --add-view's; the same."),
]
AddModules = Annotated[
    list[str] | None, typer.Option("--add-module", metavar="PATH[=MEANING]", help="The same for modules; repeatable.")
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
    views: Views = None,
    sites: Sites = None,
    module: Modules = None,
    add_view: AddViews = None,
    add_site: AddSites = None,
    add_module: AddModules = None,
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

    new: dict[str, Any] = {"views": parse_list(add_view), "sites": parse_list(add_site), "modules": add_module or ()}
    where: dict[str, Any] = {"ckpt": ckpt, "root": root, "device": device, "workers": workers}
    if benchmark is None:
        _refuse_beside(context)
        _refuse_to_begin(out)
        prepare: Callable[..., Any] = prepare_continued
        where |= {f"add_{name}": value for name, value in new.items()}
    else:
        prepare, add = prepare_checkpoint, any(new.values())
        if add:
            _refuse_of_new(context)
        where |= (new if add else _asked(context.params)) | _settings(context.params)
        if estimate:
            _tell(estimate_checkpoint(**{**where, "device": choose_device(device)}), out, as_json)
            return
        where["add"] = add
    faults = _verified(out) if verify else []
    before = _records(out)
    engines: Any = {name: context.params[name] for name in Engine.__annotations__}
    with progress_bar("extracting", as_json) as progress:
        run, left = run_engine(prepare, {"out": out, "command": command_line(), **where}, engines, progress)
    _report(run, left, out, faults, len(_records(out) - before), as_json)


def _asked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Views, sites and modules of a run."""
    return {"views": parse_list(given["views"]), "sites": parse_list(given["sites"]), "modules": given["module"] or ()}


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the options say of a run that is named by checkpoint and benchmark. Raises BadInput where they cannot."""
    if given["ckpt"] is None:
        raise BadInput("ckpt is missing; accepted: --ckpt CHECKPOINT, or no --benchmark either to go on with --out")
    if given["estimate"] and given["verify"]:
        raise BadInput("--estimate writes nothing and --verify writes damaged shards anew; accepted: one of them")
    names = ("benchmark", "split", "limit", "data_seed", "seed", "dtype", "precision", "compression", "shard_size")
    said = {name: given[name] for name in (*names, "skip_bad")}
    said |= {"options": parse_pairs(given["option"], "--option"), "batch_size": _batch_size(given["batch_size"])}
    return said | dict(loading(given["tokenizer"], given["weights"], given["config"]))


def _refuse_beside(context: typer.Context) -> None:
    """Raise BadInput for an option that says what a run holds where its manifest does."""
    for name in SAID:
        if _is_given(context, name):
            option = f"--{name.replace('_', '-')}"
            raise BadInput(f"{option} needs --ckpt and --benchmark; without them, --out goes on as its manifest says")


def _refuse_of_new(context: typer.Context) -> None:
    """Raise BadInput for an option of a run that is made, beside those that add to one."""
    for name in ("views", "sites", "module", "estimate"):
        if _is_given(context, name):
            raise BadInput(f"--{name} is of a new run; accepted beside --add-view and its like: without it")


def _refuse_to_begin(out: Path) -> None:
    """Raise BadInput where there is no run to go on with: what was meant lacks a benchmark."""
    if not out.exists():
        raise BadInput(
            f"run {str(out)!r} is not there to go on with; accepted: a run, or --ckpt and --benchmark to begin one"
        )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _records(out: Path) -> set[str]:
    """The records of the shards, and of parts of them, that are complete."""
    return {path.name for path in out.glob("shard-*.json")}


def _report(run: Run | None, left: str, out: Path, faults: list[str], new: int, as_json: bool) -> None:
    from grounding.predictions import DROPPED

    if run is None:
        show({"run": str(out), "complete": False, "left": left}, as_json, left)
        return
    skipped = run.manifest["skipped_on_load"] + run.manifest["skipped"]
    size = sum(path.stat().st_size for path in out.glob("*.h5"))
    counts = {"examples": len(run.examples), "phrases": len(run.phrases), "regions": len(run.regions)}
    counts["sites"] = len(run.sites)
    dropped = [{"example": example, "phrase": phrase} for example, phrase in run.manifest["dropped_phrases"]]
    result = {"run": str(out), **counts, "bytes": size, "skipped": skipped}
    result |= {"dropped_phrases": dropped, "written_anew": faults, "new_shards": new}
    text = "".join(f"{fault}: written anew\n" for fault in faults)
    told_counts = (counted(value, name.removesuffix("s")) for name, value in counts.items())
    text += f"{out}: {', '.join(told_counts)}, {size / 1e6:.1f} MB"
    text += "" if new else "; all of it was there, nothing was computed"
    told = [f"skipped {item['id']}: {item['reason']}" for item in skipped]
    told += first_few([f"phrase {item['phrase']} of {item['example']} {DROPPED}" for item in dropped])
    show(result, as_json, "\n".join([text, *told, f"Next: {_next(run, out)}"]))


def _next(run: Run, out: Path) -> str:
    """A command that the run is enough for: probes need states of phrases and of regions."""
    from probe.features import sites_with

    try:
        sites_with(run, ("phrase", "region"))
    except BadInput:
        return f"probe visualize {out}   (probe sweep needs states of phrases and of regions)"
    return f"probe sweep {out}"


def _tell(estimate: Estimate, out: Path, as_json: bool) -> None:
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    result = {**asdict(estimate), "total_bytes": estimate.total_bytes, "free_bytes": free}
    rows = [(name, f"{result[name]:,}") for name in ("examples", "batch_size", "shards")]
    for view, size in estimate.bytes.items():
        rows.append(("tables" if view == "meta" else f"view {view}", f"{size / 1e6:,.1f} MB"))
    rows.append(("all", f"{estimate.total_bytes / 1e6:,.1f} MB of {free / 1e6:,.0f} MB free"))
    rows.append(("time", f"about {estimate.seconds:,.0f} s, told from {counted(estimate.sampled, 'example')}"))
    show_table(f"Estimate for {out}", rows, result, as_json)


def _verified(out: Path) -> list[str]:
    from extract.store import verify_run

    return verify_run(out, drop=True)


def _batch_size(text: str) -> Any:
    if text == "auto" or text.lstrip("-").isdigit():
        return text if text == "auto" else int(text)
    raise BadInput(f"batch-size {text!r} is not a number; accepted: 1 or more, or auto")
