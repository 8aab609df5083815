"""Single examples: what is drawn, and exactly where. Figures are rendered and their pixels checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fake_gallery import make_example, make_panorama, make_run
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from grounding.errors import BadInput
from visualize.canvas import spread_canvas, spread_maps
from visualize.case import Case, CasePhrase, find_row, gather
from visualize.maps import read_maps
from visualize.overlays import NO_BREAK, draw_example
from visualize.panel import FRAME, Panel
from visualize.sheet import Sheet
from visualize.style import RIGHT, WRONG, phrase_colour, save

DPI = 100


def white_case(**changes) -> Case:
    """Three white candidates, phrase 0 in candidate 1; target 1, answer 2."""
    phrase = CasePhrase(0, "cup", ((0, 3),), 1, boxes=((0.25, 0.5, 0.75, 0.875),))
    images = tuple(np.full((64, 64, 3), 255, np.uint8) for _ in range(3))
    return replace(Case(0, "white", "cup", images, 1, 2, False, 0.0, (phrase,)), **changes)


def test_text_is_as_wide_when_others_show_a_figure_as_when_it_is_saved(tmp_path):
    figure = draw_example(white_case())
    assert matplotlib.rcParams["text.hinting"] != "no_hinting"  # as in a notebook
    figure.canvas.draw()
    shown = np.asarray(figure.canvas.buffer_rgba())
    (path,) = save(figure, tmp_path / "saved", ("png",), dpi=figure.dpi)
    with Image.open(path) as saved:
        np.testing.assert_array_equal(shown, np.asarray(saved))


def rendered(panel: Panel) -> np.ndarray:
    sheet = Sheet(panel.width, panel.height)
    panel.draw(sheet, 0, 0)
    figure = sheet.finish()
    figure.set_dpi(DPI)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def edges(panel: Panel, index: int) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a candidate in pixels of the rendered panel."""
    slot = panel.arrangement.slots[index].moved(FRAME, FRAME)
    return tuple(DPI * v for v in slot.box((0, 0, 1, 1)))


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of the marked pixels, ends past the last one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def like(pixels: np.ndarray, colour: str, tolerance: int = 40) -> np.ndarray:
    return np.abs(pixels - 255 * np.array(to_rgb(colour))).max(-1) <= tolerance


def texts(figure) -> str:
    return "\n".join(artist.get_text() for artist in figure.findobj(Text))


@pytest.mark.parametrize("spread", [spread_canvas, spread_maps])
def test_a_planted_cell_is_drawn_on_its_pixels(spread):
    case = white_case(phrases=())
    if spread is spread_canvas:
        cells = np.zeros((12, 4))
        cells[4 + 2, 1] = 1  # candidate 1: third row, second column
    else:
        cells = np.zeros((3, 4, 4))
        cells[1, 2, 1] = 1
    panel = Panel(case, 6.0, values=spread(cells, case.sizes))
    pixels = rendered(panel)
    x1, y1, x2, _ = edges(panel, 1)
    side = (x2 - x1) / 4
    expected = (x1 + side, y1 + 2 * side, x1 + 2 * side, y1 + 3 * side)
    dark = pixels.sum(-1) < 200
    left, top, right, bottom = extent(dark)
    np.testing.assert_allclose((left, top, right, bottom), expected, atol=1.0)
    assert dark.sum() == (right - left) * (bottom - top)  # filled, and nothing else is dark


def test_true_boxes_are_drawn_to_the_pixel_inside_their_edge():
    panel = Panel(white_case(), 6.0)
    pixels = rendered(panel)
    x1, y1, x2, y2 = edges(panel, 1)
    width, height = x2 - x1, y2 - y1
    rim = 0.3 / 72 * DPI
    expected = (
        x1 + 0.25 * width + rim,
        y1 + 0.5 * height + rim,
        x1 + 0.75 * width - rim,
        y1 + 0.875 * height - rim,
    )
    np.testing.assert_allclose(extent(like(pixels, phrase_colour(0))), expected, atol=1.0)


