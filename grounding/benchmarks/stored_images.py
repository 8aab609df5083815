"""Images kept inside Parquet files: written a file at a time, read a few rows at a time when a pixel is needed."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from grounding.errors import BadInput
from grounding.examples import ImageSource
from grounding.images import decode_image, read_image

IMAGES_A_FILE = 512  # held in memory at once while a file is written
IMAGES_A_GROUP = 16  # read together


@dataclass(frozen=True)
class StoredImage:
    """The image in a row of a Parquet file of ours, opened when it is needed."""

    file: Path
    row: int

    def render(self, size: int | None = None) -> np.ndarray:
        """Pixels, uint8 ``[height, width, 3]``, as they were stored, whatever the size. Raises BadInput if broken."""
        group, place = divmod(self.row, IMAGES_A_GROUP)
        encoded = _read_group(self.file, group)[place]
        return decode_image(io.BytesIO(encoded), f"image {self.row} of {self.file}")


def write_images(folder: Path, images: Sequence[tuple[str, ImageSource]]) -> Iterator[int]:
    """Write named images to ``images-00000.parquet``, ...; yields how many are written after each file.

    Image files keep their bytes, everything else becomes PNG at its own size: no pixel changes. Raises BadInput for an
    image that cannot be read.
    """
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"name": Value("string"), "image": ImageFeature()})
    for number, begin in enumerate(range(0, len(images), IMAGES_A_FILE)):
        part = images[begin : begin + IMAGES_A_FILE]
        rows = [{"name": name, "image": {"bytes": _encoded(source), "path": None}} for name, source in part]
        write_parquet(Dataset.from_list(rows, features), folder / f"images-{number:05d}.parquet", IMAGES_A_GROUP)
        yield begin + len(part)


def stored_images(folder: Path) -> dict[str, StoredImage]:
    """The images in a folder by name, none of them opened. Raises BadInput naming a file that cannot be read."""
    found = {}
    for file in sorted(folder.glob("images-*.parquet")):
        for row, name in enumerate(read_parquet(file, ["name"])):
            found[name["name"]] = StoredImage(file, row)
    return found


def write_parquet(dataset: object, path: Path, rows_a_group: int) -> None:
    """Write a ``datasets.Dataset`` as one file, without a progress bar of its own."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        dataset.to_parquet(path, batch_size=rows_a_group)  # type: ignore[attr-defined]
    finally:
        if shown:
            enable_progress_bars()


def read_parquet(path: Path, columns: list[str] | None = None) -> list[dict]:
    """The rows of a file. Raises BadInput naming it if it is missing or broken, or has no such column."""
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path, columns=columns).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"table {path} cannot be read: {error}") from None


@lru_cache(maxsize=16)
def _read_group(file: Path, group: int) -> list[bytes]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as opened:
            rows = opened.read_row_group(group, columns=["image"]).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"images {file} cannot be read: {error}") from None
    return [row["image"]["bytes"] for row in rows]


def _encoded(source: ImageSource) -> bytes:
    pixels = read_image(source)  # also of a file: one that cannot be decoded is refused now, not when it is needed
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
