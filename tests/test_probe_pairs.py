import numpy as np
import pandas as pd
import pytest
from fake_run import FakeRun, make_run
from kilogram_fixture import write_kilogram

from grounding.benchmarks import open_benchmark
from grounding.errors import BadInput
from probe.controls import control_labels, seen_types
from probe.pairs import PairTable, alignment_pairs
from probe.splits import GROUPS, check_leaks, split_examples


def _by_hand():
    """One game: phrase 0 is the left half of image 1, phrase 1 the right half; phrase 2 (of another game) has none."""
    regions = [
        # example, image, x1, y1, x2, y2, phrase
        (0, 1, 0.0, 0.0, 0.5, 1.0, 0),
        (0, 1, 0.5, 0.0, 1.0, 1.0, 1),
        (0, 1, 0.0, 0.0, 0.5, 0.5, -1),  # IoU 0.5 with the left half: counts
        (0, 1, 0.0, 0.0, 0.5, 0.49, -1),  # IoU 0.49: does not
        (0, 0, 0.0, 0.0, 0.5, 1.0, -1),  # the same box in another candidate image: does not
        (1, 0, 0.2, 0.2, 0.4, 0.4, -1),
    ]
    columns = ["example", "image_index", "x1", "y1", "x2", "y2", "phrase"]
    phrases = pd.DataFrame({"example": [0, 0, 1], "type": ["a", "b", "a"], "image_index": [1, 1, 0]})
    return FakeRun(pd.DataFrame({"id": ["x", "y"]}), phrases, pd.DataFrame(regions, columns=columns))


