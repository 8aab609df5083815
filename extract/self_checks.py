"""The parity certificate of a model: checks that an adapter must pass before its activations mean anything.

Each check is generic over ``GroundingModel``: it knows sites, layouts and attention taps, and nothing of the model.
After nnterp's idea that an adapter proves itself at load; causality (a patched site changes the output) included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extract.capture import Capture
from grounding.errors import BadInput
from grounding.examples import Example, Phrase, ReferenceGame, Region, SpatialDescription
from grounding.models.attention import attention_weights
from grounding.models.base import Batch, GroundingModel, Site, TokenLayout

CAPTION = "a red disc and a small blue box"
LONGER = "a red disc and a small blue box left of the large green star, seen from far above"
TOLERANCE = 1e-3  # of the largest value: batches of another size are summed in another order


@dataclass(frozen=True)
class Check:
    """One line of the certificate.

    status: ``ok``, ``failed``, or ``known`` where the model itself says why it cannot pass. detail: what was measured.
    """

    name: str
    status: str
    detail: str


@dataclass
class _Seen:
    """A sink that keeps the states of every site, and what is wrong with the attention weights."""

    states_of: dict[str, Tensor] = field(default_factory=dict)
    row_error: dict[str, float] = field(default_factory=dict)

    def states(self, site: Site, states: Tensor) -> None:
        """Keep the states of a site."""
        self.states_of[site.name] = states.clone()

    def attention(self, site: Site, query: Tensor, key: Tensor, bias: Tensor | None) -> None:
        """Keep how far the rows of a site are from one; weight on a masked key counts, and what is no number."""
        weights = attention_weights(query, key, bias)
        error = (weights.sum(-1) - 1).abs().max()
        if bias is not None:
            error = error + (weights * bias.isneginf()).max()
        self.row_error[site.name] = float(error.nan_to_num(nan=torch.inf))


@dataclass(frozen=True)
class _Pass:
    batch: Batch
    output: Any
    seen: _Seen


@torch.inference_mode()
def run_self_checks(model: GroundingModel) -> list[Check]:
    """Every check on a few random examples, in the order of the certificate; the model is left as it was.

    Where the first check fails, a site that cannot be reached or has other tokens than it says, it is the only one:
    the others rely on it.
    """
    training = model.training
    model.eval()
    try:
        return _checks(model)
    finally:
        model.train(training)


def _checks(model: GroundingModel) -> list[Check]:
    examples = check_examples(model)
    try:
        game, wide, long, tall = (_forward(model, [example]) for example in examples)
        again, twins, texts, images = (
            _forward(model, [examples[i] for i in which]) for which in ((1,), (1, 1), (1, 2), (1, 3))
        )
    except BadInput as error:
        return [Check("shapes of every site", "failed", str(error))]
    everything = [game, wide, long, tall, texts, images]
    shapes = _shapes(model, everything)
    if shapes.status == "failed":
        return [shapes]
    padding = _same("image padding does not matter", model, images, [wide, tall])
    if padding.status == "failed" and model.image_padding:
        padding = replace(padding, status="known", detail=f"{padding.detail}: {model.image_padding}")
    return [
        shapes,
        _attention_rows(everything),
        _finite(everything),
        _repeatable(wide, again),
        _same("batched equals single", model, twins, [wide, wide]),
        _same("text padding does not matter", model, texts, [wide, long]),
        padding,
        _patching(model, game),
    ]


def check_examples(model: GroundingModel) -> list[Example]:
    """A game of two candidates; a single image, the same with a longer caption, and one of another size."""
    random = np.random.default_rng(0)
    side = model.preprocessor.multiple

    def pixels(rows: int, columns: int) -> np.ndarray:
        return random.integers(0, 256, (rows * side, columns * side, 3), dtype=np.uint8)

    phrases = (
        Phrase("disc", "disc", ((0, 10),), (Region((0.1, 0.2, 0.6, 0.7)),), 0),
        Phrase("box", "box", ((15, 31),), (Region((0.3, 0.1, 0.9, 0.4)),), 0),
    )
    point, image = SpatialDescription(target_xy=(0.7, 0.3)), pixels(2, 4)
    return [
        Example("game", "check", (pixels(2, 2), pixels(2, 2)), CAPTION, phrases, ReferenceGame(0)),
        Example("wide", "check", (image,), CAPTION, phrases, point),
        Example("long", "check", (image,), LONGER, phrases, point),
        Example("tall", "check", (pixels(5, 3),), CAPTION, phrases, point),
    ]


def _forward(model: GroundingModel, examples: Sequence[Example]) -> _Pass:
    batch, seen, sites = model.preprocess(examples).to(model.device), _Seen(), model.sites()
    with Capture(model, sites, seen, [site for site in sites if site.attention_path]):
        output = model(batch)
    return _Pass(batch, output, seen)


def _check(name: str, passed: bool, detail: str) -> Check:
    return Check(name, "ok" if passed else "failed", detail)


def _shapes(model: GroundingModel, passes: Sequence[_Pass]) -> Check:
    """States are ``[B, N, width]``; every stream of a site has its tokens, as many as the batch says."""
    wrong = []
    for done in passes:
        batch = done.batch
        expected = {"text": batch.input_ids.shape[1], "image": batch.grid[0] * batch.grid[1]}
        for site in model.sites():
            shape, layout = tuple(done.seen.states_of[site.name].shape), site.layout(batch)
            if len(shape) != 3 or shape[0] != len(batch) or shape[2] != site.width:
                wrong.append(f"{site.name} is {list(shape)}")
                continue
            for stream in site.streams:
                place = getattr(layout, stream)
                size = 0 if place is None else len(range(*place.indices(shape[1])))
                if size != expected.get(stream, size) or not size:
                    wrong.append(f"{site.name} has {size} {stream} tokens")
    return _check("shapes of every site", not wrong, "; ".join(wrong[:3]) or f"{len(model.sites())} sites")


def _attention_rows(passes: Sequence[_Pass]) -> Check:
    errors = [(error, name) for done in passes for name, error in done.seen.row_error.items()]
    if not errors:
        return _check("attention rows sum to one", True, "no site has attention weights")
    worst, site = max(errors)
    return _check(
        "attention rows sum to one", worst < 1e-4, f"largest error {worst:.1e}, at {site}; masked keys have 0"
    )


def _finite(passes: Sequence[_Pass]) -> Check:
    bad = {name for done in passes for name, value in _tensors(done.output) if not value.isfinite().all()}
    bad |= {name for done in passes for name, states in done.seen.states_of.items() if not states.isfinite().all()}
    detail = f"not finite: {', '.join(sorted(bad))}" if bad else "all are"
    return _check("states and outputs are finite", not bad, detail)


def _repeatable(first: _Pass, second: _Pass) -> Check:
    other = dict(_tensors(second.output))
    changed = [name for name, value in _tensors(first.output) if not torch.equal(value, other[name])]
    states = second.seen.states_of
    changed += [name for name, value in first.seen.states_of.items() if not torch.equal(value, states[name])]
    detail = f"changed: {', '.join(changed[:3])}" if changed else "to the last bit"
    return _check("two forwards are equal", not changed, detail)


def _same(name: str, model: GroundingModel, together: _Pass, alone: Sequence[_Pass]) -> Check:
    """States of real tokens at every site, example by example, against those of the example by itself."""
    worst, first = 0.0, ""
    for site in model.sites():
        for row, single in enumerate(alone):
            expected = _real_states(site, single, 0, single.batch)
            found = _real_states(site, together, row, single.batch)
            error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
            worst = max(worst, error if error == error else float("inf"))
            if worst > TOLERANCE and not first:
                first = f", from {site.name} on"
    return _check(name, not first, f"largest difference {worst:.1e} of a site's largest value{first}")


def _real_states(site: Site, done: _Pass, row: int, own: Batch) -> Tensor:
    """States of an example's real tokens ``[n, D]``; ``own`` is the batch of the example alone."""
    states, layout = done.seen.states_of[site.name][row], site.layout(done.batch)
    parts: dict[str, Callable[[Tensor], Tensor]] = {
        "text": lambda tokens: tokens[: own.input_ids.shape[1]][own.text_mask[0]],
        "image": lambda cells: cells.unflatten(0, done.batch.grid)[: own.grid[0], : own.grid[1]].flatten(0, 1),
        "query": lambda queries: queries,
    }
    return torch.cat([parts[stream](_part(states, layout, stream)) for stream in site.streams])


