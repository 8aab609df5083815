"""A checkpoint by name on a benchmark by name: what is evaluated, with which threshold, and what is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from photo_fixture import write_coco, write_photo
from small_models import byte_level, small_mdetr, small_vilt

from extract.from_checkpoint import examples_of, extract_checkpoint
from grounding.benchmarks.miniature import MiniatureGame
from grounding.checkpoint import load_checkpoint, save_checkpoint
from grounding.errors import BadInput
from grounding.evaluate import evaluate, tune
from grounding.evaluate_checkpoint import (
    compare_predictions,
    evaluate_checkpoint,
    evaluate_checkpoints,
    evaluate_predictions,
    stored_threshold,
)
from grounding.metrics.heatmaps import Threshold
from grounding.metrics.phrases import Measure
from grounding.models import build_model

THRESHOLD = {"value": 0.4, "split": "tune", "n": 7, "criterion": "recall"}


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViLT-Aligner that knows few words, with a tuned threshold."""
    folder = tmp_path_factory.mktemp("ckpt") / "vilt"
    save_checkpoint(folder, small_vilt(max_text=60), {"threshold": THRESHOLD})
    return folder


def test_it_is_evaluation_of_that_model_on_those_examples(ckpt, tmp_path):
    seen: list[tuple[int, int]] = []
    found = evaluate_checkpoint(
        ckpt, "mini-game", limit=5, out=tmp_path / "out", batch_size=2, progress=lambda *done: seen.append(done)
    )
    expected = evaluate(small_vilt(max_text=60), MiniatureGame().load("dev", 5), threshold=0.4)
    pd.testing.assert_frame_equal(found.per_phrase, expected.per_phrase, rtol=1e-4)
    pd.testing.assert_frame_equal(found.per_example, expected.per_example, rtol=1e-4)
    assert found.threshold == Threshold(**THRESHOLD)
    assert seen == [(2, 5), (4, 5), (5, 5)]
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["figures"]["accuracy"]["value"] == found.summary()["accuracy"].value
    assert (written["metrics"], written["threshold"], written["skipped"]) == ("corrected", THRESHOLD, [])
    assert len(pd.read_csv(tmp_path / "out" / "phrases.csv")) == len(found.per_phrase)
    told = (tmp_path / "out" / "summary.md").read_text()
    assert told.startswith("| figure |")
    assert f"\nOf {ckpt} on mini-game dev, the first 5 examples.\n" in told
    assert written["about"] == {
        "checkpoint": str(ckpt), "content": load_checkpoint(ckpt).content, "benchmark": "mini-game", "split": "dev",
        "limit": 5, "root": None, "identity": dict(MiniatureGame().identity()), "metrics": "corrected",
        "threshold": None, "tune_split": None,
    }  # fmt: skip
    assert "Metrics: corrected. Threshold of heatmaps: 0.4, of the best recall@1 on tune." in told


def test_a_threshold_that_is_given_counts(ckpt):
    tuned, given = (evaluate_checkpoint(ckpt, "mini-game", limit=3, threshold=t) for t in (None, 0.0))
    assert given.threshold == 0.0
    assert (given.per_phrase["iou"] != tuned.per_phrase["iou"]).any()


def test_a_threshold_is_tuned_on_the_split_that_is_named(ckpt):
    found = evaluate_checkpoint(ckpt, "mini-game", limit=5, tune_split="tune")
    expected = tune(small_vilt(max_text=60), MiniatureGame().load("tune", 5), "iou")
    assert found.threshold == expected
    assert found.threshold.split == "tune"
    assert set(found.per_example["split"]) == {"dev"}
    with pytest.raises(BadInput, match="split 'test' is a test split"):
        evaluate_checkpoint(ckpt, "mini-game", limit=5, tune_split="test")
    with pytest.raises(BadInput, match=r"train_root 'nowhere' is not a folder"):
        evaluate_checkpoint(ckpt, "mini-game", limit=5, train_root="nowhere")
    with pytest.raises(BadInput, match=r"threshold 0\.3 and tune_split 'tune' exclude each other"):
        evaluate_checkpoint(ckpt, "mini-game", limit=5, tune_split="tune", threshold=0.3)


