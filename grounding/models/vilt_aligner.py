"""ViLT-Aligner: a joint text-image transformer and one heatmap head for the task and for phrases.

ViLT: Kim, Son and Kim (2021), arXiv 2102.03334. Aligner head: Kojima, Averbuch-Elor and Artzi (2023),
arXiv 2309.02691, section 3. State-dict names equal those of the released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, PhrasePrediction, Prediction
from grounding.models.answers import answer, target_point
from grounding.models.attention import key_bias
from grounding.models.base import Batch, GroundingModel, ModelConfig, Output, Site, TokenLayout
from grounding.models.inputs import Preprocessor
from grounding.models.text import CaptionTokenizer
from grounding.models.vilt_aligner_transformer import STEMS, TextEmbeddings, VisionTransformer


@dataclass(frozen=True)
class ViltAlignerConfig(ModelConfig):
    """Sizes of a ViLT-Aligner; the defaults are those of the released checkpoints.

    candidate_size: pixels a side of each candidate of a game. position_grid: rows and columns of the learned
    position table. shorter_side, longer_side: pixels of a single image (``grounding.models.resizing``; ViLT took 384
    and 640), 0 for its own. text_padding: ``max`` pads captions to max_text, as the original does, ``longest`` to the
    longest of the batch (equal results, less work). stem: how a patch becomes a vector, ``linear`` as in ViLT, or
    ``convolutions``, which learn shapes from far fewer examples (Xiao et al. 2021, arXiv 2106.14881).
    """

    model: ClassVar[str] = "vilt-aligner"
    width: int = 768
    depth: int = 12
    heads: int = 12
    feed_forward: int = 3072
    patch: int = 32
    position_grid: tuple[int, int] = (12, 12)
    candidate_size: int = 224
    shorter_side: int = 0
    longer_side: int = 0
    vocabulary: int = 30522
    max_text: int = 80
    text_padding: str = "max"
    stem: str = "linear"
    dropout: float = 0.1
    pooler: bool = True

    def __post_init__(self) -> None:
        self.require_multiple("width", "heads")
        for name, choices in (("text_padding", ("max", "longest")), ("stem", tuple(STEMS))):
            if getattr(self, name) not in choices:
                raise unknown_choice(f"vilt-aligner configuration: {name}", getattr(self, name), choices)
        if min(self.position_grid) < 1:
            raise BadInput(f"vilt-aligner configuration: position_grid {self.position_grid}; accepted: 1 or more")
        if self.stem == "convolutions" and (self.patch < 2 or self.patch & (self.patch - 1)):
            raise BadInput(
                f"vilt-aligner configuration: patch {self.patch} with stem 'convolutions'; accepted: 2, 4, 8, 16, ..."
            )


NOTHING = torch.finfo(torch.float32).min  # the logarithm of 0, but finite, since outputs must be


@dataclass
class ViltAlignerOutput(Output):
    """log_task: ``[B, H, W]`` and log_phrases: ``[P, H, W]``, log-softmax over all pixels of the canvas, as in losses.

    image_log_task, image_log_phrases: the same over each image's own pixels, ``NOTHING`` on padding; they do not
    depend on the batch, and predictions are made of them. phrase_normaliser: ``[P]``, what their softmax took off:
    ``image_log_phrases`` plus it are the head's logits.
    """

    log_task: Tensor
    log_phrases: Tensor
    image_log_task: Tensor
    image_log_phrases: Tensor
    phrase_normaliser: Tensor


class AlignerHead(nn.Module):
    """Text vector and feature map -> heatmap: three 2 x 2 transposed convolutions of stride 2.

    Kernels do not overlap, so each is a linear layer on every cell alone, and one rearrangement at the end
    puts the cells in place; the first is split so that the image's half is computed once for all phrases.
    """

    def __init__(self, width: int):
        super().__init__()
        self._head = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width // 2, 2, 2),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, 2),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 4, 1, 2, 2),
        )
        self.width = width

    def forward(self, features: Tensor, text: Tensor, example: Tensor, grid: tuple[int, int]) -> Tensor:
        """features ``[B, rows * columns, D]``, text ``[M, D]`` of example ``[M]`` -> ``[M, 8 rows, 8 columns]``."""
        for cells in self.maps(features, text, example):
            last = cells
        # rows, columns, then (y, x) three times
        cells = last.reshape(len(text), *grid, 2, 2, 2, 2, 2, 2)
        return cells.permute(0, 1, 3, 5, 7, 2, 4, 6, 8).reshape(len(text), 8 * grid[0], 8 * grid[1])

    def maps(self, features: Tensor, text: Tensor, example: Tensor) -> Iterator[Tensor]:
        """What each convolution gives, after its ReLU, inside each of the image's cells: ``[M, cells, 4, D / 2]``,
        ``[M, cells, 4, 4, D / 4]``, ``[M, cells, 4, 4, 4]``. Each 4 is a (y, x) of two halves."""
        convolutions: Any = self._head[::2]
        first, second, third = convolutions
        kernel = first.weight.flatten(1)  # [2D, D/2 * 4]
        image_part = features @ kernel[: self.width]
        text_part = text @ kernel[self.width :] + first.bias.repeat_interleave(4)
        cells = image_part[example] + text_part[:, None]  # [M, cells, D/2 * 4]
        cells = cells.unflatten(-1, (-1, 4)).transpose(-1, -2).relu()
        yield cells
        cells = cells @ second.weight.flatten(1) + second.bias.repeat_interleave(4)
        cells = cells.unflatten(-1, (-1, 4)).transpose(-1, -2).relu()
        yield cells
        yield cells @ third.weight.flatten(1) + third.bias


class Pooler(nn.Module):
    """BERT's pooler, in the released checkpoints but unused by the heatmaps."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, D]``."""
        return self.dense(states[:, 0]).tanh()


