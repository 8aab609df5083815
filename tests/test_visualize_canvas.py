"""Cells, boxes and polygons land on the right pixels; images are never distorted."""

from __future__ import annotations

import numpy as np
import pytest

from grounding.errors import BadInput
from visualize.canvas import Slot, arrange, enlarge, paint, spread_canvas, spread_cells, spread_maps, strength


def test_a_planted_cell_covers_exactly_its_pixels():
    cells = np.zeros((6, 4))
    cells[3, 1] = 1  # rows 2-3 are the second of three candidates: its lower half, second quarter across
    first, second, third = spread_canvas(cells, [(8, 8)] * 3)
    assert not first.any()
    assert not third.any()
    expected = np.zeros((8, 8))
    expected[4:8, 2:4] = 1
    np.testing.assert_array_equal(second, expected)


def test_a_cell_on_the_border_of_two_candidates_is_shared():
    cells = np.arange(3.0)[:, None]  # three rows over two candidates: the middle row lies half in each
    above, below = spread_canvas(cells, [(6, 1), (6, 1)])
    assert above.ravel().tolist() == [0, 0, 0, 0, 1, 1]
    assert below.ravel().tolist() == [1, 1, 2, 2, 2, 2]


def test_candidates_of_other_sizes_take_the_same_share_of_the_grid():
    small, large = spread_canvas(np.array([[1.0], [2.0]]), [(3, 2), (100, 7)])
    assert small.shape == (3, 2)
    assert large.shape == (100, 7)
    assert (small == 1).all()
    assert (large == 2).all()


def test_cells_that_do_not_divide_the_pixels_go_by_pixel_centres():
    # Centres of 5 pixels over 3 cells: 0.3, 0.9, 1.5, 2.1, 2.7 cells.
    assert spread_cells(np.array([[0, 1, 2]]), 1, 5).tolist() == [[0, 0, 1, 2, 2]]


def test_a_heatmap_stays_in_its_candidate():
    maps = np.zeros((2, 2, 2))
    maps[1, 0, 1] = 1
    first, second = spread_maps(maps, [(4, 4), (4, 6)])
    assert not first.any()
    assert second[:2, 3:].all()
    assert second.sum() == 6


@pytest.mark.parametrize("cells", [np.zeros(3), np.zeros((0, 3)), np.zeros((1, 2, 3))])
def test_a_grid_that_is_none_is_refused(cells):
    with pytest.raises(BadInput, match="grid of cells has shape"):
        spread_canvas(cells, [(4, 4)])


def test_a_heatmap_of_another_game_is_refused():
    with pytest.raises(BadInput, match=r"accepted: \[3, h, w\]"):
        spread_maps(np.zeros((2, 4, 4)), [(4, 4)] * 3)


def test_an_even_map_stays_pale_and_a_peak_is_full():
    peaked = strength(np.array([[0.0, 0.0], [0.0, 1.0]]))
    assert peaked.tolist() == [[0, 0], [0, 1]]
    assert strength(np.array([1.0, 1.2])).max() == pytest.approx(0.1 / 1.1)  # over the mean by 0.1, scaled by the mean
    assert not strength(np.ones((2, 2))).any()
    assert not strength(np.zeros((2, 2))).any()


def test_paint_leaves_pixels_of_no_value_pale_and_colours_the_others():
    pixels = np.full((2, 2, 3), 100, np.uint8)
    values = np.array([[0.0, 1.0], [0.0, 0.0]])
    painted = paint(pixels, values)
    pale = round(255 - 155 * 0.55)
    assert painted.dtype == np.uint8
    assert (painted[values == 0] == pale).all()
    assert painted[0, 1].max() < 100


def test_boxes_and_polygons_in_a_slot():
    slot = Slot(1, 2, width=8, height=4).moved(10, 0)
    assert slot.box((0, 0, 1, 1)) == (11, 2, 19, 6)
    assert slot.box((0.25, 0.5, 0.5, 0.75)) == (13, 4, 15, 5)
    assert slot.points([(0, 0), (0.5, 1)]).tolist() == [[11, 2], [15, 6]]


@pytest.mark.parametrize("count", [1, 2, 6, 7, 10, 23])
def test_images_keep_their_proportions_and_do_not_overlap(count):
    sizes = [(64, 64), (100, 300), (300, 100)] * 8
    found = arrange(sizes[:count], width=7.0, per_row=6, gap=0.1, label=0.2)
    boxes = [(s.x, s.y, s.x + s.width, s.y + s.height) for s in found.slots]
    for (height, width), slot in zip(sizes, found.slots, strict=False):
        assert slot.width / slot.height == pytest.approx(width / height)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        assert -1e-9 <= x1 < x2 <= 7.0 + 1e-9
        assert -1e-9 <= y1 < y2 <= found.height - 0.2 + 1e-9
        assert all(x2 <= a + 1e-9 or c <= x1 + 1e-9 or y2 <= b + 1e-9 or d <= y1 + 1e-9 for a, b, c, d in boxes[:i])


def test_rows_are_as_even_as_can_be():
    rows = {round(slot.y, 6) for slot in arrange([(64, 64)] * 10, 7.0, per_row=6).slots}
    assert len(rows) == 2
    assert len({round(slot.x, 6) for slot in arrange([(64, 64)] * 10, 7.0, per_row=6).slots}) == 5


def test_small_images_grow_by_a_whole_factor_and_large_ones_shrink():
    assert enlarge(np.zeros((64, 64, 3), np.uint8)).shape == (256, 256, 3)
    assert enlarge(np.zeros((800, 3712, 3), np.uint8)).shape == (517, 2400, 3)
    assert enlarge(np.zeros((300, 400, 3), np.uint8)).shape == (300, 400, 3)
