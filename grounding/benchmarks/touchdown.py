"""Touchdown's spatial description resolution: where in a panorama is the bear that the text describes?

Two forms of annotations, both beside a folder of panoramas (which their owners give on request):

* ``study``: the study's COCO-style files, with phrases and their boxes, images of 3712 x 800;
* ``raw``: the corpus, one JSON object a line, without phrases: ``route_id``, ``td_location_text`` and, for the panorama
  where the bear is and its two neighbours (main, pre, post), ``<place>_pano`` and ``<place>_static_center``. The main
  panorama makes an example, and each neighbour in which the bear is seen a propagated one; {x: -1, y: -1} says it is
  not. Files are ``images/<pano>.jpg``.

The target's spans are all matches of /touchdown|bear/i, as in the study; a caption without any stands for itself.

Source: Chen et al., "Touchdown" (arXiv 1811.12354); annotations of Kojima et al. (arXiv 2309.02691).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from grounding.benchmarks.base import Fault
from grounding.benchmarks.captioned import Captioned
from grounding.benchmarks.coco import CocoBenchmark
from grounding.benchmarks.files import MissingFile, field, inside, read_json_lines
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, Point, Span, SpatialDescription

ANNOTATION_SETS = ("study", "raw")
PLACES = ("main", "pre", "post")
_TARGET = re.compile("touchdown|bear", re.IGNORECASE)


class TouchdownSdr(CocoBenchmark):
    """``touchdown-sdr``.

    images: folder of the panoramas, below the root unless it is an absolute path. annotations: ``study`` or ``raw``.
    """

    name: ClassVar[str] = "touchdown-sdr"
    splits: ClassVar[tuple[str, ...]] = ("train", "tune", "dev", "test", "debug")
    files: ClassVar[str] = (
        "finetune_touchdown_sdr_{train,tune,dev,test,debug}_800_3712_0.5_True_True.json (annotations=study) or "
        "{train,dev,test}.json (annotations=raw), and images/"
    )

    def __init__(
        self, root: Path | str | None = None, seed: int = 0, images: str = "images", annotations: str = "study"
    ):
        super().__init__(root, seed, images)
        if annotations not in ANNOTATION_SETS:
            raise unknown_choice("annotations", annotations, ANNOTATION_SETS)
        self.annotations = annotations

    def identity(self) -> Mapping[str, object]:
        """Hash of the annotation files of all splits, and which set they are."""
        return {**super().identity(), "annotations": self.annotations}

    def _annotations(self, split: str) -> Path:
        if self.annotations == "raw":
            return self._folder / f"{split}.json"
        return self._folder / f"finetune_touchdown_sdr_{split}_800_3712_0.5_True_True.json"

    def _task(self, captioned: Captioned) -> SpatialDescription:
        where, record = captioned.where, captioned.record
        return SpatialDescription(
            target_xy=_point(record.get("sdr_target_coords"), f"{where}: sdr_target_coords"),
            target_spans=target_spans(captioned.caption),
            caption_id=str(field(record, "caption_id", (int, str), where)),
            propagated=_flag(record, "is_propagated", where),
        )

    def _groups(self, captioned: Captioned) -> Mapping[str, str]:
        return {"image": captioned.image.name, "caption": str(captioned.record["caption_id"])}

    def _read(self, split: str, limit: int | None) -> Iterator[Example | Fault]:
        yield from super()._read(split, limit) if self.annotations == "study" else self._read_raw(split)

    def _read_raw(self, split: str) -> Iterator[Example | Fault]:
        path = self._annotations(split)
        if split in ("tune", "debug"):
            raise MissingFile(f"split {split!r} is not in the raw corpus; accepted: train, dev, test")
        for line, record in read_json_lines(path, self.files):
            try:
                yield from self._of_route(split, record, f"{path}, line {line}")
            except BadInput as error:
                yield Fault(f"{self.name}/{split}/line {line}", str(error))

    def _of_route(self, split: str, record: Any, where: str) -> list[Example]:
        """The examples of one text: its main panorama, and its neighbours where the bear is seen."""
        route = str(field(record, "route_id", (int, str), where))
        caption = field(record, "td_location_text", str, where)
        if not caption.strip():
            raise BadInput(f"{where}: td_location_text is empty")
        found = []
        for place in PLACES:
            centre = _decoded(record.get(f"{place}_static_center"), f"{where}: {place}_static_center")
            if centre == {"x": -1, "y": -1}:
                continue
            pano = field(record, f"{place}_pano", str, where)
            task = SpatialDescription(
                target_xy=_point(centre, f"{where}: {place}_static_center"),
                target_spans=target_spans(caption),
                caption_id=route,
                propagated=place != "main",
            )
            image = inside(self._folder / self.images, f"{pano}.jpg", where)
            groups = {"image": image.name, "caption": route}
            found.append(Example(f"{self.name}/{split}/{route}/{place}", split, (image,), caption, (), task, groups))
        return found


def target_spans(caption: str) -> tuple[Span, ...]:
    """Where the caption names what is looked for.

    >>> target_spans("Touchdown the bear is on the roof")
    ((0, 9), (14, 18))
    """
    return tuple(match.span() for match in _TARGET.finditer(caption))


def _decoded(centre: object, where: str) -> object:
    """The published corpus has its points as JSON within JSON."""
    try:
        return json.loads(centre) if isinstance(centre, str) else centre
    except json.JSONDecodeError:
        raise BadInput(f"{where} is {centre!r}; accepted: a point {{x, y}}") from None


def _point(value: object, where: str) -> Point:
    x, y = (field(value, axis, (int, float), where) for axis in "xy")
    if not (0 <= x <= 1 and 0 <= y <= 1):
        hint = "; is it in pixels?" if max(x, y) > 1 else ";"
        raise BadInput(f"{where} is ({x}, {y}){hint} accepted: x and y relative to the image (0..1)")
    return float(x), float(y)


def _flag(record: Mapping[str, Any], key: str, where: str) -> bool:
    value = record.get(key)
    if value not in (True, False):
        raise BadInput(f"{where}: {key!r} is {value!r}; accepted: true or false")
    return bool(value)