def least_seen(marked: np.ndarray, x1: float, y1: float, x2: float, y2: float) -> float:
    """Share of a box's least visible side along which pixels are marked, on its best line up to 8 pixels inside."""
    inside = marked[round(y1) : round(y2), round(x1) : round(x2)]
    sides = (inside[:8, 8:-8], inside[-8:, 8:-8], inside[8:-8, :8].T, inside[8:-8, -8:].T)
    return min(side.mean(1).max() for side in sides)


@pytest.mark.parametrize("kind", ["true", "predicted"])
@pytest.mark.parametrize("second", [(0.5, 0.25, 0.75, 0.75), (0.25, 0.25, 0.5, 0.75)], ids=["beside", "the same"])
def test_no_outline_hides_another(kind, second):
    boxes = ((0.25, 0.25, 0.5, 0.75), second)
    place = [{"boxes": (box,)} if kind == "true" else {"boxes": (), "predicted": (1, box)} for box in boxes]
    panel = Panel(white_case(phrases=tuple(replace(white_case().phrases[0], **where) for where in place)), 6.0)
    pixels = rendered(panel)
    for number, box in enumerate(boxes):
        edges_of_box = panel.arrangement.slots[1].moved(FRAME, FRAME).box(box)
        seen = least_seen(like(pixels, phrase_colour(number)), *(DPI * v for v in edges_of_box))
        assert seen > (0.9 if kind == "true" else 0.3)  # dashes and gaps


def test_predicted_boxes_are_dashed_in_the_candidate_they_belong_to():
    phrase = replace(white_case().phrases[0], boxes=(), predicted=(0, (0.25, 0.25, 0.75, 0.75)))
    panel = Panel(white_case(phrases=(phrase,)), 6.0)
    pixels = rendered(panel)
    x1, y1, x2, _ = edges(panel, 0)
    blue = like(pixels, phrase_colour(0))
    side = x2 - x1
    box = x1 + side / 4, y1 + side / 4, x1 + 3 * side / 4, y1 + 3 * side / 4
    np.testing.assert_allclose(extent(blue), box, atol=2)
    assert 0.3 < least_seen(blue, *box) < 0.8  # dashes and gaps
    assert not rendered(Panel(white_case(phrases=(phrase,)), 6.0, predicted=False))[blue].max(-1).min() < 250


def test_boxes_that_leave_the_image_are_cut_at_its_edge():
    phrase = replace(white_case().phrases[0], boxes=(), predicted=(2, (-0.5, 0.2, 3.0, 0.6)))
    panel = Panel(white_case(phrases=(phrase,)), 6.0)
    x1, _, x2, _ = edges(panel, 2)
    left, _, right, _ = extent(like(rendered(panel), phrase_colour(0)))
    assert left >= x1 - 1
    assert right <= x2 + 1


def test_a_single_picture_is_no_game_and_has_no_frame():
    one = white_case(images=white_case().images[:1], target=0, answer=None, phrases=())
    pixels = rendered(Panel(one, 3.0))
    assert not like(pixels, RIGHT).any()
    assert like(rendered(Panel(white_case(), 3.0)), RIGHT).any()
    told = texts(draw_example(one))
    assert "target" not in told
    assert "target image" in texts(draw_example(white_case()))


def test_target_and_wrong_answer_are_framed():
    panel = Panel(white_case(phrases=()), 6.0, labels=False)
    pixels = rendered(panel)
    for index, colour in ((1, RIGHT), (2, WRONG)):
        x1, y1, x2, y2 = edges(panel, index)
        frame = FRAME * DPI
        np.testing.assert_allclose(
            extent(like(pixels, colour)), (x1 - frame, y1 - frame, x2 + frame, y2 + frame), atol=1
        )
    right = rendered(Panel(white_case(phrases=(), answer=1, correct=True), 6.0, labels=False))
    assert like(right, RIGHT).any()
    assert not like(right, WRONG).any()


