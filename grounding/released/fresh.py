"""The architecture of a checkpoint with weights as they were before any training: what a random model is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from grounding.errors import BadInput
from grounding.models import GroundingModel, ModelConfig, build_fresh
from grounding.models.any_model import AnyModel
from grounding.models.hf import HfConfig, build_adapted
from grounding.models.text import CaptionTokenizer
from grounding.released.strict import LoadReport


def fresh_model(
    config: ModelConfig, tokenizer: CaptionTokenizer | None, seed: int
) -> tuple[GroundingModel, LoadReport]:
    """A model of that configuration in eval mode, on the CPU, its weights initialised as for training with ``seed``.

    Raises BadInput for a negative seed, and where transformers cannot make the network without files.
    """
    with _seeded(seed):
        model = build_adapted(config, tokenizer) if isinstance(config, HfConfig) else build_fresh(config, tokenizer)
    return model.eval(), _report(model, seed)


def fresh_any_model(model: AnyModel, seed: int) -> tuple[AnyModel, LoadReport]:
    """The same for a transformers network without an adapter; it reads pairs as ``model`` does."""
    network: Any = model.network
    with _seeded(seed):
        reads = model.preprocessor
        fresh = AnyModel(type(network)(network.config), model.read_pairs, reads.candidate_size, reads.resample)
    return fresh.eval(), _report(fresh, seed)


def _report(model: GroundingModel, seed: int) -> LoadReport:
    return LoadReport((), {}, {}, dict.fromkeys(model.state_dict(), f"fresh weights of seed {seed}"))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside it, torch draws from ``seed``; afterwards as if nothing had been drawn."""
    if seed < 0:
        raise BadInput(f"fresh_weights {seed} is no seed; accepted: 0 or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        except OSError as error:
            raise BadInput(f"a network with fresh weights cannot be made: {str(error).splitlines()[0]}") from None
