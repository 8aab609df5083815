"""Games kept on disk: what is read back is what would be drawn, and nothing else is believed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from grounding.benchmarks import drawn_games, miniature
from grounding.benchmarks.miniature import MiniatureGame

SIZE = 6


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where games are kept; six are a long split."""
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(miniature, "LONG", SIZE)
    monkeypatch.setattr(MiniatureGame, "sizes", {**MiniatureGame.sizes, "train": SIZE, "dev": SIZE - 1})
    return tmp_path / "cache"


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """Places of the games that are drawn."""
    places: list[int] = []
    game = MiniatureGame.game
    monkeypatch.setattr(MiniatureGame, "game", lambda self, split, k: places.append(k) or game(self, split, k))
    return places


@pytest.mark.parametrize("difficulty", ["hard", "easy", "single"])
def test_games_that_are_kept_are_those_that_would_be_drawn(folder, drawn, difficulty):
    benchmark = MiniatureGame(difficulty=difficulty)
    first = benchmark.load("train")
    assert drawn == [*range(SIZE)]
    drawn.clear()
    assert benchmark.load("train") == first
    assert drawn == [0, SIZE - 1]
    assert [benchmark.example("train", k) for k in range(SIZE)] == first
    (file,) = folder.iterdir()
    assert file.name.startswith("mini-game-train-")


def test_other_seeds_and_parts_of_a_split_have_files_of_their_own_or_none(folder, drawn):
    MiniatureGame().load("dev")
    MiniatureGame().load("train", SIZE - 1)
    assert not folder.exists()
    one, other = (MiniatureGame(seed=seed).load("train") for seed in (0, 1))
    assert one != other
    assert len(list(folder.iterdir())) == 2
    assert MiniatureGame(seed=1).load("train") == other


def test_a_damaged_file_or_one_of_other_games_is_made_anew(folder, drawn):
    first = MiniatureGame().load("train")
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    MiniatureGame(seed=1).load("train")
    (other,) = set(folder.iterdir()) - {file}
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    for spoil in (
        lambda: file.write_bytes(whole[:-100]),
        lambda: file.write_bytes(damaged),
        lambda: file.write_text("no archive"),
        lambda: shutil.copy(other, file),
    ):
        spoil()
        drawn.clear()
        assert MiniatureGame().load("train") == first
        assert len(drawn) >= SIZE
        assert drawn_games._read(file) is not None
        drawn.clear()
        assert MiniatureGame().load("train") == first
        assert len(drawn) == 2


def test_where_nothing_can_be_written_games_are_drawn_every_time(folder, drawn):
    folder.write_text("a file, no folder")
    assert MiniatureGame().load("train") == MiniatureGame().load("train")
    assert len(drawn) == 2 * SIZE
