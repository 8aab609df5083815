"""The learning rate and the figures of dev, on hand-worked numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from finetune_runs import settings
from small_models import small_mdetr, small_vilt

from grounding.finetune.module import FinetuneModule, answered_correctly, phrase_hits
from grounding.finetune.objectives import mean_of_tasks
from grounding.finetune.targets import Targets
from grounding.models.base import Output


def test_the_learning_rate_rises_and_falls():
    module = FinetuneModule(small_vilt(), dict, settings(warmup=4), steps=10)  # type: ignore[arg-type]
    assert [module.rate_at(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert module.rate_at(4) == 1
    assert module.rate_at(7) == pytest.approx(0.5)
    assert module.rate_at(10) == module.rate_at(11) == pytest.approx(0)


def test_a_linear_schedule_with_a_share_of_warm_up():
    module = FinetuneModule(small_vilt(), dict, settings(warmup=0.2, schedule="linear"), steps=10)  # type: ignore[arg-type]
    assert [module.rate_at(step) for step in (0, 1, 2, 6, 10, 11)] == pytest.approx([0.5, 1, 1, 0.5, 0, 0])


def test_parts_of_mdetr_have_rates_of_their_own():
    chosen = settings("mdetr", learning_rate=1e-3, learning_rate_backbone=1e-4, learning_rate_text=1e-5)
    module = FinetuneModule(small_mdetr(), dict, chosen, steps=10)  # type: ignore[arg-type]
    names = {id(parameter): name for name, parameter in module.model.named_parameters()}
    found = {}
    for (rate, decays), parameters in module._parameter_groups().items():
        for parameter in parameters:
            found[names[id(parameter)]] = rate
            assert decays == (parameter.ndim > 1)
    for name, parameter in module.model.named_parameters():
        part = next((part for part in ("backbone", "text_encoder") if f".{part}." in name), None)
        expected = {"backbone": 1e-4, "text_encoder": 1e-5, None: 1e-3}[part]
        assert found.get(name) == (expected if parameter.requires_grad else None)
    assert set(found.values()) == {1e-3, 1e-4, 1e-5}


def test_dev_figures_by_hand():
    """Three games of 4 and two descriptions; phrases 0 and 2 are hit, 1 is missed, 3 has no region."""
    output = Output(
        task_point=torch.tensor([[0.1, 0.74], [0.9, 0.76], [0.5, 1.0], [0.5, 0.5], [0.5, 0.5]]),
        phrase_point=torch.tensor([[0.5, 0.5], [0.2, 0.9], [0.9, 0.1], [0.0, 0.0]]),
    )
    targets = Targets(
        points=torch.tensor([[0.5, 0.625], [0.5, 0.625], [0.5, 0.875], [0.5 + 70 / 3712, 0.5 - 30 / 800], [0.5, 0.7]]),
        boxes=torch.tensor([[0, 0, 0.1, 0.1], [0.4, 0.4, 0.5, 0.5], [0.3, 0.8, 0.4, 1.0], [0.8, 0, 1, 0.2]]),
        box_phrase=torch.tensor([0, 0, 1, 2]),
        box_example=torch.tensor([0, 0, 0, 1]),
        candidates=torch.tensor([4, 4, 4, 0, 0]),
    )
    assert answered_correctly(output, targets).tolist() == [True, False, True, True, False]
    alone = replace(targets, candidates=torch.tensor([4, 4, 1, 0, 0]))  # the third has nothing to choose from
    assert answered_correctly(output, alone).tolist() == [True, False, True, False]
    losses = torch.tensor([1.0, 2.0, 30.0, 4.0, 5.0], requires_grad=True)
    assert mean_of_tasks(losses, alone) == 3
    assert torch.equal(mean_of_tasks(losses, targets), losses.mean())
    mean_of_tasks(losses, replace(targets, candidates=torch.ones(5))).backward()
    assert losses.grad.tolist() == [0] * 5
    assert phrase_hits(output, targets).tolist() == [True, False, True]
