"""Shares of the annotations: exact, nested and seeded; and the study's own subsets, by hand."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest
from finetune_runs import settings, tuned, weights

from grounding.benchmarks.miniature import MiniatureGame
from grounding.checkpoint import load_checkpoint
from grounding.errors import BadInput
from grounding.examples import Example, Phrase, ReferenceGame, Region
from grounding.finetune.annotations import Annotations
from grounding.finetune.budget import annotated_phrases, annotation_budget

REGION = (Region((0.1, 0.1, 0.5, 0.5)),)


def examples(counts: Sequence[int], images: Sequence[str] | None = None, prefix: str = "game") -> list[Example]:
    """Examples with so many annotated phrases each, and one that is not."""
    return [
        Example(
            id=f"{prefix}/{n}",
            split="train",
            images=("a.png",),
            caption="x" * 99,
            phrases=tuple(
                Phrase(f"{n}.{k}", "disc", ((k, k + 1),), REGION if k < count else ()) for k in range(count + 1)
            ),
            task=ReferenceGame(0),
            groups={"image": images[n] if images else f"image {n}"},
        )
        for n, count in enumerate(counts)
    ]


def kept(found: Sequence[Example]) -> list[str]:
    return [phrase.id for example in found for phrase in example.phrases if phrase.regions]


@pytest.mark.parametrize("by", ["phrase", "image"])
@pytest.mark.parametrize("seed", [0, 1])
def test_budgets_are_exact_and_nested(by, seed):
    given = examples([2] * 20)
    before: set[str] = set()
    for fraction in (0.05, 0.1, 0.3, 0.4, 0.55, 1.0):
        found = set(kept(annotation_budget(given, fraction, by, seed)))
        assert len(found) == round(fraction * 40 if by == "phrase" else fraction * 20) * (1 if by == "phrase" else 2)
        assert before < found
        before = found


def test_a_seed_chooses_and_phrases_without_regions_stay():
    given = examples([3] * 30)
    subsets = [kept(annotation_budget(given, 0.2, "phrase", seed)) for seed in (0, 0, 1)]
    assert subsets[0] == subsets[1] != subsets[2]
    found = annotation_budget(given, 0.2)
    assert all(not example.phrases[-1].regions for example in found)
    assert [example.id for example in found] == [example.id for example in given]
    assert annotated_phrases(found) == 18


def test_phrases_of_one_image_stay_together_over_captions():
    given = examples([1, 2, 3, 1], images=["a", "a", "b", "c"])
    for seed in range(5):
        found = kept(annotation_budget(given, 1 / 3, "image", seed))
        assert sorted(found) in (["0.0", "1.0", "1.1"], ["2.0", "2.1", "2.2"], ["3.0"])


@pytest.mark.parametrize(("fraction", "places"), [(0.4, [1, 3, 5, 7, 9]), (0.3, [2, 5, 8]), (0.5, [1, 3, 5, 7, 9])])
def test_paper_keeps_every_so_manieth_phrase_whatever_the_seed(fraction, places):
    given = examples([5, 5])
    names = kept(given)
    for seed in (0, 7):
        assert kept(annotation_budget(given, fraction, "phrase", seed, "paper")) == [names[place] for place in places]


def test_paper_draws_large_shares_and_looks_them_up_one_place_off():
    given = examples([5, 5])
    drawn = random.Random(3).sample(range(10), 8)
    expected = sorted(place - 1 for place in drawn if place > 0)
    assert [kept(given).index(name) for name in kept(annotation_budget(given, 0.8, "phrase", 3, "paper"))] == expected


def test_paper_counts_captions_as_images_but_for_flickr30k():
    images = ["a", "a", "b", "b"]
    assert len(kept(annotation_budget(examples([1] * 4, images), 0.75, "image", 0, "paper"))) == 3
    assert len(kept(annotation_budget(examples([1] * 4, images, "flickr30k/train"), 0.75, "image", 0, "paper"))) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 1.2}, "grounding fraction 1.2 is outside 0..1"),
        ({"fraction": float("nan")}, "grounding fraction nan is outside 0..1"),
        (
            {"fraction": 0.09},
            "grounding fraction 0.09 is less than one of 10 annotated phrases; accepted: 0.1 or more",
        ),
        ({"fraction": 0.0}, "grounding fraction 0.0 is less than one"),
        ({"fraction": 1e-320, "mode": "paper"}, "grounding fraction 1e-320 is less than one of 10 annotated phrases"),
        ({"fraction": 0.4, "by": "image"}, "less than one of 2 annotated images; accepted: 0.5 or more"),
        ({"by": "word"}, "budget unit 'word' is unknown; accepted: phrase, image"),
        ({"mode": "exact"}, "budget mode 'exact' is unknown"),
    ],
)
def test_impossible_budgets(changes, message):
    with pytest.raises(BadInput, match=message):
        annotation_budget(examples([5, 5]), **{"fraction": 0.5, **changes})


@pytest.mark.parametrize("mode", ["corrected", "paper"])
@pytest.mark.parametrize("count", [3, 7, 49, 109, 110, 2000])
def test_the_least_share_that_is_told_keeps_one(mode, count):
    given = examples([count])
    with pytest.raises(BadInput) as raised:
        annotation_budget(given, 0.99 / count, mode=mode)
    told = re.search(r"accepted: (\S+) or more", str(raised.value))
    assert told
    assert annotated_phrases(annotation_budget(given, float(told[1]), mode=mode)) == 1
    assert annotated_phrases(annotation_budget(given, 1 / count, mode=mode)) == 1


def test_the_studys_draw_may_keep_none():
    seed = next(seed for seed in range(9) if random.Random(seed).sample(range(2), 1) == [0])
    with pytest.raises(BadInput, match="keeps none, as the study's program draws them; accepted: another fraction"):
        annotation_budget(examples([2]), 0.6, "phrase", seed, "paper")


def test_a_run_learns_from_its_share_and_says_so(tmp_path):
    share = tuned(tmp_path / "share", grounding_fraction=0.25)
    given = MiniatureGame().load("train", 32)
    total = annotated_phrases(given)
    assert load_checkpoint(share).info["training"]["annotations"] == {"phrases": total, "learned": round(total / 4)}
    every, none = tuned(tmp_path / "every"), tuned(tmp_path / "none", grounding=False)
    assert not all((weights(share)[name] == value).all() for name, value in weights(every).items())
    assert load_checkpoint(none).info["training"]["annotations"] == {"phrases": total, "learned": 0}


def test_a_budget_that_leaves_nothing_is_refused_before_training(tmp_path):
    with pytest.raises(BadInput, match="grounding_fraction 0 keeps none, but the grounding loss is on"):
        tuned(tmp_path / "zero", grounding_fraction=0.0)
    with pytest.raises(BadInput, match=r"grounding fraction 0\.001 is less than one of \d+ annotated phrases"):
        tuned(tmp_path / "small", grounding_fraction=0.001)
    with pytest.raises(BadInput, match=r"drop_rate 1\.0 leaves no annotation"):
        tuned(tmp_path / "dropped", drop_rate=1.0)
    assert not list(tmp_path.iterdir())


def test_annotations_that_are_not_learned_are_not_held():
    given = MiniatureGame().load("train", 8)
    assert all(not example.phrases for example in Annotations.learned(given, settings(grounding=False)).examples)