def test_the_seed_of_the_data_is_the_benchmarks(ckpt):
    one, other = (evaluate_checkpoint(ckpt, "mini-game", limit=3, data_seed=seed) for seed in (0, 1))
    assert (one.per_example["score"] != other.per_example["score"]).all()


def test_heatmaps_without_a_threshold_are_refused_before_the_model_runs(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "untuned", small_vilt(max_text=60), {})
    monkeypatch.setattr("grounding.evaluate_checkpoint.evaluate", None)
    with pytest.raises(BadInput, match=r"comes without a threshold .*accepted: --threshold.* or --tune-split"):
        evaluate_checkpoint(tmp_path / "untuned", "mini-game", limit=2)


def test_boxes_need_no_threshold(tmp_path):
    save_checkpoint(tmp_path / "mdetr", small_mdetr(max_text=60, token_slots=60, text_positions=70), {})
    assert stored_threshold({}) is None
    assert stored_threshold({"threshold": None}) is None
    evaluation = evaluate_checkpoint(tmp_path / "mdetr", "mini-game", limit=2, threshold=0.4)
    assert len(evaluation.per_example) == 2
    assert evaluation.threshold is None
    assert "Ranked boxes: no threshold." in evaluation.to_markdown()


@pytest.mark.parametrize("model", ["vilt-aligner", "mdetr"])
def test_paper_metrics_take_the_canvas_that_the_model_saw(ckpt, tmp_path, model):
    built = (
        small_vilt(max_text=60)
        if model == "vilt-aligner"
        else small_mdetr(max_text=60, text_positions=64, token_slots=59)
    )
    if model == "mdetr":
        ckpt = tmp_path / "mdetr"
        save_checkpoint(ckpt, built, {})
    found = evaluate_checkpoint(ckpt, "mini-game", limit=4, metrics="paper")
    measure = Measure("paper", canvas_size=(6 * 32, 32))
    expected = evaluate(built, MiniatureGame().load("dev", 4), threshold=0.4, metrics=measure)
    pd.testing.assert_frame_equal(found.per_phrase, expected.per_phrase, rtol=1e-4)
    corrected = evaluate_checkpoint(ckpt, "mini-game", limit=4)
    assert (corrected.per_phrase["iou"] - found.per_phrase["iou"]).abs().max() > 1e-4
    with pytest.raises(BadInput, match="metrics 'exact' is unknown; accepted: corrected, paper"):
        evaluate_checkpoint(ckpt, "mini-game", limit=4, metrics="exact")


def test_what_the_benchmark_left_out_is_listed(ckpt, monkeypatch, tmp_path):
    games = MiniatureGame().load("dev", 3)
    broken = replace(games[1], phrases=(replace(games[1].phrases[0], spans=((0, 999),)),))
    monkeypatch.setattr(MiniatureGame, "_read", lambda *args: iter([games[0], broken, games[2]]))
    with pytest.raises(BadInput, match=r"span \(0, 999\) does not fit"):
        evaluate_checkpoint(ckpt, "mini-game")
    found = evaluate_checkpoint(ckpt, "mini-game", skip_bad=True, out=tmp_path / "out")
    assert [skip.id for skip in found.skipped] == [broken.id]
    assert found.per_example["id"].tolist() == [games[0].id, games[2].id]
    assert f"skipped {broken.id}: example" in (tmp_path / "out" / "summary.md").read_text()


def test_what_is_wrong_is_told_before_anything_is_written(ckpt, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match=r"out '.*file' is not a folder"):
        evaluate_checkpoint(ckpt, "mini-game", limit=2, out=tmp_path / "file")
    for wrong, message in (
        ({"split": "dve"}, "split 'dve' is unknown"),
        ({"benchmark": "mini"}, "benchmark 'mini' is unknown"),
        ({"ckpt": "nowhere"}, "checkpoint 'nowhere' is neither a file, a folder nor bundled"),
        ({"threshold": 1.5}, "threshold 1.5 is out of range"),
        ({"export": tmp_path}, "export '.*' is a folder; accepted: a file"),
        ({"export": tmp_path / "file" / "x.json"}, "folder of export '.*file' is not a folder"),
    ):
        arguments = {"ckpt": ckpt, "benchmark": "mini-game", "limit": 2, "out": tmp_path / "out", **wrong}
        with pytest.raises(BadInput, match=message):
            evaluate_checkpoint(**arguments)
    assert not (tmp_path / "out").exists()


