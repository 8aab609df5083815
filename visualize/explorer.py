"""The report as a widget of Jupyter: the front end asks for chunks and files, Python sets routes and reads choices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import anywidget
import pandas as pd
import traitlets

from grounding.errors import BadInput, unknown_choice
from grounding.values import counted
from visualize.front import script, style

if TYPE_CHECKING:
    from visualize.report.live import LiveReport

# what the front end knows (visualize/front: words.js, gallery.js, filters.js, example.js)
QUADRANTS = ("right", "wrong", "right_grounded", "right_not_grounded", "wrong_grounded", "wrong_not_grounded")
CHANGES = ("gained", "lost", "same")
ORDERS = ("-grounding", "grounding", "-score", "score", "-phrases", "-change", "change")
VIEW = ("phrase", "map", "site", "head", "a", "b")
Range = tuple[float | None, float | None]


class Explorer(anywidget.AnyWidget):
    """What ``visualize.explore`` makes.

    examples: all examples, a row an example and run (``table_of``). route: where the front end is, as the report's
    address has it behind the #. selected: ids of the examples that its gallery shows, or of the one that is open.
    """

    _esm = script("widget")
    _css = style()
    route = traitlets.Unicode("/overview").tag(sync=True)
    selected = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(
        self, folder: TemporaryDirectory[str], report: LiveReport, runs: Sequence[str], examples: pd.DataFrame
    ):
        """folder: of the report, removed when the widget is closed. runs: their names."""
        self._folder = folder  # first, since even a widget that failed to begin is closed
        super().__init__()
        self.examples = examples
        self._runs = tuple(runs)
        self._report = report
        self.on_msg(self._answer)

    def __repr__(self) -> str:
        count = counted(self.examples["id"].nunique(), "example")
        return f"Explorer of {', '.join(self._runs)}: {count} (a live page: run the notebook to use it)"

    def selection(self) -> pd.DataFrame:
        """The rows of ``examples`` that are selected, in the order in which they are shown."""
        places = {name: place for place, name in enumerate(self.selected)}
        rows = self.examples[self.examples["id"].isin(places)]
        return rows.sort_values("id", key=lambda ids: ids.map(places), kind="stable").reset_index(drop=True)

    def show(self, examples: str | Iterable[str], **view: str | int) -> None:
        """Open the example of an id, or of several ids a gallery in that order; they are then selected.

        view: of one example, as in the address of the report: phrase (from 1 on), map (``attention``, ``probe``, …),
        site, head, a and b (numbers of the runs side by side, b ``none`` for one alone). Raises BadInput for an
        unknown id, another name of a view, a phrase that the example does not have, a map that no run has, and a site
        or head that the map is not of.
        """
        if not isinstance(examples, Iterable):
            raise BadInput(f"examples {examples!r} is no id; accepted: an id of explorer.examples, or several")
        ids = [examples] if isinstance(examples, str) else [str(name) for name in dict.fromkeys(examples)]
        known = set(self.examples["id"])
        if unknown := [name for name in ids if name not in known]:
            raise BadInput(f"example {unknown[0]!r} is not in these runs; accepted: ids of explorer.examples")
        for name in view:
            if name not in VIEW:
                raise unknown_choice("view", name, VIEW)
        if isinstance(examples, str) and "phrase" in view:
            count = self._report.phrases(examples)
            if view["phrase"] not in range(1, count + 1):
                raise BadInput(f"phrase {view['phrase']!r} of {examples!r} is not there; accepted: 1 to {count}")
        layers = self._report.layers()
        if "map" in view and view["map"] not in layers:
            raise unknown_choice("map", view["map"], layers)
        sites = layers[str(view["map"])] if "map" in view else sorted({s for own in layers.values() for s in own})
        if "site" in view and view["site"] not in sites:
            raise unknown_choice("site", view["site"], sites)
        heads = self._report.heads(str(view["map"]) if "map" in view else None)
        if "head" in view and view["head"] not in heads:
            raise unknown_choice("head", view["head"], heads)
        self.selected = ids
        if isinstance(examples, str):
            self._go(f"/example/{quote(examples, safe='')}", view)
        else:
            self._go("/gallery", {"ids": json.dumps(ids)})

    def filter(
        self,
        quadrant: str | None = None,
        *,
        text: str | None = None,
        type: str | None = None,
        phrases: Range | None = None,
        score: Range | None = None,
        grounding: Range | None = None,
        change: str | None = None,
        order: str | None = None,
        run: int = 0,
    ) -> None:
        """Show the gallery with these filters; what it then shows is selected as soon as the page has drawn it.

        quadrant: ``right``, ``wrong``, or with ``_grounded``, ``_not_grounded`` behind it. phrases, score, grounding:
        (lowest, highest), either of them None. change: from the first run to the second: ``gained``, ``lost``,
        ``same``. order: a column, lowest first; with ``-`` before it highest first. run: number of the run whose
        outcomes count. Raises BadInput for a value that the page does not know, and for a range that holds nothing.
        """
        for name, value, accepted in (
            ("quadrant", quadrant, QUADRANTS), ("change", change, CHANGES), ("order", order, ORDERS),
            ("run", run, range(len(self._runs))), ("type", type, self._report.types),
        ):  # fmt: skip
            if value is not None and value not in accepted:
                raise unknown_choice(name, value, accepted)
        ranges = {"phrases": phrases, "score": score, "grounding": grounding}
        written = {name: _range(name, ends) for name, ends in ranges.items() if ends is not None}
        chosen = {"quadrant": quadrant, "q": text, "type": type, "change": change, "sort": order, "of": run or None}
        self._go("/gallery", chosen | written)

    def overview(self) -> None:
        """Show the overview."""
        self._go("/overview", {})

    def close(self) -> None:
        """Take the widget away, and its temporary folder."""
        super().close()
        self._folder.cleanup()

    def _go(self, path: str, parameters: dict[str, Any]) -> None:
        query = urlencode({name: value for name, value in parameters.items() if value is not None})
        self.route = f"{path}?{query}" if query else path

    def _answer(self, _widget: Any, asked: Any, _buffers: Any) -> None:
        """Send the chunk or file that the front end asks for; nothing but those of the report."""
        name = str(asked.get("load", asked.get("file")))
        try:
            if "load" in asked:
                self.send({"name": name, "chunk": self._report.chunk(name)})
            else:
                self.send({"name": name}, [self._report.file(name)])
        except KeyError:
            self.send({"name": name, "error": f"This report holds no {name}."})
        except BadInput as error:
            self.send({"name": name, "error": str(error)})


def _range(name: str, ends: Range) -> str:
    if not isinstance(ends, tuple) or len(ends) != 2:
        raise BadInput(f"{name} {ends!r} is not a range; accepted: (lowest, highest), either of them None")
    low, high = ends
    if low is not None and high is not None and low > high:
        raise BadInput(f"{name} {ends!r} holds nothing; accepted: (lowest, highest)")
    return "..".join("" if end is None else str(end) for end in ends)
