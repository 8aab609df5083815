"""MDETR at a few thousand weights: positions, batches, attention, ranked boxes, the task query, sites, backbones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import CAPTIONS, MDETR, captured, game, single_image, small_mdetr
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, box_convert

from grounding.errors import BadInput
from grounding.models.backbone import Backbone
from grounding.models.mdetr import Mdetr, MdetrConfig, MdetrOutput, _phrase_scores
from grounding.models.mdetr_transformer import sine_positions


@pytest.fixture(scope="module")
def model() -> Mdetr:
    return small_mdetr()


@pytest.fixture(scope="module", params=[{}, {"pre_norm": True, "position_temperature": 20.0}], ids=["post", "pre"])
def either(request: pytest.FixtureRequest) -> Mdetr:
    """With the released checkpoints' norms and positions, and with the miniature's."""
    return small_mdetr(**request.param)


SAME_SIZE = [game("a"), replace(game("b", seed=1), caption="a dot", phrases=()), game("c", target=2, seed=2)]
MIXED = [single_image("tall", 64, 16, seed=1), game(images=2), single_image("wide", 16, 80, seed=2)]


def test_a_batch_of_one_size_gives_what_its_examples_give_alone(either):
    model = either
    together, output = captured(model, SAME_SIZE)
    batch = model.preprocess(SAME_SIZE)
    for row, example in enumerate(SAME_SIZE):
        alone, expected = captured(model, [example])
        single = model.preprocess([example])
        for site in model.sites():
            layout, own = site.layout(batch), site.layout(single)
            for stream in site.streams:
                states = together.state[site.name][row, getattr(layout, stream)]
                wanted = alone.state[site.name][0, getattr(own, stream)]
                torch.testing.assert_close(states[: len(wanted)], wanted, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(output.task_point[row], expected.task_point[0])
        torch.testing.assert_close(output.boxes_xyxy[row], expected.boxes_xyxy[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_under_the_padding_does_not_matter(either):
    model = either
    batch = model.preprocess(MIXED)
    clean = model(batch)
    images = torch.where(batch.pixel_mask[:, None], batch.images, 77)
    ids = torch.where(batch.text_mask, batch.input_ids, 9)
    dirty = model(replace(batch, images=images))
    torch.testing.assert_close(dirty.boxes_cxcywh, clean.boxes_cxcywh)
    dirty = model(replace(batch, input_ids=ids))
    torch.testing.assert_close(dirty.task_points, clean.task_points)
    torch.testing.assert_close(dirty.token_logits, clean.token_logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pixels_are_normalised_as_for_imagenet_and_padding_to_zero(model):
    given: list[Tensor] = []
    handle = model.mdetr.backbone[0].register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, 16:] = (255, 51, 0)
    model(model.preprocess([replace(single_image(), images=(pixels,)), single_image(height=64, width=64)]))
    handle.remove()
    image = given[0][0]
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
    expected = torch.tensor([(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(image[:, 0, 20], expected)
    assert not image[:, 32:].any()
    assert not image[:, :, 32:].any()


@pytest.mark.parametrize("temperature", [None, 20])
@torch.no_grad()
def test_positions_have_the_temperature_of_the_configuration(temperature):
    model = small_mdetr() if temperature is None else small_mdetr(position_temperature=temperature)
    batch = model.preprocess([single_image(height=32, width=48)])
    images = batch.images.float()
    positions = model.mdetr.encode(images, batch.pixel_mask, batch.input_ids, batch.text_mask)[1][0]
    expected = np.zeros((2, 3, 2, 6, 2))  # row, column, y or x, pairs of a sine and a cosine
    for (row, column), cell in {(r, c): expected[r, c] for r in range(2) for c in range(3)}.items():
        for half, place in zip(cell, ((row + 1) / 2, (column + 1) / 3), strict=True):
            for k in range(6):
                angle = 2 * math.pi * place / (temperature or 10000) ** (2 * k / 12)
                half[k] = math.sin(angle), math.cos(angle)
    np.testing.assert_allclose(positions[:6], expected.reshape(6, 24), atol=1e-5)
    assert not positions[6:].any()  # text has none


def test_two_forward_passes_are_equal(model):
    first, second = (captured(model, MIXED)[1] for _ in range(2))
    for name in ("task_points", "token_logits", "boxes_cxcywh", "projected_queries", "projected_tokens"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@torch.no_grad()
def test_outputs_are_what_they_say(model):
    seen, output = captured(model, MIXED)
    tokens, phrases = model.preprocess(MIXED).input_ids.shape[1], 6
    assert output.token_logits.shape == (3, 3, 7, 20)
    assert output.boxes_cxcywh.shape == (3, 3, 7, 4)
    assert output.projected_queries.shape == (3, 3, 7, 8)
    assert output.projected_tokens.shape == (3, tokens, 8)
    assert output.phrase_scores.shape == (phrases, 7)
    torch.testing.assert_close(output.projected_queries.norm(dim=-1), torch.ones(3, 3, 7))
    torch.testing.assert_close(output.projected_tokens.norm(dim=-1), torch.ones(3, tokens))
    torch.testing.assert_close(output.boxes_xyxy, box_convert(output.boxes_cxcywh[-1], "cxcywh", "xyxy"))
    best = output.phrase_scores.argmax(1)
    assert torch.equal(output.phrase_query, best)
    owners = model.preprocess(MIXED).phrase_example
    assert torch.equal(output.phrase_point, output.boxes_cxcywh[-1, owners, best, :2])
    assert ((output.task_points > 0) & (output.task_points < 1)).all()
    text = seen.state["encoder.1"][:, -tokens:]
    projected = nn.functional.normalize(model.mdetr.contrastive_align_projection_text(text), dim=-1)
    torch.testing.assert_close(output.projected_tokens, projected)
    for k in range(3):
        hidden = model.mdetr.transformer.decoder.norm(seen.state[f"decoder.{k}"])  # one norm for every layer
        torch.testing.assert_close(output.token_logits[k], model.mdetr.class_embed(hidden[:, :-1]))
        torch.testing.assert_close(output.task_points[k], model.sdr_head(hidden[:, -1]).sigmoid()[:, :2])


def test_attention_is_the_softmax_of_the_layers_own_projections(model):
    seen, _ = captured(model, MIXED)
    batch = model.preprocess(MIXED)
    mask = batch.pixel_mask[:, ::16, ::16]
    visible = torch.cat([mask.flatten(1), batch.text_mask], dim=1)
    text = torch.zeros(3, batch.input_ids.shape[1], 24)
    positions = torch.cat([sine_positions(mask, 24), text], dim=1)
    core = model.mdetr.transformer
    queries = torch.cat([model.mdetr.query_embed.weight, model.sdr_embed.weight]).expand(3, -1, -1)
    memory = seen.state["encoder.1"] + positions
    with torch.no_grad():
        layer = core.decoder.layers[1]
        states = seen.state["decoder.0"]
        placed = states + queries
        states = layer.norm1(states + layer.self_attn(placed, placed, states, None))
        inputs = {
            "encoder.0": (core.encoder.layers[0].self_attn, *[seen.state["embedding"] + positions] * 2),
            "encoder.1": (core.encoder.layers[1].self_attn, *[seen.state["encoder.0"] + positions] * 2),
            "decoder.1": (layer.cross_attn_image, states + queries, memory),
        }
        for name, (module, query, key) in inputs.items():
            weight, offset = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
            query, key = (
                (states @ weight[i].T + offset[i]).unflatten(-1, (2, 12)).transpose(1, 2)
                for i, states in enumerate((query, key))
            )
            scores = (query @ key.transpose(-1, -2) / math.sqrt(12)).masked_fill(~visible[:, None, None], -math.inf)
            torch.testing.assert_close(seen.weights[name], scores.softmax(-1), atol=1e-5, rtol=1e-3)
    assert set(seen.weights) == {"encoder.0", "encoder.1", "decoder.0", "decoder.1", "decoder.2"}
    for weights in seen.weights.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(*weights.shape[:3]))


@pytest.mark.parametrize("site", ["encoder.0", "encoder.1", "decoder.0", "decoder.2"])
@pytest.mark.parametrize("tap", ["query", "key", "output"])
@torch.no_grad()
def test_changing_a_tap_changes_the_boxes(model, site, tap):
    batch = model.preprocess([game()])
    before = model(batch).boxes_cxcywh[-1]
    path = next(s.attention_path for s in model.sites() if s.name == site)
    module = model.get_submodule(f"{path}.taps.{tap}")
    handle = module.register_forward_hook(lambda module, inputs, output: output.flip(-1) * 2)
    try:
        assert (model(batch).boxes_cxcywh[-1] - before).abs().max() > 1e-4
    finally:
        handle.remove()


def test_sites_are_modules_whose_states_cover_their_streams(model):
    seen, _ = captured(model, MIXED)
    batch = model.preprocess(MIXED)
    sites = {site.name: site for site in model.sites()}
    memory = ["norm"] if model.config.pre_norm else []
    assert list(sites) == [
        *["backbone", "text.0", "text.1", "embedding", "encoder.0", "encoder.1", *memory],
        *["decoder.0", "decoder.1", "decoder.2"],
    ]
    assert {sites[f"decoder.{k}"].phrase_partner for k in range(3)} == {"norm" if memory else "encoder.1"}
    if memory:
        assert torch.equal(seen.state["norm"], model.mdetr.transformer.encoder.norm(seen.state["encoder.1"]))
    for name, site in sites.items():
        states, layout = seen.state[name], site.layout(batch)
        assert states.shape[::2] == (3, site.width)
        everything = range(states.shape[1])
        covered = [i for s in site.streams for i in everything[getattr(layout, s)]]
        rest = {7} if site.streams == ("query",) else set()  # the query of the task
        assert sorted(covered) == sorted(set(everything) - rest)
        for stream in {"text", "image", "query"} - set(site.streams):
            assert getattr(layout, stream) is None
        for partner, stream in ((site.phrase_partner, "text"), (site.region_partner, "image")):
            assert partner is None or stream in sites[partner].streams
        assert "text" in site.streams or site.phrase_partner
        assert "image" in site.streams or site.region_partner or site.streams == ("query",)
    # The joint input is image and text side by side: the backbone's cells, then the resized text.
    cells = batch.grid[0] * batch.grid[1]
    assert torch.equal(seen.state["embedding"][:, :cells], seen.state["backbone"])
    resized = model.mdetr.transformer.resizer(seen.state["text.1"])
    torch.testing.assert_close(seen.state["embedding"][:, cells:], resized)


def batch_of(model: Mdetr, phrase_tokens: list[list[int]], length: int):
    """A batch of one game whose phrases own given token positions."""
    batch = model.preprocess([replace(game(), phrases=game().phrases[:1] * len(phrase_tokens))])
    mask = torch.zeros(len(phrase_tokens), batch.input_ids.shape[1], dtype=torch.bool)
    for row, tokens in enumerate(phrase_tokens):
        mask[row, tokens] = True
    assert mask.shape[1] >= length
    return replace(batch, phrase_tokens=mask)


def test_the_score_of_a_phrase_is_its_most_likely_token_among_all_slots(model):
    logits = torch.full((1, 3, 20), -30.0)
    logits[0, 0, [2, 3, 19]] = torch.tensor([0.6, 0.3, 0.1]).log()
    logits[0, 1, [3, 19]] = torch.tensor([0.5, 0.5]).log()
    logits[0, 2, [5, 19]] = torch.tensor([0.2, 0.8]).log()
    batch = batch_of(model, [[2, 3], [3], [5], [4]], 6)
    found = _phrase_scores(logits, batch.phrase_tokens, batch.phrase_example)
    expected = torch.tensor([[0.6, 0.5, 0.0], [0.3, 0.5, 0.0], [0.0, 0.0, 0.2], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_boxes_are_ranked_and_given_in_their_own_candidates(model):
    example = game(images=4, target=2)
    batch = model.preprocess([example])
    boxes = torch.tensor([[[0.5, 0.625, 0.2, 0.1], [0.5, 0.1, 1.0, 0.3], [0.3, 0.9, 0.2, 0.2]]])
    output = MdetrOutput(
        task_point=torch.tensor([[0.4, 0.55]]),
        phrase_point=torch.zeros(2, 2),
        token_logits=torch.zeros(0),
        boxes_cxcywh=boxes[None],
        projected_queries=torch.zeros(0),
        projected_tokens=torch.zeros(0),
        boxes_xyxy=box_convert(boxes, "cxcywh", "xyxy"),
        phrase_scores=torch.tensor([[0.2, 0.7, 0.2], [0.9, 0.05, 0.3]]),
        phrase_query=torch.tensor([1, 0]),
        task_points=torch.zeros(0),
    )
    (prediction,) = model.predict(batch, output)
    assert prediction.answer == 2
    assert prediction.correct
    assert prediction.score == pytest.approx(-(0.1 + 0.075))  # to (0.5, 0.625), the middle of candidate 2
    first, second = prediction.phrases
    assert (first.phrase_id, second.phrase_id) == ("p0", "p1")
    np.testing.assert_allclose(first.scores, [0.7, 0.2, 0.2])
    assert first.image_index.tolist() == [0, 2, 3]  # equal scores keep the order of the queries
    np.testing.assert_allclose(first.boxes[0], [0.0, -0.2, 1.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(first.boxes[1], [0.4, 0.3, 0.6, 0.7], atol=1e-6)
    np.testing.assert_allclose(first.boxes[2], [0.2, 0.2, 0.4, 1.0], atol=1e-6)
    assert second.image_index.tolist() == [2, 3, 0]
    assert second.heatmap is None


@pytest.mark.parametrize("count", [6, 10])
def test_every_height_is_decoded_to_its_candidate(model, count):
    examples = [game(images=count, size=16, target=k) for k in range(count)]
    small = small_mdetr(candidate_size=16)
    batch = small.preprocess(examples)
    with torch.no_grad():
        output = small(batch)
    for offset in (0.02, 0.5, 0.98):
        points = torch.tensor([[0.5, (k + offset) / count] for k in range(count)])
        predictions = small.predict(batch, replace(output, task_point=points))
        assert [p.answer for p in predictions] == list(range(count))
        assert all(p.correct for p in predictions)


@pytest.mark.parametrize(("task_layer", "silent"), [(0, [1, 2]), (1, [2]), (-1, [])])
def test_the_task_reads_the_layer_it_is_told_to(task_layer, silent):
    model = small_mdetr(task_layer=task_layer)
    output = model(model.preprocess([game()]))
    assert torch.equal(output.task_point, output.task_points[task_layer])
    output.task_point.sum().backward()
    for k, layer in enumerate(model.mdetr.transformer.decoder.layers):
        assert (not layer.linear1.weight.grad.any()) == (k in silent)


@torch.no_grad()
def test_the_query_of_the_task_takes_part_in_attention_but_has_no_box():
    model = small_mdetr()
    batch = model.preprocess([game()])
    before = model(batch)
    model.sdr_embed.weight += 1.0
    after = model(batch)
    assert before.boxes_xyxy.shape[1] == 7
    assert (after.task_point - before.task_point).abs().max() > 1e-4
    assert (after.boxes_cxcywh - before.boxes_cxcywh).abs().max() > 1e-5


@torch.no_grad()
def test_the_words_and_the_image_both_matter(model):
    example = game()
    before = model(model.preprocess([example]))
    for changed in (replace(example, caption=CAPTIONS[1], phrases=()), replace(example, images=game(seed=5).images)):
        after = model(model.preprocess([changed]))
        assert (after.task_point - before.task_point).abs().max() > 1e-5


@torch.no_grad()
def test_a_wide_image_and_an_example_without_phrases(model):
    example = replace(single_image("wide", 33, 170), phrases=())
    batch = model.preprocess([example])
    assert batch.grid == (2, 10)
    output = model(batch)
    (prediction,) = model.predict(batch, output)
    assert prediction.phrases == ()
    assert prediction.answer == pytest.approx(tuple(output.task_point[0].tolist()))
    truth = example.task.target_xy
    expected = -(abs(prediction.answer[0] - truth[0]) + abs(prediction.answer[1] - truth[1]))
    assert prediction.score == pytest.approx(expected)


@torch.no_grad()
def test_a_resnet_has_frozen_norms_and_stride_32():
    model = small_mdetr(backbone="resnet18", candidate_size=64, multiple=32)
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert norms
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not [name for name in model.state_dict() if name.endswith("num_batches_tracked")]
    batch = model.preprocess([game(size=64), game("other", size=64, seed=1)])
    assert batch.grid == (6, 2)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs = []
    for train in (True, False):
        model.train(train)
        outputs.append(model(batch).boxes_cxcywh)
    torch.testing.assert_close(outputs[0], outputs[1])  # no dropout here: training mode changes nothing at all
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert model(batch).boxes_cxcywh.isfinite().all()


def test_an_unknown_backbone_names_the_known_ones():
    with pytest.raises(BadInput, match="backbone 'resnet19' is unknown; accepted: small, resnet18"):
        Backbone("resnet19")


@torch.no_grad()
def test_bf16_autocast_on_cpu_is_close(model):
    batch = model.preprocess(MIXED)
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch)
    for name in ("token_logits", "boxes_cxcywh", "task_points"):
        one, other = getattr(exact, name), getattr(rough, name)
        assert other.dtype == torch.float32
        assert 0 < (one - other).abs().mean() < 0.05 * max(1.0, float(one.std()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "mdetr configuration: width 24 is not a multiple of heads 5"),
        ({"text_heads": 3}, "text_width 16 is not a multiple of text_heads 3"),
        ({"token_slots": 0}, "token_slots 0 is too small; accepted: 1 or more"),
        ({"max_text": 24}, "text_positions 24 is too small for max_text 24; accepted: 25 or more"),
        ({"pad_id": 4}, "text_positions 24 is too small for max_text 20; accepted: 25 or more"),
        ({"task_layer": 3}, "task_layer 3 is none of 3 decoder layers"),
        ({"task_layer": -4}, "task_layer -4 is none of 3 decoder layers"),
        ({"position_temperature": 0.0}, "position_temperature 0.0 is not above 0"),
        ({"position_temperature": -20}, "position_temperature -20 is not above 0"),
        ({"position_temperature": math.nan}, "position_temperature nan is not above 0"),
    ],
)
def test_a_configuration_that_cannot_be_built_names_its_field(changes, message):
    with pytest.raises(BadInput, match=message):
        MdetrConfig(**{**MDETR, **changes})


def test_a_caption_of_the_full_length_fits():
    model = small_mdetr()
    long = replace(game(), caption="a dot " * 30)
    batch = model.preprocess([long])
    assert batch.input_ids.shape == (1, 20)
    with torch.no_grad():
        assert model(batch).phrase_scores.isfinite().all()
