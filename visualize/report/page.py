"""The one page of a report: its script and style stand in it, and nothing else may run.

The policy names the hashes of that script and style. ``strict-dynamic`` lets the script add the files of the data, and
nobody else any; so even markup that found its way in would run nothing. Texts are set as text alone, which the policy
enforces where the browser knows trusted types.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from visualize.front import script, style


def render_page(title: str) -> str:
    """The HTML of the page. title: untrusted, like every text."""
    code, look = script("report"), style()
    return _template().render(
        title=title,
        script=Markup(code),
        style=Markup(look),
        script_hash=content_hash(code),
        style_hash=content_hash(look),
    )


def content_hash(text: str) -> str:
    """The hash of an inline script or style as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("visualize").joinpath("templates/report.html").read_text(encoding="utf-8"))