def test_a_run_finds_its_examples_again_and_knows_its_tokenizer(ckpt, tmp_path):
    run = extract_checkpoint(ckpt, "mini-game", "dev", tmp_path / "run", limit=3, views=["phrase"], sites=["norm"])
    examples = MiniatureGame().load("dev", 3)
    assert {key: example.caption for key, example in examples_of(run).items()} == {e.id: e.caption for e in examples}
    model = build_model(replace(small_vilt(max_text=60).config, vocabulary=400), byte_level())
    save_checkpoint(tmp_path / "bpe", model, {"threshold": THRESHOLD})
    for name in ("one", "other"):
        captions = [e.caption for e in examples] if name == "one" else ["nothing of the sort"]
        byte_level(captions=captions).save(tmp_path / f"{name}.json")
        options = {"limit": 3, "views": ["phrase"], "sites": ["norm"], "tokenizer": str(tmp_path / f"{name}.json")}
        extract_checkpoint(tmp_path / "bpe", "mini-game", "dev", tmp_path / name, **options)
    with pytest.raises(BadInput, match="checkpoint"):  # another tokenizer is another run
        extract_checkpoint(tmp_path / "bpe", "mini-game", "dev", tmp_path / "one", **options)


def test_predictions_of_several_programs_are_compared_as_checkpoints_are(ckpt, tmp_path):
    one = tmp_path / "one.json"
    evaluate_checkpoint(ckpt, "mini-game", limit=8, export=one)
    content = json.loads(one.read_text())
    for answer, game in zip(content["answers"], MiniatureGame().load("dev", 8), strict=True):
        answer |= {"answer": game.task.target_index, "correct": True}
    (tmp_path / "other.json").write_text(json.dumps(content))
    found = compare_predictions([one, tmp_path / "other.json"], "mini-game", limit=8, out=tmp_path / "out")
    assert [e.summary()["accuracy"].value == 1 for e in found.evaluations.values()] == [False, True]
    rows = found.differences.set_index("figure")
    assert (rows["first"].unique(), rows["second"].unique()) == (["one"], ["other"])
    assert rows.loc["accuracy", "difference"] == rows.loc["accuracy", "value_first"] - 1 < 0
    assert rows.loc["mean_iou", "difference"] == 0
    told = (tmp_path / "out" / "differences.md").read_text()
    assert "| 8 |  |\n" in told  # beside figures that have a note
    assert "of the resamples: no interval |\n" in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "one", "other", "differences.csv", "differences.parquet", "differences.md", "differences.json"
    }  # fmt: skip
    with pytest.raises(BadInput, match="predictions are named one, one; accepted: different names"):
        compare_predictions([one, one], "mini-game", limit=8)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def saved(folder: Path, seed: int) -> Path:
    """A checkpoint whose weights hang on the seed."""
    model = small_vilt(max_text=60)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    save_checkpoint(folder, model, {"threshold": THRESHOLD})
    return folder


@pytest.fixture(scope="module")
def other(ckpt, tmp_path_factory) -> Path:
    """Another checkpoint of the same name, with other weights."""
    return saved(tmp_path_factory.mktemp("other") / "vilt", seed=1)


