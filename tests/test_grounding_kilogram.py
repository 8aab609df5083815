"""KiloGram: splits, captions, regions, colours, games and faults, on made-up tangrams in the published format."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from kilogram_fixture import change, records, write_kilogram

from grounding.benchmarks.captions import with_article
from grounding.benchmarks.kilogram import COLOURS, KiloGram, Tangram
from grounding.benchmarks.svg import Drawing, Piece
from grounding.errors import BadInput
from grounding.examples import ReferenceGame

SPLITS = KiloGram.splits
WHITE = (255, 255, 255)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """20 tangrams, 12/4/4: too few for nine different distractor tangrams outside train."""
    return write_kilogram(tmp_path_factory.mktemp("kilogram"))


@pytest.fixture(scope="module")
def wide_root(tmp_path_factory) -> Path:
    """60 tangrams, 36/12/12, two annotations of three parts each."""
    return write_kilogram(tmp_path_factory.mktemp("wide"), tangrams=60, annotations=2)


@pytest.fixture
def own_root(tmp_path) -> Path:
    """A copy that a test may break."""
    return write_kilogram(tmp_path)


def record_of(root: Path, example) -> dict:
    tangram, number = example.groups["annotation"].split("/")
    return records(root)[tangram]["annotations"][int(number)]


def colour_at(example, region) -> tuple[int, int, int]:
    """The target's fill at the middle of a region (the made-up pieces are convex)."""
    pixels = example.images[example.target_index].render(200)
    x, y = np.mean(region.polygons[0], axis=0)
    return tuple(int(value) for value in pixels[int(y * 200), int(x * 200)])


def all_examples(root: Path, **options) -> list:
    benchmark = KiloGram(root, **options)
    return [example for split in SPLITS for example in benchmark.load(split)]


# --- splits and games


@pytest.mark.parametrize(
    ("tangrams", "sizes"), [(60, (36, 12, 12)), (20, (12, 4, 4)), (74, (44, 15, 15)), (3, (1, 1, 1))]
)
def test_splits_share_no_tangram_and_keep_their_proportions(tmp_path, tangrams, sizes):
    benchmark = KiloGram(write_kilogram(tmp_path, tangrams=tangrams, annotations=1))
    names = [benchmark.tangrams(split) for split in SPLITS]
    assert tuple(len(part) for part in names) == sizes
    assert len(set().union(*names)) == tangrams
    assert KiloGram(tmp_path, seed=1).tangrams("train") != names[0] or tangrams == 3


def test_targets_and_distractors_come_from_their_own_split(wide_root):
    benchmark = KiloGram(wide_root)
    for split in SPLITS:
        drawings = {image.drawing.name for example in benchmark.load(split) for image in example.images}
        assert drawings <= set(benchmark.tangrams(split))


@pytest.mark.parametrize("split", SPLITS)
def test_distractors_are_nine_other_tangrams_with_as_many_parts(wide_root, split):
    examples = KiloGram(wide_root).load(split)
    assert len(examples) == {"train": 72, "dev": 24, "test": 24}[split]
    for example in examples:
        assert isinstance(example.task, ReferenceGame)
        assert len(example.images) == 10
        assert len({image.drawing.name for image in example.images}) == 10
        assert example.images[example.target_index].drawing.name == example.groups["tangram"]
        assert {len(set(image.colours)) for image in example.images} == {3}


def test_no_two_candidates_are_called_the_same(own_root):
    for tangram in KiloGram(own_root).tangrams("train"):
        for number, whole in enumerate(("kiwi", "a Kiwi", "kiwi.")):
            change(own_root, tangram, number, whole={"wholeAnnotation": whole})
    examples = KiloGram(own_root, candidates=5).load("train")
    assert len(examples) == 72
    kiwis = {e.images[e.target_index] for e in examples if "kiwi" in e.caption.lower()}
    assert len(kiwis) == 36
    assert all(len(kiwis & set(example.images)) <= 1 for example in examples)


def test_fewer_tangrams_still_give_nine_distinct_distractors(root):
    for example in KiloGram(root).load("dev"):
        target = example.groups["tangram"]
        assert len({(image.drawing.name, image.colours) for image in example.images}) == 10
        assert sum(image.drawing.name == target for image in example.images) == 1


