"""``probe sweep`` on stored runs: several questions, a YAML file, what is refused, curves of every question."""

import json
import shutil
from dataclasses import replace

import pytest
from test_probe_cli import run
from tiny_model import tiny_games
from tiny_run import run_tiny


def games_of_own_images(count):
    """An image a group, as many as there are games: enough for five folds."""
    return [replace(game, groups={"image": game.id}) for game in tiny_games(count)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run_tiny(folder / "one", games_of_own_images(30))
    return folder


def test_a_yaml_file_is_swept_and_options_go_before_it(monkeypatch, capsys, stored, tmp_path):
    config = tmp_path / "sweep.yaml"
    config.write_text(
        f"runs: ['{stored}/one']\nquestions: [boxes, localisation]\nprobes: [linear]\nseeds: [7]\nresamples: 50\n"
        f"controls: none\nsites: [block.*]\nout: '{tmp_path}/out'\n"
    )
    code, out, err = run(monkeypatch, capsys, "sweep", config, "--seed", 1, "--device", "cpu")
    assert (code, err) == (0, "")
    assert "## boxes" in out
    assert f"Next: probe visualize {stored}/one --sweep {tmp_path}/out" in out
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["questions"] == ["boxes", "localisation"]
    assert settings["seeds"] == [1]
    assert settings["controls"] == []
    other = shutil.copytree(stored / "one", tmp_path / "other")
    words = ["--map", "probe", "--grid", "layers", "--against", other, "--count", 1, "--format", "png"]
    code, out, _ = run(monkeypatch, capsys, "visualize", stored / "one", "--sweep", tmp_path / "out", *words,
                       "--out", tmp_path / "drawn")  # fmt: skip
    assert code == 0
    drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert {
        "layer-curves-boxes.png",
        "layer-curves-localisation.png",
        "expression-gap.png",
        "most-changed.png",
    } <= drawn
    assert any(name.startswith("layers-probe") for name in drawn)
    code, _, err = run(monkeypatch, capsys, "sweep", config)
    assert code == 2
    assert err == (
        f"Error: out '{tmp_path}/out' holds another sweep: seeds is [1] there and [7] here; choose another folder\n"
    )


def test_a_run_is_exported(monkeypatch, capsys, stored, tmp_path):
    code, out, err = run(monkeypatch, capsys, "export", stored / "one", "--to", "csv", "--out", tmp_path / "tables")
    assert (code, err) == (0, "")
    assert "30 examples" in out
    assert out.endswith(f'To open it: pandas.read_csv("{tmp_path}/tables/phrases.csv")\n')
    words = ["export", stored / "one", "--to", "coco", "--out", tmp_path / "coco", "--json"]
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    assert len(json.loads(out)["left_out"]) == 30  # a run that does not say where its images are
    code, out, err = run(monkeypatch, capsys, "export", stored / "one", "--to", "xlsx", "--out", tmp_path / "other")
    assert (code, out) == (2, "")
    assert err == "Error: to 'xlsx' is unknown; accepted: coco, fiftyone, csv, parquet\n"


def test_what_cannot_be_swept_is_told_in_one_line(monkeypatch, capsys, stored, tmp_path):
    config = tmp_path / "sweep.yaml"
    config.write_text("questions: [boxes]\n")
    one = stored / "one"
    for words, message in (
        ([config], f"config '{config}' names no runs; accepted: runs: [FOLDER, ...]"),
        ([one, config], f"{config} beside other arguments; accepted: runs, or one .yaml file that names them"),
        ([one, one], "2 runs need --out, the folder for their tables"),
        ([one, "--engine", "slurm"], "engine 'slurm' is unknown; accepted: local, ray"),
        ([one, "--question", "boxes", "--control", "labels"],
         "control 'labels' is not of the question boxes; accepted: random-model"),
        ([one, "--device", "foo"], "device 'foo' is unknown; accepted: auto, cpu, cuda, cuda:N"),
        ([one, "--address", "local"], "--address does not go with --engine local"),
        ([one, "--question", "aligner-head"],
         f"question 'aligner-head' is about the model vilt-aligner; the run '{one}' is of tiny"),
    ):  # fmt: skip
        code, out, err = run(monkeypatch, capsys, "sweep", *words)
        assert (code, out, err) == (2, "", f"Error: {message}\n")
    assert not (one / "sweep").exists()
