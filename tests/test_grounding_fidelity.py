"""Numbers recorded from the original programs, compared one by one (conventions: README.md of the reference folder).

Weights are a function of names and shapes; inputs are recorded after normalisation, so they are given to the models
in the pixel values that normalise to them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import watched, wordpiece
from test_grounding_fidelity_losses import set_losses
from torch import Tensor

from grounding.examples import Example, ReferenceGame
from grounding.finetune.losses import map_divergence, mean_over_phrases
from grounding.finetune.targets import Targets, box_maps, point_maps
from grounding.models.base import Batch
from grounding.models.mdetr import Mdetr, MdetrConfig
from grounding.models.mdetr_transformer import sine_positions
from grounding.models.vilt_aligner import ViltAligner, ViltAlignerConfig

Case = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def reference(shared_data: Path) -> Path:
    """The folder of recorded numbers."""
    return shared_data / "reference"


@pytest.fixture(scope="session")
def gold_weight(reference: Path) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    """The rule that gives every weight its value."""
    spec = importlib.util.spec_from_file_location("gold_weights", reference / "gold_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.gold_weight


def recorded(reference: Path, name: str) -> Case:
    """The arrays of a case."""
    with np.load(reference / f"{name}.npz") as arrays:
        return dict(arrays)


def inventory(reference: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's entries."""
    content = json.loads((reference / f"{name}_state_dict.json").read_text())
    return {entry[0]: tuple(entry[1]) for entry in content["entries"]}


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our entries."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def load_gold(module: torch.nn.Module, gold_weight: Any) -> None:
    """Give every floating-point entry its value, by its own name."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(np.asarray(gold_weight(name, tuple(tensor.shape)))))


def close(found: Tensor, case: Case, name: str, tolerance: float) -> None:
    """Compare with a recorded array of that name."""
    expected = case[name]
    assert tuple(found.shape) == expected.shape, name
    worst = float(np.abs(found.detach().numpy().astype(np.float64) - expected).max())
    assert worst <= tolerance, f"{name}: {worst} > {tolerance}"


def batch_of(case: Case, mean: Tensor, std: Tensor, stride: int) -> Batch:
    """The recorded inputs as a batch whose pixels normalise to them. mean, std: ``[3, 1, 1]`` in pixel values."""
    images = [torch.from_numpy(case[f"image{i}"].astype(np.float32)) for i in range(2)]
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    canvas, mask = torch.zeros(2, 3, height, width), torch.zeros(2, height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        canvas[i, :, : image.shape[1], : image.shape[2]] = image * std + mean
        mask[i, : image.shape[1], : image.shape[2]] = True
    ids = torch.from_numpy(case["input_ids"])
    text_mask = torch.from_numpy(case["text_mask" if "text_mask" in case else "attention_mask"]).bool()
    phrases = case.get("phrase_token_mask", case.get("phrase_positive_map", np.zeros((0, ids.shape[1]), dtype=bool)))
    owners = torch.from_numpy(case.get("phrase_example", np.zeros(0, dtype=np.int64))).long()
    counts, labels = case.get("num_candidates", np.ones(2)), case.get("label_t", np.zeros(2))
    return Batch(
        examples=tuple(
            Example(str(i), "test", ("",) * int(counts[i]), "", (), ReferenceGame(int(labels[i]))) for i in range(2)
        ),
        images=canvas,
        pixel_mask=mask,
        input_ids=ids,
        text_mask=text_mask,
        offsets=torch.zeros(*ids.shape, 2, dtype=torch.int64),
        caption_tokens=torch.from_numpy(case.get("text_positive_map", case["input_ids"])).bool(),
        phrase_tokens=torch.from_numpy(phrases[:, : ids.shape[1]]).bool(),
        phrase_example=owners,
        phrase_ids=tuple(str(p) for p in range(len(owners))),
        grid=(-(-height // stride), -(-width // stride)),
        valid=torch.tensor([image.shape[1:] for image in images]),
    )


@pytest.fixture(scope="module")
def vilt(gold_weight) -> ViltAligner:
    """The full-size ViLT-Aligner."""
    model = ViltAligner(ViltAlignerConfig(), wordpiece(80)).eval()
    load_gold(model, gold_weight)
    return model


def test_vilt_has_the_entries_of_the_released_checkpoint(reference, vilt):
    assert shapes(vilt) == inventory(reference, "B_vilt")


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["B_vilt_square", pytest.param("B_vilt_padded", marks=SLOW), pytest.param("B_vilt_game", marks=SLOW)]
)
@torch.inference_mode()
def test_vilt_aligner(reference, vilt, name):
    case = recorded(reference, name)
    half = torch.full((3, 1, 1), 127.5)
    batch = batch_of(case, half, half, 32)
    heads: list[Tensor] = []
    handle = vilt.sdr_head.register_forward_hook(lambda module, inputs, logits: heads.append(logits))
    with watched(vilt, ["block.0", "block.11"]) as seen:
        output = vilt(batch)
    handle.remove()
    at = torch.from_numpy(case["sel"])
    for k in range(12):
        close(seen.state[f"block.{k}"][:, at, ::6], case, f"block{k}", 2e-4)
    close(seen.state["norm"][:, at], case, "final_norm", 1e-4)
    exact = seen.state["norm"][:, at[::3], ::12]
    assert np.abs(exact.numpy() - case["final_norm_fp64"]).max() < 1e-4
    close(vilt.pooler(seen.state["norm"]), case, "pooler", 1e-4)
    for k in (0, 11):
        weights = seen.weights[f"block.{k}"][:, :, at]
        close(weights.mean(1), case, f"attn{k}_avg", 2e-5)
        close(weights[:, :, ::4], case, f"attn{k}_heads", 5e-5)
    task, phrases = heads[0][-2:], heads[0][:-2]  # one pass of the head answers both
    close(phrases, case, "phrase_logits_before_resize", 5e-4)
    close(task, case, "sdr_logits_before_resize", 5e-4)
    close(output.log_phrases[:, 1::4, 2::4], case, "phrase_log_pred", 5e-4)
    close(output.log_task[:, 2::4, 3::4], case, "sdr_logpreds", 5e-4)
    _compare_aligner_losses(case, batch, output)
    if name == "B_vilt_game":
        predictions = vilt.predict(batch, output)
        assert [p.answer for p in predictions] == case["game_pred_index"].astype(int).tolist()
        assert [p.correct for p in predictions] == case["game_correct"].astype(bool).tolist()
        np.testing.assert_allclose(np.exp([p.score for p in predictions]), case["game_score"], rtol=1e-3)


def _compare_aligner_losses(case: Case, batch: Batch, output: Any) -> None:
    canvas = tuple(batch.images.shape[-2:])
    boxes_xywh = torch.from_numpy(case["gt_boxes_xywh"])
    phrase = torch.from_numpy(case["gt_box_phrase"]).long()
    counts = torch.from_numpy(case["num_candidates"])
    points = torch.stack([torch.full((2,), 0.5), (torch.from_numpy(case["label_t"]) + 0.5) / counts], dim=1)
    if (counts == 1).all():  # the recordings of single images have these two targets, relative to each image
        points = torch.tensor([[0.3, 0.6], [0.4, 0.5]])
    targets = Targets(
        points.float(),
        torch.cat([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], 1),
        phrase,
        batch.phrase_example[phrase],
        counts,
    )
    truth = point_maps(targets.points, batch.valid, canvas)
    close(truth[:, ::2, ::2], case, "target_heatmap", 1e-7)
    close(map_divergence(truth, output.log_task), case, "sdr_losses", 5e-4)
    maps = box_maps(targets, len(batch.phrase_example), batch.valid, canvas)
    each = map_divergence(maps, output.log_phrases)
    for example in range(2):
        mine = (batch.phrase_example == example).float()
        mean = mean_over_phrases(each, batch.phrase_example, mine, 2) * 2
        assert abs(float(mean) - case["grounding_losses"][example]) < 5e-4


@pytest.fixture(scope="module")
def mdetr() -> Mdetr:
    """The full-size MDETR with ResNet-101; ``gilded`` gives it its weights."""
    return Mdetr(MdetrConfig(), wordpiece(256)).eval()


@pytest.fixture
def gilded(mdetr, gold_weight) -> Callable[[str], Mdetr]:
    """Weights under the names of the plain model (A) or of the study's wrapper (A2), loaded once in a row."""

    def with_weights(kind: str) -> Mdetr:
        if getattr(mdetr, "kind", None) != kind:
            load_gold(mdetr if kind == "A2" else mdetr.mdetr, gold_weight)
            mdetr.kind = kind  # type: ignore[assignment]
        return mdetr

    return with_weights


