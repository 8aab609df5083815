"""The model that a run starts from: what is refused, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import small_mdetr, wordpiece

from grounding.checkpoint import save_checkpoint
from grounding.errors import BadInput
from grounding.finetune.module import FinetuneModule
from grounding.finetune.settings import FinetuneSettings
from grounding.finetune.start import changed_config, starting_model
from grounding.models import SIZES, model_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": "abc"}, "config: field 'width' is 'abc'; accepted: a value like 96"),
        ({"width": -8}, "config: field 'width' is -8, too small; accepted: 1 or more"),
        ({"depth": 0}, "config: field 'depth' is 0, too small"),
        ({"pooler": 1}, "config: field 'pooler' is 1; accepted: a value like False"),
        ({"position_grid": [4]}, r"config: field 'position_grid' is \(4,\); accepted: a value like \(24, 4\)"),
        ({"wdith": 8}, "config: field 'wdith' is unknown; accepted: width, depth"),
    ],
)
def test_a_wrong_field_is_named_with_what_this_size_accepts(changes, message):
    with pytest.raises(BadInput, match=message):
        changed_config(model_config("vilt-aligner", "miniature"), changes)


def test_fields_may_be_zero_or_below_where_that_has_a_meaning():
    config: Any = changed_config(model_config("mdetr", "miniature"), {"task_layer": -2, "dropout": 0})
    assert (config.task_layer, config.dropout) == (-2, 0)


def test_a_position_table_is_refused_for_a_model_that_has_none():
    with pytest.raises(BadInput) as raised:
        starting_model(settings("mdetr", init="mdetr-pretrained", config={"position_grid": [4, 4]}))
    assert str(raised.value) == (
        "config position_grid: init 'mdetr-pretrained' is of 'mdetr', which has no such field; "
        "accepted: no config with this init"
    )


@pytest.mark.parametrize("model", list(SIZES))
def test_checking_leaves_no_trace_in_the_weights(model):
    torch.manual_seed(0)
    make = starting_model(settings(model))
    states = [torch.get_rng_state(), make(["a red disc"]).state_dict()]
    torch.manual_seed(0)
    assert torch.equal(states[0], torch.get_rng_state())
    assert all(tensor.device.type == "cpu" for tensor in states[1].values())


def settings(model: str, **changes: Any) -> FinetuneSettings:
    """Settings that say nothing but how to start."""
    return FinetuneSettings(model, "mini-game", **changes)


def test_a_model_without_a_query_for_the_task_learns_grounding_alone(tmp_path):
    save_checkpoint(tmp_path / "plain", small_mdetr(task_query=False), {})
    with pytest.raises(BadInput, match=r"has no query for the task; accepted: grounding alone \(--no-task\)") as raised:
        starting_model(settings("mdetr", init=str(tmp_path / "plain")))
    assert f"`probe convert {tmp_path / 'plain'} NEW --config task_query=true`" in str(raised.value)
    assert starting_model(settings("mdetr", init=str(tmp_path / "plain"), task=False))([]).training


@pytest.mark.parametrize(("backbone", "frozen"), [("resnet18", {"conv1", "layer1"}), ("small", set())])
def test_the_first_stage_of_a_checkpoints_resnet_is_not_trained(tmp_path, backbone, frozen):
    save_checkpoint(tmp_path / "made", small_mdetr(backbone=backbone, multiple=32), {})
    wordpiece().save(tmp_path / "words.json")
    sizes = {"backbone": backbone, "width": 24, "text_layers": 1, "encoder_layers": 1, "decoder_layers": 1}
    fresh = settings("mdetr", config=sizes, tokenizer=str(tmp_path / "words.json"))
    for chosen, expected in ((settings("mdetr", init=str(tmp_path / "made")), frozen), (fresh, set())):
        model = starting_model(chosen)([])
        stays = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert {name.split(".body.")[1].split(".")[0] for name in stays} == expected
        groups = FinetuneModule(model, dict, chosen, steps=1)._parameter_groups()  # type: ignore[arg-type]
        learned = {id(parameter) for group in groups.values() for parameter in group}
        assert learned == {id(parameter) for name, parameter in model.named_parameters() if name not in stays}
