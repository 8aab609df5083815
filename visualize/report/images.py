"""The images of a report: small files named by their content, each written once however many examples show it."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grounding.errors import BadInput
from grounding.examples import Example, ImageSource
from grounding.images import read_legible

DRAWN = 128  # side in pixels of small images that are drawn on demand
LONGEST = 1280  # pixels; larger images are reduced
THUMBNAIL = 256  # longest side in pixels
QUALITY, EFFORT = 65, 2  # of WebP; more effort takes twice the time for a twentieth less


class ImageFolder:
    """Images that are written as WebP files into a folder. bytes: written so far."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bytes = 0
        self._known: dict[str, dict[str, Any]] = {}

    def add(self, example: Example | None, count: int) -> list[dict[str, Any]]:
        """Records of an example's ``count`` images: ``src``, ``thumb`` (file names), ``width`` and ``height``.

        One that cannot be shown has ``missing`` instead, which says why.
        """
        if example is None:
            return [{"missing": "the benchmark's images were not given"}] * count
        return [self.one(example, number) for number in range(count)]

    def one(self, example: Example, number: int) -> dict[str, Any]:
        """The record of one of an example's images."""
        return self._add(example.images[number] if number < len(example.images) else None)

    def _add(self, source: ImageSource | None) -> dict[str, Any]:
        key = str(source) if isinstance(source, (str, Path)) else None
        if key is not None and key in self._known:
            return self._known[key]
        try:
            if source is None:
                raise BadInput("the benchmark has no such image")
            record = self._write(read_legible(source, DRAWN))
        except BadInput as error:
            told = str(error)  # pages are passed on: they do not name the folders of whoever made them
            record = {"missing": told if key is None else told.replace(key, Path(key).name)}
        if key is not None:
            self._known[key] = record
        return record

    def _write(self, pixels: np.ndarray) -> dict[str, Any]:
        image = _reduced(Image.fromarray(pixels), LONGEST)
        small = _reduced(image, THUMBNAIL)
        name = self._save(image)
        thumb = name if small is image else self._save(small)
        return {"src": name, "thumb": thumb, "width": image.width, "height": image.height}

    def _save(self, image: Image.Image) -> str:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=QUALITY, method=EFFORT)
        encoded = buffer.getvalue()
        name = f"{hashlib.sha256(encoded).hexdigest()[:16]}.webp"
        if not (self.folder / name).exists():
            (self.folder / name).write_bytes(encoded)
            self.bytes += len(encoded)
        return name


def _reduced(image: Image.Image, longest: int) -> Image.Image:
    """The image, or one whose longer side is ``longest`` pixels where it is longer; same proportions."""
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    return image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)))