class ViltAligner(GroundingModel):
    """ViLT with the aligner head; sites ``embedding``, ``block.k``, ``norm``."""

    predicts = "heatmap"
    config: ViltAlignerConfig

    def __init__(self, config: ViltAlignerConfig, tokenizer: CaptionTokenizer):
        super().__init__()
        self.config = config
        self.preprocessor = Preprocessor(
            tokenizer,
            config.candidate_size,
            multiple=config.patch,
            stride=config.patch,
            pad_text_to=config.max_text if config.text_padding == "max" else None,
            shorter_side=config.shorter_side,
            longer_side=config.longer_side,
        )
        self.text_embeddings = TextEmbeddings(config)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.transformer = VisionTransformer(config)
        self.joint_input = nn.Identity()
        if config.pooler:
            self.pooler = Pooler(config.width)
        self.sdr_head = AlignerHead(config.width)
        self.apply(_initialise)
        for parameter in (self.transformer.cls_token, self.transformer.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    def with_position_grid(self, rows: int, columns: int) -> ViltAligner:
        """The same model with a position table of that size, on the same device and in the same mode.

        Several whole repeats of the present one (scenes one by one, then six to a stack) are that, and each repeat
        gets a random offset of its own, as large as the table's values (with smaller ones the blocks hardly learn
        which scene a patch is of); any other size is interpolated. Raises BadInput.
        """
        config = replace(self.config, position_grid=(rows, columns))
        model = ViltAligner(config, self.preprocessor.tokenizer)
        state = self.state_dict()
        name = "transformer.pos_embed"
        first, table = state[name][:, :1], state[name][:, 1:].unflatten(1, self.config.position_grid)
        state[name] = torch.cat([first, _resized(table, rows, columns).flatten(1, 2)], dim=1)
        model.load_state_dict(state)
        return model.to(first).train(self.training)

    def preprocess(self, examples: Sequence[Example]) -> Batch:
        """Games become one stacked canvas; single images keep their size unless told, rounded down to whole patches."""
        return self.preprocessor.collate([self.preprocessor.encode(example) for example in examples])

    def forward(self, batch: Batch) -> ViltAlignerOutput:
        """Normalise with mean and standard deviation 0.5 and run the network."""
        images = batch.images.to(self.transformer.cls_token.dtype).div(127.5).sub(1.0)
        images = images.masked_fill(~batch.pixel_mask[:, None], 0.0)
        states = self.encode(images, batch.pixel_mask, batch.input_ids, batch.text_mask, batch.valid)
        tokens = batch.input_ids.shape[1]
        text, patches = states[:, :tokens], states[:, tokens + 1 :]
        asked = torch.cat([batch.phrase_tokens, batch.caption_tokens]).to(text.dtype)  # [P + B, T]
        example = batch.asked_examples
        vectors = mean_of_tokens(text[example], asked)
        cells = self.sdr_head(patches, vectors, example, batch.grid).float()
        logits = _pixels(cells, batch)
        log_maps = _log_softmax(logits)
        image_log_maps = log_maps
        if not batch.pixel_mask.all():
            logits = _image_pixels(cells, batch, example)
            image_log_maps = _log_softmax(logits)
        phrases = len(batch.phrase_tokens)
        log_phrases, log_task = log_maps.split([phrases, len(batch)])
        image_log_phrases, image_log_task = image_log_maps.split([phrases, len(batch)])
        everyone = torch.arange(len(batch), device=states.device)
        return ViltAlignerOutput(
            task_point=_peaks(image_log_task, batch, everyone),
            phrase_point=_peaks(image_log_phrases, batch, batch.phrase_example),
            log_task=log_task,
            log_phrases=log_phrases,
            image_log_task=image_log_task,
            image_log_phrases=image_log_phrases,
            phrase_normaliser=(logits[:, 0, 0] - image_log_maps[:, 0, 0])[:phrases],
        )

    def encode(self, images: Tensor, pixel_mask: Tensor, ids: Tensor, text_mask: Tensor, valid: Tensor) -> Tensor:
        """Final-norm states ``[B, T + 1 + patches, D]`` of normalised images ``[B, 3, H, W]`` and token ids."""
        patch = self.config.patch
        grid = (images.shape[-2] // patch, images.shape[-1] // patch)
        text = self.text_embeddings(ids) + self.token_type_embeddings.weight[0]
        image = self.transformer.embed(images, pixel_mask, grid, valid // patch)
        image = image + self.token_type_embeddings.weight[1]
        states = self.joint_input(torch.cat([text, image], dim=1))
        patch_mask = pixel_mask[:, ::patch, ::patch].flatten(1)
        bias = key_bias(torch.cat([text_mask, patch_mask.new_ones(len(ids), 1), patch_mask], dim=1), states.dtype)
        for block in self.transformer.blocks:
            states = block(states, bias)
        return self.transformer.norm(states)

    def sites(self) -> list[Site]:
        """The input of the blocks, each block, and the final norm."""
        named: list[tuple[str, str, str, int, str | None]] = [("embedding", "joint_input", "embedding", 0, None)]
        named += [
            (f"block.{k}", f"transformer.blocks.{k}", "block", k, f"transformer.blocks.{k}.attn")
            for k in range(self.config.depth)
        ]
        named += [("norm", "transformer.norm", "norm", self.config.depth, None)]
        return [
            Site(
                name,
                path,
                stage,
                layer,
                ("text", "image"),
                self.config.width,
                _layout,
                attention_path=attention,
            )
            for name, path, stage, layer, attention in named
        ]

    def candidate_scores(self, batch: Batch, output: ViltAlignerOutput) -> Tensor:
        """Log-probability of each candidate: of all its pixels together."""
        rows = output.image_log_task.logsumexp(2)  # [B, H]
        counts = [len(example.images) for example in batch.examples]
        scores = rows.new_full((len(batch), max(counts)), -math.inf)
        for b, (count, height) in enumerate(zip(counts, batch.valid[:, 0].tolist(), strict=True)):
            scores[b, :count] = rows[b, :height].unflatten(0, (count, -1)).logsumexp(1)
        return scores

    def predict(self, batch: Batch, output: ViltAlignerOutput) -> list[Prediction]:
        """Candidate or point under the peak of the task map; a heatmap for every phrase."""
        maps = output.image_log_phrases.exp().cpu().numpy()
        log_task = output.image_log_task.cpu()
        valid = batch.valid.tolist()
        owners = batch.phrase_example.tolist()
        predictions = []
        for row, example in enumerate(batch.examples):
            height, width = valid[row]
            phrases = tuple(
                PhrasePrediction(
                    batch.phrase_ids[p],
                    heatmap=maps[p, :height, :width].reshape(len(example.images), -1, width),
                )
                for p in range(len(owners))
                if owners[p] == row
            )
            predictions.append(_answer(example, log_task[row], output.task_point[row], (height, width), phrases))
        return predictions


def mean_of_tokens(text: Tensor, tokens: Tensor) -> Tensor:
    """Mean state of the tokens asked for: ``[M, T, D]`` and 0 or 1 ``[M, T]`` -> ``[M, D]``; zeros for none."""
    weights = tokens / tokens.sum(1, keepdim=True).clamp(min=1.0)
    return torch.einsum("mt,mtd->md", weights, text)


def _resized(table: Tensor, rows: int, columns: int) -> Tensor:
    """Position table ``[1, rows, columns, D]`` as it is, repeated with an offset each time, or interpolated."""
    if table.shape[1:3] == (rows, columns):
        return table
    down, across = rows // table.shape[1], columns // table.shape[2]
    if (down * table.shape[1], across * table.shape[2]) != (rows, columns):
        resized = functional.interpolate(
            table.permute(0, 3, 1, 2), (rows, columns), mode="bilinear", align_corners=True
        )
        return resized.permute(0, 2, 3, 1)
    offsets = torch.randn(1, down, across, table.shape[3], device=table.device) * table.std()
    offsets = offsets.repeat_interleave(table.shape[1], 1).repeat_interleave(table.shape[2], 2)
    return table.repeat(1, down, across, 1) + offsets.to(table)


def _layout(batch: Batch) -> TokenLayout:
    tokens = batch.input_ids.shape[1]
    rows, columns = batch.grid
    return TokenLayout(text=slice(0, tokens), image=slice(tokens + 1, tokens + 1 + rows * columns))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _pixels(cells: Tensor, batch: Batch) -> Tensor:
    """The head's maps ``[M, rows, columns]``, interpolated to the pixels of the canvas: ``[M, H, W]``."""
    canvas = batch.images.shape[-2:]
    if cells.shape[1:] == canvas:
        return cells
    return functional.interpolate(cells[:, None], canvas, mode="bilinear", align_corners=False)[:, 0]


def _image_pixels(cells: Tensor, batch: Batch, example: Tensor) -> Tensor:
    """The same of examples ``[M]``, ``NOTHING`` on padding, none of which is mixed in.

    An image's last cells go on beyond its border, as they do where it fills the canvas.
    """
    (height, width), (rows, columns) = batch.images.shape[-2:], cells.shape[1:]
    valid = batch.valid[example]
    row = torch.arange(rows, device=valid.device).minimum(valid[:, :1] * rows // height - 1)  # [M, rows]
    column = torch.arange(columns, device=valid.device).minimum(valid[:, 1:] * columns // width - 1)
    each = torch.arange(len(cells), device=valid.device)[:, None, None]
    going_on = cells[each, row[:, :, None], column[:, None]]
    return _pixels(going_on, batch).masked_fill(~batch.pixel_mask[example], NOTHING)


def _log_softmax(maps: Tensor) -> Tensor:
    return maps.flatten(1).log_softmax(1).view_as(maps)


def _peaks(log_maps: Tensor, batch: Batch, example: Tensor) -> Tensor:
    """Centre (x, y) of the highest real pixel of each map, relative to its example's real canvas: ``[M, 2]``."""
    if not len(log_maps):
        return log_maps.new_zeros(0, 2)
    width = log_maps.shape[-1]
    peak = log_maps.masked_fill(~batch.pixel_mask[example], -math.inf).flatten(1).argmax(1)
    column, row = (peak % width).float() + 0.5, (peak // width).float() + 0.5
    return torch.stack([column / batch.valid[example, 1], row / batch.valid[example, 0]], dim=1)


def _answer(
    example: Example,
    log_map: Tensor,
    point: Tensor,
    size: tuple[int, int],
    phrases: tuple[PhrasePrediction, ...],
) -> Prediction:
    """Score: log-probability at the target pixel."""
    x, y = target_point(example)
    row, column = min(int(y * size[0]), size[0] - 1), min(int(x * size[1]), size[1] - 1)
    return answer(example, (float(point[0]), float(point[1])), float(log_map[row, column]), phrases)
