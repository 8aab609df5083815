"""Models that write text behind their adapters: transformers' own numbers, tokens where they say, and the checks."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hf_generative_models import VARIANTS, stock_inputs, stock_network, tiny, tokenizer
from hf_models import certificate, check_extraction, write_folder
from small_models import captured, game, single_image
from test_probe_cli import run as run_command
from torch.testing import assert_close

from grounding.checkpoint import load_checkpoint
from grounding.errors import BadInput
from grounding.models.hf.idefics import latent_attention
from grounding.models.hf.prompts import ImagePromptTokenizer

QWEN = ("qwen2_5_vl", "qwen3_vl")
JOINT = [name for name in VARIANTS if not name.startswith("idefics")]
CELLS = 16


@pytest.fixture(params=VARIANTS)
def name(request):
    return request.param


def wide(**changes):
    """A spatial description whose image is 3 by 7 cells for Qwen."""
    return single_image(**{"height": 24, "width": 56, **changes})


@torch.no_grad()
def stock(name, model, image, caption):
    """What transformers gives for one image and one caption, everything that it can tell."""
    inputs = stock_inputs(name, image, caption)
    inputs.pop("labels", None)  # the adapter's sum is checked against the logits
    output = stock_network(model)(**inputs, output_hidden_states=True, output_attentions=True)
    return inputs["input_ids"][0], output


def image_id(model):
    return model.preprocessor.tokenizer.image_id


def test_the_certificate(name):
    assert certificate(tiny(name)) == {"ok": 8}


@pytest.mark.parametrize(("name", "wide_image"), [*((name, False) for name in VARIANTS), *((q, True) for q in QWEN)])
def test_states_attention_and_likelihood_are_those_of_transformers(name, wide_image):
    model = tiny(name)
    example = wide() if wide_image else game(images=1, target=0, size=model.preprocessor.candidate_size)
    seen, output = captured(model, [example])
    batch = model.preprocess([example])
    pixels = batch.images[0].permute(1, 2, 0).numpy()
    ids, expected = stock(name, model, pixels, example.caption)
    text = ids != image_id(model) if name in JOINT else torch.ones_like(ids, dtype=torch.bool)
    tokens = batch.input_ids.shape[1]
    assert torch.equal(batch.input_ids[0], ids[text][:tokens])  # PaliGemma's processor ends with </s>
    counted = batch.offsets[0, :, 0] < batch.offsets[0, :, 1]
    places = text.nonzero()[:tokens, 0]
    logs = expected.logits[0].log_softmax(-1)
    likelihood = sum(logs[places[t] - 1, ids[places[t]]] for t in range(tokens) if counted[t])
    assert_close(output.match[0, 0], likelihood, atol=1e-4, rtol=1e-5)
    stage = "block" if name in JOINT else "text"
    for k in range(model.settings.get_text_config().num_hidden_layers - 1):  # of the last, it tells the norm's output
        states = expected.hidden_states[k + 1][0]
        found = seen.state[f"{stage}.{k}"][0]
        assert_close(found[:tokens], states[places], atol=1e-4, rtol=1e-4)
        if name in JOINT:
            assert_close(found[tokens:], states[~text], atol=1e-4, rtol=1e-4)
    assert_close(seen.state["norm"][0, :tokens], expected.hidden_states[-1][0][places], atol=1e-4, rtol=1e-4)
    if name in JOINT:
        for k in range(2):
            weights, look = seen.weights[f"block.{k}"][0], expected.attentions[k][0]
            cells = int((~text).sum())
            assert_close(weights[..., :cells], look[:, places][:, :, ~text], atol=1e-5, rtol=1e-4)
            assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.parametrize("name", JOINT)
def test_the_connector_gives_what_transformers_hands_to_the_language_model(name):
    model = tiny(name)
    example = wide() if name in QWEN else game(images=1, target=0)
    seen, _ = captured(model, [example])
    pixels = model.preprocess([example]).images[0].permute(1, 2, 0).numpy()
    inputs = stock_inputs(name, pixels, "a dot")
    given = {key: inputs[key] for key in ("pixel_values", "image_grid_thw") if key in inputs}
    with torch.no_grad():
        expected = stock_network(model).get_image_features(**given, return_dict=True).pooler_output
    assert_close(seen.state["connector"][0], expected[0], atol=1e-4, rtol=1e-4)


def test_captions_are_aligned_exactly_behind_the_prompt(name):
    model = tiny(name)
    caption = game().caption
    batch = model.preprocess([game(), game()])
    for row in range(2):
        real = batch.offsets[row][batch.offsets[row, :, 0] < batch.offsets[row, :, 1]].tolist()
        assert real[0][0] == 0
        assert real[-1][1] == len(caption)
        assert all(before[1] == after[0] for before, after in pairwise(real))
    words = [caption[b:e].strip() for b, e in batch.offsets[0][batch.phrase_tokens[1]].tolist()]
    assert "".join(words).replace(" ", "") == "bluebox"
    assert not (batch.phrase_tokens & (batch.offsets[batch.phrase_example, :, 1] == 0)).any()


def embedding(model, examples):
    return captured(model, examples)[0].state["vision.embedding"]


@pytest.mark.parametrize(("slot", "row", "column"), [(0, 0, 1), (1, 2, 3), (2, 3, 0)])
def test_one_cell_of_pixels_changes_one_token(name, slot, row, column):
    model = tiny(name)
    size = model.preprocessor.candidate_size
    example = game(size=size)
    side = model.preprocess([example]).grid[1]
    cell = size // side
    images = [np.array(image) for image in example.images]
    images[slot][row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] ^= 255
    changed = replace(example, images=tuple(images))
    moved = (embedding(model, [example]) != embedding(model, [changed])).any(-1)[0]
    assert moved.nonzero()[:, 0].tolist() == [(slot * side + row) * side + column]
    seen = [captured(model, [one])[0].state["vision.0"][0] for one in (example, changed)]
    assert int((seen[0] - seen[1]).norm(dim=-1).argmax()) == (slot * side + row) * side + column


@pytest.mark.parametrize("name", QWEN)
@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 6), (1, 4)])
def test_cells_of_a_wide_image_are_where_they_are_said_to_be(name, row, column):
    model = tiny(name)
    example, tall = wide(), single_image(height=40, width=24)
    assert model.preprocess([example]).grid == (3, 7)
    image = np.array(example.images[0])
    image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] ^= 255
    changed = replace(example, images=(image,))
    before, after = (embedding(model, [tall, one]) for one in (example, changed))  # a canvas of 5 x 7
    moved = (before != after).any(-1)
    assert moved.nonzero().tolist() == [[1, row * 7 + column]]
    seen = [captured(model, [tall, one])[0].state for one in (example, changed)]
    for site in ("vision.0", "connector"):
        assert int((seen[0][site] - seen[1][site])[1].norm(dim=-1).argmax()) == row * 7 + column


@pytest.mark.parametrize("name", QWEN)
def test_images_of_several_sizes_do_not_matter_to_each_other(name):
    model = tiny(name)
    examples = [game(images=2, target=1), wide(), single_image(height=40, width=24)]
    together = model.predict(batch := model.preprocess(examples), run(model, batch))
    for example, found in zip(examples, together, strict=True):
        (alone,) = model.predict(batch := model.preprocess([example]), run(model, batch))
        assert found.answer == pytest.approx(alone.answer)
        assert found.score == pytest.approx(alone.score, abs=1e-4)
        for ours, theirs in zip(found.phrases, alone.phrases, strict=True):
            assert_close(torch.tensor(ours.heatmap), torch.tensor(theirs.heatmap), atol=1e-5, rtol=1e-3)
    assert [one.phrases[0].heatmap.shape for one in together] == [(2, 8, 8), (1, 3, 7), (1, 5, 3)]


@torch.no_grad()
def run(model, batch):
    return model(batch)


@pytest.mark.parametrize("name", [*JOINT, "idefics"])
def test_a_map_is_the_mean_attention_of_the_phrase_within_each_candidate(name):
    model = tiny(name)
    size = model.preprocessor.candidate_size
    examples = [game(images=2, target=target, size=size) for target in (0, 1)]
    outputs, looks = [], []
    for target, example in enumerate(examples):
        seen, output = captured(model, [example])
        batch = model.preprocess([example])
        cells = batch.grid[1] ** 2
        weights = torch.stack([w[0].mean(0) for site, w in seen.weights.items() if not site.startswith("vision")])
        of_phrase = weights.mean(0)[batch.phrase_tokens[0].nonzero()[:, 0]].mean(0)
        assert (of_phrase[(1 - target) * cells : (2 - target) * cells] == 0).all(), "the other candidate is not seen"
        looks.append(of_phrase[target * cells : (target + 1) * cells])
        outputs.append(output)
    assert_close(outputs[0].log_phrases, outputs[1].log_phrases), "the target must not reach the answer"
    maps = outputs[0].log_phrases[0].exp().view(2, -1)
    for target in (0, 1):
        expected = looks[target] / looks[target].sum() * outputs[0].candidate_probability[0, target]
        assert_close(maps[target], expected, atol=1e-5, rtol=1e-3)


def test_latents_are_followed_back_to_patches():
    perceiver = VARIANTS["idefics-resampler"][1]["perceiver_config"]
    alone = {**perceiver, "resampler_depth": 1, "resampler_n_heads": 1}
    model = tiny("idefics-resampler", perceiver_config=alone)
    attention = model.network.model.perceiver_resampler.blocks[0][0]
    seen = {}
    attention.v_proj.register_forward_hook(lambda m, i, o: seen.update(value=o))
    attention.output_proj.register_forward_hook(lambda m, i, o: seen.update(attended=i[0]))
    with latent_attention([attention]) as weights:
        _, output = captured(model, [game(images=2)])
    assert_close(weights() @ seen["value"], seen["attended"], atol=1e-5, rtol=1e-4)
    assert weights().shape == (2, 5, 1 + CELLS + 5)
    assert output.log_phrases.exp().sum((1, 2)).tolist() == pytest.approx([1.0, 1.0])
    sites = {site.name: site for site in model.sites()}
    assert sites["cross.0"].attention_path is None


def test_answers(name):
    model = tiny(name)
    examples = [game(target=1), game(images=2, target=0, seed=4), single_image()]
    batch = model.preprocess(examples)
    output = run(model, batch)
    first, second, third = model.predict(batch, output)
    assert [first.answer, second.answer] == [int(output.match[b, :n].argmax()) for b, n in ((0, 3), (1, 2))]
    assert output.candidate_probability[0, :3].tolist() == pytest.approx(output.match[0].softmax(0).tolist())
    assert len(set(output.match[0].tolist())) == 3
    assert third.answer == pytest.approx(tuple(output.task_point[2].tolist()))
    row, column = divmod(int(output.log_task[2].argmax()), output.log_task.shape[2])
    rows, columns = third.phrases[0].heatmap.shape[1:]
    assert third.answer == pytest.approx(((column + 0.5) / columns, (row + 0.5) / rows))


def test_an_empty_caption_says_nothing(name):
    model = tiny(name)
    blank = replace(game(), caption="", phrases=())
    output = run(model, model.preprocess([blank]))
    assert output.candidate_probability[0].tolist() == pytest.approx([1 / 3] * 3)


def test_half_precision(name):
    model = tiny(name)
    batch = model.preprocess([game(), game(images=2, target=0)])
    full = run(model, batch)
    model.network.to(torch.bfloat16)
    half = run(model, batch)
    assert half.match.dtype == torch.float32
    assert half.match.isfinite().all()
    assert_close(half.match, full.match, atol=0.03 * float(full.match.abs().max()), rtol=0.0)


def test_extraction_end_to_end(name, tmp_path):
    views = ("phrase", "region", "attention", "tokens")
    done = check_extraction(tiny(name), tmp_path, views if name != "idefics-resampler" else ("phrase", "region"))
    if name in JOINT:
        looks = done.attention("block.1", 0)
        assert looks.shape[0] == 4
        target = done.examples["target_index"][done.phrases["example"][0]]
        mass = looks.reshape(4, 6, -1).sum(-1)
        assert (mass[:, target] > 0).all()
        assert mass.sum() == pytest.approx(mass[:, target].sum())


def test_a_caption_may_not_hold_an_image(name):
    model = tiny(name)
    bad = f"a dot {model.image_token} and a box"
    with pytest.raises(BadInput, match=r"has '<.*>' in it, which stands for an image"):
        model.preprocess([replace(game(), caption=bad)])


def test_phrases_beyond_the_limit_are_dropped_and_a_prompt_must_fit(name):
    kind = VARIANTS[name][0]
    model = tiny(name)
    length = len(model.preprocessor.tokenizer.encode("a red disc").ids) + (name in JOINT)
    options = {"whole": model.whole, "adds_special": model.adds_special}
    cut = ImagePromptTokenizer(tokenizer(kind, length), model.prompt, model.image_token, **options)
    text = cut.encode(game().caption)
    assert text.holds([(0, 10)])
    assert not text.holds([(14, 18)])
    assert text.lost_from is not None
    with pytest.raises(BadInput, match="text limit 2 is too short for the prompt"):
        ImagePromptTokenizer(tokenizer(kind, 2), model.prompt, "<|vision_end|>", **options)


def test_a_tokenizer_without_the_image_token_is_refused():
    with pytest.raises(BadInput, match="no token '<picture>', where the prompt has the image"):
        ImagePromptTokenizer(tokenizer("llava"), "USER: <picture> ", "<picture>")


def test_settings_of_llava_that_have_no_layout_are_refused():
    with pytest.raises(BadInput, match="'clip_vision_model' and vision_feature_select_strategy 'full'; accepted"):
        tiny("llava", vision_feature_select_strategy="full")
    with pytest.raises(BadInput, match="vision_feature_layer 0; accepted: outputs of its 3 layers"):
        tiny("llava", vision_feature_layer=0)


def test_several_layers_of_features():
    model = tiny("llava", vision_feature_layer=[1, -2])
    assert [site.name for site in model.sites()][:4] == ["vision.embedding", "vision.0", "vision.1", "connector"]
    example = game(images=1, target=0)
    _, output = captured(model, [example])
    ids, expected = stock("llava", model, example.images[0], example.caption)
    logs = expected.logits[0].log_softmax(-1)
    batch = model.preprocess([example])
    count = int((batch.offsets[0, :, 1] > 0).sum())
    likelihood = sum(logs[-k - 1, ids[-k]] for k in range(1, count + 1))
    assert_close(output.match[0, 0], likelihood, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", QWEN)
def test_a_sliver_is_refused_and_a_pixel_is_not(name):
    model = tiny(name)
    with pytest.raises(BadInput, match="'sdr': absolute aspect ratio must be smaller than 200"):
        model.preprocess([single_image(height=1, width=300)])
    assert model.preprocess([single_image(height=1, width=1)]).grid == (2, 2)  # the least that the processor allows


@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_gives_the_model_that_was_saved(name, sharded, tmp_path):
    model = tiny(name)
    limits = {"size": {"shortest_edge": 256, "longest_edge": 4096}}
    folder = write_folder(model, tmp_path / "x", sharded, resample=3, **(limits if name in QWEN else {}))
    loaded = load_checkpoint(folder)
    assert (folder / "model.safetensors.index.json").is_file() == sharded
    assert loaded.format == f"Hugging Face {VARIANTS[name][0]}"
    assert not loaded.report.missing
    assert set(loaded.report.loaded) == set(model.network.state_dict())
    batch = model.preprocess([game(), wide()])
    again = loaded.model.preprocess([game(), wide()])
    assert torch.equal(again.input_ids, batch.input_ids)
    assert torch.equal(again.images, batch.images)
    assert_close(vars(run(loaded.model, again)), vars(run(model, batch)))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics-resampler"])
def test_the_commands_take_the_folder(name, tmp_path, capsys, monkeypatch):
    limits = {"min_pixels": 256, "max_pixels": 4096} if name in QWEN else {}
    folder = write_folder(tiny(name), tmp_path / "x", **limits)

    def printed(*words):
        code, out, err = run_command(monkeypatch, capsys, *words, "--json")
        assert code == 0, err
        return json.loads(out)

    told = printed("inspect", folder, "--verify")
    assert [check["status"] for check in told["checks"]] == ["ok"] * 8
    split = ["--split", "dev", "--limit", "3"]
    games = printed("evaluate", "--ckpt", folder, "--benchmark", "mini-game", *split, "--threshold", "0.5")
    assert "accuracy" in json.dumps(games)
    printed("evaluate", "--ckpt", folder, "--benchmark", "mini-sdr", *split, "--threshold", "0.5")
    views = ["--views", "phrase,region"] if name == "idefics-resampler" else []
    printed("extract", "--ckpt", folder, "--benchmark", "mini-game", *split, "--out", tmp_path / "run", *views)
    assert (tmp_path / "run" / "activations.h5").is_file()


def test_limits_of_pixels_that_make_no_sense_are_one_line(tmp_path):
    folder = write_folder(tiny("qwen3_vl"), tmp_path / "x", min_pixels=256, max_pixels="many")
    with pytest.raises(BadInput, match=r"'many'.*; accepted: pixels"):
        load_checkpoint(folder)
