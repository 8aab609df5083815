"""Networks behind the protocol without an adapter: what a user's preprocessing says is what the batch holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import game, single_image
from torch import nn
from unadapted import SIDE, Reader, read_pairs, research_model

from extract.run import extract
from grounding.errors import BadInput
from grounding.models.any_model import AnyModel, Inputs, PairBatch

EXAMPLES = [game("a", 2, 1, SIDE), single_image("b")]


def test_a_batch_holds_pairs_and_what_their_tokens_mean():
    batch = research_model().preprocess(EXAMPLES)
    assert isinstance(batch, PairBatch)
    assert batch.arguments["tokens"].shape == (3, 12)
    assert batch.arguments["pixels"].shape == (3, 3, SIDE, SIDE)
    assert (batch.grid, batch.image_grid) == ((8, 4), (4, 4))
    assert batch.valid.tolist() == [[2 * SIDE, SIDE], [SIDE, SIDE]]
    caption = EXAMPLES[0].caption
    for name, tokens in zip(batch.phrase_ids, batch.phrase_tokens, strict=True):
        words = [caption[begin:end] for begin, end in batch.offsets[0][tokens].tolist()]
        assert words == {"p0": ["a", "red", "disc"], "p1": ["blue", "box"]}[name]
    moved = batch.to("cpu")
    assert moved.arguments.keys() == batch.arguments.keys()


def test_images_are_those_that_the_network_reads():
    batch = research_model().preprocess(EXAMPLES)
    canvas = batch.images[0].unflatten(1, (2, SIDE))[:, 1] / 255
    torch.testing.assert_close(batch.arguments["pixels"][1], canvas)


def test_padding_on_either_side_is_none_of_the_text():
    def padded_left(images, captions):
        given = read_pairs(images, captions)
        blank = torch.zeros(len(captions), 2, dtype=torch.long)
        tokens = torch.cat([blank, given.arguments["tokens"]], dim=1)
        offsets = torch.cat([blank[..., None] + torch.tensor([7, 9]), given.offsets], dim=1)
        return Inputs({**given.arguments, "tokens": tokens}, offsets, tokens != 0, given.grid)

    left = research_model(preprocess=padded_left).preprocess(EXAMPLES)
    plain = research_model().preprocess(EXAMPLES)
    assert left.text_mask[:, :2].sum() == 0
    assert torch.equal(left.phrase_tokens[:, 2:], plain.phrase_tokens)
    assert left.phrase_tokens[:, :2].sum() == 0


def test_a_phrase_that_was_cut_off_is_dropped():
    def short(images, captions):
        given = read_pairs(images, captions)
        return Inputs({}, given.offsets[:, :6], given.text_mask[:, :6], given.grid)

    batch = research_model(preprocess=short).preprocess(EXAMPLES[:1])
    assert (batch.phrase_ids, batch.dropped_phrases) == (("p0",), ("p1",))


def test_it_answers_nothing_and_says_so_in_the_tables(tmp_path):
    model = research_model()
    batch = model.preprocess(EXAMPLES)
    with torch.no_grad():
        predictions = model.predict(batch, model(batch))
    assert [(p.answer, p.correct, len(p.phrases)) for p in predictions] == [(None, False, 2)] * 2
    run = extract(model, EXAMPLES, tmp_path / "run", identity={}, modules=["words", "patches"])
    rows = run.examples.set_index("id")
    assert list(rows.loc[["a", "b"], "task"]) == ["game", "sdr"]
    assert rows["task_score"].isna().all()
    assert rows[["answer_x", "answer_y"]].isna().all(axis=None)
    assert (rows["answer_index"] == -1).all()
    assert not rows["task_correct"].any()
    assert run.phrases[["iou", "pointing", "predicted_x1"]].isna().all(axis=None)
    assert (run.phrases["predicted_image_index"] == -1).all()
    assert run.heatmap(0) is None


def test_other_weights_are_another_run(tmp_path):
    model = research_model()
    extract(model, EXAMPLES, tmp_path / "run", identity={}, modules=["words"])
    with torch.no_grad():
        model.network.words.weight[0, 0] += 1
    with pytest.raises(BadInput, match=r"holds another run: model.weights is"):
        extract(model, EXAMPLES, tmp_path / "run", identity={}, modules=["words"])


def test_worker_processes_prepare_the_same_rows(tmp_path):
    runs = [
        extract(research_model(), EXAMPLES, tmp_path / str(n), identity={}, modules=["words"], workers=n)
        for n in (0, 2)
    ]
    np.testing.assert_array_equal(*(run.read("words", "phrase") for run in runs))


def changed(**parts):
    """A preprocessing that gives something else for one of the fields."""

    def preprocess(images, captions):
        return replace(read_pairs(images, captions), **parts)

    return preprocess


@pytest.mark.parametrize(
    ("preprocess", "said"),
    [
        (lambda images, captions: {}, "preprocess gave dict; accepted: .*Inputs"),
        (changed(offsets=torch.zeros(3, 4)), "gave float32 offsets \\[3, 4\\]; accepted: integers \\[3, T, 2\\]"),
        (changed(offsets=torch.zeros(2, 12, 2, dtype=torch.long)), "offsets \\[2, 12, 2\\]"),
        (changed(text_mask=torch.ones(3, 5)), "text_mask \\[3, 5\\]; accepted: \\[3, 12\\]"),
        (changed(grid=(4, 0)), "the grid \\(4, 0\\)"),
    ],
)
def test_what_preprocessing_may_give(preprocess, said):
    with pytest.raises(BadInput, match=said):
        research_model(preprocess=preprocess).preprocess(EXAMPLES)


def test_a_network_that_cannot_run_on_it_is_told_in_one_line(tmp_path):
    model = research_model(preprocess=changed(arguments={"pixels": torch.zeros(1)}))
    with pytest.raises(BadInput, match=r"cannot run on what its preprocessing makes: .*'tokens'"):
        extract(model, EXAMPLES, tmp_path / "run", identity={}, modules=["words"])


def test_tokens_of_images_need_a_grid(tmp_path):
    model = research_model(preprocess=changed(grid=None))
    with pytest.raises(BadInput, match="2 images whose tokens have no known places, which is not 'image'"):
        extract(model, EXAMPLES, tmp_path / "run", identity={}, modules=["patches=image"])
    assert extract(model, EXAMPLES, tmp_path / "run", identity={}, modules=["words"]).site("words")


def test_sizes_and_networks_without_weights():
    with pytest.raises(BadInput, match="image_size 0 is too small"):
        AnyModel(Reader(), read_pairs, 0)
    assert AnyModel(nn.Identity(), read_pairs, SIDE).device.type == "cpu"
