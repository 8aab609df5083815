"""A study's file: what the package ships, what a cell is trained with, and what cannot be."""

from __future__ import annotations

from importlib.resources import files

import pytest
import yaml
from study_files import CONTENT, write

from grounding.errors import BadInput
from probe.study import StudyConfig, read_study


@pytest.mark.parametrize("name", ["miniature", "kilogram", "kilogram-small", "flickr30k", "touchdown-sdr"])
def test_studies_that_come_with_the_package_are_whole(name):
    study = read_study(name)
    small = {"vilt-aligner"} if name == "kilogram-small" else {"vilt-aligner", "mdetr"}
    assert {cell.model for cell in study.cells()} == small
    none = [cell for cell in study.cells() if cell.fraction == 0]
    assert none
    assert all(not cell.settings.grounding for cell in none)
    assert all(cell.settings.grounding for cell in study.cells() if cell.fraction)
    assert {"localisation", "boxes"} & set(study.sweep["questions"])  # what has an expression gap


def test_the_miniature_has_24_cells_of_two_pairs_of_equal_settings():
    cells = read_study("miniature").cells()
    assert len({cell.name for cell in cells}) == len(cells) == 24
    varied = {"seed", "grounding", "grounding_fraction"}
    for model in ("vilt-aligner", "mdetr"):
        kept = [{k: v for k, v in vars(c.settings).items() if k not in varied} for c in cells if c.model == model]
        assert all(values == kept[0] for values in kept)