def test_the_role_of_a_candidate_is_worded_alike_at_every_size():
    for case, roles in (
        (white_case(), {"0", "1 target", "2 chosen"}),
        (white_case(answer=1, correct=True), {"0", "1 target ✓", "2"}),
    ):
        for width in (2.2, 7.6):
            sheet = Sheet(width, 3)
            Panel(case, width).draw(sheet, 0, 0)
            assert {text.get_text() for text in sheet.page.texts} == roles


def test_polygons_are_drawn_for_a_phrase_on_its_own():
    triangle = ((0.5, 0.1), (0.9, 0.9), (0.1, 0.9))
    phrase = replace(white_case().phrases[0], boxes=(), polygons=(triangle,))
    panel = Panel(white_case(phrases=(phrase,)), 6.0, shown=0, labels=False)
    x1, y1, x2, _ = edges(panel, 1)
    side = x2 - x1
    expected = (x1 + 0.1 * side, y1 + 0.1 * side, x1 + 0.9 * side, y1 + 0.9 * side)
    np.testing.assert_allclose(extent(like(rendered(panel), phrase_colour(0), 70)), expected, atol=3)
    assert not like(rendered(replace(panel, shown=None)), phrase_colour(0)).any()


def test_target_and_answer_of_a_spatial_description_are_marked():
    example = make_panorama(0)
    run = make_run([example, example])
    case = replace(gather(run, 1, {example.id: example}), target=(0.25, 0.5), answer=(0.75, 0.5), phrases=())
    case = replace(case, images=(np.full((100, 400, 3), 255, np.uint8),))
    panel = Panel(case, 6.0)
    pixels = rendered(panel)
    x1, y1, x2, y2 = edges(panel, 0)
    for colour, across in ((RIGHT, 0.25), (WRONG, 0.75)):
        left, top, right, bottom = extent(like(pixels, colour))
        assert (left + right) / 2 == pytest.approx(x1 + across * (x2 - x1), abs=1.5)
        assert (top + bottom) / 2 == pytest.approx((y1 + y2) / 2, abs=1.5)


def test_an_example_with_everything():
    example = make_example(1)
    run = make_run([example], heatmaps=True)
    case = gather(run, 0, {example.id: example})
    figure = draw_example(case, [read_maps(run, case, site="block.1")])
    words = texts(figure)
    assert "fake/001" in words
    assert "Attention from each phrase at block.1, mean over 4 heads" in words
    assert "its heatmap" in words
    assert f"{case.phrases[0].iou:.2f}" in words
    assert len(figure.axes[0].images) == 6 * (1 + 3 + 3)


def test_a_box_round_a_peak_is_not_called_what_the_iou_is_of():
    """The IoU of a heatmap counts all images, so that it may be above 0 where the box lies in a wrong one."""
    example = make_example(1)
    for heatmaps, box, measured in (
        (True, "round the peak of the model's heatmap", "IoU of the whole heatmap with the truth:"),
        (False, "model's box", "IoU with the truth:"),
    ):
        run = make_run([example], heatmaps=heatmaps)
        words = texts(draw_example(gather(run, 0, {example.id: example}))).replace(NO_BREAK, " ")
        assert box in words
        assert measured.replace(" ", "") in "".join(words.split())
        assert ("whole" in words) == heatmaps


def test_a_heatmap_that_is_highest_elsewhere_than_its_stored_peak_is_called_coarser():
    example = make_example(1)
    run = make_run([example], heatmaps=True)
    for row in run.phrases.index:
        phrase = example.phrases[row]
        (x1, y1, x2, y2), heatmap = phrase.regions[0].box, np.full((6, 16, 16), 0.001)
        heatmap[phrase.image_index, int(8 * (y1 + y2)), int(8 * (x1 + x2))] = 0.8
        run.heatmaps[row] = heatmap
    run.phrases["predicted_image_index"] = example.target_index
    run.phrases["pointing"] = [1, 0, 1]
    run.phrases.loc[2, "predicted_image_index"] = (example.target_index + 1) % 6
    case = gather(run, 0, {example.id: example})
    assert [phrase.drawn_apart for phrase in case.phrases] == [False, True, True]
    words = texts(draw_example(case))
    assert "; peak outside the region (drawn coarser)" in words
    assert words.count("coarser") == 2
    polygon = ((0.0, 0.0), (0.1, 0.0), (0.0, 0.1))  # peaks are measured by boxes
    assert replace(case.phrases[0], polygons=(polygon,)).drawn_apart is False


