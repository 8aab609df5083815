"""The full-size MDETR with ResNet-101 against cases A (plain) and A2 (the study's wrapper) of the recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_cases import Case, batch_of, inventory, load_gold, shapes
from small_models import Seen, watched, wordpiece
from test_grounding_fidelity_losses import set_losses
from torch import Tensor
from torch.nn.functional import normalize

from grounding.finetune.objectives import LossWeights, mdetr_losses
from grounding.finetune.targets import Targets
from grounding.models.answers import target_point
from grounding.models.attention import attention_weights
from grounding.models.base import Batch
from grounding.models.mdetr import Mdetr, MdetrConfig
from grounding.models.mdetr_transformer import sine_positions
from grounding.models.text import EncodedText

pytestmark = pytest.mark.slow
STATE_IN_FP64 = {"pred_logits_fp64", "pred_boxes_fp64"}
POINT_IN_FP64 = {"sdr_coords_fp64", "sdr_coords_if_last_layer_fp64"}


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> Path:
    """The folder of recorded numbers."""
    return shared_data / "reference"


@pytest.fixture(scope="module")
def mdetr() -> Mdetr:
    """The full-size model; ``gilded`` gives it its weights."""
    return Mdetr(MdetrConfig(), wordpiece(256)).eval()


@pytest.fixture
def gilded(mdetr, reference) -> Callable[[str], Mdetr]:
    """Weights under the names of the plain model (A) or of the study's wrapper (A2), loaded once in a row."""

    def with_weights(kind: str) -> Mdetr:
        if getattr(mdetr, "kind", None) != kind:
            load_gold(mdetr if kind == "A2" else mdetr.mdetr, reference)
            mdetr.kind = kind  # type: ignore[assignment]
        return mdetr

    return with_weights


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


def normalised(model: Mdetr, batch: Batch) -> Tensor:
    """The images as the network takes them."""
    return ((batch.images - model.image_mean) / model.image_std).masked_fill(~batch.pixel_mask[:, None], 0.0)


def encoded(model: Mdetr, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory, positions, key bias, and the states of the 100 object queries alone, without the task's."""
    core = model.mdetr
    memory, positions, bias = core.encode(normalised(model, batch), batch.pixel_mask, batch.input_ids, batch.text_mask)
    return memory, positions, bias, core.transformer.decode(core.query_embed.weight, memory, positions, bias)


@contextmanager
def among_queries(model: Mdetr, layers: tuple[int, ...]) -> Iterator[dict[int, Tensor]]:
    """Inside it, a forward pass leaves the weights of the decoder's self-attention, ``[B, heads, Q, Q]``."""
    weights: dict[int, Tensor] = {}
    handles, queries = [], {}

    def keep_query(k: int) -> Any:
        return lambda module, inputs, query: queries.__setitem__(k, query)

    def keep_weights(k: int) -> Any:
        return lambda module, inputs, key: weights.__setitem__(k, attention_weights(queries[k], key, None))

    for k in layers:
        taps = model.mdetr.transformer.decoder.layers[k].self_attn.taps
        handles.append(taps.query.register_forward_hook(keep_query(k)))
        handles.append(taps.key.register_forward_hook(keep_weights(k)))
    yield weights
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", ["A_mdetr", "A_mdetr_odd"])
@torch.inference_mode()
def test_mdetr_of_the_original(reference, gilded, name):
    model, case = gilded("A"), Case(reference, name)
    core, batch = model.mdetr, batch_of(case, model.image_mean, model.image_std, 32)
    sites = [f"{stage}.{k}" for stage in ("encoder", "decoder") for k in (0, 5)]
    with watched(model, sites) as seen, among_queries(model, (0, 5)) as selves:
        memory, positions, bias, hidden = encoded(model, batch)
    rows, columns = batch.grid
    cells, tokens = rows * columns, batch.input_ids.shape[1]
    mask = torch.from_numpy(~case["feat_mask"])
    assert torch.equal(bias[:, 0, 0, :cells] == 0, mask.flatten(1))
    place = sine_positions(mask, 256).transpose(1, 2).unflatten(2, (rows, columns))
    assert torch.equal(positions[:, :cells].transpose(1, 2).unflatten(2, (rows, columns)), place)
    case.close(place if name == "A_mdetr" else place[:, ::8], "pos_embed")
    case.close(core.class_embed(hidden[-1]), "pred_logits")
    case.close(core.bbox_embed(hidden[-1]).sigmoid(), "pred_boxes")
    case.close(normalize(core.contrastive_align_projection_image(hidden[-1]), dim=-1), "proj_queries")
    case.close(normalize(core.contrastive_align_projection_text(memory[:, -tokens:]), dim=-1), "proj_tokens")
    case.close(seen.state["embedding"][:, cells:].transpose(0, 1), "text_memory_resized")
    if name == "A_mdetr_odd":
        case.close(memory.transpose(0, 1)[::3], "img_memory")
    else:
        case.close(core.backbone[0](normalised(model, batch))[:, ::32], "backbone_feat")
        case.close(seen.state["backbone"].transpose(1, 2).unflatten(2, (rows, columns)), "input_proj")
        case.close(seen.state["text.11"][:, :, ::4], "roberta_last_hidden")
        _compare_layers(Case(reference, "A_mdetr_layers"), seen, hidden, selves)
    assert case.unread == STATE_IN_FP64


def _compare_layers(case: Case, seen: Seen, hidden: Tensor, selves: dict[int, Tensor]) -> None:
    for k in range(6):
        states = seen.state[f"encoder.{k}"].transpose(0, 1)
        case.close(states if k % 5 == 0 or k == 2 else states[::8], f"enc{k}")
        case.close(seen.state[f"decoder.{k}"].transpose(0, 1)[::10], f"dec{k}")
    case.close(hidden[0].transpose(0, 1)[::4], "hs_first")
    case.close(hidden[-1].transpose(0, 1), "hs_last")
    for k in (0, 5):
        weights = seen.weights[f"encoder.{k}"]
        case.close(weights.mean(1), f"encattn{k}_avg")
        case.close(weights[:, :, ::8], f"encattn{k}_heads")
        weights = seen.weights[f"decoder.{k}"]
        case.close(weights.mean(1), f"deccross{k}_avg")
        case.close(weights[:, :, ::10], f"deccross{k}_heads")
        case.close(selves[k][:, :, ::20], f"decself{k}_heads")
    assert not case.unread


@torch.inference_mode()
def test_mdetr_with_the_query_of_the_task(reference, gilded):
    model, case = gilded("A2"), Case(reference, "A2_mdetr_sdr")
    batch = batch_of(case, model.image_mean, model.image_std, 32)
    states: dict[str, Tensor] = {}
    handle = model.sdr_head.register_forward_hook(lambda module, inputs, out: states.update(task=inputs[0], out=out))
    output = model(batch)
    handle.remove()
    case.close(states["task"], "sdr_query_hs_per_layer")
    case.close(states["out"][0], "sdr_head_logits")
    case.close(output.task_point, "sdr_coords")
    case.close(output.token_logits[-1], "pred_logits")
    case.close(output.boxes_cxcywh[-1], "pred_boxes")
    case.close(output.projected_queries[-1], "proj_queries")
    case.close(output.projected_tokens, "proj_tokens")
    predictions = model.predict(batch, output)
    assert [p.answer for p in predictions] == case["refgame_pred_index"].astype(int).tolist()
    assert [p.correct for p in predictions] == case["refgame_correct"].astype(bool).tolist()
    case.close(-torch.tensor([p.score for p in predictions]), "refgame_score")
    assert [list(target_point(example)) for example in batch.examples] == case["target_coords"].tolist()
    truth = [torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).long(), case.tensor("num_candidates")]
    loss = mdetr_losses(output, batch, Targets(case.tensor("target_coords"), *truth), LossWeights(1.0, 0.0))["task"]
    assert float(loss) == pytest.approx(case["sdr_l1_loss"].mean(), abs=1e-4)
    order = output.phrase_scores.argsort(dim=1, descending=True, stable=True)[:, :15]
    case.close(output.boxes_xyxy[batch.phrase_example[:, None], order].clamp(0, 1), "ranked_boxes_top15")
    _compare_set_losses(case, batch, output)
    assert case.unread == POINT_IN_FP64


