"""Reading the attention of transformers models: their own modules, whose queries and keys pass through taps.

transformers looks attention functions up by name; ours, ``tapped``, is its ``sdpa`` with identity modules for hooks
around it, on the modules that have ``taps``. ViLT and BLIP do not look anything up: see ``tap_projections``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grounding.errors import BadInput
from grounding.models.attention import AttentionTaps, attention_weights

TAPPED = "tapped"


def register() -> None:
    """Make the attention function known to transformers, any number of times."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(TAPPED, tapped_attention)
    AttentionMaskInterface.register(TAPPED, sdpa_mask)


def tapped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query ``[B, heads, N, d]`` -> ``[B, N, heads, d]``; keys may have fewer heads.

    Raises BadInput for an option that the fused kernel does not have.
    """
    taps = getattr(module, "taps", None)
    if taps is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )  # fmt: skip
    if others.get("position_bias") is not None:  # an option of the stock function that the kernel would drop
        raise BadInput(f"attention of {type(module).__name__} has a position_bias; accepted: none")
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, 1) if groups > 1 else states for states in (key, value))
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    bias = additive(attention_mask, query.dtype)
    if bias is None and causal and query.shape[2] > 1:
        allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        bias = additive(allowed[None, None], query.dtype)
    if scaling is not None and not math.isclose(scaling * math.sqrt(query.shape[-1]), 1.0):
        query = query * (scaling * math.sqrt(query.shape[-1]))
    if (softcap := others.get("softcap")) is not None:
        bias = capping(query, key, softcap) + (0.0 if bias is None else bias)
    return taps.attend(query, key, value, bias, dropout).unflatten(-1, (taps.heads, -1)), None


def capping(query: Tensor, key: Tensor, softcap: float) -> Tensor:
    """The bias that makes logits s into softcap * tanh(s / softcap), as Gemma 2 has them (arXiv 2408.00118, 2.1)."""
    logits = query.float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
    return (softcap * torch.tanh(logits / softcap) - logits).to(query.dtype)


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask, True where a key may be seen or already additive, as an additive bias that is -inf where it may not.

    A query that may see no key of an additive mask looks at all of them alike, as in transformers' own functions.
    """
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    return mask.to(dtype).masked_fill(hidden, -math.inf).masked_fill(hidden.all(-1, keepdim=True), 0.0)


def attach_taps(module: nn.Module) -> None:
    """Give an attention module that looks its function up the taps that ``tapped_attention`` finds."""
    module.add_module("taps", AttentionTaps(_heads(module)))


def tap_projections(module: nn.Module) -> None:
    """Give taps to an attention module in BERT's form (``query``, ``key``, ``value``) that computes its own softmax.

    ViLT's and the text encoder of BLIP's do. The module keeps its weights; what it computes is the same, fused.
    """
    module.add_module("taps", AttentionTaps(_heads(module)))
    module.forward = partial(_attend_projected, module)  # type: ignore[method-assign]


def tap_fused(module: nn.Module) -> None:
    """The same for an attention module of BLIP's image encoder (``qkv`` and ``projection``)."""
    module.add_module("taps", AttentionTaps(_heads(module)))
    module.forward = partial(_attend_fused, module)  # type: ignore[method-assign]


def _attend_fused(module: Any, hidden_states: Tensor, **others: Any) -> tuple[Tensor, None]:
    parts = module.qkv(hidden_states).chunk(3, dim=-1)
    query, key, value = (part.unflatten(-1, (module.taps.heads, -1)).transpose(1, 2) for part in parts)
    attended = module.taps.attend(query, key, value, None, module.dropout.p if module.training else 0.0)
    return module.projection(attended), None


def _attend_projected(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *flags: bool,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    crossed = encoder_hidden_states is not None
    looked_at = encoder_hidden_states if crossed else hidden_states
    mask = encoder_attention_mask if crossed else attention_mask
    query, key, value = (
        projection(states).unflatten(-1, (module.taps.heads, -1)).transpose(1, 2)
        for projection, states in (
            (module.query, hidden_states), (module.key, looked_at), (module.value, looked_at)
        )
    )  # fmt: skip
    dropout = module.dropout.p if module.training else 0.0
    return module.taps.attend(query, key, value, additive(mask, query.dtype), dropout), None


def _heads(module: nn.Module) -> int:
    """Attention heads of a module, under any of the names that transformers has for their number."""
    for holder in (module, getattr(module, "config", None)):
        for name in ("num_heads", "num_attention_heads"):
            if isinstance(getattr(holder, name, None), int):
                return getattr(holder, name)
    raise BadInput(f"{type(module).__name__} does not tell its number of attention heads")


@contextmanager
def _each_module(
    modules: Sequence[nn.Module], rows: Tensor | None, take: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Inside it, a forward pass hands the number of each module to ``take``, and the mean weights of its heads, fp32.

    rows: int64, which of the queries; None for all.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    def last(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, bias: Tensor | None) -> None:
            query, key = seen.pop("query"), seen.pop("key")
            if rows is not None:
                query = query[:, :, rows]
                bias = bias[:, :, rows] if bias is not None and bias.shape[2] > 1 else bias
            take(number, attention_weights(query, key, bias).mean(1))

        return hook

    taps: list[Any] = [module.taps for module in modules]
    handles = [getattr(one, name).register_forward_hook(keep(name)) for one in taps for name in ("query", "key")]
    handles += [one.bias.register_forward_hook(last(number)) for number, one in enumerate(taps)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def mean_attention(modules: Sequence[nn.Module], rows: Tensor | None = None) -> Iterator[Callable[[], Tensor]]:
    """Inside it, one forward pass; then the function gives the mean weights of all heads of all modules, fp32.

    All modules must attend from equally many tokens to equally many: ``[B, N, M]``. rows: int64, which of the queries;
    None for all. Weights are summed up while the pass runs: nothing of it is kept.
    """
    sums: list[Tensor] = []

    def add(number: int, weights: Tensor) -> None:
        sums[:] = [sums[0] + weights if sums else weights]

    with _each_module(modules, rows, add):
        yield lambda: sums[0] / len(modules)


@contextmanager
def head_means(modules: Sequence[nn.Module]) -> Iterator[Callable[[], list[Tensor]]]:
    """The same module by module, the mean over the heads of each: ``[B, N, M]``, N and M as each has them."""
    kept: dict[int, Tensor] = {}
    with _each_module(modules, None, kept.__setitem__):
        yield lambda: [kept[number] for number in range(len(modules))]
