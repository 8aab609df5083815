"""Hugging Face folders as checkpoints: loaded strictly, the same model again, and served by every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hf_models import SETTINGS, square_game, tiny, write_folder
from safetensors.torch import load_file, save_file
from test_probe_cli import run
from transformers import AutoImageProcessor

from grounding.checkpoint import convert_checkpoint, inspect_checkpoint, load_checkpoint
from grounding.errors import BadInput


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_folder(tiny("clip"), tmp_path_factory.mktemp("clip") / "model")


@pytest.mark.parametrize("kind", sorted(SETTINGS))
@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_gives_the_model_that_was_saved(kind, sharded, tmp_path):
    model = tiny(kind)
    loaded = load_checkpoint(write_folder(model, tmp_path / "x", sharded))
    assert (tmp_path / "x" / "model.safetensors.index.json").is_file() == sharded
    assert loaded.format == f"Hugging Face {kind}"
    assert set(loaded.report.loaded) == set(model.network.state_dict())
    assert not loaded.report.missing
    swin = [name for name in loaded.report.renamed if ".swin." in name]  # whose older names transformers writes
    assert bool(swin) == kind.endswith("grounding-dino")
    if kind.endswith("grounding-dino"):  # BERT's special tokens are no part of a folder
        loaded.model.network.model.special_tokens = model.network.model.special_tokens
    batch = model.preprocess([square_game(model)])
    again = loaded.model.preprocess([square_game(model)])
    assert torch.equal(again.input_ids, batch.input_ids)
    assert loaded.model.preprocessor.tokenizer.pad_id == 0
    with torch.no_grad():
        torch.testing.assert_close(vars(loaded.model(again)), vars(model(batch)))


def test_weights_under_other_names_are_renamed_and_not_ignored(tmp_path):
    """transformers saves DETR's backbone under older names, and tells of none of them."""
    folder = write_folder(tiny("detr"), tmp_path / "x")
    saved = load_file(folder / "model.safetensors")
    report = inspect_checkpoint(folder).report
    for name in ("embedder.embedder.convolution.weight", "embedder.embedder.normalization.running_mean"):
        assert report.renamed[f"model.backbone.model.{name}"] == f"model.backbone.conv_encoder.model.{name}"
    assert not report.ignored
    assert set(report.renamed.values()) == set(saved) - set(report.loaded)


def test_weights_that_may_be_missing_are_not_called_loaded(tmp_path):
    folder = write_folder(tiny("grounding-dino"), tmp_path / "x")
    bare = changed(folder, tmp_path, lambda weights: [weights.pop(n) for n in list(weights) if "swin.layernorm" in n])
    report = load_checkpoint(bare).report
    assert len(report.missing) == 2
    assert all("swin.layernorm" in name and "fresh values" in reason for name, reason in report.missing.items())
    assert not set(report.missing) & set(report.loaded)


