"""MDETR with the study's extra query: boxes for phrases, and a point that answers the task.

Kamath et al. (2021), arXiv 2104.12763; the extra query and its head: Kojima, Averbuch-Elor and Artzi (2023),
arXiv 2309.02691, section 3. State-dict names equal those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_convert
from transformers import RobertaConfig

from grounding.errors import BadInput
from grounding.examples import Example, PhrasePrediction, Prediction
from grounding.models.answers import answer, canvas_boxes_to_candidates, point_score
from grounding.models.backbone import Backbone
from grounding.models.base import Batch, GroundingModel, ModelConfig, Output, Site, TokenLayout
from grounding.models.inputs import Preprocessor
from grounding.models.layouts import first, image_only, text_only
from grounding.models.mdetr_transformer import MdetrTransformer, sine_positions
from grounding.models.resizing import detr_size
from grounding.models.text import CaptionTokenizer

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class MdetrConfig(ModelConfig):
    """Sizes of an MDETR; the defaults are those of the released ResNet-101 checkpoints.

    max_text: tokens of a caption that the text encoder reads, at most text_positions - pad_id - 1.
    token_slots: the first of them, which the soft-token head tells apart: a phrase with a token behind them has no
    score, and is left out. task_layer: decoder layer whose state of the
    extra query answers the task; 0, the first, is what the released checkpoints were trained with. task_query: False
    for MDETR as it was before the study, without the extra query: the centre of the best box for the whole caption then
    answers the task (with it, the 100 object queries would attend to one more). pre_norm: norms before each branch of
    the transformer. position_temperature: of the sine positions; lower tells near cells apart
    better (DAB-DETR, arXiv 2201.12329, takes 20). shorter_side, longer_side: pixels of a single image
    (``grounding.models.resizing``; MDETR took 800 and 1333), 0 for its own.
    """

    model: ClassVar[str] = "mdetr"
    backbone: str = "resnet101"
    width: int = 256
    heads: int = 8
    feed_forward: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    queries: int = 100
    token_slots: int = 255
    contrastive_width: int = 64
    dropout: float = 0.1
    candidate_size: int = 224
    multiple: int = 32
    shorter_side: int = 0
    longer_side: int = 0
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_feed_forward: int = 3072
    vocabulary: int = 50265
    max_text: int = 512
    text_positions: int = 514
    pad_id: int = 1
    text_pooler: bool = True
    task_layer: int = 0
    task_query: bool = True
    pre_norm: bool = False
    position_temperature: float = 10000.0

    def __post_init__(self) -> None:
        self.require_multiple("width", "heads")
        self.require_multiple("text_width", "text_heads")
        least = self.max_text + self.pad_id + 1  # RoBERTa counts positions from pad_id + 1
        if self.text_positions < least:
            raise BadInput(
                f"mdetr configuration: text_positions {self.text_positions} is too small for max_text "
                f"{self.max_text}; accepted: {least} or more"
            )
        if self.token_slots < 1:
            raise BadInput(f"mdetr configuration: token_slots {self.token_slots} is too small; accepted: 1 or more")
        if not -self.decoder_layers <= self.task_layer < self.decoder_layers:
            raise BadInput(
                f"mdetr configuration: task_layer {self.task_layer} is none of {self.decoder_layers} decoder layers"
            )
        if not self.position_temperature > 0:
            raise BadInput(f"mdetr configuration: position_temperature {self.position_temperature} is not above 0")


@dataclass
class MdetrOutput(Output):
    """Heads of every decoder layer (L), the last one last.

    token_logits: ``[L, B, Q, token_slots + 1]``. boxes_cxcywh: ``[L, B, Q, 4]`` relative to the real canvas.
    projected_queries: ``[L, B, Q, c]`` and projected_tokens: ``[B, T, c]``, of unit length.
    boxes_xyxy: ``[B, Q, 4]`` of the last layer. phrase_scores: ``[P, Q]``; phrase_query: ``[P]``, the best of them.
    task_points: ``[L, B, 2]``.
    """

    token_logits: Tensor
    boxes_cxcywh: Tensor
    projected_queries: Tensor
    projected_tokens: Tensor
    boxes_xyxy: Tensor
    phrase_scores: Tensor
    phrase_query: Tensor
    task_points: Tensor


class PointMlp(nn.Module):
    """Three layers with ReLU between."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, outputs)])

    def forward(self, states: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., outputs]``."""
        first, second, last = self.layers
        return last(second(first(states).relu()).relu())


class MdetrCore(nn.Module):
    """The network of the released checkpoints."""

    def __init__(self, config: MdetrConfig):
        super().__init__()
        text = RobertaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            intermediate_size=config.text_feed_forward,
            max_position_embeddings=config.text_positions,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            pad_token_id=config.pad_id,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
        )
        self.transformer = MdetrTransformer(
            config.width,
            config.heads,
            config.feed_forward,
            config.encoder_layers,
            config.decoder_layers,
            config.dropout,
            text,
            config.text_pooler,
            config.pre_norm,
        )
        self.class_embed = nn.Linear(config.width, config.token_slots + 1)
        self.bbox_embed = PointMlp(config.width, 4)
        self.query_embed = nn.Embedding(config.queries, config.width)
        self.position_temperature = config.position_temperature
        backbone = Backbone(config.backbone)
        self.stride = backbone.stride
        self.backbone = nn.ModuleList([backbone])
        self.input_proj = nn.Conv2d(backbone.channels, config.width, 1)
        self.contrastive_align_projection_image = nn.Linear(config.width, config.contrastive_width)
        self.contrastive_align_projection_text = nn.Linear(config.width, config.contrastive_width)

    def encode(
        self, images: Tensor, pixel_mask: Tensor, ids: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised images ``[B, 3, H, W]`` and token ids -> memory, positions, key bias (image, then text)."""
        features = self.backbone[0](images)
        mask = functional.interpolate(pixel_mask[:, None].float(), features.shape[-2:])[:, 0].bool()
        cells = self.input_proj(features).flatten(2).transpose(1, 2)
        positions = sine_positions(mask, cells.shape[-1], self.position_temperature)
        return self.transformer.encode(cells, positions, mask.flatten(1), ids, text_mask)


