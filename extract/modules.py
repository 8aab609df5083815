"""Sites out of module paths: what their tokens mean is found by running the model, or told, and never guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from extract.collect import TOKENS, offered_views
from extract.module_layouts import (
    GUESSES,
    Reading,
    Rows,
    Unfit,
    all_tokens,
    in_parts,
    like_site,
    parse_parts,
    without_channels,
)
from extract.module_patterns import ModulePattern
from grounding.errors import BadInput
from grounding.examples import Example
from grounding.models.base import Batch, GroundingModel, Site, TokenLayout


def add_modules(
    model: GroundingModel,
    modules: Sequence[str],
    examples: Sequence[Example],
    sites: Sequence[str] | None = None,
    there: Mapping[str, Any] | None = None,
) -> Sequence[str] | None:
    """Give a model sites for ``modules`` and for those of the run whose manifest is ``there``.

    Returns the names of ``sites`` and of what ``modules`` match. Raises BadInput as ``module_sites`` does.
    """
    held = [module for part in (there or {"parts": []})["parts"] for module in part.get("modules", ())]
    every = list(dict.fromkeys([*held, *modules]))
    found = module_sites(model, every, examples) if every else {}
    model.added_sites = tuple(site for matches in found.values() for site in matches)
    if not modules:
        return sites
    return [*(sites or ()), *(site.name for module in dict.fromkeys(modules) for site in found[module])]


def require_views(sites: Sequence[Site], kept: Mapping[str, Sequence[str]]) -> None:
    """Raise BadInput for a module of which nothing would be kept. kept: site -> views."""
    for site in sites:
        if not kept.get(site.name, (TOKENS,)):
            offered = ", ".join(offered_views(site))
            raise BadInput(f"module {site.name!r} offers none of the views asked for; accepted: {offered}")


def module_sites(model: GroundingModel, modules: Sequence[str], examples: Sequence[Example]) -> dict[str, list[Site]]:
    """Of each module pattern a site for every match, named by its path. stage: the pattern; layer: its place in it.

    modules: ``PATH``, ``PATH[0]``, ``PATH=MEANING`` (``ModulePattern``). MEANING is the name of a site to be laid out
    like, parts such as ``1+image`` or ``text+image`` in their order, or ``tokens``. Without it a meaning is inferred
    where exactly one fits the output in every one of a few passes: that of a known site whose module gives the same
    shape but for channels, ``text`` or ``image``. Raises BadInput, in one line, for whatever is not certain.
    """
    root = getattr(model, "network", None)
    root, prefix = (root, "network.") if isinstance(root, nn.Module) else (model, "")
    known = {site.name for site in model.sites()}
    targets: dict[str, _Target] = {}
    for given in modules:
        pattern = ModulePattern.parse(given)
        for layer, path in enumerate(pattern.find(root)):
            target = _Target(given, path + pattern.picked, prefix + path, pattern, layer)
            target.readings = list(_readings(model, pattern))
            if target.name in targets:
                raise BadInput(f"--module {given!r} names {target.name!r}, as {targets[target.name].given!r} does")
            if target.name in known:
                raise BadInput(f"--module {given!r} names {target.name!r}, which is a site already; use --sites")
            targets[target.name] = target
    for chunk in _trials(examples):
        _try(model, chunk, list(targets.values()))
    found = [target.site() for target in targets.values()]
    sites: dict[str, list[Site]] = {given: [] for given in modules}
    for target, site in zip(targets.values(), found, strict=True):
        sites[target.given].append(_with_partners(site, [*model.sites(), *found]))
    return sites


@dataclass
class _Target:
    """A module that matched, and the readings that still fit it.

    seen: signatures of each reading, one a pass. shape: of the latest output; told: of the pass that left no reading.
    """

    given: str
    name: str
    path: str
    pattern: ModulePattern
    layer: int
    readings: list[Reading] = field(default_factory=list)
    seen: dict[int, list[str]] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    width: int = 0
    told: str = ""

    @property
    def what(self) -> str:
        """For errors."""
        return f"module {self.name!r}"

    def site(self) -> Site:
        """Its site. Raises BadInput unless exactly one reading fits."""
        groups: dict[str, Reading] = {}
        for number, signatures in self.seen.items():
            groups.setdefault(repr(signatures), self.readings[number])
        if len(groups) != 1:
            raise BadInput(self._uncertain([reading.name for reading in groups.values()]))
        reading = next(iter(groups.values()))
        like = reading.like
        return Site(
            self.name,
            self.path,
            self.pattern.path.removesuffix(".*") + self.pattern.picked,
            self.layer,
            reading.streams,
            self.width,
            self._named(reading.layout),
            self._named(lambda output: reading.to_tokens(self.pattern.select(output, self.what))),
            phrase_partner=like.phrase_partner if like else None,
            region_partner=like.region_partner if like else None,
        )

    def _named(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def named(given: Any) -> Any:
            try:
                return function(given)
            except Unfit as error:
                raise BadInput(
                    f"{self.what} is not {self.pattern.meaning or 'as it was'} in this batch: {error}"
                ) from None

        return named

    def _uncertain(self, fits: Sequence[str]) -> str:
        if self.pattern.meaning is not None:
            if fits:
                return f"{self.what} gives {list(self.shape)}, which is {self.pattern.meaning!r} in two ways"
            return f"{self.what} gives {self.told}, which is not {self.pattern.meaning!r}"
        if fits:
            options = " or ".join(f"={name}" for name in (*fits, TOKENS))
            return f"{self.what} gives {list(self.shape)}, which may mean several things; add {options} to its --module"
        return (
            f"{self.what} gives {self.told}: what its tokens mean is unknown; add it to its --module: =SITE (laid out "
            "like a site), =1+image, =text+image, ... (parts in their order) or =tokens (no meaning)"
        )


def _readings(model: GroundingModel, pattern: ModulePattern) -> Iterator[Reading]:
    """What the output of a module may be: what was said, or else what is known."""
    sites, meaning = {site.name: site for site in model.sites()}, pattern.meaning
    if meaning in sites:
        yield like_site(sites[meaning])
        return
    parts = [parse_parts(meaning)] if meaning is not None else [("text",), ("image",)]
    if meaning is None:
        yield from map(like_site, sites.values())
    for tokens_first in (False, True):
        if meaning == TOKENS:
            yield all_tokens(model, tokens_first)
            continue
        for part in parts:
            if part is None:
                accepted = "tokens; text, image and numbers of other tokens, joined by + in their order; a site"
                names = f" ({', '.join(sites)})" if sites else ""
                raise BadInput(
                    f"--module {pattern.path!r}: meaning {meaning!r} is unknown; accepted: {accepted}{names}"
                )
            yield in_parts(model, part, tokens_first)


def _trials(examples: Sequence[Example]) -> list[list[Example]]:
    """Batches that tell lengths apart: the shortest caption, the longest, and two examples of equally many images."""
    order = sorted(range(len(examples)), key=lambda place: (len(examples[place].caption), place))
    together = [example for example in examples[:2] if len(example.images) == len(examples[0].images)]
    return [[examples[order[0]]], [examples[order[-1]]], together]


@torch.inference_mode()
def _try(model: GroundingModel, examples: Sequence[Example], targets: Sequence[_Target]) -> None:
    """Run the model once, and keep of every module the readings that fit."""
    batch, skipped = model.prepare_readable(examples)
    if batch is None:
        raise BadInput(f"the modules cannot be tried: {skipped[0].reason}")
    batch = batch.to(model.device)
    sites = {site.name: site.module_path for site in model.sites()}
    with _watched(model, {*sites.values(), *(target.path for target in targets)}) as outputs:
        try:
            model(batch)
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadInput(f"the model cannot run on what its preprocessing makes: {reason}") from error
    shapes = {}
    for name, path in sites.items():
        states = outputs[path][0] if outputs[path] else None
        states = states[0] if isinstance(states, tuple) else states
        shapes[name] = without_channels(states.shape) if isinstance(states, Tensor) else ()
    for target in targets:
        if len(outputs[target.path]) != 1:
            kind = type(model.get_submodule(target.path)).__name__
            times = len(outputs[target.path])
            raise BadInput(f"{target.what} ({kind}) ran {times} times in one forward pass; accepted: once")
        _narrow(target, target.pattern.select(outputs[target.path][0], target.what), batch, shapes, model)


def _narrow(
    target: _Target, output: Tensor, batch: Batch, shapes: Mapping[str, tuple[int, ...]], model: GroundingModel
) -> None:
    """Drop the readings of a module that an output does not fit."""
    first, target.shape = not target.shape, tuple(output.shape)
    numbered = torch.arange(output.numel(), device=output.device).view(output.shape)
    for number, reading in enumerate(target.readings):
        if not first and number not in target.seen:
            continue
        try:
            if reading.like and without_channels(output.shape) != shapes[reading.name]:
                raise Unfit(f"site {reading.name!r} has another shape")
            tokens = reading.to_tokens(numbered)
            layout = reading.layout(batch)
            _check(tokens, layout, reading, batch)
        except (Unfit, RuntimeError, LookupError):
            target.seen.pop(number, None)
            continue
        target.width = tokens.shape[2]
        signature = f"{reading.streams} {layout} {hash(tokens.cpu().numpy().tobytes())}"
        target.seen.setdefault(number, []).append(signature)
    if not target.seen and not target.told:
        target.told = _facts(target, output, batch, shapes, model)


def _check(tokens: Tensor, layout: TokenLayout, reading: Reading, batch: Batch) -> None:
    """Raise Unfit unless tokens are ``[B, N, D]`` with all that the streams need."""
    if tokens.ndim != 3 or len(tokens) != len(batch):
        raise Unfit(f"{list(tokens.shape)} are not tokens of {len(batch)} examples")
    sizes = {"text": batch.input_ids.shape[1], "image": batch.grid[0] * batch.grid[1]}
    for stream in reading.streams:
        place = getattr(layout, stream)
        held = 0 if place is None else len(range(*place.indices(tokens.shape[1])))
        if held != sizes.get(stream, held) or not held:
            raise Unfit(f"{held} {stream} tokens")


def _facts(
    target: _Target, output: Tensor, batch: Batch, shapes: Mapping[str, tuple[int, ...]], model: GroundingModel
) -> str:
    """What is known of the pass that no reading fits, and which common ones would."""
    images = sum(len(example.images) for example in batch.examples)
    rows = Rows(model)
    cells = rows.cells if rows.one_image_each else batch.grid[0] * batch.grid[1]
    facts = f"{list(output.shape)} for {len(batch)} captions of {batch.input_ids.shape[1]} tokens, {images} images"
    if cells is None:
        facts += " whose tokens have no known places"
    elif rows.one_image_each:
        facts += f" of {cells} tokens each"
    else:
        facts += f" on canvases of {cells} tokens"
    if (like := target.pattern.meaning) is not None and like in shapes:
        facts += f" ({like}: {list(shapes[like])})"
    fitting = []
    for guess in GUESSES:
        parts = parse_parts(guess)
        for tokens_first in (False, True):
            reading = in_parts(model, parts, tokens_first) if parts else None
            try:
                if reading is not None:
                    _check(reading.to_tokens(output), reading.layout(batch), reading, batch)
                    fitting.append(f"={guess}")
            except (Unfit, RuntimeError, LookupError):
                continue
    return facts + (f" ({' or '.join(dict.fromkeys(fitting))} would fit)" if fitting else "")


@contextmanager
def _watched(model: nn.Module, paths: set[str]) -> Iterator[dict[str, list[Any]]]:
    """Inside it, what the modules at ``paths`` give, in the order that they give it."""
    outputs: dict[str, list[Any]] = {path: [] for path in paths}
    handles = []

    def keep(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[path].append(output)

        return hook

    try:
        for path in paths:
            handles.append(model.get_submodule(path).register_forward_hook(keep(path)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _with_partners(site: Site, others: Sequence[Site]) -> Site:
    """A site that lacks phrases or regions gets the last one that has them, one of that stream alone if there is."""
    if not site.streams or site.phrase_partner or site.region_partner:
        return site

    def last(stream: str) -> str | None:
        having = [other for other in others if stream in other.streams]
        alone = [other for other in having if other.streams == (stream,)]
        return (alone or having)[-1].name if having else None

    if "text" not in site.streams:
        return replace(site, phrase_partner=last("text"))
    if "image" not in site.streams:
        return replace(site, region_partner=last("image"))
    return site
