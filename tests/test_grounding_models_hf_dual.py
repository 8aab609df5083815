"""CLIP and SigLIP behind their adapters: the same numbers as transformers', tokens where they say, and the checks."""

from __future__ import annotations

import pytest
import torch
from hf_models import certificate, changed_cells, check_extraction, pixels_of, square_game, tiny
from small_models import captured, game, single_image
from torch.testing import assert_close

from grounding.models.attention import attention_weights
from grounding.models.hf.dual import with_phrases_alone

KINDS = ("clip", "siglip", "siglip2")


def stock(model, example, batch):
    """What the untouched transformers model gives for every candidate, with plain attention."""
    network = model.network
    network.set_attn_implementation("eager")
    pixels = pixels_of(model, example)
    inputs = {"input_ids": batch.input_ids}
    if model.config.model_type == "clip":
        inputs |= {"attention_mask": batch.text_mask.long(), "pixel_values": pixels}
    elif model.config.model_type == "siglip":
        inputs |= {"pixel_values": pixels}
    else:
        from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

        patches = [convert_image_to_patches(image.numpy(), 8) for image in pixels]
        patches = torch.stack([torch.as_tensor(p) for p in patches])
        shapes = torch.full((len(pixels), 2), 4)
        inputs |= {"pixel_values": patches, "pixel_attention_mask": torch.ones(len(pixels), 16).long()}
        inputs |= {"spatial_shapes": shapes}
    output = network(**inputs, output_hidden_states=True)
    network.set_attn_implementation("tapped")
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_scores_are_those_of_transformers(kind):
    model = tiny(kind)
    example = square_game(model)
    seen, output = captured(model, [example])
    with torch.no_grad():
        expected = stock(model, example, model.preprocess([example]))
    assert_close(output.match, expected.logits_per_text, atol=1e-4, rtol=1e-4)
    for k, states in enumerate(expected.text_model_output.hidden_states[1:]):
        assert_close(seen.state[f"text.{k}"], states, atol=1e-4, rtol=1e-4)
    classes = 1 if kind == "clip" else 0
    for k, states in enumerate(expected.vision_model_output.hidden_states[1:]):
        assert_close(seen.state[f"vision.{k}"][0], states[:, classes:].flatten(0, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_attention_is_that_of_transformers(kind):
    model = tiny(kind)
    example = square_game(model)
    seen, _ = captured(model, [example])
    model.network.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model.network.vision_model(pixels_of(model, example), output_attentions=True)
    assert_close(seen.weights["vision.1"], expected.attentions[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_certificate(kind):
    assert certificate(tiny(kind)) == {"ok": 8}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("slot", "row", "column"), [(0, 0, 1), (1, 2, 3), (2, 3, 0)])
def test_one_cell_of_pixels_changes_one_token(kind, slot, row, column):
    assert changed_cells(tiny(kind), "vision.embedding", slot, row, column) == [(4 * slot + row, column)]


@pytest.mark.parametrize("kind", KINDS)
def test_extraction_end_to_end(kind, tmp_path):
    run = check_extraction(tiny(kind), tmp_path, ("phrase", "region", "tokens"))
    assert run.site("text.1").views == ("phrase", "tokens")
    assert run.site("vision.1").views == ("region", "tokens")
    assert run.read("text.1", "region").shape == (len(run.regions), 24)
    assert run.read("vision.1", "phrase").shape == (len(run.phrases), 32)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_agree_with_the_scores(kind):
    model = tiny(kind)
    examples = [square_game(model, images=3, target=1), game(images=2, target=0, seed=4), single_image()]
    batch = model.preprocess(examples)
    with torch.no_grad():
        output = model(batch)
    first, second, third = model.predict(batch, output)
    assert first.answer == int(output.match[0, :3].argmax())
    assert second.answer == int(output.match[1, :2].argmax())
    assert first.score == pytest.approx(float(output.match[0, :3].log_softmax(0)[1]), abs=1e-5)
    assert second.correct == (second.answer == 0)
    assert third.answer == pytest.approx(tuple(output.task_point[2].tolist()))
    assert int(output.task_point[0, 1] * 3) == first.answer, "the caption's place lies in its best candidate"
    for prediction, images in ((first, 3), (second, 2), (third, 1)):
        for phrase in prediction.phrases:
            assert phrase.heatmap.shape == (images, 4, 4)
            assert phrase.heatmap.sum() == pytest.approx(1.0, abs=1e-5)


def test_targets_do_not_reach_the_answers():
    """The same game with another target: only what is asked of the answer changes."""
    model = tiny("clip")
    outputs = []
    for target in (0, 2):
        with torch.no_grad():
            outputs.append(model(model.preprocess([square_game(model, target=target)])))
    assert torch.equal(outputs[0].log_phrases, outputs[1].log_phrases)
    assert torch.equal(outputs[0].task_point, outputs[1].task_point)


@pytest.mark.parametrize("kind", KINDS)
def test_a_phrase_that_resembles_one_patch_is_put_there(kind, monkeypatch):
    model = tiny(kind)
    batch = model.preprocess([square_game(model)])
    planted = {}
    encode_text, encode_image = model.encode_text, model.encode_image

    def text(ids, mask):
        planted["text"] = encode_text(ids, mask)
        return planted["text"]

    def image(pixels):
        pooled, patches = encode_image(pixels)
        patches = patches.clone()
        patches[:, 6] = 10 * planted["text"][1]  # the first phrase
        return pooled, patches

    monkeypatch.setattr(model, "encode_text", text)
    monkeypatch.setattr(model, "encode_image", image)
    with torch.no_grad():
        output = model(batch)
    assert output.log_phrases[0].view(3, 16).argmax(1).tolist() == [6, 6, 6]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_patch_goes_the_way_of_an_image_that_is_all_like_it(kind):
    model = tiny(kind)
    states = torch.randn(2, 1, 24).expand(2, 16, 24)
    pooled = model.network.vision_model.head(states)
    assert_close(model.pool_alone(states), pooled[:, None].expand(2, 16, 24), atol=1e-5, rtol=1e-4)


def test_phrases_alone_keep_the_special_tokens():
    model = tiny("clip")
    batch = model.preprocess([game()])
    ids, mask = with_phrases_alone(batch, pad_id=0)
    assert torch.equal(ids[0], batch.input_ids[0])
    words = batch.input_ids[0][batch.phrase_tokens[1]].tolist()
    assert ids[2][mask[2]].tolist() == [2, *words, 3]
    assert (ids[2][~mask[2]] == 0).all()


def naflex(shapes, length):
    """Pixel values, mask and shapes of noise images of so many rows and columns of patches, padded to ``length``."""
    generator = torch.Generator().manual_seed(0)
    patches = [torch.randn(rows * columns, 3 * 8 * 8, generator=generator) for rows, columns in shapes]
    pixels, mask = torch.randn(len(shapes), length, 3 * 8 * 8, generator=generator), torch.zeros(len(shapes), length)
    for k, own in enumerate(patches):
        pixels[k, : len(own)], mask[k, : len(own)] = own, 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask.long(), "spatial_shapes": torch.tensor(shapes)}


def test_patches_of_any_resolution_are_read_through_the_taps_and_padding_does_not_matter():
    """NaFlex: images of 2 x 7 and 4 x 3 patches in one batch, against stock attention and each image by itself."""
    model = tiny("siglip2")
    vision, shapes = model.network.vision_model, [(2, 7), (4, 3)]
    taps = [layer.self_attn.taps for layer in vision.encoder.layers]
    seen = [{} for _ in taps]
    for store, tap in zip(seen, taps, strict=True):
        for name in ("query", "key", "bias"):
            getattr(tap, name).register_forward_hook(lambda m, i, o, store=store, name=name: store.update({name: o}))
    with torch.no_grad():
        output = vision(**naflex(shapes, 16))
        weights = [attention_weights(**store) for store in seen]
        model.network.set_attn_implementation("eager")
        expected = vision(**naflex(shapes, 16), output_attentions=True)
        model.network.set_attn_implementation("tapped")
        for k, shape in enumerate(shapes):
            count = shape[0] * shape[1]
            assert_close(
                output.last_hidden_state[k, :count], expected.last_hidden_state[k, :count], atol=1e-5, rtol=1e-4
            )
            for found, stock_weights in zip(weights, expected.attentions, strict=True):
                assert_close(found[k, :, :count], stock_weights[k, :, :count], atol=1e-5, rtol=1e-4)
                assert found[k, :, :count, count:].max() == 0
            whole = naflex(shapes, 16)
            alone = {name: value[k : k + 1] for name, value in whole.items()}
            alone = {**alone, **{name: alone[name][:, :count] for name in ("pixel_values", "pixel_attention_mask")}}
            single = vision(**alone)
            assert_close(output.last_hidden_state[k, :count], single.last_hidden_state[0], atol=1e-5, rtol=1e-4)
            assert_close(output.pooler_output[k], single.pooler_output[0], atol=1e-5, rtol=1e-4)
