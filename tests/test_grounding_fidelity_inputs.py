"""Transforms of images and boxes, and one whole game batch, recorded from the original programs (cases E).

The originals normalise in their transforms; here the model does, so canvases are normalised before they are compared.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torchvision.ops import box_convert

from grounding.examples import Example, Phrase, ReferenceGame, Region, SpatialDescription
from grounding.finetune.targets import Targets, box_maps, make_targets, point_maps
from grounding.models.inputs import Preprocessor
from grounding.models.mdetr import IMAGE_MEAN, IMAGE_STD
from grounding.models.resizing import detr_size, vilt_size
from grounding.models.text import CaptionTokenizer

BILINEAR = Image.Resampling.BILINEAR
HALF = (np.full(3, 0.5, np.float32), np.full(3, 0.5, np.float32))
IMAGENET = (np.array(IMAGE_MEAN, np.float32), np.array(IMAGE_STD, np.float32))
VILT, MDETR = {"size": vilt_size}, {"size": detr_size, "resample": BILINEAR}
TRANSFORMS = {  # recorded name -> what our preprocessor is told, whether it is a game's square, normalisation
    "pixelbert_square_96": ({**VILT, "candidate_size": 96}, True, HALF),
    "pixelbert_noresize_0": (VILT, False, HALF),
    "pixelbert_64": ({**VILT, "shorter_side": 64}, False, HALF),
    "mdetr_square_96": ({**MDETR, "candidate_size": 96}, True, IMAGENET),
    "mdetr_64": ({**MDETR, "shorter_side": 64}, False, IMAGENET),
    "minmax70_110": ({**MDETR, "shorter_side": 70, "longer_side": 110}, False, IMAGENET),
}


@pytest.fixture(scope="module")
def transforms(shared_data: Path) -> dict[str, np.ndarray]:
    """The arrays of E_transforms."""
    return dict(np.load(shared_data / "reference" / "E_transforms.npz"))


@pytest.fixture(scope="module")
def batch_of_games(shared_data: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of E_game, and what describes them."""
    folder = shared_data / "reference"
    return dict(np.load(folder / "E_game.npz")), json.loads((folder / "E_game.json").read_text())


def toy_tokenizer(words: list[str], max_length: int) -> CaptionTokenizer:
    """BERT's word pieces with a given vocabulary."""
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
    )
    return CaptionTokenizer(backend, max_length)


def prepared(**options: Any) -> Preprocessor:
    """Canvases of multiples of 32, as the originals'."""
    tokenizer = toy_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]"], 8)
    return Preprocessor(**{"tokenizer": tokenizer, "candidate_size": 32, "multiple": 32, "stride": 32, **options})


