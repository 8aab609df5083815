"""The recorded inventories of the released checkpoints: every name is explained, at full size and without memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import small_mdetr
from torch import Tensor

from grounding.config_files import config_from_json
from grounding.errors import BadInput
from grounding.models import build_model, model_config
from grounding.models.backbone import EFFICIENTNETS, RESNETS, Backbone
from grounding.released.names import kind_of, our_weights, without_wrapper
from grounding.released.sizes import layers, sizes_of
from grounding.released.strict import LoadReport, reconcile, without_values


def inventory(shared_data: Path, name: str) -> dict[str, Tensor]:
    """Every entry of a released checkpoint with its real name, shape and type; only position numbers have values."""
    content = json.loads((shared_data / "reference" / f"{name}_state_dict.json").read_text())
    tensors = {}
    for entry, shape, dtype, *_ in content["entries"]:
        meta = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        tensors[entry] = torch.arange(shape[-1])[None] if entry.endswith("position_ids") else meta
    return tensors


def mapped(tensors: dict[str, Tensor], **given: object) -> tuple[object, LoadReport]:
    """Configuration and report of a state dict, as opening and loading find them."""
    kind = kind_of(tensors)
    assert kind is not None
    weights = our_weights(kind, tensors, "file")
    model = "mdetr" if kind == "mdetr" else "vilt-aligner"
    config = config_from_json(model, sizes_of(model, weights.tensors, given, "file"), "file")
    with without_values():
        own = build_model(config, None).state_dict()
    return config, reconcile(config, own, weights, "file")[1]


@pytest.mark.parametrize(
    ("name", "model", "loaded", "renamed", "ignored"),
    [
        ("A_mdetr", "mdetr", 920, 920, 1),
        ("A2_mdetr_wrapper", "mdetr", 927, 0, 2),
        ("B_vilt", "vilt-aligner", 164, 0, 1),
    ],
)
def test_every_name_of_the_released_checkpoints_is_explained(shared_data, name, model, loaded, renamed, ignored):
    tensors = inventory(shared_data, name)
    config, report = mapped(tensors)
    base = model_config(model, "base")
    assert {**vars(config), "task_query": None} == {**vars(base), "task_query": None}
    assert getattr(config, "task_query", True) == (name != "A_mdetr")
    assert (len(report.loaded), len(report.renamed), len(report.ignored)) == (loaded, renamed, ignored)
    assert loaded + ignored == len(tensors)
    assert not report.missing


def test_hugging_face_names_reach_every_weight(shared_data):
    """The inventory of ViLT under Hugging Face's names: ours come back, and the aligner head is fresh."""
    from transformers import ViltConfig, ViltModel

    with torch.device("meta"):
        theirs = ViltModel(ViltConfig(max_position_embeddings=80)).state_dict()
    _, report = mapped(theirs)
    ours = inventory(shared_data, "B_vilt")
    expected = {name for name in ours if not name.startswith("sdr_head.") and not name.endswith("position_ids")}
    assert set(report.loaded) == expected
    assert {name for name in ours if name.startswith("sdr_head.")} == set(report.missing)
    assert set(report.renamed) == expected - {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("B_vilt", "transformer.blocks.3.norm1.bias", "missing transformer.blocks.3.norm1.bias"),
        ("B_vilt", "sdr_head._head.2.bias", "missing sdr_head._head.2.bias"),
        ("A_mdetr", "bbox_embed.layers.1.weight", "missing mdetr.bbox_embed.layers.1.weight"),
        ("A2_mdetr_wrapper", "sdr_embed.weight", "unexpected sdr_head.layers.0.weight"),
        ("A_mdetr", "query_embed.weight", "file has no mdetr.query_embed.weight, which tells the model's size"),
    ],
)
def test_a_weight_that_is_gone_is_an_error(shared_data, name, change, message):
    tensors = inventory(shared_data, name)
    del tensors[change]
    with pytest.raises(BadInput, match=message):
        mapped(tensors)


def test_a_weight_of_another_shape_is_an_error(shared_data):
    tensors = inventory(shared_data, "B_vilt")
    tensors["transformer.blocks.5.mlp.fc2.weight"] = torch.empty(768, 100, device="meta")
    with pytest.raises(BadInput, match=r"transformer\.blocks\.5\.mlp\.fc2\.weight is \[768, 100\], not \[768, 3072\]"):
        mapped(tensors)
    with pytest.raises(BadInput, match=r"is \[30522, 768\], not \[30522, 384\]"):
        mapped(inventory(shared_data, "B_vilt"), width=384)


def test_position_numbers_in_another_order_are_an_error(shared_data):
    tensors = inventory(shared_data, "B_vilt")
    tensors["text_embeddings.position_ids"] = torch.arange(80).flip(0)[None]
    with pytest.raises(BadInput, match=r"text_embeddings\.position_ids is not 0, 1, 2"):
        mapped(tensors)


def test_batch_counters_are_not_needed(shared_data):
    tensors = inventory(shared_data, "A_mdetr")
    tensors["backbone.0.body.bn1.num_batches_tracked"] = torch.tensor(7)
    assert mapped(tensors)[1].ignored["backbone.0.body.bn1.num_batches_tracked"].startswith("counts batches")


def test_a_position_table_that_is_no_square_is_asked_for(shared_data):
    tensors = inventory(shared_data, "B_vilt")
    tensors["transformer.pos_embed"] = torch.empty(1, 1 + 24, 768, device="meta")
    with pytest.raises(BadInput, match=r"a position table of 24 cells is no square; give --config position_grid"):
        mapped(tensors)
    config, _ = mapped(tensors, position_grid=(4, 6))
    assert config.position_grid == (4, 6)  # type: ignore[attr-defined]


def test_the_second_images_type_is_cut_away(shared_data):
    """NLVR2's checkpoints have a third row in the modality table."""
    tensors = inventory(shared_data, "B_vilt")
    tensors["token_type_embeddings.weight"] = torch.empty(3, 768, device="meta")
    assert "token_type_embeddings.weight[2:3]" in mapped(tensors)[1].ignored


@pytest.mark.parametrize("name", [*RESNETS, *EFFICIENTNETS, "small"])
def test_every_backbone_is_told_by_its_names_and_shapes(name):
    own = small_mdetr().state_dict()
    tensors = {name: tensor for name, tensor in own.items() if ".backbone." not in name}
    with without_values():
        body = Backbone(name).state_dict()
    tensors |= {f"mdetr.backbone.0.{entry}": tensor for entry, tensor in body.items()}
    assert sizes_of("mdetr", tensors, {"text_heads": 2}, "file")["backbone"] == name
    with pytest.raises(BadInput, match="shapes do not tell the backbone; give --config backbone=NAME"):
        sizes_of("mdetr", {n: t for n, t in tensors.items() if ".backbone." not in n}, {"text_heads": 2}, "file")


def test_kinds_and_wrappers():
    assert kind_of(["bert.embeddings.weight"]) is None
    assert kind_of(["vilt.embeddings.patch_embeddings.projection.weight"]) == "hugging-face-vilt"
    one = torch.zeros(1)
    assert list(without_wrapper({"module.a": one, "module.b": one})) == ["a", "b"]
    assert list(without_wrapper({"module.a": one, "b": one})) == ["module.a", "b"]
    assert layers(["a.0.x", "a.3.x", "ab.9.x"], "a.") == 4
    assert layers(["b.0.x"], "a.") == 0
