"""Numbers recorded from the original programs, and models with the weights that they were recorded with.

Inputs are recorded after normalisation, so they are given to the models in the pixel values that normalise to them.
Each case remembers which of its arrays a test has read, so that none is forgotten.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grounding.examples import Example, ReferenceGame
from grounding.models.base import Batch

Rule = Callable[[str, tuple[int, ...]], np.ndarray]


class Case:
    """The arrays of one recording, by name, and the tolerances that its manifest suggests."""

    def __init__(self, folder: Path, name: str):
        with np.load(folder / f"{name}.npz") as arrays:
            self.arrays = dict(arrays)
        self.manifest = json.loads((folder / f"{name}.json").read_text())
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def get(self, name: str, default: Any) -> Any:
        """An array, or something else where it is not recorded."""
        return self[name] if name in self.arrays else default

    def tensor(self, name: str) -> Tensor:
        """An array as a tensor."""
        return torch.from_numpy(self[name])

    @property
    def unread(self) -> set[str]:
        """Arrays that nothing has looked at."""
        return set(self.arrays) - self.read

    def close(self, found: Tensor, name: str) -> None:
        """Compare with a recorded array, within the manifest's absolute tolerance."""
        expected, tolerance = self[name], self.manifest["arrays"][name]["suggested_atol"]
        assert tuple(found.shape) == expected.shape, name
        worst = float(np.abs(found.detach().numpy().astype(np.float64) - expected).max())
        assert worst <= tolerance, f"{name}: {worst} > {tolerance}"


@cache
def weight_rule(folder: Path) -> Rule:
    """The rule that gives every weight its value: ``gold_weights.py`` of the recordings."""
    spec = importlib.util.spec_from_file_location("gold_weights", folder / "gold_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.gold_weight


def load_gold(module: torch.nn.Module, folder: Path) -> None:
    """Give every floating-point entry its value, by its own name."""
    rule = weight_rule(folder)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(np.asarray(rule(name, tuple(tensor.shape)))))


def inventory(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's entries."""
    content = json.loads((folder / f"{name}_state_dict.json").read_text())
    return {entry[0]: tuple(entry[1]) for entry in content["entries"]}


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our entries."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def batch_of(case: Case, mean: Tensor, std: Tensor, stride: int) -> Batch:
    """The recorded inputs as a batch whose pixels normalise to them, of mean's type.

    mean, std: ``[3, 1, 1]`` in pixel values.
    """
    images = [case.tensor(f"image{i}").to(mean.dtype) for i in range(2)]
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    canvas, mask = mean.new_zeros(2, 3, height, width), torch.zeros(2, height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        canvas[i, :, : image.shape[1], : image.shape[2]] = image * std + mean
        mask[i, : image.shape[1], : image.shape[2]] = True
    ids = case.tensor("input_ids")
    text_mask = case.tensor("text_mask" if "text_mask" in case else "attention_mask").bool()
    phrases = case.get("phrase_token_mask", case.get("phrase_positive_map", np.zeros((0, ids.shape[1]), dtype=bool)))
    owners = torch.from_numpy(case.get("phrase_example", np.zeros(0, dtype=np.int64))).long()
    counts, labels = case.get("num_candidates", np.ones(2)), case.get("label_t", np.zeros(2))
    return Batch(
        examples=tuple(
            Example(str(i), "test", ("",) * int(counts[i]), "", (), ReferenceGame(int(labels[i]))) for i in range(2)
        ),
        images=canvas,
        pixel_mask=mask,
        input_ids=ids,
        text_mask=text_mask,
        offsets=torch.zeros(*ids.shape, 2, dtype=torch.int64),
        caption_tokens=torch.from_numpy(case.get("text_positive_map", case["input_ids"])).bool(),
        phrase_tokens=torch.from_numpy(phrases[:, : ids.shape[1]]).bool(),
        phrase_example=owners,
        phrase_ids=tuple(str(p) for p in range(len(owners))),
        grid=(-(-height // stride), -(-width // stride)),
        valid=torch.tensor([image.shape[1:] for image in images]),
    )
