"""Every question: a signal planted at one layer is found there and not at another; runs that lack something say so."""

import numpy as np
import pytest
import torch
from fake_run import FakeSite, make_run, noise, patch_of, plant_alignment, plant_patches

from extract.from_checkpoint import extract_checkpoint
from grounding.errors import BadInput
from grounding.models.vilt_aligner import AlignerHead
from probe.questions import QUESTIONS, aligner_head, queries
from probe.questions.heatmaps import Heatmaps, highest_iou, judge_heatmaps
from probe.settings import SweepSettings
from probe.sweep import sweep
from probe.tokens import read_tokens

torch.set_num_threads(1)
FAST = {"resamples": 200, "linear_strengths": (1.0, 0.1, 0.01), "mlp_strengths": (1.0,)}


def ask(run, question, probes=("linear",), controls=(), **settings):
    return sweep(run, probes, controls, questions=(question,), **FAST, **settings)


def row(table, site, score, probe="linear"):
    rows = table[(table["site"] == site) & (table["score"] == score) & (table["probe"] == probe)]
    rows = rows[rows["condition"] == rows["question"]]
    assert len(rows) == 1
    return rows.iloc[0]


def at_chance(one):
    return one["low"] <= one["chance"] <= one["high"]


def random_tokens(run, count, width=16, seed=9):
    return np.random.default_rng(seed).standard_normal((len(run.examples) * count, width))


def test_localisation_finds_planted_patches_and_their_heatmaps_lie_on_the_boxes():
    run = make_run(150)
    run.add_tokens("block.0", noise(run)[0], random_tokens(run, 27), ("text", "image"))
    run.add_tokens("block.1", *plant_patches(run), ("text", "image"))
    table = ask(run, "localisation", ("linear", "mlp"), ("labels", "concatenation"))
    for probe in ("linear", "mlp"):
        assert row(table, "block.1", "pointing", probe)["value"] > 0.9
    found = row(table, "block.1", "iou")
    assert found["value"] > 0.7  # a box of 0.18 covers 0.81 of its patch, which is the most that patches allow
    assert found["value"] <= 0.81 + 1e-9
    assert row(table, "block.1", "recall")["value"] > 0.9
    assert found["chance"] == pytest.approx(0.81 / 25)
    assert row(table, "block.1", "pointing")["chance"] == pytest.approx(1 / 25)
    assert at_chance(row(table, "block.0", "pointing"))
    assert row(table, "block.0", "iou")["value"] < 0.06
    assert row(table, "block.1", "pointing", "concatenation")["value"] < 0.2
    selectivity = table[(table["condition"] == "selectivity") & (table["score"] == "pointing")]
    assert (selectivity[selectivity["site"] == "block.1"]["low"] > 0.5).all()


def test_patches_of_a_partner_site_go_with_a_site_of_text():
    run = make_run(60)
    phrase, tokens = plant_patches(run)
    run.add_tokens("block.0", noise(run)[0], tokens, ("text", "image"))
    run.sites.append(FakeSite("text.0", "text", 0, ("text",), views=("phrase",), region_partner="block.0"))
    run.rows["text.0", "phrase"] = phrase
    question = QUESTIONS["localisation"](run, SweepSettings())
    assert [site.name for site in question.sites()] == ["block.0", "text.0"]
    np.testing.assert_array_equal(
        question.candidate_rows(run.site("text.0")),
        tokens.astype(np.float16).reshape(60, 27, 16)[:, 2:].reshape(-1, 16),
    )
    assert row(ask(run, "localisation", sites=["text.0"]), "text.0", "pointing")["value"] > 0.4


