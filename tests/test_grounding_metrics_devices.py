"""Metrics of tensors stay where the tensors are, and equal plain loops on every device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from grounding.metrics import heatmaps as module
from grounding.metrics.areas import Area
from grounding.metrics.boxes import PROTOCOLS, pad_boxes, ranked_ious, to_canvas
from grounding.metrics.heatmaps import (
    THRESHOLDS,
    choose_threshold,
    pointing,
    published_coverage,
    region_boxes,
    resize_published,
    threshold_ious,
    truth_coverage,
)
from grounding.metrics.precision import average_precision, right_boxes

CANDIDATES, ROWS, COLUMNS = 3, 8, 6


@pytest.fixture(params=["cpu", "cpu, as elsewhere", "cuda"])
def device(request, monkeypatch) -> str:
    """Devices, and the way that other devices take, on the processor."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here: metrics on one are not tested")
    if request.param == "cpu, as elsewhere":
        monkeypatch.setattr(module, "_marked_in_cache", module._marked_at_once)
    return request.param.split(",")[0]


def draw_boxes(*shape: int, seed: int = 0) -> Tensor:
    """Random boxes, xyxy, relative."""
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return corners.sort(-2).values.flatten(-2)


def draw_heatmaps(phrases: int = 12) -> tuple[Tensor, Tensor]:
    """Random heatmaps with many ties, and the candidate of each phrase's truth."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.randint(1, 50, (phrases, CANDIDATES, ROWS, COLUMNS), generator=generator) / 50
    return maps, torch.randint(CANDIDATES, (phrases,), generator=generator)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("thresholds", [THRESHOLDS, (0.3, 0.1)])
def test_thresholds(device, thresholds, binary):
    maps, index = draw_heatmaps()
    coverage = torch.rand(12, 4, ROWS, COLUMNS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    coverage = coverage > 0.6 if binary else coverage
    found = threshold_ious(maps.to(device), index.to(device), coverage.to(device), thresholds)
    assert found.device.type == device
    for p, heatmap in enumerate(maps.numpy()):
        for t, threshold in enumerate(thresholds):
            above = heatmap / heatmap.max() > np.float32(threshold)
            for m, truth in enumerate(coverage[p].double().numpy()):
                shared = truth[above[index[p]]].sum()
                assert found[p, m, t].item() == pytest.approx(shared / (above.sum() + truth.sum() - shared), abs=1e-12)


def test_pointing_regions_and_the_choice_of_a_threshold(device):
    maps, index = draw_heatmaps()
    inside = Area.of_boxes(draw_boxes(12, 2)).holds_centres(ROWS, COLUMNS)
    points = pointing(maps.to(device), index.to(device), inside.to(device))
    boxes, candidates = region_boxes(maps.to(device), 0.6)
    assert {points.device.type, boxes.device.type, candidates.device.type} == {device}
    for p, heatmap in enumerate(maps):
        peaks = heatmap == heatmap.max()
        assert points[p].item() == pytest.approx((peaks[index[p]] * inside[p]).sum().item() / peaks.sum().item())
        first = int(heatmap.flatten().argmax()) // (ROWS * COLUMNS)
        assert candidates[p].item() == first
        rows, columns = (heatmap[first] / heatmap.max() > 0.6).nonzero().T
        box = [columns.min() / COLUMNS, rows.min() / ROWS, (columns.max() + 1) / COLUMNS, (rows.max() + 1) / ROWS]
        assert boxes[p].tolist() == pytest.approx([float(value) for value in box])
    curves = torch.rand(12, len(THRESHOLDS), generator=torch.Generator().manual_seed(3))
    assert choose_threshold(curves.to(device), "dev", "iou") == choose_threshold(curves, "dev", "iou")


def test_truths_as_cells_and_as_pixels(device):
    boxes = draw_boxes(12, 3)
    shares = truth_coverage(boxes.to(device), ROWS, COLUMNS)
    pixels = published_coverage(boxes.to(device), (40, 30))
    resized = resize_published(draw_heatmaps()[0][:, 0].to(device), (40, 30))
    assert {shares.device.type, pixels.device.type, resized.device.type} == {device}
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    torch.testing.assert_close(shares[:, 2:].mean((2, 3)).cpu(), areas)
    corners = (boxes * torch.tensor([30, 40, 30, 40])).round()
    counted = (corners[..., 2:] - corners[..., :2]).prod(-1)
    assert torch.equal(pixels[:, 2:].sum((2, 3)).double().cpu(), counted)
    torch.testing.assert_close(resized.cpu(), resize_published(draw_heatmaps()[0][:, 0], (40, 30)))


def test_boxes_and_their_precision(device):
    predicted, truth, canvas = draw_boxes(30, 8, seed=4), draw_boxes(30, 3, seed=5), torch.full((30, 2), 4096)
    other = torch.rand(30, 8, generator=torch.Generator().manual_seed(6)) < 0.2
    for protocol in PROTOCOLS:
        exact = ranked_ious(predicted.to(device), truth.to(device), protocol, other_image=other)
        pixels = ranked_ious(predicted.to(device), truth.to(device), protocol, "paper", canvas, other.to(device))
        assert exact.device.type == pixels.device.type == device
        torch.testing.assert_close(exact, pixels, rtol=0, atol=0.02)
        if protocol == "any":
            plain = torch.stack([box_iou(p, t).amax(1) for p, t in zip(predicted, truth, strict=True)])
            torch.testing.assert_close(exact.cpu(), plain.masked_fill(other, 0.0))
    right = right_boxes(predicted.to(device), truth, [3] * 30, other)
    precision = average_precision(right, [3] * 30)
    assert right.device.type == precision.device.type == device
    assert torch.equal(right.cpu(), right_boxes(predicted, truth, [3] * 30, other))
    assert torch.equal(pad_boxes([*truth.to(device)]).cpu(), truth)
    on_canvas = to_canvas(truth.to(device), torch.ones(30, 1, device=device), torch.full((30, 1), 2.0, device=device))
    torch.testing.assert_close(on_canvas[..., 1].cpu(), (1 + truth[..., 1]) / 2)
