"""Opening images: from a path, an array, or something drawn on demand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from grounding.errors import BadInput
from grounding.examples import ImageSource, RenderedImage


def read_image(source: ImageSource, size: int | None = None) -> np.ndarray:
    """Pixels of an image, uint8 RGB ``[height, width, 3]``; ``size`` resizes to a square (bicubic).

    Raises BadInput naming the file if it is missing or cannot be decoded.
    """
    if isinstance(source, (str, Path)):
        pixels = _decode(Path(source))
    elif isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise BadInput(f"image array has {source.dtype} {source.shape}; accepted: uint8 [height, width, 3]")
        pixels = source
    elif isinstance(source, RenderedImage):
        pixels = source.render(size)
    else:
        raise BadInput(f"image of type {type(source).__name__}; accepted: a path, an array, a RenderedImage")
    if size is not None and pixels.shape[:2] != (size, size):
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    return pixels


def _decode(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise BadInput(f"image {path} does not exist") from None
    except (UnidentifiedImageError, OSError) as error:
        raise BadInput(f"image {path} cannot be read: {error}") from None