def test_a_phrase_that_covers_no_patch_by_half_has_the_one_it_covers_most():
    run = make_run(10)
    run.add_tokens("block.0", noise(run)[0], random_tokens(run, 27), ("text", "image"))
    first = run.regions.index[run.regions["phrase"] == 0][0]
    run.regions.loc[first, ["x1", "y1", "x2", "y2"]] = [0.0, 0.0, 0.1, 0.05]
    second = run.regions.index[run.regions["phrase"] == 1][0]
    run.regions.loc[second, ["x1", "y1", "x2", "y2"]] = [0.1, 0.2, 0.6, 0.4]  # half, whole, whole of row 1
    question = QUESTIONS["localisation"](run, SweepSettings())
    labels = question.target.reshape(-1, 25)
    np.testing.assert_array_equal(np.flatnonzero(labels[0]), [0])
    np.testing.assert_array_equal(np.flatnonzero(labels[1]), [5, 6, 7])
    assert question.coverage[0] == pytest.approx(0.5 * 0.25)


def _maps(value, coverage, inside, counts):
    phrase = np.arange(len(counts))
    arrays = (np.array(counts), np.array(value, float), np.array(coverage, float), np.array(inside, bool))
    return Heatmaps(*arrays, phrase=phrase, example=phrase, image=phrase.astype(str))


