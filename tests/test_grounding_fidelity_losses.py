"""Targets and losses recorded from the original programs, where ours compute the same thing.

On purpose they do not in one place: MDETR's positive maps have rows that sum to one, and the study's were binary.
The functions take the map, so they are compared with both; which one training uses is tested in
``test_grounding_finetune_losses.py``. The pooled and polygon targets of the recordings are not used here.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert

from grounding.finetune.losses import (
    Matching,
    box_losses,
    contrastive_alignment_loss,
    map_divergence,
    match,
    mean_over_phrases,
    soft_token_loss,
)
from grounding.finetune.targets import Targets, box_maps, point_maps
from grounding.models.text import EncodedText

Case = dict[str, np.ndarray]


def set_losses(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    queries: Tensor,
    tokens: Tensor,
    truth_cxcywh: Tensor,
    positive_map: Tensor,
    token_map: Tensor,
    owner: Tensor,
) -> dict[str, Tensor]:
    """Matching and the four losses of one decoder layer, under the original's names."""
    truth, count = box_convert(truth_cxcywh, "cxcywh", "xyxy"), len(owner)
    matching = match(logits, boxes_cxcywh, truth, positive_map, owner)
    distance, overlap = box_losses(boxes_cxcywh, truth, matching, count)
    return {
        "loss_ce": soft_token_loss(logits, positive_map, matching, count),
        "loss_bbox": distance,
        "loss_giou": overlap,
        "loss_contrastive_align": contrastive_alignment_loss(queries, tokens, token_map, matching, count),
    }


def recorded(folder: Path, name: str) -> Case:
    """The arrays of a case."""
    with np.load(folder / "reference" / f"{name}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def targets_case(shared_data: Path) -> Case:
    return recorded(shared_data, "D_targets")


def boxes_as_targets(boxes_xywh: np.ndarray, phrase: list[int]) -> Targets:
    """Targets of one example of those boxes."""
    boxes = torch.from_numpy(boxes_xywh)
    count = len(boxes)
    return Targets(
        torch.zeros(1, 2),
        torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
        torch.tensor(phrase),
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
    )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_box_targets(targets_case, number):
    mask = targets_case[f"box{number}_mask"]
    size = torch.tensor([mask.shape])
    boxes = targets_case[f"box{number}_xywh"]
    found = box_maps(boxes_as_targets(boxes, [0] * len(boxes)), 1, size, mask.shape)[0].numpy()
    assert np.array_equal(found > 0, mask)
    highest, lowest, total = targets_case[f"box{number}_value"]
    assert found.max() == pytest.approx(highest, abs=1e-7)
    assert found[found > 0].min() == pytest.approx(lowest, abs=1e-7)
    assert found.sum() == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("name", ["gauss0", "gauss1", "gauss2", "game0", "game1"])
def test_point_targets(targets_case, name):
    if name.startswith("gauss"):
        point, canvas = targets_case[f"{name}_center"], (100, 464)
    else:
        count, side, place = targets_case[f"{name}_spec"].tolist()
        point, canvas = np.array([0.5, (place + 0.5) / count]), (count * side, side)
    expected = np.zeros(canvas)
    expected[tuple(targets_case[f"{name}_rowcol"].T)] = targets_case[f"{name}_value"]
    found = point_maps(torch.tensor(point, dtype=torch.float32)[None], torch.tensor([canvas]), canvas)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-7)
    assert np.array_equal(found > 0, expected > 0)


def test_divergence_of_phrases(targets_case):
    logits = torch.from_numpy(targets_case["kl_logits"].astype(np.float32))
    counts = targets_case["kl_box_counts"]
    phrase = np.repeat(np.arange(5), counts).tolist()
    maps = box_maps(boxes_as_targets(targets_case["kl_boxes_xywh"], phrase), 5, torch.tensor([[40, 56]]), (40, 56))
    each = map_divergence(maps, logits.flatten(1).log_softmax(1).view_as(logits))
    owner = torch.arange(2).repeat_interleave(torch.from_numpy(targets_case["kl_phrases_per_example"]))
    expected = targets_case["kl_losses"]
    assert [each[owner == e].mean().item() for e in range(2)] == pytest.approx(expected.tolist(), abs=1e-5)
    found = mean_over_phrases(each, owner, torch.ones(5), 2)
    assert float(found) == pytest.approx(float(expected.mean()), abs=1e-5)


@pytest.fixture(scope="module")
def losses_case(shared_data: Path) -> tuple[Case, dict]:
    return recorded(shared_data, "D_losses"), json.loads((shared_data / "reference" / "D_losses.json").read_text())


def token_maps(description: dict) -> Tensor:
    """Tokens of every target box's characters, ``[5, 12]``."""
    rows = []
    for offsets, boxes in zip(description["token_char_spans"], description["char_spans"], strict=True):
        text = EncodedText(np.zeros(12, dtype=np.int64), np.array([span or [0, 0] for span in offsets]))
        rows += [text.tokens_of([tuple(span) for span in spans]) for spans in boxes]
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("kind", ["binary", "normalised"])
def test_set_prediction(losses_case, kind):
    case, description = losses_case
    inputs = [torch.from_numpy(case[n]).requires_grad_() for n in ("pred_logits", "pred_boxes", "proj_queries")]
    positive = torch.from_numpy(case["positive_map"]).float()
    if kind == "normalised":
        positive = positive / positive.sum(1, keepdim=True)
    counts = torch.from_numpy(case["num_targets"])
    owner = torch.arange(2).repeat_interleave(counts)
    truth, tokens = torch.from_numpy(case["target_boxes"]), torch.from_numpy(case["proj_tokens"])
    matching = match(inputs[0], inputs[1], box_convert(truth, "cxcywh", "xyxy"), positive, owner)
    first = (counts.cumsum(0) - counts)[matching.example]
    assert _sorted(matching.query, matching.box - first, matching) == _sorted(
        torch.from_numpy(case[f"{kind}_match_query"]), torch.from_numpy(case[f"{kind}_match_target"]), matching
    )
    found = set_losses(*inputs, tokens, truth, positive, token_maps(description), owner)
    for name, value in found.items():
        assert float(value.detach()) == pytest.approx(description["losses"][kind][name], rel=2e-5), name
    total = sum(description["weights"][name] * value for name, value in found.items())
    total.backward()
    logits, boxes, queries = (tensor.grad for tensor in inputs)
    np.testing.assert_allclose(boxes, case[f"{kind}_grad_boxes"], atol=1e-4)
    if kind == "binary":
        np.testing.assert_allclose(logits[:, ::3], case["binary_grad_logits"], atol=1e-5)
        np.testing.assert_allclose(queries[:, ::3], case["binary_grad_proj_queries"], atol=1e-4)


def _sorted(query: Tensor, box: Tensor, matching: Matching) -> list[tuple[int, int, int]]:
    return sorted(zip(matching.example.tolist(), query.tolist(), box.tolist(), strict=True))
