"""Stored maps over images: which are read, how they are called, and that they land where the token layout says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_gallery import make_example, make_panorama, make_run
from matplotlib.text import Text
from tiny_model import TinyModel, tiny_games

from extract.run import extract
from grounding.errors import BadInput
from visualize.canvas import signed_strength
from visualize.case import gather
from visualize.grid import draw_grid
from visualize.maps import PROBE, SiteMaps, kinds_of, read_heads, read_layers, read_maps, sites_with
from visualize.overlays import draw_example

INTEGRATED = "relevance.integrated-gradients"


@pytest.fixture(scope="module")
def game():
    example = make_example(1)
    run = make_run([example])
    rng = np.random.default_rng(0)
    run.relevance = {
        "relevance.rollout": {row: rng.random((1, 24, 4)) for row in range(3)},
        INTEGRATED: {row: rng.normal(size=(1, 24, 4)) for row in range(3)},
    }
    return run, gather(run, 0, {example.id: example})


def texts(figure) -> str:
    return "\n".join(artist.get_text() for artist in figure.findobj(Text))


def test_attention_of_one_head_and_of_all(game):
    run, case = game
    one, mean = read_maps(run, case, site="block.0", head=2), read_maps(run, case)
    np.testing.assert_array_equal(one.cells[0], run.attentions[0][2])
    np.testing.assert_allclose(mean.cells[0], run.attentions[0].mean(0))
    assert one.title == "Attention from each phrase at block.0, head 2 of 4"
    assert mean.title == "Attention from each phrase at block.2, mean over 4 heads"
    with pytest.raises(BadInput, match=r"head 4 is not at site 'block.0'; accepted: 0 to 3"):
        read_maps(run, case, site="block.0", head=4)
    with pytest.raises(BadInput, match=r"site 'block.9' is unknown; accepted: block.0"):
        read_maps(run, case, site="block.9")


def test_kinds_are_those_that_the_run_holds(game):
    run, case = game
    assert kinds_of(run) == ["attention", "sink-filtered", "relevance.rollout", INTEGRATED]
    assert read_maps(run, case, "relevance.rollout").title == "Attention rollout up to block.1"
    assert read_maps(run, case, "relevance.rollout", head=3).head is None  # it has one map of all heads
    with pytest.raises(
        BadInput, match=r"map 'relevance.grad-cam': this run holds no relevance.grad-cam, only attention"
    ):
        read_maps(run, case, "relevance.grad-cam")
    with pytest.raises(
        BadInput, match=r"map 'saliency' is unknown; accepted: attention, attention.back, sink-filtered"
    ):
        read_maps(run, case, "saliency")


def test_an_unknown_map_is_told_with_all_that_are_known(game):
    run, _ = game
    for unknown in ("rollout", "attention-task"):
        with pytest.raises(BadInput, match=f"map '{unknown}' is unknown; accepted: .*rollout-task, .*, probe"):
            sites_with(run, unknown)


def test_what_every_phrase_attends_to_is_filtered_out(game):
    run, case = game
    filtered = read_maps(run, case, "sink-filtered", "block.1", head=0)
    own, *others = (run.attentions[row][0] for row in range(3))
    np.testing.assert_allclose(filtered.cells[0], np.maximum(own - np.mean(others, axis=0), 0), atol=1e-7)
    assert "sinks filtered out" in filtered.title


def test_values_against_a_phrase_have_colours_of_their_own_and_the_completeness_check_is_printed(game):
    run, case = game
    maps = read_maps(run, case, INTEGRATED)
    assert maps.signed
    painted = maps.painted(case, 0)
    cells = signed_strength(run.relevance[INTEGRATED][0][0])
    side = case.sizes[0][0]
    assert painted[2][0, 0] == pytest.approx(cells[8, 0])
    assert painted[2][side - 1, side - 1] == pytest.approx(cells[11, 3])
    for figure in (draw_example(case, [maps]), draw_grid(case, [maps])):
        words = texts(figure)
        assert words.replace("\n", " ").count("check: the sum misses the score's change of 2 by 0.1 (5.0%)") == 3
        assert "against the phrase to for it" in words


def test_layers_and_heads_are_rows_that_say_what_sets_them_apart(game):
    run, case = game
    layers, heads = read_layers(run, case), read_heads(run, case, site="block.1")
    assert [maps.site for maps in layers] == ["block.0", "block.1", "block.2"]
    assert [maps.head for maps in heads] == [0, 1, 2, 3, None]
    figure = draw_grid(case, layers, "Layer by layer")
    words = texts(figure)
    assert "Layer by layer" in words
    assert "block.1" in words
    assert "heads" not in words  # which are the same in all rows
    assert len(figure.axes[0].images) == (1 + 3) * 3 * 6
    assert "head 3 of 4" in texts(draw_grid(case, heads))
    with pytest.raises(BadInput, match=r"map 'relevance.rollout' at site 'block.1' is one of all heads"):
        read_heads(run, case, "relevance.rollout")


def test_a_grid_of_many_phrases_says_what_it_leaves_out():
    example = make_example(1, candidates=1, phrases=100, caption="a very long caption " * 30)
    run = make_run([example], heatmaps=True)
    case = gather(run, 0, {example.id: example})
    figure = draw_grid(case, read_layers(run, case), most_phrases=4)
    assert "… and 96 more phrases, not drawn here." in texts(figure)
    assert len(figure.axes[0].images) == (1 + 1 + 3) * 4
    width, height = figure.get_size_inches()
    for left, right, below, above in (image.get_extent() for image in figure.axes[0].images):
        assert 0 <= left < right <= width
        assert 0 <= above < below <= height
        assert (right - left) == pytest.approx(below - above)  # square pictures stay square


def test_an_example_without_maps_has_a_note_instead(game):
    run, case = game
    silent = replace(case, phrases=())
    assert "No phrase of this example has a map." in texts(draw_grid(silent, read_layers(run, silent)))
    assert draw_example(silent, [read_maps(run, silent)])


@pytest.mark.parametrize("example", [make_example(1), make_example(1, candidates=1), make_panorama(0)])
def test_a_planted_token_is_painted_on_exactly_its_pixels(example):
    """From the stored grid to the pixels of the figure, in games, single pictures and panoramas."""
    count, columns = len(example.images), 4
    case = gather(make_run([example]), 0, {example.id: example})
    cells = np.zeros((4 * count, columns))
    candidate, row, column = count - 1, 2, 1
    cells[4 * candidate + row, column] = 1
    maps = SiteMaps(PROBE, "block.0", {case.phrases[0].row: cells})
    bare = replace(case, phrases=(replace(case.phrases[0], boxes=(), predicted=None),), target=0, answer=None)
    figure = draw_grid(bare, [maps])
    figure.set_dpi(100)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    left, right, bottom, top = (100 * v for v in figure.axes[0].images[-count:][candidate].get_extent())
    wide, tall = (right - left) / columns, (bottom - top) / 4
    inside = pixels[round(top) : round(bottom), round(left) : round(right)]
    dark = inside.sum(-1) < 130  # the strongest colour; the paled image is lighter
    rows, lines = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    found = lines[0], lines[-1] + 1, rows[0], rows[-1] + 1
    np.testing.assert_allclose(found, (wide * column, wide * (column + 1), tall * row, tall * (row + 1)), atol=1.5)
    assert dark[rows[0] + 1 : rows[-1], lines[0] + 1 : lines[-1]].all()


def test_stored_attention_back_is_read_like_any_map(tmp_path):
    games = tiny_games(2)
    views = ("phrase", "attention", "attention.back")
    run = extract(TinyModel(), games, tmp_path / "run", identity={"checkpoint": "tiny"}, views=views)
    case = gather(run, 0, {game.id: game for game in games})
    there, back = (read_maps(run, case, kind) for kind in ("attention", "attention.back"))
    assert back.title.startswith("Attention back, from each image cell to the phrase at block.")
    row = case.phrases[0].row
    assert back.cells[row].shape == there.cells[row].shape
    assert (back.cells[row] >= 0).all()
    assert not np.allclose(back.cells[row], there.cells[row])