def test_heatmaps_by_hand():
    validation = _maps([1, 0.5, 0.1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [4])  # best from threshold 0.1 on
    test = _maps([0.2, 0.1, 0.0, 1, 0.3], [1, 0.5, 0, 0, 0.5], [1, 0, 0, 0, 1], [3, 2])
    _, judged = judge_heatmaps(validation, test)
    # Phrase 0: two cells of a peak of 0.2, truth 1.5 cells, shared 1.5. Phrase 1: both cells, truth and shared 0.5.
    np.testing.assert_allclose(judged.items["iou"], [1.5 / 2, 0.5 / 2])
    np.testing.assert_array_equal(judged.items["correct"], [1, 0])
    assert judged.scores["iou"].statistic.value() == pytest.approx(0.5)
    assert judged.scores["iou"].chance == pytest.approx((0.5 + 0.25) / 2)
    assert judged.scores["recall"].chance == 0.5
    assert judged.scores["pointing"].chance == pytest.approx((1 / 3 + 1 / 2) / 2)
    np.testing.assert_allclose(highest_iou(test.counts, test.coverage), [1.5 / 2, 0.5])


def test_boxes_are_read_off_vectors_that_hold_them():
    run = make_run(150)
    own = run.regions[run.regions["phrase"] >= 0].sort_values("phrase")
    phrase, _ = noise(run)
    run.add_tokens("block.0", phrase, random_tokens(run, 27), ("text", "image"))
    planted = phrase.copy()
    planted[:, :2] = own[["x1", "y1"]].to_numpy() * 3
    run.add_tokens("block.1", planted, random_tokens(run, 27), ("text", "image"))
    table = ask(run, "boxes", ("linear", "mlp"))
    assert row(table, "block.1", "iou")["value"] > 0.8
    assert row(table, "block.1", "recall")["value"] > 0.95
    assert row(table, "block.1", "iou", "mlp")["low"] > row(table, "block.1", "iou", "mlp")["chance"] + 0.2
    assert row(table, "block.0", "iou")["value"] < row(table, "block.0", "iou")["chance"] + 0.05


def test_boxes_on_a_circle_are_found_by_the_mlp_and_not_by_the_linear_probe():
    run = make_run(300, n_phrases=1)
    angle = np.random.default_rng(0).uniform(-np.pi, np.pi, len(run.phrases))
    phrase, _ = noise(run, 4)
    phrase[:, 0] = angle
    own = run.regions.index[run.regions["phrase"] >= 0]
    order = run.regions.loc[own, "phrase"].to_numpy()
    x, y = (0.5 + 0.35 * f(angle[order]) for f in (np.cos, np.sin))
    run.regions.loc[own, ["x1", "y1", "x2", "y2"]] = np.stack([x - 0.15, y - 0.15, x + 0.15, y + 0.15], 1)
    run.add_tokens("block.0", phrase, random_tokens(run, 27), ("text", "image"))
    table = ask(run, "boxes", ("linear", "mlp"))
    linear, mlp = (row(table, "block.0", "iou", probe) for probe in ("linear", "mlp"))
    assert mlp["low"] > linear["high"]


def test_outcome_is_told_by_the_states_that_hold_it():
    run = make_run(200)
    phrase, _ = noise(run)
    tokens = random_tokens(run, 27)
    run.add_tokens("block.0", phrase, tokens, ("text", "image"))
    signal = np.where(run.examples["task_correct"], 1.0, -1.0)
    run.add_tokens("block.1", phrase + np.eye(16)[0] * signal[run.phrases["example"], None], tokens, ("text", "image"))
    image = tokens.reshape(200, 27, 16).copy()
    image[:, 2:, 3] += signal[:, None]  # in the image alone
    run.add_tokens("block.2", phrase, image.reshape(-1, 16), ("text", "image"))
    table = ask(run, "outcome")
    for site in ("block.1", "block.2"):
        assert row(table, site, "auc")["value"] > 0.9
        assert row(table, site, "accuracy")["low"] > row(table, site, "accuracy")["chance"]
    assert at_chance(row(table, "block.0", "auc"))
    assert set(table["n_phrases"]) == {40}  # examples


def test_queries_that_end_on_the_phrase_are_found(monkeypatch):
    run = make_run(150)
    boxes = (
        run.regions[["x1", "y1", "x2", "y2"]].to_numpy(np.float32).copy()
    )  # eight queries an example end on its regions
    monkeypatch.setattr(queries, "predicted_boxes", lambda run, last: boxes)
    run.add_tokens("decoder.0", *noise(run), ("query",))
    run.add_tokens("decoder.1", *plant_alignment(run), ("query",))
    table = ask(run, "queries")
    assert row(table, "decoder.1", "choice_accuracy")["value"] > 0.9
    assert at_chance(row(table, "decoder.0", "choice_accuracy"))
    assert row(table, "decoder.0", "choice_accuracy")["chance"] == pytest.approx(1 / 8)
    boxes[run.regions["phrase"] == 0] = [0.9, 0.9, 1.0, 1.0]
    assert QUESTIONS["queries"](run, SweepSettings()).left_out == 1


def test_the_aligner_heads_maps_show_planted_patches(monkeypatch):
    run = make_run(120, n_phrases=1)
    torch.manual_seed(0)
    head = AlignerHead(16)
    monkeypatch.setattr(aligner_head, "model_of", lambda run, *_: type("Model", (), {"sdr_head": head}))
    phrase, _ = noise(run)
    tokens = random_tokens(run, 27)
    run.add_tokens("norm", phrase, tokens, ("text", "image"))
    blind = row(ask(run, "aligner-head"), "head", "pointing")
    assert at_chance(blind)
    own = run.regions[run.regions["phrase"] >= 0]
    planted = tokens.reshape(120, 27, 16)
    planted[own["example"], 2 + patch_of(own), 0] += 20
    run.rows["norm", "tokens"] = planted.reshape(-1, 16)
    found = ask(run, "aligner-head")
    assert row(found, "head", "pointing")["low"] > blind["high"] + 0.2
    assert row(found, "head", "iou")["value"] > 0.3


def test_the_heads_maps_are_those_of_its_forward_pass():
    run = make_run(2, n_phrases=2)
    torch.manual_seed(0)
    head = AlignerHead(8)
    features, text = torch.randn(2, 25, 8), torch.randn(4, 8)
    example = torch.tensor([0, 0, 1, 1])
    maps = list(head.maps(features, text, example))
    assert [tuple(m.shape) for m in maps] == [(4, 25, 4, 4), (4, 25, 4, 4, 2), (4, 25, 4, 4, 4)]
    heatmaps = head(features, text, example, (5, 5))
    torch.testing.assert_close(aligner_head._nested(heatmaps, 5, 5), maps[2].flatten(1))
    target = aligner_head._target_maps(run, np.array([1]), (40, 40))
    assert float(target.sum()) == pytest.approx(1)
    box = run.regions[run.regions["phrase"] == 1][["x1", "y1", "x2", "y2"]].to_numpy()[0]
    rows, columns = np.nonzero(target[0].numpy())
    assert (columns.min(), rows.min()) == (round(box[0] * 40), round(box[1] * 40))


def test_tokens_of_a_stream_by_hand():
    run = make_run(2)
    run.examples[["grid_rows", "grid_columns", "text_tokens"]] = [[1, 2, 3], [2, 2, 1]]
    tokens = np.arange(10)[:, None] * np.ones(4)  # 3 + 2 of the first example, 1 + 4 of the second
    run.add_tokens("block.0", noise(run)[0], tokens, ("text", "image"))
    np.testing.assert_array_equal(read_tokens(run, run.site("block.0"), "image")[:, 0], [3, 4, 6, 7, 8, 9])
    np.testing.assert_array_equal(read_tokens(run, run.site("block.0"), "text")[:, 0], [0, 1, 2, 5])
    run.rows["block.0", "tokens"] = tokens[:6]
    with pytest.raises(
        BadInput, match=r"site 'block.0' holds 6 tokens rows for 10 tokens: some shards lack it; run ext"
    ):
        read_tokens(run, run.site("block.0"), "image")


def test_runs_that_lack_something_say_what_makes_it():
    run = make_run(20)
    run.add("block.0", *noise(run))
    with pytest.raises(
        BadInput, match="needs the view 'tokens'; the run lacks it, to add it: probe extract --out fake --"
    ):
        ask(run, "localisation")
    with pytest.raises(BadInput, match="question 'queries' needs sites with query tokens; the run 'fake' has none"):
        ask(run, "queries")
    with pytest.raises(BadInput, match="question 'aligner-head' is about the model vilt-aligner; the run 'fake' is of"):
        ask(run, "aligner-head")
    run.manifest["identity"] = {"model": {"name": "vilt-aligner"}}
    with pytest.raises(BadInput, match="needs a run made from a checkpoint; 'fake' names none"):
        ask(run, "aligner-head")
    with pytest.raises(BadInput, match="question 'outcome' has no probe mlp; accepted: linear"):
        ask(run, "outcome", ("mlp",))
    with pytest.raises(BadInput, match="question 'colour' is unknown; accepted: alignment, localisation, boxes"):
        ask(run, "colour")
    run.examples["task_correct"] = True
    with pytest.raises(
        BadInput, match="question 'outcome': all right in 20 examples; accepted: some right, some wrong"
    ):
        ask(run, "outcome")
    run.rows["block.0", "phrase"][3, 5] = np.nan
    with pytest.raises(BadInput, match=r"site 'block\.0': 1 of 60 rows are not finite"):
        ask(run, "boxes")
    run.regions["phrase"] = -1
    with pytest.raises(BadInput, match=r"no phrase of the run .60 phrases. has a region"):
        ask(run, "boxes")


@pytest.mark.slow
def test_boxes_of_queries_are_those_that_the_model_predicted(tmp_path):
    stored = extract_checkpoint(
        "mdetr-grounded", "mini-game", "dev", tmp_path / "run", limit=8, sites=["decoder.*"], views=["phrase", "tokens"]
    )
    boxes = queries.predicted_boxes(stored, stored.site("decoder.2")).reshape(8, -1, 4)
    phrases = stored.phrases
    own = phrases[[f"predicted_{name}" for name in ("x1", "y1", "x2", "y2")]].to_numpy(copy=True)
    own[:, [1, 3]] = (own[:, [1, 3]] + phrases[["predicted_image_index"]].to_numpy()) / 6
    distance = np.abs(boxes[phrases["example"]] - own[:, None]).max(2).min(1)
    assert distance.max() < 1e-3  # states are stored as float16
    with pytest.raises(BadInput, match=r"needs the tokens of site 'decoder\.2'; to add them: probe extract --out"):
        queries.predicted_boxes(stored, stored.site("decoder.1"))
    with pytest.raises(BadInput, match=r"is about the model vilt-aligner; the run .* is of mdetr"):
        ask(stored, "aligner-head")
