"""The front end of the report and of the notebook's widget: one source, assembled two ways, without any build tool.

A page that is opened from a file can neither import modules nor fetch, a widget has to be a module. So the files here
are plain scripts with functions and nothing else at their top level, put one behind the other: inside a function of
their own for the report (``report.js`` starts it), as an ES module for the widget (``widget.js`` exports ``render``).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from grounding.errors import unknown_choice

PARTS = (
    "dom", "words", "maps", "filters", "caption", "paint", "panels", "controls", "facts", "example", "gallery",
    "overview", "keys", "app",
)  # fmt: skip
STYLES = ("base", "gallery", "example")
KINDS = ("report", "widget")


@cache
def script(kind: str) -> str:
    """The script: a classic one for the ``report``, a module for the ``widget``. Raises BadInput for another kind."""
    if kind not in KINDS:
        raise unknown_choice("kind", kind, KINDS)
    body = "\n".join(_read(f"{name}.js") for name in (*PARTS, kind))
    return f'"use strict";\n(() => {{\n{body}\n}})();\n' if kind == "report" else body


@cache
def style() -> str:
    """The style sheet of both; everything in it is below the class ``probe-report``."""
    return "\n".join(_read(f"{name}.css") for name in STYLES)


def _read(name: str) -> str:
    return files("visualize").joinpath(f"front/{name}").read_text(encoding="utf-8")
