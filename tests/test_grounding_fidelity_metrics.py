"""Case C of the recordings: every array and every figure of the originals' evaluation, from our public functions.

Each comparison takes one recording; none of its arrays may be left out, and no recording of case C may be without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from reference_cases import Case

from grounding.benchmarks import open_benchmark
from grounding.examples import Example, Phrase, PhrasePrediction, ReferenceGame, Region
from grounding.metrics.areas import draw_polygons
from grounding.metrics.bars import success_bars
from grounding.metrics.boxes import best_of, hits, pad_boxes, ranked_ious, recall_at
from grounding.metrics.heatmaps import THRESHOLDS, choose_threshold
from grounding.metrics.joint import pearson
from grounding.metrics.measure import Measure, PhraseItem
from grounding.metrics.phrases import heatmap_curves, phrase_scores
from grounding.metrics.sensitivity import sensitivity_table
from grounding.metrics.tasks import (
    consistency,
    distance_accuracy,
    game_accuracy,
    mean_distance,
    nested_accuracy,
    sdr_distances,
)
from grounding.models.answers import answer, point_score, target_point

PAPER = Measure("paper")
OUTLINES = Measure("paper", "outlines")
LOSSES = {"tangram_loss"}  # the original averages them beside the accuracy; evaluation here knows no losses


def item(
    number: int, size: Sequence[int], regions: Sequence[Region], prediction: Mapping[str, np.ndarray]
) -> PhraseItem:
    """A phrase of a single image of ``size`` (height, width) with what was predicted for it."""
    phrase = Phrase(f"p{number}", "", ((0, 1),), tuple(regions))
    example = Example(f"e{number}", "tune", ("",), "a", (phrase,), ReferenceGame(0))
    return PhraseItem(example, phrase, PhrasePrediction(phrase.id, **prediction), (int(size[0]), int(size[1])))


def true_boxes(case: Case) -> list[np.ndarray]:
    """The boxes of each phrase."""
    return np.split(case["gt_boxes"], case["gt_counts"].cumsum()[:-1])


def compare_boxes(case: Case) -> None:
    """Ranked boxes: the study's own settings, and the two others that its functions have."""
    boxes, sizes, truth = case["pred_boxes"], case["image_hw"], true_boxes(case)
    items = [
        item(n, size, [Region(tuple(box)) for box in true.tolist()], {"boxes": b, "image_index": np.zeros(100, int)})
        for n, (size, true, b) in enumerate(zip(sizes, truth, boxes, strict=True))
    ]
    table = sensitivity_table(items, PAPER)
    found = {key: rows["iou"].to_numpy() for key, rows in table.groupby(["protocol", "boxes"], sort=False)}
    assert ("all", "all") not in found  # as in the original
    single = np.array([len(true) == 1 for true in truth])
    summaries: dict[str, dict[str, float]] = {setting: {} for setting in case.manifest["summaries"]}
    for (protocol, rank), best in found.items():
        exact = best_of(ranked_ious(boxes, pad_boxes(truth), protocol), None if rank == "all" else int(rank)).numpy()
        unions = exact if protocol != "all" else np.where(single, exact, best)  # unions are drawn in any setting
        settings = {"discretised": best, "not_discretised": unions}
        if rank != "all":
            settings["use_heatmap"] = best.astype(np.float32)
        for setting, ious in settings.items():
            case.close(torch.tensor(ious), f"{setting}_maxiou_{protocol}_{'-1' if rank == 'all' else rank}")
            summaries[setting] |= figures(ious, protocol, "100" if rank == "all" else rank)
    assert summaries == {name: approximately(one, 1e-7) for name, one in case.manifest["summaries"].items()}
    compare_links(case, found)


def figures(ious: np.ndarray, protocol: str, rank: str = "1") -> dict[str, float]:
    """Recall and mean IoU of phrases ``[P]``, by the original's names."""
    recall = hits(torch.tensor(ious)).double().mean().item()
    return {f"recall({protocol})@{rank}": recall, f"mean IOU({protocol})@{rank}": float(ious.mean())}