def changed(folder: Path, tmp_path: Path, change) -> Path:
    """A copy of a folder with other weights."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("text_projection.weight"), "missing text_projection.weight"),
        (lambda w: w.update(extra=torch.zeros(2)), "unexpected extra"),
        (lambda w: w.update({"visual_projection.weight": torch.zeros(5, 5)}), r"visual_projection.weight is \[5, 5\]"),
        (lambda w: w["logit_scale"].fill_(torch.nan), "logit_scale has non-finite values"),
    ],
)
def test_weights_that_do_not_fit_are_refused(clip, tmp_path, change, message):
    with pytest.raises(BadInput, match=f"does not fit CLIPModel: {message}"):
        load_checkpoint(changed(clip, tmp_path, change))


def test_position_numbers_of_old_files_are_left_out(clip, tmp_path):
    def change(weights):
        weights["text_model.embeddings.position_ids"] = torch.arange(24)[None]

    report = inspect_checkpoint(changed(clip, tmp_path, change)).report
    assert report.ignored == {
        "text_model.embeddings.position_ids": "the numbers 0, 1, 2, ..., which the model makes itself"
    }


def rewritten(folder: Path, tmp_path: Path, name: str, **fields) -> Path:
    """A copy of a folder with other fields in one of its JSON files; None removes the file."""
    copy = changed(folder, tmp_path, lambda weights: None)
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**content, **fields}))
    return copy


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("config.json", {"model_type": "resnet"}, "model_type 'resnet'; accepted: .*clip.*vilt"),
        ("config.json", {"text_config": {"hidden_size": "wide"}}, "settings of a 'clip' model"),
        ("preprocessor_config.json", {"image_mean": [1, 2]}, r"image_mean \[1, 2\]; accepted: three numbers"),
        ("preprocessor_config.json", {"resample": 17}, "resample 17; accepted: 0 to "),
        ("preprocessor_config.json", {"rescale_factor": 0}, "rescale_factor 0; accepted: a number over 0"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(clip, tmp_path, name, fields, message):
    with pytest.raises(BadInput, match=message) as error:
        load_checkpoint(rewritten(clip, tmp_path, name, **fields))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "said", [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5, "resample": None}]
)
@pytest.mark.parametrize("kind", ["clip", "conditional_detr", "rt_detr"])
def test_pixels_are_those_of_transformers_own_processor(kind, said, tmp_path):
    """RT-DETR's values are not normalised unless its file says so; what a file leaves out is its class's own value."""
    folder = write_folder(tiny(kind), tmp_path / "x")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 64, "width": 64}, **said}))
    model = load_checkpoint(folder).model
    example = square_game(model, images=1, target=0)
    kept = {"do_resize": False, "do_center_crop": False, "do_pad": False}
    theirs = AutoImageProcessor.from_pretrained(folder, **kept)
    expected = theirs(images=list(example.images), return_tensors="pt").pixel_values.float()
    torch.testing.assert_close(model.take(model.preprocess([example]))[1], expected)
    if "resample" not in said:
        assert model.config.resample == theirs.resample


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "has no weights; accepted: model.safetensors"),
        ("preprocessor_config.json", "has no preprocessor_config.json"),
        ("tokenizer.json", "has no tokenizer.json; give one with --tokenizer"),
    ],
)
def test_a_missing_file_is_named(clip, tmp_path, name, message):
    copy = changed(clip, tmp_path, lambda weights: None)
    (copy / name).unlink()
    with pytest.raises(BadInput, match=message):
        load_checkpoint(copy)


def test_a_truncated_file_is_named(clip, tmp_path):
    copy = changed(clip, tmp_path, lambda weights: None)
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:300])
    with pytest.raises(BadInput, match=r"model.safetensors cannot be read"):
        load_checkpoint(copy)


def test_options_of_other_formats_are_refused(clip, tmp_path):
    with pytest.raises(BadInput, match="leave --weights out"):
        load_checkpoint(clip, weights="ema")
    with pytest.raises(BadInput, match="leave --config out"):
        load_checkpoint(clip, config={"heads": 2})
    with pytest.raises(BadInput, match="is a Hugging Face folder, which every command takes as it is"):
        convert_checkpoint(clip, tmp_path / "out")


def test_the_commands_take_the_folder(clip, tmp_path, capsys, monkeypatch):
    def printed(*words: object) -> dict:
        code, out, err = run(monkeypatch, capsys, *words, "--json")
        assert code == 0, err
        return json.loads(out)

    told = printed("inspect", clip, "--verify")
    assert told["format"] == "Hugging Face clip"
    assert all(check["status"] == "ok" for check in told["checks"])
    games = ["--benchmark", "mini-game", "--split", "dev", "--limit", "4"]
    figures = printed("evaluate", "--ckpt", clip, *games, "--threshold", "0.5")
    assert "accuracy" in json.dumps(figures)
    printed("extract", "--ckpt", clip, *games, "--out", tmp_path / "run", "--views", "phrase,region")
    assert (tmp_path / "run" / "activations.h5").is_file()


def test_a_vilt_without_the_retrieval_head_is_our_own_model(tmp_path):
    from transformers import ViltModel

    model = tiny("vilt")
    ViltModel(model.network.config).save_pretrained(tmp_path / "x")
    assert inspect_checkpoint(tmp_path / "x").stored.config.model == "vilt-aligner"