def test_an_evaluation_says_what_it_is_of_and_is_not_written_over_by_another(ckpt, other, tmp_path):
    out, given = tmp_path / "out", {"benchmark": "mini-game", "limit": 3}
    evaluate_checkpoint(ckpt, out=out, **given)
    about = json.loads((out / "summary.json").read_text())["about"]
    content, elsewhere = load_checkpoint(ckpt).content, load_checkpoint(other).content
    identity = {"name": "mini-game", "version": 2, "seed": 0, "difficulty": "hard"}
    assert about == {
        **{"checkpoint": str(ckpt), "content": content, "benchmark": "mini-game", "identity": identity, "root": None},
        **{"split": "dev", "limit": 3, "metrics": "corrected", "threshold": None, "tune_split": None},
    }
    there = bytes_of(out)
    for changes, message in (
        (
            {"ckpt": other},
            f"; content is '{content}' there and '{elsewhere}' here; choose another",
        ),
        ({"split": "tune"}, "another evaluation: split is 'dev' there and 'tune' here"),
        ({"data_seed": 1}, "another evaluation: identity.seed is 0 there and 1 here"),
        ({"threshold": 0.2}, "another evaluation: threshold is None there and 0.2 here"),
    ):
        with pytest.raises(BadInput, match=message):
            evaluate_checkpoint(**{"ckpt": ckpt, "out": out, **given, **changes})
    assert bytes_of(out) == there
    shutil.copytree(ckpt, tmp_path / "renamed")
    evaluate_checkpoint(tmp_path / "renamed", out=out, **given)
    assert json.loads((out / "summary.json").read_text())["about"] == {**about, "checkpoint": str(tmp_path / "renamed")}


def test_an_evaluation_is_not_written_over_by_one_on_other_images(ckpt, tmp_path):
    given = {"benchmark": "coco-json", "root": write_coco(tmp_path / "root"), "out": tmp_path / "out"}
    evaluate_checkpoint(ckpt, **given)
    for number in range(2):
        write_photo(tmp_path / "other" / f"{number}.png", (100, 50), seed=7 + number)
    with pytest.raises(BadInput, match=r"another evaluation: identity\.images is '\w+' there and '\w+' here"):
        evaluate_checkpoint(ckpt, options={"images": str(tmp_path / "other")}, **given)
    given["root"] = shutil.copytree(tmp_path / "root", tmp_path / "moved")
    evaluate_checkpoint(ckpt, **given)


def test_a_comparison_is_not_written_over_by_one_of_others(ckpt, tmp_path):
    names = ["one", "two", "three"]
    for seed, name in enumerate(names):
        saved(tmp_path / name, seed)
    given = {"benchmark": "mini-game", "limit": 3, "out": tmp_path / "out"}
    evaluate_checkpoints([tmp_path / name for name in names[:2]], **given)
    there = bytes_of(tmp_path / "out")
    assert json.loads(there["differences.json"]) == {"about": {"checkpoints": ["one", "two"]}}
    with pytest.raises(
        BadInput, match=r"another comparison: checkpoints is \['one', 'two'\] there and \['one', 'three'"
    ):
        evaluate_checkpoints([tmp_path / "three", tmp_path / "one"], **given)
    assert bytes_of(tmp_path / "out") == there
    evaluate_checkpoints([tmp_path / name for name in names[:2]], **given)


def test_predictions_are_evaluated_again_where_the_images_are_gone(ckpt, tmp_path):
    root = write_coco(tmp_path / "root")
    given = {"benchmark": "coco-json", "root": root, "need_answers": False, "out": tmp_path / "out"}
    evaluate_checkpoint(ckpt, "coco-json", root=root, threshold=0.5, export=tmp_path / "made.json")
    before = evaluate_predictions(tmp_path / "made.json", **given)
    shutil.rmtree(root / "images")
    again = evaluate_predictions(tmp_path / "made.json", **given)
    pd.testing.assert_frame_equal(before.per_phrase, again.per_phrase)


def test_predictions_are_not_written_over_a_checkpoints_evaluation(ckpt, tmp_path):
    given = {"benchmark": "mini-game", "limit": 3, "out": tmp_path / "out"}
    evaluate_checkpoint(ckpt, export=tmp_path / "made.json", **given)
    with pytest.raises(BadInput, match=r"another evaluation: checkpoint is '.*vilt' there and None here; content is "):
        evaluate_predictions(tmp_path / "made.json", **given)
    given["out"] = tmp_path / "of-predictions"
    for _ in range(2):
        evaluate_predictions(tmp_path / "made.json", **given)
