"""Hugging Face folders that no adapter knows: loaded by transformers, extracted, swept; and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_models import game, single_image
from test_probe_cli import run
from unadapted import SIDE, hugging_face

from extract.from_checkpoint import continue_run, extract_checkpoint
from extract.modules import module_sites
from extract.run import extract
from grounding.checkpoint import load_checkpoint
from grounding.errors import BadInput
from grounding.released.automatic import PairReader

EXAMPLES = [game("a", 2, 1, SIDE), game("b", 2, 0, SIDE, 1), single_image("c")]
MODULES = {
    "flava": [
        "text_model.encoder.layer.*",
        "image_model.encoder.layer.*=1+image",
        "multimodal_model.encoder.layer.*=2+image+text",
    ],
    "bridgetower": [
        "text_model.encoder.layer.*",
        "vision_model.visual.transformer.resblocks.*=1+image",
        "cross_modal_text_layers.*",
        "cross_modal_image_layers.*=1+image",
    ],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each model."""
    folder = tmp_path_factory.mktemp("unadapted")
    return {kind: hugging_face(folder / kind, kind) for kind in MODULES}


@pytest.mark.parametrize("kind", MODULES)
def test_inputs_are_those_of_the_models_own_processor(folders, kind):
    model = load_checkpoint(folders[kind], adapted=False).model
    assert (model.read_pairs.size, model.read_pairs.grid) == (SIDE, (4, 4))
    arguments = model.preprocess(EXAMPLES).arguments
    from transformers import AutoImageProcessor, AutoTokenizer

    images = [Image.fromarray(np.asarray(image)) for image in (*EXAMPLES[0].images, *EXAMPLES[1].images)]
    pixels = AutoImageProcessor.from_pretrained(folders[kind])(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(arguments["pixel_values"][:4], pixels)
    captions = [EXAMPLES[0].caption] * 5
    text = AutoTokenizer.from_pretrained(folders[kind])(captions, return_tensors="pt")
    assert torch.equal(arguments["input_ids"], text["input_ids"])


def bare_states(model, name):
    """What a module of the network gives for the first example."""
    seen = []
    hook = model.network.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model.network(**model.preprocess(EXAMPLES[:1]).arguments)
    hook.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


@pytest.mark.parametrize("kind", MODULES)
def test_states_are_those_of_the_bare_network(folders, kind, tmp_path):
    model = load_checkpoint(folders[kind], adapted=False).model
    done = extract(
        model, EXAMPLES, tmp_path / "run", identity={}, modules=MODULES[kind], views=["phrase", "region", "tokens"],
        dtype="float32", batch_size=2,
    )  # fmt: skip
    layers = {"flava": {"image_model.encoder.layer.1", "multimodal_model.encoder.layer.1"}, "bridgetower": {
        "vision_model.visual.transformer.resblocks.2", "cross_modal_text_layers.1", "cross_modal_image_layers.1",
    }}  # fmt: skip
    for name in layers[kind]:
        states = bare_states(model, name)
        if "resblocks" in name:
            states = states.transpose(0, 1)
        image = states[:, -28:-12] if "multimodal" in name else states[:, 1:17]
        parts = [states[1, -12:]] if "multimodal" in name or "text" in name else []
        parts += [] if "text" in name else [image.flatten(0, 1)]
        row = list(done.examples["id"]).index("a")
        np.testing.assert_allclose(done.tokens(name, row), torch.cat(parts).numpy(), atol=2e-5)


def test_images_are_resized_with_the_filter_of_the_folder(folders, tmp_path):
    path = tmp_path / "bilinear"
    shutil.copytree(folders["flava"], path)
    file = path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"resample": 2}))
    for fresh in (None, 0):
        model = load_checkpoint(path, adapted=False, fresh_weights=fresh).model
        assert model.preprocessor.resample == Image.Resampling.BILINEAR


def test_the_place_of_a_token_is_where_its_pixels_are(folders):
    model = load_checkpoint(folders["flava"], adapted=False).model
    (site,) = module_sites(model, ["image_model.embeddings=1+image"], EXAMPLES)["image_model.embeddings=1+image"]
    states = []
    hook = model.get_submodule(site.module_path).register_forward_hook(
        lambda module, inputs, output: states.append(site.to_tokens(output)[0])
    )
    example = EXAMPLES[0]
    changed = np.array(example.images[1])
    changed[8:16, 24:32] ^= 255  # the second candidate, row 1, column 3
    other = replace(example, images=(example.images[0], changed))
    with torch.no_grad():
        for one in (example, other):
            model(model.preprocess([one]))
    hook.remove()
    assert (states[0] != states[1]).any(-1).nonzero().tolist() == [[(4 + 1) * 4 + 3]]


