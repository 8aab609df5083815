"""``probe extract``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    SkipBad,
    Split,
    Tokenizer,
    choose_device,
    loading,
    parse_list,
    parse_pairs,
    progress_bar,
    show,
)

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


Out = Annotated[Path, typer.Option(help="Folder of the run; one that holds a part of it is completed.")]
Views = Annotated[str, typer.Option(help="Comma-separated: phrase, region, attention, tokens.")]
Sites = Annotated[str | None, typer.Option(help=f"Comma-separated, block.* for a stage; default all ({SITES}).")]


def command(
    ckpt: Checkpoint,
    benchmark: BenchmarkName,
    out: Out,
    split: Split = "dev",
    root: Root = None,
    option: BenchmarkOptions = None,
    limit: Limit = None,
    views: Views = "phrase,region,attention",
    sites: Sites = None,
    batch_size: BatchSize = 16,
    dtype: Annotated[str, typer.Option(help="Of storage: float16 or float32.")] = "float16",
    precision: Annotated[str, typer.Option(help="Of computing: fp32, bf16 or fp16.")] = "fp32",
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="Processes that open images.")] = 0,
    tokenizer: Tokenizer = None,
    weights: ChosenWeights = None,
    config: ModelSizes = None,
    seed: Seed = 0,
    data_seed: DataSeed = 0,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Run a checkpoint over a split and store its activations, predictions and annotations as HDF5."""
    from extract.from_checkpoint import extract_checkpoint
    from grounding.predictions import DROPPED

    with progress_bar("extracting", as_json) as progress:
        run = extract_checkpoint(
            ckpt,
            benchmark,
            split,
            out,
            root=root,
            options=parse_pairs(option, "--option"),
            limit=limit,
            views=parse_list(views),
            sites=parse_list(sites) if sites else None,
            batch_size=batch_size,
            dtype=dtype,
            precision=precision,
            device=choose_device(device),
            workers=workers,
            seed=seed,
            data_seed=data_seed,
            skip_bad=skip_bad,
            progress=progress,
            **loading(tokenizer, weights, config),
        )
    skipped = run.manifest["skipped_on_load"] + run.manifest["skipped"]
    size = sum(path.stat().st_size for path in out.glob("*.h5"))
    counts = {"examples": len(run.examples), "phrases": len(run.phrases), "regions": len(run.regions)}
    dropped = [{"example": example, "phrase": phrase} for example, phrase in run.manifest["dropped_phrases"]]
    result = {"run": str(out), **counts, "sites": len(run.sites), "bytes": size, "skipped": skipped}
    result |= {"dropped_phrases": dropped}
    text = f"{out}: " + ", ".join(f"{value} {name}" for name, value in counts.items())
    text += f", {len(run.sites)} sites, {size / 1e6:.1f} MB"
    text += "".join(f"\nskipped {item['id']}: {item['reason']}" for item in skipped)
    text += "".join(f"\nphrase {item['phrase']} of {item['example']} {DROPPED}" for item in dropped)
    show(result, as_json, text + f"\nNext: probe sweep {out}")
