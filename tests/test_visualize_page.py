"""The index page: escaped, self-contained, readable without pictures."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from grounding.errors import BadInput
from visualize.figures import Drawn
from visualize.page import Section, Step, Table, write_page

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class Tags(HTMLParser):
    """All start tags with their attributes, and the text outside of styles."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def figure(folder, name="a b", **changes) -> Drawn:
    paths = tuple(folder / f"{name}.{extension}" for extension in ("png", "svg"))
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(paths[0])
    paths[1].write_text("<svg/>")
    return Drawn(**{"name": name, "title": "T", "caption": "C", "alternative": "A", "paths": paths, **changes})


def evil_page(tmp_path) -> Tags:
    drawn = figure(tmp_path / "figures", title=EVIL, caption=EVIL, alternative=EVIL + "\" onload='alert(1)'")
    table = Table(EVIL, ["model", EVIL], [[EVIL, "0.5"]], EVIL)
    path = write_page(tmp_path / "index.html", EVIL, EVIL, [table], [Section(EVIL, [drawn], EVIL)], [Step(EVIL, EVIL)])
    return Tags(path.read_text(encoding="utf-8"))


def test_markup_in_texts_is_escaped(tmp_path):
    page = evil_page(tmp_path)
    assert "script" not in {tag for tag, _ in page.tags}
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(EVIL) >= 10  # it is all there, to be read


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    page = evil_page(tmp_path)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    links = [a.get("src") or a.get("href") for _, a in page.tags if "src" in a or "href" in a]
    assert all(re.match(r"#|figures/", link) for link in links)
    for link in links:
        if link.startswith("#"):
            assert any(a.get("id") == link[1:] for _, a in page.tags)


def test_figures_are_linked_by_quoted_relative_paths_with_their_size(tmp_path):
    path = write_page(tmp_path / "index.html", "T", sections=[Section("S", [figure(tmp_path / "run #1" / "figures")])])
    image = next(a for tag, a in Tags(path.read_text()).tags if tag == "img")
    assert image["src"] == "run%20%231/figures/a%20b.png"
    assert (image["alt"], image["width"], image["height"]) == ("A", "40", "30")


def test_a_page_of_nothing_but_a_title(tmp_path):
    page = Tags(write_page(tmp_path / "deep" / "index.html", "Only this").read_text())
    assert "Only this" in page.text
    assert "What to try next" not in page.text


def test_figures_elsewhere_or_without_png_are_refused(tmp_path):
    outside = Section("S", [figure(tmp_path / "elsewhere")])
    with pytest.raises(BadInput, match="is not in the page's folder"):
        write_page(tmp_path / "page" / "index.html", "T", sections=[outside])
    drawn = figure(tmp_path)
    with pytest.raises(BadInput, match="the page needs png"):
        write_page(tmp_path / "index.html", "T", sections=[Section("S", [Drawn("n", "t", "c", "a", drawn.paths[1:])])])
    assert not (tmp_path / "index.html").exists()


def test_rows_must_fit_the_columns():
    with pytest.raises(BadInput, match="does not have 2 cells"):
        Table("t", ["a", "b"], [["1", "2", "3"]])
