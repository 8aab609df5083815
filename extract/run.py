"""``extract``: a model and examples in, a run on disk out; the function behind ``probe extract``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from extract.claims import STALE, Claims
from extract.collect import choose_views
from extract.identity import check_folder, command_line, identity_hash, made_with, run_identity
from extract.reader import Run
from extract.shards import Extractor, Options, attention_heads, extract_shards
from extract.store import FORMAT, MANIFEST, VIRTUAL, is_complete, read_manifest, read_shards, write_json
from extract.virtual import build_virtual
from grounding.errors import BadInput, RunFailed
from grounding.examples import Example
from grounding.models.base import GroundingModel, Site

_POLL = 1.0  # seconds between looks at shards that other processes hold


def extract(
    model: GroundingModel,
    examples: Sequence[Example],
    out: Path | str,
    *,
    identity: Mapping[str, Any],
    sites: Sequence[str] | None = None,
    views: Sequence[str] = ("phrase", "region", "attention"),
    batch_size: int = 16,
    dtype: str = "float16",
    precision: str = "fp32",
    device: torch.device | str | None = None,
    shard_size: int = 256,
    workers: int = 0,
    threshold: float | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    command: Sequence[str] | None = None,
    source: Mapping[str, Any] | None = None,
    skipped_on_load: Sequence[tuple[str, str]] = (),
) -> Run:
    """Run ``model`` over ``examples`` and keep views of its sites in the folder ``out``; returns the opened run.

    identity: JSON facts that the activations depend on and that this function cannot see: the checkpoint's
    content hash, the benchmark's ``identity()``, split and limit. The rest is added. sites: names, or ``block.*``
    for a stage (all for None); partner sites that supply a missing stream come along. views: of ``phrase``,
    ``region``, ``attention``, ``tokens``; a site gives those it has the streams for. dtype: of storage, float16 or
    float32. precision: of computing, fp32, bf16 or fp16 (autocast); views are reduced in fp32 whatever it is.
    device: the model is moved there and put in eval mode. shard_size: examples a file, the unit of resuming.
    workers: processes that open images. threshold: of heatmaps, for the model's own boxes and IoU (without one,
    those of heatmap models are NaN). skip_bad: leave out examples whose images cannot be read, and list them in the
    manifest. seed: of the extra boxes. progress: called with (examples done, all of them). command: how the run
    was started, for the manifest. source: JSON facts that find the examples again (not part of the identity).
    skipped_on_load: (id, reason) of examples that the benchmark left out, listed with those left out here.

    A folder that holds a part of the same run is resumed at its missing shards, and may be shared by several
    processes. Stopped by an error or Ctrl-C, it keeps its complete shards, or is removed if there is none.
    Raises BadInput for impossible arguments, another run in ``out``, an example that cannot be read, values that
    are not finite or do not fit ``dtype``; RunFailed where the disk fails or is full.
    """
    out = Path(out)
    options = Options(batch_size, dtype, precision, shard_size, workers, threshold, skip_bad, seed)
    if not len(examples):
        raise BadInput("there are no examples to extract")
    chosen = _with_partners(model, model.choose_sites(sites))
    site_views = choose_views(chosen, views)
    model.to(device if device is not None else model.device).eval()
    means = made_with(batch_size, model.device)
    manifest = _description(model, chosen, site_views, run_identity(identity, model, examples, **options.identity()))
    manifest |= {"shards": -(-len(examples) // shard_size), "made_with": means, "source": dict(source or {})}
    manifest["skipped_on_load"] = [{"id": name, "reason": reason} for name, reason in skipped_on_load]
    manifest["command"] = list(command or command_line())
    resumed = check_folder(out, manifest)
    if resumed and read_manifest(out)["complete"] and _all_complete(out, manifest["shards"]):
        return Run.open(out)
    extractor = Extractor(model, chosen, site_views, options, means)
    try:
        with _Folder(out, manifest, resumed) as folder:
            _fill(extractor, examples, folder, progress)
    except OSError as error:
        raise RunFailed(f"{out}: {error}; complete shards are kept, extract again to go on") from error
    return Run.open(out)


def _description(
    model: GroundingModel, sites: Sequence[Site], views: Mapping[str, tuple[str, ...]], identity: dict[str, Any]
) -> dict[str, Any]:
    """What a manifest says of the contents of a run that has just begun."""
    return {
        "format": FORMAT,
        "complete": False,
        "views": sorted({view for site in sites for view in views[site.name]}),
        "sites": [_site_record(model, site, views[site.name]) for site in sites],
        "identity": identity,
        "identity_hash": identity_hash(identity),
    }


class _Folder:
    """A run's folder while it is worked on: begins it, and leaves it either finished, resumable or not there."""

    def __init__(self, path: Path, manifest: dict[str, Any], resumed: bool):
        self.path, self.manifest, self.resumed = path, manifest, resumed
        self.claims = Claims(path)

    def __enter__(self) -> _Folder:
        self.created = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"out {str(self.path)!r} cannot be made: {error}") from None
        if not self.resumed:
            write_json(self.path / MANIFEST, self.manifest, self.claims.token)
        self.claims.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.claims.__exit__(kind, error, trace)
        shards = read_shards(self.path)
        if shards:
            self._finish(shards)
        elif not self.resumed:
            (self.path / MANIFEST).unlink(missing_ok=True)
            if self.created and not any(self.path.iterdir()):
                self.path.rmdir()

    def _finish(self, shards: Sequence[Any]) -> None:
        build_virtual(self.path, shards, self.claims.token)
        rows = {name: sum(getattr(shard, name) for shard in shards) for name in ("examples", "phrases", "regions")}
        self.manifest |= {
            "complete": len(shards) == self.manifest["shards"],
            "rows": rows,
            "skipped": [{"id": skip[0], "reason": skip[1]} for shard in shards for skip in shard.skipped],
            "dropped_phrases": [pair for shard in shards for pair in shard.dropped_phrases],
        }
        write_json(self.path / MANIFEST, self.manifest, self.claims.token)
        for name in (VIRTUAL, MANIFEST):  # left by workers that were killed
            for left in self.path.glob(f"{name}.tmp-*"):
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink(missing_ok=True)


