"""Files that hold more than weights, or less: nothing runs, and every refusal is one line that helps."""

from __future__ import annotations

import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path, PosixPath
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from released_files import released_vilt, state, write_study

from grounding.checkpoint import inspect_checkpoint, load_checkpoint
from grounding.errors import BadInput
from grounding.released.pickles import read_pickle


def refusal(path: Path) -> str:
    """The one line that opening a file ends with."""
    with pytest.raises(BadInput) as raised:
        load_checkpoint(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


class Payload:
    """Unpickling it would make a file, by the function that it was given."""

    def __init__(self, function: Any, *args: object):
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(("function", "name"), [(os.mkdir, "posix.mkdir"), (eval, "builtins.eval")])
@pytest.mark.parametrize("archive", [True, False])
def test_a_payload_does_not_run_and_is_named(tmp_path, function, name, archive):
    trace = tmp_path / "ran"
    argument = f"__import__('os').mkdir({str(trace)!r})" if function is eval else str(trace)
    path = tmp_path / "evil.ckpt"
    content = {"state_dict": state(released_vilt()), "callbacks": Payload(function, argument)}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    message = refusal(path)
    assert not trace.exists()
    assert name.split(".")[1] in message
    if archive:
        assert f"holds {name}, which is not on the list of plain objects" in message
    assert "torch.save(model.state_dict(), 'weights.pth')" in message


def test_the_payload_would_have_run(tmp_path):
    """The control: Python's own unpickler does run it."""
    trace = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(os.mkdir, str(trace))))
    assert trace.is_dir()


def test_every_refused_object_is_named(tmp_path):
    content = {"a": Payload(eval, "1"), "b": Payload(os.getcwd), "state_dict": {"w": torch.zeros(1)}}
    torch.save(content, tmp_path / "two.pth")
    assert "holds builtins.eval, posix.getcwd, which" in refusal(tmp_path / "two.pth")


def test_plain_objects_come_back(tmp_path):
    content = {
        "path": PosixPath("/a/b"),
        "number": np.float64(0.25),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "ordered": OrderedDict(a=1),
        "weights": torch.arange(3.0),
    }
    torch.save(content, tmp_path / "plain.pth")
    found = read_pickle(tmp_path / "plain.pth")
    assert torch.equal(found.pop("weights"), content.pop("weights"))
    assert str(found.pop("path")) == str(content.pop("path"))
    assert found == content
    assert type(found["number"]) is np.float64


def test_old_lightnings_own_classes_are_read_without_lightning(tmp_path, monkeypatch):
    """ViLT's Lightning keyed callbacks by class; the class is not imported, and need not be there."""
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    checkpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    attributes = type("AttributeDict", (dict,), {"__module__": "pytorch_lightning.utilities.parsing"})
    parsing = ModuleType("pytorch_lightning.utilities.parsing")
    module.ModelCheckpoint, parsing.AttributeDict = checkpoint, attributes  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.utilities"):
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        patch.setitem(sys.modules, parsing.__name__, parsing)
        content = {"callbacks": {checkpoint: {"best": 1}}, "hyper_parameters": attributes(rate=0.1)}
        torch.save({**content, "state_dict": state(released_vilt())}, tmp_path / "old.ckpt")
    found = read_pickle(tmp_path / "old.ckpt")
    assert list(found["callbacks"].values()) == [{"best": 1}]
    assert found["hyper_parameters"] == {"rate": 0.1}
    assert inspect_checkpoint(tmp_path / "old.ckpt").report.loaded


