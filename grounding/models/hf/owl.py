"""OWLv2 (Minderer, Gritsenko and Houlsby 2023, arXiv 2306.09683): every patch is a detection, compared with texts.

A phrase is read as a text query of its own, as the model was trained, and so is the whole caption. Text does not see
the image: there is no attention from phrases to patches.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from grounding.models.base import Batch, Site
from grounding.models.hf.boxes import BoxModel, BoxOutput, slots_of
from grounding.models.hf.dual import with_phrases_alone


class Owlv2(BoxModel):
    """``Owlv2ForObjectDetection``; sites ``text.k``, ``vision.k``, ``merged`` and ``query``.

    ``merged`` are the patches times the class token, from which boxes and classes come; ``query`` is their projection
    that is compared with texts. The final norm is no site: the model runs it twice.
    """

    architecture: ClassVar[str] = "Owlv2ForObjectDetection"

    def sites(self) -> list[Site]:
        """Both encoders layer by layer, and what the heads read."""
        text, vision = self.settings.text_config.hidden_size, self.settings.vision_config.hidden_size
        texts, images = (self.layers(f"{OWL}.{model}.encoder.layers") for model in ("text_model", "vision_model"))
        see: Any = {"phrase_partner": f"text.{len(texts) - 1}"}
        read: Any = {"region_partner": "merged"}
        sites = [self.text_site("text.embedding", f"{OWL}.text_model.embeddings", "text-embedding", 0, text, **read)]
        for k, path in enumerate(texts):
            attention = f"{path}.self_attn"
            sites.append(self.text_site(f"text.{k}", path, "text", k, text, attention_path=attention, **read))
        embedding = f"{OWL}.vision_model.embeddings"
        sites.append(self.image_site("vision.embedding", embedding, "vision-embedding", 0, vision, skip=1, **see))
        for k, path in enumerate(images):
            attention = f"{path}.self_attn"
            sites.append(
                self.image_site(f"vision.{k}", path, "vision", k, vision, skip=1, attention_path=attention, **see)
            )
        sites.append(self.image_site("merged", "network.layer_norm", "merged", 0, vision, **see))
        return [*sites, self.query_site("query", "network.class_head.dense0", "query", 0, text, self.cells, **see)]

    def forward(self, batch: Batch) -> BoxOutput:
        """Captions and phrases in one pass, all candidates in another, then the heads."""
        candidates, pixels = self.take(batch)
        ids, mask = with_phrases_alone(batch, self.preprocessor.tokenizer.pad_id)
        text = self.network.owlv2.text_projection(
            self.network.owlv2.text_model(input_ids=ids, attention_mask=mask).pooler_output
        )
        text = text / torch.linalg.norm(text, dim=-1, keepdim=True)
        features = self.see(pixels)
        queries, slot = _by_example(text, batch)
        logits, _ = self.network.class_predictor(features, queries[candidates.example])  # [M, cells, K]
        owner = batch.asked_examples
        asked = candidates.stack(logits.transpose(1, 2))[owner, :, slot]  # [P + B, N, cells]
        grid = features.unflatten(1, (self.preprocessor.cells, -1))
        return self.answers(batch, candidates, self.network.box_predictor(features, grid), asked)

    def see(self, pixels: Tensor) -> Tensor:
        """Patches times the class token, normalised: ``[M, cells, D]``."""
        vision = self.network.owlv2.vision_model
        states = vision.post_layernorm(vision(pixel_values=pixels).last_hidden_state)
        return self.network.layer_norm(states[:, 1:] * states[:, :1])


OWL = "network.owlv2"


def _by_example(text: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Embeddings ``[B + P, D]`` of captions and phrases as ``[B, K, D]``, and the slot of phrases, then captions."""
    slot, phrases = slots_of(batch), len(batch.phrase_example)
    queries = text.new_zeros(len(batch), 1 + int(slot.max()), text.shape[1])
    queries[:, 0] = text[: len(batch)]
    queries[batch.phrase_example, slot[:phrases]] = text[len(batch) :]
    return queries, slot
