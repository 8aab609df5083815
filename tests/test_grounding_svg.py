"""SVG reading: transforms against hand-worked numbers, placing on the square, and files that must be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grounding.benchmarks.svg import read_drawing, transform_matrix
from grounding.errors import BadInput

POLYGON = '<polygon id="1" points="0,0 10,0 0,10"/>'


def write(folder: Path, body: str, view_box: str = "0 0 100 100", prolog: str = "") -> Path:
    path = folder / "drawing.svg"
    path.write_text(f'{prolog}<svg viewBox="{view_box}" xmlns="http://www.w3.org/2000/svg">{body}</svg>')
    return path


@pytest.mark.parametrize(
    ("text", "point", "expected"),
    [
        ("", (3, 4), (3, 4)),
        ("matrix(1 2 3 4 5 6)", (1, 1), (9, 12)),  # x = 1 + 3 + 5, y = 2 + 4 + 6
        ("matrix(-1, 0, 0, -1, 83.5, 439.5)", (79.5, 239.5), (4, 200)),
        ("translate(10)", (1, 2), (11, 2)),
        ("translate(10,-20)", (1, 2), (11, -18)),
        ("scale(3)", (1, 2), (3, 6)),
        ("scale(2 -1)", (1, 2), (2, -2)),
        ("rotate(90)", (1, 0), (0, 1)),  # clockwise on the screen: y points down
        ("rotate(90 10 10)", (11, 10), (10, 11)),
        ("rotate(180, 1, 2)", (0, 0), (2, 4)),
        ("skewX(45)", (0, 5), (5, 5)),
        ("skewY(45)", (5, 0), (5, 5)),
        ("translate(10 0) scale(2)", (3, 1), (16, 2)),  # the last function applies first
        ("scale(2), translate(10 0)", (3, 1), (26, 2)),
        ("translate(1e1-.5)", (0, 0), (10, -0.5)),  # a sign parts two numbers
    ],
)
def test_transforms_equal_hand_worked_numbers(text, point, expected):
    assert (transform_matrix(text) @ [*point, 1])[:2] == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    ["matrix(1 2 3 4 5)", "rotate(1 2)", "skewX()", "spin(3)", "translate(1", "translate(a)", "rotate(30deg)", "none"],
)
def test_transforms_that_mean_nothing_are_refused(text):
    with pytest.raises(BadInput, match="transform"):
        transform_matrix(text)


def test_transforms_of_groups_apply_after_those_of_their_members(tmp_path):
    body = f'<g transform="translate(50 0)"><g transform="scale(2)">{POLYGON}</g></g>'
    body += '<g transform="rotate(90)"><polygon id="2" points="20 -10 30 -10 30 0" transform="translate(0 -10)"/></g>'
    drawing = read_drawing(write(tmp_path, body))
    assert [piece.id for piece in drawing.pieces] == ["1", "2"]
    assert np.allclose(drawing.pieces[0].polygon, [(0.5, 0), (0.7, 0), (0.5, 0.2)])
    # (20, -10) -> (20, -20) -> (20, 20): x' = -y, y' = x
    assert np.allclose(drawing.pieces[1].polygon, [(0.2, 0.2), (0.2, 0.3), (0.1, 0.3)])


def test_commas_and_spaces_mean_the_same(tmp_path):
    written = ["0,0 10,0 0,10", "0 0 10 0 0 10", "0, 0, 10, 0, 0, 10", "\n0,0\n10,0\t0,10 ", "0 0 1e1 0 0 +10."]
    read = [read_drawing(write(tmp_path, f'<polygon id="1" points="{points}"/>')) for points in written]
    assert all(drawing == read[0] for drawing in read)


@pytest.mark.parametrize(
    ("view_box", "expected"),
    [
        ("0 0 200 100", [(0, 0.25), (0.05, 0.25), (0, 0.3)]),  # wide: centred from top to bottom
        ("0,0,100,200", [(0.25, 0), (0.3, 0), (0.25, 0.05)]),  # high: centred from left to right
        ("-50 -50 100 100", [(0.5, 0.5), (0.6, 0.5), (0.5, 0.6)]),  # off the origin
    ],
)
def test_the_drawing_is_centred_on_the_square_of_its_longer_side(tmp_path, view_box, expected):
    drawing = read_drawing(write(tmp_path, POLYGON, view_box))
    assert np.allclose(drawing.pieces[0].polygon, expected)
    assert drawing.unit == pytest.approx(0.005 if "200" in view_box else 0.01)


def test_boxes_bound_their_polygons_and_stay_on_the_square(tmp_path):
    drawing = read_drawing(write(tmp_path, '<polygon id="a" points="-20 30 40 10 60 130"/>'))
    assert drawing.pieces[0].box == pytest.approx((0, 0.1, 0.6, 1))


def test_what_is_not_drawn_is_not_read(tmp_path):
    hidden = (
        '<defs><polygon id="x" points="0 0 1 0 1 1"/></defs><clipPath><g><polygon id="y" points=""/></g></clipPath>'
    )
    drawing = read_drawing(write(tmp_path, f"{hidden}<!-- note --><?page turn?><circle/>{POLYGON}"))
    assert [piece.id for piece in drawing.pieces] == ["1"]


def test_any_depth_of_groups_is_read(tmp_path):
    assert read_drawing(write(tmp_path, "<g>" * 5000 + POLYGON + "</g>" * 5000)).pieces


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "has no polygons"),
        ("<g><path d='M 0 0'/></g>", "has no polygons"),
        ('<polygon points="0 0 1 0 1 1"/>', "no id"),
        (POLYGON * 2, "two polygons have the id '1'"),
        ('<polygon id="1" points="0 0 1 0 1"/>', "5 coordinates"),
        ('<polygon id="1" points="0 0 1 1"/>', "4 coordinates"),
        ('<polygon id="1"/>', "0 coordinates"),
        ('<polygon id="1" points="0 0 1 nan 1 1"/>', "not a number"),
        ('<polygon id="1" points="0 0 1e999 0 1 1"/>', "not finite"),
        ('<polygon id="1" points="0 0 9 0 9 9" transform="scale(1e200) scale(1e200)"/>', "not finite"),
        ('<polygon id="1" points="5 5 6 5 8 5"/>', "no area"),
        ('<polygon id="1" points="200 5 300 5 300 9"/>', "no area"),
        ('<g transform="wobble(1)"><polygon id="1" points="0 0 1 0 1 1"/></g>', "wobble"),
        ("<g>", "not XML"),
        ("&undeclared;", "not XML"),
    ],
)
def test_broken_drawings_are_refused_by_name(tmp_path, body, reason):
    path = write(tmp_path, body)
    with pytest.raises(BadInput, match=reason) as error:
        read_drawing(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("view_box", ["", "0 0 100", "0 0 0 100", "0 0 100 -1", "0 0 wide high"])
def test_a_view_box_is_needed(tmp_path, view_box):
    with pytest.raises(BadInput, match="viewBox"):
        read_drawing(write(tmp_path, POLYGON, view_box))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_and_their_entities_are_refused(tmp_path, encoding):
    entities = '<!DOCTYPE svg [<!ENTITY points "0 0 10 0 0 10"><!ENTITY file SYSTEM "file:///etc/hostname">]>'
    path = write(tmp_path, '<polygon id="1" points="&points;"/>', prolog=entities)
    path.write_bytes(path.read_text().encode(encoding))
    with pytest.raises(BadInput, match="DOCTYPE"):
        read_drawing(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"none\.svg does not exist"):
        read_drawing(tmp_path / "none.svg")
    with pytest.raises(BadInput, match="cannot be read"):
        read_drawing(tmp_path)
    path = tmp_path / "odd.svg"
    path.write_bytes(b'<?xml version="1.0" encoding="nobody-knows"?><svg/>')
    with pytest.raises(BadInput, match=r"odd\.svg is not XML"):
        read_drawing(path)
    path.write_bytes(b'<?xml version="1.0" encoding="utf-8"?><svg>\xff\xfe</svg>')
    with pytest.raises(BadInput, match=r"odd\.svg is not XML"):
        read_drawing(path)


def test_the_real_drawings_have_seven_pieces_of_a_tangram(shared_data):
    paths = sorted((shared_data / "kilogram" / "tangrams-svg").glob("*.svg"))
    drawings = [read_drawing(path) for path in paths]
    assert len(drawings) == 60
    for drawing in drawings:
        assert [piece.id for piece in drawing.pieces] == [str(number) for number in range(1, 8)]
    # The page-<letter> drawings were traced by hand; the others keep the proportions of the seven pieces.
    exact = [_areas(drawing) for drawing in drawings if not drawing.name.startswith("page-")]
    assert len(exact) == 51
    for areas in exact:
        assert np.allclose(np.sort(areas / areas.min()), [1, 1, 2, 2, 2, 4, 4], rtol=0.05)


def test_real_drawings_with_transforms_do_not_overlap(shared_data):
    """Without its transform a piece lies on top of another, so the union of the pieces would be smaller."""
    from PIL import Image, ImageDraw

    for name in ("page-A", "page-H", "page-K"):
        drawing = read_drawing(shared_data / "kilogram" / "tangrams-svg" / f"{name}.svg")
        canvas = Image.new("1", (1000, 1000))
        for piece in drawing.pieces:
            ImageDraw.Draw(canvas).polygon([(x * 1000, y * 1000) for x, y in piece.polygon], fill=1)
        assert np.asarray(canvas).mean() == pytest.approx(_areas(drawing).sum(), rel=0.03)


def _areas(drawing) -> np.ndarray:
    """Shoelace formula, relative areas ``[pieces]``."""
    areas = []
    for piece in drawing.pieces:
        x, y = np.array(piece.polygon).T
        areas.append(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
    return np.array(areas)
