"""Weights in several files, and checkpoints by their name on the Hugging Face hub (no network is used)."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from released_files import write_hugging_face
from safetensors.torch import save_file
from test_grounding_released_formats import HF
from transformers import ViltConfig, ViltModel

from grounding.checkpoint import convert_checkpoint, load_checkpoint
from grounding.errors import BadInput

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face ViLT in one file."""
    torch.manual_seed(0)
    config = ViltConfig(**HF)
    folder = tmp_path_factory.mktemp("hub") / "whole"
    return write_hugging_face(folder, ViltModel(config).state_dict(), config.to_dict(), "model.safetensors")


@pytest.fixture
def sharded(whole, tmp_path) -> Path:
    """The same in two files and an index."""
    from safetensors.torch import load_file

    folder, tensors = tmp_path / "sharded", load_file(whole / "model.safetensors")
    folder.mkdir()
    for file in whole.iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    places = {name: SHARDS[k % 2] for k, name in enumerate(tensors)}
    for shard in SHARDS:
        save_file({name: tensors[name] for name, place in places.items() if place == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder


def test_weights_in_several_files_are_those_of_one(whole, sharded):
    one, several = load_checkpoint(whole), load_checkpoint(sharded)
    assert several.report == one.report
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(several.model.state_dict()[name], tensor), name
    before = several.content
    index = json.loads((sharded / INDEX).read_text())
    moved = dict(zip(SHARDS, reversed(SHARDS), strict=True))
    for shard in SHARDS:
        (sharded / shard).rename(sharded / f"{shard}.moved")
    for shard in SHARDS:
        (sharded / f"{shard}.moved").rename(sharded / moved[shard])
    index["weight_map"] = {name: moved[place] for name, place in index["weight_map"].items()}
    (sharded / INDEX).write_text(json.dumps(index))
    assert load_checkpoint(sharded).content != before  # every file counts, in order


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, index: (folder / SHARDS[1]).unlink(), "names model-00002-of-00002.safetensors, which is not"),
        (lambda folder, index: index["weight_map"].update({"new.weight": SHARDS[0]}), "new.weight is in one of them"),
        (lambda folder, index: index["weight_map"].pop("layernorm.weight"), "layernorm.weight is in one of them only"),
        (lambda folder, index: index["weight_map"].update({"new.weight": "../x.safetensors"}), "names x.safetensors"),
        (lambda folder, index: index.update(weight_map={"a": 3}), "has no weight_map; accepted: an object"),
        (lambda folder, index: index.pop("weight_map"), "has no weight_map"),
        (lambda folder, index: (folder / SHARDS[0]).write_bytes(b"cut"), "model-00001-of-00002.safetensors cannot be"),
    ],
)
def test_an_index_and_files_that_do_not_fit_are_named(sharded, change, message):
    index = json.loads((sharded / INDEX).read_text())
    change(sharded, index)
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(BadInput) as raised:
        load_checkpoint(sharded)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, dict[str, Any]]]:
    """Every question to the hub, whose only repository is ``owner/vilt`` in ``hub``."""
    questions: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        questions.append((name, options))
        if name.startswith("owner/"):
            return str(Path("hub", name.removeprefix("owner/")).resolve())
        raise LocalEntryNotFoundError("Cannot find a cached snapshot.\nPlease check your connection and try again.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return questions


def test_a_name_on_the_hub_is_a_folder_of_safe_files(monkeypatch, tmp_path, whole, asked):
    monkeypatch.chdir(tmp_path)
    Path("hub").mkdir()
    Path("hub/vilt").symlink_to(whole)
    loaded = load_checkpoint("owner/vilt")
    assert loaded.content == load_checkpoint(whole).content
    convert_checkpoint("owner/vilt", "converted")
    assert load_checkpoint("converted").model.config == loaded.model.config
    patterns = asked[0][1]["allow_patterns"]
    wanted = [*(file.name for file in whole.iterdir()), INDEX, *SHARDS, "vocab.txt", "vocab.json", "merges.txt"]
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in wanted)
    unwanted = ("pytorch_model.bin", "model.py", "flax_model.msgpack", "README.md", "optimizer.pt", "tf_model.h5")
    assert not any(fnmatch(name, pattern) for name in unwanted for pattern in patterns)


def test_what_the_hub_does_not_have_is_one_line(monkeypatch, tmp_path, asked):
    monkeypatch.chdir(tmp_path)
    message = (
        "checkpoint 'someone/something' is neither a path here nor to be had from the Hugging Face hub (Cannot find a "
        "cached snapshot.); accepted: a file or folder, a bundled name, or "
        "owner/name where there is a network or a cached copy"
    )
    with pytest.raises(BadInput) as raised:
        load_checkpoint("someone/something")
    assert str(raised.value) == message
    Path("hub/empty").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"'owner/empty' on the Hugging Face hub lacks config\.json or safetensors"):
        load_checkpoint("owner/empty")
    assert len(asked) == 2


@pytest.mark.parametrize("source", ["runs/typo", "typo", "/no/where", "./no/where", "a/b/c", "../x"])
def test_a_mistyped_path_does_not_ask_the_hub(monkeypatch, tmp_path, asked, source):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(BadInput, match="is neither a file, a folder nor bundled"):
        load_checkpoint(source)
    assert not asked