def test_annotations_without_a_game_are_excluded_and_counted(root):
    benchmark = KiloGram(root)
    for split, tangrams in (("train", 12), ("dev", 4), ("test", 4)):
        examples = benchmark.load(split)
        assert len(examples) + len(benchmark.excluded[split]) == 6 * tangrams
        excluded_parts = Counter(skipped.reason.split(" parts")[0][-1] for skipped in benchmark.excluded[split])
        # one annotation of four parts and one of two a tangram: three distractors in dev, eleven in train
        assert excluded_parts == ({} if split == "train" else {"4": 4, "2": 4})
        assert all(skipped.id.startswith(f"kilogram/{split}/made-") for skipped in benchmark.excluded[split])


def test_every_candidate_is_coloured_as_where_it_is_the_target(root):
    examples = KiloGram(root).load("dev")
    own = {image for example in examples for image in [example.images[example.target_index]]}
    others = {image for example in examples for image in example.images}
    assert others == own


def test_the_target_stands_everywhere_alike(root):
    places = Counter(example.target_index for example in all_examples(root) + all_examples(root, seed=1))
    assert sum(places.values()) == 2 * (72 + 16 + 16)
    assert all(8 <= places[place] <= 36 for place in range(10))  # 20.8 expected, standard deviation 4.3


def test_a_limit_draws_from_many_tangrams(wide_root):
    assert len({example.groups["tangram"] for example in KiloGram(wide_root).load("train", limit=20)}) > 12


# --- captions and regions


def test_phrases_name_the_parts_and_regions_are_their_pieces(root):
    for example in all_examples(root):
        annotation = record_of(root, example)
        names = {phrase.text(example.caption): phrase for phrase in example.phrases}
        assert set(names) == {with_article(name) for name in annotation["part"].values()}
        assert example.caption.startswith(
            f"This looks like {with_article(annotation['whole']['wholeAnnotation'])} with "
        )
        drawing = example.images[example.target_index].drawing
        for name in set(annotation["part"].values()):
            phrase = names[with_article(name)]
            assert phrase.type == name.split()[-1]
            assert phrase.image_index == example.target_index
            pieces = [piece for piece in drawing.pieces if annotation["part"][piece.id] == name]
            assert [region.polygons for region in phrase.regions] == [(piece.polygon,) for piece in pieces]


def test_boxes_bound_the_polygons_and_lie_where_the_drawing_puts_the_piece(root):
    """Piece k is in cell k - 1 of a 3 x 3 grid over the viewBox; half of the drawings have transforms."""
    for example in all_examples(root):
        for piece in example.images[example.target_index].drawing.pieces:
            row, column = divmod(int(piece.id) - 1, 3)
            width, height = {0: (1, 200 / 300), 1: (150 / 240, 1), 2: (1, 1)}[int(example.groups["tangram"][5:]) % 3]
            left, top = (1 - width) / 2, (1 - height) / 2
            x1, y1, x2, y2 = piece.box
            assert left + column * width / 3 <= x1 < x2 <= left + (column + 1) * width / 3
            assert top + row * height / 3 <= y1 < y2 <= top + (row + 1) * height / 3
        for phrase in example.phrases:
            for region in phrase.regions:
                vertices = np.array(region.polygons[0])
                assert region.box == (*vertices.min(axis=0), *vertices.max(axis=0))


def test_ids_and_groups_name_the_annotation(root):
    example = KiloGram(root).load("dev")[0]
    tangram, number = example.groups["tangram"], example.groups["annotation"].split("/")[1]
    assert example.id == f"kilogram/dev/{tangram}/{number}"
    assert [phrase.id for phrase in example.phrases] == [f"{example.id}/{k}" for k in range(len(example.phrases))]
    annotation = dict.fromkeys(("caption", "annotation"), f"{tangram}/{number}")
    assert example.groups == annotation | dict.fromkeys(("image", "tangram"), tangram)


def test_the_place_in_the_caption_says_nothing_about_the_image(tmp_path):
    """The first piece of every drawing is always called the head: its phrase must come first a third of the time."""
    write_kilogram(tmp_path, tangrams=60, annotations=4, part_counts=(3,))
    for tangram, record in records(tmp_path).items():
        for number in range(len(record["annotations"])):
            change(tmp_path, tangram, number, part=dict(zip("1234567", "abbcccc", strict=True)))
    places = Counter(
        [phrase.type for phrase in example.phrases].index("a") for example in all_examples(tmp_path, candidates=4)
    )
    assert all(55 <= places[place] <= 105 for place in range(3))  # 80 expected, standard deviation 7.3


# --- colours


