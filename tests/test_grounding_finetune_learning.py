"""Objectives, data and models together: a planted signal is learnt, and where there is none nothing is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from finetune_runs import settings
from small_models import MDETR, small_vilt

from grounding.examples import Example, Phrase, ReferenceGame, Region
from grounding.finetune.data import make_loader
from grounding.finetune.module import answered_correctly, phrase_hits
from grounding.finetune.objectives import objective_for
from grounding.models import GroundingModel
from grounding.models.mdetr import Mdetr, MdetrConfig
from grounding.models.text import train_tokenizer

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 230), "white": (240, 240, 240)}


def colour_games(target_fits: bool) -> list[Example]:
    """Sixteen games of four plain candidates; unless the target fits its caption, nothing tells which it is."""
    words, games = list(COLOURS), []
    for k in range(16):
        meant, target = words[k % 4], (k % 4 if target_fits else k // 4)
        images = tuple(np.full((16, 16, 3), COLOURS[word], dtype=np.uint8) for word in words)
        phrase = Phrase("p", "one", ((4, 4 + len(meant)),), (Region((0, 0, 1, 1)),), target)
        games.append(Example(f"game-{k}", "train", images, f"the {meant} one", (phrase,), ReferenceGame(target)))
    return games


def vilt() -> GroundingModel:
    """The small ViLT-Aligner over candidates of one patch."""
    return small_vilt(candidate_size=16)


def mdetr() -> GroundingModel:
    """A shallow MDETR over candidates of one cell, with its own initial weights."""
    torch.manual_seed(0)
    shallow = {
        "encoder_layers": 1,
        "decoder_layers": 2,
        "text_layers": 1,
        "queries": 4,
        "task_layer": -1,
        "pre_norm": True,
    }
    tokenizer = train_tokenizer([game.caption for game in colour_games(True)], 20)
    return Mdetr(MdetrConfig(**{**MDETR, **shallow, "candidate_size": 16}), tokenizer)


@pytest.mark.parametrize(
    ("build", "shuffle_candidates", "learning_rate", "steps"),
    [(vilt, True, 5e-3, 70), pytest.param(mdetr, False, 3e-3, 240, marks=pytest.mark.slow)],
)
def test_a_planted_signal_is_learnt_and_its_absence_is_not(
    build: Callable[[], GroundingModel], shuffle_candidates: bool, learning_rate: float, steps: int
):
    """The ViLT-Aligner must look at the candidates, whose order changes; MDETR is only asked to learn a fixed order."""
    figures = {}
    for target_fits in (True, False):
        model = build().train()
        loader = make_loader(
            colour_games(target_fits), model.preprocessor, 16, seed=0, train=shuffle_candidates, workers=0
        )
        objective = objective_for(settings(model.config.model))
        optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
        history = []
        for epoch in range(steps):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            for batch, targets in loader:
                output = model(batch)
                loss = torch.stack(list(objective(output, batch, targets).values())).sum()
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                right, hit = answered_correctly(output, targets), phrase_hits(output, targets)
                history.append([loss.item(), right.float().mean().item(), hit.float().mean().item()])
        figures[target_fits] = history[0][0], *np.mean(history[-8:], axis=0)
    first, last, accuracy, pointing = figures[True]
    assert last < 0.2 * first
    assert accuracy > 0.85
    assert pointing > 0.85
    _, unlearnt, accuracy, pointing = figures[False]
    assert unlearnt > 2 * last
    assert 0.05 < accuracy < 0.5
    assert 0.05 < pointing < 0.5
