"""The toolkit's own columnar form of any benchmark: Parquet tables that open in every language.

A root folder has one folder a split: ``manifest.json`` (what it was made from), ``examples.parquet`` (one row an
example, phrases and regions nested in it) and, where the images are inside, ``images-00000.parquet``, ...
(name, encoded image). ``grounding.benchmarks.convert`` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from grounding.benchmarks.base import Benchmark, Fault
from grounding.benchmarks.columnar_rows import from_row
from grounding.benchmarks.files import content_hash, field, inside, read_json
from grounding.benchmarks.stored_images import read_parquet, stored_images
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, ImageSource

FORMAT = 1
IMAGES = ("inside", "reference")
MANIFEST = "manifest.json"
EXAMPLES = "examples.parquet"


class Columnar(Benchmark):
    """``columnar``: what ``probe data convert`` wrote; ids, splits and groups are those of the benchmark it is of.

    images: folder of the image files in place of the one that they were in when the folder was made; for images by
    reference only.
    """

    name: ClassVar[str] = "columnar"
    splits: ClassVar[tuple[str, ...]] = ("pretrain", "train", "tune", "dev", "test", "testA", "testB", "debug")
    needs_root: ClassVar[bool] = True
    files: ClassVar[str] = "a folder a split, as probe data convert writes them"

    def __init__(self, root: Path | str | None = None, seed: int = 0, images: str = ""):
        super().__init__(Path(root) if root is not None else None, seed)
        self._folder = self.root or Path()
        self.images = images

    def identity(self) -> Mapping[str, object]:
        """Hash of the examples and the manifests of all splits."""
        files = [self._folder / split / name for split in self.splits for name in (MANIFEST, EXAMPLES)]
        return {"name": self.name, "content": content_hash(files)}

    def original(self, split: str) -> str:
        """Name of the benchmark that a split was made from."""
        where = f"manifest {self._folder / split / MANIFEST}"
        return str(field(field(self.manifest(split), "source", dict, where), "name", str, where))

    def manifest(self, split: str) -> dict[str, Any]:
        """What a split was made from. Raises BadInput where there is none, or one of another format."""
        path = self._folder / split / MANIFEST
        manifest = read_json(path, self.files)
        if field(manifest, "format", int, f"manifest {path}") != FORMAT:
            raise BadInput(f"manifest {path}: format {manifest['format']} is unknown; accepted: {FORMAT}")
        if manifest.get("images") not in IMAGES:
            raise unknown_choice(f"manifest {path}: images", manifest.get("images"), IMAGES)
        return manifest

    def _read(self, split: str, limit: int | None) -> Iterator[Example | Fault]:
        manifest, folder = self.manifest(split), self._folder / split
        inside_tables = manifest["images"] == "inside"
        kept: Mapping[str, ImageSource] = stored_images(folder) if inside_tables else {}
        for row in read_parquet(folder / EXAMPLES):
            try:
                known = kept if inside_tables else self._referred(row["images"], manifest, str(folder / EXAMPLES))
                yield from_row(row, known)
            except BadInput as error:
                yield Fault(row["id"], str(error))
            except KeyError as error:
                yield Fault(row["id"], f"{folder / EXAMPLES}, example {row['id']!r}: there is no image {error}")

    def _referred(self, names: list[str], manifest: Mapping[str, Any], where: str) -> dict[str, ImageSource]:
        images = Path(self.images or field(manifest, "images_root", str, where))
        return {name: inside(images, name, where) for name in names}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write what a split was made from."""
    text = json.dumps({"format": FORMAT, **manifest}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
