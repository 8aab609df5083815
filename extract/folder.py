"""A run's folder while it is worked on: begun, and left either finished, resumable or as it was."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extract.claims import STALE, Claims
from extract.collect import VIEWS
from extract.store import (
    MANIFEST,
    TABLES,
    VIRTUAL,
    Shard,
    is_complete,
    read_manifest,
    read_records,
    read_shards,
    write_json,
)
from extract.virtual import build_virtual
from grounding.errors import BadInput, RunFailed


@dataclass(frozen=True)
class Work:
    """A part of a run that is to be written.

    manifest: of the run, as it is or will be there. part: its number, 0 for the run itself. fresh: nothing of it has
    been written yet.
    """

    manifest: dict[str, Any]
    part: int
    fresh: bool

    @property
    def site_views(self) -> dict[str, tuple[str, ...]]:
        """Site -> views of this part."""
        return views_of(self.manifest["parts"][self.part]["sites"])

    @property
    def shards(self) -> int:
        """How many shards the run has."""
        return int(self.manifest["shards"])

    def missing(self, folder: Path, shards: Iterable[int] | None = None) -> list[int]:
        """Those of ``shards`` (None: of all) of which this part is not complete."""
        wanted = range(self.shards) if shards is None else shards
        return [shard for shard in wanted if not is_complete(folder, shard, self.part)]

    def is_done(self, folder: Path) -> bool:
        """Is this part of every shard complete?"""
        return not self.missing(folder)


def views_of(sites: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Site -> views, of the records in a manifest."""
    return {site["name"]: tuple(site["views"]) for site in sites}


def contents(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``views`` and ``sites`` of a manifest whose parts those are, the sites in the model's order."""
    merged: dict[str, dict[str, Any]] = {}
    for part in parts:
        for site in part["sites"]:
            before = merged.get(site["name"], {}).get("views", [])
            merged[site["name"]] = {**site, "views": [view for view in VIEWS if view in (*before, *site["views"])]}
    ordered = sorted(merged.values(), key=lambda site: site["order"])
    sites = [{name: value for name, value in site.items() if name != "order"} for site in ordered]
    return {"views": [view for view in VIEWS if any(view in site["views"] for site in sites)], "sites": sites}


class RunFolder:
    """Context manager round the writing of shards: holds the claims, and keeps manifest and ``activations.h5`` true.

    Any number of workers may be in the same folder; whoever leaves last leaves it whole. Raises BadInput where the
    folder cannot be made, and where none of the run's examples could be read; RunFailed, with what to do, for an
    OSError inside.
    """

    def __init__(self, path: Path, work: Work):
        self.path, self.work = path, work
        self.claims = Claims(path)

    def __enter__(self) -> RunFolder:
        self.created = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"out {str(self.path)!r} cannot be made: {error}") from None
        if self.work.fresh and (self.work.part or not (self.path / MANIFEST).is_file()):
            self._write(self.work.manifest)
        elif not self.work.fresh:
            self._keep_identity()
        self.claims.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.claims.__exit__(kind, error, trace)
        try:
            records = read_records(self.path)
            if any(record.part == self.work.part for record in records):
                records = self._settle(records)
            elif self.work.fresh and kind is not None and not any(self.path.glob("*.claim")):
                self._take_back()
        except OSError as failure:
            raise self._failed(failure) from failure
        if isinstance(error, OSError):
            raise self._failed(error) from error
        if kind is None and self.work.is_done(self.path) and not any(record.examples for record in records):
            count = sum(record.end - record.begin for record in records if record.part == self.work.part)
            raise BadInput(f"none of the {count} examples could be read; see the manifest of {str(self.path)!r}")

    def _keep_identity(self) -> None:
        """Note the images that were mended since the run was begun (``extract.identity.with_mended_images``)."""
        known = {name: self.work.manifest[name] for name in ("identity", "identity_hash")}
        if (self.path / MANIFEST).is_file() and (manifest := read_manifest(self.path)) != manifest | known:
            self._write(manifest | known)

    def _failed(self, error: OSError) -> RunFailed:
        more = self.bytes_missing()
        needed = f", about {more / 1e6:,.0f} MB more are needed" if more else ""
        return RunFailed(f"{self.path}: {error}; complete shards are kept{needed}; extract again to go on")

    def bytes_missing(self) -> int | None:
        """About how many bytes the missing shards will take; None while no shard tells."""
        sizes = [
            sum(file.bytes for file in record.files.values())
            for record in read_records(self.path)
            if record.part == self.work.part
        ]
        return (self.work.shards - len(sizes)) * sum(sizes) // len(sizes) if sizes else None

    def _settle(self, records: list[Shard]) -> list[Shard]:
        """Write what the records say; again if another worker finished a shard meanwhile.

        Every worker ends only when what it wrote is what it then finds. So nothing stale can stay: if the last to
        write had missed a shard, its author, who writes after finishing it, would have been later still.
        """
        while True:
            shards = read_shards(self.path)
            build_virtual(self.path, shards, self.claims.token)
            self._write(self._manifest(shards))
            found = read_records(self.path)
            if found == records:
                break
            records = found
        for shard in shards:  # its worker was killed between finishing it and giving it back
            if is_complete(self.path, shard.shard, self.work.part):
                self.claims.clear(shard.shard)
        for name in (VIRTUAL, MANIFEST):  # left by workers that were killed
            for left in self.path.glob(f"{name}.tmp-*"):
                with suppress(FileNotFoundError):  # a worker that is alive has just given it its name
                    if time.time() - left.stat().st_mtime > STALE:
                        left.unlink()
        return records

    def _manifest(self, shards: Sequence[Shard]) -> dict[str, Any]:
        there = (self.path / MANIFEST).is_file()  # or taken back by a worker that began the run and failed
        manifest = read_manifest(self.path) if there else dict(self.work.manifest)
        parts = [dict(part) for part in manifest["parts"]]
        parts[self.work.part]["complete"] = self.work.is_done(self.path)
        finished = [part for part in parts if part["complete"]]
        manifest |= {"parts": parts, "complete": parts[0]["complete"], **contents(finished or parts[:1])}
        if self.work.part == 0:
            manifest |= {
                "rows": {name: sum(getattr(shard, name) for shard in shards) for name in TABLES},
                "skipped": [{"id": skip[0], "reason": skip[1]} for shard in shards for skip in shard.skipped],
                "dropped_phrases": [pair for shard in shards for pair in shard.dropped_phrases],
            }
        return manifest

    def _take_back(self) -> None:
        """Leave no trace of work of which no shard was finished."""
        if self.work.part:
            manifest = read_manifest(self.path)
            if len(manifest["parts"]) == self.work.part + 1:  # nobody has begun another addition since
                self._write({**manifest, "parts": manifest["parts"][:-1]})
            return
        (self.path / MANIFEST).unlink(missing_ok=True)
        if self.created and not any(self.path.iterdir()):
            self.path.rmdir()

    def _write(self, manifest: Mapping[str, Any]) -> None:
        write_json(self.path / MANIFEST, manifest, self.claims.token)