def test_pixels_have_the_parts_colour_inside_its_polygons_and_are_white_outside_all_boxes(root):
    for example in KiloGram(root).load("dev", limit=6):
        colours = [{colour_at(example, region) for region in phrase.regions} for phrase in example.phrases]
        assert all(len(found) == 1 for found in colours)
        assert len(set.union(*colours)) == len(example.phrases)
        assert set.union(*colours) <= set(COLOURS.values())

        pixels = example.images[example.target_index].render(200)
        inside = np.zeros((200, 200), dtype=bool)
        for phrase in example.phrases:
            for region in phrase.regions:
                x1, y1, x2, y2 = (value * 200 for value in region.box)
                inside[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = True
        painted = (pixels != 255).any(axis=-1)
        assert painted.any()
        assert not painted[~inside].any()


def test_caption_order_gives_the_kth_phrase_the_kth_colour(root):
    listed = list(COLOURS.values())
    for example in all_examples(root, colour_order="caption"):
        for number, phrase in enumerate(example.phrases):
            assert [colour_at(example, region) for region in phrase.regions] == [listed[number]] * len(phrase.regions)


def test_random_order_gives_every_phrase_every_colour_alike(root):
    examples = all_examples(root) + all_examples(root, seed=1)
    for number in range(3):
        found = Counter(colour_at(e, e.phrases[number].regions[0]) for e in examples if len(e.phrases) > number)
        total = sum(found.values())
        assert total > 150
        assert set(found) == set(COLOURS.values())
        assert max(found.values()) < 0.24 * total  # one seventh expected, standard deviation 0.027


def test_the_two_orders_differ_in_colours_alone(root):
    for one, other in zip(all_examples(root), all_examples(root, colour_order="caption"), strict=True):
        assert (one.id, one.caption, one.phrases, one.task) == (other.id, other.caption, other.phrases, other.task)
        assert [image.drawing for image in one.images] == [image.drawing for image in other.images]


@pytest.mark.parametrize("colour_order", ["caption", "random"])
def test_nameless_pieces_are_no_phrase_but_coloured_as_a_part(own_root, colour_order):
    names = {"1": "hat", "2": "UNKNOWN", "3": " hat. ", "4": "", "5": "tail"}  # 6 and 7 are not listed
    tangrams = KiloGram(own_root).tangrams("train")
    for tangram in tangrams:
        change(own_root, tangram, 0, part=names)
    examples = KiloGram(own_root, colour_order=colour_order).load("train")
    examples = [example for example in examples if example.groups["annotation"].endswith("/0")]
    assert len(examples) == len(tangrams)
    for example in examples:
        assert sorted(phrase.text(example.caption) for phrase in example.phrases) == ["a hat", "a tail"]
        assert sorted(len(phrase.regions) for phrase in example.phrases) == [1, 2]
        colours = example.images[example.target_index].colours
        assert colours[0] == colours[2]
        assert len({colours[index] for index in (1, 3, 5, 6)}) == 1
        assert {len(set(image.colours)) for image in example.images} == {3}
    nameless = Counter(example.images[example.target_index].colours[1] for example in examples)
    if colour_order == "caption":
        assert set(nameless) == {COLOURS["light sky blue"]}  # the third: after those of the two phrases
    else:
        assert len(nameless) > 3


def test_annotations_without_any_phrase_stay_for_the_task(own_root):
    names = KiloGram(own_root).tangrams("train")
    for tangram in names:
        change(own_root, tangram, 0, part=dict.fromkeys("1234567", "UNKNOWN"))
    examples = [example for example in KiloGram(own_root).load("train") if not example.phrases]
    assert len(examples) == len(names)
    for example in examples:
        whole = record_of(own_root, example)["whole"]["wholeAnnotation"]
        assert example.caption == f"This looks like {with_article(whole)}."
        assert all(len(set(image.colours)) == 1 for image in example.images)


# --- rendering


SQUARE = Drawing("square", (Piece("1", ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))),), unit=0.01)
RED = (200, 0, 0)


@pytest.mark.parametrize("size", [1, 7, 64, 224, 500])
def test_any_size_is_rendered(size):
    pixels = Tangram(SQUARE, (RED,)).render(size)
    assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)


def test_the_size_defaults_to_the_benchmarks(root):
    assert Tangram(SQUARE, (RED,), size=40).render().shape == (40, 40, 3)
    assert KiloGram(root, image_size=32).load("dev", limit=1)[0].images[0].render().shape == (32, 32, 3)
    with pytest.raises(BadInput, match="size 0 is too small"):
        Tangram(SQUARE, (RED,)).render(0)


