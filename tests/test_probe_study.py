"""A study from its file to its table: cells, resuming, shares; gains and what is enough on hand-worked numbers."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kilogram_fixture import write_kilogram
from study_files import CONTENT, write
from test_probe_cli import run

import probe.study as study_module
from extract.share import Share
from grounding.errors import BadInput, RunFailed
from probe.study import StudyConfig, collect, copy_light, read_study, run_study
from probe.study import run as run_module
from probe.study.summary import summarise_study
from visualize.study import draw_study

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study's file, and its folder, after the command ran it whole; its first cell was broken off once."""
    folder = tmp_path_factory.mktemp("study")
    path, out = write(folder / "study.yaml"), folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "evaluate_checkpoint", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_study(read_study(path), out)
    with pytest.MonkeyPatch.context() as patch:
        trained = []
        finetune = run_module.finetune
        patch.setattr(run_module, "finetune", lambda *args, **more: trained.append(args[1]) or finetune(*args, **more))
        assert run_study(read_study(path), out) == []
    assert [place.parent.name for place in trained] == ["vilt-aligner-given-1-0"]  # the first is not trained again
    return path, out


def test_every_cell_leaves_what_it_found(done):
    _, out = done
    for cell in ("vilt-aligner-given-0-0", "vilt-aligner-given-1-0"):
        assert {path.name for path in (out / "cells" / cell).iterdir()} == {
            "ckpt",
            "evaluation",
            "interventions",
            "run",
            "sweep",
        }
    results = collect(out, resamples=20)
    assert set(results.figures["fraction"]) == {0, 1}
    assert results.figures.set_index(["fraction", "figure"]).loc[(0, "accuracy"), "learned_phrases"] == 0
    summary = json.loads((out / "cells" / "vilt-aligner-given-1-0" / "evaluation" / "summary.json").read_text())
    row = results.figures.set_index(["fraction", "figure"]).loc[(1, "mean_iou")]
    assert row["value"] == summary["figures"]["mean_iou"]["value"]
    assert results.layers["site"].iloc[0] == "embedding"
    assert set(results.interventions["method"]) == {"knockout"}
    assert set(results.interventions["fraction"]) == {0, 1}
    gaps = results.gaps.set_index("fraction")
    assert set(gaps.index) == {0, 1}
    assert set(gaps["question"]) == {"localisation"}
    joined = pd.read_csv(out / "cells" / "vilt-aligner-given-1-0" / "sweep" / "joined.csv")
    assert gaps.loc[1, "value"] == joined.set_index("measure").loc["expression_gap", "value"]


def test_the_command_prints_the_table_of_a_study_that_is_whole(done, monkeypatch, capsys):
    path, out = done
    monkeypatch.setattr(run_module, "run_cell", lambda *args, **options: 1 / 0)  # nothing is done again
    code, printed, err = run(monkeypatch, capsys, "study", path, "--out", out, "--device", "cpu")
    assert (code, err) == (0, "")
    assert "| vilt-aligner | given | 0 |" in printed
    assert (out / "summary.md").read_text() in printed
    assert "* vilt-aligner, given: the expression gap (localisation, linear: " in printed
    names = {"figures.csv", "curves.csv", "layers.csv", "enough.csv", "effects.csv", "summary.md", "study.json"}
    assert names <= {item.name for item in out.iterdir()}
    drawn = {item.stem for item in (out / "figures").iterdir()}
    heat_maps = {f"layers-{question}-linear-vilt-aligner-given" for question in ("alignment", "localisation")}
    assert {"fractions", *heat_maps} < drawn
    assert any(stem.startswith("knockout-") for stem in drawn)


