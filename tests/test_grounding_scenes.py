"""Scenes: pixels, masks, boxes and outlines of hand-placed objects agree with where they were put."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from grounding.benchmarks import grammar
from grounding.benchmarks.scenes import (
    ATTRIBUTES,
    COLOURS,
    NATIVE,
    RADII,
    Scene,
    SceneObject,
    excluded_by,
    regions,
    visibility,
)
from grounding.errors import BadInput


def lone(shape: str, colour: str = "blue", texture: str = "plain", x: float = 0.5, angle: float = 0.0) -> SceneObject:
    return SceneObject(shape, colour, "large", texture, x, 0.5, 0.2, angle)


def test_a_square_is_where_it_was_put():
    scene = Scene.of((lone("square"),), background=1)
    # The half side is 0.83 * 0.2 * 64 = 10.624 px round the centre at 32: pixel centres 21.5 to 42.5 are inside.
    assert regions(scene, [0])[0].box == (21 / 64, 21 / 64, 43 / 64, 43 / 64)
    assert scene.owners().sum() == 22 * 22


def test_what_is_in_front_hides_what_is_behind():
    alone = Scene.of((lone("square"),), background=1)
    covered = Scene.of((lone("square"), lone("square", x=0.65)), background=1)
    assert visibility(alone)[0] == pytest.approx(1, abs=0.1)
    # The front one's left edge is at (0.65 - 0.166) * 64 = 30.98 px: of 22 columns of the back one, 10 are in sight.
    assert visibility(covered)[0] == pytest.approx(22 * 10 / (2 * 10.624) ** 2)
    back, front = regions(covered, [0, 1])
    assert back.box[2] == front.box[0]
    assert back.polygons == regions(alone, [0])[0].polygons  # the outline is of the whole thing


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
def test_every_shape_turned_to_an_angle_has_pixels_that_fill_its_outline(shape):
    scene = Scene.of((lone(shape, angle=0.2),), background=1)
    assert visibility(scene)[0] == pytest.approx(1, abs=0.1)
    xs, ys = np.array(regions(scene, [0])[0].polygons[0]).T
    x1, y1, x2, y2 = regions(scene, [0])[0].box
    assert np.allclose((x1, y1, x2, y2), (xs.min(), ys.min(), xs.max(), ys.max()), atol=1.6 / NATIVE)


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
@pytest.mark.parametrize("angle", [-0.2, 0.0, 0.2])
def test_what_is_drawn_is_what_the_mask_says(shape, angle):
    item = SceneObject(shape, "black", "large", "plain", 0.5, 0.5, 0.2, angle)
    empty = Scene.of((), background=3).render().astype(float)
    drawn = Scene.of((item,), background=3).render().astype(float)
    change = np.abs(drawn - empty).mean(axis=2)
    mask = Scene.of((item,), background=3).owners() == 1
    padded = np.pad(mask, 1)
    grown = np.max([padded[i : i + NATIVE, j : j + NATIVE] for i in range(3) for j in range(3)], axis=0)
    # Edges and sharp tips cover a part of their pixel only: a ninth of a pixel darkens it by about 24.
    assert change[mask].min() > 20
    assert np.median(change[mask]) > 150
    assert change[~grown].max() < 50


def test_what_objects_can_be():
    assert ATTRIBUTES == {
        "shape": ("circle", "square", "triangle", "star", "cross", "heart"),
        "colour": ("red", "yellow", "green", "blue", "purple", "black"),
        "size": ("small", "large"),
        "texture": ("plain", "striped", "dotted"),
    }


def test_every_large_object_has_more_pixels_than_any_small_one():
    def pixels(shape: str, size: str, radius: float) -> int:
        item = SceneObject(shape, "red", size, "plain", 0.5, 0.5, radius, 0.0)
        return int((Scene.of((item,), background=1).owners() == 1).sum())

    small, large = (
        [pixels(shape, size, RADII[size][end]) for shape in ATTRIBUTES["shape"]]
        for size, end in (("small", 1), ("large", 0))
    )
    assert min(large) > 1.2 * max(small)
    # A small star or triangle still has enough of them to show its points.
    assert min(pixels(shape, "small", RADII["small"][0]) for shape in ATTRIBUTES["shape"]) >= 100


def test_no_two_colours_are_near_each_other():
    apart = [np.linalg.norm(np.subtract(a, b)) for a, b in combinations(COLOURS.values(), 2)]
    assert min(apart) > 100  # of 442 between black and white


def test_textures_show_in_the_pixels():
    dark = {}
    for texture in ATTRIBUTES["texture"]:
        scene = Scene.of((lone("square", colour="black", texture=texture),), background=1)
        dark[texture] = scene.render()[24:40, 24:40].mean(axis=2) < 120
    assert dark["plain"].all()
    assert 0.3 < dark["striped"].mean() < 0.7
    assert 0.5 < dark["dotted"].mean() < 0.9
    # Stripes run from lower left to upper right: pixels along them are alike, those across are not.
    along = (dark["striped"][1:, :-1] == dark["striped"][:-1, 1:]).mean()
    across = (dark["striped"][1:, 1:] == dark["striped"][:-1, :-1]).mean()
    assert along > 0.95 > 0.7 > across


def test_exclusion_on_a_hand_made_scene():
    scene = Scene.of((lone("star", "red"), lone("heart", "blue", "striped")), background=0)
    assert not excluded_by({"shape": "star", "colour": "red"}, scene)
    assert excluded_by({"shape": "star", "colour": "blue"}, scene)  # a star and something blue, but no blue star


def test_relations_are_only_said_where_they_hold():
    left, right = lone("star", x=0.3), lone("heart", x=0.8)
    assert grammar.true_relations(left, right) == ["left of"]
    assert grammar.true_relations(right, left) == ["right of"]
    close = lone("heart", x=0.6)
    assert grammar.true_relations(left, close) == ["left of", "next to"]
    assert grammar.side_of((0.5, 0.2), (0.5, 0.5)) == "above"
    assert grammar.side_of((0.2, 0.2), (0.5, 0.5)) is None  # as much to the left as above


def test_a_larger_drawing_is_the_same_picture():
    scene = Scene.of((lone("star"), lone("heart", "red", "dotted", x=0.7)), background=5)
    large = scene.render(256).astype(float)
    assert large.shape == (256, 256, 3)
    reduced = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(reduced - scene.render()).mean() < 6
    assert Scene.of(scene.objects, background=5, aspect=3).render(32).shape == (32, 96, 3)


def test_backgrounds_differ_and_are_seeded():
    first, again, other = (Scene.of((lone("star"),), background=seed).render() for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:8], other[:8])


def test_a_size_too_small_to_draw_is_named():
    with pytest.raises(BadInput, match="size 4 is too small for a scene; accepted: 8 or more"):
        Scene.of((lone("star"),), background=5).render(4)