@SLOW
def test_mdetr_has_the_entries_of_the_released_checkpoints(reference, mdetr):
    """Current transformers has no entry for position numbers, and the loss is not part of our model."""
    extra = {"transformer.text_encoder.embeddings.position_ids": (1, 514), "criterion.empty_weight": (256,)}
    plain, wrapper = inventory(reference, "A_mdetr"), inventory(reference, "A2_mdetr_wrapper")
    for name in extra:
        plain.pop(name, None)
        wrapper.pop(name, None)
        wrapper.pop(f"mdetr.{name}", None)
    assert shapes(mdetr.mdetr) == plain
    assert shapes(mdetr) == wrapper


def normalisation(model: Mdetr) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in pixel values."""
    return model.image_mean, model.image_std


@SLOW
@pytest.mark.parametrize("name", ["A_mdetr", "A_mdetr_odd"])
@torch.inference_mode()
def test_mdetr_of_the_original(reference, gilded, name):
    model = gilded("A")
    core, case = model.mdetr, recorded(reference, name)
    layers = recorded(reference, "A_mdetr_layers") if name == "A_mdetr" else None
    batch = batch_of(case, *normalisation(model), 32)
    images = ((batch.images - model.image_mean) / model.image_std).masked_fill(~batch.pixel_mask[:, None], 0.0)
    with watched(model, [f"{s}.{k}" for s in ("encoder", "decoder") for k in (0, 5)]) as seen:
        memory, positions, bias = core.encode(images, batch.pixel_mask, batch.input_ids, batch.text_mask)
        hidden = core.transformer.decode(core.query_embed.weight, memory, positions, bias)  # without the task's query
    rows, columns = batch.grid
    cells, tokens = rows * columns, batch.input_ids.shape[1]
    mask = torch.from_numpy(~case["feat_mask"])
    assert torch.equal(bias[:, 0, 0, :cells] == 0, mask.flatten(1))
    place = sine_positions(mask, 256).transpose(1, 2).unflatten(2, (rows, columns))
    assert torch.equal(positions[:, :cells].transpose(1, 2).unflatten(2, (rows, columns)), place)
    close(place if name == "A_mdetr" else place[:, ::8], case, "pos_embed", 1e-5)
    close(core.class_embed(hidden[-1]), case, "pred_logits", 3e-4)
    close(core.bbox_embed(hidden[-1]).sigmoid(), case, "pred_boxes", 3e-5)
    assert np.abs(core.bbox_embed(hidden[-1]).sigmoid().numpy() - case["pred_boxes_fp64"]).max() < 3e-5
    normal = torch.nn.functional.normalize
    close(normal(core.contrastive_align_projection_image(hidden[-1]), dim=-1), case, "proj_queries", 5e-5)
    close(normal(core.contrastive_align_projection_text(memory[:, -tokens:]), dim=-1), case, "proj_tokens", 5e-5)
    resized = seen.state["embedding"][:, cells:].transpose(0, 1)
    close(resized, case, "text_memory_resized", 5e-5)
    if layers is None:
        close(memory.transpose(0, 1)[::3], case, "img_memory", 3e-4)
        return
    close(seen.state["backbone"].transpose(1, 2).unflatten(2, (rows, columns)), case, "input_proj", 1e-4)
    close(seen.state["text.11"][:, :, ::4], case, "roberta_last_hidden", 1e-4)
    for k in range(6):
        states = seen.state[f"encoder.{k}"].transpose(0, 1)
        close(states if k % 5 == 0 or k == 2 else states[::8], layers, f"enc{k}", 3e-4)
        close(seen.state[f"decoder.{k}"].transpose(0, 1)[::10], layers, f"dec{k}", 3e-4)
    close(hidden[0].transpose(0, 1)[::4], layers, "hs_first", 3e-4)
    close(hidden[-1].transpose(0, 1), layers, "hs_last", 3e-4)
    for k in (0, 5):
        weights = seen.weights[f"encoder.{k}"]
        close(weights.mean(1), layers, f"encattn{k}_avg", 2e-4)
        close(weights[:, :, ::8], layers, f"encattn{k}_heads", 4e-4)
        weights = seen.weights[f"decoder.{k}"]
        close(weights.mean(1), layers, f"deccross{k}_avg", 2e-4)
        close(weights[:, :, ::10], layers, f"deccross{k}_heads", 4e-4)


@SLOW
@torch.inference_mode()
def test_mdetr_with_the_query_of_the_task(reference, gilded):
    model, case = gilded("A2"), recorded(reference, "A2_mdetr_sdr")
    batch = batch_of(case, *normalisation(model), 32)
    states: dict[str, Tensor] = {}
    handle = model.sdr_head.register_forward_hook(lambda module, inputs, out: states.update(task=inputs[0], out=out))
    output = model(batch)
    handle.remove()
    close(states["task"], case, "sdr_query_hs_per_layer", 3e-4)
    close(states["out"][0], case, "sdr_head_logits", 3e-4)
    close(output.task_point, case, "sdr_coords", 3e-5)
    close(output.task_points[-1].double(), case, "sdr_coords_if_last_layer_fp64", 3e-5)
    close(output.token_logits[-1], case, "pred_logits", 3e-4)
    close(output.boxes_cxcywh[-1], case, "pred_boxes", 3e-5)
    close(output.projected_queries[-1], case, "proj_queries", 5e-5)
    close(output.projected_tokens, case, "proj_tokens", 5e-5)
    predictions = model.predict(batch, output)
    assert [p.answer for p in predictions] == case["refgame_pred_index"].astype(int).tolist()
    assert [p.correct for p in predictions] == case["refgame_correct"].astype(bool).tolist()
    np.testing.assert_allclose([-p.score for p in predictions], case["refgame_score"], atol=1e-4)
    order = output.phrase_scores.argsort(dim=1, descending=True, stable=True)[:, :15]
    ranked = output.boxes_xyxy[batch.phrase_example[:, None], order].clamp(0, 1)
    close(ranked, case, "ranked_boxes_top15", 3e-5)
    _compare_set_losses(reference, case, batch, output)


def _compare_set_losses(reference: Path, case: Case, batch: Batch, output: Any) -> None:
    """The study's positive map is binary; ours has rows that sum to one, so the functions are given the study's."""
    phrase = torch.from_numpy(case["gt_box_phrase"])
    binary = torch.from_numpy(case["phrase_positive_map"]).float()[phrase]
    truth = torch.from_numpy(case["gt_boxes"])
    expected = json.loads((reference / "A2_mdetr_sdr.json").read_text())["losses_fp32"]
    for layer in range(6):
        found = set_losses(
            output.token_logits[layer],
            output.boxes_cxcywh[layer],
            output.projected_queries[layer],
            output.projected_tokens,
            truth,
            binary,
            batch.phrase_tokens[phrase],
            batch.phrase_example[phrase],
        )
        for name, value in found.items():
            key = f"{name}_{layer}" if layer < 5 else name
            if key in expected:
                assert float(value) == pytest.approx(expected[key], rel=2e-4), key