def approximately(expected: Mapping[str, float], tolerance: float = 1e-12) -> object:
    """The same names, and values within an absolute tolerance."""
    return pytest.approx(dict(expected), rel=0, abs=tolerance)


def compare_links(case: Case, found: Mapping[tuple[str, str], np.ndarray]) -> None:
    """Means over an image's phrases, their correlations with the task, and bars of success."""
    distance, rows = case["task_dist"], {}
    for protocol in ("merged", "any", "all"):
        in_float32 = (case["gt_counts"] > 1) & (protocol == "all")
        for rank, ious in ((rank, ious) for (of, rank), ious in found.items() if of == protocol):
            rows[f"IOU@{rank} ({protocol})"] = image_means(ious, case["image_number"], in_float32)
            reached = (ious >= 0.5).astype(float)
            rows[f"recall@{rank} ({protocol})"] = image_means(reached, case["image_number"], np.zeros_like(in_float32))
    assert list(rows) == list(case.manifest["correlations"])
    case.close(torch.tensor(np.stack(list(rows.values()))), "corr_x")
    solved = (distance < 80).astype(float)
    bars = [success_bars(means, solved)["success"].fillna(0) for means in rows.values()]
    case.close(torch.tensor(np.stack(bars)), "bar_values")
    for name, means in rows.items():
        links = {"pearson_vs_log_dist": np.log(distance + 1), "point_biserial_vs_success80": solved}
        of_name = {kind: pearson(means, task) for kind, task in links.items()}
        assert of_name == approximately(case.manifest["correlations"][name], 1e-9)


def image_means(values: np.ndarray, images: np.ndarray, in_float32: np.ndarray) -> np.ndarray:
    """Means by image; in single precision where all of its values are, as numpy takes them from the original's lists.

    Evaluation takes them in double precision always: the difference is in the eighth digit.
    """
    means = pd.Series(values).groupby(images).mean().to_numpy()
    single = np.array([values[images == image].astype(np.float32).mean() for image in np.unique(images)])
    np.testing.assert_allclose(means, single, rtol=0, atol=1e-7)
    return np.where(pd.Series(in_float32).groupby(images).all(), single, means)


def compare_heatmaps(case: Case) -> None:
    """All thresholds at once, the two ways to choose one, and thresholds that are given, one at a time."""
    maps = [*case["heatmaps"].astype(np.float32)[:, None], *case["heatmaps_touchdown"].astype(np.float32)[:, None]]
    items = [
        item(n, size, [Region(tuple(box)) for box in true.tolist()], {"heatmap": heatmap})
        for n, (size, true, heatmap) in enumerate(zip(case["image_hw"], true_boxes(case), maps, strict=True))
    ]
    at_once = curves_by_protocol(items, THRESHOLDS)
    for protocol, curves in at_once.items():
        case.close(torch.tensor(curves.T), f"iou_by_threshold_{protocol}")
    for way, result in case.manifest["results"].items():
        given = way == "fixed_thresholds"
        levels = {
            protocol: result["thresholds"][protocol] if given else choose_threshold(curves, "tune", way).value
            for protocol, curves in at_once.items()
        }
        assert levels == approximately(result["thresholds"])
        few, summary = sorted(set(levels.values())), {}
        for protocol, curves in curves_by_protocol(items, few).items():
            alone = curves[:, few.index(levels[protocol])]
            np.testing.assert_array_equal(alone, at_once[protocol][:, THRESHOLDS.index(levels[protocol])])
            case.close(torch.tensor(alone), f"{way.removesuffix('_thresholds')}_maxiou_{protocol}")
            summary |= figures(alone, protocol)
        assert summary == approximately(result["summary"], 1e-6)


def curves_by_protocol(items: Sequence[PhraseItem], thresholds: Sequence[float]) -> dict[str, np.ndarray]:
    """IoU ``[P, T]`` of heatmaps at ascending thresholds: fewer than four are counted in another way than many."""
    table = sensitivity_table(items, PAPER, thresholds)
    return {str(of): rows["iou"].to_numpy(copy=True).reshape(len(items), -1) for of, rows in table.groupby("protocol")}


