"""Training data: what is drawn depends on seed and epoch alone, and targets move with the candidates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import game, single_image, small_vilt

from grounding.errors import BadInput
from grounding.examples import Example
from grounding.finetune.data import EncodedGames, EpochSampler, check_all, make_loader


def order(sampler: EpochSampler, epoch: int) -> list[int]:
    """Positions of an epoch."""
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert {key[0] for key in keys} <= {epoch}
    return [position for _, position in keys]


def test_the_order_depends_on_seed_and_epoch_alone():
    first, again, other = EpochSampler(20, 3, True), EpochSampler(20, 3, True), EpochSampler(20, 4, True)
    torch.manual_seed(99)
    later = order(again, 5)  # asked for out of order, with another global seed
    epochs = [order(first, epoch) for epoch in range(6)]
    assert epochs[5] == later
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert order(other, 0) != epochs[0]
    assert order(first, 0) == order(first, 0) == epochs[0]
    assert order(EpochSampler(20, 3, False), 2) == list(range(20))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_epoch_without_overlap(monkeypatch, world):
    rank = iter(range(world))
    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: next(rank))
    shares = []
    for _ in range(world):
        sampler = EpochSampler(20, 3, True)
        shares.append(order(sampler, 1))
        assert len(shares[-1]) == len(sampler) == 20 // world
    together = [position for share in shares for position in share]
    assert len(set(together)) == len(together) == 20 // world * world


@pytest.mark.parametrize(("steps", "skipped"), [(0, 0), (2, 8), (4, 16), (5, 0), (7, 8)])
def test_a_resumed_epoch_goes_on_where_it_stopped(steps, skipped):
    whole = EpochSampler(22, 3, True, step_size=4)  # five batches an epoch
    resumed = EpochSampler(22, 3, True, step_size=4, steps_done=steps)
    epoch = steps // 5
    assert order(resumed, epoch) == order(whole, epoch)[skipped:]
    assert order(resumed, epoch + 1) == order(whole, epoch + 1)


@pytest.fixture(scope="module")
def items():
    return [game(f"game-{k}", images=4, target=k % 4, seed=k) for k in range(10)]


@pytest.fixture(scope="module")
def processor():
    return small_vilt().preprocessor


@pytest.mark.parametrize("workers", [0, 1])
def test_checking_keeps_the_order_and_names_phrases_that_are_cut_off(items, workers):
    short = replace(small_vilt().preprocessor, phrase_slots=6)
    kept = [short.encode(item) for item in items]
    usable, dropped = check_all(items, short, workers)
    assert [example.id for example in usable] == [f"game-{k}" for k in range(10)]
    assert dropped == [(item.example.id, phrase) for item in kept for phrase in item.dropped_phrases]
    assert len(dropped) > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_checking_names_an_image_that_is_missing_or_goes_on_without_it(tmp_path, processor, workers):
    broken = replace(game("lost"), images=(tmp_path / "gone.png",) * 3)
    with pytest.raises(BadInput) as raised:
        check_all([game(), broken], processor, workers)
    assert str(raised.value) == f"image {tmp_path / 'gone.png'} does not exist"
    skipped: dict[str, str] = {}
    done: list[int] = []
    usable, _ = check_all([game(), broken, game("last")], processor, workers, skipped, done.append)
    assert [example.id for example in usable] == ["game", "last"]
    assert skipped == {"lost": f"image {tmp_path / 'gone.png'} does not exist"}
    assert done == [1, 2, 3]


def truncated(path: Path) -> Path:
    """A photograph whose header is whole and whose pixels are not."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_off_is_named_when_it_is_drawn_and_skipped_where_that_is_asked(
    tmp_path, processor, workers
):
    path = truncated(tmp_path / "half.png")
    examples = [game(), replace(game("half"), images=(path,) * 3)]
    assert len(check_all(examples, processor)[0]) == 2  # its header is fine
    with pytest.raises(BadInput) as raised:
        list(make_loader(examples, processor, 2, seed=0, train=True, workers=workers))
    assert str(raised.value).startswith(f"image {path} cannot be read: ")
    skipped: dict[str, str] = {}
    usable, _ = check_all(examples, processor, workers, skipped)
    assert [example.id for example in usable] == ["game"]
    assert skipped["half"].startswith(f"image {path} cannot be read: ")


