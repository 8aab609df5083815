"""``convert_benchmark``: any split of any benchmark in the toolkit's columnar form; behind ``probe data convert``."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grounding.benchmarks import open_benchmark
from grounding.benchmarks.base import Skipped
from grounding.benchmarks.columnar import EXAMPLES, IMAGES, write_manifest
from grounding.benchmarks.columnar_rows import example_features, to_row
from grounding.benchmarks.stored_images import write_images, write_parquet
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, ImageSource
from grounding.folders import check_folder, make_folder
from grounding.images import read_image

_ROWS_A_GROUP = 1000


@dataclass(frozen=True)
class Conversion:
    """What was written: folder of the split, how many examples and (different) images, what was left out."""

    folder: Path
    examples: int
    images: int
    skipped: tuple[Skipped, ...]


def convert_benchmark(
    benchmark: str,
    split: str,
    out: Path | str,
    *,
    root: Path | str | None = None,
    options: Mapping[str, Any] | None = None,
    images: str = "inside",
    limit: int | None = None,
    data_seed: int = 0,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write a split to ``<out>/<split>``, which ``open_benchmark("columnar", out)`` reads back as equal examples.

    images: ``inside`` (image files byte for byte, drawn images as PNG at their own size) or ``reference`` (names of
    image files, below the folder that holds them all). Other splits in ``out`` stay; the folder gets its name when it
    is complete. skip_bad: leave out broken examples, also those with an image that cannot be read, which are then read
    twice. progress: called with (images written, all of them). Raises BadInput for a split that is there already,
    for images by reference where they are no files, and whatever the benchmark refuses.
    """
    if images not in IMAGES:
        raise unknown_choice("images", images, IMAGES)
    check_folder(out)
    folder = Path(out) / split
    if folder.exists():
        raise BadInput(f"out {str(folder)!r} exists already; accepted: a new folder")
    check_folder(out)
    source = open_benchmark(benchmark, root, data_seed, **(options or {}))
    examples = source.load(split, limit, skip_bad)
    if skip_bad:
        examples, unreadable = _with_images(examples)
        source.skipped += unreadable
    source.require(examples, split)
    sources = {_key(image): image for example in examples for image in example.images}
    images_root = _common_folder(sources.values()) if images == "reference" else None
    names = _named(sources, images_root)
    created = not Path(out).exists()
    make_folder(out)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{split}-", dir=out))
    try:
        _write_examples(unfinished / EXAMPLES, examples, names)
        if images == "inside":
            for done in write_images(unfinished, [(names[key], image) for key, image in sources.items()]):
                if progress is not None:
                    progress(done, len(sources))
        manifest = {"source": dict(source.identity()), "split": split, "limit": limit, "images": images}
        write_manifest(unfinished, manifest | {"images_root": images_root and str(images_root)})
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        if created:
            with suppress(OSError):  # another split may have come
                Path(out).rmdir()
        raise
    return Conversion(folder, len(examples), len(sources), tuple(source.skipped))


def _with_images(examples: Sequence[Example]) -> tuple[list[Example], list[Skipped]]:
    """The examples all of whose images can be read, and the others with the reason."""
    faults: dict[object, str | None] = {}
    kept, skipped = [], []
    for example in examples:
        for image in example.images:
            if _key(image) not in faults:
                faults[_key(image)] = _fault(image)
        reasons = [reason for image in example.images if (reason := faults[_key(image)]) is not None]
        if reasons:
            skipped.append(Skipped(example.id, reasons[0]))
        else:
            kept.append(example)
    return kept, skipped


def _fault(image: ImageSource) -> str | None:
    """Why an image cannot be read, or None."""
    try:
        read_image(image)
    except BadInput as error:
        return str(error)
    return None


def _write_examples(path: Path, examples: Sequence[Example], names: Mapping[object, str]) -> None:
    from datasets import Dataset

    rows = [to_row(example, [names[_key(image)] for image in example.images]) for example in examples]
    write_parquet(Dataset.from_list(rows, features=example_features()), path, _ROWS_A_GROUP)


def _key(image: ImageSource) -> object:
    """What tells one image from another: its path, or which object it is."""
    return str(image) if isinstance(image, (str, Path)) else id(image)


def _common_folder(images: Any) -> Path:
    """The deepest folder that holds all image files. Raises BadInput if there is an image that is no file."""
    for image in images:
        if not isinstance(image, (str, Path)):
            raise BadInput(
                f"images 'reference' does not fit {type(image).__name__}, which is no file; accepted: inside"
            )
    folders = [Path(image).resolve().parent for image in images]
    return Path(os.path.commonpath(folders)) if folders else Path.cwd()


def _named(sources: Mapping[object, ImageSource], images_root: Path | None) -> dict[object, str]:
    """A name for every image: its path below the folder of all, or a number."""
    if images_root is None:
        return {key: f"{number:08d}" for number, key in enumerate(sources)}
    return {key: Path(str(key)).resolve().relative_to(images_root).as_posix() for key in sources}
