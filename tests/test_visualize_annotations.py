"""An example that no model has answered is drawn with its annotations only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from fake_gallery import make_example, make_panorama
from kilogram_fixture import write_kilogram
from matplotlib.text import Text

from grounding.benchmarks import open_benchmark
from visualize.case import of_example
from visualize.overlays import draw_example


def texts(figure) -> str:
    return "\n".join(artist.get_text() for artist in figure.findobj(Text))


def test_a_case_holds_the_annotations_of_its_example():
    example = make_example(2)
    case = of_example(example)
    assert (case.id, case.caption, case.target) == (example.id, example.caption, example.task.target_index)
    assert case.answer is None
    for shown, phrase in zip(case.phrases, example.phrases, strict=True):
        assert shown.boxes == tuple(region.box for region in phrase.regions)
        assert (shown.spans, shown.image_index) == (phrase.spans, phrase.image_index)
        assert shown.predicted is None


def test_polygons_are_kept(tmp_path: Path):
    example = open_benchmark("kilogram", write_kilogram(tmp_path)).load("dev", limit=1)[0]
    assert all(len(phrase.polygons) >= 1 for phrase in of_example(example).phrases)


def test_no_outcome_is_told_where_nobody_answered():
    game, place = (texts(draw_example(of_example(example))) for example in (make_example(1), make_panorama(1)))
    assert "fake/001" in game
    assert "target image" in game
    assert "target" in place
    for words in (game, place):
        assert "task" not in words
        assert "nan" not in words
        assert "model" not in words


def test_missing_images_are_told(tmp_path: Path):
    example = make_example(3)
    images = (np.zeros((64, 64, 3), np.uint8), tmp_path / "lost.jpg", *example.images[2:])
    case = of_example(replace(example, images=images))
    assert list(case.missing) == [1]
    assert "lost.jpg does not exist" in texts(draw_example(case))
