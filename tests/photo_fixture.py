"""Small made-up sets in the published formats of Touchdown SDR, Flickr30k Entities, MDETR's JSON and COCO."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Json = dict

FLICKR_SPLITS = ("train", "val", "test")
PANORAMA = (464, 100)  # width and height; an eighth of the real ones
THINGS = ("man", "woman", "dog", "horse", "boat", "ball", "car", "child")
PLACES = ("beach", "street", "field", "river")


def write_photo(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """An image of random blocks; size: width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path)


def change_json(path: Path, change: Callable[[Json], object]) -> None:
    """Read a JSON file, change its content in place, write it."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def coco_file(path: Path, records: Sequence[Json], annotations: Sequence[Json]) -> None:
    """A COCO-style JSON file as MDETR writes it; annotations get ids, areas and the like."""
    common = {"iscrowd": 0, "category_id": 1}
    full = [
        {"id": number, "area": a["bbox"][2] * a["bbox"][3], **common, **a} for number, a in enumerate(annotations)
    ]  # fmt: skip
    content = {"info": [], "licenses": [], "images": list(records), "annotations": full, "categories": []}
    path.write_text(json.dumps(content), encoding="utf-8")


def touchdown_file(split: str) -> str:
    """Name of the study's file of a split."""
    return f"finetune_touchdown_sdr_{split}_800_3712_0.5_True_True.json"