def test_another_study_is_refused_and_a_longer_one_goes_on(done, tmp_path, monkeypatch):
    _, out = done
    with pytest.raises(BadInput, match=r"holds a study with evaluate \{'limit': 12, 'split': 'dev'\}, not \{'split'"):
        run_study(read_study(write(tmp_path / "a.yaml", evaluate={"split": "dev"})), out)
    begun = []
    monkeypatch.setattr(run_module, "run_cell", lambda cell, *args, **options: begun.append(cell.name))
    left = run_study(read_study(write(tmp_path / "b.yaml", fractions=[0, 0.5, 1], seeds=[0, 1])), out)
    assert begun == [cell.name for cell in left]
    assert sorted(begun) == [f"vilt-aligner-given-{name}" for name in ("0-1", "0.5-0", "0.5-1", "1-1")]
    for name, left in (("0-1", "evaluation"), ("0.5-0", "ckpt")):
        (out / "cells" / f"vilt-aligner-given-{name}" / left).mkdir(parents=True)
    run_study(read_study(write(tmp_path / "c.yaml")), out)
    kept = json.loads((out / "study.json").read_text())
    assert (kept["fractions"], kept["seeds"]) == ([0, 1], [0, 1])  # of cells that were evaluated, not of 0.5
    for name in ("0-1", "0.5-0"):
        shutil.rmtree(out / "cells" / f"vilt-aligner-given-{name}")
    run_study(read_study(write(tmp_path / "c.yaml")), out)  # as it was, for other tests
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds something else than a study"):
        run_study(read_study(write(tmp_path / "c.yaml")), tmp_path / "full")


def test_a_light_copy_gives_the_same_tables_and_goes_on(done, tmp_path, monkeypatch, capsys):
    path, out = done
    light = tmp_path / "light"
    monkeypatch.setattr(
        run_module, "run_cell", lambda *args, **options: pytest.fail("a cell that is there is done again")
    )
    given = ("study", path, "--out", out, "--device", "cpu")
    assert run(monkeypatch, capsys, *given, "--light-copy", light)[0] == 0
    assert not [file for file in light.rglob("*") if file.is_file() and file.suffix not in (".json", ".csv", ".md")]
    assert not [file for file in light.glob("cells/**/*.json") if str(out) in file.read_text()]
    whole, copied = collect(out, resamples=20), collect(light, resamples=20)
    for name, table in vars(whole).items():
        pd.testing.assert_frame_equal(vars(copied)[name], table)
        assert (light / f"{name}.csv").read_bytes() == (out / f"{name}.csv").read_bytes()
    assert run_study(read_study(path), light) == []
    longer = read_study(write(tmp_path / "b.yaml", seeds=[0, 1]))
    copy_light(longer, out, light)
    assert "mean_iou" in set(collect(light, resamples=20).enough["figure"])
    for place, message in ((out, "is the study itself"), (tmp_path, "holds something else than a study")):
        code, _, err = run(monkeypatch, capsys, *given, "--light-copy", place)
        assert (code, message in err) == (2, True)


