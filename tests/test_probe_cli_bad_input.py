"""Broken checkpoints, and captions and images of every kind, as ``probe`` meets them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from photo_fixture import coco_file, write_photo, write_touchdown
from PIL import Image
from released_files import released_vilt, state
from test_grounding_released_pickles import Payload
from test_probe_cli import run

from grounding.checkpoint import find_checkpoint

CAPTION = "a red disc and a blue box"
SIZE = (96, 64)  # width and height of the pictures


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """A state dict of the study's ViLT-Aligner."""
    return dict(state(released_vilt()))


def write_broken(folder: Path, kind: str, weights: dict[str, torch.Tensor]) -> Path:
    """A checkpoint that cannot be used."""
    path = folder / "weights.pth"
    if kind.startswith("folder"):
        copy = Path(shutil.copytree(find_checkpoint("mdetr-grounded"), folder / "copy"))
        if kind == "folder cut short":
            content = (copy / "model.safetensors").read_bytes()
            (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
        else:
            config = json.loads((copy / "config.json").read_text())
            config["config"]["feed_forward"] += 8
            (copy / "config.json").write_text(json.dumps(config))
        return copy
    if kind == "payload":
        torch.save({"state_dict": weights, "callbacks": Payload(os.mkdir, str(folder / "ran"))}, path)
    elif kind == "text":
        path.write_text("<html>404 not found</html>\n")
    elif kind == "shuffled positions":
        torch.save({**weights, "text_embeddings.position_ids": torch.arange(20).flip(0)[None]}, path)
    elif kind == "not finite":
        torch.save({**weights, "transformer.norm.bias": torch.full((128,), torch.nan)}, path)
    else:
        torch.save(weights, path)
        path.write_bytes(path.read_bytes()[:-1000])
    return path


@pytest.mark.parametrize("command", ["inspect", "convert", "evaluate", "extract"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut short", "weights.pth is truncated ("),
        ("folder cut short", "model.safetensors cannot be read: "),
        ("folder of another width", "linear1.weight is [256, 96], not [264, 96]"),
        ("payload", "holds posix.mkdir, which is not on the list of plain objects, so it was not read; "),
        ("text", "weights.pth is a text file (a git-lfs pointer, a web page?); accepted: "),
        ("shuffled positions", "text_embeddings.position_ids is not 0, 1, 2, ...: positions in another order"),
        ("not finite", "transformer.norm.bias has non-finite values"),
    ],
)
def test_a_broken_checkpoint_is_named_in_one_line(monkeypatch, capsys, tmp_path, weights, command, kind, message):
    path, out = write_broken(tmp_path, kind, weights), tmp_path / "out"
    given: dict[str, list[object]] = {
        "inspect": ["inspect", path],
        "convert": ["convert", path, out],
        "evaluate": ["evaluate", "--ckpt", path, "--benchmark", "mini-game"],
        "extract": ["extract", "--ckpt", path, "--benchmark", "mini-game", "--out", out],
    }
    tokenizer = find_checkpoint("vilt-aligner-grounded") / "tokenizer.json"
    code, printed, err = run(monkeypatch, capsys, *given[command], "--tokenizer", tokenizer)
    assert (code, printed) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    assert not out.exists()


def write_set(root: Path, images: dict[str, Any], captions: list[str] | None = None) -> Path:
    """A COCO-style set with an image an entry, and a box for the first two words of each caption."""
    (root / "images").mkdir(parents=True)
    records, boxes = [], []
    for number, (name, write) in enumerate(images.items()):
        write(root / "images" / name)
        caption = captions[number] if captions else CAPTION
        records.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1], "caption": caption})
        boxes.append({"image_id": number, "bbox": [10, 5, 40, 30], "tokens_positive": [[2, 10]]})
    coco_file(root / "dev.json", records, [box for box in boxes if len(records[box["image_id"]]["caption"]) > 10])
    return root


