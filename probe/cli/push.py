"""``probe push``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from grounding.errors import BadInput
from probe.cli.options import AsJson, show

NAME = "push"
EPILOG = "Example: probe push runs/mine owner/mine --evaluation runs/mine-dev --license mit --dry-run runs/mine-card"


def command(
    source: Annotated[
        str, typer.Argument(help="Checkpoint folder, or a bundled one; with --dataset, a folder of results.")
    ],
    name: Annotated[str, typer.Argument(help="Repository on the Hugging Face hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[
        Path | None, typer.Option(help="Write everything to this new folder instead; needs neither network nor token.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Folder of probe evaluate --out of this checkpoint; it goes along.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Licence, as the hub names it: mit, cc-by-4.0, ...")] = None,
    dataset: Annotated[
        bool, typer.Option("--dataset", help="Publish the tables of an evaluation or a study as a dataset.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Publish a checkpoint, or tables of results, on the Hugging Face hub, with a card written from the run."""
    from grounding.publish import push_checkpoint, push_results

    given: dict[str, Any] = {"private": private, "dry_run": dry_run, "license": license}
    if dataset and evaluation is not None:
        raise BadInput(f"--evaluation {evaluation} goes with a checkpoint, not with --dataset")
    pushed = (
        push_results(source, name, **given)
        if dataset
        else push_checkpoint(source, name, evaluation=evaluation, **given)
    )
    text = "\n".join([f"{pushed.place}: {pushed.kind} {name}", *(f"  {file}" for file in pushed.files)])
    if not dataset:
        text += f"\nNext: probe inspect {dry_run or name} --verify"
    show(asdict(pushed), as_json, text)
