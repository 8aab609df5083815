"""Named sets of fine-tuning settings: the study's for each benchmark and model, MDETR's pre-training, the miniature's.

The figures are those of the study's program (its configuration and its READMEs' commands), and of MDETR (arXiv
2104.12763, appendix A). Epochs, batches, rates and weights are theirs; how losses and annotations differ is another
matter (``losses``, ``budget``; docs/differences.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from grounding.errors import BadInput, unknown_choice
from grounding.finetune.settings import POSITION_GRID, FinetuneSettings
from grounding.values import check_kind
from grounding.yaml_text import read_mapping

_STUDY = {"size": "base", "schedule": "linear", "warmup": 0.01, "ema_decay": 0.9998, "precision": "fp16"}
_VILT = {
    **_STUDY,
    **{"model": "vilt-aligner", "tokenizer": "bert-base-uncased", "learning_rate": 1e-4, "weight_decay": 0.01},
    **{"clip": 0.0, "epochs": 100, "evaluate_every": 1000},
}
_MDETR = {
    **_STUDY,
    **{"model": "mdetr", "tokenizer": "roberta-base", "weight_decay": 1e-4, "beta2": 0.999, "auxiliary": False},
    **{"evaluate_every": 1000},
}
_MDETR_GAME = {
    **_MDETR,
    **{"learning_rate": 4.2e-6, "learning_rate_backbone": 4.2e-6, "learning_rate_text": 2.1e-5, "task_weight": 25.0},
    **{"clip": 0.0, "epochs": 200, "batch_size": 32},
}
_PRETRAINED = {"train_split": "pretrain", "task": False}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "touchdown-sdr-vilt-aligner": {**_VILT, "benchmark": "touchdown-sdr", "batch_size": 16, "task_weight": 1.0},
    "touchdown-sdr-mdetr": {
        **_MDETR,
        **{"benchmark": "touchdown-sdr", "learning_rate": 1.4e-4, "learning_rate_backbone": 1.4e-5},
        **{"learning_rate_text": 7e-5, "task_weight": 9.0, "clip": 0.1, "epochs": 100, "batch_size": 16},
    },
    "flickr30k-vilt-aligner": {
        **_VILT, "benchmark": "flickr30k", "batch_size": 32, "config": {"candidate_size": 384}
    },
    "flickr30k-mdetr": {**_MDETR_GAME, "benchmark": "flickr30k", "config": {"candidate_size": 384}},
    "kilogram-vilt-aligner": {
        **_VILT, "benchmark": "kilogram", "batch_size": 32, "benchmark_options": {"colour_order": "caption"}
    },
    "kilogram-mdetr": {**_MDETR_GAME, "benchmark": "kilogram", "benchmark_options": {"colour_order": "caption"}},
    "mdetr-pretraining": {
        **_MDETR,
        **{"benchmark": "coco-json", "task": False, "learning_rate": 1e-4, "learning_rate_backbone": 1e-5},
        **{"learning_rate_text": 5e-5, "auxiliary": True, "clip": 0.1, "epochs": 40, "batch_size": 64},
        **{"config": {"shorter_side": 800, "longer_side": 1333, "task_query": False}},
    },
    "mini-game-vilt-aligner": {
        **{"model": "vilt-aligner", "benchmark": "mini-game", "init": "vilt-aligner-pretrained", "batch_size": 16},
        **{"steps": 5000, "learning_rate": 1e-3},
    },
    "mini-game-mdetr": {
        **{"model": "mdetr", "benchmark": "mini-game", "init": "mdetr-pretrained", "batch_size": 32},
        **{"steps": 6000, "learning_rate": 3e-4, "evaluate_every": 250},
    },
    "mini-game-vilt-aligner-pretraining": {
        **_PRETRAINED,
        **{"model": "vilt-aligner", "benchmark": "mini-game", "benchmark_options": {"difficulty": "single"}},
        **{"config": {"position_grid": (4, 4)}, "batch_size": 64, "steps": 4500, "learning_rate": 1.2e-3},
    },
    "mini-game-mdetr-pretraining": {
        **_PRETRAINED,
        **{"model": "mdetr", "benchmark": "mini-game", "benchmark_options": {"difficulty": "single"}},
        **{"batch_size": 32, "steps": 13000, "learning_rate": 1.2e-3, "warmup": 400, "evaluate_every": 1000},
    },
}  # fmt: skip


def read_recipe(name: str) -> dict[str, Any]:
    """Settings of a recipe by name, or of a YAML or JSON file with fields of ``FinetuneSettings``.

    Raises BadInput for a name that is neither, and for a file that holds anything but fields.
    """
    if not isinstance(name, str):
        raise BadInput(f"recipe is {name!r}; accepted: a name or a file")
    if name in RECIPES:
        return dict(RECIPES[name])
    path = Path(name)
    if not path.is_file():
        raise unknown_choice("recipe", name, [*RECIPES, "a YAML or JSON file of settings"])
    return read_mapping(path, f"recipe {name!r}", "names and values of settings")


def laid_over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes laid over them; those that are mappings are changed key by key.

    A change of ``steps`` alone takes the place of ``epochs``, which would say how long.

    >>> laid_over({"steps": 5, "config": {"dim": 8, "heads": 2}}, {"config": {"dim": 16}})
    {'steps': 5, 'config': {'dim': 16, 'heads': 2}}
    >>> laid_over({"epochs": 9}, {"steps": 5})
    {'epochs': None, 'steps': 5}
    """
    if "steps" in changes and "epochs" in values:
        changes = {"epochs": None, **changes}
    both = [name for name in changes if isinstance(changes[name], Mapping) and isinstance(values.get(name), Mapping)]
    return {**values, **changes, **{name: {**values[name], **changes[name]} for name in both}}


def with_recipe(recipe: Mapping[str, Any], *changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings with changes laid over them, one after another.

    Where a change names an ``init``, that brings its own configuration: of the recipe's, ``position_grid`` alone stays.

    >>> with_recipe({"model": "mdetr", "config": {"candidate_size": 384}}, {"init": "mdetr.ckpt"})
    {'model': 'mdetr', 'config': {}, 'init': 'mdetr.ckpt'}
    """
    given: dict[str, Any] = {}
    for change in changes:
        given = laid_over(given, change)
    own = dict(recipe)
    if given.get("init") is not None and isinstance(config := own.get("config"), Mapping):
        own["config"] = {name: value for name, value in config.items() if name == POSITION_GRID}
    return laid_over(own, given)


def settings_from(values: Mapping[str, Any], where: str) -> FinetuneSettings:
    """Settings from plain values of a file. Raises BadInput, beginning with ``where``, naming a field and its value."""
    hints = get_type_hints(FinetuneSettings)
    for name, value in values.items():
        if name not in hints:
            raise unknown_choice(f"{where}: setting", name, hints)
        check_kind(f"{where}: setting {name!r}", value, hints[name])
    for name in ("model", "benchmark"):
        if name not in values:
            raise BadInput(f"{where}: setting {name!r} is missing")
    return FinetuneSettings(**values)
