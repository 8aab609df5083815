"""The options of a cell's steps, checked before anything is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any, get_type_hints

from extract.collect import VIEWS
from extract.from_checkpoint import prepare_checkpoint
from extract.shards import Options
from extract.shards import Settings as ExtractSettings
from grounding.benchmarks import benchmark_class
from grounding.errors import BadInput, unknown_choice
from grounding.evaluate_checkpoint import check_measuring, evaluate_checkpoint
from grounding.values import check_counts, check_kind
from probe.interventions.intervene import check_options, intervene
from probe.questions import QUESTIONS
from probe.settings import SweepSettings
from probe.sweep_config import ACCEPTED, checked

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "evaluate": evaluate_checkpoint,
    "extract": prepare_checkpoint,
    "intervene": intervene,
}
OPTIONAL = ("extract", "intervene")  # steps that null leaves out
# What the study itself says to a step, or has no use for.
_OURS = (
    *("ckpt", "benchmark", "root", "options", "data_seed", "skip_bad", "device", "run", "runs", "out", "progress"),
    *("export", "train_root", "add", "command", "seed", "seeds"),
)


def check_steps(steps: Mapping[str, Any], benchmarks: Iterable[str]) -> None:
    """Check ``evaluate``, ``extract``, ``sweep`` and ``intervene`` of a study (None: no such step, if ``OPTIONAL``).

    benchmarks: of its cells. Raises BadInput naming step and option: unknown ones, and splits, views, questions and the
    like that there are not, and values of other kinds.
    """
    for name, options in steps.items():
        if options is None and name in OPTIONAL:
            continue
        if not isinstance(options, Mapping):
            raise BadInput(f"study: {name} is {options!r}; accepted: its options as keys and values")
        for option in options:
            if option in ("seed", "seeds"):
                raise BadInput(f"study: {name}: {option} is that of the cell; accepted: without it")
            if option not in _accepted(name):
                raise unknown_choice(f"study: {name}: option", option, _accepted(name))
        _check_values(name, options)
        for asked, benchmark in product(("split", "tune_split"), benchmarks):
            split = options.get(asked)
            if split is not None and split not in (splits := benchmark_class(benchmark).splits):
                raise unknown_choice(f"study: {name}: {asked}", split, splits)
    with _of_step("evaluate"):
        named = ("threshold", "tune_split", "metrics", "batch_size")
        check_measuring(**{name: value for name, value in steps["evaluate"].items() if name in named})
    _check_extract(steps["extract"] or {})
    _check_sweep(steps["sweep"])
    if steps["intervene"] is not None:
        _check_intervene(steps["intervene"])


def _accepted(step: str) -> list[str]:
    if step == "sweep":
        return [name for name in ACCEPTED if name not in _OURS]
    parameters = inspect.signature(FUNCTIONS[step]).parameters.values()
    names = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    if step == "extract":
        names += ExtractSettings.__annotations__
    return [name for name in names if name not in _OURS]


def _check_values(step: str, options: Mapping[str, Any]) -> None:
    hints = {} if step == "sweep" else get_type_hints(FUNCTIONS[step])
    hints |= get_type_hints(ExtractSettings) if step == "extract" else {}
    for option in (option for option in options if option in hints):
        check_kind(f"study: {step}: {option}", options[option], hints[option])
    with _of_step(step):
        check_counts(limit=options.get("limit"))


def _check_intervene(options: Mapping[str, Any]) -> None:
    method = options.get("method", "erase")
    run = "of the cell" if method == "erase" else None
    given: dict[str, Any] = {name: options.get(name) for name in ("concepts", "pairs", "groups")}
    given |= {name: options[name] for name in ("eraser", "draws", "batch_size") if name in options}
    with _of_step("intervene"):
        check_measuring(options.get("threshold"))
        check_options(method, run=run, **given)


@contextmanager
def _of_step(step: str) -> Iterator[None]:
    """Say of which step a value is."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"study: {step}: {error}") from None


def _check_extract(options: Mapping[str, Any]) -> None:
    for view in options.get("views") or ():
        if view not in VIEWS:
            raise unknown_choice("study: extract: view", view, VIEWS)
    Options(**{name: value for name, value in options.items() if name in ExtractSettings.__annotations__})


def _check_sweep(options: Mapping[str, Any]) -> None:
    values = {name: value if value == [] else checked("study: sweep", name, value) for name, value in options.items()}
    for question in values.get("questions", ()):
        if question not in QUESTIONS:
            raise unknown_choice("study: sweep: question", question, QUESTIONS)
    if values.get("controls") == ["all"]:
        del values["controls"]
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    SweepSettings(**fields)
