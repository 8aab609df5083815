"""The model that a run starts from: a checkpoint's, or a fresh one of a named size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from grounding.checkpoint import load_checkpoint
from grounding.config_files import checked_fields
from grounding.errors import BadInput
from grounding.finetune.settings import POSITION_GRID, FinetuneSettings, stored_settings
from grounding.models import GroundingModel, ModelConfig, build_fresh, build_model, model_config
from grounding.models.mdetr import Mdetr
from grounding.models.text import CaptionTokenizer, load_tokenizer, train_tokenizer
from grounding.models.vilt_aligner import ViltAligner


def starting_model(settings: FinetuneSettings) -> Callable[[Sequence[str]], GroundingModel]:
    """What makes the model, given the captions of the training split; only a tokenizer to be trained reads them.

    Whatever is wrong with model, size, config, init or tokenizer raises BadInput here, before examples are read.
    """
    if settings.init is not None:
        model = _from_checkpoint(settings.init, settings)
        return lambda captions: model
    config: Any = changed_config(model_config(settings.model, settings.size), settings.config)
    named = None if settings.tokenizer is None else load_tokenizer(settings.tokenizer, config.max_text)
    least = 0 if named is None else config.vocabulary
    with torch.device("meta"):  # some of what is wrong shows only when the model is built: here, without its memory
        tokenizer = named or train_tokenizer(["caption"], config.max_text)
        build_model(_fitted(config, tokenizer, least), tokenizer)

    def made(captions: Sequence[str]) -> GroundingModel:
        tokenizer = named or train_tokenizer(captions, config.max_text)
        return build_fresh(_fitted(config, tokenizer, least), tokenizer)

    return made


def changed_config(base: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """A configuration with some fields changed. Raises BadInput naming a field and what it accepts."""
    own = asdict(base)
    given = checked_fields(own, changes, "config")
    for name, value in given.items():
        if type(value) is int and value < 1 <= own[name]:
            raise BadInput(f"config: field {name!r} is {value}, too small; accepted: 1 or more")
    return replace(base, **given)


def _from_checkpoint(source: str, settings: FinetuneSettings) -> GroundingModel:
    checkpoint = load_checkpoint(source, model=settings.model, tokenizer=settings.tokenizer)
    model = checkpoint.model
    if settings.task and asdict(model.config).get("task_query") is False:
        raise BadInput(
            f"init {source!r} has no query for the task; accepted: grounding alone (--no-task), or what "
            f"`probe convert {source} NEW --config task_query=true` makes of it"
        )
    if settings.task and _never_learned_the_task(checkpoint.info):
        model.begin_task()
    if isinstance(model, Mdetr):
        model.mdetr.backbone[0].freeze_stem()  # type: ignore[operator]
    if settings.config:
        if not isinstance(model, ViltAligner):
            raise BadInput(
                f"config {POSITION_GRID}: init {source!r} is of {settings.model!r}, which has no such field; "
                "accepted: no config with this init"
            )
        wanted: Any = changed_config(model.config, settings.config)
        model = model.with_position_grid(*wanted.position_grid)
    return model.train()


def _never_learned_the_task(info: Mapping[str, Any]) -> bool:
    """Whether a checkpoint says of itself that it was trained on grounding alone."""
    return stored_settings(info).get("task") is False


def _fitted(config: ModelConfig, tokenizer: CaptionTokenizer, vocabulary: int = 0) -> ModelConfig:
    """With an embedding for every token of the tokenizer, and no fewer than ``vocabulary``."""
    fitted = {"vocabulary": max(tokenizer.vocabulary_size, vocabulary)}
    if "pad_id" in asdict(config):
        fitted["pad_id"] = tokenizer.pad_id
    return replace(config, **fitted)