def test_the_command_extracts_resumes_adds_and_sweeps(folders, monkeypatch, capsys, tmp_path):
    out = tmp_path / "run"
    source = ["extract", "--ckpt", folders["flava"], "--benchmark", "mini-game", "--limit", 30, "--out", out]
    text, image, joint = ("--module", MODULES["flava"][0]), ("--module", MODULES["flava"][1]), MODULES["flava"][2]
    code, _, err = run(monkeypatch, capsys, *source, *text, *image, "--json")
    assert code == 0, err
    code, stdout, err = run(monkeypatch, capsys, "extract", "--out", out, "--add-module", joint, "--json")
    assert code == 0, err
    assert json.loads(stdout)["sites"] == 6
    code, stdout, err = run(monkeypatch, capsys, "sweep", out, "--probe", "linear", "--control", "none", "--json")
    assert code == 0, err
    assert len({row["site"] for row in json.loads(stdout)["rows"]}) == 6
    code, _, err = run(monkeypatch, capsys, "visualize", out)
    assert code == 0, err
    drawn = sorted({path.name.split("-mini-game")[0] for path in (out / "figures").iterdir()})
    assert drawn == ["example", "figures.json", "layer-curves.png", "layer-curves.svg"]
    code, _, err = run(monkeypatch, capsys, *source, "--module", "text_model", "--estimate")
    assert code == 2
    assert "name the part, as in PATH[last_hidden_state]" in err
    code, _, err = run(monkeypatch, capsys, "extract", "--out", out, "--module", "x")
    assert (code, "--module needs --ckpt and --benchmark" in err) == (2, True)


def test_a_run_goes_on_from_its_manifest(folders, tmp_path):
    made = extract_checkpoint(
        folders["flava"], "mini-game", "dev", tmp_path / "run", limit=3, modules=MODULES["flava"][:1]
    )
    assert made.manifest["views"] == ["phrase"]
    again = continue_run(tmp_path / "run", add_views=["tokens"])
    assert {site.views for site in again.sites} == {("phrase", "tokens")}


def test_without_modules_the_folder_is_refused_with_a_hint(folders):
    with pytest.raises(BadInput, match=r"model_type 'flava'; accepted: .*probe extract --module takes others too"):
        load_checkpoint(folders["flava"])


def test_a_processor_that_moves_pixels_gives_no_places(folders):
    class Shifted:
        def __call__(self, images, **options):
            moved = np.stack([np.roll(image, 1, axis=1)[:SIDE, :SIDE] for image in images]).transpose(0, 3, 1, 2)
            return {"pixel_values": torch.from_numpy(moved.copy())}

    given = load_checkpoint(folders["flava"], adapted=False).model
    reader = PairReader.of(given.read_pairs.tokenizer, Shifted(), given.network)
    assert (reader.size, reader.grid, reader.options) == (SIDE, None, {})


def test_images_are_not_cropped(tmp_path):
    larger = {"size": {"height": 40, "width": 40}, "do_normalize": False, "do_rescale": False}
    model = load_checkpoint(hugging_face(tmp_path / "flava", "flava", **larger), adapted=False).model
    assert (model.read_pairs.size, model.read_pairs.grid) == (SIDE, (4, 4))
    batch = model.preprocess(EXAMPLES[:1])
    assert torch.equal(batch.arguments["pixel_values"][1], batch.images[0, :, SIDE:])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "makes no image processor of it"),
        (lambda folder: _without(folder, "text_model.encoder.layer.0"), "does not fit AutoModel: missing text_model"),
        (lambda folder: _infinite(folder), "non-finite values"),
        (lambda folder: _change(folder, "config.json", model_type="never-seen"), "makes no model of it"),
        (lambda folder: (folder / "model.safetensors").unlink(), "makes no model of it"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, spoil, said):
    folder = hugging_face(tmp_path / "flava", "flava")
    spoil(folder)
    with pytest.raises(BadInput, match=said) as refused:
        load_checkpoint(folder, adapted=False)
    assert "\n" not in str(refused.value)


def test_code_of_a_folder_is_never_run(tmp_path):
    folder = hugging_face(tmp_path / "flava", "flava")
    (folder / "own.py").write_text("raise SystemExit('run')")
    _change(folder, "config.json", model_type="own", auto_map={"AutoModel": "own.Own", "AutoConfig": "own.OwnConfig"})
    with pytest.raises(BadInput, match="makes no model of it"):
        load_checkpoint(folder, adapted=False)


def test_options_that_a_folder_answers_itself_are_refused(folders):
    with pytest.raises(BadInput, match="says what it holds itself; leave --tokenizer out"):
        load_checkpoint(folders["flava"], tokenizer="x", adapted=False)


def _change(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _without(folder: Path, begin: str) -> None:
    path = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if not name.startswith(begin)}
    save_file(kept, path, metadata={"format": "pt"})


def _infinite(folder: Path) -> None:
    path = folder / "model.safetensors"
    values = load_file(path)
    values["text_model.encoder.layer.0.output.dense.weight"][0, 0] = float("inf")
    save_file(values, path, metadata={"format": "pt"})
