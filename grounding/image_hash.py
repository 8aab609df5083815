"""What the images of examples are, told cheaply: files are not read whole, and where their folder is plays no part."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from grounding.benchmarks.stored_images import StoredImage
from grounding.examples import Example, ImageSource

SAMPLED, SAMPLE = 4, 4096  # files of which some content counts, and bytes at each end of them


def image_hash(examples: Iterable[Example]) -> str | None:
    """sha256 of the images of examples in their order; None where all of them are drawn on demand.

    A file counts by name and size in bytes, or as absent; an array by its pixels. Of four files, evenly spread, the
    first and last 4 KiB count too: changed copies are as large as their originals in a format without compression.
    There, a change of other files goes unseen. Drawn images are for the identity of their benchmark to tell.
    """
    digest = hashlib.sha256()
    sizes: dict[str | Path, int | None] = {}
    counted = False
    for image in (image for example in examples for image in example.images):
        told = _told(image, sizes)
        counted |= told is not None
        digest.update(f"{told}\n".encode())
    for file in list(sizes)[:: -(-len(sizes) // SAMPLED) or 1]:
        digest.update(_ends(file))
    return digest.hexdigest() if counted else None


def _told(image: ImageSource, sizes: dict[str | Path, int | None]) -> str | None:
    """What is known of an image, None for one drawn on demand; sizes: in bytes, of the files met so far."""
    if isinstance(image, np.ndarray):
        return repr((image.shape, str(image.dtype), hashlib.sha256(image.tobytes()).hexdigest()))
    if not isinstance(image, (str, Path, StoredImage)):
        return None
    file = image.file if isinstance(image, StoredImage) else image
    if file not in sizes:
        sizes[file] = _size(file)
    return repr((os.path.basename(file), sizes[file], image.row if isinstance(image, StoredImage) else None))


def _size(file: str | Path) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:
        return None


def _ends(file: str | Path) -> bytes:
    """The first and the last bytes of a file; none where it cannot be read."""
    try:
        with open(file, "rb") as opened:
            first = opened.read(SAMPLE)
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - SAMPLE))
            return first + opened.read()
    except OSError:
        return b""
