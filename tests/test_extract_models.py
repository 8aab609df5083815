"""Extraction from the real models at a very small size, checked against the plain computation."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from extract.capture import Capture
from extract.run import extract
from grounding.benchmarks import open_benchmark
from grounding.evaluate import score
from grounding.models import build_model, model_config
from grounding.models.attention import attention_weights
from grounding.models.text import train_tokenizer

SMALL = {
    "vilt-aligner": {"width": 24, "depth": 2, "heads": 2, "feed_forward": 32},
    "mdetr": {
        "width": 32, "heads": 2, "feed_forward": 32, "encoder_layers": 1, "decoder_layers": 2, "text_width": 32,
        "text_layers": 1, "text_heads": 2, "text_feed_forward": 32,
    },
}  # fmt: skip


class Keep:
    """A sink that keeps everything."""

    def __init__(self):
        self.kept, self.weights = {}, {}

    def states(self, site, states):
        self.kept[site.name] = states.clone()

    def attention(self, site, query, key, bias):
        self.weights[site.name] = attention_weights(query, key, bias)


@pytest.fixture(scope="module", params=list(SMALL))
def extracted(request, tmp_path_factory):
    """(model, examples, run, sink with everything, batch, output)."""
    examples = open_benchmark("mini-game").load("dev", limit=6)
    config = model_config(request.param, "miniature")
    tokenizer = train_tokenizer([example.caption for example in examples], config.max_text)
    torch.manual_seed(0)
    model = build_model(replace(config, vocabulary=tokenizer.vocabulary_size, **SMALL[request.param]), tokenizer)
    out = tmp_path_factory.mktemp("run") / request.param
    views = ("phrase", "region", "attention", "tokens")
    run = extract(model, examples, out, identity={}, views=views, dtype="float32", threshold=0.5)
    batch, keep, sites = model.preprocess(examples), Keep(), model.sites()
    with torch.inference_mode(), Capture(model, sites, keep, [site for site in sites if site.attention_path]):
        output = model(batch)
    return model, examples, run, keep, batch, output


def test_phrase_rows_are_means_over_the_phrases_tokens(extracted):
    model, _, run, keep, batch, _ = extracted
    for site in model.sites():
        if "text" in site.streams:
            text = keep.kept[site.name][:, site.layout(batch).text]
            plain = torch.stack(
                [text[b][mask].mean(0) for b, mask in zip(batch.phrase_example, batch.phrase_tokens, strict=True)]
            )
            np.testing.assert_allclose(run.read(site.name, "phrase"), plain.numpy(), atol=1e-5)
        elif site.phrase_partner:
            expected = run.read(site.phrase_partner, "phrase")
            np.testing.assert_array_equal(run.read(site.name, "phrase"), expected)


def test_a_region_that_is_the_whole_candidate_lies_within_its_cells(extracted):
    model, _, run, keep, batch, _ = extracted
    per_candidate = batch.grid[0] // 6
    for site in (site for site in model.sites() if "image" in site.streams):
        image = keep.kept[site.name][:, site.layout(batch).image].unflatten(1, batch.grid)
        for row in range(0, len(run.regions), 7):
            region = run.regions.iloc[row]
            first = region["image_index"] * per_candidate
            cells = image[region["example"], first : first + per_candidate].flatten(0, 1)
            found = run.read(site.name, "region", [row])[0]
            assert (found <= cells.amax(0).numpy() + 1e-5).all()
            assert (found >= cells.amin(0).numpy() - 1e-5).all()


def test_attention_equals_the_plain_computation(extracted):
    model, _, run, keep, batch, output = extracted
    cells = batch.grid[0] * batch.grid[1]
    checked = 0
    for site in (site for site in model.sites() if site.attention_path):
        layout, weights = site.layout(batch), keep.weights[site.name]
        for p, b in enumerate(batch.phrase_example.tolist()):
            if layout.text is None:
                plain = weights[b][:, output.phrase_query[p], :cells]
            else:
                rows = batch.phrase_tokens[p].nonzero()[:, 0] + layout.text.start
                plain = weights[b][:, rows, layout.image].mean(1)
            np.testing.assert_allclose(run.attention(site.name, p).reshape(len(plain), -1), plain.numpy(), atol=1e-6)
            checked += 1
    assert checked >= 2 * len(batch.phrase_ids)


def test_query_regions_are_states_of_queries(extracted):
    model, _, run, keep, batch, _ = extracted
    for site in (site for site in model.sites() if site.streams == ("query",)):
        queries = keep.kept[site.name][:, site.layout(batch).query].numpy()
        found = run.read(site.name, "region")
        for row, b in enumerate(run.regions["example"]):
            assert np.abs(queries[b] - found[row]).max(axis=1).min() < 1e-5


def test_tables_hold_what_evaluation_says(extracted):
    model, examples, run, _, batch, output = extracted
    with torch.inference_mode():
        predictions = model.predict(batch, output)
    table = score(examples, predictions, threshold=0.5)
    phrases = table.per_phrase
    assert list(phrases["phrase"]) == list(run.phrases["id"])
    for name in ("iou", "pointing", "predicted_x1", "predicted_y2", "predicted_image_index"):
        np.testing.assert_allclose(run.phrases[name], phrases[name], atol=1e-5, err_msg=name)
    assert list(run.examples["task_correct"]) == list(table.per_example["correct"])
    assert list(run.examples["answer_index"]) == list(table.per_example["answer_index"])
    np.testing.assert_allclose(run.examples["task_score"], table.per_example["score"], atol=1e-4)
    answered = (run.examples["answer_y"] * 6).astype(int)
    assert list(answered) == list(run.examples["answer_index"])


def test_heatmaps_are_the_models_own_at_a_lower_resolution(extracted):
    model, _, run, _, batch, output = extracted
    with torch.inference_mode():
        predicted = [phrase for prediction in model.predict(batch, output) for phrase in prediction.phrases]
    for row in range(0, len(run.phrases), 5):
        stored, whole = run.heatmap(row), predicted[row].heatmap
        if whole is None:
            assert stored is None
            continue
        side = whole.shape[1] // stored.shape[1]
        pooled = whole.reshape(6, stored.shape[1], side, stored.shape[2], side).sum((2, 4))
        np.testing.assert_allclose(stored, pooled, atol=float(pooled.max()) * 2e-3)
        assert stored.sum() == pytest.approx(1, abs=1e-4)
    with h5py.File(run.path / "activations.h5") as file:
        assert file["meta/heatmaps"].dtype == np.float16


def test_without_a_threshold_heatmaps_have_no_iou_and_boxes_do(extracted, tmp_path):
    model, examples, with_threshold, _, _, output = extracted
    run = extract(model, examples, tmp_path / "x", identity={}, views=["phrase"], dtype="float32")
    boxes = hasattr(output, "boxes_xyxy")
    assert run.phrases["iou"].notna().all() == boxes
    assert (run.phrases["predicted_image_index"] >= 0).all() == boxes
    np.testing.assert_array_equal(run.phrases["pointing"], with_threshold.phrases["pointing"])


def test_tokens_are_the_states_themselves(extracted):
    model, _, run, keep, batch, _ = extracted
    site = next(site for site in model.sites() if set(site.streams) == {"text", "image"} and site.attention_path)
    layout, states = site.layout(batch), keep.kept[site.name]
    for b in range(len(batch)):
        plain = torch.cat([states[b, layout.text][batch.text_mask[b]], states[b, layout.image]])
        np.testing.assert_allclose(run.tokens(site.name, b), plain.numpy(), atol=1e-6)
