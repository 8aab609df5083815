"""``intervene``: a checkpoint by name on a benchmark by name, changed at its sites; behind ``probe intervene``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from extract.identity import weights_of
from extract.reader import Run
from grounding.benchmarks import Benchmark, open_benchmark
from grounding.checkpoint import Checkpoint, Loading, load_checkpoint
from grounding.devices import choose_device
from grounding.errors import BadInput
from grounding.evaluate_checkpoint import stored_threshold
from grounding.examples import Example
from grounding.folders import check_folder, name_of
from grounding.metrics.heatmaps import check_threshold
from grounding.models.base import Batch, GroundingModel, Site
from grounding.values import check_counts
from probe.interventions.concepts import CONCEPTS, train_part
from probe.interventions.erasers import ERASERS
from probe.interventions.erasure import Erasure, choose_concepts, erase
from probe.interventions.groups import check_choices
from probe.interventions.knockout import attending, edit_regions, knock_out, require_taps
from probe.interventions.live import Live, changeable, same_states
from probe.interventions.patching import TARGETS, pair_batches, patch
from probe.interventions.tables import tidy, write_interventions

OPTIONS = {"erase": ("run", "concepts"), "patch": ("pairs", "groups"), "knockout": ()}  # those of one method alone
METHODS = tuple(OPTIONS)


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
    pairs: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
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
    ``patch`` runs the minimal change of a game (``Benchmark.minimal_pairs``; pairs: kinds of change, all by default)
    with the clean game's states in some tokens of a site (groups: names of ``patching.TARGETS``, all by default).
    ``knockout`` cuts attention from phrases to their regions, beside ``draws`` of equally many other patches.
    sites: names, ``stage.*``, or None for every site that the method can change. out: folder for the tables.
    threshold: of heatmaps, by default the checkpoint's own. seed: of everything random. options: of the benchmark.
    loading: as ``Loading`` says. progress: called with (steps done, steps in all).
    Raises BadInput, before anything is written, for whatever is unknown, missing or does not fit together.
    """
    check_folder(out)
    check_options(method, eraser, draws, batch_size, run=run, concepts=concepts, pairs=pairs, groups=groups)
    device = choose_device(device)
    opened_run = None if run is None else Run.open(run)
    source = open_benchmark(benchmark, root, data_seed, **(options or {}))
    checkpoint = load_checkpoint(ckpt, device, **loading)
    asked = _Asked(checkpoint, source, split, limit, sites, batch_size, draws, seed, progress)
    if method == "patch":
        found = _patch(asked, pairs, groups)
    elif method == "knockout":
        found = _knock_out(asked, _level(checkpoint, threshold))
    else:
        assert opened_run is not None
        found = _erase(asked, _level(checkpoint, threshold), opened_run, concepts, eraser)
    if out is not None:
        write_interventions(found.table, found.checks, found.description, Path(out))
    return found


def check_options(
    method: str, eraser: str = "leace", draws: int = 3, batch_size: int = 16, *, run: Any = None, **given: Any
) -> None:
    """Raise BadInput for an option of another method, an unknown choice, or an erasure without a run.

    given: the options of ``intervene`` that are of one method only.
    """
    check_choices("method", [method], METHODS)
    check_counts(draws=draws, batch_size=batch_size)
    for name, value in {"run": run, **given}.items():
        if value is not None and name not in OPTIONS[method]:
            owner = next(one for one, names in OPTIONS.items() if name in names)
            raise BadInput(f"{name} {value!r} with method {method!r}; accepted: with method {owner!r}")
    check_choices("eraser", [eraser], ERASERS)
    check_choices("concept", given["concepts"] or (), CONCEPTS)
    check_choices("group", given["groups"] or (), TARGETS)
    if method == "erase" and run is None:
        raise BadInput("method 'erase' needs a run of the checkpoint (--run), made by probe extract, to fit erasers on")


@dataclass(frozen=True)
class _Asked:
    """What every method needs to know."""

    checkpoint: Checkpoint
    source: Benchmark
    split: str
    limit: int | None
    sites: Sequence[str] | None
    batch_size: int
    draws: int
    seed: int
    progress: Callable[[int, int], None] | None

    @property
    def model(self) -> GroundingModel:
        """The model to be changed."""
        return self.checkpoint.model

    def batches(self, examples: Sequence[Example]) -> list[Batch]:
        """The examples on the model's device."""
        starts, size = range(0, len(examples), self.batch_size), self.batch_size
        return [self.model.prepare(examples[begin : begin + size]).to(self.model.device) for begin in starts]

    def changeable(self, live: Live, batch: Batch, sites: Sequence[Site]) -> list[Site]:
        """The sites whose states can be changed. Raises BadInput at one that cannot where they were asked for."""
        return changeable(live, batch, sites, partial(same_states, self.model), self.sites is not None)

    def found(
        self, method: str, rows: list[dict[str, Any]], examples: int, checks: Sequence[Any] = (), **more: Any
    ) -> Intervention:
        """The result, with what it rests on."""
        description = {
            "method": method,
            "checkpoint": {"name": name_of(self.checkpoint.path), "content": self.checkpoint.content},
            "benchmark": {**self.source.identity(), "split": self.split, "limit": self.limit},
            "examples": examples,
            "seed": self.seed,
            "draws": self.draws,
            **more,
        }
        return Intervention(tidy(rows, method), pd.DataFrame(checks), description)