def _part(states: Tensor, layout: TokenLayout, stream: str) -> Tensor:
    return states[getattr(layout, stream) or slice(0, 0)]


def _patching(model: GroundingModel, clean: _Pass) -> Check:
    """Noise as large as its states, added to what a site's module gives, must reach the output."""
    idle = []
    before = dict(_tensors(clean.output))
    for site in model.sites():
        size = clean.seen.states_of[site.name].std().clamp(min=1e-3)
        handle = model.get_submodule(site.module_path).register_forward_hook(_noise(float(size)))
        try:
            after = model(clean.batch)
        finally:
            handle.remove()
        if not any((value - before[name]).abs().max() > 1e-6 for name, value in _tensors(after) if value.numel()):
            idle.append(site.name)
    name = "patching every site changes the output"
    return _check(name, not idle, f"no effect: {', '.join(idle)}" if idle else f"{len(model.sites())} sites")


def _noise(size: float) -> Callable[..., Any]:
    def add(module: Any, inputs: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(states.shape, generator=generator).to(states)
        return (states + size * noise, *output[1:]) if isinstance(output, tuple) else states + size * noise

    return add


def _tensors(output: Any) -> list[tuple[str, Tensor]]:
    """The real-valued tensors of an output, by name."""
    return [(n, v) for n, v in vars(output).items() if isinstance(v, Tensor) and v.is_floating_point()]