def test_pixels_are_kept_as_long_as_there_is_room(items, processor):
    size = processor.encode(items[0]).canvas.nbytes
    read = []
    counting = SimpleNamespace(encode=lambda example: read.append(example.id) or processor.encode(example))
    games = EncodedGames(items[:3], counting, 7, shuffle_candidates=True, keep=2 * size)
    first = [games[0, position].canvas for position in range(3)]
    again = [games[0, position].canvas for position in range(3)]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert read == ["game-0", "game-1", "game-2", "game-2"]


def target_of(item) -> tuple[int, bool]:
    """Where an encoded game says its target is, and whether the pixels there and the phrases agree."""
    example, where = item.example, item.example.target_index
    original = game(example.id, images=4, target=int(example.id[5:]) % 4, seed=int(example.id[5:]))
    shown = item.canvas[32 * where : 32 * (where + 1)]
    agree = np.array_equal(shown, original.images[original.target_index])
    return where, agree and {phrase.image_index for phrase in example.phrases} == {where}


def test_every_epoch_shuffles_candidates_anew_and_every_run_alike(items, processor):
    runs = [EncodedGames(items, processor, 7, shuffle_candidates=True) for _ in range(2)]
    places = {}
    for epoch in range(6):
        for position in range(10):
            one, other = (run[epoch, position] for run in runs)
            assert np.array_equal(one.canvas, other.canvas)
            places[epoch, position], agree = target_of(one)
            assert agree
    by_epoch = [tuple(places[epoch, position] for position in range(10)) for epoch in range(6)]
    assert len(set(by_epoch)) == 6
    assert set(by_epoch[0]) == {0, 1, 2, 3}
    other_seed = EncodedGames(items, processor, 8, shuffle_candidates=True)
    assert tuple(other_seed[0, position].example.target_index for position in range(10)) != by_epoch[0]
    still = EncodedGames(items, processor, 7, shuffle_candidates=False)
    assert all(still[epoch, 3].example is items[3] for epoch in range(3))


def test_a_training_loader_shuffles_and_gives_whole_batches(items, processor):
    loader = make_loader(items, processor, 4, seed=7, train=True, workers=0)
    seen = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader) == 2
        for batch, targets in batches:
            assert len(batch) == 4
            for row, example in enumerate(batch.examples):
                where = int(targets.points[row, 1] * 4)
                assert where == example.target_index
                k = int(example.id[5:])
                truth = torch.from_numpy(game(images=4, seed=k).images[k % 4]).permute(2, 0, 1)
                assert torch.equal(batch.images[row, :, 32 * where : 32 * (where + 1)], truth)
                own = targets.boxes[targets.box_example == row]
                assert len(own) == 3
                assert ((own[:, 1] >= where / 4 - 1e-6) & (own[:, 3] <= (where + 1) / 4 + 1e-6)).all()
        seen.append([example.id for batch, _ in batches for example in batch.examples])
    assert seen[0] != seen[1]


def test_a_dev_loader_keeps_the_order_and_everything(items):
    loader = make_loader(items, small_vilt().preprocessor, 4, seed=7, train=False, workers=0, steps_done=1)
    batches = list(loader)
    assert [len(batch) for batch, _ in batches] == [4, 4, 2]
    assert [example.id for batch, _ in batches for example in batch.examples] == [f"game-{k}" for k in range(10)]
    for batch, targets in batches:
        assert (targets.points[:, 1] * 4).long().tolist() == [int(e.id[5:]) % 4 for e in batch.examples]


def test_what_the_loss_does_not_need_is_not_sent_between_processes(items):
    batch, _ = next(iter(make_loader(items, small_vilt().preprocessor, 4, seed=7, train=True, workers=0)))
    assert all(isinstance(example, Example) and example.images == example.phrases == () for example in batch.examples)


def test_fewer_examples_than_a_batch_are_one_batch(items):
    loader = make_loader(items[:3], small_vilt().preprocessor, 32, seed=7, train=True, workers=0)
    assert [len(batch) for batch, _ in loader] == [3]
    shared = make_loader(items[:7], small_vilt().preprocessor, 32, seed=7, train=True, workers=0, processes=2)
    assert shared.batch_size == 3


def test_descriptions_are_left_as_they_are(processor):
    examples = [single_image(str(k), 32, 96) for k in range(3)]
    assert EncodedGames(examples, processor, 0, shuffle_candidates=True)[4, 1].example is examples[1]
    _, targets = next(iter(make_loader(examples, processor, 3, seed=0, train=True, workers=0)))
    assert targets.candidates.tolist() == [0, 0, 0]
    torch.testing.assert_close(targets.points, torch.tensor([[0.7, 0.3]] * 3))
