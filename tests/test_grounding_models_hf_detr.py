"""DETR and its kin behind one adapter: transformers' boxes, ranked by the labels that a phrase names."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hf_models import SIZES, certificate, check_extraction, pixels_of, square_game, tiny, write_folder
from small_models import captured, game, single_image
from test_probe_cli import run
from torch.testing import assert_close
from torchvision.ops import box_convert

from grounding.checkpoint import load_checkpoint
from grounding.errors import BadInput
from grounding.evaluate import evaluate, predict
from grounding.models.hf.detr import Detr

KINDS = ("detr", "conditional_detr", "deformable_detr", "rt_detr")
FINEST = {"detr": 5, "conditional_detr": 5, "deformable_detr": 8, "rt_detr": 8}
DISC, BLUE_BOX = 1, 2


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny(request.param)


def stock(model, example):
    """What an untouched transformers model of the same weights gives for every candidate."""
    plain = type(model.network)(model.config.transformers_config).eval()
    plain.load_state_dict(model.network.state_dict())
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        pixels = pixels_of(model, example)
        return plain(pixel_values=pixels, output_hidden_states=True, output_attentions=True)


def test_numbers_are_those_of_transformers(model):
    example = square_game(model, target=2)
    seen, output = captured(model, [example])
    expected = stock(model, example)
    boxes = box_convert(expected.pred_boxes, "cxcywh", "xyxy")
    boxes[..., 1::2] = (boxes[..., 1::2] + torch.arange(3)[:, None, None]) / 3
    assert_close(output.boxes_xyxy[0], boxes.flatten(0, 1), atol=1e-4, rtol=1e-3)
    kind = model.config.model_type
    scores = expected.logits.softmax(-1) if kind == "detr" else expected.logits.sigmoid()
    for p, label in enumerate((DISC, BLUE_BOX)):
        assert_close(output.phrase_logits[p].sigmoid(), scores[..., label].flatten(), atol=1e-5, rtol=1e-3)
    first = expected.intermediate_hidden_states[:, 0] if kind == "rt_detr" else expected.decoder_hidden_states[1]
    assert_close(seen.state["decoder.0"][0], first.flatten(0, 1), atol=1e-4, rtol=1e-3)
    norm = getattr(
        model.network.model.decoder, "layernorm", torch.nn.Identity()
    )  # transformers gives the last after it
    last = norm(seen.state["decoder.1"][0])
    assert_close(last, expected.last_hidden_state.flatten(0, 1), atol=1e-4, rtol=1e-3)
    if kind != "rt_detr":
        cells = model.cells
        for k in range(2):
            states = expected.encoder_hidden_states[k + 1][:, :cells]
            assert_close(seen.state[f"encoder.{k}"][0], states.flatten(0, 1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["detr", "conditional_detr"])
def test_queries_look_at_their_own_candidate_as_in_transformers(kind):
    model = tiny(kind)
    example = square_game(model, images=2, target=1)
    seen, _ = captured(model, [example, square_game(model, images=3, target=0)])
    expected = stock(model, example).cross_attentions
    for k in range(2):
        weights = seen.weights[f"decoder.{k}"][0].view(4, 3, 9, 3, 25)  # heads, candidate, query, candidate, cell
        for n in (0, 1):
            assert_close(weights[:, n, :, n], expected[k][n], atol=1e-5, rtol=1e-3)
            assert weights[:, n, :, 1 - n].max() == 0


def test_the_certificate(model):
    assert certificate(model) == {"ok": 8}


def test_the_token_of_a_changed_cell_changes_most(model):
    """Or the next one's: convolutions look at an area round a cell's first pixel."""
    cells = FINEST[model.config.model_type]
    assert model.preprocessor.cells == cells
    example, side = square_game(model), model.preprocessor.candidate_size // cells
    row, column = 3, 1
    images = [image.copy() for image in example.images]
    images[1][row * side : (row + 1) * side, column * side : (column + 1) * side] ^= 255
    one, two = (captured(model, [e])[0].state["backbone"][0] for e in (example, replace(example, images=tuple(images))))
    changed = (one - two).norm(dim=-1).view(3, cells, cells)
    assert changed[0].max() == changed[2].max() == 0
    place = divmod(int(changed[1].argmax()), cells)
    assert place in {(row + down, column + right) for down in (0, 1) for right in (0, 1)}


def unnamed(example):
    """The example with a caption and phrases in which no label is a word."""
    spans = {"p0": ((0, 9),), "p1": ((11, 21),)}
    phrases = tuple(replace(phrase, spans=spans[phrase.id]) for phrase in example.phrases)
    return replace(example, id="unnamed", caption="red discs, blue boxes and a dot", phrases=phrases)


def test_only_phrases_that_name_a_label_have_boxes(model):
    """A label is looked for as words: neither ``disc`` in ``discs`` nor ``blue box`` in ``blue boxes``."""
    example = square_game(model, images=2, target=0)
    examples = [replace(example, caption="a red DISC, a blue box and a dot", id="named"), unnamed(example)]
    batch = model.preprocess(examples)
    with torch.no_grad():
        output = model(batch)
    first, second = model.predict(batch, output)
    assert [len(phrase.boxes) for phrase in first.phrases] == [18, 18]
    assert first.answer == int(output.match[0].argmax())
    assert [len(phrase.boxes) for phrase in second.phrases] == [0, 0]
    assert second.answer is None
    assert not second.correct
    assert batch.dropped_phrases == ()


@pytest.mark.parametrize("likelier", [DISC, BLUE_BOX])
def test_the_likeliest_of_several_labels_counts(likelier):
    model = tiny("detr")
    example = square_game(model, images=1, target=0)
    both = replace(example.phrases[0], id="both", spans=((0, 22),))
    with torch.no_grad():
        model.network.class_labels_classifier.bias[likelier] = 5.0
        logits = model(model.preprocess([replace(example, phrases=(*example.phrases, both))])).phrase_logits
    assert torch.equal(logits[2], logits[likelier - 1])
    assert not torch.equal(logits[0], logits[1])


def test_a_report_says_what_has_no_box_and_no_answer():
    model = tiny("detr")
    example = replace(square_game(model), groups={"image": "a"})
    evaluation = evaluate(model, [example, unnamed(example)])
    told = evaluation.to_markdown({})
    assert "2 phrases have no box from the model" in told
    assert "1 examples have no answer: wrong in the task's figures" in told
    assert evaluation.to_json({})["without_boxes"] == 2
    assert np.isnan(predict(model, [unnamed(example)])[0].score)  # no number that a correlation could take
    assert evaluation.per_phrase["iou"].tolist()[2:] == [0, 0]


def test_task_words_of_a_description_are_its_target(model):
    plain, spans = single_image(), ((14, 22),)
    seen = []
    for example in (plain, replace(plain, task=replace(plain.task, target_spans=spans))):
        batch = model.preprocess([example])
        seen.append(model.labels_asked(batch, 3)[-1].tolist())
    assert seen == [[False, True, True], [False, False, True]]


def test_extraction_end_to_end(model, tmp_path):
    attended = model.config.model_type in ("detr", "conditional_detr")
    run = check_extraction(model, tmp_path, ("region", "tokens", *(["attention"] if attended else [])))
    assert run.site("decoder.1").views == ("region", *(["attention"] if attended else []), "tokens")
    assert run.site("backbone").views == ("region", "tokens")
    assert set(run.examples["task"]) == {"game"}
    answered = run.examples["answer_index"] >= 0
    assert np.isfinite(run.examples["answer_x"][answered]).all()
    assert np.isnan(run.examples["answer_x"][~answered]).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tiny("detr"), tmp_path_factory.mktemp("detr") / "model")


def test_the_commands_take_a_folder_without_a_tokenizer(folder, tmp_path, capsys, monkeypatch):
    def printed(*words: object) -> dict:
        code, out, err = run(monkeypatch, capsys, *words, "--json")
        assert code == 0, err
        return json.loads(out)

    told = printed("inspect", folder, "--verify")
    assert all(check["status"] == "ok" for check in told["checks"])
    games = ["--benchmark", "mini-game", "--split", "dev", "--limit", "4"]
    assert "without_boxes" in printed("evaluate", "--ckpt", folder, *games)
    words = ["extract", "--ckpt", folder, *games, "--out", tmp_path / "run", "--views", "region,attention"]
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 0, err
    assert (tmp_path / "run" / "activations.h5").is_file()
    following = out.splitlines()[-1].removeprefix("Next: probe ").partition("   (")[0].split()
    assert following == ["visualize", str(tmp_path / "run")]
    assert printed(*following)["files"]


def test_a_tokenizer_is_refused(folder):
    with pytest.raises(BadInput, match="reads no text; leave --tokenizer 'bert' out"):
        load_checkpoint(folder, tokenizer="bert")


def test_a_dilated_backbone_keeps_its_resolution():
    settings = tiny("detr").settings
    assert Detr.image_size(settings, 800) == (800, 25)
    assert Detr.image_size(settings, 100) == (100, 4)
    settings.dilation = True
    assert Detr.image_size(settings, None) == (800, 50)


def test_sizes_are_those_of_the_image_processor(model):
    assert model.preprocessor.candidate_size == SIZES[model.config.model_type]
    batch = model.preprocess([game(images=2, target=0, size=40)])
    assert batch.images.shape[-2:] == (2 * SIZES[model.config.model_type], SIZES[model.config.model_type])
