"""A report that is not written: its chunks and images are made when they are asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grounding.errors import BadInput
from visualize.maps import PROBE
from visualize.report.budget import Choice, Held
from visualize.report.content import Content
from visualize.report.images import ImageFolder
from visualize.report.maps import units_of
from visualize.report.overview import write_overview
from visualize.report.subject import Subject, Words, match_runs

if TYPE_CHECKING:
    from grounding.examples import Example


class LiveReport:
    """The report of ``write_report`` on demand. There is no budget: every map is held, an example a chunk.

    folder: takes figures, which are drawn at once, and images once they are seen. The rest, and what is raised: as in
    ``write_report``.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        folder: Path,
        examples: Mapping[str, Example],
        words: Sequence[Words] = (),
        title: str | None = None,
    ):
        self._content = content = Content(subjects, match_runs(subjects), examples)
        self._folder = folder
        for name in ("images", "figures"):
            (folder / name).mkdir()
        self._images = ImageFolder(folder / "images")
        choices = [Choice(_everything(subject), ()) for subject in subjects]
        self._held = {(number, held.view): held for number, one in enumerate(choices) for held in one.held}
        for place in range(content.count):
            content.add_to_index(place, content.record(place, self._promised(place)))
        self._index = content.index(title, write_overview(subjects, words, folder / "figures"), choices, chunk=1)

    @property
    def types(self) -> list[str]:
        """The types of all phrases."""
        return list(self._index["types"])

    def phrases(self, example: str) -> int:
        """How many phrases the page lists of the example of that id, those that no run reads too."""
        table = self._index["table"]
        return len(table["types"][table["id"].index(example)])

    def layers(self) -> dict[str, tuple[str, ...]]:
        """What the page can lay over an example's images, as its addresses name it: map -> sites of any run."""
        found: dict[str, dict[str, None]] = {"boxes": {}}
        for run in self._index["runs"]:
            for view in run["views"]:
                found.setdefault(view["view"], {}).update((site, None) for site, _ in view["units"])
            for series in run["series"]:
                found.setdefault(PROBE, {}).update(dict.fromkeys(series["sites"]))
        if "attention" in found:
            found["sink-filtered"] = found["attention"]
        return {name: tuple(sites) for name, sites in found.items()}

    def heads(self, map: str | None = None) -> tuple[int, ...]:
        """The heads of a map by their numbers, at any site of any run; of all maps unless one is named."""
        name = "attention" if map == "sink-filtered" else map
        views = [view for run in self._index["runs"] for view in run["views"] if name in (None, view["view"])]
        return tuple(sorted({head for view in views for _, head in view["units"] if head is not None}))

    def chunk(self, name: str) -> Any:
        """The chunk that a written report has in the file of that name. Raises KeyError where there is none."""
        if name == "index":
            return self._index
        if found := re.fullmatch(r"examples-(\d+)", name):
            place = self._place(found[1])
            return [self._content.record(place, self._images.add(*self._content.example(place)))]
        if found := re.fullmatch(r"maps-(\d+)-(.+)-(\d+)", name):
            return self._content.maps(int(found[1]), self._held[int(found[1]), found[2]], self._place(found[3]))
        raise KeyError(name)

    def file(self, path: str) -> bytes:
        """An image or figure. Raises KeyError where there is none, BadInput for an image that cannot be shown."""
        if found := re.fullmatch(r"images/(\d+)-(\d+)\.webp", path):
            return self._thumbnail(self._place(found[1]), int(found[2]))
        if not re.fullmatch(r"(images|figures)/[\w.-]+", path) or not (self._folder / path).is_file():
            raise KeyError(path)
        return (self._folder / path).read_bytes()

    def _place(self, text: str) -> int:
        if int(text) >= self._content.count:
            raise KeyError(text)
        return int(text)

    def _promised(self, place: int) -> list[dict[str, Any]]:
        """Records of an example's images as the index needs them, which are not drawn yet."""
        example, count = self._content.example(place)
        names = [f"{place}-{number}.webp" for number in range(count if example is not None else 0)]
        return [{"src": name, "thumb": name, "width": None, "height": None} for name in names] or [{}] * count

    def _thumbnail(self, place: int, number: int) -> bytes:
        example, count = self._content.example(place)
        if example is None or number >= count:
            raise KeyError(f"image {number} of example {place}")
        record = self._images.one(example, number)
        if "missing" in record:
            raise BadInput(record["missing"])
        return (self._folder / "images" / record["thumb"]).read_bytes()


def _everything(subject: Subject) -> tuple[Held, ...]:
    units = units_of(subject)
    views = dict.fromkeys(unit.view for unit in units)
    return tuple(Held(view, tuple(unit for unit in units if unit.view == view), chunk=1) for view in views)
