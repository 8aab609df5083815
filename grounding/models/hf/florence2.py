"""Florence-2 (Xiao et al. 2024, arXiv 2311.06242): boxes are written as location tokens after a phrase.

The encoder reads the image and "Locate the phrases in the caption: ...". For each phrase and candidate the decoder is
given the phrase's words and made to go on with locations, greedily, up to BOXES boxes. One more pass reads what was
written: its logits give boxes and scores, so that patching a site changes them. A game is answered by the likelihood of
the whole caption after "What does the image describe?", a description by the box for its task words.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from grounding.errors import BadInput
from grounding.models.base import Batch, Site, TokenLayout
from grounding.models.hf.base import crossed, text_then_image
from grounding.models.hf.boxes import NOTHING, BoxModel, BoxOutput
from grounding.models.hf.candidate_attention import stacked_attention
from grounding.models.hf.captions import asked_texts
from grounding.models.hf.config import HfConfig
from grounding.models.hf.images import Candidates
from grounding.models.hf.prompts import PromptTokenizer
from grounding.models.hf.written import BOXES, WrittenBoxes, box_scores
from grounding.models.layouts import first, image_only
from grounding.models.text import CaptionTokenizer

GROUND, DESCRIBE = "Locate the phrases in the caption: ", "What does the image describe?"
BINS = 1000  # location tokens along each side of an image


class Florence2(BoxModel):
    """``Florence2ForConditionalGeneration``.

    Sites ``vision.k`` (stages, averaged over the squares of the last one), ``projected``, ``encoder.k`` of text and
    patches, and ``decoder.k`` with cross-attention: a query is a box of a phrase, its state the one that writes the
    first coordinate; the first BOXES are of the task words. The decoder's sites belong to the last pass.
    """

    architecture = "Florence2ForConditionalGeneration"

    def __init__(self, config: HfConfig, tokenizer: CaptionTokenizer | None, network: Any = None):
        from transformers import GenerationConfig

        super().__init__(config, tokenizer, network)
        weights = chain(self.network.parameters(), self.network.buffers())
        shared = {id(tensor): tensor for tensor in weights}
        writer = copy.deepcopy(self.network, shared)  # the same weights, out of reach of hooks and of state dicts
        text = self.settings.text_config
        writer.generation_config = GenerationConfig(  # greedily: a checkpoint's own may want beams or forbid repetition
            max_new_tokens=4 * BOXES, pad_token_id=text.pad_token_id,
            decoder_start_token_id=text.decoder_start_token_id,
        )  # fmt: skip
        self._writer = (writer,)
        self._written: WrittenBoxes | None = None

    @staticmethod
    def image_size(settings: Any, size: int | None) -> tuple[int, int]:
        """The image processor's size; each stage's convolution rounds up."""
        side = cells = size or 768
        for stride in settings.vision_config.patch_stride:
            cells = -(-cells // stride)
        return side, cells

    @staticmethod
    def text_limit(settings: Any) -> int:
        """Positions of the encoder, which images take too."""
        return settings.text_config.max_position_embeddings

    @classmethod
    def text_room(cls, settings: Any, size: int | None) -> int:
        """What the image leaves of them, the prompt included."""
        return cls.text_limit(settings) - 1 - cls.image_size(settings, size)[1] ** 2

    def reading(self, tokenizer: CaptionTokenizer) -> CaptionTokenizer:
        """Captions after the words that ask for grounding."""
        return PromptTokenizer(tokenizer, before=GROUND)

    def sites(self) -> list[Site]:
        """The stages of the image encoder, what the language model reads of them, its encoder and its decoder."""
        vision, width, model = self.settings.vision_config, self.settings.text_config.d_model, "network.model"
        encoder, decoder = (self.layers(f"{model}.language_model.{part}.layers") for part in ("encoder", "decoder"))
        see: Any = {"phrase_partner": f"encoder.{len(encoder) - 1}"}
        sites = []
        for k in range(len(vision.embed_dim)):
            path = self.layers(f"{model}.vision_tower.blocks.{k}")[-1]
            sites.append(
                Site(f"vision.{k}", path, "vision", k, ("image",), vision.embed_dim[k], image_only, self._pooled, **see)
            )
        projector = f"{model}.multi_modal_projector"
        sites.append(self.image_site("projected", projector, "projected", 0, vision.projection_dim, skip=1, **see))
        looks: Any = {"to_attention": self._read_attention, "attention_layout": crossed}
        for k, path in enumerate(encoder):
            sites.append(
                Site(
                    f"encoder.{k}", path, "encoder", k, ("text", "image"), width, text_then_image, self._read_states,
                    attention_path=f"{path}.self_attn", **looks,
                )
            )  # fmt: skip
        for k, path in enumerate(decoder):
            sites.append(
                Site(
                    f"decoder.{k}", path, "decoder", k, ("query",), width, self._boxes_only, self._box_states,
                    attention_path=f"{path}.encoder_attn", to_attention=self._box_attention, **see,
                )
            )  # fmt: skip
        return sites

    def forward(self, batch: Batch) -> BoxOutput:
        """Every candidate with its caption, then every phrase in every candidate."""
        candidates, pixels = self.take(batch)
        memory, mask = self.read(batch, candidates, pixels)
        texts, locations = asked_texts(batch), self.locations().to(memory.device)
        prefixes = [self.spoken(text, memory.device) for text in texts]
        written = WrittenBoxes.of(batch, candidates, [len(prefix) for prefix in prefixes])
        self._written = written
        ids = self.write(written, prefixes, memory, mask, locations)
        captions = [self.spoken(batch.examples[b].caption, memory.device) for b in candidates.example.tolist()]
        source = torch.cat([written.image, torch.arange(len(captions), 2 * len(captions), device=memory.device)])
        states = self.network.model.language_model.decoder(
            input_ids=pad_sequence([*ids, *captions], batch_first=True, padding_value=self._pad),
            encoder_hidden_states=memory[source],
            encoder_attention_mask=mask[source],
            use_cache=False,
        ).last_hidden_state
        places = written.start[:, None] + torch.arange(4 * BOXES, device=memory.device)
        logits = self.network.lm_head(states[torch.arange(len(ids), device=memory.device)[:, None], places])
        bins, scores = box_scores(logits.float(), locations)
        match = self.likelihood(states[len(ids) :], captions)
        return self.told(batch, candidates, (bins + 0.5) / BINS, scores, match)

    def read(self, batch: Batch, candidates: Candidates, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's states ``[2 M, L, D]`` and mask: M images to be grounded in, the same M to be described."""
        image = self.network.model.get_image_features(pixels).pooler_output
        describe = torch.tensor(self._tokens(DESCRIBE, special=True), device=pixels.device)
        asking = [ids[mask] for ids, mask in zip(batch.input_ids, batch.text_mask, strict=True)]
        texts = [*(asking[b] for b in candidates.example.tolist()), *[describe] * len(image)]
        ids = pad_sequence(texts, batch_first=True, padding_value=self._pad)
        ids = functional.pad(ids, (0, max(0, batch.input_ids.shape[1] - ids.shape[1])), value=self._pad)
        lengths = torch.tensor([len(text) for text in texts], device=pixels.device)
        mask = torch.arange(ids.shape[1], device=pixels.device) < lengths[:, None]
        mask = torch.cat([mask.new_ones(len(ids), image.shape[1]), mask], dim=1).long()
        words = self.network.get_input_embeddings()(ids)
        encoder = self.network.model.language_model.encoder
        inputs = torch.cat([image.repeat(2, 1, 1), words], dim=1)
        return encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state, mask

    def write(
        self, written: WrittenBoxes, prefixes: list[Tensor], memory: Tensor, mask: Tensor, locations: Tensor
    ) -> list[Tensor]:
        """Each row's prefix and the locations that follow it greedily; rows of one length are written together."""
        from transformers.modeling_outputs import BaseModelOutput

        allowed, ids = locations.tolist(), [prefixes[a] for a in written.asked.tolist()]
        for start in written.start.unique().tolist():
            rows = (written.start == start).nonzero()[:, 0]
            image = written.image[rows]
            done = self._writer[0].generate(
                decoder_input_ids=torch.stack([ids[row] for row in rows.tolist()]),
                encoder_outputs=BaseModelOutput(last_hidden_state=memory[image]),
                attention_mask=mask[image],
                prefix_allowed_tokens_fn=lambda row, sequence: allowed,
            )
            for row, sequence in zip(rows.tolist(), done, strict=True):
                ids[row] = sequence
        return ids

    def likelihood(self, states: Tensor, captions: list[Tensor]) -> Tensor:
        """Log-probability ``[M]`` of the words of captions; states: the decoder's ``[M, L, D]``."""
        logs = []
        for own, caption in zip(states, captions, strict=True):
            logits = self.network.lm_head(own[1 : len(caption) - 1]).float()  # after the two tokens that begin a text
            logs.append(-functional.cross_entropy(logits, caption[2:], reduction="sum"))
        return torch.stack(logs)

    def told(self, batch: Batch, candidates: Candidates, boxes: Tensor, scores: Tensor, match: Tensor) -> BoxOutput:
        """boxes: ``[R, BOXES, 4]`` xyxy, corners in any order. scores: ``[R, BOXES]``. match: ``[M]``."""
        written = self.written
        corners = boxes.unflatten(-1, (2, 2))
        boxes = torch.cat([corners.amin(-2), corners.amax(-2)], dim=-1)
        placed = written.place(box_convert(boxes, "xyxy", "cxcywh"))  # [M, slots, BOXES, 4]
        place = candidates.real.nonzero()[written.image, 1]
        logits = scores.new_full(
            (int(written.asked.max()) + 1, candidates.real.shape[1], written.slots, BOXES), NOTHING
        )
        logits[written.asked, place, written.slot] = scores
        return self.answers(batch, candidates, placed.flatten(1, 2), logits.flatten(2), match)

    def spoken(self, text: str, device: torch.device) -> Tensor:
        """What the decoder begins with: the token that starts it, the one that begins a text, and the text's."""
        settings = self.settings.text_config
        limit = self.text_limit(self.settings) - 4 * BOXES
        tokens = [settings.decoder_start_token_id, settings.bos_token_id, *self._tokens(text)]
        return torch.tensor(tokens[:limit], device=device)

    def locations(self) -> Tensor:
        """Ids of the location tokens. Raises BadInput for a tokenizer without them."""
        backend = self.preprocessor.tokenizer.backend
        ids = [backend.token_to_id(f"<loc_{k}>") for k in range(BINS)]
        if None in ids:
            missing = f"<loc_{ids.index(None)}>"
            raise BadInput(
                f"tokenizer has no {missing}; accepted: one with <loc_0> to <loc_{BINS - 1}>, as Florence-2's"
            )
        return torch.tensor(ids)

    @property
    def written(self) -> WrittenBoxes:
        """What the decoder was asked in the latest pass."""
        assert self._written is not None, "a site is read outside a forward pass"
        return self._written

    @property
    def _pad(self) -> int:
        return self.preprocessor.tokenizer.pad_id

    def _tokens(self, text: str, special: bool = False) -> list[int]:
        return self.preprocessor.tokenizer.backend.encode(text, add_special_tokens=special).ids

    def _pooled(self, output: Tensor) -> Tensor:
        cells = functional.adaptive_avg_pool2d(output, self.preprocessor.cells)
        return self.candidates.stack(cells.flatten(2).transpose(1, 2)).flatten(1, 2)

    def _read_states(self, output: Any) -> Tensor:
        states, candidates = first(output), self.candidates
        words = self._words
        patches = states[: len(candidates.images), 1 : 1 + self.cells]
        return torch.cat([states[candidates.own, words], candidates.stack(patches).flatten(1, 2)], dim=1)

    def _read_attention(self, query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if bias is not None and bias.shape[2] > 1:
            bias = bias[:, :, self._words]
        return self.own_attention(slice(1, 1 + self.cells))(query[:, :, self._words], key, bias)

    @property
    def _words(self) -> slice:
        return slice(1 + self.cells, 1 + self.cells + self.candidates.text_tokens)

    def _boxes_only(self, batch: Batch) -> TokenLayout:
        images = batch.images.shape[-2] // self.preprocessor.candidate_size
        return TokenLayout(query=slice(0, images * WrittenBoxes.slots_of(batch) * BOXES))

    def _box_states(self, output: Any) -> Tensor:
        placed = self.written.place(self.written.begin(first(output)))  # [M, slots, BOXES, D]
        return self.candidates.stack(placed).flatten(1, 3)

    def _box_attention(self, query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        written, images = self.written, len(self.candidates.images)
        begins = written.begin(query.transpose(1, 2))  # [R, BOXES, heads, d]
        queries = written.place(begins).flatten(1, 2).transpose(1, 2)  # [M, heads, slots * BOXES, d]
        rows = slice(len(written.asked) - images, len(written.asked))  # those of the task words: one an image
        bias = None if bias is None else bias.expand(len(query), -1, -1, -1)[rows, :, :1]
        return stacked_attention(self.candidates, queries, key[rows], bias, slice(1, 1 + self.cells))