def compare_polygons(case: Case) -> None:
    """Outlines as targets: drawn as the original draws them, then as any heatmap."""
    points = [flat.reshape(-1, 2) for flat in np.split(case["poly_coords"], case["poly_lengths"].cumsum()[:-1])]
    ends, maps = case["poly_counts"].cumsum(), case["heatmaps"].astype(np.float32)[:, None]
    items, areas = [], []
    for n, (end, count, size) in enumerate(zip(ends, case["poly_counts"], case["image_hw"].tolist(), strict=True)):
        outlines = [tuple((float(x), float(y)) for x, y in one) for one in points[end - count : end]]
        regions = [Region((*np.min(one, 0).tolist(), *np.max(one, 0).tolist()), (one,)) for one in outlines]
        items.append(item(n, size, regions, {"heatmap": maps[n]}))
        areas.append(int(draw_polygons(outlines, *size).sum()))
    assert areas == case["target_mask_area"].tolist()
    curves = heatmap_curves(items, measure=OUTLINES)
    case.close(torch.tensor(curves.T), "iou_by_threshold")
    level = choose_threshold(curves, "tangram_val").value
    assert {"all": level} == approximately(case.manifest["thresholds"])
    alone = phrase_scores(items, level, OUTLINES, ("all",))["iou"]
    case.close(torch.tensor(alone), "maxiou_all")
    assert figures(alone, "all") == approximately(case.manifest["summary"], 1e-6)


def task_figures(distances: np.ndarray, captions: np.ndarray, moved: np.ndarray) -> dict[str, float]:
    """The figures of spatial description, by the original's names."""
    found = {f"consistency@{limit}px": share for limit, share in consistency(distances, captions).items()}
    for part, kept in (("", moved | True), (" (main)", ~moved), (" (propagated)", moved)):
        found |= {f"accuracy@{limit}px{part}": share for limit, share in distance_accuracy(distances[kept]).items()}
        found |= {f"mean distance{part}": mean_distance(distances[kept]), f"num_examples{part}": int(kept.sum())}
    return found


def compare_tasks(case: Case) -> None:
    """Distances of coordinates and of heatmaps' cells, each split's figures, and the accuracies of both games."""
    distances, captions, moved = case["distance_px"], case["caption_id"], case["is_propagated"]
    case.close(torch.tensor(sdr_distances(case["pred_xy"], case["target_xy"])), "distance_px")
    cells, targets = (case[f"heat_{name}_rowcol"][:, ::-1] / [464, 100] for name in ("pred", "target"))
    case.close(torch.tensor(cells), "heat_pred_center")
    on_grid = sdr_distances(cells, targets)
    case.close(torch.tensor(on_grid), "heat_distance_px")
    tune, manifest = case["split_is_tune"], case.manifest
    parts = {"tune": tune, "dev": ~tune}
    assert task_figures(distances, captions, moved) == approximately(manifest["eval_sdr"], 1e-6)
    of_maps = task_figures(on_grid, captions[:12], np.arange(12) % 2 == 0)
    assert of_maps == approximately(manifest["eval_sdr_heatmaps"], 1e-4)
    assert set(parts) == set(manifest["touchdown_evaluator"])
    for split, kept in parts.items():
        found = task_figures(distances[kept], captions[kept], moved[kept])
        assert found == approximately(manifest["touchdown_evaluator"][split], 1e-6)
    correct = case["tangram_correct"]
    for evaluator, accuracy in (
        ("tangram_evaluator", nested_accuracy(correct, case["tangram_ann"], case["tangram_name"])),
        ("flickr_evaluator", game_accuracy(correct)),
    ):
        (expected,) = manifest[evaluator].values()
        assert {"num_examples": len(correct), "accuracy": accuracy} == approximately(
            {name: value for name, value in expected.items() if name != "avg_loss"}
        )


def game_of(count: int, target: int = 0) -> Example:
    """A game of ``count`` candidates."""
    return Example("g", "dev", ("",) * count, "a", (), ReferenceGame(target))


