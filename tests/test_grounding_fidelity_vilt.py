"""The full-size ViLT-Aligner against cases B of the recordings: square, padded and stacked inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_cases import Case, batch_of, inventory, load_gold, shapes
from small_models import Seen, watched, wordpiece
from torch import Tensor

from grounding.finetune.losses import map_divergence, mean_over_phrases
from grounding.finetune.targets import Targets, box_maps, point_maps
from grounding.models.base import Batch
from grounding.models.vilt_aligner import ViltAligner, ViltAlignerConfig

SLOW = pytest.mark.slow
CASES = ["B_vilt_square", pytest.param("B_vilt_padded", marks=SLOW), pytest.param("B_vilt_game", marks=SLOW)]
HALF = torch.full((3, 1, 1), 127.5)
IN_FP64 = {"final_norm_fp64", "sdr_losses_fp64", "grounding_losses_fp64"}


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> Path:
    """The folder of recorded numbers."""
    return shared_data / "reference"


@pytest.fixture(scope="module")
def vilt(reference) -> ViltAligner:
    """The full-size model."""
    model = ViltAligner(ViltAlignerConfig(), wordpiece(80)).eval()
    load_gold(model, reference)
    return model


def run(model: ViltAligner, batch: Batch, attention: list[str]) -> tuple[Seen, Any, Tensor, Tensor]:
    """One pass: the states and weights at the sites, the output, and the head's logits (phrases, task)."""
    heads: list[Tensor] = []
    handle = model.sdr_head.register_forward_hook(lambda module, inputs, logits: heads.append(logits))
    with watched(model, attention) as seen:
        output = model(batch)
    handle.remove()
    return seen, output, heads[0][: -len(batch)], heads[0][-len(batch) :]  # one pass of the head answers both


