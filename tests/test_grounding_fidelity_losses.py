"""Targets and losses recorded from the original programs (cases D), the defective ones too.

MDETR's positive maps have rows that sum to one, and the study's were binary. The functions take the map, so they are
compared with both; which one training uses is tested in ``test_grounding_finetune_losses.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reference_cases import Case
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
from grounding.finetune.targets import Targets, box_maps, originals_tokens, point_maps
from grounding.metrics.areas import draw_polygons
from grounding.models.text import EncodedText
from grounding.models.vilt_aligner import mean_of_tokens


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


@pytest.fixture(scope="module")
def targets_case(shared_data: Path) -> Case:
    return Case(shared_data / "reference", "D_targets")


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
    largest, smallest, total = targets_case[f"box{number}_value"]
    assert [found.max(), found[found > 0].min()] == pytest.approx([largest, smallest], abs=1e-7)
    # The total was summed in single precision, whose numbers near one are so far apart.
    assert found.sum(dtype=np.float64) == pytest.approx(total, abs=float(np.spacing(np.float32(1))))


@pytest.mark.parametrize("name", ["gauss0", "gauss1", "gauss2", "game0", "game1"])
def test_point_targets(targets_case, name):
    """In double precision within the manifest's tolerance; in single, as training has them, up to its rounding."""
    if name.startswith("gauss"):
        point, canvas = targets_case[f"{name}_center"], (100, 464)
    else:
        count, side, place = targets_case[f"{name}_spec"].tolist()
        point, canvas = np.array([0.5, (place + 0.5) / count]), (count * side, side)
    expected = np.zeros(canvas)
    expected[tuple(targets_case[f"{name}_rowcol"].T)] = targets_case[f"{name}_value"]
    tolerance = targets_case.manifest["arrays"][f"{name}_value"]["suggested_atol"]
    for dtype, atol in ((torch.float64, tolerance), (torch.float32, 5e-8)):
        found = point_maps(torch.tensor(point, dtype=dtype)[None], torch.tensor([canvas]), canvas)[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
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


def test_box_targets_on_a_coarser_grid(targets_case):
    """The study has them for its panoramas, and trains at full resolution all the same: cells of 8 x 8 pixels."""
    boxes, size = targets_case["pooled_xywh"], (800, 3712)
    full = box_maps(boxes_as_targets(boxes, [0] * len(boxes)), 1, torch.tensor([size]), size)
    found = (torch.nn.functional.avg_pool2d(full, 8) * 64)[0].numpy()
    expected = np.zeros((100, 464))
    expected[tuple(targets_case["pooled_rowcol"].T)] = targets_case["pooled_value"]
    np.testing.assert_allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("number", [0, 1])
def test_outlines_are_drawn_as_the_studys_targets(targets_case, number):
    """Training fills boxes here; the same drawing of outlines serves evaluation."""
    outlines = targets_case[f"poly{number}_coords"].reshape(2, -1, 2)
    mask = targets_case[f"poly{number}_mask"]
    assert np.array_equal(draw_polygons(list(outlines), *mask.shape), mask)
    assert 1 / mask.sum() == pytest.approx(targets_case[f"poly{number}_value"][0], abs=1e-7)


def test_the_vector_of_a_phrase_is_the_mean_of_its_tokens(targets_case):
    example = torch.arange(2).repeat_interleave(targets_case.tensor("kl_phrases_per_example"))
    text, tokens = targets_case.tensor("kl_text_feats")[example], targets_case.tensor("kl_token_masks").float()
    found = mean_of_tokens(text, tokens)
    assert found.shape == targets_case.tensor("kl_pooled_text").shape
    targets_case.close(found, "kl_pooled_text")


def test_every_recorded_target_is_compared(targets_case):
    compared = {f"box{n}_{part}" for n in range(3) for part in ("xywh", "mask", "value")}
    compared |= {f"pooled_{part}" for part in ("xywh", "rowcol", "value")}
    compared |= {f"poly{n}_{part}" for n in range(2) for part in ("coords", "mask", "value")}
    compared |= {f"gauss{n}_{part}" for n in range(3) for part in ("center", "rowcol", "value")}
    compared |= {f"game{n}_{part}" for n in range(2) for part in ("spec", "rowcol", "value")}
    kl = ("logits", "boxes_xywh", "box_counts", "phrases_per_example", "text_feats", "token_masks", "pooled_text")
    assert set(targets_case.arrays) == compared | {f"kl_{part}" for part in (*kl, "losses")}


@pytest.fixture(scope="module")
def losses_case(shared_data: Path) -> Case:
    return Case(shared_data / "reference", "D_losses")


def token_maps(case: Case, kind: str) -> Tensor:
    """Tokens of every target box's characters, ``[5, 12]``: ours, or with the fallback to the batch's first caption."""
    offsets = np.array([[span or [0, 0] for span in row] for row in case.manifest["token_char_spans"]])
    if kind == "binary_fallback_spans":
        every = [(row, spans) for row, boxes in enumerate(case.manifest["char_spans_fallback"]) for spans in boxes]
        return torch.from_numpy(np.stack([originals_tokens(offsets, row, spans) for row, spans in every]))
    texts = [EncodedText(np.zeros(12, dtype=np.int64), row) for row in offsets]
    every = [(row, spans) for row, boxes in enumerate(case.manifest["char_spans"]) for spans in boxes]
    return torch.from_numpy(np.stack([texts[row].tokens_of([tuple(s) for s in spans]) for row, spans in every]))


KINDS = ("binary", "normalised", "binary_fallback_spans")
GRADIENTS = ("grad_logits", "grad_boxes", "grad_proj_queries")


@pytest.mark.parametrize("kind", KINDS)
def test_set_prediction(losses_case, kind):
    case = losses_case
    inputs = [case.tensor(name).requires_grad_() for name in ("pred_logits", "pred_boxes", "proj_queries")]
    positive = case.tensor("positive_map").float()
    if kind == "normalised":
        positive = positive / positive.sum(1, keepdim=True)
    counts = case.tensor("num_targets")
    owner = torch.arange(2).repeat_interleave(counts)
    truth, tokens = case.tensor("target_boxes"), case.tensor("proj_tokens")
    matching = match(inputs[0], inputs[1], box_convert(truth, "cxcywh", "xyxy"), positive, owner)
    first = (counts.cumsum(0) - counts)[matching.example]
    assert _sorted(matching.query, matching.box - first, matching) == _sorted(
        case.tensor(f"{kind}_match_query"), case.tensor(f"{kind}_match_target"), matching
    )
    found = set_losses(*inputs, tokens, truth, positive, token_maps(case, kind), owner)
    expected = case.manifest["losses"][kind]
    for name, value in found.items():
        assert float(value.detach()) == pytest.approx(expected[name], rel=2e-6), name
    total = sum(case.manifest["weights"][name] * value for name, value in found.items())
    assert float(total.detach()) == pytest.approx(expected["weighted_total"], rel=2e-6)
    total.backward()
    for part, tensor in zip(GRADIENTS, inputs, strict=True):
        if f"{kind}_{part}" in case:  # not all of them are recorded for each kind
            assert tensor.grad is not None
            case.close(tensor.grad if part == "grad_boxes" else tensor.grad[:, ::3], f"{kind}_{part}")


def test_every_recorded_loss_is_compared(losses_case):
    inputs = {"pred_logits", "pred_boxes", "proj_queries", "proj_tokens", "target_boxes", "num_targets", "positive_map"}
    read = [f"{kind}_{part}" for kind in KINDS for part in ("match_query", "match_target", *GRADIENTS)]
    assert set(losses_case.arrays) <= inputs | set(read)
    assert set(losses_case.manifest["losses"]) == set(KINDS)


def _sorted(query: Tensor, box: Tensor, matching: Matching) -> list[tuple[int, int, int]]:
    return sorted(zip(matching.example.tolist(), query.tolist(), box.tolist(), strict=True))
