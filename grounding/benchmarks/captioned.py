"""What files with captions and located phrases have in common, whatever their format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grounding.benchmarks.pixel_boxes import Size
from grounding.examples import Phrase, Region, Span


@dataclass(frozen=True)
class Located:
    """A phrase to be: its type, its spans in the caption and its regions in the image."""

    type: str
    spans: tuple[Span, ...]
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Captioned:
    """One caption of one image, with its phrases in the order of the caption.

    id: of the caption within its split. size: width and height in pixels that the annotations give for the image.
    record: further fields of its entry in the file. where: file and entry, for error messages.
    """

    id: str
    image: Path
    size: Size
    caption: str
    phrases: tuple[Located, ...]
    where: str
    record: Mapping[str, Any] = field(default_factory=dict)


def phrases_of(captioned: Captioned, example_id: str, image_index: int = 0) -> tuple[Phrase, ...]:
    """The phrases of an example, their regions in candidate ``image_index``."""
    return tuple(
        Phrase(f"{example_id}/{number}", located.type, located.spans, located.regions, image_index)
        for number, located in enumerate(captioned.phrases)
    )
