"""What a study is made of, checked before anything runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from grounding.errors import BadInput, unknown_choice
from grounding.finetune.recipes import read_recipe, settings_from, with_recipe
from grounding.finetune.settings import FinetuneSettings
from grounding.yaml_text import read_mapping
from probe.study.steps import check_steps

_NAME = r"\w[\w.+-]*"
_OF_CELLS = ("seed", "grounding", "grounding_fraction")


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a study. name: of its folder."""

    model: str
    initialisation: str
    fraction: float
    seed: int
    settings: FinetuneSettings

    @property
    def start(self) -> str:
        """Model and initialisation, as ``StudyConfig.resolved`` names them."""
        return f"{self.model}, {self.initialisation}"

    @property
    def name(self) -> str:
        """The folder of its files.

        >>> Cell("mdetr", "pretrained", 0.1, 2, FinetuneSettings("mdetr", "mini-game")).name
        'mdetr-pretrained-0.1-2'
        """
        return f"{self.model}-{self.initialisation}-{self.fraction:g}-{self.seed}"


@dataclass(frozen=True)
class StudyConfig:
    """A study as its YAML file says it.

    models: by name, settings of ``probe finetune``, and ``recipe`` for those of a recipe. initialisations: by name,
    settings that differ between them (``init: null`` is from scratch). fractions: of the annotation; 0 is the task
    alone. settings: for all cells. evaluate, extract, sweep, intervene: options of these functions; without ``extract``
    (null) no probes, and without ``intervene`` no interventions. Interventions that erase fit on the cell's own run.
    """

    models: Mapping[str, Mapping[str, Any]]
    fractions: Sequence[float]
    seeds: Sequence[int]
    initialisations: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"given": {}})
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    extract: Mapping[str, Any] | None = field(default_factory=dict)
    sweep: Mapping[str, Any] = field(default_factory=dict)
    intervene: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("models", "fractions", "seeds", "initialisations"):
            if not getattr(self, name):
                raise BadInput(f"study: {name} is empty; accepted: one or more")
        for name, kinds, accepted in (("fractions", (int, float), "numbers"), ("seeds", (int,), "whole numbers")):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not all(type(value) in kinds for value in values):
                raise BadInput(f"study: {name} is {values!r}; accepted: a list of {accepted}")
            if len(set(values)) < len(values):
                raise BadInput(f"study: {name} {list(values)} has one twice")
        self._check_settings()
        cells = self.cells()
        steps = {name: getattr(self, name) for name in ("evaluate", "extract", "sweep", "intervene")}
        check_steps(steps, sorted({cell.settings.benchmark for cell in cells}))
        if self.intervene is not None and self.extract is None and self.intervene.get("method", "erase") == "erase":
            raise BadInput("study: intervene needs a run to fit erasers on, but extract is null; accepted: both")
        for name, count in Counter(cell.name for cell in cells).items():
            if count > 1:
                raise BadInput(
                    f"study: {count} cells have the name {name!r}; accepted: names of models and initialisations, and "
                    "fractions to six digits, that tell them apart"
                )

    def _check_settings(self) -> None:
        """Models, initialisations and settings are mappings, the first two of mappings by names fit for folders."""
        for name in ("models", "initialisations", "settings"):
            values = getattr(self, name)
            if not isinstance(values, Mapping):
                raise BadInput(f"study: {name} is {values!r}; accepted: keys and values")
            for key, value in values.items() if name != "settings" else ():
                if not re.fullmatch(_NAME, str(key)):
                    raise BadInput(
                        f"study: {name}: {key!r} names folders; accepted: letters, digits, '_', '-', '.', '+'"
                    )
                if not isinstance(value, Mapping):
                    raise BadInput(f"study: {name}: {key} is {value!r}; accepted: settings of probe finetune, or {{}}")

    def cells(self) -> list[Cell]:
        """All runs, seeds outermost: a study that is stopped has whole curves. Raises BadInput for bad settings."""
        return [
            Cell(model, initialisation, fraction, seed, self._settings(model, initialisation, fraction, seed))
            for seed in self.seeds
            for model in self.models
            for initialisation in self.initialisations
            for fraction in self.fractions
        ]

    def _settings(self, model: str, initialisation: str, fraction: float, seed: int) -> FinetuneSettings:
        own = dict(self.models[model])
        recipe = read_recipe(own.pop("recipe")) if "recipe" in own else {}
        layers = own, self.initialisations[initialisation], self.settings
        for layer in layers:
            if "steps" in layer and layer.get("epochs") is not None:
                raise BadInput(
                    f"study: steps {layer['steps']!r} beside epochs {layer['epochs']!r}; accepted: one of them"
                )
        values = with_recipe(recipe, *layers)
        for name in _OF_CELLS:
            if name in values:
                raise BadInput(
                    f"study: setting {name!r} of model {model!r} is what the study varies; accepted: without it"
                )
        values |= {"seed": seed, "grounding": fraction > 0, "grounding_fraction": fraction or 1.0}
        return settings_from(values, f"study, model {model!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they are stored beside the results."""
        return asdict(self)

    def resolved(self) -> dict[str, dict[str, Any]]:
        """What every model is fine-tuned with from every initialisation, recipes read, but for what the cells vary."""
        return {
            cell.start: {k: v for k, v in asdict(cell.settings).items() if k not in _OF_CELLS} for cell in self.cells()
        }


def read_study(source: str | Path) -> StudyConfig:
    """A study from a YAML file, or one that comes with the package by name (``miniature``, ``kilogram``, ...).

    Raises BadInput for what cannot be read, naming keys and what is accepted.
    """
    path = Path(source)
    shipped = {item.name.removesuffix(".yaml"): item for item in files("probe.study").joinpath("configs").iterdir()}
    if not path.is_file() and str(source) not in shipped:
        raise unknown_choice("study", str(source), [*sorted(shipped), "a YAML file"])
    content = read_mapping(
        path if path.is_file() else shipped[str(source)], f"study {str(source)!r}", "keys and values"
    )
    names = [item.name for item in fields(StudyConfig)]
    for name in content:
        if name not in names:
            raise unknown_choice(f"study {str(source)!r}: key", name, names)
    for name in ("models", "fractions", "seeds"):
        if name not in content:
            raise BadInput(f"study {str(source)!r}: key {name!r} is missing")
    return StudyConfig(**content)
