"""What the report says of phrases: probes beside their controls, those left out, outlines that share a place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake_gallery import SITES, make_example, make_run
from report_browser import until
from report_pages import PlantedProbes, by_id, chunk

from grounding.examples import Phrase
from visualize.report import Subject, write_report

pytestmark = pytest.mark.slow


def found_by(probes: dict[str, tuple[int, ...]]) -> pd.DataFrame:
    """Items of a sweep in which each probe finds every phrase at the layers of these numbers."""
    return pd.DataFrame(
        [
            {"question": "alignment", "probe": probe, "site": site, "seed": 0, "phrase": phrase, "iou": np.nan,
             "correct": float(layer in layers)}
            for probe, layers in probes.items()
            for phrase in range(3)
            for layer, site in enumerate(SITES)
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("probes", "said", "hidden"),
    [
        ({"linear": (0, 1, 2)}, "at 3 of 3 layers: it can be read inside", True),
        (
            {"linear": (0, 1, 2), "region-only": ()},
            "at 3 of 3 layers, where no control (region-only) does: it can",
            True,
        ),
        (
            {"linear": (0, 1), "region-only": (0, 1, 2), "concatenation": (1,)},
            "at 2 of 3 layers, last at block.1; so does a control (region-only, concatenation) at each of them: it "
            "tells nothing of the model.",
            False,
        ),
        (
            {"linear": (0, 1, 2), "region-only": (2,)},
            "at 3 of 3 layers; at 1 of them a control (region-only) does too: it can",
            True,
        ),
        (
            {"linear": (0, 1), "region-only": (1,)},
            "last at block.1; at 1 of them a control (region-only) does too.",
            False,
        ),
        ({"linear": (), "region-only": (1,)}, "finds it at 0 of 3 layers.", False),
    ],
)  # fmt: skip
def test_what_a_probe_finds_is_held_against_its_controls(tmp_path, look, probes, said, hidden):
    examples = [make_example(number) for number in range(2)]
    run = make_run(examples)
    run.phrases["iou"] = 0.1
    run.phrases["predicted_image_index"] = run.phrases["image_index"]
    write_report([Subject(run, "a", items=found_by(probes))], tmp_path / "out", by_id(examples))
    seen = look(tmp_path / "out")
    seen.go("/example/fake%2F000?phrase=1")
    seen.drawn()
    words = seen.page.locator(".why").inner_text()
    assert "The linear probe (alignment, among regions of its own image) finds it at" in words
    assert said in words
    assert ("can be read inside" in words) == hidden


def test_a_probe_that_is_told_the_image_knows_nothing_of_a_model_that_looks_in_another(tmp_path, look):
    examples = [make_example(number) for number in range(2)]
    run = make_run(examples)
    run.phrases["iou"] = 0.1
    run.phrases["predicted_image_index"] = (run.phrases["image_index"] + 1) % 6
    told = found_by({"linear": (0, 1, 2)})
    everywhere = told.assign(question="localisation", iou=0.3)
    items = pd.concat([told, everywhere], ignore_index=True)
    for part, tuned in (("validation", True), ("test", False)):
        probed = PlantedProbes(run, np.ones((len(run.phrases), 24, 4)), {0: part})
        write_report([Subject(run, "a", items=items, probed=probed)], tmp_path / part, by_id(examples))
        seen = look(tmp_path / part)
        seen.go("/example/fake%2F000?phrase=1")
        seen.drawn()
        words = seen.page.locator(".why li").all_inner_texts()
        (alone,) = [line for line in words if "(alignment" in line]
        (found,) = [line for line in words if "(localisation)" in line]
        assert "read inside" not in alone
        assert "finds it at 3 of 3 layers: it can be read inside" in found  # it chose among all images
        assert [line.endswith("The probe was tuned with this image.") for line in (alone, found)] == [tuned] * 2
        assert any(line.startswith("The middle of its box is") for line in words)
    cell = seen.page.locator(".probe-layers td.cell").last
    assert cell.get_attribute("title").endswith("found, IoU 0.30")


def test_phrases_beyond_the_token_limit_are_listed_and_counted(tmp_path, look):
    example = make_example(0)
    kept = len(example.phrases)
    run = make_run([example])
    run.phrases["iou"] = 0.9
    run.manifest["dropped_phrases"] = [[example.id, "lost"], [example.id, "unknown"]]
    lost = Phrase("lost", "square", ((0, 3),), example.phrases[0].regions)
    write_report(
        [Subject(run, "a")], tmp_path / "out", {example.id: replace(example, phrases=(*example.phrases, lost))}
    )
    seen = look(tmp_path / "out")
    seen.go(f"/example/fake%2F000?phrase={kept + 1}")
    seen.drawn()
    facts = seen.page.locator(".facts").inner_text()
    assert f"It finds all the {kept} phrases that it reads" in facts
    assert "2 phrases lie beyond its token limit." in facts
    assert "This run leaves the phrase out" in facts
    assert seen.page.locator(".facts .phrases tbody tr").count() == kept + 1
    write_report([Subject(run, "a")], tmp_path / "bare", {})
    record = chunk(tmp_path / "bare", "examples-0")[0]
    assert (len(record["phrases"]), record["runs"][0]["leftOut"]) == (kept, 2)


def test_outlines_that_lie_on_each_other_take_turns(tmp_path, look):
    example = make_example(0)
    run = make_run([example])
    own = run.phrases["example"] == 0
    corners = [f"predicted_{corner}" for corner in ("x1", "y1", "x2", "y2")]
    run.phrases.loc[own, "predicted_image_index"] = 0
    run.phrases.loc[own, corners] = [0.2, 0.2, 0.6, 0.6]
    run.phrases.loc[own & (run.phrases.index == run.phrases.index[own][0]), corners] = [0.21, 0.2, 0.6, 0.61]
    write_report([Subject(run, "a")], tmp_path / "out", {example.id: example})
    seen = look(tmp_path / "out")
    seen.go("/example/fake%2F000")
    seen.drawn()
    count = len(example.phrases)
    assert count > 1
    first = seen.page.locator(".panel").first

    def dashes() -> list[tuple[str, str]]:
        return first.locator(".predicted .line").evaluate_all(
            "lines => lines.map(l => [getComputedStyle(l).strokeDasharray, getComputedStyle(l).strokeDashoffset])"
        )

    pixels = [[float(part.removesuffix("px")) for part in (*array.split(", "), offset)] for array, offset in dashes()]
    assert pixels == [[6, 6 * (count - 1), -6 * turn] for turn in range(count)]
    rims = first.locator(".predicted .rim").evaluate_all("all => all.map(one => getComputedStyle(one).stroke)")
    assert [rim == "none" for rim in rims] == [turn > 0 for turn in range(count)]
    seen.page.keyboard.press("2")
    each = "getComputedStyle(line).strokeDasharray === '6px, 4px'"
    whole = f"[...document.querySelectorAll('.panel .predicted .line')].every(line => {each})"
    until(seen.page, whole)  # it is drawn again after the key
    assert dashes()


def test_charts_keep_a_legible_size_on_a_phone_and_scroll_by_themselves(two, look):
    seen = look(two[0], width=360)
    seen.go("/overview")
    paper = seen.page.locator(".paper").first
    assert paper.evaluate("e => e.scrollWidth > e.clientWidth && e.tabIndex === 0")
    assert paper.locator("img").evaluate("e => e.clientWidth") >= 30 * 16
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_words_of_the_models_own_map_are_those_of_its_answer(tmp_path, look):
    """A run stores means over cells, the highest of which may lie elsewhere than the peak that was measured."""
    example = make_example(0)
    run = make_run([example], heatmaps=True)
    target, other = example.target_index, (example.target_index + 1) % 6
    for row, phrase in enumerate(example.phrases):
        (x1, y1, x2, y2), heatmap = phrase.regions[0].box, np.full((6, 16, 16), 0.001, np.float32)
        heatmap[target, int(8 * (y1 + y2)), int(8 * (x1 + x2))] = 0.8
        run.heatmaps[row] = heatmap
    run.phrases["pointing"], run.phrases["predicted_image_index"] = [1, 0, 0], [target, target, other]
    write_report([Subject(run, "a")], tmp_path / "out", {example.id: example})
    seen = look(tmp_path / "out")
    coarser = (
        f"It is drawn coarser, as means over cells: the strongest of them lies in candidate {target}, inside the true"
    )
    for number, (where, apart) in enumerate([
        (f"strongest in candidate {target}, inside the true region (", False),
        (f"strongest in candidate {target}, outside the true region (", True),
        (f"strongest in candidate {other}, not the phrase’s, outside the true region (", True),
    ], 1):  # fmt: skip
        seen.go(f"/example/fake%2F000?phrase={number}&map=model")
        seen.drawn()
        words = seen.page.locator(".map-words").inner_text()
        assert where in words
        assert (coarser in words) == ("coarser" in words) == apart
        assert f"{0.8 / run.heatmaps[0].mean():.0f} times the mean" in words  # with values too small for a byte
    seen.go("/example/fake%2F000?phrase=2&map=attention")
    seen.drawn()
    assert "coarser" not in seen.page.locator(".map-words").inner_text()


def test_integrated_gradients_come_with_their_completeness_check(tmp_path, look):
    example = make_example(0)
    run = make_run([example])
    run.relevance["relevance.integrated-gradients"] = run.attentions
    write_report([Subject(run, "a")], tmp_path / "out", {example.id: example})
    seen = look(tmp_path / "out")
    seen.go("/example/fake%2F000?phrase=1&map=relevance.integrated-gradients")
    seen.drawn()
    words = seen.page.locator(".map-words").inner_text()
    assert "Completeness check: the sum misses the score's change of 2 by 0.1 (5.0%)." in words
    seen.go("/example/fake%2F000?phrase=1&map=attention")
    seen.drawn()
    assert "ompleteness" not in seen.page.locator(".map-words").inner_text()


def test_an_answer_that_is_missing_is_wrong_and_said(tmp_path, look):
    examples = [make_example(number) for number in range(4)]
    run = make_run(examples)
    run.examples.loc[0, ["task_correct", "task_score", "answer_index"]] = [False, np.nan, -1]
    write_report([Subject(run, "x")], tmp_path / "out", by_id(examples))
    right = int(run.examples["task_correct"].sum())
    seen = look(tmp_path / "out")
    seen.go("/overview")
    assert f"{right} of 4" in seen.page.locator("main table").first.inner_text()
    seen.go("/gallery?quadrant=wrong")
    assert seen.ids() == sorted(run.examples["id"][~run.examples["task_correct"]])
    seen.go("/example/fake%2F000")
    seen.page.wait_for_selector(".verdict.wrong:has-text('Task wrong: there is no answer.')")
