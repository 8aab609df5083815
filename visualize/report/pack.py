"""How data reach a page that is opened from a file: classic scripts, since such a page can neither fetch nor import.

A chunk is a script ``probeReport.chunk("name", {…})``. Its text is plain ASCII without ``<``: no caption can end the
script, whatever it holds.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

LEVEL = 6  # of deflate: higher ones take twice the time for a hundredth less


def to_script_json(value: Any) -> str:
    """The value as JSON that is also JavaScript, safe inside and outside of HTML. Raises ValueError for NaN.

    >>> to_script_json("</script>")
    '"\\\\u003c/script>"'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def write_chunk(folder: Path, name: str, value: Any) -> int:
    """Write ``NAME.js`` into the folder and return its size in bytes."""
    text = f"probeReport.chunk({to_script_json(name)},{to_script_json(value)});\n"
    return (folder / f"{name}.js").write_text(text, encoding="ascii")


def packed(values: np.ndarray) -> str:
    """Bytes of an array (little endian), deflated (zlib) and in base64."""
    return base64.b64encode(deflated(values)).decode("ascii")


def deflated(values: np.ndarray) -> bytes:
    """Bytes of an array (little endian), deflated (zlib)."""
    return zlib.compress(np.ascontiguousarray(values).tobytes(), LEVEL)
