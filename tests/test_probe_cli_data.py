"""``probe data``, and the commands that read photographs: results, exit codes, one-line errors."""

from __future__ import annotations

import json

import pytest
from kilogram_fixture import write_kilogram
from photo_fixture import change_json, write_coco, write_flickr, write_touchdown
from PIL import Image
from test_probe_cli import run

from extract.reader import Run
from grounding.benchmarks import BENCHMARKS


@pytest.mark.parametrize("name", ["list", "verify", "convert", "show"])
def test_every_data_command_has_help_with_an_example(monkeypatch, capsys, name):
    code, out, _ = run(monkeypatch, capsys, "data", name, "--help")
    assert code == 0
    assert f"Example: probe data {name}" in " ".join(out.split())


def test_list(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "data", "list", "--json")
    assert code == 0
    assert [entry["name"] for entry in json.loads(out)["benchmarks"]] == list(BENCHMARKS)
    _, out, _ = run(monkeypatch, capsys, "data", "list")
    assert "refcoco+" in out
    assert "testB" in out


def test_verify(monkeypatch, capsys, tmp_path):
    root = write_coco(tmp_path)
    code, out, _ = run(monkeypatch, capsys, "data", "verify", "coco-json", "--root", root)
    assert code == 0
    assert out.splitlines() == [
        "coco-json dev: 2 examples, 4 phrases, 6 regions, 2 images",
        "not there: train, tune, test",
        "faults: 0",
    ]
    (root / "images" / "1.png").unlink()
    code, out, _ = run(monkeypatch, capsys, "data", "verify", "coco-json", "--root", root)
    assert code == 1
    assert f"fault in dev, coco-json/dev/1: image {root / 'images' / '1.png'} does not exist" in out
    assert out.endswith("faults: 1\n")
    code, out, _ = run(monkeypatch, capsys, "data", "verify", "coco-json", "--root", root, "--json")
    assert code == 1
    assert [fault["id"] for fault in json.loads(out)["faults"]] == ["coco-json/dev/1"]


def test_a_split_without_examples_is_a_fault(monkeypatch, capsys, tmp_path):
    root = write_coco(tmp_path)
    change_json(root / "dev.json", lambda content: content.update(images=[], annotations=[]))
    code, out, _ = run(monkeypatch, capsys, "data", "verify", "coco-json", "--root", root)
    assert code == 1
    assert "fault in dev, dev: split 'dev' of 'coco-json' has no examples: 0 were skipped and 0 left out\n" in out
    assert out.endswith("faults: 1\n")


def test_verify_counts_what_makes_no_example(monkeypatch, capsys, tmp_path):
    words = ["data", "verify", "kilogram", "--root", write_kilogram(tmp_path), "--split", "dev"]
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("left out")]
    assert sorted(lines) == [
        f"left out of dev: 4 entries (fewer than 9 distractors of {parts} parts in dev)" for parts in (2, 4)
    ]
    _, out, _ = run(monkeypatch, capsys, *words, "--json")
    assert len(json.loads(out)["excluded"]) == 8


def test_convert_then_evaluate_what_was_written(monkeypatch, capsys, tmp_path):
    words = ["--split", "dev", "--limit", 6, "--out", tmp_path / "mini", "--json"]
    code, out, _ = run(monkeypatch, capsys, "data", "convert", "mini-game", *words)
    assert code == 0
    assert json.loads(out)["examples"] == 6
    assert json.loads(out)["images"] == 36
    figures = []
    for source in (["mini-game", "--limit", 6], ["columnar", "--root", tmp_path / "mini"]):
        words = ["evaluate", "--ckpt", "mdetr-grounded", "--benchmark", *source, "--json"]
        code, out, _ = run(monkeypatch, capsys, *words)
        assert code == 0
        figures.append(json.loads(out)["figures"])
    assert figures[0] == figures[1]


def test_a_checkpoint_on_another_benchmark_is_told(monkeypatch, capsys, tmp_path):
    root = write_kilogram(tmp_path, annotations=2)
    note = "The checkpoint was fine-tuned on mini-game, evaluated on kilogram."
    words = ["--benchmark", "kilogram", "--root", root, "--option", "candidates=2", "--limit", 2]
    code, out, err = run(monkeypatch, capsys, "evaluate", "--ckpt", "mdetr-grounded", *words)
    assert code == 0
    assert err.splitlines() == [f"Note: {note}"]
    assert f"{note} Images shared with training (mini-game train): 0 of" in out
    two = ["--ckpt", "mdetr-grounded", "--ckpt", "mdetr-task"]
    _, out, err = run(monkeypatch, capsys, "evaluate", *two, *words, "--json")
    assert err.splitlines() == [f"Note: mdetr-grounded: {note}", f"Note: mdetr-task: {note}"]
    assert json.loads(out)["checkpoints"]["mdetr-task"]["overlap"]["transfer"] == note.removesuffix(".")
    _, _, err = run(
        monkeypatch, capsys, "evaluate", "--ckpt", "mdetr-grounded", "--benchmark", "mini-game", "--limit", 2
    )
    assert err == ""


