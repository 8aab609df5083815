"""Names of weights: which model they are of, what they are called here, and which are not needed and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from grounding.errors import BadInput
from grounding.released.strict import Weights

# A name that tells a model from every other, in the forms in which it is published.
MARKS = {
    "vilt-aligner": r"transformer\.patch_embed\.proj\.weight",
    "hugging-face-vilt": r"(vilt\.)?embeddings\.patch_embeddings\.projection\.weight",
    "mdetr": r"((mdetr|detr)\.)?transformer\.encoder\.layers\.0\.self_attn\.in_proj_weight",
}
ANOTHER_TASK = "head of another task, after everything that is used here"
IGNORED = {
    "vilt-aligner": {
        r"(mlm_score|itm_score|mpp_score)\.": "head of pre-training, after everything that is used here",
        r"(vqa_classifier|nlvr2_classifier|rank_output|classifier)\.": ANOTHER_TASK,
        r"probe_layer\.": "a probe that the study trained on the frozen model",
    },
    "mdetr": {
        r"criterion\.": "belongs to the loss",
        r"(mask_head|bbox_attention)\.": "segmentation head, after the boxes",
        r"isfinal_embed\.": ANOTHER_TASK,
    },
}
COUNTER = "counts batches in training; the norms are frozen"
REFUSED = {  # weights that take part in what the model computes, in a way that ours does not
    "vilt-aligner": {
        r"detection_head\.": "phrases have a heatmap head of their own there, and share the task's here",
        r"contrastive_head\.": "games are answered by a contrastive head there, by the heatmap here",
    },
    "mdetr": {r"qa_embed\.": "queries of question answering take part in its decoder; no answer head is supported"},
}
HUGGING_FACE_VILT = (  # README 3.4 of the reference numbers; applied in this order
    (r"^vilt\.", ""),
    (r"^embeddings\.(text_embeddings|token_type_embeddings)\.", r"\1."),
    (r"^embeddings\.cls_token$", "transformer.cls_token"),
    (r"^embeddings\.position_embeddings$", "transformer.pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "transformer.patch_embed.proj."),
    (r"^layernorm\.", "transformer.norm."),
    (r"^encoder\.layer\.", "transformer.blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(transformer\.blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)
PROJECTION = re.compile(r"(transformer\.blocks\.\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)")


def kind_of(names: Iterable[str]) -> str | None:
    """``vilt-aligner``, ``mdetr`` or ``hugging-face-vilt``, where names of weights say so; else None."""
    names = list(names)
    for kind, mark in MARKS.items():
        if any(re.fullmatch(mark, name) for name in names):
            return kind
    return None


def without_wrapper(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Names without the ``module.`` that DataParallel puts before every one."""
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def our_weights(kind: str, tensors: Mapping[str, Tensor], path: Path | str) -> Weights:
    """Weights under our names, of a state dict of that kind (``kind_of``).

    Raises BadInput for weights whose part in the computation this model does not have, naming the first.
    """
    model = "mdetr" if kind == "mdetr" else "vilt-aligner"
    rename = {"mdetr": _mdetr, "hugging-face-vilt": _hugging_face_vilt}.get(kind, lambda name: name)
    used: dict[str, Tensor] = {}
    renamed, ignored = {}, {}
    for theirs, tensor in tensors.items():
        name = rename(theirs)
        plain = name.removeprefix("mdetr.")
        if (reason := _first(REFUSED[model], plain)) is not None:
            raise BadInput(f"{path} cannot be used: it has {theirs}: {reason}")
        reason = COUNTER if name.endswith("num_batches_tracked") else _first(IGNORED[model], plain)
        if reason is not None:
            ignored[theirs] = reason
            continue
        used[name] = tensor
        if name != theirs:
            renamed[name] = theirs
    if kind == "hugging-face-vilt":
        _join_projections(used, renamed)
    return Weights(used, renamed, ignored)


def _first(rules: Mapping[str, str], name: str) -> str | None:
    return next((reason for rule, reason in rules.items() if re.match(rule, name)), None)


def _mdetr(name: str) -> str:
    """The study's wrapper holds MDETR under ``mdetr.``; MDETR alone has no prefix, and ``detr.`` with a mask head."""
    if name.startswith(("mdetr.", "sdr_", "criterion.")):
        return name
    return f"mdetr.{name.removeprefix('detr.')}"


def _hugging_face_vilt(name: str) -> str:
    for pattern, replacement in HUGGING_FACE_VILT:
        name = re.sub(pattern, replacement, name)
    return name


def _join_projections(used: dict[str, Tensor], renamed: dict[str, str]) -> None:
    """Query, key and value become the rows of ``attn.qkv``, in that order."""
    parts: dict[str, dict[str, str]] = {}
    for name in used:
        if found := PROJECTION.fullmatch(name):
            parts.setdefault(f"{found[1]}.attn.qkv.{found[3]}", {})[found[2]] = name
    for joined, names in parts.items():
        if len(names) == 3:
            ordered = [names[part] for part in ("query", "key", "value")]
            renamed[joined] = " + ".join(renamed.pop(name, name) for name in ordered)
            used[joined] = torch.cat([used.pop(name) for name in ordered])
