"""Views: what is planted at a token is found in the row of the phrase, region or head it belongs to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import QUERIES, TinyModel, tiny_games
from torchvision.ops import roi_align

from extract import views
from extract.capture import Capture
from extract.collect import Collector, choose_views
from extract.plan import Plan, Regions
from grounding.errors import BadInput
from grounding.examples import Example, Phrase, Region, SpatialDescription
from grounding.models.attention import attention_weights


def wide(name: str, height: int, width: int) -> Example:
    """A spatial description over one image of any size, with one phrase."""
    pixels = np.full((height, width, 3), 90, dtype=np.uint8)
    phrase = Phrase("p", "sign", ((2, 6),), (Region((0.5, 0.25, 0.9, 0.75)),))
    return Example(name, "dev", (pixels,), "a sign there", (phrase,), SpatialDescription((0.5, 0.5)), {"image": name})


def collected(model, examples, wanted=("phrase", "region", "attention", "tokens")):
    """Rows of one batch by (site, view), with the batch and its regions."""
    batch = model.preprocess(examples)
    regions = Regions.of(batch, 8, seed=0)
    chosen = model.sites()
    site_views = choose_views(chosen, wanted)
    collector = Collector(batch, Plan.of(batch, regions), site_views, torch.float32)
    attended = [site for site in chosen if "attention" in site_views[site.name]]
    with torch.inference_mode(), Capture(model, chosen, collector, attended):
        output = model(batch)
    rows = collector.finish(output)
    return rows, batch, regions


class Keep:
    """A sink that keeps everything, to compute views the plain way."""

    def __init__(self):
        self.kept, self.heads = {}, {}

    def states(self, site, states):
        self.kept[site.name] = states.clone()

    def attention(self, site, query, key, bias):
        self.heads[site.name] = attention_weights(query, key, bias)


def captured(model, batch):
    keep = Keep()
    sites = model.sites()
    with torch.inference_mode(), Capture(model, sites, keep, [s for s in sites if s.attention_path]):
        output = model(batch)
    return keep, output


def test_phrase_rows_are_the_mean_over_the_phrases_characters():
    examples = tiny_games(5)
    rows, _, _ = collected(TinyModel(), examples)
    expected = []
    for example in examples:
        for phrase in example.phrases:
            expected.append(np.mean(np.concatenate([np.arange(*span) for span in phrase.spans])))
    for site in ("text.0", "block.0", "block.1"):
        np.testing.assert_allclose(rows.arrays()[site, "phrase"][:, 0], expected, rtol=1e-5)
    assert ("decoder.0", "phrase") not in rows.arrays()


def test_region_rows_lie_at_the_centre_of_the_box_in_its_own_candidate():
    rows, batch, regions = collected(TinyModel(), tiny_games(6))
    found = rows.arrays()["block.1", "region"]
    cells = batch.grid[1]  # square candidates: as many rows as columns
    centre = (regions.boxes[:, :2] + regions.boxes[:, 2:]) / 2 * cells - 0.5
    np.testing.assert_allclose(found[:, 1], centre[:, 0].clip(0, cells - 1), atol=0.5)
    own_row = found[:, 0] - regions.image_index * cells
    np.testing.assert_allclose(own_row, centre[:, 1].clip(0, cells - 1), atol=0.5)
    assert (regions.phrase < 0).sum() == 6 * 8


def test_region_weights_equal_roi_align_on_each_candidates_own_grid():
    batch = TinyModel().preprocess(tiny_games(3))
    regions = Regions.of(batch, 8, seed=1)
    index, boxes = torch.from_numpy(regions.image_index), torch.from_numpy(regions.boxes)
    weights = views.region_weights(batch, torch.from_numpy(regions.example), index, boxes)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    states = torch.randn(12, batch.grid[0] * batch.grid[1], generator=torch.Generator().manual_seed(0))
    maps = states.view(12, 3, 4, 4)  # three candidates of four rows
    for r in range(len(boxes)):
        rois = torch.cat([torch.zeros(1), boxes[r] * 4])[None]
        direct = roi_align(maps[:, index[r]][None], rois, 3, 1.0, 2, aligned=True).mean((2, 3))[0]
        torch.testing.assert_close(states @ weights[r], direct, atol=1e-5, rtol=1e-5)


def test_a_region_at_its_candidates_edge_takes_nothing_from_the_neighbour():
    batch = TinyModel().preprocess(tiny_games(1))
    box = torch.tensor([[0.0, 0.9, 1.0, 1.0]])
    weights = views.region_weights(batch, torch.tensor([0]), torch.tensor([1]), box).view(3, 16)
    assert weights[1].sum() == pytest.approx(1)
    assert weights[0].abs().sum() == 0
    assert weights[2].abs().sum() == 0


def test_candidates_that_are_no_whole_number_of_cells_share_one_grid():
    model = TinyModel()
    batch = model.preprocess(tiny_games(1))
    shorter = replace(batch, valid=torch.tensor([[90, 32]]))  # 11.25 rows for three candidates
    assert views.candidate_grid(shorter, 0) == (3.75, 4.0)
    assert views.valid_grid(shorter, 0) == (12, 4)
    box = torch.tensor([[0.25, 0.4, 0.75, 0.6]])
    weights = views.region_weights(shorter, torch.tensor([0]), torch.tensor([2]), box)
    row = (weights.view(12, 4) * torch.arange(12.0)[:, None]).sum()
    assert float(row) == pytest.approx(2.5 * 3.75 - 0.5, abs=0.05)


def test_padding_of_smaller_images_is_never_read():
    model = TinyModel()
    rows, batch, regions = collected(model, [wide("large", 64, 96), wide("small", 40, 50)])
    assert batch.grid == (8, 12)
    assert views.valid_grid(batch, 1) == (5, 7)
    assert views.candidate_grid(batch, 1) == (5.0, 6.25)
    first = int(np.flatnonzero(regions.example == 1)[0])
    found = rows.arrays()["block.0", "region"][first, :2]
    np.testing.assert_allclose(found, [0.5 * 5 - 0.5, 0.7 * 6.25 - 0.5], atol=0.1)
    cells = [8 * 12, 5 * 7]
    assert len(rows.arrays()["block.0", "attention"]) == sum(cells)
    texts = [len("a sign there") + 1] * 2
    assert rows.tokens["block.0"] == [t + c for t, c in zip(texts, cells, strict=True)]
    second = rows.arrays()["block.0", "tokens"][texts[0] + cells[0] :]
    np.testing.assert_array_equal(second[1 : texts[1], 0], np.arange(12))  # characters, behind the class token
    np.testing.assert_array_equal(second[texts[1] :, 1].reshape(5, 7), np.tile(np.arange(7), (5, 1)))


def test_attention_rows_equal_the_plain_computation():
    model, examples = TinyModel(), tiny_games(4)
    rows, batch, _ = collected(model, examples)
    keep, _ = captured(model, batch)
    cells = batch.grid[0] * batch.grid[1]
    for site in ("block.0", "block.1"):
        stored = rows.arrays()[site, "attention"].reshape(len(batch.phrase_ids), cells, 2)
        for p, b in enumerate(batch.phrase_example.tolist()):
            tokens = batch.phrase_tokens[p].nonzero()[:, 0] + cells + 1
            plain = keep.heads[site][b][:, tokens, :cells].mean(1)
            np.testing.assert_allclose(stored[p].T, plain.numpy(), atol=1e-6)
        assert stored.sum(1).max() < 1
        assert stored.min() >= 0


def test_attention_back_is_what_cells_give_to_the_phrases_tokens():
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 7, 4, generator=random) for _ in range(2))
    bias = torch.randn(2, 1, 7, 7, generator=random)
    tokens = torch.tensor([[1, 2], [0, 2]])
    mean = torch.tensor([[[0.5, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]]])
    found = views.attention_back(query, key, bias, slice(3, 7), tokens, mean)
    plain = (query @ key.transpose(-1, -2) / 2 + bias).softmax(-1)  # four channels
    assert found.shape == (2, 2, 4, 3)
    torch.testing.assert_close(found[0, 0], (plain[0, :, 3:, 1] + plain[0, :, 3:, 2]).T)
    torch.testing.assert_close(found[0, 1], plain[0, :, 3:, 2].T)
    torch.testing.assert_close(found[1, 0], plain[1, :, 3:, 0].T)
    assert not found[1, 1].any()


def test_attention_of_a_query_site_is_that_of_the_phrases_best_query():
    model = TinyModel()
    rows, batch, _ = collected(model, tiny_games(4))
    keep, output = captured(model, batch)
    cells = batch.grid[0] * batch.grid[1]
    stored = rows.arrays()["decoder.0", "attention"].reshape(-1, cells, 2)
    for p, b in enumerate(batch.phrase_example.tolist()):
        plain = keep.heads["decoder.0"][b][:, output.phrase_query[p], :cells]
        np.testing.assert_allclose(stored[p].T, plain.numpy(), atol=1e-6)


def test_region_at_a_query_site_is_the_query_whose_box_overlaps_most():
    rows, _, regions = collected(TinyModel(), tiny_games(6, images=1))
    found = rows.arrays()["decoder.0", "region"][:, 0]
    x1, x2 = regions.boxes[:, 0], regions.boxes[:, 2]
    shared = [np.minimum(x2, (k + 1) / QUERIES) - np.maximum(x1, k / QUERIES) for k in range(QUERIES)]
    assert (found == np.argmax(shared, axis=0)).all()


def test_first_of_equally_good_queries():
    boxes = torch.tensor([[[0, 0, 0.5, 1.0], [0.5, 0, 1, 1.0]], [[0, 0, 1, 1.0], [0, 0, 1, 1.0]]])
    regions = torch.tensor([[0.25, 0, 0.75, 1.0], [0.6, 0, 0.9, 1.0], [0.2, 0.2, 0.4, 0.4]])
    assert views.best_queries(boxes, regions, torch.tensor([0, 0, 1])).tolist() == [0, 1, 0]


def test_bias_with_a_row_for_every_query():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 3, 5, 4, generator=generator)  # [B, heads, N, d]
    bias = torch.randn(2, 1, 5, 5, generator=generator)
    rows = torch.tensor([[4, 1], [0, 0]])
    found = views.attention_rows(query, key, bias, rows, slice(1, 4))
    plain = attention_weights(query, key, bias)
    for b in range(2):
        torch.testing.assert_close(found[b].permute(2, 0, 1), plain[b][:, rows[b], 1:4])


def test_batches_without_phrases_give_no_rows():
    examples = [replace(game, phrases=()) for game in tiny_games(2)]
    rows, _, _ = collected(TinyModel(), examples)
    arrays = rows.arrays()
    assert arrays["block.0", "phrase"].shape == (0, 16)
    assert arrays["block.0", "attention"].shape == (0, 2)
    assert arrays["block.0", "region"].shape == (2 * 8, 16)  # extra boxes of the target


def test_views_that_are_unknown_or_offered_by_no_site():
    sites = TinyModel().sites()
    with pytest.raises(BadInput, match="view 'pixels' is unknown; accepted: phrase, region, attention, tokens"):
        choose_views(sites, ["pixels"])
    with pytest.raises(BadInput, match=r"view 'attention' is offered by none of the sites text\.0"):
        choose_views(sites[:1], ["attention"])
    assert choose_views(sites, ["phrase", "region"])["decoder.0"] == ("region",)


def test_values_that_float16_cannot_hold_are_counted_per_site():
    model, examples = TinyModel(), tiny_games(2)
    batch = model.preprocess(examples)
    plan = Plan.of(batch, Regions.of(batch, 8, 0))
    site = model.sites()[0]
    states = torch.ones(2, batch.input_ids.shape[1], 16)
    states[1, :, 3] = 70000.0
    collector = Collector(batch, plan, {site.name: ("phrase",)})
    collector.states(site, states)
    with pytest.raises(BadInput, match=r"site 'text.0': 3 phrase values do not fit float16; use --dtype float32"):
        collector.finish(None).arrays()
    states[1, :, 3] = torch.inf
    collector = Collector(batch, plan, {site.name: ("phrase",)}, torch.float32)
    collector.states(site, states)
    with pytest.raises(BadInput, match=r"site 'text.0': \d+ phrase values are not finite"):
        collector.finish(None).arrays()
