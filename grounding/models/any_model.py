"""Any network behind the protocol: it reads pairs of an image and a caption, and answers nothing.

What is known of it is what its preprocessing says: which characters a token covers, and how image tokens lie.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from grounding.errors import BadInput
from grounding.examples import Example, PhrasePrediction, Prediction
from grounding.models.base import Batch, GroundingModel, ModelConfig, Output, Site
from grounding.models.hf.images import Candidates, SquarePreprocessor
from grounding.models.text import EncodedText
from grounding.values import check_counts


@dataclass(frozen=True)
class Inputs:
    """What a network reads for M pairs of an image and a caption.

    arguments: of its ``forward``, by name. offsets: int64 ``[M, T, 2]``, the caption's characters ``[begin, end)`` of
    each text token; (0, 0) for special and padding tokens. text_mask: bool ``[M, T]``, the tokens that are no padding;
    None where there is none. grid: (rows, columns) of the tokens of an image, which share it equally; None where it is
    not known, and then no token means a place.
    """

    arguments: Mapping[str, Any]
    offsets: Tensor
    text_mask: Tensor | None = None
    grid: tuple[int, int] | None = None


Preprocess = Callable[[list[np.ndarray], list[str]], Inputs]


@dataclass
class PairBatch(Batch):
    """A batch of M image-caption pairs. arguments, image_grid: those of ``Inputs``; ``input_ids`` holds nothing."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    image_grid: tuple[int, int] | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairBatch:
        """The same batch with every tensor on ``device``, the network's arguments too."""
        return self._with_arguments(
            super().to(device, non_blocking), lambda value: value.to(device, non_blocking=non_blocking)
        )

    def pin_memory(self) -> PairBatch:
        """The same batch in page-locked memory."""
        return self._with_arguments(super().pin_memory(), lambda value: value.pin_memory())

    def _with_arguments(self, moved: Batch, move: Callable[[Tensor], Tensor]) -> PairBatch:
        assert isinstance(moved, PairBatch)
        moved.arguments = {k: move(v) if isinstance(v, Tensor) else v for k, v in self.arguments.items()}
        return moved


@dataclass(frozen=True)
class AnyConfig(ModelConfig):
    """What identifies a network that has no configuration of ours. weights: sha256 of its state dict."""

    model: ClassVar[str] = "any"
    network: str
    weights: str
    image_size: int
    resample: int