def test_maps_of_a_single_image_fill_the_page_in_pairs():
    example = make_panorama(0)
    run = make_run([example], heatmaps=True)
    case = replace(gather(run, 0, {example.id: example}), target=0, answer=None)  # no place to enlarge
    once = replace(case, phrases=case.phrases * 3)
    picture, *maps = (image.get_extent() for image in draw_example(once).axes[0].images)
    (left, _, top, _), (_, right, beside, _), (_, _, below, _) = maps
    assert (left, right) == pytest.approx(picture[:2])
    assert top == beside < below
    alone = [image.get_extent() for image in draw_example(case).axes[0].images]
    assert alone[1][:2] == pytest.approx(alone[0][:2])


def test_case_holds_what_the_tables_hold():
    example = make_example(2)
    run = make_run([make_example(1), example])
    case = gather(run, find_row(run, example.id), {example.id: example})
    assert (case.target, case.answer, case.correct) == (example.target_index, (example.target_index + 1) % 6, False)
    for phrase, truth in zip(case.phrases, example.phrases, strict=True):
        np.testing.assert_allclose(phrase.boxes[0], truth.regions[0].box)
        assert phrase.image_index == truth.image_index
        assert phrase.spans == truth.spans
    with pytest.raises(BadInput, match="'nope' is not in the run"):
        find_row(run, "nope")
    with pytest.raises(BadInput, match="accepted: 0 to 1"):
        gather(run, 2, {})


def test_images_that_cannot_be_read_leave_a_placeholder_and_a_note():
    example = make_example(1)
    example = replace(example, images=(Path("/no/such.png"), *example.images[1:]))
    case = gather(make_run([example]), 0, {example.id: example})
    assert list(case.missing) == [0]
    words = texts(draw_example(case))
    assert "image\nnot available" in words
    assert "candidate 0: image /no/such.png does not exist" in words
    absent = gather(make_run([example]), 0, {})
    assert len(absent.missing) == 6
    assert "the example's images were not given" in texts(draw_example(absent))


def test_a_hundred_phrases_are_numbered_and_their_maps_limited():
    example = make_example(1, phrases=100)
    run = make_run([example])
    case = gather(run, 0, {example.id: example})
    figure = draw_example(case, [read_maps(run, case, site="block.0")], most_phrases=3)
    words = texts(figure)
    assert "¹⁰⁰" in words
    assert "… and 97 more phrases, not drawn here." in words
    assert len(figure.axes[0].images) == 6 * (1 + 3)


def test_mathematics_markup_and_missing_predictions_are_drawn_as_text():
    example = make_example(1, caption="costs $5_a and $x^{ <b> \\alpha")
    run = make_run([example], attention=False)
    run.phrases[["iou", "pointing", "predicted_x1"]] = np.nan
    case = gather(run, 0, {example.id: example})
    assert case.phrases[0].predicted is None
    figure = draw_example(case)
    figure.canvas.draw()  # would fail on mathematics that cannot be parsed
    assert "costs $5_a and $x^{ <b> \\alpha a" in texts(figure)
    assert "IoU" not in texts(figure)


def test_settings_of_matplotlib_are_put_back():
    before = dict(matplotlib.rcParams)
    example = make_example(1)
    draw_example(gather(make_run([example]), 0, {example.id: example}))
    assert dict(matplotlib.rcParams) == before


def test_a_caption_of_hundreds_of_lines_is_cut_and_other_scripts_draw_in_silence(recwarn, tmp_path):
    example = make_example(1)
    run = make_run([example])
    run.examples["caption"] = "\U0001f7e5 " + run.examples["caption"] + " and on and on" * 1500
    figure = draw_example(gather(run, 0, {example.id: example}))
    assert figure.get_size_inches()[1] < 12
    save(figure, tmp_path / "x", ("png",))
    assert not [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)]
