"""``probe convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probe.cli.options import AsJson, ChosenWeights, ModelSizes, Tokenizer, loading, show

NAME = "convert"
EPILOG = "Example: probe convert mdetr.pth runs/mdetr --weights ema --tokenizer roberta-base"


def command(
    ckpt: Annotated[str, typer.Argument(help="Checkpoint file or folder that others made.")],
    out: Annotated[Path, typer.Argument(help="New folder; it gets its name when it is complete.")],
    weights: ChosenWeights = None,
    tokenizer: Tokenizer = None,
    config: ModelSizes = None,
    as_json: AsJson = False,
) -> None:
    """Write a released checkpoint as a folder that every command takes: safetensors, sizes and tokenizer."""
    from grounding.checkpoint import convert_checkpoint

    loaded = convert_checkpoint(ckpt, out, **loading(tokenizer, weights, config))
    report = loaded.report
    counts = {name: len(getattr(report, name)) for name in ("loaded", "renamed", "ignored", "missing")}
    result = {"checkpoint": str(out), "model": loaded.model.config.model, "weights": loaded.chosen, **counts}
    text = f"{out}: {loaded.model.config.model}, {', '.join(f'{count} {name}' for name, count in counts.items())}"
    text += "".join(f"\n{reason}" for reason in dict.fromkeys(report.missing.values()))
    show(result, as_json, f"{text}\nNext: probe inspect {out} --verify")
