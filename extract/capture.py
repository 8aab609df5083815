"""Reading a live model's sites through plain forward hooks that cannot change what it computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor, nn

from extract.hooks import Hooks
from grounding.errors import BadInput
from grounding.models.base import Site


class Sink(Protocol):
    """Takes what the hooks see, while the forward pass runs: reduce at once, or the whole pass stays in memory."""

    def states(self, site: Site, states: Tensor) -> None:
        """States ``[B, N, D]`` of a site."""
        ...

    def attention(self, site: Site, query: Tensor, key: Tensor, bias: Tensor | None) -> None:
        """query ``[B, heads, N, d]``, key ``[B, heads, M, d]``, additive bias broadcastable to ``[B, heads, N, M]``."""
        ...


class Capture(Hooks):
    """Context manager: inside it, one forward pass of ``model`` feeds ``sink``.

    sites: whose states are read. attention: sites whose queries, keys and bias are read, so that weights can be
    computed for the rows that are wanted while the model keeps its fused attention.
    Raises BadInput on entry for a module that does not exist or has no taps, and on exit for a site that the pass
    did not reach or reached twice. The hooks return nothing and are removed in every case.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], sink: Sink, attention: Iterable[Site] = ()):
        super().__init__()
        self.model = model
        self.sites = tuple(sites)
        self.sink = sink
        self.attention = tuple(attention)
        self._reached: dict[str, int] = {}

    def _attach(self) -> None:
        self._reached = {}
        for site in self.sites:
            self._watch_states(site)
        for site in self.attention:
            self._watch_attention(site)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            for what, times in self._reached.items():
                if times != 1:
                    raise BadInput(f"{what} ran {times} times in one forward pass; accepted: once")

    def _watch_states(self, site: Site) -> None:
        what = f"site {site.name!r}: module {site.module_path!r}"
        self._reached[what] = 0

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._reached[what] += 1
            self.sink.states(site, site.to_tokens(output))

        self._add(_module(self.model, site.module_path, site), hook)

    def _watch_attention(self, site: Site) -> None:
        what = f"site {site.name!r}: attention {site.attention_path!r}"
        taps = getattr(_module(self.model, site.attention_path or "", site), "taps", None)
        if site.attention_path is None or taps is None:
            raise BadInput(f"{what} has no taps to read its weights from")
        self._reached[what] = 0
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                seen[name] = output

            return hook

        def last(module: nn.Module, inputs: Any, output: Tensor | None) -> None:
            self._reached[what] += 1
            self.sink.attention(site, *site.to_attention(seen.pop("query"), seen.pop("key"), output))

        self._add(taps.query, keep("query"))
        self._add(taps.key, keep("key"))
        self._add(taps.bias, last)


def _module(model: nn.Module, path: str, site: Site) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise BadInput(f"site {site.name!r}: the model has no module {path!r}") from None
