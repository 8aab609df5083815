"""Time of a full-size forward pass over the same arithmetic written plainly: ``python perf/forward.py [--help]``.

The plain pass uses the model's own weights, and none of what makes sites: no taps, no attention modules, no output
object, no peaks and scores. The two take turns on one batch of games with phrases, their results are compared first,
and the median over rounds of each round's ratio is reported, by the clock and by processor time, which other programs
disturb less.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from grounding.examples import Example, Phrase, ReferenceGame
from grounding.models import build_model, model_config
from grounding.models.base import Batch, GroundingModel
from grounding.models.mdetr_transformer import sine_positions
from grounding.models.text import train_tokenizer

CAPTION = "This looks like a bird with a long neck, two wings, and a tail."
SPANS = ((28, 39), (41, 50), (56, 62))


def main() -> None:
    """Print the table of ratios."""
    options = _options()
    torch.set_num_threads(options.threads)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU threads"
    print(f"batch of {options.batch_size} games, fp32, {machine}, torch {torch.__version__}")
    print("| model | plain ms | ours ms | ratio, clock (spread) | ratio, processor time | largest difference |")
    print("|---|---|---|---|---|---|")
    for name, plain in PLAIN.items():
        model, batch = _model(name, options)
        print(f"| {name} base | {_compare(model, plain, batch, options)} |", flush=True)


def _compare(
    model: GroundingModel, plain: Callable[[Any, Batch], list[Tensor]], batch: Batch, options: argparse.Namespace
) -> str:
    runs: dict[str, Callable[[], Any]] = {"plain": lambda: plain(model, batch), "ours": lambda: model(batch)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    with torch.inference_mode():
        expected, found = runs["plain"](), RESULTS[model.config.model](runs["ours"]())
        difference = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
        for turn in range(options.rounds + 1):  # the first round warms up
            for name in sorted(runs, reverse=bool(turn % 2)):  # each goes first as often as the other
                clock, processor = time.perf_counter(), time.process_time()
                for _ in range(options.repeats):
                    runs[name]()
                if options.device == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    times[name].append((time.perf_counter() - clock, time.process_time() - processor))
    each = [median(clock for clock, _ in times[name]) / options.repeats * 1000 for name in runs]
    ratios = [
        sorted(a[kind] / b[kind] for a, b in zip(times["ours"], times["plain"], strict=True)) for kind in range(2)
    ]
    spread = f"{median(ratios[0]):.3f} ({ratios[0][0]:.3f} to {ratios[0][-1]:.3f})"
    return f"{each[0]:.1f} | {each[1]:.1f} | {spread} | {median(ratios[1]):.3f} | {difference:.1e}"


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """``[B, N, D]`` -> ``[B, N, D]`` before the output projection."""
    batch, _, width = query.shape
    query, key, value = (x.view(batch, -1, heads, width // heads).transpose(1, 2) for x in (query, key, value))
    attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.transpose(1, 2).reshape(batch, -1, width)


def plain_vilt(model: Any, batch: Batch) -> list[Tensor]:
    """Log-probabilities of the task's and the phrases' maps."""
    config, patch = model.config, model.config.patch
    images = (batch.images / 127.5 - 1).masked_fill(~batch.pixel_mask[:, None], 0.0)
    text = model.text_embeddings(batch.input_ids) + model.token_type_embeddings.weight[0]
    image = model.transformer.embed(images, batch.pixel_mask, batch.grid, batch.valid // patch)
    states = torch.cat([text, image + model.token_type_embeddings.weight[1]], dim=1)
    patch_mask = batch.pixel_mask[:, ::patch, ::patch].flatten(1)
    keys = torch.cat([batch.text_mask, patch_mask.new_ones(len(patch_mask), 1), patch_mask], dim=1)
    mask = torch.zeros(keys.shape, device=keys.device).masked_fill(~keys, float("-inf"))[:, None, None]
    for block in model.transformer.blocks:
        query, key, value = block.attn.qkv(block.norm1(states)).chunk(3, dim=-1)
        states = states + block.attn.proj(_attend(query, key, value, config.heads, mask))
        states = states + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(states))))
    states, tokens = model.transformer.norm(states), batch.input_ids.shape[1]
    asked = torch.cat([batch.phrase_tokens, batch.caption_tokens]).float()
    example = torch.cat([batch.phrase_example, torch.arange(len(batch), device=asked.device)])
    vectors = torch.einsum("mt,mtd->md", asked / asked.sum(1, keepdim=True), states[:, :tokens][example])
    logits = model.sdr_head(states[:, tokens + 1 :], vectors, example, batch.grid)
    canvas = batch.images.shape[-2:]
    logits = functional.interpolate(logits[:, None], canvas, mode="bilinear", align_corners=False)[:, 0]
    maps = logits.flatten(1).log_softmax(1).unflatten(1, canvas)
    return [maps[len(batch.phrase_tokens) :], maps[: len(batch.phrase_tokens)]]


def plain_mdetr(model: Any, batch: Batch) -> list[Tensor]:
    """Logits, boxes and projections of every decoder layer, and the task's points."""
    core, heads = model.mdetr, model.config.heads
    transformer = core.transformer
    images = ((batch.images - model.image_mean) / model.image_std).masked_fill(~batch.pixel_mask[:, None], 0.0)
    features = core.input_proj(core.backbone[0](images))
    mask = functional.interpolate(batch.pixel_mask[:, None].float(), features.shape[-2:])[:, 0].bool()
    text = transformer.text_encoder(input_ids=batch.input_ids, attention_mask=batch.text_mask.long()).last_hidden_state
    text = transformer.resizer.layer_norm(transformer.resizer.fc(text))
    states = torch.cat([features.flatten(2).transpose(1, 2), text], dim=1)
    places = torch.cat([sine_positions(mask, states.shape[-1]), torch.zeros_like(text)], dim=1)
    keys = torch.cat([mask.flatten(1), batch.text_mask], dim=1)
    bias = torch.zeros(keys.shape, device=keys.device).masked_fill(~keys, float("-inf"))[:, None, None]

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        parts = zip((query, key, value), module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True)
        return module.out_proj(_attend(*(functional.linear(*part) for part in parts), heads, bias))

    def fed(layer: Any, norm: nn.Module, states: Tensor) -> Tensor:
        return norm(states + layer.linear2(layer.linear1(states).relu()))

    for layer in transformer.encoder.layers:
        placed = states + places
        states = fed(layer, layer.norm2, layer.norm1(states + attend(layer.self_attn, placed, placed, states, bias)))
    queries = torch.cat([core.query_embed.weight, model.sdr_embed.weight]).expand(len(batch), -1, -1)
    placed, targets, hidden = states + places, torch.zeros_like(queries), []
    for layer in transformer.decoder.layers:
        own = targets + queries
        targets = layer.norm1(targets + attend(layer.self_attn, own, own, targets, None))
        read = attend(layer.cross_attn_image, targets + queries, placed, states, bias)
        targets = fed(layer, layer.norm4, layer.norm3(targets + read))
        hidden.append(transformer.decoder.norm(targets))
    every = torch.stack(hidden)
    objects, text = every[:, :, :-1], states[:, -batch.input_ids.shape[1] :]
    return [
        core.class_embed(objects),
        core.bbox_embed(objects).sigmoid(),
        functional.normalize(core.contrastive_align_projection_image(objects), dim=-1),
        functional.normalize(core.contrastive_align_projection_text(text), dim=-1),
        model.sdr_head(every[:, :, -1]).sigmoid()[..., :2],
    ]