def write_touchdown(root: Path, splits: Sequence[str] = ("dev",)) -> Path:
    """The study's files: per split two captions of a main and a propagated panorama each; two phrases a caption.

    The first phrase ("a red car") has two boxes, the second ("the lamp") one.
    """
    size = PANORAMA
    for split in splits:
        records, annotations = [], []
        for number in range(4):
            caption = f"By a red car number {number // 2} near the lamp, Touchdown sits: a bear."
            name = f"{split}-pano{number}.jpg"
            write_photo(root / "images" / name, size, number)
            coords = {"x": 0.1 + 0.2 * number, "y": 0.5}
            records.append(
                {"id": number, "file_name": name, "height": size[1], "width": size[0], "caption": caption,
                 "data_source": "touchdown_sdr", "dataset_name": "touchdown_sdr", "sdr_target_coords": coords,
                 "caption_id": number // 2, "is_propagated": number % 2 == 1}
            )  # fmt: skip
            car, lamp = caption.index("a red car"), caption.index("the lamp")
            annotations += [
                {"image_id": number, "bbox": [232, 50, 58, 25], "tokens_positive": [[lamp, lamp + 8]]},
                {"image_id": number, "bbox": [0, 0, 116, 50], "tokens_positive": [[car, car + 9]]},
                {"image_id": number, "bbox": [348, 0, 116, 100], "tokens_positive": [[car, car + 9]]},
            ]
        coco_file(root / touchdown_file(split), records, annotations)
    return root


def write_touchdown_raw(root: Path) -> Path:
    """The corpus: three routes in ``dev.json``; the bear is seen in the pre panorama of the first only."""
    lines = []
    for route in range(3):
        record: Json = {
            "route_id": route,
            "full_text": f"Go on. Touchdown is on hydrant {route}.",
            "navigation_text": "Go on.",
            "td_location_text": f"Touchdown is on hydrant {route}.",
        }
        for place in ("pre", "main", "post"):
            record[f"{place}_pano"] = pano = f"pano{route}{place}"
            seen = place == "main" or (place == "pre" and route == 0)
            centre = {"x": 0.25, "y": 0.75} if seen else {"x": -1, "y": -1}
            record[f"{place}_static_center"] = json.dumps(centre)
            write_photo(root / "images" / f"{pano}.jpg", PANORAMA)
        lines.append(json.dumps(record))
    (root / "dev.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def flickr_image(split: str, number: int) -> str:
    """Name of an image of a split of the fixture."""
    return f"{1000 + 100 * FLICKR_SPLITS.index(split) + number}"


def write_flickr(root: Path, images: int = 8, sentences: int = 2, size: tuple[int, int] = (80, 60)) -> Path:
    """Flickr30k Entities as published, ``images`` photographs a split.

    Every caption reads "<thing> and two balls at the <place> wave at it ." with the chains of image k: 10k + 1 (one
    box: pixels 11..30 by 1..60), 10k + 2 (two boxes), 10k + 3 (a scene), and 0 (not visual) for "it".
    """
    rng = random.Random(0)
    for folder in ("Sentences", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split in FLICKR_SPLITS:
        names = [flickr_image(split, number) for number in range(images)]
        (root / f"{split}.txt").write_text("\n".join(names) + "\n")
        for number, name in enumerate(names):
            chain, lines = 10 * int(name), []
            for _ in range(sentences):
                thing, place = rng.choice(THINGS), rng.choice(PLACES)
                lines.append(
                    f"[/EN#{chain + 1}/people/animals A {thing}] and [/EN#{chain + 2}/other two balls] at "
                    f"[/EN#{chain + 3}/scene the {place}] wave at [/EN#0/notvisual it] ."
                )
            (root / "Sentences" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            (root / "Annotations" / f"{name}.xml").write_text(_xml(name, chain, size), encoding="utf-8")
            write_photo(root / "flickr30k-images" / f"{name}.jpg", size, number)
    return root


def _xml(name: str, chain: int, size: tuple[int, int]) -> str:
    def box(owner: int, x1: int, y1: int, x2: int, y2: int) -> str:
        corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        return f"<object><name>{owner}</name><bndbox>{corners}</bndbox></object>"

    width, height = size
    objects = box(chain + 1, 11, 1, 30, height) + box(chain + 2, 1, 1, 8, 6) + box(chain + 2, 41, 31, width, 45)
    flags = f"<object><name>{chain + 3}</name><scene>1</scene><nobndbox>1</nobndbox></object>"
    numbers = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{numbers}<segmented>0</segmented>{objects}{flags}</annotation>"


def write_flickr_mdetr(root: Path, images: int = 6, size: tuple[int, int] = (80, 60)) -> Path:
    """MDETR's Flickr30k JSON for ``val``: "A man and his dog ." with one box of both words and one of the dog's."""
    records, annotations = [], []
    for number in range(images):
        name = flickr_image("val", number)
        write_photo(root / "flickr30k-images" / f"{name}.jpg", size, number)
        records.append(
            {"id": number, "file_name": f"{name}.jpg", "height": size[1], "width": size[0],
             "caption": "A man and his dog .", "dataset_name": "flickr", "sentence_id": 3,
             "original_img_id": int(name), "tokens_negative": [[0, 19]], "tokens_positive_eval": [[[0, 5]], [[10, 17]]]}
        )  # fmt: skip
        annotations += [
            {"image_id": number, "bbox": [20, 0, 40, 60], "tokens_positive": [[0, 5], [10, 13]]},
            {"image_id": number, "bbox": [0, 30, 20, 30], "tokens_positive": [[10, 17]]},
        ]
    coco_file(root / "final_flickr_separateGT_val.json", records, annotations)
    return root


def write_refcoco(root: Path, name: str = "refcoco", splits: Sequence[str] = ("val", "testA")) -> Path:
    """MDETR's files: two expressions of one photograph a split."""
    for split in splits:
        photo = f"COCO_train2014_{len(split):012d}.jpg"
        write_photo(root / "train2014" / photo, (64, 48))
        records, annotations = [], []
        for number, words in enumerate(("the left dog", "dog on the right")):
            records.append(
                {"id": number, "file_name": photo, "height": 48, "width": 64, "original_id": 7, "caption": words,
                 "dataset_name": name, "tokens_negative": [[0, len(words)]]}
            )  # fmt: skip
            box = {"image_id": number, "bbox": [16 * number, 12, 32, 24], "tokens_positive": [[0, len(words)]]}
            annotations.append(box)
        coco_file(root / f"finetune_{name}_{split}.json", records, annotations)
    return root


def write_coco(root: Path, split: str = "dev") -> Path:
    """A plain file: two images of 100 x 50, with a phrase of two spans, one of two boxes, and a crowd."""
    records, annotations = [], []
    for number in range(2):
        write_photo(root / "images" / f"{number}.png", (100, 50), number)
        caption = "the big dog, yes dog, by a tree"
        records.append({"id": number, "file_name": f"{number}.png", "height": 50, "width": 100, "caption": caption})
        annotations += [
            {"image_id": number, "bbox": [10, 5, 20, 25], "tokens_positive": [[17, 20], [0, 11]]},
            {"image_id": number, "bbox": [50, 0, 25, 50], "tokens_positive": [[25, 31]]},
            {"image_id": number, "bbox": [75, 0, 25.6, 50], "tokens_positive": [[25, 31]]},
            {"image_id": number, "bbox": [0, 0, 100, 50], "tokens_positive": [[0, 11]], "iscrowd": 1},
        ]
    coco_file(root / f"{split}.json", records, annotations)
    return root
