"""Fine-tuning that goes on from a checkpoint: to stacks of scenes, where the position table grows, and to the task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_runs import SIZES, interrupt, rows, same, tuned, weights

from grounding.benchmarks.miniature import MiniatureGame
from grounding.checkpoint import load_checkpoint
from grounding.errors import BadInput

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")

STACK: dict[str, Any] = {"config": {"position_grid": [12, 2]}, "steps": 2, "evaluate_every": 1, "warmup": 0}
TABLE = "transformer.pos_embed"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that learned from scenes one by one, of 2 x 2 patches."""
    config = {**SIZES["vilt-aligner"], "position_grid": [2, 2]}
    out = tmp_path_factory.mktemp("init") / "single"
    return str(tuned(out, config=config, benchmark_options={"difficulty": "single"}, task=False, steps=2))


def test_a_run_from_scenes_to_stacks_repeats_the_position_table(single, tmp_path):
    out = tuned(tmp_path / "out", init=single, learning_rate=1e-9, **STACK)
    before, after = load_checkpoint(single), load_checkpoint(out)
    assert after.model.config == replace(before.model.config, position_grid=(12, 2))
    assert json.loads((out / "config.json").read_text())["config"]["position_grid"] == [12, 2]
    assert after.info["training"]["settings"]["config"] == {"position_grid": [12, 2]}
    assert (Path(single) / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()
    old, new = before.model.state_dict(), after.model.state_dict()
    repeats, table = new.pop(TABLE), old.pop(TABLE)
    assert repeats.shape == (1, 1 + 12 * 2, 24)
    torch.testing.assert_close(repeats[:, 0], table[:, 0], atol=1e-6, rtol=0)
    offsets = repeats[0, 1:].unflatten(0, (6, 4)) - table[:, 1:]  # [candidates, cells, D]
    torch.testing.assert_close(offsets, offsets[:, :1].expand_as(offsets), atol=1e-6, rtol=0)
    assert len({tuple(offset.tolist()) for offset in offsets[:, 0]}) == 6
    assert old.keys() == new.keys()
    for name, value in old.items():
        torch.testing.assert_close(new[name], value, atol=1e-6, rtol=0)
    assert [int(row["step"]) for row in rows(out) if row["dev/accuracy"]] == [0, 1]
    examples = MiniatureGame().load("dev", 2)
    with torch.inference_mode():
        batch = after.model.preprocess(examples)
        assert len(after.model.predict(batch, after.model(batch))) == 2


def test_the_table_learns_and_the_run_can_be_resumed(single, tmp_path, monkeypatch):
    whole = tuned(tmp_path / "whole", init=single, learning_rate=1e-2, **STACK)
    still = tuned(tmp_path / "still", init=single, learning_rate=1e-9, **STACK)
    assert (weights(whole)[TABLE] - weights(still)[TABLE]).abs().max() > 1e-3
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(ConnectionError):
            tuned(tmp_path / "broken", init=single, learning_rate=1e-2, **STACK)
    assert same(weights(tuned(tmp_path / "broken", init=single, learning_rate=1e-2, **STACK)), weights(whole))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([0, 2], "vilt-aligner configuration: position_grid (0, 2); accepted: 1 or more"),
        ([12], "config: field 'position_grid' is (12,); accepted: a value like (2, 2)"),
        ("12x2", "config: field 'position_grid' is '12x2'; accepted: a value like (2, 2)"),
    ],
)
def test_a_table_that_cannot_be_is_refused(single, tmp_path, grid, message):
    with pytest.raises(BadInput) as raised:
        tuned(tmp_path / "out", init=single, config={"position_grid": grid})
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("task", "copied"), [(False, True), (True, False)])
def test_the_task_begins_from_the_box_head_where_a_checkpoint_never_learned_it(tmp_path, task, copied):
    first = tuned(tmp_path / "first", "mdetr", task=task, steps=1)
    second = tuned(tmp_path / "second", "mdetr", init=str(first), config={}, steps=1, learning_rate=1e-9, warmup=0)
    before, after = weights(first), weights(second)
    for name in (name for name in after if name.startswith("sdr_head.")):
        source = before[name.replace("sdr_head.", "mdetr.bbox_embed.") if copied else name]
        torch.testing.assert_close(after[name], source, atol=1e-6, rtol=0)
        assert not torch.allclose(before[name], before[name.replace("sdr_head.", "mdetr.bbox_embed.")], atol=1e-4)