PLAIN: dict[str, Callable[[Any, Batch], list[Tensor]]] = {"vilt-aligner": plain_vilt, "mdetr": plain_mdetr}
RESULTS: dict[str, Callable[[Any], list[Tensor]]] = {  # the same of our output
    "vilt-aligner": lambda out: [out.log_task, out.log_phrases],
    "mdetr": lambda out: [
        out.token_logits, out.boxes_cxcywh, out.projected_queries, out.projected_tokens, out.task_points
    ],
}  # fmt: skip


def _model(name: str, options: argparse.Namespace) -> tuple[GroundingModel, Batch]:
    torch.manual_seed(0)
    config: Any = model_config(name, "base")
    model = build_model(config, train_tokenizer([CAPTION], config.max_text)).to(options.device).eval()
    random = np.random.default_rng(0)
    side, count = config.candidate_size, options.candidates
    examples = []
    for k in range(options.batch_size):
        images = tuple(random.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count))
        phrases = tuple(Phrase(f"{k}.{p}", "part", (span,), ()) for p, span in enumerate(SPANS))
        examples.append(Example(str(k), "dev", images, CAPTION, phrases, ReferenceGame(0)))
    return model, model.prepare(examples).to(options.device)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=10, help="images of 224 x 224 in a game")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=1, help="passes a measurement")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
