"""Opening images: from a path, an array, or something drawn on demand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from grounding.errors import BadInput
from grounding.examples import ImageSource, RenderedImage

SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
UNKNOWN_RANGE = ("I", "F")  # whole numbers and fractions of 32 bits: which value is white is not said


def read_image(
    source: ImageSource, size: int | None = None, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """Pixels of an image, uint8 RGB ``[height, width, 3]``, turned as its EXIF says; ``size`` resizes to a square.

    Palettes, grey, CMYK and 16 bits become 8-bit RGB; transparency is dropped. Raises BadInput naming the file if it
    is missing or cannot be decoded.
    """
    if isinstance(source, (str, Path)):
        pixels = decode_image(Path(source), f"image {source}")
    elif isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise BadInput(f"image array has {source.dtype} {source.shape}; accepted: uint8 [height, width, 3]")
        pixels = source
    elif isinstance(source, RenderedImage):
        pixels = source.render(size)
    else:
        raise BadInput(f"image of type {type(source).__name__}; accepted: a path, an array, a RenderedImage")
    if size is not None and pixels.shape[:2] != (size, size):
        pixels = resized(pixels, size, size, resample)
    return pixels


def read_legible(source: ImageSource, least: int) -> np.ndarray:
    """Pixels; a smaller image that is drawn on demand is drawn ``least`` pixels high, unless that changes its shape."""
    pixels = read_image(source)
    height, width = pixels.shape[:2]
    if isinstance(source, RenderedImage) and height < least:
        larger = source.render(least)
        if larger.shape[0] * width == larger.shape[1] * height:
            return larger
    return pixels


def image_shape(source: ImageSource) -> tuple[int, int] | None:
    """(height, width) of an image as it is stored, without decoding it; None where that is not known cheaply.

    An EXIF turn is not applied, and a file that cannot be opened has no shape: it is for whoever reads it to say so.
    """
    if isinstance(source, np.ndarray):
        return source.shape[0], source.shape[1]
    if not isinstance(source, (str, Path)):
        return None
    try:
        with Image.open(source) as image:
            return image.height, image.width
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError):
        return None


def resized(pixels: np.ndarray, height: int, width: int, resample: Image.Resampling) -> np.ndarray:
    """uint8 ``[h, w, 3]`` -> ``[height, width, 3]``, as Pillow does it: smoothed where it shrinks."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), resample))


def decode_image(file: Path | BinaryIO, name: str) -> np.ndarray:
    """Pixels of an encoded image, as ``read_image`` has them. Raises BadInput, which begins with ``name``."""
    with opened(file, name) as image:
        return _eight_bits(ImageOps.exif_transpose(image), name)


@contextmanager
def opened(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """An encoded image, decoded when its pixels are asked for. Raises BadInput, which begins with ``name``."""
    try:
        with Image.open(file) as image:
            yield image
    except FileNotFoundError:
        raise BadInput(f"{name} does not exist") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise BadInput(f"{name} cannot be read: {error}") from None


def _eight_bits(image: Image.Image, name: str) -> np.ndarray:
    """Pillow clips 16-bit grey at 255 instead of scaling it, though not 16-bit colour."""
    if image.mode in UNKNOWN_RANGE:
        raise BadInput(f"{name} has pixels of mode {image.mode!r}; accepted: 8 or 16 bits a channel")
    if image.mode in SIXTEEN_BITS:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))
