"""Running a model with some of its modules' outputs changed, through nnsight, and leaving the model as it was.

nnsight gives every module of a model a ``forward`` of its own, and a state, for good; here both are taken away again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import nnsight
import torch
from torch import Tensor, nn

from grounding.errors import BadInput
from grounding.models.base import Batch, GroundingModel, Site
from grounding.models.layouts import first

_ADDED = ("forward", "__nnsight__")  # what nnsight puts on a module


@dataclass(frozen=True)
class Edit:
    """``change`` takes what the module at ``path`` gave, and returns what the model goes on with."""

    path: str
    change: Callable[[Any], Any]


class Live:
    """Context manager: inside it, ``run`` makes forward passes of ``model`` with edits; afterwards nothing is left."""

    def __init__(self, model: GroundingModel):
        self.model = model
        self._after = ExitStack()
        self._network: Any = None

    def __enter__(self) -> Live:
        self._after.callback(_put_back, [(module, _held(module)) for module in self.model.modules()])
        try:
            with warnings.catch_warnings():  # of modules called "output", which no edit needs
                warnings.filterwarnings("ignore", "Module '.*' has a submodule named", UserWarning)
                self._network = nnsight.NNsight(self.model)
        except BaseException:
            self._after.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._network = None
        self._after.close()

    def run(self, batch: Batch, edits: Sequence[Edit] = ()) -> Any:
        """The model's output for a batch on its device, with edits, which are in the order of computation.

        Raises BadInput for a module that does not exist, or that the pass did not reach (in that order).
        """
        for edit in edits:
            _module(self.model, edit.path)
        if not edits:
            with torch.inference_mode():
                return self.model(batch)
        try:
            with torch.inference_mode(), self._network.trace(batch):
                for edit in edits:
                    module = self._network.get(edit.path)
                    module.output = edit.change(module.output)
                output = nnsight.save(self._network.output)
        except nnsight.intervention.interleaver.OutOfOrderError as error:
            paths = ", ".join(edit.path for edit in edits)
            raise BadInput(f"modules {paths}: one forward pass did not reach them all in this order") from error
        return output


def edit_states(model: GroundingModel, site: Site, change: Callable[[Tensor], Tensor]) -> Edit:
    """An edit of a site's states, which ``change`` takes and gives as ``[passes, B, N, D]``.

    passes: a model that reads the caption once for every image has text states of each of those passes
    (``GroundingModel.showing``); image tokens are the same in all. Raises BadInput, during the pass, for a site whose
    states are not values of its module's output, but computed from them.
    """

    def changed(output: Any) -> Any:
        return with_states(model, site, output, change(states_of(model, site, output)))

    return Edit(site.module_path, changed)


def changeable(
    live: Live, batch: Batch, sites: Sequence[Site], edits: Callable[[Site], Sequence[Edit]], asked: bool
) -> list[Site]:
    """The sites at which ``edits`` can be made, found by one pass over a batch each.

    Raises BadInput at the first that cannot be changed where they were ``asked`` for, else where there is none.
    """
    found, reason = [], BadInput("there is no site to change")
    for site in sites:
        try:
            live.run(batch, edits(site))
        except BadInput as error:
            if asked:
                raise
            reason = error
        else:
            found.append(site)
    if not found:
        raise reason
    return found


def same_states(model: GroundingModel, site: Site) -> list[Edit]:
    """Puts a site's states back as they are; fails where they cannot be changed."""
    return [edit_states(model, site, lambda states: states)]


def states_of(model: GroundingModel, site: Site, output: Any) -> Tensor:
    """The states in what the module of a site gave: ``[passes, B, N, D]``."""
    shown = []
    for number in range(model.passes):
        with model.showing(number):
            shown.append(site.to_tokens(output))
    return torch.stack(shown)


def with_states(model: GroundingModel, site: Site, output: Any, states: Tensor) -> Any:
    """The output of a site's module with other states ``[passes, B, N, D]`` in it, all else as it was.

    Where they go is found by looking at numbers in the place of values, as the site looks at states.
    """
    values = first(output)
    numbers = torch.arange(1, values.numel() + 1, dtype=torch.float64, device=values.device).view_as(values)
    places = states_of(model, site, _replaced(output, numbers))  # 0 where a game has no such candidate
    before, there = states_of(model, site, output), places > 0
    flat = values.flatten().clone()
    if (places != places.round()).any() or not torch.equal(flat[places[there].long() - 1], before[there]):
        raise BadInput(
            f"site {site.name!r}: its states are computed from what {site.module_path!r} gives; they can be read, not "
            "changed"
        )
    flat[places[there].long() - 1] = states.to(flat)[there]
    return _replaced(output, flat.view_as(values))


def _replaced(output: Any, values: Tensor) -> Any:
    return (values, *output[1:]) if isinstance(output, tuple) else values


def _held(module: nn.Module) -> dict[str, Any]:
    return {name: vars(module)[name] for name in _ADDED if name in vars(module)}


def _put_back(held: Sequence[tuple[nn.Module, dict[str, Any]]]) -> None:
    for module, names in held:
        for name in _ADDED:
            vars(module).pop(name, None)
        vars(module).update(names)


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise BadInput(f"the model has no module {path!r}") from None
