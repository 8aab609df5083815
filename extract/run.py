"""``extract``: a model and examples in, a run on disk out; the function behind ``probe extract``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch

from extract.arguments import arguments_of
from extract.batch_size import find_batch_size
from extract.claims import Claims
from extract.collect import DEFAULT_VIEWS, TOKENS, choose_views, offered_views
from extract.folder import RunFolder, Work, contents, views_of
from extract.identity import (
    command_line,
    identity_hash,
    made_with,
    manifest_there,
    run_identity,
    same_means,
    with_mended_images,
)
from extract.interrupts import Interrupts
from extract.loading import shard_range
from extract.modules import add_modules, require_views
from extract.reader import Run
from extract.shards import Extractor, Options, Settings, attention_heads, extract_shards
from extract.share import Share
from extract.store import FORMAT
from grounding.errors import BadInput
from grounding.examples import Example
from grounding.folders import refuse_another
from grounding.models.base import GroundingModel, Site

_FEW = 4  # sites named one by one
_POLL = 1.0  # seconds between looks at shards that other processes hold
_Views = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Extraction:
    """A run that is ready to be made (``prepare``); a shard of it is what engines hand out.

    options, made_with: of the shards. works: what is to be written, one after the other; none if the run is there.
    progress: called with (examples done, all of them).
    """

    model: GroundingModel
    examples: Sequence[Example]
    out: Path
    options: Options
    made_with: Mapping[str, Any]
    works: Sequence[Work]
    progress: Callable[[int, int], None] | None = None

    def run(self) -> Run:
        """Make the run in this process, beside others that may do the same."""
        self.run_share(Share())
        return Run.open(self.out)

    def run_share(self, share: Share) -> list[int]:
        """Make a worker's share, and leave the others' to them; returns the shards that are missing of the whole.

        Whoever finishes last leaves the run whole. Raises what ``extract`` does.
        """
        missing: set[int] = set()
        for work in self.works:
            with Interrupts() as interrupts, RunFolder(self.out, work) as folder:
                self.write(work, share.of(work.shards), folder.claims, lambda: interrupts.asked)
            missing |= set(work.missing(self.out))
        return sorted(missing)

    def write(
        self, work: Work, shards: Sequence[int], claims: Claims, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Write those of ``shards`` that are missing: the one function behind every engine.

        Doing it twice, or in two places at once, changes nothing. Shards that others hold are waited for, and taken
        over if their owner is lost. Progress counts the examples of ``shards``. stopping: True to begin no further
        shard, and to end with KeyboardInterrupt if one is missing. Raises what ``extract`` does, and OSError.
        """
        extractor = Extractor(self.model, work.site_views, self.options, self.made_with, work.part)
        missing = set(work.missing(self.out, shards))
        done = sum(len(self.examples_of(shard)) for shard in shards if shard not in missing)
        total = sum(len(self.examples_of(shard)) for shard in shards)

        def count(more: int) -> None:
            nonlocal done
            done += more
            if self.progress is not None:
                self.progress(done, total)

        count(0)
        while True:
            extract_shards(extractor, self.examples, self.out, claims, shards, count, stopping)
            if not work.missing(self.out, shards):
                return
            if stopping():
                raise KeyboardInterrupt
            time.sleep(_POLL)

    @property
    def shards(self) -> int:
        """How many shards the run has."""
        return -(-len(self.examples) // self.options.shard_size)

    def examples_of(self, shard: int) -> range:
        """Numbers of a shard's examples."""
        return shard_range(shard, self.options.shard_size, len(self.examples))


def prepare(
    model: GroundingModel,
    examples: Sequence[Example],
    out: Path | str,
    *,
    identity: Mapping[str, Any],
    sites: Sequence[str] | None = None,
    modules: Sequence[str] = (),
    views: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    add: bool = False,
    progress: Callable[[int, int], None] | None = None,
    command: Sequence[str] | None = None,
    source: Mapping[str, Any] | None = None,
    skipped_on_load: Sequence[tuple[str, str]] = (),
    **settings: Unpack[Settings],
) -> Extraction:
    """Get ready to run ``model`` over ``examples`` and to keep views of its sites in the folder ``out``.

    identity: JSON facts that the activations depend on and that this function cannot see: the checkpoint's
    content hash, the benchmark's ``identity()``, split and limit. The rest is added. sites: names, or ``block.*``
    for a stage; partner sites that supply a missing stream come along. modules: further sites by their paths
    (``extract.modules``), or the only ones where ``sites`` is None. views: of ``phrase``, ``region``, ``attention``,
    ``tokens``; a site gives those it has the streams for. None stands for all sites and those of the first three views
    that they offer or, where a run is in ``out``, for those that it has. device: the model is moved there and put in
    eval mode. add: what the finished run in ``out`` lacks of these views of these sites is added to it, and nothing
    that it has is computed again. progress: called with (examples done, all of them). command: how the run was
    started, for the manifest. source: JSON facts that find the examples again (not part of the identity).
    skipped_on_load: (id, reason) of examples that the benchmark left out, listed with those left out here. settings: as
    ``extract.shards.Settings`` says; ``batch_size="auto"`` takes the fastest, or that of the run that is resumed.

    Nothing is written yet. Raises BadInput for impossible arguments and for another run in ``out``.
    """
    out = Path(out)
    if not len(examples):
        raise BadInput("there are no examples to extract")
    there = manifest_there(out)
    automatic = settings.get("batch_size") == "auto"
    if automatic:
        settings["batch_size"] = 1 if there is None else there["made_with"]["batch_size"]
    options = Options(**settings)  # type: ignore[arg-type]
    model.to(device if device is not None else model.device).eval()
    sites = add_modules(model, modules, examples, sites, there)
    wanted = choose(model, sites, views, there, add)
    facts = run_identity(identity, model, examples, **options.identity())
    if there is not None:
        there = with_mended_images(out, there, facts)
        refuse_another(out, "another run", there["identity"], facts)
    elif automatic:
        options = replace(options, batch_size=find_batch_size(Extractor(model, wanted, options), examples))
    means = made_with(options.batch_size, options.compression, model.device)
    part = {"complete": False, "command": list(command or command_line()), "made_with": means, "modules": [*modules]}
    if there is None:
        skips = [{"id": name, "reason": reason} for name, reason in skipped_on_load]
        about = {"identity": facts, "source": dict(source or {}), "skipped_on_load": skips}
        works = [_new_run(part | {"sites": _records(model, wanted)}, -(-len(examples) // options.shard_size), about)]
    else:
        works = _left(model, out, there, wanted, add, part)
    return Extraction(model, examples, out, options, means, works, progress)


@arguments_of(prepare)
def extract(*arguments: Any, **settings: Any) -> Run:
    """Make the run that ``prepare``, whose arguments these are, gets ready; returns it opened.

    A folder that holds a part of the same run is resumed at its missing shards, and may be shared by several
    processes; one that holds all that is asked for is opened. Ctrl-C stops after the current shard, a second one at
    once. Stopped by either or by an error, the folder keeps its complete shards, or is removed if there is none.
    Raises what ``prepare`` does; BadInput for an example that cannot be read and for values that are not finite or do
    not fit the storage; RunFailed where the disk fails or is full; KeyboardInterrupt.
    """
    return prepare(*arguments, **settings).run()


def choose(
    model: GroundingModel,
    sites: Sequence[str] | None,
    views: Sequence[str] | None,
    there: Mapping[str, Any] | None = None,
    add: bool = False,
) -> _Views:
    """Site -> views to extract; there: the manifest of the run that is resumed or added to. See ``extract``."""
    if there is None or (views is not None and not add):
        chosen = _with_partners(model, model.choose_sites(sites))
        default = [view for view in DEFAULT_VIEWS if any(view in offered_views(site) for site in chosen)] or [TOKENS]
        kept = choose_views(chosen, views or default)
        require_views(model.added_sites, kept)
        return kept
    held = views_of(contents(there["parts"])["sites"])
    if views is None and sites is None:
        return held
    chosen = _with_partners(model, model.choose_sites(sites if sites is not None else list(held)))
    offered = {view for site in chosen for view in offered_views(site)}
    return choose_views(chosen, views or [view for view in there["views"] if view in offered])


def _left(
    model: GroundingModel, out: Path, there: dict[str, Any], wanted: _Views, add: bool, part: dict[str, Any]
) -> list[Work]:
    """What is to be done in the run in ``out``: its unfinished parts, or else a new one with what it lacks."""
    works = _pending(out, there, wanted)
    if lacking := _lacking(out, there, wanted, add, works):
        works = [_addition(there, part | {"sites": _records(model, lacking)})]
    if works:
        same_means(out, there["made_with"], part["made_with"])
    return works


def _pending(out: Path, there: dict[str, Any], wanted: _Views) -> list[Work]:
    """The parts of the run in ``out`` that are not finished and that hold something wanted; the first in any case."""
    works = []
    for number, part in enumerate(there["parts"]):
        work = Work(there, number, fresh=False)
        holds = any(set(views) & set(wanted.get(site, ())) for site, views in work.site_views.items())
        if (number == 0 or holds) and not (part["complete"] and work.is_done(out)):
            works.append(work)
    return works


def _lacking(out: Path, there: Mapping[str, Any], wanted: _Views, add: bool, pending: Sequence[Work]) -> _Views:
    """Views that the run in ``out`` neither has nor is being given. Raises BadInput where they cannot be added now."""
    held = views_of(contents(there["parts"])["sites"])
    lacking = {site: tuple(view for view in views if view not in held.get(site, ())) for site, views in wanted.items()}
    lacking = {site: views for site, views in lacking.items() if views}
    if lacking and not add:
        raise BadInput(
            f"out {str(out)!r} holds this run without {_told(lacking)}; add them (--add-view, --add-site, "
            "--add-module), or choose another folder"
        )
    if lacking and pending:
        raise BadInput(f"out {str(out)!r} holds an unfinished run; finish it first, then add {_told(lacking)}")
    return lacking


def _told(views: _Views) -> str:
    """Sites and views in few words."""
    names = list(dict.fromkeys(view for held in views.values() for view in held))
    sites = ", ".join(views) if len(views) <= _FEW else f"{len(views)} sites"
    return f"{', '.join(names)} of {sites}"


def _new_run(part: dict[str, Any], shards: int, about: Mapping[str, Any]) -> Work:
    manifest = {
        "format": FORMAT,
        "complete": False,
        **contents([part]),
        "identity_hash": identity_hash(about["identity"]),
        "shards": shards,
        "made_with": part["made_with"],
        "command": part["command"],
        **about,
        "parts": [part],
    }
    return Work(manifest, 0, fresh=True)


def _addition(there: dict[str, Any], part: dict[str, Any]) -> Work:
    return Work({**there, "parts": [*there["parts"], part]}, len(there["parts"]), fresh=True)


def _records(model: GroundingModel, views: _Views) -> list[dict[str, Any]]:
    """What a manifest says of sites and the views that are kept of them."""
    names = ("name", "stage", "layer", "width", "phrase_partner", "region_partner")
    records = []
    for order, site in enumerate(model.all_sites()):
        if site.name in views:
            record = {name: getattr(site, name) for name in names}
            record |= {"streams": list(site.streams), "views": list(views[site.name])}
            records.append(record | {"heads": attention_heads(model, site), "order": order})
    return records


def _with_partners(model: GroundingModel, chosen: list[Site]) -> list[Site]:
    """The chosen sites and those that supply their missing streams, in the model's order."""
    wanted = {site.name for site in chosen}
    for site in chosen:
        wanted |= {partner for partner in (site.phrase_partner, site.region_partner) if partner is not None}
    return [site for site in model.all_sites() if site.name in wanted]