def test_what_no_cell_has_been_through_may_be_changed_and_models_added(done, tmp_path, monkeypatch):
    path, out = done
    study, begun = tmp_path / "out", []
    monkeypatch.setattr(run_module, "run_cell", lambda cell, *args, **options: begun.append(cell.name))
    run_study(read_study(write(tmp_path / "a.yaml", sweep={"sites": ["block.99"]})), study)
    (study / "cells" / "vilt-aligner-given-0-0" / "evaluation").mkdir(parents=True)
    run_study(read_study(path), study)  # the sweep's options are mended
    faster = {**CONTENT["models"]["vilt-aligner"], "learning_rate": 0.01}
    other = read_study(write(tmp_path / "b.yaml", models={"vilt-aligner": faster}))
    with pytest.raises(BadInput, match=r"holds a study with learning_rate of vilt-aligner, given 0\.0005, not 0\.01"):
        run_study(other, study)
    begun.clear()
    run_study(read_study(write(tmp_path / "c.yaml", models={**CONTENT["models"], "other": faster})), study)
    assert sorted(begun) == [f"{name}-given-{share}-0" for name in ("other", "vilt-aligner") for share in (0, 1)]
    with pytest.raises(BadInput, match=r"models \['other, given', 'vilt-aligner, given'\], not \['other, given'\]"):
        run_study(read_study(write(tmp_path / "d.yaml", models={"other": faster})), study)
    with pytest.raises(BadInput, match=r"holds a study with evaluate \{.*\}, not \{'split'"):
        run_study(read_study(write(tmp_path / "e.yaml", evaluate={"split": "dev"})), out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "model 'bert' is unknown"),
        ({"train_split": "nothere"}, "split 'nothere' is unknown"),
        ({"config": {"nonsense": 3}}, "config: field 'nonsense' is unknown"),
        ({"init": "mdetr-task", "config": {}}, "is of model 'mdetr'|'mdetr'"),
        ({"precision": "fp16"}, "precision 'fp16' needs a GPU"),
        ({"seed": 2**32}, "seed 4294967296 is too large; accepted: 0 to 4294967295"),
    ],
)
def test_what_cannot_be_trained_is_told_before_anything_is_written(tmp_path, changes, message):
    seeds = [changes.pop("seed")] if "seed" in changes else [0]
    models = {"v": {**CONTENT["models"]["vilt-aligner"], **changes}}
    with pytest.raises(BadInput, match=message):
        run_study(read_study(write(tmp_path / "a.yaml", models=models, seeds=seeds)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_swept_is_not_extracted_again_on_the_way_to_its_interventions(done, tmp_path, monkeypatch):
    path, out = done
    shutil.copytree(out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "cells" / "vilt-aligner-given-1-0" / "interventions")
    monkeypatch.setattr(run_module, "extract_checkpoint", lambda *args, **options: pytest.fail("extracted again"))
    assert run_study(read_study(path), tmp_path / "out") == []


def test_a_trained_cell_needs_its_first_checkpoint_no_more(tmp_path, monkeypatch):
    models = {"v": {"model": "vilt-aligner", "benchmark": "mini-game", "init": "vilt-aligner-task"}}
    study = read_study(write(tmp_path / "a.yaml", models=models))
    asked = []
    monkeypatch.setattr(run_module, "run_cell", lambda *args, **options: None)
    monkeypatch.setattr(run_module, "starting_model", asked.append)
    for cell in study.cells():
        run_study(study, tmp_path / "out")
        assert asked.pop().init == "vilt-aligner-task"
        trained = tmp_path / "out" / "cells" / cell.name / "ckpt"
        trained.mkdir(parents=True)
        (trained / "config.json").write_text("{}")
    run_study(study, tmp_path / "out")
    assert not asked


def test_cells_of_other_settings_are_not_added(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "run_cell", lambda *args, **options: None)
    recipe = tmp_path / "own.yaml"
    models = {"vilt-aligner": {**CONTENT["models"]["vilt-aligner"], "recipe": str(recipe)}}
    recipe.write_text("weight_decay: 0.01")
    run_study(read_study(write(tmp_path / "a.yaml", models=models)), tmp_path / "out")
    (tmp_path / "out" / "cells" / "vilt-aligner-given-0-0").mkdir(parents=True)
    recipe.write_text("weight_decay: 0.02")
    with pytest.raises(BadInput, match=r"weight_decay of vilt-aligner, given 0\.01, not 0\.02"):
        run_study(read_study(write(tmp_path / "b.yaml", models=models, seeds=[0, 1])), tmp_path / "out")


def test_what_cannot_be_opened_leaves_no_folder(tmp_path, monkeypatch, capsys):
    given = (
        "study",
        "kilogram-small",
        "--out",
        tmp_path / "out",
        "--light-copy",
        tmp_path / "light",
        "--device",
        "cpu",
    )
    for more, message in (
        (("--root", tmp_path / "none"), "none' is not a folder"),
        (("--root", tmp_path, "--option", "colour_order=red"), "colour_order 'red' is unknown"),
        (("--root", tmp_path, "--minutes", "-1"), "minutes -1.0 cannot be; accepted: 0 or more"),
        (("--root", tmp_path, "--minutes", "nan"), "minutes nan cannot be"),
        (("--root", tmp_path, "--logger", "comet"), "logger 'comet' is unknown; accepted: csv, tensorboard, wandb"),
        (("--root", tmp_path, "--workers", "-1"), "workers -1 is too small"),
        (("--root", tmp_path, "--engine", "ray", "--shard-index", "1"), "--shard-index does not go with --engine ray"),
        (("--root", tmp_path, "--engine", "ray", "--num-workers", "0"), "num_workers 0 is too small"),
    ):
        code, _, err = run(monkeypatch, capsys, *given, *more)
        assert (code, message in err) == (2, True), err
    models = {"vilt-aligner": {"model": "vilt-aligner", "benchmark": "mini-game", "init": "nope"}}
    with pytest.raises(BadInput, match="checkpoint 'nope' is neither a file, a folder nor bundled"):
        run_study(StudyConfig(**{**CONTENT, "models": models}), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_study_of_points_in_panoramas_tells_how_many_are_near_enough(tmp_path):
    values = {**CONTENT["models"]["vilt-aligner"], "benchmark": "mini-sdr"}
    study = read_study(write(tmp_path / "a.yaml", models={"vilt-aligner": values}, extract=None, intervene=None))
    assert run_study(study, tmp_path / "out") == []
    results = collect(tmp_path / "out", resamples=20)
    assert {"accuracy@80px", "mean_distance", "mean_iou"} <= set(results.curves["figure"])
    gained = results.effects.set_index("figure").loc["accuracy@80px"]
    assert gained["images_low"] <= gained["gain"] <= gained["images_high"]
    text = summarise_study(results)
    assert "| model | initialisation | fraction | accuracy within 80 pixels | mean IoU |" in text
    assert "accuracy within 80 pixels changes by" in text
    assert draw_study(vars(results), tmp_path / "figures")


def test_cells_are_trained_as_the_machine_is_to_be_used(tmp_path, monkeypatch):
    seen = []

    def stopped(settings, out, **options):
        seen.append((options["device"], options["workers"], options["loggers"]))
        raise RunFailed("far enough")

    monkeypatch.setattr(run_module, "finetune", stopped)
    study = read_study(write(tmp_path / "a.yaml", fractions=[1]))
    run_study(study, tmp_path / "out", workers=2, loggers=["csv"], failed={})
    assert seen == [("cpu", 2, ("csv",))]


def test_a_cell_that_cannot_go_on_is_told_and_the_others_do(done, tmp_path, monkeypatch, capsys):
    path, out = done
    copied = tmp_path / "out"
    shutil.copytree(out, copied)
    shutil.rmtree(copied / "cells" / "vilt-aligner-given-0-0")
    content = write(tmp_path / "longer.yaml", seeds=[0, 1])

    def broken(cell, config, folder, **options):
        if cell.seed == 0:
            raise RunFailed("loss is nan at step 3")

    monkeypatch.setattr(run_module, "run_cell", broken)
    code, printed, err = run(monkeypatch, capsys, "study", content, "--out", copied, "--device", "cpu")
    assert code == 1
    assert "1 of the cells cannot go on: vilt-aligner-given-0-0: loss is nan at step 3" in err
    assert "| vilt-aligner | given | 1 |" in printed
    assert "Left: 3 of 4 cells; the same command goes on" in printed
    shard = ("--num-workers", "4", "--shard-index", "1")
    code, printed, _ = run(monkeypatch, capsys, "study", content, "--out", copied, "--device", "cpu", *shard)
    assert code == 0
    assert "Left: 3 of 4 cells; none of them is this shard's" in printed
    code, printed, _ = run(monkeypatch, capsys, "study", path, "--out", copied, "--device", "cpu")
    assert code == 1
    assert "Left: 1 of 2 cells; they cannot go on" in printed
    with pytest.raises(RunFailed, match="cell vilt-aligner-given-0-0: loss is nan"):
        run_study(read_study(path), copied)


def test_a_cell_that_another_process_ends_meanwhile_is_in_the_tables(done, tmp_path, monkeypatch, capsys):
    path, out = done
    copied, late = tmp_path / "out", "cells/vilt-aligner-given-1-0"
    shutil.copytree(out, copied)
    (copied / late).rename(tmp_path / "late")
    collected = study_module.collect

    def slow(folder):
        results = collected(folder)
        if not (copied / late).exists():
            (tmp_path / "late").rename(copied / late)
        return results

    monkeypatch.setattr(study_module, "collect", slow)
    monkeypatch.setattr(run_module, "run_cell", lambda *args, **options: None)
    code, printed, _ = run(monkeypatch, capsys, "study", path, "--out", copied, "--device", "cpu")
    assert code == 0
    assert "| vilt-aligner | given | 1 |" in printed
    assert set(pd.read_csv(copied / "curves.csv")["fraction"]) == {0, 1}


def test_an_option_of_the_benchmark_goes_to_every_cell_over_those_of_the_recipe(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(run_module, "run_cell", lambda cell, *args, **options: seen.append(cell))
    monkeypatch.setattr(run_module, "starting_model", lambda settings: None)  # its tokenizers are on the hub
    monkeypatch.setattr(run_module.Machine, "check_precision", lambda machine, precision: None)  # it is for GPUs
    root = write_kilogram(tmp_path / "kilogram")
    given = ("--root", root, "--option", "candidates=4", "--option", "colour_order=random")
    code, _, err = run(monkeypatch, capsys, "study", "kilogram", "--out", tmp_path / "out", "--device", "cpu", *given)
    assert (code, err) == (0, "")
    assert len(seen) == 30
    assert all(cell.settings.benchmark_options == {"colour_order": "random", "candidates": 4} for cell in seen)
    (tmp_path / "out" / "cells" / seen[0].name).mkdir(parents=True)
    code, _, err = run(
        monkeypatch, capsys, "study", "kilogram", "--out", tmp_path / "out", "--device", "cpu", "--root", root
    )
    assert code == 2
    options = "{'colour_order': 'random', 'candidates': 4}"
    assert f"holds a study with benchmark_options of {seen[0].start} {options}" in err


def test_processes_share_the_cells(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(run_module, "run_cell", lambda cell, *args, **options: begun.append(cell.name))
    study = read_study(write(tmp_path / "a.yaml", fractions=[0, 0.5, 1]))
    run_study(study, tmp_path / "out", share=Share(1, 2))
    run_study(study, tmp_path / "out", share=Share(0, 2))
    assert begun == [f"vilt-aligner-given-{fraction}-0" for fraction in ("0.5", "0", "1")]


def test_when_the_minutes_are_over_training_stops_and_goes_on_later(tmp_path):
    study = read_study(write(tmp_path / "a.yaml", fractions=[1], extract=None, intervene=None))
    assert len(run_study(study, tmp_path / "out", minutes=0)) == 1
    assert not list((tmp_path / "out").rglob("evaluation"))
    with pytest.raises(BadInput, match="has no cell that is evaluated yet"):
        collect(tmp_path / "out")
    assert run_study(study, tmp_path / "out", minutes=10) == []


@pytest.mark.slow
def test_cells_run_on_a_ray_cluster(tmp_path):
    study = read_study(write(tmp_path / "a.yaml", extract=None, intervene=None, fractions=[0, 1e-4, 1]))
    failed: dict[str, str] = {}
    ray: Any = {"engine": "ray", "address": "local", "device": "auto", "num_workers": 1, "failed": failed}
    left = run_study(study, tmp_path / "out", **ray)
    assert [cell.name for cell in left] == list(failed) == ["vilt-aligner-given-0.0001-0"]
    assert failed["vilt-aligner-given-0.0001-0"].startswith("grounding fraction 0.0001 is less than one of ")
    assert len(collect(tmp_path / "out", resamples=10).effects)


def test_a_worker_that_is_lost_fails_its_cell_alone(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    study, failed = read_study(write(tmp_path / "a.yaml", extract=None, intervene=None)), {}

    def get(task):
        if task == "vilt-aligner-given-0-0":
            raise ray.exceptions.OutOfMemoryError("the node ran out")

    class Task:
        def remote(self, cell, *_args, **_options):
            return cell.name

    monkeypatch.setattr("extract.ray_pool.connected", lambda *_: nullcontext())
    monkeypatch.setattr("extract.ray_pool.device_and_gpus", lambda *_: ("cpu", 0))
    monkeypatch.setattr("extract.ray_pool.capacity", lambda *_: 1)
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _function: Task())
    monkeypatch.setattr(ray, "wait", lambda tasks: (tasks[:1], tasks[1:]))
    monkeypatch.setattr(ray, "get", get)
    run_study(study, tmp_path / "out", engine="ray", failed=failed)
    assert list(failed) == ["vilt-aligner-given-0-0"]
    assert "its worker was lost: " in failed["vilt-aligner-given-0-0"]


def test_a_study_with_one_cell_so_far_has_no_gains_and_says_so(done, tmp_path):
    _, out = done
    shutil.copy(out / "study.json", tmp_path)
    shutil.copytree(out / "cells" / "vilt-aligner-given-0-0", tmp_path / "cells" / "vilt-aligner-given-0-0")
    results = collect(tmp_path, resamples=20)
    assert results.effects.empty
    assert results.enough.empty
    text = summarise_study(results, missing=1)
    assert "1 cell of the study is not whole yet: what follows is of what is there so far." in text
    row = results.curves.set_index("figure").loc["accuracy"]
    told = f"{row['value']:.3f} [{row['images_low']:.3f}, {row['images_high']:.3f}]"
    assert f"| vilt-aligner | given | 0 | {told} |" in text
    results.write(tmp_path)
    assert all(pd.read_csv(tmp_path / f"{name}.csv").empty for name in ("effects", "enough"))
    assert "fractions.png" in [path.name for path in draw_study(vars(results), tmp_path / "figures")]
