"""COCO-style JSON whose boxes say which characters of the caption name them (``tokens_positive``), as MDETR's files.

An entry of ``images`` is one caption: id, file_name, width, height, caption. An entry of ``annotations`` is one box:
id, image_id, bbox ``[left, top, width, height]`` in pixels, tokens_positive ``[[begin, end], ...]``.

* Boxes with the same spans are the regions of one phrase. Where an image has ``tokens_positive_eval`` (MDETR's
  Flickr30k), each entry of that is a phrase, and its regions are the boxes that name all of its spans.
* Phrases without a region are left out, and so are boxes without spans, and crowds (``iscrowd``), as in MDETR.
* The type of a phrase is its head noun.
* Only boxes are read: ``segmentation`` is not.

Source: Kamath et al., "MDETR" (arXiv 2104.12763), and the files that its authors published.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

from grounding.benchmarks.base import Benchmark, Fault
from grounding.benchmarks.captioned import Captioned, Located, phrases_of
from grounding.benchmarks.captions import head_noun
from grounding.benchmarks.files import content_hash, field, inside, read_json
from grounding.benchmarks.pixel_boxes import Size, are_corners, box_of_xywh
from grounding.errors import BadInput
from grounding.examples import Example, ReferenceGame, Region, Span, Task, check_spans

Id = int | str
Spans = tuple[Span, ...]

SOURCES = ("coco", "vg", "flickr")  # of images, as an entry's ``data_source`` names them in MDETR's mixed JSON


def read_coco(path: Path, images: Path, accepted: str) -> Iterator[Captioned | Fault]:
    """The captions of a file in its order, then a fault for every box of an image that the file does not have.

    images: folder of the image files, or of a subfolder for each of ``SOURCES``. accepted: what the file's folder
    should be. A Fault's id is that of the entry.
    Raises BadInput naming the file if it cannot be read, has no lists of images and annotations, or if its boxes are
    corners: those that fit would be wrong without a word.
    """
    content = read_json(path, accepted)
    annotations = field(content, "annotations", list, f"annotations {path}")
    records = field(content, "images", list, f"annotations {path}")
    boxes: dict[Id, list[Any]] = defaultdict(list)
    for annotation in annotations:
        boxes[_id(annotation, "image_id")].append(annotation)
    repeated = {key for key, count in Counter(_id(a, "id") for a in annotations).items() if count > 1}
    _refuse_corners(path, records, boxes)
    apart = [source for source in SOURCES if (images / source).is_dir()]
    seen: set[Id] = set()
    for number, record in enumerate(records):
        image_id = _id(record, "id")
        where = f"{path}, image {image_id!r}"
        try:
            field(record, "id", (int, str), f"{path}, image number {number}")
            if image_id in seen:
                raise BadInput(f"{where}: two images have this id")
            seen.add(image_id)
            source = record.get("data_source")
            folder = images / source if source in apart else images
            yield _captioned(record, boxes.get(image_id, []), repeated, folder, where)
        except BadInput as error:
            yield Fault(str(image_id), str(error))
    for annotation in annotations:
        key, image_id = _id(annotation, "id"), _id(annotation, "image_id")
        if image_id not in seen:
            yield Fault(f"annotation {key}", f"{path}, annotation {key!r}: there is no image {image_id!r}")


def image_size(record: object, where: str) -> Size:
    """Width and height in pixels that a record gives. Raises BadInput, beginning with ``where``."""
    size = field(record, "width", int, where), field(record, "height", int, where)
    if min(size) < 1:
        raise BadInput(f"{where}: an image of {size[0]} x {size[1]} pixels; accepted: 1 or more each")
    return size


def _refuse_corners(path: Path, records: list[Any], boxes: Mapping[Id, list[Any]]) -> None:
    sized: list[tuple[object, Size]] = []
    for record in records:
        with suppress(BadInput):  # broken entries are named later, one by one
            size = image_size(record, "")
            sized += [(field(annotation, "bbox", list, ""), size) for annotation in boxes.get(_id(record, "id"), [])]
    if are_corners(sized):
        raise BadInput(
            f"annotations {path}: the {len(sized)} boxes are [x1, y1, x2, y2]; "
            f"accepted: bbox [left, top, width, height] in pixels"
        )


def _id(record: object, key: str) -> Id:
    """An id for grouping; whatever is none becomes an empty text, which is refused where it matters."""
    value = record.get(key) if isinstance(record, dict) else None
    return value if type(value) in (int, str) else ""  # type: ignore[return-value]


def _captioned(record: Any, annotations: list[Any], repeated: set[Id], images: Path, where: str) -> Captioned:
    caption = field(record, "caption", str, where)
    if not caption.strip():
        raise BadInput(f"{where}: the caption is empty")
    size = image_size(record, where)
    found: dict[Spans, list[Region]] = defaultdict(list)
    for annotation in annotations:
        key = field(annotation, "id", (int, str), where)
        here = f"{where}, annotation {key!r}"
        if key in repeated:
            raise BadInput(f"{here}: two annotations have this id")
        spans = _spans(field(annotation, "tokens_positive", list, here), caption, f"{here}: tokens_positive")
        region = Region(box_of_xywh(annotation.get("bbox"), size, here))
        if spans and not annotation.get("iscrowd"):
            found[spans].append(region)
    if record.get("tokens_positive_eval"):
        entries = field(record, "tokens_positive_eval", list, where)
        found = _evaluated([_spans(e, caption, f"{where}: tokens_positive_eval") for e in entries], found)
    return Captioned(
        id=str(record["id"]),
        image=inside(images, field(record, "file_name", str, where), where),
        size=size,
        caption=caption,
        phrases=tuple(
            Located(_type(caption, spans), spans, tuple(regions))
            for spans, regions in sorted(found.items(), key=itemgetter(0))
        ),
        where=where,
        record=record,
    )


def _type(caption: str, spans: Spans) -> str:
    words = " ".join(caption[begin:end] for begin, end in spans)
    return head_noun(words) or words


def _evaluated(phrases: list[Spans], found: Mapping[Spans, list[Region]]) -> dict[Spans, list[Region]]:
    """Each phrase with the regions that name all of its spans, where there are any."""
    regions = {
        phrase: [region for spans, those in found.items() if set(phrase) <= set(spans) for region in those]
        for phrase in phrases
    }
    return {phrase: those for phrase, those in regions.items() if those}


def _spans(value: Any, caption: str, where: str) -> Spans:
    """Spans in the order of the caption. Raises BadInput, beginning with ``where``, for what is none."""
    pairs = value if isinstance(value, list) else [value]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or any(type(place) is not int for place in pair):
            raise BadInput(f"{where} is {value!r}; accepted: [[begin, end], ...], whole numbers of characters")
    spans = tuple(sorted((begin, end) for begin, end in pairs))
    check_spans(spans, caption, where)
    return spans


class CocoBenchmark(Benchmark):
    """Base of the benchmarks that come in this form: one caption and one image an example.

    images: folder of the image files, below the root unless it is an absolute path.
    """

    needs_root: ClassVar[bool] = True

    def __init__(self, root: Path | str | None = None, seed: int = 0, images: str = "images"):
        super().__init__(Path(root) if root is not None else None, seed)
        self._folder = self.root or Path()
        self.images = images

    def identity(self) -> Mapping[str, object]:
        """Hash of the annotation files of all splits; the seed plays no part."""
        return {"name": self.name, "content": content_hash(self._annotations(split) for split in self.splits)}

    @abstractmethod
    def _annotations(self, split: str) -> Path:
        """The annotation file of a split."""

    def _task(self, captioned: Captioned) -> Task:
        """What is asked; here: nothing, as in a game of one candidate."""
        return ReferenceGame(0)

    def _groups(self, captioned: Captioned) -> Mapping[str, str]:
        """What must not be split apart; here: image file and caption."""
        return {"image": captioned.image.name, "caption": captioned.id}

    def _read(self, split: str, limit: int | None) -> Iterator[Example | Fault]:
        for item in read_coco(self._annotations(split), self._folder / self.images, self.files):
            example_id = f"{self.name}/{split}/{item.id}"
            try:
                if isinstance(item, Fault):
                    raise BadInput(item.reason)
                self._note_size(item.image, item.size, item.where)
                yield Example(
                    id=example_id,
                    split=split,
                    images=(item.image,),
                    caption=item.caption,
                    phrases=phrases_of(item, example_id),
                    task=self._task(item),
                    groups=self._groups(item),
                )
            except BadInput as error:
                yield Fault(example_id, str(error))


class CocoJson(CocoBenchmark):
    """``coco-json``: any such files, one a split, with nothing to do but to ground the phrases.

    A split without a file of its name is read from MDETR's mixed JSON, where that is there.

    An example is a game of one candidate, which every model wins: task figures mean nothing, grounding does.
    """

    name: ClassVar[str] = "coco-json"
    splits: ClassVar[tuple[str, ...]] = ("train", "tune", "dev", "test")
    files: ClassVar[str] = (
        "train.json (or final_mixed_train.json), tune.json, dev.json (or final_mixed_val.json), test.json, as far as "
        "there are, and images/"
    )

    def _annotations(self, split: str) -> Path:
        own = self._folder / f"{split}.json"
        published = self._folder / f"final_mixed_{'val' if split == 'dev' else split}.json"
        return published if published.is_file() and not own.exists() else own