class AnyModel(GroundingModel):
    """A network without an adapter: it has no sites until modules are named, and predicts nothing.

    network: any module. preprocess: M images, uint8 ``[image_size, image_size, 3]``, and M captions -> ``Inputs``;
    every image of an example is resized to that square, and a game's caption comes once a candidate. Text states of an
    example are those of the pass over the image that its phrases are about.
    """

    predicts = "nothing"
    answers_all = False
    preprocessor: SquarePreprocessor

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocess,
        image_size: int = 224,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ):
        super().__init__()
        check_counts(image_size=image_size)
        self.network = network
        self.read_pairs = preprocess
        self._candidates: Candidates | None = None
        self._grid: tuple[int, int] | None = None
        self.preprocessor = SquarePreprocessor(
            _NoTokenizer(),  # type: ignore[arg-type]
            candidate_size=image_size,
            multiple=image_size,
            stride=image_size,
            resample=resample,
        )

    @property
    def config(self) -> AnyConfig:  # type: ignore[override]
        """The network's class and what its weights are now."""
        resample = int(self.preprocessor.resample)
        return AnyConfig(
            type(self.network).__name__, weights_hash(self.network), self.preprocessor.candidate_size, resample
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU for a network without any."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def preprocess(self, examples: Sequence[Example]) -> PairBatch:
        """Images as squares, and whatever ``preprocess`` makes of them and of the captions. Raises BadInput."""
        size = self.preprocessor.candidate_size
        canvases = [self.preprocessor.canvas(example) for example in examples]
        images = [square for canvas in canvases for square in canvas.reshape(-1, size, size, 3)]
        inputs = self.read_pairs(images, [example.caption for example in examples for _ in example.images])
        offsets, mask = _checked(inputs, len(images))
        rows = np.cumsum([0, *(len(example.images) for example in examples)])
        items = []
        for first, example, canvas in zip(rows.tolist(), examples, canvases, strict=False):
            own = offsets[first + example.target_index]
            # Where the last token ends is where a token limit cut the caption, if it did.
            text = EncodedText(np.zeros(len(own), dtype=np.int64), own, int(own[:, 1].max(initial=0)))
            items.append(self.preprocessor.align(example, text, canvas))
        whole = self.preprocessor.collate(items)
        batch = PairBatch(
            **{f.name: getattr(whole, f.name) for f in fields(whole)},
            arguments=dict(inputs.arguments),
            image_grid=inputs.grid,
        )
        chosen = [first + example.target_index for first, example in zip(rows.tolist(), examples, strict=False)]
        batch.text_mask = torch.from_numpy(mask[chosen])
        most = max(len(example.images) for example in examples)
        batch.grid = (most * inputs.grid[0], inputs.grid[1]) if inputs.grid else (most, 1)
        return batch

    def forward(self, batch: Batch) -> Output:
        """Run the network for the sake of its modules; the output holds no answers."""
        assert isinstance(batch, PairBatch)
        self._candidates = Candidates.of(batch, self.preprocessor.candidate_size)  # for the hooks of this pass
        self._grid = batch.image_grid
        self.network(**batch.arguments)
        nothing = torch.full((len(batch), 2), torch.nan, device=batch.valid.device)
        return Output(task_point=nothing, phrase_point=nothing[batch.phrase_example])

    @property
    def candidates(self) -> Candidates:
        """The images of the latest pass, one a row of every state."""
        assert self._candidates is not None, "a module is read outside a forward pass"
        return self._candidates

    @property
    def cells(self) -> int | None:
        """Image tokens of an image in the latest pass; None where it is not known where they lie."""
        return self._grid[0] * self._grid[1] if self._grid else None

    def sites(self) -> list[Site]:
        """None are known."""
        return []

    def predict(self, batch: Batch, output: Output) -> list[Prediction]:
        """No answer, and no place for any phrase."""
        owners = batch.phrase_example.tolist()
        return [
            Prediction(
                example.id,
                None,
                math.nan,
                False,
                tuple(PhrasePrediction(name) for name, b in zip(batch.phrase_ids, owners, strict=True) if b == row),
            )
            for row, example in enumerate(batch.examples)
        ]


class _NoTokenizer:
    """Stands where a tokenizer would: captions are read by the caller's own function."""

    pad_id = 0


def weights_hash(network: nn.Module) -> str:
    """sha256 over names, shapes and values of a network's state dict."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _checked(inputs: Inputs, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets int64 ``[M, T, 2]``, nothing for padding, and the mask bool ``[M, T]`` of ``M`` pairs."""
    if not isinstance(inputs, Inputs):
        raise BadInput(f"preprocess gave {type(inputs).__name__}; accepted: grounding.models.any_model.Inputs")
    offsets = np.asarray(inputs.offsets)
    if offsets.ndim != 3 or offsets.shape[::2] != (pairs, 2) or not np.issubdtype(offsets.dtype, np.integer):
        shape = list(offsets.shape)
        raise BadInput(f"preprocess gave {offsets.dtype} offsets {shape}; accepted: integers [{pairs}, T, 2]")
    mask = np.ones(offsets.shape[:2], dtype=bool)
    if inputs.text_mask is not None:
        mask = np.asarray(inputs.text_mask).astype(bool)
        if mask.shape != offsets.shape[:2]:
            wanted = list(offsets.shape[:2])
            raise BadInput(f"preprocess gave a text_mask {list(mask.shape)}; accepted: {wanted}, as offsets")
    if inputs.grid is not None and (len(inputs.grid) != 2 or min(inputs.grid) < 1):
        raise BadInput(f"preprocess gave the grid {inputs.grid}; accepted: (rows, columns), 1 or more each, or None")
    return np.where(mask[..., None], offsets, 0).astype(np.int64), mask