def test_pairs_by_hand():
    pairs = alignment_pairs(_by_hand())
    np.testing.assert_array_equal(pairs.phrase, [0] * 5 + [1] * 5)
    np.testing.assert_array_equal(pairs.region, [0, 1, 2, 3, 4] * 2)
    np.testing.assert_array_equal(pairs.label, [1, 0, 1, 0, 0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(pairs.example, 0)
    assert pairs.left_out == 1


def test_a_phrase_with_two_regions_owns_both():
    run = _by_hand()
    run.regions.loc[1, "phrase"] = 0
    pairs = alignment_pairs(run)
    np.testing.assert_array_equal(pairs.label, [1, 1, 1, 0, 0])
    assert pairs.left_out == 2  # phrase 1 lost its region


def test_threshold_decides():
    np.testing.assert_array_equal(alignment_pairs(_by_hand(), iou=0.45).label[:5], [1, 0, 1, 1, 0])
    np.testing.assert_array_equal(alignment_pairs(_by_hand(), iou=0.51).label[:5], [1, 0, 0, 0, 0])


def test_run_of_one_class_is_refused():
    run = make_run(5, n_phrases=1, n_extra=0)
    with pytest.raises(BadInput, match="one class only; extract with annotated regions and extra boxes"):
        alignment_pairs(run)
    run = make_run(5)
    run.regions["phrase"] = -1
    with pytest.raises(BadInput, match="one class only"):
        alignment_pairs(run)
    with pytest.raises(BadInput, match="iou 0 is not a threshold"):
        alignment_pairs(run, iou=0)


def _examples(images, tangrams=None):
    return pd.DataFrame(
        {
            "group_image": images,
            "group_caption": "",
            "group_annotation": "",
            "group_tangram": "" if tangrams is None else tangrams,
        }
    )


def test_split_keeps_images_whole_and_has_the_promised_sizes():
    images = np.random.default_rng(0).integers(100, size=400).astype(str)
    parts = split_examples(_examples(images), folds=5, seed=1)
    whole = pd.Series(parts).groupby(images).nunique()
    assert (whole == 1).all()
    sizes = pd.Series(parts).groupby(images).first().value_counts()
    count = len(whole)
    assert sizes["test"] in (count // 5, count // 5 + 1)
    assert sizes["validation"] in (count // 5, count // 5 + 1)
    np.testing.assert_array_equal(parts, split_examples(_examples(images), folds=5, seed=1))
    assert (parts != split_examples(_examples(images), folds=5, seed=2)).any()


def test_split_does_not_depend_on_the_order_of_examples():
    images = np.arange(40).astype(str)
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(split_examples(_examples(images))[order], split_examples(_examples(images[order])))


def test_split_by_tangram_keeps_tangrams_whole():
    images = np.arange(60)
    parts = split_examples(_examples(images.astype(str), (images // 6).astype(str)), by="tangram")
    assert (pd.Series(parts).groupby(images // 6).nunique() == 1).all()


def test_leaks_are_loud():
    examples = _examples(np.array(["a", "a", "b", "c"]), np.array(["t", "t", "t", "u"]))
    check_leaks(examples, np.array(["train", "train", "train", "test"]), ("image", "tangram"))
    with pytest.raises(BadInput, match=r"1 image group.* 'a' in test and train; split by image"):
        check_leaks(examples, np.array(["train", "test", "train", "test"]))
    with pytest.raises(BadInput, match=r"1 tangram group.* 't'"):
        check_leaks(examples, np.array(["train", "train", "test", "test"]), ("image", "tangram"))


def test_split_by_a_group_that_tears_images_apart_is_refused():
    with pytest.raises(BadInput, match=r"split leaks: .* image group"):
        split_examples(_examples(np.repeat(np.arange(10), 10).astype(str), np.arange(100).astype(str)), by="tangram")


def test_bad_splits_are_named():
    few = _examples(np.array(["a", "b", "c"]))
    with pytest.raises(BadInput, match=r"3 image group\(s\), fewer than 5 folds"):
        split_examples(few)
    with pytest.raises(BadInput, match="group 'tangram': 3 of 3 examples have none"):
        split_examples(few, by="tangram")
    with pytest.raises(BadInput, match="group 'photo' is unknown; accepted: image"):
        split_examples(few, by="photo")
    with pytest.raises(BadInput, match="folds 2 is too small"):
        split_examples(few, folds=2)


def test_control_labels_keep_the_number_of_positives_of_every_phrase():
    run = make_run(50)
    pairs = alignment_pairs(run)
    control = control_labels(pairs, run.phrases["type"].to_numpy(), run.regions)
    np.testing.assert_array_equal(np.bincount(pairs.phrase[control]), np.bincount(pairs.phrase[pairs.label]))


def test_control_labels_say_nothing_of_alignment_and_change_with_the_seed():
    run = make_run(2000)
    pairs = alignment_pairs(run)
    types = run.phrases["type"].to_numpy()
    first, second = (control_labels(pairs, types, run.regions, seed) for seed in (0, 1))
    share = pairs.label.mean()
    assert pairs.label[first].mean() == pytest.approx(share, abs=0.015)
    assert first[second].mean() < 0.3
    np.testing.assert_array_equal(first, control_labels(pairs, types, run.regions, 0))


def test_control_labels_depend_on_type_and_place_alone():
    """Two phrases of one type with the same boxes in another order choose the same box, annotated or not."""
    boxes = pd.DataFrame({"x1": [0.0, 0.3, 0.6, 0.8], "y1": 0.4, "x2": [0.1, 0.4, 0.7, 0.9], "y2": 0.5})
    regions = pd.concat([boxes, boxes[::-1]], ignore_index=True)
    pairs = PairTable(
        phrase=np.repeat([0, 1], 4),
        region=np.arange(8),
        example=np.repeat([0, 1], 4),
        label=np.array([1, 0, 0, 0, 0, 1, 0, 0], dtype=bool),
    )
    same, chosen = 0, set()
    for seed in range(40):
        control = control_labels(pairs, np.array(["cat", "cat"]), regions, seed)
        np.testing.assert_array_equal(control[:4], control[4:][::-1])
        chosen.add(int(np.flatnonzero(control[:4])[0]))
        other = control_labels(pairs, np.array(["cat", "dog"]), regions, seed)
        same += (other[:4] == other[4:][::-1]).all()
    assert chosen == {0, 1, 2, 3}
    assert 2 <= same <= 20  # about one in four by luck


def test_controls_that_cannot_be_built_are_refused():
    run = make_run(10)
    pairs = alignment_pairs(run)
    run.regions[["x1", "y1", "x2", "y2"]] = [0.4, 0.4, 0.6, 0.6]
    with pytest.raises(BadInput, match="control labels cannot be built"):
        control_labels(pairs, run.phrases["type"].to_numpy(), run.regions)


def test_seen_types_by_hand():
    pairs = PairTable(np.array([0, 1, 2, 3, 3]), np.arange(5), np.zeros(5, int), np.ones(5, bool))
    types = np.array(["cat", "dog", "cat", "fox"])
    train = np.array([True, True, False, False, False])
    assert seen_types(pairs, types, train, ~train) == 0.5


def test_kilograms_drawings_are_kept_whole_and_a_split_by_annotation_is_refused(tmp_path):
    root = write_kilogram(tmp_path, tangrams=30)
    examples = open_benchmark("kilogram", root, 0).load("train")
    table = pd.DataFrame([{f"group_{name}": example.groups.get(name, "") for name in GROUPS} for example in examples])
    for by in ("image", "tangram"):
        check_leaks(table, split_examples(table, by=by), GROUPS)
    with pytest.raises(BadInput, match=r"split leaks: \d+ image group\(s\) are in more than one part.* split by image"):
        split_examples(table, by="annotation")
