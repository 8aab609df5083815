"""The index page of a folder of figures: one HTML file that needs no server and no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from grounding.errors import BadInput
from visualize.figures import Drawn


@dataclass(frozen=True)
class Table:
    """A table of the page. rows: texts as they are to be read, the first cell of each names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise BadInput(f"row {list(row)} of table {self.title!r} does not have {len(self.columns)} cells")


@dataclass(frozen=True)
class Section:
    """Figures under one heading, with a sentence or two about them."""

    title: str
    figures: Sequence[Drawn]
    text: str = ""


@dataclass(frozen=True)
class Step:
    """Something to try next: what it shows, and the command for it."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class _Picture:
    """A figure as the template shows it; width and height in pixels keep its place while it loads."""

    title: str
    caption: str
    alternative: str
    source: str
    width: int
    height: int
    others: tuple[tuple[str, str], ...]


def write_page(
    path: Path,
    title: str,
    lead: str = "",
    tables: Sequence[Table] = (),
    sections: Sequence[Section] = (),
    steps: Sequence[Step] = (),
) -> Path:
    """Write an index page and return its path. Texts are untrusted: all of them are escaped.

    path: the HTML file; figures must lie in its folder or below, since the page links to them by relative path.
    lead: a paragraph under the title. Raises BadInput for a figure elsewhere, or without a PNG.
    """
    shown = [(section, [_picture(figure, path.parent) for figure in section.figures]) for section in sections]
    html = _template().render(title=title, lead=lead, tables=tables, sections=shown, steps=steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _picture(figure: Drawn, folder: Path) -> _Picture:
    links = {file.suffix[1:]: _link(file, folder) for file in figure.paths}
    if "png" not in links:
        raise BadInput(f"figure {figure.name!r} has the formats {', '.join(links)}; the page needs png")
    with Image.open(next(file for file in figure.paths if file.suffix == ".png")) as image:
        width, height = image.size
    others = tuple((name.upper(), link) for name, link in links.items() if name != "png")
    return _Picture(figure.title, figure.caption, figure.alternative, links["png"], width, height, others)


def _link(file: Path, folder: Path) -> str:
    try:
        return quote(file.resolve().relative_to(folder.resolve()).as_posix())
    except ValueError:
        raise BadInput(f"figure {str(file)!r} is not in the page's folder {str(folder)!r} or below") from None


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("visualize").joinpath("templates/index.html").read_text(encoding="utf-8"))