def test_a_square_is_filled_to_its_white_edge():
    """Side 0.5 of 100 pixels, edge one pixel wide and centred on the outline: 49 to 50 pixels are red."""
    pixels = Tangram(SQUARE, (RED,)).render(100)
    assert (pixels[27:73, 27:73] == RED).all()
    assert (pixels[:24] == 255).all()
    assert (pixels[:, 76:] == 255).all()
    covered = (255 - pixels[50, :, 1].astype(float)).sum() / 255  # pixels of green that red took away, in a row
    assert covered == pytest.approx(49, abs=0.5)


def test_edges_are_smooth_and_neighbours_parted():
    triangle = Drawing("two", (Piece("1", ((0, 0), (1, 0), (0, 1))), Piece("2", ((1, 0), (1, 1), (0, 1)))), unit=0.01)
    pixels = Tangram(triangle, (RED, RED)).render(100)
    diagonal = pixels[np.arange(100), 99 - np.arange(100), 1]
    assert diagonal[10:90].min() > 120  # white runs along the cut
    assert len(np.unique(pixels[..., 1])) > 4  # and is blended


# --- determinism


def test_equal_seeds_give_equal_examples_and_others_do_not(root):
    assert all_examples(root) == all_examples(root)
    captions = {example.id: example.caption for example in KiloGram(root).load("train")}
    others = {example.id: example.caption for example in KiloGram(root, seed=1).load("train")}
    shared = set(captions) & set(others)
    assert len(shared) > 10
    assert any(captions[name] != others[name] for name in shared)


def test_identity_depends_on_content_seed_and_options_only(own_root, tmp_path_factory):
    before = KiloGram(own_root).identity()
    twin = write_kilogram(tmp_path_factory.mktemp("twin"))
    assert KiloGram(twin).identity() == before == json.loads(json.dumps(before))
    assert KiloGram(own_root, seed=1).identity() != before
    for option in ({"colour_order": "caption"}, {"annotations": "dense10"}, {"image_size": 64}, {"candidates": 5}):
        assert KiloGram(own_root, **option).identity() != before
    drawing = twin / "tangrams-svg" / "made-3.svg"
    drawing.write_text(drawing.read_text() + "\n")
    assert KiloGram(twin).identity() != before
    drawing.unlink()
    assert KiloGram(twin).identity() != before
    change(own_root, "made-0", 0, whole={"wholeAnnotation": "kiwi"})
    assert KiloGram(own_root).identity() != before


def test_the_smaller_set_has_the_same_splits(root):
    small, large = KiloGram(root, annotations="dense10", candidates=4), KiloGram(root, candidates=4)
    for split in SPLITS:
        assert small.tangrams(split) == large.tangrams(split)
        small.load(split)
        total = len(small.load(split)) + len(small.excluded[split])
        assert total == 3 * len(small.tangrams(split))


# --- the real data


def test_the_real_data_give_the_documented_counts(shared_data):
    benchmark = KiloGram(shared_data / "kilogram")
    started = time.perf_counter()
    loaded = {split: benchmark.load(split) for split in ("dev", "test", "train")}
    assert time.perf_counter() - started < 6  # about half a second; 2 s are promised for dev alone
    assert {split: len(examples) for split, examples in loaded.items()} == {"train": 1927, "dev": 638, "test": 626}
    assert {split: len(found) for split, found in benchmark.excluded.items()} == {"train": 0, "dev": 13, "test": 14}
    twice = {
        split: sum(len({image.drawing.name for image in example.images}) < 10 for example in examples)
        for split, examples in loaded.items()
    }
    assert twice == {"train": 0, "dev": 162, "test": 64}
    assert [len(benchmark.tangrams(split)) for split in SPLITS] == [36, 12, 12]
    for examples in loaded.values():
        for example in examples:
            assert 1 <= len(example.phrases) <= 7
            assert len({len(set(image.colours)) for image in example.images}) == 1
            assert sum(image.drawing.name == example.groups["tangram"] for image in example.images) == 1


def test_real_pieces_show_their_parts_colour(shared_data):
    for example in KiloGram(shared_data / "kilogram", annotations="dense10").load("test", limit=40):
        image = example.images[example.target_index]
        pixels = image.render(224)
        for piece, colour in zip(image.drawing.pieces, image.colours, strict=True):
            x, y = np.mean(piece.polygon, axis=0)  # triangles and quadrilaterals: the middle is inside
            assert tuple(pixels[int(y * 224), int(x * 224)]) == colour