def _erase(asked: _Asked, level: float | None, run: Run, concepts: Sequence[str] | None, eraser: str) -> Intervention:
    sites = asked.model.choose_sites(asked.sites)
    _same_checkpoint(run, asked.checkpoint)
    chosen = _with_concepts(sites, concepts, asked.sites is not None, run)
    examples = asked.source.load(asked.split, asked.limit)
    kept = _unseen(examples, run, asked.seed)
    how = Erasure(eraser, asked.draws, asked.seed)
    batches = asked.batches(kept)
    with Live(asked.model) as live:
        usable = asked.changeable(live, batches[0], [site for site, _ in chosen])
        chosen = [(site, names) for site, names in chosen if site in usable]
        rows, checks = erase(live, chosen, batches, run, level, how, asked.progress)
    more = {"left_out": len(examples) - len(kept), "threshold": level, "eraser": eraser}
    return asked.found("erase", rows, len(kept), checks, **more, run=run.manifest["identity_hash"])


def _patch(asked: _Asked, kinds: Sequence[str] | None, groups: Sequence[str] | None) -> Intervention:
    sites = asked.model.choose_sites(asked.sites)
    pairs = asked.source.minimal_pairs(asked.split, asked.limit, kinds)
    batches = pair_batches(asked.model, pairs, asked.batch_size)
    with Live(asked.model) as live:
        sites = asked.changeable(live, batches[0].clean, sites)
        rows, counts = patch(live, sites, batches, groups, asked.seed, asked.progress)
    matched = [pair.kind for batch in batches for pair in batch.pairs]
    all_kinds = [pair.kind for pair in pairs]
    told = {
        kind: {"pairs": all_kinds.count(kind), "same_tokens": matched.count(kind), "counted": counts.get(kind, 0)}
        for kind in dict.fromkeys(all_kinds)
    }
    return asked.found("patch", rows, sum(counts.values()), pairs=told)


def _knock_out(asked: _Asked, level: float | None) -> Intervention:
    sites = asked.model.choose_sites(asked.sites)
    if asked.sites is None:
        sites = attending(asked.model, sites)
    for site in sites:
        require_taps(asked.model, site)
    examples = asked.source.load(asked.split, asked.limit)
    batches = asked.batches(examples)
    with Live(asked.model) as live:
        regions = partial(edit_regions, live, batches[0])
        sites = changeable(live, batches[0], sites, regions, asked.sites is not None)
        rows, uncut = knock_out(live, sites, batches, level, asked.draws, asked.seed, asked.progress)
    return asked.found("knockout", rows, len(examples), threshold=level, uncut_phrases=uncut)


def _level(checkpoint: Checkpoint, threshold: float | None) -> float | None:
    """The threshold of heatmaps; None for a model that ranks boxes."""
    if checkpoint.model.predicts != "heatmap":
        return None
    known = threshold if threshold is not None else stored_threshold(checkpoint.info)
    if known is None:
        raise BadInput("the checkpoint grounds by heatmaps and comes without a threshold; give --threshold, in [0, 1)")
    return check_threshold(known)


def _same_checkpoint(run: Run, checkpoint: Checkpoint) -> None:
    there = weights_of(run.manifest["identity"])
    if there != checkpoint.content:
        raise BadInput(
            f"run {str(run.path)!r} is of checkpoint {str(there)[:15]}, not of {checkpoint.path.name!r} "
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
    """The examples without an image of the run's train part. Raises BadInput where the run has other images of them."""
    images = run.examples["group_image"].astype(str)
    there = dict(zip(run.examples["id"], images, strict=True))
    for example in examples:
        if there.get(example.id, example.groups["image"]) != example.groups["image"]:
            raise BadInput(
                f"run {str(run.path)!r} has example {example.id!r} of image {there[example.id]!r}, the benchmark of "
                f"{example.groups['image']!r}; accepted: a run that was extracted with these images"
            )
    seen = set(images[train_part(run, seed)])
    kept = [example for example in examples if example.groups["image"] not in seen]
    if not kept:
        raise BadInput(
            f"all {len(examples)} examples are in the train part of run {str(run.path)!r}; choose another split or a "
            "larger limit"
        )
    return kept