class Mdetr(GroundingModel):
    """MDETR and the task query; sites ``backbone``, ``text.k``, ``embedding``, ``encoder.k``, ``decoder.k``.

    With ``pre_norm`` there is a site ``norm`` too, the encoder's output as the decoder reads it.
    """

    predicts = "boxes"
    image_padding = "convolutions see the zeros around smaller images, as the original's do; group norm too"
    config: MdetrConfig
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: MdetrConfig, tokenizer: CaptionTokenizer):
        super().__init__()
        self.config = config
        self.mdetr = MdetrCore(config)
        if config.task_query:
            self.sdr_embed = nn.Embedding(1, config.width)
            self.sdr_head = PointMlp(config.width, 4)
        self.preprocessor = Preprocessor(
            tokenizer,
            config.candidate_size,
            config.multiple,
            stride=self.mdetr.stride,
            shorter_side=config.shorter_side,
            longer_side=config.longer_side,
            size=detr_size,
            resample=Image.Resampling.BILINEAR,
            phrase_slots=config.token_slots,
            answer_slots=None if config.task_query else config.token_slots,
        )
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN)[:, None, None] * 255, persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD)[:, None, None] * 255, persistent=False)

    def begin_task(self) -> None:
        """The task's head starts as a copy of the box head, as in the study: its point is a box's centre."""
        self.sdr_head.load_state_dict(self.mdetr.bbox_embed.state_dict())

    def preprocess(self, examples: Sequence[Example]) -> Batch:
        """Games become one stacked canvas; single images keep their size unless told, rounded down to a multiple."""
        return self.preprocessor.collate([self.preprocessor.encode(example) for example in examples])

    def forward(self, batch: Batch) -> MdetrOutput:
        """Normalise with ImageNet's mean and standard deviation and run the network."""
        core = self.mdetr
        dtype = core.query_embed.weight.dtype
        images = ((batch.images - self.image_mean) / self.image_std).to(dtype)
        images = images.masked_fill(~batch.pixel_mask[:, None], 0.0)
        memory, positions, bias = core.encode(images, batch.pixel_mask, batch.input_ids, batch.text_mask)
        learned = [core.query_embed.weight] + ([self.sdr_embed.weight] if self.config.task_query else [])
        hidden = core.transformer.decode(torch.cat(learned), memory, positions, bias)  # [L, B, Q + 1, D], or Q
        objects = hidden[:, :, : self.config.queries]
        token_logits = core.class_embed(objects).float()
        boxes_cxcywh = core.bbox_embed(objects).float().sigmoid()
        text = memory[:, -batch.input_ids.shape[1] :]
        phrase_scores = _phrase_scores(token_logits[-1], batch.phrase_tokens, batch.phrase_example)
        phrase_query = phrase_scores.argmax(1)
        if self.config.task_query:
            task_points = self.sdr_head(hidden[:, :, -1]).float().sigmoid()[..., :2]
            task_point = task_points[self.config.task_layer]
        else:
            everyone = torch.arange(len(batch), device=hidden.device)
            best = _phrase_scores(token_logits[-1], batch.caption_tokens, everyone).argmax(1)
            task_points = boxes_cxcywh[:, everyone, best, :2]
            task_point = task_points[-1]
        return MdetrOutput(
            task_point=task_point,
            phrase_point=boxes_cxcywh[-1, batch.phrase_example, phrase_query, :2],
            token_logits=token_logits,
            boxes_cxcywh=boxes_cxcywh,
            projected_queries=functional.normalize(core.contrastive_align_projection_image(objects), dim=-1),
            projected_tokens=functional.normalize(core.contrastive_align_projection_text(text), dim=-1),
            boxes_xyxy=box_convert(boxes_cxcywh[-1], "cxcywh", "xyxy"),
            phrase_scores=phrase_scores,
            phrase_query=phrase_query,
            task_points=task_points,
        )

    def sites(self) -> list[Site]:
        """Image features, text layers, the joint encoder and the decoder's queries."""
        config, root = self.config, "mdetr.transformer"

        def joint(name: str, path: str, stage: str, layer: int, attention: str | None = None) -> Site:
            streams = ("text", "image")
            return Site(name, path, stage, layer, streams, config.width, _joint, attention_path=attention)

        def text(k: int) -> Site:
            path = f"{root}.text_encoder.encoder.layer.{k}"
            width = config.text_width
            return Site(f"text.{k}", path, "text", k, ("text",), width, text_only, first, region_partner="backbone")

        def queries(k: int, memory: str) -> Site:
            path = f"{root}.decoder.layers.{k}"
            return Site(
                f"decoder.{k}", path, "decoder", k, ("query",), config.width, self._queries, phrase_partner=memory,
                attention_path=f"{path}.cross_attn_image", self_attention_path=f"{path}.self_attn",
            )  # fmt: skip

        sites = [
            Site(
                "backbone", "mdetr.input_proj", "backbone", 0, ("image",), config.width, image_only,
                _feature_map_tokens, phrase_partner="embedding",
            )
        ]  # fmt: skip
        sites += [text(k) for k in range(config.text_layers)]
        sites.append(joint("embedding", f"{root}.joint_input", "embedding", 0))
        layers = [f"{root}.encoder.layers.{k}" for k in range(config.encoder_layers)]
        sites += [joint(f"encoder.{k}", path, "encoder", k, f"{path}.self_attn") for k, path in enumerate(layers)]
        if config.pre_norm:
            sites.append(joint("norm", f"{root}.encoder.norm", "norm", config.encoder_layers))
        memory = sites[-1].name
        return sites + [queries(k, memory) for k in range(config.decoder_layers)]

    def candidate_scores(self, batch: Batch, output: MdetrOutput) -> Tensor:
        """How near the point's height is to each candidate's middle: minus the distance in candidates."""
        counts = torch.tensor([len(example.images) for example in batch.examples], device=batch.valid.device)
        middles = torch.arange(int(counts.max()), device=counts.device) + 0.5
        return -(output.task_point[:, 1:] * counts[:, None] - middles).abs()

    def predict(self, batch: Batch, output: MdetrOutput) -> list[Prediction]:
        """The candidate that the point falls in, or the point; every query's box ranked for each phrase."""
        ranked = output.phrase_scores.sort(dim=1, descending=True, stable=True)
        scores, order = ranked.values.cpu().numpy(), ranked.indices.cpu()
        boxes = output.boxes_xyxy.cpu()
        points = output.task_point.tolist()
        owners = batch.phrase_example.tolist()
        predictions = []
        for row, example in enumerate(batch.examples):
            x, y = points[row]
            of_task = answer(example, (x, y), point_score(example, (x, y)), ())
            phrases = []
            for p in (p for p, owner in enumerate(owners) if owner == row):
                own, index = canvas_boxes_to_candidates(boxes[row][order[p]].numpy(), len(example.images))
                phrases.append(PhrasePrediction(batch.phrase_ids[p], boxes=own, image_index=index, scores=scores[p]))
            predictions.append(replace(of_task, phrases=tuple(phrases)))
        return predictions

    def boxes_of(self, states: Tensor) -> Tensor:
        """Boxes that states ``[..., D]`` of a site ``decoder.k`` stand for, xyxy relative to the real canvas."""
        core = self.mdetr
        boxes_cxcywh = core.bbox_embed(core.transformer.decoder.norm(states)).float().sigmoid()
        return box_convert(boxes_cxcywh, "cxcywh", "xyxy")

    def _queries(self, batch: Batch) -> TokenLayout:
        return TokenLayout(query=slice(0, self.config.queries))


def _phrase_scores(token_logits: Tensor, tokens: Tensor, example: Tensor) -> Tensor:
    """Probability of a phrase's most likely token slot (MDETR, section 3.1): ``[P, Q]``.

    token_logits: ``[B, Q, slots + 1]``. tokens: bool ``[P, T]``; those behind the slots do not count. example: ``[P]``.
    """
    slots = min(tokens.shape[1], token_logits.shape[-1] - 1)
    probability = token_logits.softmax(-1)[..., :slots][example]  # [P, Q, slots]
    return probability.masked_fill(~tokens[:, None, :slots], 0.0).amax(-1)


def _feature_map_tokens(output: Tensor) -> Tensor:
    return output.flatten(2).transpose(1, 2)


def _joint(batch: Batch) -> TokenLayout:
    cells = batch.grid[0] * batch.grid[1]
    return TokenLayout(image=slice(0, cells), text=slice(cells, cells + batch.input_ids.shape[1]))