def test_vilt_has_the_entries_of_the_released_checkpoint(reference, vilt):
    assert shapes(vilt) == inventory(reference, "B_vilt")


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_vilt_aligner(reference, vilt, name):
    case = Case(reference, name)
    batch = batch_of(case, HALF, HALF, 32)
    _compare_embeddings(case, vilt, batch)
    seen, output, phrases, task = run(vilt, batch, ["block.0", "block.11"])
    at = case.tensor("sel")
    for k in range(12):
        case.close(seen.state[f"block.{k}"][:, at, ::6], f"block{k}")
    states = seen.state["norm"]
    case.close(states[:, at], "final_norm")
    case.close(vilt.pooler(states), "pooler")
    image = vilt.sites()[-1].layout(batch).image
    case.close(states[:, image].transpose(1, 2).unflatten(2, batch.grid)[:, ::16], "feature_map")
    for k in (0, 11):
        weights = seen.weights[f"block.{k}"][:, :, at]
        case.close(weights.mean(1), f"attn{k}_avg")
        case.close(weights[:, :, ::4], f"attn{k}_heads")
    case.close(phrases, "phrase_logits_before_resize")
    case.close(task, "sdr_logits_before_resize")
    case.close(output.log_phrases[:, 1::4, 2::4], "phrase_log_pred")
    case.close(output.log_task[:, 2::4, 3::4], "sdr_logpreds")
    difference = output.log_phrases[:, ::4, ::4] - case.tensor("phrase_logits")  # one number a map: its logarithm's sum
    case.close(output.log_phrases[:, ::4, ::4] - difference.mean((1, 2), keepdim=True), "phrase_logits")
    columns = batch.images.shape[-1]
    peak = output.log_task.flatten(1).argmax(1)
    assert torch.stack([peak // columns, peak % columns], 1).tolist() == case["sdr_argmax_row_col"].tolist()
    _compare_losses(case, batch, output)
    if name == "B_vilt_game":
        predictions = vilt.predict(batch, output)
        assert [p.answer for p in predictions] == case["game_pred_index"].astype(int).tolist()
        assert [p.correct for p in predictions] == case["game_correct"].astype(bool).tolist()
        np.testing.assert_allclose(np.exp([p.score for p in predictions]), case["game_score"], rtol=1e-3)
    assert case.unread == IN_FP64


def _compare_embeddings(case: Case, model: ViltAligner, batch: Batch) -> None:
    """The inputs of the blocks before the modality is added, the mask of keys, and the order of patches."""
    at = case.tensor("sel")
    text = model.text_embeddings(batch.input_ids)
    case.close(text[:, at[at < text.shape[1]], ::4], "text_embeddings")
    images = (batch.images / 127.5 - 1).masked_fill(~batch.pixel_mask[:, None], 0.0)
    image = model.transformer.embed(images, batch.pixel_mask, batch.grid, batch.valid // 32)
    case.close(image[:, ::3, ::4], "image_embeddings")
    biases: list[Tensor] = []
    handle = model.transformer.blocks[0].attn.taps.bias.register_forward_hook(lambda m, i, bias: biases.append(bias))
    model(batch)
    handle.remove()
    keys = biases[0][:, 0, 0] == 0
    assert torch.equal(keys, torch.cat([batch.text_mask, case.tensor("image_mask").bool()], dim=1))
    raster = torch.cartesian_prod(*(torch.arange(side) for side in batch.grid))
    assert (case.tensor("patch_index") == raster).all()


def _compare_losses(case: Case, batch: Batch, output: Any, suffix: str = "") -> None:
    canvas = tuple(batch.images.shape[-2:])
    boxes_xywh, phrase = case.tensor("gt_boxes_xywh"), case.tensor("gt_box_phrase").long()
    counts = case.tensor("num_candidates")
    points = torch.stack([torch.full((2,), 0.5), (case.tensor("label_t") + 0.5) / counts], dim=1).double()
    if (counts == 1).all():  # the recordings of single images have these two targets, relative to each image
        points = torch.tensor([[0.3, 0.6], [0.4, 0.5]], dtype=torch.float64)
    boxes = torch.cat([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], 1)
    targets = Targets(points.to(output.log_task.dtype), boxes, phrase, batch.phrase_example[phrase], counts)
    truth = point_maps(targets.points, batch.valid, canvas)
    if not suffix:
        case.close(truth[:, ::2, ::2], "target_heatmap")
    case.close(map_divergence(truth, output.log_task), f"sdr_losses{suffix}")
    each = map_divergence(box_maps(targets, len(batch.phrase_example), batch.valid, canvas), output.log_phrases)
    means = [mean_over_phrases(each, batch.phrase_example, (batch.phrase_example == e).to(each), 2) * 2 for e in (0, 1)]
    case.close(torch.stack(means), f"grounding_losses{suffix}")


@SLOW
@torch.inference_mode()
def test_vilt_aligner_in_double_precision(reference):
    """Tells an epsilon of 1e-6 from 1e-12 in the norms; the losses from the head's logits, which stay double."""
    model = ViltAligner(ViltAlignerConfig(), wordpiece(80)).eval()
    load_gold(model, reference)
    model.double()
    for name in ("B_vilt_square", "B_vilt_padded", "B_vilt_game"):
        case = Case(reference, name)
        batch = batch_of(case, HALF.double(), HALF.double(), 32)
        seen, output, phrases, task = run(model, batch, [])
        case.close(seen.state["norm"][:, case.tensor("sel")[::3], ::12], "final_norm_fp64")
        canvas = tuple(batch.images.shape[-2:])
        maps = [torch.nn.functional.interpolate(m[:, None], canvas, mode="bilinear")[:, 0] for m in (phrases, task)]
        log_phrases, log_task = (m.flatten(1).log_softmax(1).unflatten(1, canvas) for m in maps)
        _compare_losses(case, batch, replace(output, log_phrases=log_phrases, log_task=log_task), "_fp64")
        assert case.read >= IN_FP64
