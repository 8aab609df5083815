"""``extract_checkpoint``: a checkpoint by name on a benchmark by name; the functions behind ``probe extract``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from extract.arguments import arguments_of
from extract.estimate import Estimate, estimate
from extract.folder import Work, views_of
from extract.identity import manifest_there
from extract.reader import Run
from extract.run import Extraction, prepare
from extract.shards import Options, Settings
from extract.store import MANIFEST, read_manifest
from grounding.benchmarks import load_source, open_benchmark
from grounding.checkpoint import Checkpoint, Loading, load_checkpoint
from grounding.errors import BadInput
from grounding.evaluate_checkpoint import stored_threshold
from grounding.examples import Example


class AnyLoading(Loading, total=False):
    """As ``Loading``. adapted: False takes Hugging Face folders of models without an adapter too. fresh_weights: a
    seed, for the checkpoint's architecture with weights as before any training; part of the run's identity."""

    adapted: bool
    fresh_weights: int


class CheckpointSettings(Settings, AnyLoading):
    """Settings of an extraction, and of loading the checkpoint: the keys of both."""


@dataclass(frozen=True)
class _Opened:
    """A checkpoint and a split, and the arguments of ``extract`` that tell of them."""

    checkpoint: Checkpoint
    examples: Sequence[Example]
    about: dict[str, Any]


def prepare_checkpoint(
    ckpt: str | Path,
    benchmark: str,
    split: str,
    out: Path | str,
    *,
    root: Path | str | None = None,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    data_seed: int = 0,
    views: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    modules: Sequence[str] = (),
    device: str = "cpu",
    add: bool = False,
    progress: Callable[[int, int], None] | None = None,
    command: Sequence[str] | None = None,
    **settings: Unpack[CheckpointSettings],
) -> Extraction:
    """Get ready to store the activations of a checkpoint on a split of a benchmark in the folder ``out``.

    See ``prepare``. options: of the benchmark. modules: with them, a Hugging Face folder may be of any model. settings:
    as ``Settings`` and ``Loading`` say. The manifest notes where everything came from, so that ``continue_run`` and
    ``examples_of`` find it again. Warns where a folder beside ``out`` holds all of the run already. Raises BadInput for
    whatever is unknown or cannot be read.
    """
    manifest_there(Path(out))  # what is wrong with the folder is told before anything is opened
    if modules:
        settings["adapted"] = False
    opened = _open(ckpt, benchmark, split, root, options, limit, data_seed, device, settings)
    extraction = prepare(
        opened.checkpoint.model, opened.examples, out, views=views, sites=sites, modules=modules, device=device,
        add=add, progress=progress, command=command, **opened.about,
    )  # fmt: skip
    if made := next((_made_beside(Path(out), work) for work in extraction.works if work.fresh and not work.part), None):
        warnings.warn(f"{made} holds all of this run already; {out} will be another copy", stacklevel=2)
    return extraction


@arguments_of(prepare_checkpoint)
def extract_checkpoint(*arguments: Any, **settings: Any) -> Run:
    """Make the run that ``prepare_checkpoint``, whose arguments these are, gets ready; see ``extract``."""
    return prepare_checkpoint(*arguments, **settings).run()


def estimate_checkpoint(
    ckpt: str | Path,
    benchmark: str,
    split: str,
    *,
    root: Path | str | None = None,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    data_seed: int = 0,
    views: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    modules: Sequence[str] = (),
    device: str = "cpu",
    **settings: Unpack[CheckpointSettings],
) -> Estimate:
    """What ``extract_checkpoint`` would take with the same arguments, in bytes and time; see ``estimate``."""
    if modules:
        settings["adapted"] = False
    opened = _open(ckpt, benchmark, split, root, options, limit, data_seed, device, settings)
    chosen = {name: value for name, value in opened.about.items() if name in Settings.__annotations__}
    return estimate(
        opened.checkpoint.model, opened.examples, views=views, sites=sites, modules=modules, device=device, **chosen
    )


def prepare_continued(
    out: Path | str,
    *,
    add_views: Sequence[str] | None = None,
    add_sites: Sequence[str] | None = None,
    add_modules: Sequence[str] = (),
    root: Path | str | None = None,
    ckpt: str | Path | None = None,
    device: str = "cpu",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    command: Sequence[str] | None = None,
) -> Extraction:
    """Get ready to go on with the run in ``out`` as its manifest says: to finish it or, where views or sites are
    given, to add to it.

    add_views alone come at every site of the run, add_sites and add_modules (paths) alone with every view of it; both
    together mean those views of those sites. root, ckpt: where the benchmark's files and the checkpoint are now, if
    they have moved. Raises BadInput as ``extract_checkpoint`` does, and for a run that was not made from a checkpoint
    by name.
    """
    out = Path(out)
    manifest = read_manifest(out)
    if not manifest["source"]:
        raise BadInput(f"run {str(out)!r} was not made from a checkpoint by name; extract with the same arguments")
    arguments = made_from(manifest) | {name: value for name, value in (("ckpt", ckpt), ("root", root)) if value}
    return prepare_checkpoint(
        out=out, views=add_views or None, sites=add_sites or None, modules=add_modules, device=device, workers=workers,
        add=bool(add_views or add_sites or add_modules), progress=progress, command=command, **arguments,
    )  # fmt: skip


def made_from(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``prepare_checkpoint`` that the manifest of a run with a source tells, but for its contents."""
    source, facts = manifest["source"], manifest["identity"]
    names = ("benchmark", "split", "root", "options", "limit", "data_seed", "skip_bad")
    arguments = {name: source[name] for name in names} | {"ckpt": source["checkpoint"], **source["loading"]}
    arguments |= {name: facts[name] for name in ("dtype", "precision", "shard_size")}
    arguments |= {name: manifest["made_with"][name] for name in ("batch_size", "compression")}
    return arguments | {"seed": facts["extra_boxes"]["seed"]}