def _compare_set_losses(case: Case, batch: Batch, output: Any) -> None:
    """The study's positive map is binary; ours has rows that sum to one, so the functions are given the study's."""
    places = np.arange(batch.input_ids.shape[1])[:, None]
    text = EncodedText(places[:, 0], 4 * (places - 1) + (0, 3))  # as the manifest says: token j has 4(j-1) and two more
    tokens = [text.tokens_of([tuple(span)]) for span in case["phrase_char_span"].tolist()]
    assert np.array_equal(tokens, batch.phrase_tokens)
    phrase = case.tensor("gt_box_phrase")
    binary = case.tensor("phrase_positive_map").float()[phrase]
    expected, compared = case.manifest["losses_fp32"], set()
    for layer in range(6):
        found = set_losses(
            output.token_logits[layer],
            output.boxes_cxcywh[layer],
            output.projected_queries[layer],
            output.projected_tokens,
            case.tensor("gt_boxes"),
            binary,
            batch.phrase_tokens[phrase],
            batch.phrase_example[phrase],
        )
        for name, value in found.items():
            key = f"{name}_{layer}" if layer < 5 else name
            assert float(value) == pytest.approx(expected[key], rel=1e-5), key
            compared.add(key)
    assert compared == set(expected)


@torch.inference_mode()
def test_mdetr_in_double_precision(reference):
    """Positions stay in single precision, as in the original."""
    model = Mdetr(MdetrConfig(), wordpiece(256)).eval()
    load_gold(model.mdetr, reference)
    model.double()
    for name in ("A_mdetr", "A_mdetr_odd"):
        case = Case(reference, name)
        batch = batch_of(case, model.image_mean, model.image_std, 32)
        last = encoded(model, batch)[-1][-1]
        case.close(model.mdetr.class_embed(last)[:, ::10], "pred_logits_fp64")
        case.close(model.mdetr.bbox_embed(last).sigmoid(), "pred_boxes_fp64")
        assert case.read >= STATE_IN_FP64
    load_gold(model, reference)
    case = Case(reference, "A2_mdetr_sdr")
    output = model(batch_of(case, model.image_mean, model.image_std, 32))
    case.close(output.task_point, "sdr_coords_fp64")
    case.close(output.task_points[-1], "sdr_coords_if_last_layer_fp64")
    assert case.read >= POINT_IN_FP64
