"""YAML in which ``1e-3`` is a number, as in YAML 1.2 and JSON."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where ``1e-3`` is a word, since a number needs a point and a signed exponent."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml(text: str) -> Any:
    """What a YAML or JSON text holds. Raises yaml.YAMLError.

    >>> load_yaml("{rate: 1e-3, name: 1e}")
    {'rate': 0.001, 'name': '1e'}
    """
    return yaml.load(text, _Loader)
