"""``intervene``: a checkpoint by name on a benchmark by name, changed at its sites; behind ``probe intervene``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from extract.reader import Run
from grounding.benchmarks import open_benchmark
from grounding.checkpoint import Checkpoint, Loading, load_checkpoint
from grounding.errors import BadInput, unknown_choice
from grounding.evaluate_checkpoint import stored_threshold
from grounding.evaluation_files import check_folder
from grounding.examples import Example
from grounding.metrics.heatmaps import check_threshold
from grounding.models.base import Batch, GroundingModel, Site
from probe.interventions.concepts import CONCEPTS, train_part
from probe.interventions.erasers import ERASERS
from probe.interventions.erasure import Erasure, choose_concepts, erase
from probe.interventions.groups import check_choices
from probe.interventions.live import Live
from probe.interventions.tables import tidy, write_interventions

METHODS = ("erase",)


@dataclass(frozen=True, eq=False)
class Intervention:
    """What came of it. table: one row an effect (``probe.interventions.tables``). checks: what a linear probe reads
    before and after an erasure; empty for other methods. description: what both rest on, JSON values.
    """

    table: pd.DataFrame
    checks: pd.DataFrame
    description: Mapping[str, Any]


def intervene(
    ckpt: str | Path,
    benchmark: str,
    split: str = "dev",
    method: str = "erase",
    *,
    sites: Sequence[str] | None = None,
    out: Path | str | None = None,
    run: Path | str | None = None,
    concepts: Sequence[str] | None = None,
    eraser: str = "leace",
    draws: int = 3,
    root: Path | str | None = None,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    threshold: float | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    data_seed: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **loading: Unpack[Loading],
) -> Intervention:
    """Change a checkpoint's states at its sites while it answers a split, and measure what becomes of its answers.

    method: ``erase`` removes a concept's linear trace at one site at a time, beside random subspaces of equal rank
    (``draws`` of them). run: folder of a run of the same checkpoint, on whose train part erasers are fitted; examples
    with images of that part are left out here. concepts: ``place`` (box and candidate index, from phrase tokens),
    ``membership`` (does a patch belong to any phrase, from patches); by default what each site has the tokens of.
    eraser: ``leace``, ``inlp`` or ``mean``.
    sites: names, ``stage.*``, or None for every site that the method can change. out: folder for the tables.
    threshold: of heatmaps, by default the checkpoint's own. seed: of everything random. options: of the benchmark.
    loading: as ``Loading`` says. progress: called with (steps done, steps in all).
    Raises BadInput, before anything is run or written, for whatever is unknown, missing or does not fit together.
    """
    check_folder(out)
    if method not in METHODS:
        raise unknown_choice("method", method, METHODS)
    for name, number in (("draws", draws), ("batch_size", batch_size)):
        if number < 1:
            raise BadInput(f"{name} {number} is too small; accepted: 1 or more")
    check_choices("eraser", [eraser], ERASERS)
    check_choices("concept", concepts or [], CONCEPTS)
    if run is None:
        raise BadInput("method 'erase' needs a run of the checkpoint (--run), made by probe extract, to fit erasers on")
    opened_run = Run.open(run)
    source = open_benchmark(benchmark, root, data_seed, **(options or {}))
    checkpoint = load_checkpoint(ckpt, device, **loading)
    model = checkpoint.model
    level = _level(checkpoint, threshold)
    chosen = model.choose_sites(sites)
    _same_checkpoint(opened_run, checkpoint)
    pairs = _with_concepts(chosen, concepts, sites is not None, opened_run)
    examples = source.load(split, limit)
    kept = _unseen(examples, opened_run, seed)
    with Live(model) as live:
        how = Erasure(eraser, draws, seed)
        rows, checks = erase(live, pairs, _batches(model, kept, batch_size), opened_run, level, how, progress)
    settings = {"eraser": eraser, "draws": draws, "seed": seed, "run": opened_run.manifest["identity_hash"]}
    description = {
        "method": method,
        "checkpoint": {"name": checkpoint.path.name, "content": checkpoint.content},
        "benchmark": {**source.identity(), "split": split, "limit": limit},
        "examples": len(kept),
        "left_out": len(examples) - len(kept),
        "threshold": level,
        "settings": settings,
    }
    found = Intervention(tidy(rows, method), pd.DataFrame(checks), description)
    if out is not None:
        write_interventions(found.table, found.checks, description, Path(out))
    return found


def _level(checkpoint: Checkpoint, threshold: float | None) -> float | None:
    """The threshold of heatmaps; None for a model that ranks boxes."""
    if checkpoint.model.predicts != "heatmap":
        return None
    known = threshold if threshold is not None else stored_threshold(checkpoint.info)
    if known is None:
        raise BadInput("the checkpoint grounds by heatmaps and comes without a threshold; give --threshold, in [0, 1)")
    return check_threshold(known)


def _same_checkpoint(run: Run, checkpoint: Checkpoint) -> None:
    there = run.manifest["identity"].get("checkpoint")
    if there != checkpoint.content:
        raise BadInput(
            f"run {str(run.path)!r} is of checkpoint {str(there)[:12]}, not of {checkpoint.path.name!r} "
            f"({checkpoint.content[:12]}); accepted: a run of the same checkpoint"
        )


def _with_concepts(
    sites: Sequence[Site], names: Sequence[str] | None, asked: bool, run: Run
) -> list[tuple[Site, list[str]]]:
    """What to erase at each site. Sites that were not asked for by name are left out where they lack tokens or rows."""
    if asked:
        for site in sites:
            run.site(site.name)
        return [(site, choose_concepts(site, names)) for site in sites]
    stored = {site.name: site.views for site in run.sites}
    found = []
    for site in sites:
        held = [
            name for name in names or CONCEPTS
            if CONCEPTS[name].stream in site.streams and CONCEPTS[name].view in stored.get(site.name, ())
        ]  # fmt: skip
        found.append((site, held))
    if not any(held for _, held in found):
        raise BadInput(f"run {str(run.path)!r} holds no rows to fit on; extract with --views phrase,region")
    return [(site, held) for site, held in found if held]


def _unseen(examples: Sequence[Example], run: Run, seed: int) -> list[Example]:
    """The examples without an image of the run's train part."""
    seen = set(run.examples["group_image"].astype(str)[train_part(run, seed)])
    kept = [example for example in examples if example.groups["image"] not in seen]
    if not kept:
        raise BadInput(
            f"all {len(examples)} examples are in the train part of run {str(run.path)!r}; choose another split or a "
            "larger limit"
        )
    return kept


def _batches(model: GroundingModel, examples: Sequence[Example], size: int) -> list[Batch]:
    starts = range(0, len(examples), size)
    return [model.prepare(examples[begin : begin + size]).to(model.device) for begin in starts]
