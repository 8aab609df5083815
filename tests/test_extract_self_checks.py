"""The certificate: sound models pass every check, and each kind of fault fails its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_models import small_mdetr, small_vilt
from torch import Tensor, nn

from extract.self_checks import Check, check_examples, run_self_checks
from grounding.models.base import GroundingModel, TokenLayout

NAMES = [
    "shapes of every site",
    "attention rows sum to one",
    "states and outputs are finite",
    "two forwards are equal",
    "batched equals single",
    "text padding does not matter",
    "image padding does not matter",
    "patching every site changes the output",
]


def found(model: GroundingModel) -> dict[str, Check]:
    """The certificate by the names of its lines."""
    return {check.name: check for check in run_self_checks(model)}


@pytest.mark.parametrize(
    "build",
    [
        small_vilt,
        lambda: small_vilt(stem="convolutions", text_padding="longest"),
        small_mdetr,
        lambda: small_mdetr(pre_norm=True, task_query=False),
    ],
    ids=["vilt", "stem", "mdetr", "mdetr-alone"],
)
def test_sound_models_pass(build):
    model = build().train()
    checks = found(model)
    assert list(checks) == NAMES
    assert {check.name for check in checks.values() if check.status == "failed"} == set()
    known = {check.name: check.detail for check in checks.values() if check.status == "known"}
    assert set(known) == ({"image padding does not matter"} if model.config.model == "mdetr" else set())
    assert all("from backbone on: convolutions see the zeros" in detail for detail in known.values())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_padding_of_images_fails_where_the_model_has_no_reason(monkeypatch):
    model = small_mdetr()
    monkeypatch.setattr(type(model), "image_padding", None)
    check = found(model)["image padding does not matter"]
    assert check.status == "failed"
    assert check.detail.endswith("from backbone on")


def test_the_examples_differ_in_what_the_checks_need():
    model = small_vilt(text_padding="longest")
    game, wide, long, tall = (model.preprocess([example]) for example in check_examples(model))
    assert len(game.examples[0].images) == 2
    assert torch.equal(wide.images, long.images)
    assert wide.input_ids.shape[1] < long.input_ids.shape[1]
    assert wide.grid != tall.grid
    assert len(wide.phrase_ids) == 2


def patch_forward(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Change what a module gives, for good."""
    module.register_forward_hook(lambda m, inputs, output: change(output))


def noise(states: Tensor) -> Tensor:
    """As an active dropout would."""
    return states + 1e-3 * torch.randn_like(states)


def mixed(states: Tensor) -> Tensor:
    """As a norm over the batch would."""
    return states + states.mean(0, keepdim=True) * (len(states) > 1)


def not_a_number(states: Tensor) -> Tensor:
    """As an overflow would."""
    return torch.where(torch.arange(states.shape[-1]) == 3, torch.nan, states)


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (noise, "two forwards are equal"),
        (mixed, "batched equals single"),
        (not_a_number, "states and outputs are finite"),
        (not_a_number, "attention rows sum to one"),
    ],
)
def test_a_fault_in_a_block_fails_its_check(change, failed):
    model = small_vilt()
    patch_forward(model.transformer.blocks[0], change)
    assert found(model)[failed].status == "failed"


def test_a_mask_that_is_forgotten_fails_the_padding_checks():
    model = small_vilt(text_padding="longest")
    for block in model.transformer.blocks:
        patch_forward(block.attn.taps.bias, lambda bias: torch.zeros_like(bias))
    checks = found(model)
    assert checks["text padding does not matter"].status == "failed"
    assert checks["image padding does not matter"].status == "failed"
    assert checks["batched equals single"].status == "ok"


def with_site(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> GroundingModel:
    """A model whose site ``block.1`` declares something else."""
    model = small_vilt()
    declared = [replace(site, **changes) if site.name == "block.1" else site for site in model.sites()]
    monkeypatch.setattr(model, "sites", lambda: declared)
    return model


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"width": 25}, r"block.1 is [1, 29, 24]"),
        ({"layout": lambda batch: TokenLayout(slice(0, 3), slice(21, 29))}, "block.1 has 3 text tokens"),
        ({"streams": ("text", "query")}, "block.1 has 0 query tokens"),
        ({"module_path": "transformer.blocks.9"}, "site 'block.1': the model has no module 'transformer.blocks.9'"),
    ],
)
def test_a_site_that_is_declared_wrong_fails_the_shapes(monkeypatch, changes, detail):
    model = with_site(monkeypatch, **changes)
    (check,) = run_self_checks(model)
    assert (check.name, check.status) == ("shapes of every site", "failed")
    assert detail in check.detail


def test_a_site_that_leads_nowhere_fails_the_patching(monkeypatch):
    """It is reached, and has the right shape, but nothing after it reads it."""
    model = with_site(monkeypatch, module_path="aside", attention_path=None)
    model.add_module("aside", nn.Identity())
    model.transformer.blocks[1].register_forward_hook(lambda module, inputs, output: (model.aside(output), None)[1])
    check = found(model)["patching every site changes the output"]
    assert (check.status, check.detail) == ("failed", "no effect: block.1")