def normalised(pixels: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """uint8 ``[H, W, 3]`` -> ``[3, H, W]``, as torchvision does it."""
    return ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("image", ["img0", "img1"])
def test_images_are_transformed_as_the_originals_do(transforms, image, name):
    options, square, normalisation = TRANSFORMS[name]
    pixels = transforms[image]
    task = ReferenceGame(0) if square else SpatialDescription((0.5, 0.5))
    canvas = prepared(**options).canvas(Example("e", "test", (pixels,), "", (), task))
    found = normalised(canvas, *normalisation)[:, ::3, ::3]
    expected = transforms[f"{image}_{name}"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)
    if f"{image}_{name}_boxes" in transforms:  # relative boxes do not change: sides are resized, nothing is cut off
        height, width = pixels.shape[:2]
        relative = transforms[f"{image}_boxes_xyxy"] / np.array([width, height, width, height], np.float32)
        boxes = box_convert(torch.from_numpy(relative), "xyxy", "cxcywh").numpy()
        np.testing.assert_allclose(boxes, transforms[f"{image}_{name}_boxes"], atol=1e-6)


def test_every_recorded_transform_is_compared(transforms):
    named = {f"{image}_{name}{part}" for image in ("img0", "img1") for name in TRANSFORMS for part in ("", "_boxes")}
    assert {name for name in transforms if name not in named} == {
        f"{image}{part}" for image in ("img0", "img1") for part in ("", "_boxes_xyxy")
    }


@pytest.mark.parametrize(
    ("size", "given", "made"),
    [
        (vilt_size, (800, 3712, 384), (138, 639)),  # the longer side is at its limit, 1333 / 800 of 384
        (detr_size, (800, 3712, 800, 3712), (800, 3712)),  # the study's panoramas stay as they are
        (detr_size, (600, 400, 800), (1200, 800)),
        (detr_size, (400, 399, 50), (50, 50)),
        (vilt_size, (400, 399, 50), (50, 50)),
        (detr_size, (200, 100, 48), (80, 40)),  # the limit is 79, so the shorter side 39.5, rounded to even; then 80
        (vilt_size, (200, 100, 48), (79, 40)),
    ],
)
def test_sizes_by_hand(size, given, made):
    assert size(*given) == made


def games(case: dict[str, np.ndarray], described: dict[str, Any]) -> list[Example]:
    """The two recorded games: the described image is the number in the id, its place is in ``games``."""
    examples = []
    for number, (name, order) in enumerate(described["games"].items()):
        phrases = []
        target = order.index(number)
        for key, found in ast.literal_eval(described["bbox_info"][number]).items():
            boxes = [(x, y, x + width, y + height) for x, y, width, height in found["bboxes"]]
            spans = tuple(tuple(span) for span in found["tokens_positive"])
            phrases.append(Phrase(key, "", spans, tuple(Region(box) for box in boxes), target))
        images = tuple(case["images"][k] for k in order)
        caption = described["captions"][number]
        examples.append(Example(name, "test", images, caption, tuple(phrases), ReferenceGame(target)))
    return examples


@pytest.mark.parametrize(
    ("model", "tokens", "options", "normalisation"),
    [("vilt", 80, {}, HALF), ("mdetr", 256, {"resample": BILINEAR}, IMAGENET)],
)
def test_one_whole_batch_of_games(batch_of_games, model, tokens, options, normalisation):
    arrays, described = batch_of_games
    case = {name.removeprefix(f"{model}_"): value for name, value in arrays.items() if name.startswith(f"{model}_")}
    examples = games(arrays, described)
    words = described["vocabulary_of_the_toy_wordpiece_tokenizer"]
    toy = toy_tokenizer(words, tokens)
    made = prepared(tokenizer=toy, candidate_size=64, pad_text_to=tokens, **options)
    batch = made.collate([made.encode(example) for example in examples])
    images = np.stack([normalised(image.permute(1, 2, 0).numpy(), *normalisation) for image in batch.images])
    np.testing.assert_allclose(images[:, :, ::4, ::4], case["image"], atol=1e-6)
    assert [example.target_index for example in batch.examples] == case["label_t"].tolist()
    assert np.array_equal(batch.input_ids, case["text_ids"])
    assert np.array_equal(batch.text_mask, case["text_masks"].astype(bool))
    assert np.array_equal(batch.caption_tokens, case["text_positive_map"].astype(bool))
    assert np.array_equal(batch.phrase_tokens, case["phrase_maps"])
    assert batch.phrase_example.bincount().tolist() == case["phrases_per_example"].tolist()
    targets = make_targets(batch)
    np.testing.assert_allclose(targets.points, case["target_coords"], atol=1e-7)
    assert targets.box_phrase.bincount().tolist() == case["bbox_counts"].tolist()
    form = "xywh" if model == "vilt" else "cxcywh"
    np.testing.assert_allclose(box_convert(targets.boxes, "xyxy", form), case["bbox_coords"], atol=1e-6)
    _compare_maps(case, targets, batch.valid, form)


def _compare_maps(case: dict[str, np.ndarray], targets: Targets, valid: torch.Tensor, form: str) -> None:
    canvas = case["bbox_tensor_mask"].shape[1:]
    expected = np.zeros((len(targets.points), *canvas))
    expected[tuple(case["target_brc"].T)] = case["target_value"]
    np.testing.assert_allclose(point_maps(targets.points, valid, canvas), expected, atol=1e-8)
    if form == "cxcywh":  # the study draws these as if they were x, y, width, height, and never looks at the result
        targets.boxes = box_convert(box_convert(targets.boxes, "xyxy", "cxcywh"), "xywh", "xyxy")
    maps = box_maps(targets, len(case["bbox_counts"]), valid, canvas)
    assert np.array_equal(maps > 0, case["bbox_tensor_mask"])
    np.testing.assert_allclose(maps.amax((1, 2)), case["bbox_tensor_max"], atol=1e-9)
