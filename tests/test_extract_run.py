"""A run from end to end on the tiny model: tables, rows, resuming, refusals, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_model import BrokenImage, TinyModel, tiny_games
from tiny_run import ALL_VIEWS, IDENTITY, contents, interrupt_at, run_tiny

from extract.reader import Run
from extract.run import extract
from extract.store import ShardWriter, read_shards, verify_run
from grounding.errors import BadInput, RunFailed
from grounding.examples import Phrase, Region


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("run") / "x")


def test_files_are_those_of_the_design(run):
    names = {path.name for path in run.path.iterdir()}
    views = ("meta", *ALL_VIEWS)
    expected = {f"shard-{k:05d}.{view}.h5" for k in range(3) for view in views}
    assert names == expected | {f"shard-{k:05d}.json" for k in range(3)} | {"manifest.json", "activations.h5"}
    assert verify_run(run.path) == []


def test_tables_describe_the_examples(run):
    games = tiny_games(10)
    assert list(run.examples["id"]) == [game.id for game in games]
    assert list(run.examples["group_image"][:5]) == ["image-0", "image-1", "image-2", "image-3", "image-0"]
    assert set(run.examples["group_tangram"]) == {""}
    assert (run.examples["grid_rows"] == 12).all()
    assert (run.examples["grid_columns"] == 4).all()
    assert list(run.examples["target_y"]) == pytest.approx([(game.target_index + 0.5) / 3 for game in games])
    assert (run.examples["answer_index"] == 0).all()
    assert list(run.examples["task_correct"]) == [game.target_index == 0 for game in games]
    assert list(run.examples["text_tokens"]) == [len(game.caption) + 1 for game in games]
    phrases = [(game.id, phrase) for game in games for phrase in game.phrases]
    assert list(run.examples["id"][run.phrases["example"]]) == [name for name, _ in phrases]
    assert list(run.phrases["id"]) == [phrase.id for _, phrase in phrases]
    assert run.phrases["text"][1] == games[0].caption[12:18] + " " + games[0].caption[19:20]
    assert json.loads(run.phrases["spans"][1]) == [[12, 18], [19, 20]]
    assert np.isfinite(run.phrases[["iou", "pointing", "predicted_x1", "predicted_y2"]]).all(axis=None)
    assert run.phrases["iou"].between(0, 1).all()


def test_a_picture_alone_is_no_task_that_the_run_knows_an_answer_to(tmp_path):
    alone = run_tiny(tmp_path / "x", tiny_games(4, images=1)).examples
    assert (alone["answer_index"] == -1).all()
    assert alone[["task_score", "answer_x", "answer_y"]].isna().all(axis=None)
    assert not alone["task_correct"].any()


def test_regions_point_to_their_phrases_across_shards(run):
    annotated = run.regions[run.regions["kind"] == "annotated"]
    assert (run.phrases["example"].to_numpy()[annotated["phrase"]] == annotated["example"]).all()
    assert (run.phrases["image_index"].to_numpy()[annotated["phrase"]] == annotated["image_index"]).all()
    expected = [region.box for game in tiny_games(10) for phrase in game.phrases for region in phrase.regions]
    np.testing.assert_allclose(annotated[["x1", "y1", "x2", "y2"]], expected, rtol=1e-6)
    extra = run.regions[run.regions["kind"] == "extra"]
    assert (extra["phrase"] == -1).all()
    assert (extra["example"].value_counts() == 8).all()


def test_rows_are_aligned_with_the_tables_and_joined_over_shards(run):
    spans = [json.loads(text) for text in run.phrases["spans"]]
    means = [np.mean(np.concatenate([np.arange(*span) for span in phrase])) for phrase in spans]
    np.testing.assert_allclose(run.read("block.1", "phrase")[:, 0], means, rtol=1e-3)
    with h5py.File(run.path / "activations.h5") as file:
        np.testing.assert_array_equal(file["block.1/phrase"][:].astype(np.float32), run.read("block.1", "phrase"))
        assert file["block.1/phrase"].dtype == np.float16
        assert file["block.1/attention"].shape == (file["meta/attention_offsets"][-1], 2)
        offsets = file["meta/attention_offsets"][:]
        third = file["block.0/attention"][offsets[3] : offsets[4]].reshape(12, 4, 2)
    np.testing.assert_array_equal(run.attention("block.0", 3), third.transpose(2, 0, 1).astype(np.float32))
    columns = run.regions[["x1", "x2"]].mean(axis=1) * 4 - 0.5
    np.testing.assert_allclose(run.read("block.0", "region")[:, 1], columns.clip(0, 3), atol=0.5)


def test_partners_supply_the_streams_a_site_lacks(run):
    np.testing.assert_array_equal(run.read("decoder.0", "phrase"), run.read("block.1", "phrase"))
    np.testing.assert_array_equal(run.read("text.0", "region"), run.read("block.0", "region"))
    assert run.site("decoder.0").views == ("region", "attention", "tokens")
    alone = {site.name for site in run.sites}
    assert alone == {"text.0", "block.0", "block.1", "decoder.0"}


def test_partners_come_along_with_a_chosen_site(tmp_path):
    chosen = run_tiny(tmp_path / "x", sites=["decoder.0"], views=["phrase", "region"])
    assert [site.name for site in chosen.sites] == ["block.1", "decoder.0"]
    assert chosen.read("decoder.0", "phrase").shape == (len(chosen.phrases), 16)
    with pytest.raises(BadInput, match=r"site 'block.1' has no view 'attention' in this run; it has phrase, region"):
        chosen.attention("block.1", 0)


def test_reading_chosen_rows_in_any_order(run):
    whole = run.read("block.0", "region")
    for rows in ([0], [5, 3, 3, 90], list(range(0, 100, 2)), [len(whole) - 1, 0], []):
        np.testing.assert_array_equal(run.read("block.0", "region", rows), whole[rows])
    with pytest.raises(BadInput, match=r"block.0/region: rows 0 to 1000; accepted: 0 to \d+"):
        run.read("block.0", "region", [0, 1000])
    with pytest.raises(BadInput, match="view 'pixels' is unknown"):
        run.read("block.0", "pixels")
    with pytest.raises(BadInput, match=r"site 'block.9' is unknown; accepted: text.0, block.0"):
        run.read("block.9", "region")
    with pytest.raises(BadInput, match="phrase_row -1 is out of range"):
        run.attention("block.0", -1)


def test_tokens_come_as_text_image_queries(run):
    states = run.tokens("block.0", 6)
    text = int(run.examples["text_tokens"][6])
    assert states.shape == (text + 48, 16)
    np.testing.assert_array_equal(states[1:text, 0], np.arange(text - 1))
    np.testing.assert_array_equal(run.text_offsets(6)[1:, 0], np.arange(text - 1))
    np.testing.assert_array_equal(states[text:, 0], np.repeat(np.arange(12), 4))
    np.testing.assert_array_equal(run.tokens("decoder.0", 9)[:, 0], np.arange(4))


def test_a_run_that_is_there_is_opened_again_without_the_model(run):
    class Idle(TinyModel):
        def forward(self, batch):
            raise AssertionError("the model ran")

    again = extract(Idle(), tiny_games(10), run.path, identity=IDENTITY, batch_size=3, shard_size=4, views=ALL_VIEWS)
    assert len(again.phrases) == len(run.phrases)


@pytest.mark.parametrize("stop", range(5))
def test_stopped_and_resumed_gives_the_same_bytes(run, tmp_path, monkeypatch, stop):
    out = tmp_path / "x"
    interrupt_at(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(out)
    monkeypatch.undo()
    if stop < 2:  # two batches a shard: none is complete
        assert not out.exists()
    else:
        partial = Run.open(out, allow_partial=True)
        assert len(partial.examples) == 4 * (stop // 2)
        assert not [path for path in out.iterdir() if "tmp" in path.name or "claim" in path.name]
        with pytest.raises(BadInput, match=rf"has {stop // 2} of 3 shards"):
            Run.open(out)
    run_tiny(out)
    assert contents(out) == contents(run.path)
    for path in out.glob("shard-*.h5"):
        assert path.read_bytes() == (run.path / path.name).read_bytes()


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bytes(run, tmp_path):
    program = (
        "import os, sys; sys.path[:0] = [sys.argv[2], sys.argv[3]]\n"
        "from pathlib import Path\n"
        "from extract.store import ShardWriter\n"
        "import test_extract_run as t\n"
        "calls = iter(range(100)); append = ShardWriter.append\n"
        "def dying(self, *rows):\n"
        "    if next(calls) == 40: os.kill(os.getpid(), 9)\n"
        "    append(self, *rows)\n"
        "ShardWriter.append = dying\n"
        "t.run_tiny(Path(sys.argv[1]))\n"
    )
    here = Path(__file__).resolve().parent
    out = tmp_path / "x"
    killed = subprocess.run([sys.executable, "-c", program, out, here, here.parent], capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    left = {path.name for path in out.iterdir()}
    assert "shard-00000.json" in left
    assert "shard-00001.claim" in left
    assert any(".tmp-" in name for name in left)
    run_tiny(out)
    assert contents(out) == contents(run.path)
    assert {path.name for path in out.iterdir()} == {path.name for path in run.path.iterdir()}


def test_two_workers_share_the_shards(run, tmp_path):
    out, done, errors = tmp_path / "x", [], []

    def work():
        try:
            run_tiny(out, progress=lambda done_so_far, total: done.append(done_so_far))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert contents(out) == contents(run.path)


def test_a_full_disk_keeps_the_complete_shards(run, tmp_path, monkeypatch):
    commit = ShardWriter.commit

    def full(self, *arguments, **notes):
        if self.shard == 1:
            raise OSError(28, "No space left on device")
        commit(self, *arguments, **notes)

    monkeypatch.setattr(ShardWriter, "commit", full)
    with pytest.raises(RunFailed, match=r"No space left on device; complete shards are kept"):
        run_tiny(tmp_path / "x")
    monkeypatch.undo()
    assert len(Run.open(tmp_path / "x", allow_partial=True).examples) == 4
    run_tiny(tmp_path / "x")
    assert contents(tmp_path / "x") == contents(run.path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_refused_and_nothing_is_left(tmp_path, workers):
    games = tiny_games(10)
    games[2] = replace(games[2], images=(games[2].images[0], BrokenImage("tree.png"), games[2].images[2]))
    with pytest.raises(BadInput, match=r"^image tree.png cannot be read$"):
        run_tiny(tmp_path / "x", games=games, workers=workers)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("skip_bad", [False, True])
def test_an_image_that_breaks_in_the_middle_keeps_the_shards_before_it(run, tmp_path, skip_bad):
    games, out = tiny_games(10), tmp_path / "x"
    whole, games[6] = games[6], replace(games[6], images=(BrokenImage("tree.png"),) * 3)
    with pytest.raises(BadInput, match=r"^image tree.png cannot be read$"):
        run_tiny(out, games=games)
    assert [path.name for path in out.glob("shard-*.json")] == ["shard-00000.json"]
    assert not [path.name for path in out.iterdir() if "tmp" in path.name or "claim" in path.name]
    before = (out / "shard-00000.json").stat().st_mtime_ns
    if not skip_bad:
        games[6] = whole  # mended
    found = run_tiny(out, games=games, skip_bad=skip_bad)
    assert (out / "shard-00000.json").stat().st_mtime_ns == before
    assert len(found.examples) == 10 - skip_bad
    assert (contents(out) == contents(run.path)) is not skip_bad


def test_skip_bad_leaves_broken_examples_out_and_lists_them(run, tmp_path):
    games = tiny_games(10)
    for bad in (2, 4, 5, 6):
        games[bad] = replace(games[bad], images=(BrokenImage(f"{bad}.png"),) * 3)
    found = run_tiny(tmp_path / "x", games=games, skip_bad=True)
    kept = [0, 1, 3, 7, 8, 9]
    assert list(found.examples["id"]) == [f"game-{i}" for i in kept]
    assert [skip["id"] for skip in found.manifest["skipped"]] == ["game-2", "game-4", "game-5", "game-6"]
    assert found.manifest["skipped"][0]["reason"] == "image 2.png cannot be read"
    assert found.manifest["rows"]["examples"] == 6
    rows = np.flatnonzero(run.phrases["example"].isin(kept))
    np.testing.assert_allclose(found.read("block.1", "phrase"), run.read("block.1", "phrase", rows), atol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans": ((0, 999),)}, r"span \(0, 999\) does not fit"),
        ({"regions": (Region((0.5, 0.5, 1.5, 0.8)),)}, "is not xyxy within 0..1"),
        ({"regions": (Region((0.5, float("nan"), 0.7, 0.8)),)}, "is not xyxy within 0..1"),
        ({"regions": (Region((0.5, 0.5, 0.5, 0.8)),)}, "has no area"),
    ],
)
def test_impossible_annotations_are_refused_wherever_the_examples_come_from(tmp_path, change, message):
    games = tiny_games(3)
    games[1] = replace(games[1], phrases=(replace(games[1].phrases[0], **change),))
    with pytest.raises(BadInput, match=rf"example 'game-1', phrase .*{message}"):
        run_tiny(tmp_path / "x", games=games)
    assert not (tmp_path / "x").exists()
    found = run_tiny(tmp_path / "x", games=games, skip_bad=True)
    assert [skip["id"] for skip in found.manifest["skipped"]] == ["game-1"]


def test_a_run_with_a_whole_shard_of_broken_examples(tmp_path):
    games = [replace(game, images=(BrokenImage(),) * 3) for game in tiny_games(4)] + tiny_games(6)[4:]
    found = run_tiny(tmp_path / "x", games=games, skip_bad=True)
    assert list(found.examples["id"]) == ["game-4", "game-5"]
    assert found.read("block.0", "phrase").shape == (len(found.phrases), 16)
    with pytest.raises(BadInput, match="none of the 4 examples could be read"):
        run_tiny(tmp_path / "y", games=games[:4], skip_bad=True)


def test_phrases_over_the_token_limit_are_dropped_and_listed(tmp_path):
    games = tiny_games(3)
    long = games[1].caption.ljust(60, ".") + "late"
    late = Phrase("late", "end", ((60, 64),), games[1].phrases[0].regions, games[1].target_index)
    games[1] = replace(games[1], caption=long, phrases=(*games[1].phrases, late))
    found = run_tiny(tmp_path / "x", games=games)
    assert found.manifest["dropped_phrases"] == [["game-1", "late"]]
    assert "late" not in set(found.phrases["id"])
    assert len(found.read("block.0", "phrase")) == len(found.phrases)


def test_a_phrase_without_regions_has_no_iou(tmp_path):
    games = tiny_games(2)
    games[0] = replace(games[0], phrases=(replace(games[0].phrases[0], regions=()), *games[0].phrases[1:]))
    found = run_tiny(tmp_path / "x", games=games)
    assert found.phrases["iou"].isna().tolist() == [True] + [False] * (len(found.phrases) - 1)
    assert found.phrases["predicted_x1"].notna().all()


def test_values_that_do_not_fit_stop_the_run(tmp_path):
    model = TinyModel()
    model.words.weight.data[:, 5] = 1e5
    with pytest.raises(BadInput, match=r"site 'text.0': \d+ phrase values do not fit float16; use --dtype float32"):
        extract(model, tiny_games(4), tmp_path / "x", identity=IDENTITY)
    assert not (tmp_path / "x").exists()
    found = extract(model, tiny_games(4), tmp_path / "x", identity=IDENTITY, dtype="float32")
    assert found.read("text.0", "phrase")[:, 5] == pytest.approx(1e5)


def test_a_changed_byte_is_found_and_only_its_shard_redone(run, tmp_path):
    out = tmp_path / "x"
    shutil.copytree(run.path, out)
    path = out / "shard-00001.region.h5"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    assert verify_run(out) == ["shard-00001.region.h5 has other bytes than were written"]
    path.unlink()
    assert verify_run(out) == ["shard-00001.region.h5 is missing"]
    with pytest.raises(BadInput, match=r"lacks shard-00001.region.h5"):
        Run.open(out)
    run_tiny(out)
    assert verify_run(out) == []
    assert contents(out) == contents(run.path)


def test_the_manifest_says_how_it_was_made(run):
    manifest = run.manifest
    assert manifest["complete"] is True
    assert manifest["identity"]["checkpoint"] == "c0ffee"
    assert manifest["identity"]["model"] == {"name": "tiny", "width": 16, "heads": 2, "depth": 2, "size": 32}
    assert manifest["made_with"]["batch_size"] == 3
    assert "torch" in manifest["made_with"]["versions"]
    assert manifest["rows"] == {"examples": 10, "phrases": len(run.phrases), "regions": len(run.regions)}
    assert [shard.begin for shard in read_shards(run.path)] == [0, 4, 8]


def test_half_precision_computes_close_values(run, tmp_path):
    half = run_tiny(tmp_path / "x", precision="bf16")
    np.testing.assert_allclose(half.read("block.1", "region"), run.read("block.1", "region"), atol=0.1)
    assert half.manifest["identity"]["precision"] == "bf16"


def test_progress_counts_to_the_end(tmp_path):
    seen = []
    run_tiny(tmp_path / "x", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 10), (3, 10), (4, 10), (7, 10), (8, 10), (10, 10)]


def test_the_reader_needs_no_torch(run):
    program = (
        "import sys; from extract.reader import Run\n"
        "run = Run.open(sys.argv[1]); run.read('block.0', 'phrase'); run.attention('block.0', 0); run.examples\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", program, run.path], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_that_was_moved_still_opens(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "moved")
    with h5py.File(tmp_path / "moved" / "activations.h5") as file:
        assert np.abs(file["block.0/region"][:]).sum() > 0
    assert len(Run.open(tmp_path / "moved").read("block.0", "region"))