def test_show(monkeypatch, capsys, tmp_path):
    root = write_touchdown(tmp_path / "in")
    out = tmp_path / "new" / "example.png"
    words = ["show", "touchdown-sdr", "touchdown-sdr/dev/1", "--root", root, "--out", out]
    code, printed, _ = run(monkeypatch, capsys, "data", *words)
    assert (code, printed) == (0, f"{out}\n")
    with Image.open(out) as image:
        assert image.width > 1000
    code, _, err = run(monkeypatch, capsys, "data", *words[:-1], tmp_path / "example.gif")
    assert code == 2
    assert "format 'gif' is unknown; accepted: png" in err
    lost = next((root / "images").glob("*-pano1.*"))
    lost.unlink()
    code, printed, err = run(monkeypatch, capsys, "data", *words[:-1], tmp_path / "lost.png")
    assert (code, printed) == (2, "")
    assert err == f"Error: image {lost} does not exist\n"
    assert not (tmp_path / "lost.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "coco-json"], "benchmark 'coco-json' needs a root folder (--root)"),
        (["verify", "coco"], "benchmark 'coco' is unknown"),
        (["verify", "mini-game", "--limit", "0"], "limit 0 is too small; accepted: 1 or more"),
        (["verify", "mini-game", "--split", "val"], "split 'val' is unknown; accepted: pretrain"),
        (["convert", "mini-game", "--split", "dev", "--out", "{tmp}", "--images", "none"], "images 'none' is unknown"),
        (
            ["show", "mini-sdr", "000001", "--out", "{tmp}/x.png"],
            "names no split; accepted: an id like mini-sdr/",
        ),
        (
            ["show", "mini-sdr", "mini-sdr/dev/000001", "--out", "/dev/null/x.png"],
            "folder of out '/dev/null' is not a folder",
        ),
        (["convert", "mini-sdr", "--split", "dev", "--out", "/dev/null"], "out '/dev/null' is not a folder"),
        (["show", "mini-sdr", "mini-sdr/dev/999999", "--out", "{tmp}/x.png"], "is not in dev; accepted"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, words, message):
    code, out, err = run(monkeypatch, capsys, "data", *(word.format(tmp=tmp_path) for word in words))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Benchmark -> options of the command that name its files."""
    folder = tmp_path_factory.mktemp("roots")
    panoramas = write_touchdown(folder / "touchdown")
    photographs = write_flickr(folder / "flickr", images=6, sentences=1)
    return {"touchdown-sdr": ["--root", panoramas], "flickr30k": ["--root", photographs]}


@pytest.mark.parametrize(("name", "examples"), [("touchdown-sdr", 4), ("flickr30k", 6)])
def test_photographs_can_be_evaluated(monkeypatch, capsys, roots, name, examples):
    words = ["evaluate", "--ckpt", "mdetr-grounded", "--benchmark", name, *roots[name], "--json"]
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 0, err
    figures = json.loads(out)["figures"]
    assert figures["mean_iou"]["n"] == 2 * examples
    assert figures["mean_distance" if name == "touchdown-sdr" else "accuracy"]["n"] == examples


@pytest.mark.parametrize(("name", "examples"), [("touchdown-sdr", 4), ("flickr30k", 6)])
def test_photographs_can_be_extracted(monkeypatch, capsys, roots, tmp_path, name, examples):
    words = ["extract", "--ckpt", "vilt-aligner-grounded", "--benchmark", name, *roots[name], "--sites", "block.0"]
    code, _, err = run(monkeypatch, capsys, *words, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    stored = Run.open(tmp_path / "run")
    assert len(stored.examples) == examples
    assert len(stored.phrases) == 2 * examples
    annotated = stored.regions[stored.regions["kind"] == "annotated"]
    assert len(annotated) == 3 * examples


def test_a_game_of_one_candidate_is_evaluated_for_its_grounding(monkeypatch, capsys, roots):
    words = ["--benchmark", "flickr30k", *roots["flickr30k"], "--option", "candidates=1", "--json"]
    code, out, err = run(monkeypatch, capsys, "evaluate", "--ckpt", "vilt-aligner-grounded", *words)
    assert code == 0, err
    figures = json.loads(out)["figures"]
    assert "accuracy" not in figures
    assert figures["pearson"]["value"] is None
    assert figures["mean_iou"]["n"] == 12


def test_a_broken_box_stops_an_evaluation_with_one_line(monkeypatch, capsys, tmp_path):
    root = write_coco(tmp_path)
    change_json(root / "dev.json", lambda c: c["annotations"][0].update(bbox=[60, 10, 90, 40]))
    words = ["evaluate", "--ckpt", "mdetr-grounded", "--benchmark", "coco-json", "--root", root]
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert err.count("\n") == 1
    assert "dev.json, image 0, annotation 0: bbox [60, 10, 90, 40]" in err
    code, out, _ = run(monkeypatch, capsys, *words, "--skip-bad", "--json")
    assert code == 0
    assert [item["id"] for item in json.loads(out)["skipped"]] == ["coco-json/dev/0"]