def evaluated(monkeypatch: Any, capsys: Any, root: Path, model: str, out: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of phrases and the summary of an evaluation of a set."""
    words = ["--ckpt", f"{model}-grounded", "--benchmark", "coco-json", "--root", root, "--out", out, "--skip-bad"]
    code, printed, err = run(monkeypatch, capsys, "evaluate", *words, "--threshold", 0.5, "--json")
    assert code == 0, err
    return pd.read_csv(out / "phrases.csv"), json.loads(printed)


@pytest.mark.parametrize("model", ["vilt-aligner", "mdetr"])
def test_a_picture_is_the_same_in_every_kind_of_file(monkeypatch, capsys, tmp_path, model):
    write_photo(tmp_path / "picture.png", SIZE, seed=3)
    picture = Image.open(tmp_path / "picture.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    grey = np.asarray(picture.convert("L"))
    images = {
        "rgb.png": picture.save,
        "palette.png": picture.convert("P", palette=Image.Palette.ADAPTIVE).save,
        "cmyk.tif": picture.convert("CMYK").save,
        "turned.png": lambda path: picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif),
        "grey.png": Image.fromarray(grey).save,
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 257).save,
        "dot.png": Image.new("RGB", (1, 1), (9, 200, 9)).save,
        "wide.png": Image.new("RGB", (5000, 2), (200, 9, 9)).save,
    }
    root = write_set(tmp_path / "set", images)
    modes = [Image.open(root / "images" / name).mode for name in images]
    assert modes == ["RGB", "P", "CMYK", "RGB", "L", "I;16", "RGB", "RGB"]
    phrases, summary = evaluated(monkeypatch, capsys, root, model, tmp_path / "out")
    assert (len(phrases), summary["skipped"]) == (8, [])
    boxes = phrases[["predicted_x1", "predicted_y1", "predicted_x2", "predicted_y2", "iou"]].to_numpy()
    assert np.isfinite(boxes).all()
    assert np.abs(boxes[1:4] - boxes[0]).max() < 1e-5
    assert np.abs(boxes[5] - boxes[4]).max() < 1e-5
    assert np.abs(boxes[4] - boxes[0]).max() > 1e-3  # another picture is answered otherwise


def test_captions_without_words_and_over_the_limit(monkeypatch, capsys, tmp_path):
    """The first has a phrase among the tokens that are read and one behind them; the second is blank."""
    long = " ".join([CAPTION] * 20)
    root = write_set(tmp_path / "set", dict.fromkeys(["a.png", "b.png", "c.png"], noise), [long, "  ", CAPTION])
    content = json.loads((root / "dev.json").read_text())
    last = {**content["annotations"][0], "id": 9, "tokens_positive": [[len(long) - 8, len(long)]]}
    content["annotations"].append(last)
    (root / "dev.json").write_text(json.dumps(content))
    for model in ("vilt-aligner", "mdetr"):
        table, summary = evaluated(monkeypatch, capsys, root, model, tmp_path / model)
        assert len(table) == 2
        assert [skipped["reason"].endswith("image 1: the caption is empty") for skipped in summary["skipped"]] == [True]
        assert [dropped["example"] for dropped in summary["dropped_phrases"]] == ["coco-json/dev/0"]
    words = ["evaluate", "--ckpt", "mdetr-grounded", "--benchmark", "coco-json", "--root", root]
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert err.strip().endswith("image 1: the caption is empty")


def test_a_single_image_smaller_than_a_token_is_named(monkeypatch, capsys, tmp_path):
    root = write_touchdown(tmp_path)
    Image.new("RGB", (1, 1)).save(root / "images" / "dev-pano2.jpg")
    words = ["evaluate", "--ckpt", "mdetr-grounded", "--benchmark", "touchdown-sdr", "--root", root, "--json"]
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert "image of 1 x 1 pixels is smaller than 16 x 16" in err
    assert len(err.strip().splitlines()) == 1
    code, out, _ = run(monkeypatch, capsys, *words, "--skip-bad")
    assert code == 0
    assert len(json.loads(out)["skipped"]) == 1


def noise(path: Path) -> None:
    """A picture of the usual size."""
    write_photo(path, SIZE)
