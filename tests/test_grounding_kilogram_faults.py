"""KiloGram: files and options that must be refused by name, and faults that must stay in their own split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kilogram_fixture import PART_NAMES, change, records, write_kilogram

from grounding.benchmarks.kilogram import KiloGram
from grounding.errors import BadInput

SPLITS = KiloGram.splits


@pytest.fixture
def own_root(tmp_path) -> Path:
    """20 tangrams that a test may break."""
    return write_kilogram(tmp_path)


def test_unknown_options_are_refused(own_root):
    with pytest.raises(BadInput, match="colour_order 'caption_order' is unknown; accepted: random, caption"):
        KiloGram(own_root, colour_order="caption_order")
    with pytest.raises(BadInput, match="annotations 'full' is unknown; accepted: dense, dense10"):
        KiloGram(own_root, annotations="full")
    with pytest.raises(BadInput, match="image_size 0"):
        KiloGram(own_root, image_size=0)
    with pytest.raises(BadInput, match="candidates 0 "):
        KiloGram(own_root, candidates=0)
    with pytest.raises(BadInput, match="split 'val' is unknown"):
        KiloGram(own_root).tangrams("val")


def test_roots_without_annotations_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"has no dense\.json"):
        KiloGram(tmp_path)
    with pytest.raises(BadInput, match="not a folder"):
        KiloGram(tmp_path / "nowhere")
    (tmp_path / "dense.json").mkdir()
    with pytest.raises(BadInput, match=r"dense\.json cannot be read"):
        KiloGram(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"made-0": {"annotations": [{"whole": ', "are not JSON"),
        ('{"made-0": "na\u00efve"}'.encode("latin-1"), "are not UTF-8: .* at byte 14"),
        (b"", "are not JSON"),
        (b"[]", "hold no tangrams"),
        (b"{}", "hold no tangrams"),
    ],
)
def test_unreadable_annotations_are_refused_by_name(own_root, content, reason):
    (own_root / "dense.json").write_bytes(content)
    with pytest.raises(BadInput, match=rf"dense\.json {reason}"):
        KiloGram(own_root)


def break_drawing(text: str | None):
    def apply(root: Path, tangram: str) -> None:
        path = root / "tangrams-svg" / f"{tangram}.svg"
        path.write_text(text) if text is not None else path.unlink()

    return apply


def break_annotation(**fields):
    return lambda root, tangram: change(root, tangram, 2, **fields)


@pytest.mark.parametrize(
    ("breaks", "file", "reason", "lost"),
    [
        (break_drawing(None), "{}.svg", "does not exist", 6),
        (break_drawing('<svg viewBox="0 0 9 9"><g/></svg>'), "{}.svg", "has no polygons", 6),
        (break_drawing('<svg viewBox="0 0 9 9"><polygon id="1" points="0 0'), "{}.svg", "not XML", 6),
        (break_annotation(part={"8": "head"}), "dense.json", "part names polygon '8', which {}.svg does not have", 1),
        (break_annotation(part={"1": 3}), "dense.json", "the name of part '1' is 3", 1),
        (break_annotation(part=["head"]), "dense.json", "'part' is missing or is no dict", 1),
        (break_annotation(whole={}), "dense.json", "'wholeAnnotation' is missing", 1),
        (break_annotation(whole={"wholeAnnotation": " . "}), "dense.json", "wholeAnnotation is empty", 1),
    ],
)
def test_what_is_broken_is_named_and_moves_no_other_split(own_root, breaks, file, reason, lost):
    tangram = KiloGram(own_root).tangrams("train")[0]
    before = {split: KiloGram(own_root).load(split) for split in SPLITS}
    breaks(own_root, tangram)
    benchmark = KiloGram(own_root)
    with pytest.raises(BadInput) as error:
        benchmark.load("train")
    assert file.format(tangram) in str(error.value)
    assert reason.format(tangram) in str(error.value)
    assert ("; 6 annotations need it" in str(error.value)) == (lost == 6)

    kept = benchmark.load("train", skip_bad=True)
    assert [skipped.reason for skipped in benchmark.skipped] == [str(error.value)]
    assert benchmark.skipped[0].id == f"kilogram/train/{tangram}" + ("/2" if lost == 1 else "")
    assert len(kept) == len(before["train"]) - lost
    captions = {example.id: (example.caption, example.phrases[0].type) for example in before["train"]}
    assert all(captions[example.id] == (example.caption, example.phrases[0].type) for example in kept)
    for split in ("dev", "test"):
        assert benchmark.load(split) == before[split]
        assert benchmark.skipped == []


@pytest.mark.parametrize("record", [{}, [], {"annotations": {"0": {}}}, None])
def test_a_tangram_without_a_list_of_annotations_is_a_fault(own_root, record):
    changed = records(own_root)
    tangram = KiloGram(own_root).tangrams("dev")[1]
    changed[tangram] = record
    (own_root / "dense.json").write_text(json.dumps(changed))
    with pytest.raises(BadInput, match=rf"dense\.json, tangram '{tangram}': 'annotations' is missing"):
        KiloGram(own_root).load("dev")


def test_a_tangrams_name_leads_to_no_other_folder(own_root):
    changed = records(own_root)
    changed["../made-0"] = changed.pop("made-0")
    (own_root / "dense.json").write_text(json.dumps(changed))
    benchmark = KiloGram(own_root)
    split = next(split for split in SPLITS if "../made-0" in benchmark.tangrams(split))
    with pytest.raises(BadInput, match="not a plain file name"):
        benchmark.load(split)


def test_more_parts_than_colours_is_a_fault(own_root):
    path = own_root / "tangrams-svg" / "made-0.svg"
    path.write_text(path.read_text().replace("<defs/>", '<polygon id="8" points="9 9 20 9 9 20"/>'))
    change(own_root, "made-0", 0, part=dict(zip("1234567", PART_NAMES, strict=True)))
    benchmark = KiloGram(own_root)
    split = next(split for split in SPLITS if "made-0" in benchmark.tangrams(split))
    with pytest.raises(BadInput, match="8 parts; accepted: up to 7"):
        benchmark.load(split)
