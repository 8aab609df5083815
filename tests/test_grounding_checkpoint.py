"""Checkpoint folders: what is saved comes back, and what is broken is named in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import MDETR, VILT, byte_level, game, single_image, small_mdetr, small_vilt

from grounding import checkpoint as module
from grounding.checkpoint import (
    bundled_checkpoints,
    config_from_json,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from grounding.errors import BadInput
from grounding.models import MODELS, SIZES, build_model, model_config
from grounding.models.text import load_tokenizer
from grounding.released import ACCEPTED

EXAMPLES = [game(), game("six", images=6, target=4, seed=1)]
INFO = {"threshold": {"value": 0.3, "split": "tune", "n": 5, "criterion": "recall"}, "training": {"best_step": 7}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViLT-Aligner on disk."""
    folder = tmp_path_factory.mktemp("saved") / "vilt"
    save_checkpoint(folder, small_vilt(), INFO)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(saved, tmp_path / "ckpt"))


def edit(folder: Path, **changes: object) -> None:
    """Change entries of a config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def error_of(*args: object, **options: object) -> str:
    """The one line that loading ends with."""
    with pytest.raises(BadInput) as raised:
        load_checkpoint(*args, **options)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("build", [small_vilt, small_mdetr])
def test_a_model_comes_back_equal(build, tmp_path):
    model = build()
    save_checkpoint(tmp_path / "made" / "here", model, INFO)
    assert sorted(p.name for p in (tmp_path / "made" / "here").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    loaded = load_checkpoint(tmp_path / "made" / "here")
    assert loaded.model.config == model.config
    assert loaded.info == INFO
    assert not loaded.model.training
    batch, again = model.preprocess(EXAMPLES), loaded.model.preprocess(EXAMPLES)
    with torch.inference_mode():
        before, after = model(batch), loaded.model(again)
    assert torch.equal(batch.input_ids, again.input_ids)
    for name, value in vars(before).items():
        assert torch.equal(value, getattr(after, name)), name


def test_saving_over_an_older_checkpoint_replaces_it(folder):
    save_checkpoint(folder, small_mdetr(), {})
    assert load_checkpoint(folder).model.config == small_mdetr().config


def test_content_changes_with_weights_configuration_and_tokenizer(saved, folder, tmp_path):
    known = {load_checkpoint(saved).content, load_checkpoint(folder).content}
    assert len(known) == 1
    edit(folder, training={"best_step": 8})
    known.add(load_checkpoint(folder).content)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.norm.bias"][0] += 1
    save_file(tensors, folder / "model.safetensors")
    known.add(load_checkpoint(folder).content)
    other = json.loads((folder / "tokenizer.json").read_text())
    other["normalizer"]["lowercase"] = False
    (tmp_path / "other.json").write_text(json.dumps(other))
    known.add(load_checkpoint(folder, tokenizer=tmp_path / "other.json").content)
    assert len(known) == 4


def test_another_tokenizer_takes_the_place_of_its_own(folder, tmp_path):
    byte_level().save(tmp_path / "bytes.json")
    assert "tokenizer has 3" in error_of(folder, tokenizer=tmp_path / "bytes.json")
    model = build_model(config_from_json("vilt-aligner", {**VILT, "vocabulary": 400}, "here"), byte_level())
    save_checkpoint(tmp_path / "bpe", model, {})
    (tmp_path / "bpe" / "tokenizer.json").unlink()
    loaded = load_checkpoint(tmp_path / "bpe", tokenizer=tmp_path / "bytes.json").model
    assert loaded.preprocess(EXAMPLES).input_ids[0, 0] == 0  # <s>
    assert loaded.preprocess(EXAMPLES).input_ids.shape[1] <= VILT["max_text"]


def test_bundled_checkpoints_are_found_by_name(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BUNDLED", tmp_path / "bundled")
    assert bundled_checkpoints() == []
    shutil.copytree(saved, tmp_path / "bundled" / "tiny-vilt")
    shutil.copytree(saved, tmp_path / "bundled" / "another")
    (tmp_path / "bundled" / "not-one").mkdir()
    assert bundled_checkpoints() == ["another", "tiny-vilt"]
    assert find_checkpoint("tiny-vilt") == tmp_path / "bundled" / "tiny-vilt"
    assert load_checkpoint("tiny-vilt").path == tmp_path / "bundled" / "tiny-vilt"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "tiny-vilt")
    assert find_checkpoint("tiny-vilt") == Path("tiny-vilt")  # a folder of the user's own comes first
    assert error_of("tiny-bert") == (
        "checkpoint 'tiny-bert' is neither a file, a folder nor bundled; bundled: another, tiny-vilt; "
        f"accepted: {ACCEPTED}"
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_no_checkpoint(folder, name):
    (folder / name).unlink()
    assert error_of(folder) == f"checkpoint '{folder}' has no {name}; accepted: {ACCEPTED}"


def test_our_folders_hold_one_set_of_weights_and_take_other_sizes_only_where_they_fit(folder):
    assert error_of(folder, weights="ema") == f"checkpoint '{folder}' holds one set of weights; leave --weights ema out"
    assert load_checkpoint(folder, config={"candidate_size": 64}).model.preprocessor.candidate_size == 64
    assert "word_embeddings.weight is [300, 24], not [300, 12]" in error_of(folder, config={"width": 12})


def test_a_checkpoint_without_tokenizer_asks_for_one(folder):
    (folder / "tokenizer.json").unlink()
    assert error_of(folder) == f"checkpoint '{folder}' has no tokenizer.json; give one with --tokenizer"


def test_a_checkpoint_for_another_model_is_refused(folder):
    assert error_of(folder, model="mdetr") == f"checkpoint '{folder}' is for model 'vilt-aligner', not 'mdetr'"
    assert load_checkpoint(folder, model="vilt-aligner").model.config.model == "vilt-aligner"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not JSON: "),
        ("[1]", "config.json holds a list; accepted: a JSON object"),
        ("{}", "model None is unknown; accepted: vilt-aligner, mdetr"),
        ('{"model": "vilt"}', "model 'vilt' is unknown; accepted: vilt-aligner, mdetr"),
        ('{"model": "mdetr", "config": [3]}', "config is [3]; accepted: an object with backbone, width"),
        ('{"model": "mdetr", "config": {"widht": 3}}', "field 'widht' is unknown; accepted: backbone, width"),
        ('{"model": "mdetr", "config": {"width": "3"}}', "field 'width' is '3'; accepted: a value like 256"),
        ('{"model": "mdetr", "config": {"width": true}}', "field 'width' is True; accepted: a value like 256"),
        ('{"model": "mdetr", "config": {"text_pooler": 1}}', "field 'text_pooler' is 1; accepted: a value like True"),
        (
            '{"model": "vilt-aligner", "config": {"position_grid": [3]}}',
            "field 'position_grid' is (3,); accepted: a value like (12, 12)",
        ),
        ('{"model": "mdetr", "config": {"width": 100}}', "width 100 is not a multiple of heads 8"),
    ],
)
def test_a_configuration_that_cannot_be_read_says_why(folder, text, message):
    (folder / "config.json").write_text(text)
    assert message in error_of(folder)


def test_a_whole_number_serves_for_a_dropout():
    assert config_from_json("vilt-aligner", {"dropout": 0}, "here").dropout == 0  # type: ignore[attr-defined]


def test_truncated_weights_are_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert error_of(folder).startswith(f"{path} cannot be read: ")
    path.write_bytes(b"")
    assert error_of(folder).startswith(f"{path} cannot be read: ")


def test_weights_that_do_not_fit_are_named(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    norm = tensors.pop("transformer.norm.weight")
    save_file(tensors, path)
    assert error_of(folder) == f"{path} does not fit its configuration: missing transformer.norm.weight"
    save_file({**tensors, "transformer.norm.weight": norm, "probe_layer.weight": norm.clone()}, path)
    assert error_of(folder) == f"{path} does not fit its configuration: unexpected probe_layer.weight"
    save_file({**tensors, "transformer.norm.weight": norm[:5].clone()}, path)
    assert error_of(folder).endswith("configuration: transformer.norm.weight is [5], not [24]")
    broken = norm.clone()
    broken[3] = torch.nan
    save_file({**tensors, "transformer.norm.weight": broken}, path)
    assert error_of(folder).endswith("configuration: transformer.norm.weight has non-finite values")
    save_file({"one": norm, "two": norm.clone()}, path)
    assert error_of(folder).count("missing") == 3
    assert error_of(folder).endswith(
        f"(and {len(tensors) - 1 + 1 + 2 - 3} more)"  # without the position numbers, with the norm, two unexpected
    )


def test_a_width_that_the_weights_do_not_have_is_named(folder):
    edit(folder, config={**VILT, "position_grid": [3, 2], "width": 12})
    assert "word_embeddings.weight is [300, 24], not [300, 12]" in error_of(folder)


@pytest.mark.parametrize("model", list(MODELS))
def test_every_named_size_survives_json(model):
    for size, config in SIZES[model].items():
        assert model_config(model, size) is config
        assert config_from_json(model, json.loads(json.dumps(asdict(config))), "here") == config


def test_unknown_models_and_sizes_name_the_known_ones():
    with pytest.raises(BadInput, match="model 'vilt' is unknown; accepted: vilt-aligner, mdetr"):
        model_config("vilt", "base")
    with pytest.raises(BadInput, match="size 'huge' is unknown; accepted: base, miniature"):
        model_config("mdetr", "huge")


@pytest.mark.parametrize("model", list(MODELS))
def test_the_miniature_models_stay_small(model):
    """At most 8 MB a checkpoint, as they ship inside the package."""
    tokenizer = small_vilt().preprocessor.tokenizer
    built = build_model(
        SIZES[model]["miniature"].__class__(**{**asdict(SIZES[model]["miniature"]), "vocabulary": 300}), tokenizer
    )
    assert 4 * sum(tensor.numel() for tensor in built.state_dict().values()) < 8e6
    assert built.preprocess([single_image(height=64, width=192)]).grid == (4, 12)


@pytest.mark.parametrize("name", bundled_checkpoints())
def test_what_is_bundled_loads_and_is_small(name):
    loaded = load_checkpoint(name)
    assert name.startswith(loaded.model.config.model)
    assert (loaded.path / "model.safetensors").stat().st_size <= 8e6
    assert loaded.info["training"]["settings"]["benchmark"] == "mini-game"
    assert (loaded.info["threshold"] is not None) == (loaded.model.predicts == "heatmap")


def test_the_tokenizer_of_a_checkpoint_is_plain_json(saved):
    tokenizer = load_tokenizer(saved, 20)
    assert tokenizer.vocabulary_size <= MDETR["vocabulary"]
    assert json.loads((saved / "tokenizer.json").read_text())["model"]["type"] == "WordPiece"
