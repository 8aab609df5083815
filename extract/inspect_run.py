"""What is in a run, told from its manifest and the records of its shards; reads no activations and needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from extract.relevance.kinds import has_heads, is_relevance
from extract.store import META, VIRTUAL, Shard, read_manifest, read_shards
from grounding.errors import BadInput


def is_run(path: Path | str) -> bool:
    """Is this folder a run, rather than a checkpoint?"""
    try:
        read_manifest(Path(path))
    except BadInput:
        return False
    return True


def describe_run(path: Path | str) -> dict[str, Any]:
    """Plain values: what the run is of, how much of it is there, and each dataset's rows, channels, bytes and peak.

    peak: a bound of its magnitudes, which proves that all are finite. Raises BadInput where ``path`` is not a run.
    """
    path = Path(path)
    manifest, shards = read_manifest(path), read_shards(path)
    identity, source = manifest["identity"], manifest["source"]
    files = [file for shard in shards for file in shard.files.values()]
    return {
        "format": f"run {manifest['format']}",
        "complete": "yes" if manifest["complete"] else "no: extract again to go on",
        "shards": f"{len(shards)} of {manifest['shards']}",
        "rows": manifest.get("rows", {}),
        "checkpoint": source.get("checkpoint", identity.get("checkpoint", "")),
        "benchmark": source.get("benchmark", ""),
        "split": identity.get("split", ""),
        "storage": identity["dtype"],
        "compression": manifest["made_with"]["compression"],
        "computed in": identity["precision"],
        "bytes": sum(file.bytes for file in files),
        "skipped": len(manifest["skipped_on_load"]) + len(manifest.get("skipped", [])),
        "dropped phrases": len(manifest.get("dropped_phrases", [])),
        "sites": [
            {
                "site": site["name"],
                "view": view,
                **_dataset(f"{site['name']}/{view}", shards),
                "channels": _width(site, view),
            }
            for site in manifest["sites"]
            for view in site["views"]
        ],
        "open": how_to_open(path, manifest["sites"]),
    }


def how_to_open(path: Path, sites: list[dict[str, Any]]) -> list[str]:
    """Four lines of h5py that read the first view of the run."""
    site, view = sites[0]["name"], sites[0]["views"][0]
    return [
        "import h5py",
        f"with h5py.File({str(path / VIRTUAL)!r}) as file:",
        f"    rows = file[{f'{site}/{view}'!r}][:]",
        "    captions = file['meta/examples/caption'].asstr()[:]",
    ]


def _dataset(name: str, shards: list[Shard]) -> dict[str, Any]:
    held = [shard.files[shard.file_with(name)] for shard in shards if name in shard.datasets]
    peak = max((file.peaks.get(name, 0.0) for file in held if file.view != META), default=0.0)
    return {"rows": sum(file.rows[name] for file in held), "peak": peak}


def _width(site: dict[str, Any], view: str) -> int:
    if has_heads(view):
        return int(site["heads"])
    return 1 if is_relevance(view) else int(site["width"])