@arguments_of(prepare_continued)
def continue_run(*arguments: Any, **settings: Any) -> Run:
    """Go on with the run that ``prepare_continued``, whose arguments these are, gets ready; see ``extract``."""
    return prepare_continued(*arguments, **settings).run()


def examples_of(run: Run, root: Path | str | None = None) -> dict[str, Example]:
    """The examples of a run by id, opened again from where they came; empty for a run that does not say.

    root: where the benchmark's files are now, if they have moved.
    """
    return load_source(run.manifest.get("source"), root)


def _made_beside(out: Path, new: Work) -> Path | None:
    """A complete run in a folder beside ``out`` that has all that the ``new`` one there would have."""
    others = (place.parent for place in out.absolute().parent.glob(f"*/{MANIFEST}") if place.parent != out.absolute())
    for folder in sorted(others):
        try:
            there = read_manifest(folder)
        except (BadInput, OSError):  # of something else, or not for us to read
            continue
        if there["complete"] and there["identity_hash"] == new.manifest["identity_hash"]:
            held = views_of(there["sites"])
            if all(set(views) <= set(held.get(site, ())) for site, views in new.site_views.items()):
                return out.parent / folder.name
    return None


def _open(
    ckpt: str | Path,
    benchmark: str,
    split: str,
    root: Path | str | None,
    options: Mapping[str, Any] | None,
    limit: int | None,
    data_seed: int,
    device: str,
    settings: CheckpointSettings,
) -> _Opened:
    loading: Any = {name: value for name, value in settings.items() if name in AnyLoading.__annotations__}
    kept: Any = {name: value for name, value in settings.items() if name not in loading}
    Options.of(kept)  # what is wrong with it is told before anything is opened
    source = open_benchmark(benchmark, root, data_seed, **(options or {}))
    checkpoint = load_checkpoint(ckpt, device, **loading)
    skip_bad = bool(kept.get("skip_bad"))
    examples = source.load(split, limit, skip_bad)
    source.require(examples, split)
    threshold, part = stored_threshold(checkpoint.info), {"split": split, "limit": limit}
    place = str(Path(root).resolve()) if root is not None else None
    origin = {"benchmark": benchmark, "root": place, "options": dict(options or {}), "data_seed": data_seed}
    identity = {"checkpoint": checkpoint.content, "benchmark": dict(source.identity()), **part}
    if loading.get("fresh_weights") is not None:
        identity["fresh_weights"] = loading["fresh_weights"]
    about = {
        "identity": identity,
        "source": {
            "checkpoint": str(checkpoint.path.resolve()),
            "loading": {name: str(value) if isinstance(value, Path) else value for name, value in loading.items()},
            **origin,
            **part,
            "skip_bad": skip_bad,
        },
        "threshold": threshold.value if threshold is not None else None,
        "skipped_on_load": [(item.id, item.reason) for item in source.skipped],
        **kept,
    }
    return _Opened(checkpoint, examples, about)