def test_a_study_of_the_package_starts_from_checkpoints_as_its_comment_says(tmp_path):
    """The sizes of a recipe are for fresh weights: a checkpoint brings its own."""
    content = yaml.safe_load(files("probe.study").joinpath("configs/flickr30k.yaml").read_text())
    for name, values in content["models"].items():
        values["init"] = f"{name}-pretrained"
    content["initialisations"] = {"pretrained": {}, "scratch": {"init": None}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    found = {(c.model, c.initialisation, c.settings.init, str(c.settings.config)) for c in read_study(path).cells()}
    assert found == {
        (model, *start)
        for model in ("vilt-aligner", "mdetr")
        for start in (("pretrained", f"{model}-pretrained", "{}"), ("scratch", None, "{'candidate_size': 384}"))
    }
    content["settings"] = {"config": {"candidate_size": 384}}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(BadInput, match=r"config candidate_size: init '.*-pretrained' brings its own"):
        read_study(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": [1]}, "key 'fraction' is unknown; accepted: models, fractions"),
        ({"fractions": [0, 1.5]}, r"grounding_fraction 1\.5 is outside 0\.\.1"),
        ({"fractions": [0, 0]}, r"fractions \[0, 0\] has one twice"),
        ({"seeds": []}, "seeds is empty"),
        ({"extract": None, "intervene": {}}, "intervene needs a run to fit erasers on, but extract is null"),
        ({"settings": {"step": 3}}, "setting 'step' is unknown"),
        ({"settings": {"seed": 3}}, "setting 'seed' of model 'vilt-aligner' is what the study varies"),
        ({"models": {"a": {"recipe": "none"}}}, "recipe 'none' is unknown"),
        ({"models": ["a", "b"]}, r"models is \['a', 'b'\]; accepted: keys and values"),
        ({"models": {"a": None}}, "models: a is None; accepted: settings of probe finetune"),
        ({"fractions": ["ten"]}, r"fractions is \['ten'\]; accepted: a list of numbers"),
        ({"fractions": 0.1}, r"fractions is 0\.1; accepted: a list of numbers"),
        ({"seeds": [0.5]}, r"seeds is \[0\.5\]; accepted: a list of whole numbers"),
        ({"evaluate": {"splitt": "dev"}}, "evaluate: option 'splitt' is unknown; accepted: split, limit"),
        ({"evaluate": {"split": "tset"}}, "evaluate: split 'tset' is unknown; accepted: pretrain"),
        ({"extract": True}, "extract is True; accepted: its options as keys and values"),
        ({"extract": {"views": ["phrases"]}}, "extract: view 'phrases' is unknown"),
        ({"extract": {"shard_size": 0}}, "shard_size 0 is too small"),
        ({"sweep": {"questions": ["nope"]}}, "sweep: question 'nope' is unknown; accepted: alignment"),
        ({"sweep": {"probes": ["liner"]}}, "probe 'liner' is unknown; accepted: linear"),
        ({"sweep": {"folds": "five"}}, "sweep: folds is 'five'; accepted: int"),
        ({"intervene": {"method": "cut"}}, "intervene: method 'cut' is unknown; accepted: erase"),
        ({"intervene": {"concepts": ["bar"]}}, "intervene: concept 'bar' is unknown; accepted: place"),
        ({"intervene": {"draws": 0}}, "intervene: draws 0 is too small"),
        ({"evaluate": {"limit": "x"}}, "evaluate: limit is 'x'; accepted: int or null"),
        ({"evaluate": {"limit": 0}}, "evaluate: limit 0 is too small"),
        ({"extract": {"sites": "stage"}}, "extract: sites is 'stage'; accepted: a list or null"),
        ({"extract": {"batch_size": True}}, "extract: batch_size is True; accepted: int or 'auto'"),
        ({"sweep": {"seeds": [0, 1]}}, "sweep: seeds is that of the cell; accepted: without it"),
        ({"intervene": {"seed": 1}}, "intervene: seed is that of the cell; accepted: without it"),
        ({"intervene": {"concepts": [["place"]]}}, r"intervene: concepts is \[\['place'\]\]; accepted: a list or null"),
        ({"models": {"a": {"recipe": 5}}}, "recipe is 5; accepted: a name or a file"),
        ({"evaluate": None}, "study: evaluate is None; accepted: its options as keys and values"),
        ({"sweep": None}, "study: sweep is None; accepted: its options"),
        ({"extract": None, "intervene": [1]}, r"study: intervene is \[1\]; accepted: its options"),
        ({"evaluate": {"metrics": "nope"}}, "evaluate: metrics 'nope' is unknown; accepted: corrected, paper"),
        ({"evaluate": {"tune_split": "nope"}}, "evaluate: tune_split 'nope' is unknown; accepted: pretrain, train"),
        ({"evaluate": {"tune_split": "test"}}, "evaluate: split 'test' is a test split"),
        ({"evaluate": {"threshold": 3.0}}, r"evaluate: threshold 3\.0 is out of range"),
        (
            {"evaluate": {"threshold": 0.5, "tune_split": "tune"}},
            "threshold 0.5 and tune_split 'tune' exclude",
        ),
        ({"evaluate": {"batch_size": 0}}, "evaluate: batch_size 0 is too small"),
        ({"intervene": {"method": "knockout", "threshold": 3.0}}, r"intervene: threshold 3\.0 is out of range"),
        ({"settings": {"steps": 2, "epochs": 1}}, "steps 2 beside epochs 1; accepted: one of them"),
        ({"fractions": [0.5, 0.5000001]}, "2 cells have the name 'vilt-aligner-given-0.5-0'"),
        ({"models": {"../x": CONTENT["models"]["vilt-aligner"]}}, "models: '../x' names folders"),
        ({"initialisations": {"a/b": {}}}, "initialisations: 'a/b' names folders"),
    ],
)
def test_studies_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        read_study(write(tmp_path / "study.yaml", **changes))


def test_steps_over_a_recipe_of_epochs_say_how_long():
    recipe = {"recipe": "flickr30k-vilt-aligner"}
    for models, settings in (({**recipe, "steps": 10}, {}), (recipe, {"steps": 10})):
        (cell,) = StudyConfig({"v": models}, [1], [0], settings=settings, intervene=None).cells()
        assert (cell.settings.steps, cell.settings.epochs) == (10, None)
    (cell,) = StudyConfig({"v": recipe}, [1], [0]).cells()
    assert cell.settings.epochs == 100


def test_files_that_are_no_study(tmp_path):
    with pytest.raises(
        BadInput, match="study 'nothing' is unknown; accepted: flickr30k, kilogram, kilogram-small, miniature"
    ):
        read_study("nothing")
    (tmp_path / "a.yaml").write_text("models: [")
    with pytest.raises(BadInput, match="is not YAML"):
        read_study(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("fractions: [0, 1]\nfractions: [0]")
    with pytest.raises(BadInput, match=r"is not YAML: key 'fractions' comes twice .*line 2"):
        read_study(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_bytes(b"models: \xff")
    with pytest.raises(BadInput, match="is not YAML: 'utf-8' codec"):
        read_study(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("models: {}")
    with pytest.raises(BadInput, match="key 'fractions' is missing"):
        read_study(tmp_path / "a.yaml")
