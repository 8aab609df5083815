"""Reading tangram drawings: the polygons of an SVG file, placed on a unit square.

Understood are ``<polygon points=... transform=...>`` and ``transform`` on the elements around it (SVG 2,
8.5: the functions of a list apply right to left, an element's own list before its parent's). Everything
else that could be drawn is ignored; documents with a DOCTYPE are refused, so no entity is ever expanded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from grounding.benchmarks.files import parse_xml
from grounding.errors import BadInput
from grounding.examples import Box, Point

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_FUNCTION = re.compile(r"([A-Za-z]+)\s*\(([^()]*)\)")
_ARGUMENTS = {
    "matrix": (6,),
    "translate": (1, 2),
    "scale": (1, 2),
    "rotate": (1, 3),
    "skewX": (1,),
    "skewY": (1,),
}
_NOT_DRAWN = {"defs", "symbol", "clipPath", "mask", "pattern", "marker"}


@dataclass(frozen=True)
class Piece:
    """One polygon of a drawing; vertices are relative (0..1) to the square image."""

    id: str
    polygon: tuple[Point, ...]

    @property
    def box(self) -> Box:
        """The smallest box round the polygon, xyxy relative."""
        xs, ys = zip(*self.polygon, strict=True)
        return (min(xs), min(ys), max(xs), max(ys))


@dataclass(frozen=True)
class Drawing:
    """Polygons in painting order, centred on a square whose side is the longer of the viewBox's sides.

    unit: one user unit of the SVG (the default width of a stroke) relative to that side.
    """

    name: str
    pieces: tuple[Piece, ...]
    unit: float


def read_drawing(path: Path) -> Drawing:
    """The polygons of an SVG file, clipped to the square.

    Raises BadInput naming the file if it is missing, is not XML, declares a DOCTYPE, has no usable viewBox or
    no polygons, or if a polygon has no id, a repeated id, unreadable points or transform, or no area.
    """
    try:
        root = parse_xml(path.read_bytes())
        return _drawing(path.stem, root)
    except FileNotFoundError:
        raise BadInput(f"drawing {path} does not exist") from None
    except OSError as error:
        raise BadInput(f"drawing {path} cannot be read: {error.strerror}") from None
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: an encoding nobody knows
        raise BadInput(f"drawing {path} is not XML: {error}") from None
    except BadInput as error:
        raise BadInput(f"drawing {path}: {error}") from None


def transform_matrix(text: str) -> np.ndarray:
    """The 3 x 3 matrix of an SVG transform list; a point is a column ``[x, y, 1]``.

    Raises BadInput for anything but the six functions of SVG with their numbers of arguments.

    >>> transform_matrix("translate(10) scale(2, 3)") @ [1, 1, 1]
    array([12.,  3.,  1.])
    """
    matrix = np.eye(3)
    if _FUNCTION.sub("", text).strip(" ,\t\r\n"):
        raise BadInput(f"transform {text!r} is not a list of SVG transform functions")
    for name, arguments in _FUNCTION.findall(text):
        values = _numbers(arguments, f"transform {text!r}")
        if len(values) not in _ARGUMENTS.get(name, ()):
            accepted = ", ".join(_ARGUMENTS)
            raise BadInput(f"transform {text!r}: {name} of {len(values)} numbers; accepted functions: {accepted}")
        matrix = matrix @ _function_matrix(name, values)
    return matrix


def _function_matrix(name: str, values: list[float]) -> np.ndarray:
    """Matrix of one transform function (SVG 2, 8.5; CSS Transforms 1, 8): angles in degrees."""
    match name:
        case "matrix":
            a, b, c, d, e, f = values
        case "translate":
            a, b, c, d, e, f = 1, 0, 0, 1, values[0], values[1] if len(values) == 2 else 0
        case "scale":
            a, b, c, d, e, f = values[0], 0, 0, values[-1], 0, 0
        case "skewX":
            a, b, c, d, e, f = 1, 0, math.tan(math.radians(values[0])), 1, 0, 0
        case "skewY":
            a, b, c, d, e, f = 1, math.tan(math.radians(values[0])), 0, 1, 0, 0
        case _:  # rotate, about the origin or about a centre
            sine, cosine = math.sin(math.radians(values[0])), math.cos(math.radians(values[0]))
            x, y = values[1:] or (0.0, 0.0)
            a, b, c, d = cosine, sine, -sine, cosine
            e, f = x - cosine * x + sine * y, y - sine * x - cosine * y
    return np.array([[a, c, e], [b, d, f], [0, 0, 1]], dtype=float)


def _drawing(name: str, root: ElementTree.Element) -> Drawing:
    left, top, width, height = _view_box(root)
    side = max(width, height)
    to_square = np.array(
        [
            [1 / side, 0, 0.5 - (left + width / 2) / side],
            [0, 1 / side, 0.5 - (top + height / 2) / side],
            [0, 0, 1],
        ]
    )
    pieces: dict[str, Piece] = {}
    with np.errstate(all="ignore"):  # coordinates that overflow are reported by _piece
        for element, matrix in _polygons(root):
            piece = _piece(element, to_square @ matrix)
            if piece.id in pieces:
                raise BadInput(f"two polygons have the id {piece.id!r}")
            pieces[piece.id] = piece
    if not pieces:
        raise BadInput("has no polygons")
    return Drawing(name, tuple(pieces.values()), 1 / side)


def _view_box(root: ElementTree.Element) -> list[float]:
    text = root.get("viewBox", "")
    values = _numbers(text, f"viewBox {text!r}")
    if len(values) != 4 or values[2] <= 0 or values[3] <= 0:
        raise BadInput(f"viewBox {text!r} is not four numbers with a positive width and height")
    return values


def _polygons(root: ElementTree.Element) -> Iterator[tuple[ElementTree.Element, np.ndarray]]:
    """Polygons in document order, each with the matrix to the root's coordinates (no recursion: any depth)."""
    waiting = [(root, np.eye(3))]
    while waiting:
        element, outer = waiting.pop()
        tag = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
        if tag in _NOT_DRAWN:
            continue
        matrix = outer @ transform_matrix(element.get("transform", ""))
        if tag == "polygon":
            yield element, matrix
        waiting += [(child, matrix) for child in reversed(element)]


def _piece(element: ElementTree.Element, matrix: np.ndarray) -> Piece:
    identifier = element.get("id")
    if not identifier:
        raise BadInput("a polygon has no id")
    values = _numbers(element.get("points", ""), f"points of polygon {identifier!r}")
    if len(values) < 6 or len(values) % 2:
        raise BadInput(f"polygon {identifier!r} has {len(values)} coordinates; accepted: pairs, three or more")
    points = np.asarray(values).reshape(-1, 2) @ matrix[:2, :2].T + matrix[:2, 2]  # [vertices, 2]
    if not np.isfinite(points).all():
        raise BadInput(f"polygon {identifier!r} has coordinates that are not finite")
    piece = Piece(identifier, tuple((float(x), float(y)) for x, y in points.clip(0, 1)))
    x1, y1, x2, y2 = piece.box
    if x1 == x2 or y1 == y2:
        raise BadInput(f"polygon {identifier!r} has no area inside the viewBox's square")
    return piece


def _numbers(text: str, where: str) -> list[float]:
    """Numbers apart by commas or white space (or by a sign alone, as SVG allows)."""
    if _NUMBER.sub("", text).strip(" ,\t\r\n"):
        raise BadInput(f"{where} holds something that is not a number")
    return [float(number) for number in _NUMBER.findall(text)]