def _fill(
    extractor: Extractor,
    examples: Sequence[Example],
    folder: _Folder,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the missing shards; those that others hold are waited for, and taken over if their owner is lost."""
    done = sum(shard.end - shard.begin for shard in read_shards(folder.path))

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, len(examples))

    count(0)
    extract_shards(extractor, examples, folder.path, folder.claims, count)
    while not _all_complete(folder.path, folder.manifest["shards"]):
        time.sleep(_POLL)
        extract_shards(extractor, examples, folder.path, folder.claims, count)
    if not any(shard.examples for shard in read_shards(folder.path)):
        raise BadInput(f"none of the {len(examples)} examples could be read; see the manifest of {str(folder.path)!r}")


def _all_complete(path: Path, shards: int) -> bool:
    return all(is_complete(path, shard) for shard in range(shards))


def _with_partners(model: GroundingModel, chosen: list[Site]) -> list[Site]:
    """The chosen sites and those that supply their missing streams, in the model's order."""
    wanted = {site.name for site in chosen}
    for site in chosen:
        wanted |= {partner for partner in (site.phrase_partner, site.region_partner) if partner is not None}
    return [site for site in model.sites() if site.name in wanted]


def _site_record(model: GroundingModel, site: Site, views: tuple[str, ...]) -> dict[str, Any]:
    names = ("name", "stage", "layer", "width", "phrase_partner", "region_partner")
    record = {name: getattr(site, name) for name in names}
    return record | {"streams": list(site.streams), "views": list(views), "heads": attention_heads(model, site)}
