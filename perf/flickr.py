"""Size and time of extracting all of Flickr30k with full-size models: ``python perf/flickr.py [--help]``.

As ``probe extract --estimate`` does it: a few batches are run, and their bytes and seconds multiplied. The weights are
random and the examples made up to the published counts: 158,915 captions, 3.2 phrases each (Plummer et al. 2015,
arXiv 1505.04870), photographs of noise. What a count is not known for is assumed: one box a phrase, 13 words a caption.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from extract.estimate import Estimate, estimate
from grounding.examples import Example, Phrase, ReferenceGame, Region
from grounding.models import build_model, model_config
from grounding.models.text import train_tokenizer

CAPTIONS = 158_915
CAPTION = "a young man in a red shirt plays the guitar near the lake"  # 13 words
SPANS = ((0, 11), (15, 26), (33, 43), (49, 57))  # every fifth caption has all four phrases, the others three
VIEWS = ("phrase", "region", "attention", "tokens")
SIDE = 384  # pixels of a photograph


class Captions(Sequence[Example]):
    """As many examples as Flickr30k has captions, each made when it is asked for."""

    def __init__(self, candidates: int):
        self.candidates = candidates

    def __len__(self) -> int:
        return CAPTIONS

    def __getitem__(self, index: Any) -> Any:
        random = np.random.default_rng(index)
        images = tuple(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(self.candidates))
        spans = SPANS[: 4 if index % 5 == 0 else 3]
        phrases = []
        for k, span in enumerate(spans):
            x, y = random.uniform(0, 0.6, 2)
            phrases.append(Phrase(str(k), "", (span,), (Region((x, y, x + 0.3, y + 0.3)),), 0))
        return Example(str(index), "train", images, CAPTION, tuple(phrases), ReferenceGame(0))


def main() -> None:
    """Print the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} CPU threads, torch {torch.__version__}, {options.precision}, batches of {options.batch}")
    print(f"| model | images | {' | '.join(VIEWS)} | tables | an example | all captions |")
    print("|---|" + "---|" * (len(VIEWS) + 4))
    for model in ("vilt-aligner", "mdetr"):
        for candidates in options.candidates:
            found = _estimate(model, candidates, options)
            sizes = " | ".join(f"{found.bytes[view] / 1e9:,.1f} GB" for view in (*VIEWS, "meta"))
            seconds = found.seconds / found.examples
            print(f"| {model} | {candidates} | {sizes} | {seconds:.2f} s | {found.seconds / 3600:,.0f} h |", flush=True)


def _estimate(name: str, candidates: int, options: argparse.Namespace) -> Estimate:
    config: Any = model_config(name, "base")
    tokenizer = train_tokenizer([CAPTION], config.max_text)
    config = replace(config, candidate_size=SIDE, **({"pad_id": 0} if name == "mdetr" else {}))
    torch.manual_seed(0)
    model = build_model(config, tokenizer)
    return estimate(
        model, Captions(candidates), views=VIEWS, batch_size=options.batch, precision=options.precision,
        dtype="bfloat16", threshold=0.5,
    )  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 6], help="images an example")
    parser.add_argument("--batch", type=int, default=2, help="examples a batch")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
