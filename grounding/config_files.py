"""JSON files of checkpoints, and configurations from plain values, checked field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grounding.errors import BadInput, unknown_choice
from grounding.models import MODELS, ModelConfig, model_config
from grounding.values import like


def config_from_json(model: str, values: Mapping[str, Any], where: Path | str) -> ModelConfig:
    """A model's configuration from plain values. Raises BadInput naming an unknown field, or one of the wrong type."""
    return MODELS[model][0](**checked_fields(asdict(model_config(model, "base")), values, where))


def checked_fields(defaults: Mapping[str, Any], values: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """Fields that replace some ``defaults`` of a configuration, lists as tuples. Raises BadInput for others."""
    if not isinstance(values, Mapping):
        raise BadInput(f"{where}: config is {values!r}; accepted: an object with {', '.join(defaults)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key, value in given.items():
        if key not in defaults:
            raise unknown_choice(f"{where}: field", key, defaults)
        if not like(value, defaults[key]):
            raise BadInput(f"{where}: field {key!r} is {value!r}; accepted: a value like {defaults[key]!r}")
    return given


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises BadInput naming the file if it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds a {type(content).__name__}; accepted: a JSON object")
    return content