def compare_decoding(case: Case) -> None:
    """Candidates from coordinates and from rows of a map. On a border between two, float32 may fall one short or over.

    There the candidate is the one that the pixel's centre, or the number in double precision, lies in (see
    ``docs/differences.md``).
    """
    points, counts = case["coords_xy"].astype(np.float64), case["coords_n"]
    indices, targets = case["coords_pred_index"], case["coords_target"].astype(np.float64)
    on_border = (case["coords_xy"][:, 1] * counts.astype(np.float32)) % 1 == 0
    scores, differing = [], []
    for n, (point, count, target) in enumerate(zip(points.tolist(), counts.tolist(), targets.tolist(), strict=True)):
        example = game_of(count, int(target[1] * count))
        assert target_point(example) == pytest.approx(tuple(target), abs=1e-7)
        scores.append(point_score(example, tuple(point)))
        if answer(example, tuple(point), 0.0, ()).answer != indices[n]:
            differing.append(n)
    case.close(-torch.tensor(scores, dtype=torch.float64), "coords_score")
    assert on_border[differing].all()
    assert 0 < len(differing) < on_border.sum() / 2
    assert (~on_border).sum() == 60  # those drawn at random: all equal
    for name in [name for name in case.arrays if name.startswith("rows_")]:
        count, height = (int(part[1:]) for part in name.split("_")[1:])
        found = [answer(game_of(count), (0.5, (row + 0.5) / height), 0.0, ()).answer for row in range(height)]
        wrong = case.manifest["arrays"][name]["rows_differing_from_exact_integer_division"]
        assert np.flatnonzero(case[name] != found).tolist() == wrong


def compare_flickr(case: Case, folder: Path) -> None:
    """MDETR's recall on Flickr30k, from annotation files that our reader opens."""
    for name, text in case.manifest["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    benchmark = open_benchmark("flickr30k", folder, candidates=1)
    pairs = [(example, phrase) for example in benchmark.load("test") for phrase in example.phrases]
    sentences = ["_".join(example.id.split("/")[2:]) for example, _ in pairs]
    assert sentences == case["pred_sentence"].tolist()
    truth = pad_boxes([np.array([region.box for region in phrase.regions]) for _, phrase in pairs])
    sizes = np.array([benchmark.image_sizes[Path(example.images[0])] * 2 for example, _ in pairs])
    of_kind = dict(kinds_of([phrase.type for _, phrase in pairs]))
    assert set(case.manifest["recall"]) == {"ANY", "MERGED"}
    for protocol, recall in case.manifest["recall"].items():
        ious = ranked_ious(case["pred_boxes"] / sizes[:, None], truth, protocol.lower())
        assert set(recall) == {"1", "5", "10", "-1"}
        for rank, expected in recall.items():
            k = None if rank == "-1" else int(rank)
            assert {kind: recall_at(ious[of], k) for kind, of in of_kind.items()} == approximately(expected)


def kinds_of(types: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Which phrases are of each category; a phrase may be of several, and all are of ``all``."""
    split = [kind.split("/") for kind in types]
    yield "all", np.ones(len(types), dtype=bool)
    for kind in {one for several in split for one in several}:
        yield kind, np.array([kind in several for several in split])


COMPARISONS: dict[str, Callable[[Case], None]] = {
    "C_boxes": compare_boxes,
    "C_decode": compare_decoding,
    "C_heatmaps": compare_heatmaps,
    "C_polygons": compare_polygons,
    "C_sdr": compare_tasks,
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_array_equals_the_recorded_one(shared_data, name):
    case = Case(shared_data / "reference", name)
    COMPARISONS[name](case)
    assert case.unread == (LOSSES if name == "C_sdr" else set())


def test_the_recall_of_mdetr_equals_the_recorded_one(shared_data, tmp_path):
    case = Case(shared_data / "reference", "C_flickr")
    compare_flickr(case, tmp_path)
    assert not case.unread


def test_no_recording_of_case_c_is_left_out(shared_data):
    recorded = {path.stem for path in (shared_data / "reference").glob("C_*.npz")}
    assert recorded == {*COMPARISONS, "C_flickr"}
