"""YAML in which ``1e-3`` is a number, as in YAML 1.2 and JSON, and in which no key comes twice."""

from __future__ import annotations

import re
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from grounding.errors import BadInput


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where ``1e-3`` is a word, since a number needs a point and a signed exponent."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; PyYAML would keep the last of two values of a key, without a word."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} comes twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml(text: str) -> Any:
    """What a YAML or JSON text holds. Raises yaml.YAMLError.

    >>> load_yaml("{rate: 1e-3, name: 1e}")
    {'rate': 0.001, 'name': '1e'}
    """
    return yaml.load(text, _Loader)


def read_mapping(file: Path | Traversable, what: str, accepted: str) -> dict[str, Any]:
    """What a YAML or JSON file of keys and values holds.

    Raises BadInput, beginning with ``what``, for a file that cannot be read, is no YAML, or holds something else.
    """
    try:
        content = load_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{what} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{what} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{what} holds a {type(content).__name__}; accepted: {accepted}")
    return content
