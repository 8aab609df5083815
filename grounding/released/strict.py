"""Weights into a model, strictly: a name that is not loaded, ignored or missing for a reason is an error."""

from __future__ import annotations

import gc
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers.initialization import no_init_weights

from grounding.errors import BadInput
from grounding.models import GroundingModel, ModelConfig, build_model
from grounding.models.text import CaptionTokenizer
from grounding.models.vilt_aligner import AlignerHead

POSITIONS = "position_ids"
FIRST_ROWS = {  # tables whose first rows mean the same whatever follows them
    "text_embeddings.position_embeddings.weight": "positions that no caption of max_text tokens reaches",
    "token_type_embeddings.weight": "types of a second image; text and image have the first two rows",
}
FRESH = "not in the file: random values of seed 0; fine-tune before reading heatmaps or answers"
COPIED = "not in the file: a copy of the box head, as the study began with; fine-tune before reading answers"


@dataclass(frozen=True)
class Weights:
    """Tensors of a file under our names. renamed: our name -> the file's; ignored: the file's name -> the reason.

    complete: the file is one of ours, and must have the heads for the study's task, which other models' lack, and so
    does an MDETR of ours that was trained without the query.
    """

    tensors: Mapping[str, Tensor]
    renamed: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False


@dataclass(frozen=True)
class LoadReport:
    """What became of every weight.

    loaded: names in the model that hold the file's values. renamed: those of them that the file calls otherwise, with
    its name. ignored: what the file has and the model does not need, with the reason. missing: what the model has and
    the file does not, with what it holds instead.
    """

    loaded: tuple[str, ...]
    renamed: Mapping[str, str]
    ignored: Mapping[str, str]
    missing: Mapping[str, str]


def load_strictly(
    config: ModelConfig, weights: Weights, tokenizer: CaptionTokenizer | None, path: Path | str
) -> tuple[GroundingModel, LoadReport]:
    """A model of that configuration, in eval mode on the CPU, that holds the weights, and the report.

    path: names the file in errors. tokenizer: None for a model that will not read captions. Weights become fp32; those
    that are fp32 in a mapped file stay mapped, privately, so that memory stays near the file: it may be replaced or
    deleted while the model is in use, but not be written into. Raises BadInput for values that are not finite, and as
    ``reconcile`` does.
    """
    with without_values():
        model = build_model(config, tokenizer)
    own = model.state_dict()
    values, report = reconcile(config, own, weights, path)
    held: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in values.items():  # weights that share memory in the file shall not be tied in the model
        held[name] = tensor.to(own[name].dtype, copy=tensor.untyped_storage().data_ptr() in places)
        places.add(tensor.untyped_storage().data_ptr())
    _require_finite(held, path)
    numbers = {name: tensor for name, tensor in own.items() if name.endswith(POSITIONS)}
    model.load_state_dict({**numbers, **held}, assign=True)
    return model.eval(), report


def reconcile(
    config: ModelConfig, own: Mapping[str, Tensor], weights: Weights, path: Path | str
) -> tuple[dict[str, Tensor], LoadReport]:
    """The value of every weight of a model's state dict ``own``, and the report; no value but position numbers is read.

    Raises BadInput that names the first names without a reason, shapes that differ, and weights that are no numbers
    with a fraction.
    """
    wanted = {name: tensor for name, tensor in own.items() if not name.endswith(POSITIONS)}
    given = {name: tensor for name, tensor in weights.tensors.items() if not name.endswith(POSITIONS)}
    ignored = {**weights.ignored, **_position_numbers(weights, path), **_cut(wanted, given)}
    missing = {} if weights.complete else _heads(config, wanted, given)
    _require_fit(wanted, given, missing, path)
    report = LoadReport(
        tuple(name for name in wanted if name in given),
        {name: weights.renamed[name] for name in wanted if name in weights.renamed},
        ignored,
        {name: missing[name][1] for name in wanted if name not in given},
    )
    return {name: given[name] if name in given else missing[name][0] for name in wanted}, report


@contextmanager
def without_values() -> Iterator[None]:
    """Inside it, modules are made with parameters that have a shape and no memory, and nothing is initialised.

    Buffers are real, and so are batch norms, with any values: freezing one copies them. Python's garbage collector is
    off: nothing becomes garbage here, and it would go through everything that is imported (0.2 s beside 0.1 s).
    """

    def empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or isinstance(module, nn.modules.batchnorm._BatchNorm):
            return parameter
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    collecting = gc.isenabled()
    gc.disable()
    handle = register_module_parameter_registration_hook(empty)  # type: ignore[arg-type]
    try:
        with no_init_weights():
            yield
    finally:
        handle.remove()
        if collecting:
            gc.enable()


def _heads(config: Any, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
    """Heads for the study's task, the same ones every time, where the file has nothing of them: (weight, reason)."""
    heads = [name for name in wanted if name.startswith("sdr_")]
    if any(name.startswith("sdr_") for name in given):
        return {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if config.model == "vilt-aligner":
            head = AlignerHead(config.width).state_dict()
            return {name: (head[name.removeprefix("sdr_head.")], FRESH) for name in heads}
        query = torch.randn(1, config.width)
    boxes = {name: name.replace("sdr_head.", "mdetr.bbox_embed.") for name in heads}
    copied = {name: (given[box], COPIED) for name, box in boxes.items() if box in given}
    return {**copied, "sdr_embed.weight": (query, FRESH)}


def _position_numbers(weights: Weights, path: Path | str) -> dict[str, str]:
    """The buffers 0, 1, 2, ... that some versions of transformers store; the model makes its own."""
    ignored = {}
    for name, tensor in weights.tensors.items():
        if name.endswith(POSITIONS):
            if not torch.equal(tensor.flatten(), torch.arange(tensor.numel())):
                raise BadInput(f"{path}: {name} is not 0, 1, 2, ...: positions in another order cannot be used")
            ignored[weights.renamed.get(name, name)] = "the numbers 0, 1, 2, ..., which the model makes itself"
    return ignored


def _cut(wanted: Mapping[str, Tensor], given: dict[str, Tensor]) -> dict[str, str]:
    """Shorten tables to the rows that the model has, where that is exact; says what went."""
    ignored = {}
    for name, reason in FIRST_ROWS.items():
        if name in wanted and name in given:
            rows, table = len(wanted[name]), given[name]
            if table.shape[1:] == wanted[name].shape[1:] and rows < len(table):
                given[name] = table[:rows]
                ignored[f"{name}[{rows}:{len(table)}]"] = reason
    return ignored


def _require_fit(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], missing: Container[str], path: Path | str
) -> None:
    problems = [f"missing {name}" for name in wanted if name not in given and name not in missing]
    problems += [f"unexpected {name}" for name in given if name not in wanted]
    both = [name for name in wanted if name in given]
    problems += [
        f"{name} is {list(given[name].shape)}, not {list(wanted[name].shape)}"
        for name in both
        if given[name].shape != wanted[name].shape
    ]
    problems += [f"{name} is of type {given[name].dtype}" for name in both if not given[name].dtype.is_floating_point]
    _raise(problems, path)


def _require_finite(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    # A sum is one pass without a mask in memory; only where it overflows or is not a number is each value looked at.
    _raise([f"{n} has non-finite values" for n, t in tensors.items() if not t.sum().isfinite() and _bad(t)], path)


def _bad(tensor: Tensor) -> bool:
    return not tensor.isfinite().all()


def _raise(problems: list[str], path: Path | str) -> None:
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise BadInput(f"{path} does not fit its configuration: {'; '.join(problems[:3])}{more}")
