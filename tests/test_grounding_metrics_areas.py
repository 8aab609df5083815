import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from grounding.errors import BadInput
from grounding.examples import Region
from grounding.metrics.areas import Area, draw_polygons, outline_area

TRIANGLE = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def random_boxes(rng, *shape):
    corners = np.sort(rng.random((*shape, 2, 2)), axis=-2)
    return torch.as_tensor(corners.reshape(*shape, 4))


def test_union_of_two_overlapping_boxes_by_hand():
    # 0.4 x 0.4 and 0.4 x 0.4 share 0.2 x 0.2: 0.16 + 0.16 - 0.04
    area = Area.of_boxes(boxes([0.0, 0.0, 0.4, 0.4], [0.2, 0.2, 0.6, 0.6]))
    assert area.total().item() == pytest.approx(0.28)
    within = area.within(boxes([0.0, 0.0, 0.3, 0.3], [0.5, 0.0, 0.6, 0.1], [-1.0, -1.0, 2.0, 2.0]))
    assert within.tolist() == pytest.approx([0.09, 0.0, 0.28])


def test_union_equals_a_raster_of_boxes_on_pixel_borders():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 51, (20, 5, 2, 2)), axis=-2)
    union = Area.of_boxes(torch.as_tensor(corners.reshape(20, 5, 4) / 50))
    raster = np.zeros((20, 50, 50))
    for image, five in enumerate(corners):
        for (x1, y1), (x2, y2) in five:
            raster[image, y1:y2, x1:x2] = 1
    np.testing.assert_allclose(union.total(), raster.mean((1, 2)), atol=1e-12)
    np.testing.assert_allclose(union.coverage(50, 50), raster, atol=1e-9)
    np.testing.assert_array_equal(union.holds_centres(50, 50), raster)


def test_a_repeated_box_changes_nothing():
    two = random_boxes(np.random.default_rng(1), 2)
    repeated = torch.cat([two, two[:1], two[:1]])
    probes = random_boxes(np.random.default_rng(2), 7)
    assert Area.of_boxes(repeated).total().item() == pytest.approx(Area.of_boxes(two).total().item())
    np.testing.assert_allclose(Area.of_boxes(repeated).within(probes), Area.of_boxes(two).within(probes))


def test_coverage_adds_up_to_the_area_on_any_grid():
    union = Area.of_boxes(random_boxes(np.random.default_rng(3), 6, 3))
    for height, width in ((1, 1), (3, 7), (32, 32)):
        np.testing.assert_allclose(union.coverage(height, width).mean((1, 2)), union.total())


def test_coverage_of_a_box_across_cells_by_hand():
    coverage = Area.of_boxes(boxes([0.25, 0.0, 1.0, 0.5])).coverage(1, 2)  # half of it in height
    assert coverage.tolist() == [[pytest.approx(0.25), pytest.approx(0.5)]]


def test_a_region_holds_its_first_edge_and_not_its_last():
    area = Area.of_boxes(boxes([0.2, 0.2, 0.4, 0.4]))
    points = boxes([0.2, 0.2], [0.4, 0.3], [0.3, 0.4], [0.3, 0.3], [0.1, 0.3])
    assert area.holds(points).tolist() == [1, 0, 0, 1, 0]


def test_outline_of_a_triangle_is_half_its_box():
    area = outline_area([Region((0.0, 0.0, 1.0, 1.0), polygons=(TRIANGLE,))])
    assert area.total().item() == pytest.approx(0.5, abs=0.005)
    assert area.holds(boxes([0.2, 0.2], [0.8, 0.8])).tolist() == [1, 0]


def test_masks_and_boxes_of_one_phrase_are_joined():
    pixels = np.zeros((10, 20), dtype=np.uint8)
    pixels[:5, :10] = 1
    counts = coco_mask.encode(np.asfortranarray(pixels))["counts"].decode()
    upper_left = Region((0.0, 0.0, 0.5, 0.5), mask_rle=(10, 20, counts))
    area = outline_area([upper_left, Region((0.5, 0.5, 1.0, 1.0))])
    assert area.total().item() == pytest.approx(0.5)
    assert outline_area([Region((0.5, 0.5, 1.0, 1.0))]) is None
    other_size = Region((0.0, 0.0, 0.5, 0.5), mask_rle=(20, 20, counts))
    with pytest.raises(BadInput, match=r"\(10, 20\), \(20, 20\)"):
        outline_area([upper_left, other_size])


def test_two_vertices_are_refused_not_taken_for_a_box():
    with pytest.raises(BadInput, match="2 vertices"):
        draw_polygons([((0.0, 0.0), (0.5, 0.5))], 10, 10)
