"""Opening images of every kind that turns up in benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import game, single_image, small_mdetr, small_vilt

from grounding.errors import BadInput
from grounding.images import read_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CORNERS = np.array([[RED, GREEN, GREEN], [BLUE, WHITE, WHITE]], np.uint8)  # 2 rows, 3 columns, all corners differ


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    """The path of an image file."""
    image.save(path, **options)
    return path


def test_palettes_grey_and_cmyk_become_rgb(tmp_path):
    picture = Image.fromarray(CORNERS)
    palette = saved(tmp_path / "palette.png", picture.convert("P", palette=Image.Palette.ADAPTIVE))
    assert Image.open(palette).mode == "P"
    assert np.array_equal(read_image(palette), CORNERS)
    grey = saved(tmp_path / "grey.png", Image.fromarray(np.array([[0, 100, 255]], np.uint8)))
    assert read_image(grey).tolist() == [[[0] * 3, [100] * 3, [255] * 3]]
    assert read_image(saved(tmp_path / "bits.png", picture.convert("1"))).shape == (2, 3, 3)
    inks = np.array([[[0, 255, 255, 0], [255, 0, 255, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], np.uint8)
    cmyk = saved(tmp_path / "cmyk.tif", Image.fromarray(inks, mode="CMYK"))
    assert read_image(cmyk).tolist() == [[list(RED), list(GREEN), [0, 0, 0], list(WHITE)]]
    photo = saved(tmp_path / "cmyk.jpg", Image.fromarray(inks.repeat(16, 0).repeat(16, 1), mode="CMYK"), quality=95)
    assert Image.open(photo).mode == "CMYK"
    found = read_image(photo)[8, 8::16].astype(int)
    assert np.abs(found - np.array([RED, GREEN, (0, 0, 0), WHITE])).max() <= 12  # JPEG's own loss


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    values = np.array([[0, 256, 32768, 65535]], np.uint16)
    path = saved(tmp_path / f"deep.{suffix}", Image.fromarray(values))
    assert read_image(path)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_pixels_of_unknown_range_are_refused(tmp_path):
    path = saved(tmp_path / "float.tif", Image.fromarray(np.array([[0.5, 2.0]], np.float32)))
    with pytest.raises(BadInput, match=r"float\.tif has pixels of mode 'F'; accepted: 8 or 16 bits a channel"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(tmp_path, orientation):
    """The file holds the pixels that an upright CORNERS was stored as, and the orientation that undoes it."""
    stored = {
        1: CORNERS,
        2: CORNERS[:, ::-1],
        3: CORNERS[::-1, ::-1],
        4: CORNERS[::-1],
        5: CORNERS.transpose(1, 0, 2),
        6: np.rot90(CORNERS, 1),
        7: np.rot90(CORNERS, 2).transpose(1, 0, 2),
        8: np.rot90(CORNERS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "turned.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(read_image(path), CORNERS)


def test_what_cannot_be_opened_is_named_in_one_line(tmp_path, monkeypatch):
    whole = saved(tmp_path / "whole.png", Image.fromarray(np.zeros((40, 40, 3), np.uint8))).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    for name in ("cut.png", "notes.jpg", "empty.jpg", "."):
        with pytest.raises(BadInput, match="cannot be read: ") as raised:
            read_image(tmp_path / name)
        assert "\n" not in str(raised.value)
    with pytest.raises(BadInput, match=r"missing\.jpg does not exist"):
        read_image(tmp_path / "missing.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadInput, match="cannot be read: Image size"):
        read_image(tmp_path / "whole.png")


@pytest.mark.parametrize("build", [small_vilt, small_mdetr])
@torch.inference_mode()
def test_games_of_one_pixel_images_and_very_wide_ones_are_answered(build):
    model = build()
    tiny = game("tiny", images=2, size=1)
    wide = single_image("wide", 16, 16 * 200)
    for example, canvas in ((tiny, (64, 32)), (wide, (16, 3200))):
        batch = model.prepare([example])
        assert tuple(batch.images.shape[2:]) == canvas
        output = model(batch)
        assert all(value.isfinite().all() for value in vars(output).values())
        assert len(model.predict(batch, output)[0].phrases) == 2
    assert (batch.images[0, :, :, 0] == torch.from_numpy(wide.images[0][:, 0].T)).all()
    with pytest.raises(BadInput, match="example 'dot': image of 1 x 1 pixels is smaller than 16 x 16"):
        model.prepare([single_image("dot", 1, 1)])