def test_weights_are_mapped_not_read(tmp_path):
    """Bytes that change in the file show in the tensor; a file in torch's older format is read as a whole."""
    for name, archive, mapped in (("new.pth", True, True), ("old.pth", False, False)):
        path = tmp_path / name
        torch.save({"w": torch.ones(100_000)}, path, _use_new_zipfile_serialization=archive)
        weights = read_pickle(path)["w"]
        with path.open("r+b") as file:
            file.write(b"\0" * path.stat().st_size)
        assert (not weights.any()) == mapped


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the study."""
    return write_study(tmp_path_factory.mktemp("whole") / "aligner.ckpt", released_vilt())


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.999])
def test_a_truncated_file_is_named(whole, tmp_path, share):
    content = whole.read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(content[: int(len(content) * share)])
    assert refusal(path) == f"{path} is truncated ({path.stat().st_size} bytes); copy or download it again"


def test_a_truncated_file_of_the_older_format_is_named(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-10])
    assert "old.pth is truncated" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        "Dear reader,\r\n\tthese are no weights.\n",
        "version https://git-lfs.github.com\n" * 99,
        "<p>" + "é" * 200,  # what is looked at ends within a character
    ],
)
def test_text_with_the_name_of_a_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "notes.pth"
    path.write_text(content, encoding="utf-8")
    expected = f"{path} is a text file (a git-lfs pointer, a web page?); accepted: a file written by torch.save"
    assert refusal(path) == expected


def test_a_pickle_that_torch_did_not_write_is_refused_without_torchs_advice_to_run_it(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_bytes(pickle.dumps({"model": Path(path)}, protocol=4))
    told = refusal(path)
    assert told.startswith(
        f"{path} cannot be read as a file written by torch.save: UnpicklingError Unsupported operand"
    )
    assert told.endswith("where you trust the file: torch.save(model.state_dict(), 'weights.pth')")
    assert "weights_only" not in told


@pytest.mark.parametrize("content", [b"\x80\x04\x95", b"\0" * 100])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "notes.pth"
    path.write_bytes(content)
    assert refusal(path).startswith(
        (f"{path} cannot be read as a file written by torch.save: ", f"{path} is truncated")
    )


def test_an_empty_file_and_an_empty_folder_are_named(tmp_path):
    (tmp_path / "empty.ckpt").touch()
    assert refusal(tmp_path / "empty.ckpt").endswith("empty.ckpt is empty; accepted: a file written by torch.save")
    (tmp_path / "folder").mkdir()
    message = refusal(tmp_path / "folder")
    assert "folder' has no config.json; accepted: " in message
    for kind in ("Lightning .ckpt", "MDETR .pth", "Hugging Face folder", "state dict"):
        assert kind in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list; accepted: a folder"),
        ({"epoch": 3}, "holds 'epoch' of type int where a weight belongs; accepted: a folder"),
        ({}, "holds no state dict where one belongs"),
        ({"state_dict": None}, "holds no state dict where one belongs"),
        ({"bert.pooler.weight": torch.zeros(2)}, "holds no weights of a model that is known here; accepted: a folder"),
    ],
)
def test_contents_that_are_no_weights_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    assert message in refusal(tmp_path / "other.pth")


def test_averaged_weights_that_are_not_there_are_named(tmp_path):
    path = write_study(tmp_path / "raw.ckpt", released_vilt(), ema=False)
    message = "(Lightning checkpoint) has no averaged weights (EMA); accepted: --weights raw"
    with pytest.raises(BadInput) as raised:
        inspect_checkpoint(path, weights="ema")
    assert str(raised.value) == f"{path} {message}"
    assert inspect_checkpoint(path).stored.chosen == "only"
    torch.save({"state_dict": state(released_vilt()), "callbacks": ["EMA"]}, tmp_path / "list.ckpt")
    assert inspect_checkpoint(tmp_path / "list.ckpt").stored.chosen == "only"
    with pytest.raises(BadInput, match="weights 'mean' is unknown; accepted: ema, raw"):
        inspect_checkpoint(path, weights="mean")


def test_values_that_are_not_finite_are_named_and_large_ones_are_not(tmp_path):
    tensors = state(released_vilt())
    tensors["transformer.norm.weight"] = torch.full((128,), 3e38)  # their sum overflows, none of them does
    torch.save(tensors, tmp_path / "large.pth")
    assert inspect_checkpoint(tmp_path / "large.pth").report.loaded
    tensors["transformer.norm.weight"][7] = torch.inf
    torch.save(tensors, tmp_path / "infinite.pth")
    with pytest.raises(BadInput, match=r"transformer\.norm\.weight has non-finite values"):
        inspect_checkpoint(tmp_path / "infinite.pth")
    tensors["transformer.norm.weight"] = torch.ones(128, dtype=torch.int64)
    torch.save(tensors, tmp_path / "whole.pth")
    with pytest.raises(BadInput, match=r"transformer\.norm\.weight is of type torch\.int64"):
        inspect_checkpoint(tmp_path / "whole.pth")
