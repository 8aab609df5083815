"""The report in a real browser, opened from disk: what is seen, what answers, and that nothing leaves the page."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fake_gallery import SITES, make_example, make_run
from report_browser import Seen, until
from report_pages import by_id, chunk, plant_attention, write_probed

from grounding.sinks import without_sinks
from visualize.canvas import spread_canvas, strength
from visualize.report import Subject, write_report
from visualize.style import heat_colours

pytestmark = pytest.mark.slow
WIDTHS = (360, 768, 1440)


def test_filters_sort_and_stay_in_the_address(two, look):
    folder, subjects = two
    outcomes = subjects[0].outcomes
    seen = look(folder)
    seen.go("/gallery")
    assert len(seen.ids()) == 30
    assert seen.page.get_by_role("status").inner_text() == "60 of 60 examples; 1 to 30 here"
    seen.page.get_by_label("Task and grounding").select_option("wrong_grounded")
    expected = outcomes.table["id"][outcomes.matching(False, True)].tolist()
    assert sorted(seen.ids()) == sorted(expected)
    assert 0 < len(expected) < 30
    seen.page.get_by_label("Order").select_option("-grounding")
    grounding = outcomes.table.set_index("id")["grounding"]
    assert seen.ids() == grounding[expected].sort_values(ascending=False, kind="stable").index.tolist()
    seen.page.get_by_label("Grounding (mean IoU), from").fill("0.6")
    assert seen.ids() == [
        name for name in grounding[expected].sort_values(ascending=False).index if grounding[name] >= 0.6
    ]
    assert seen.params() == {"quadrant": "wrong_grounded", "sort": "-grounding", "grounding": "0.6.."}
    before = seen.ids()
    seen.page.reload()
    seen.page.wait_for_selector(".card")
    assert seen.ids() == before
    seen.page.get_by_role("button", name="Clear filters").click()
    seen.page.get_by_label("Search").press_sequentially("RED CIRCLE")
    runs = subjects[0].run.examples
    assert sorted(seen.ids()) == sorted(runs["id"][runs["caption"].str.contains("red circle")])[:30]


def test_types_phrases_runs_and_changes_are_filtered(two, look):
    folder, subjects = two
    seen = look(folder)
    seen.go("/gallery?type=triangle")
    phrases = subjects[0].run.phrases
    with_triangle = phrases.loc[phrases["type"] == "triangle", "example"].unique()
    assert f"{len(with_triangle)} of 60" in seen.page.get_by_role("status").inner_text()
    seen.go("/gallery?phrases=4..")
    assert seen.ids() == []
    seen.go("/gallery?change=gained")
    one, other = (subject.run.examples["task_correct"] for subject in subjects)
    assert f"{(~one & other).sum()} of 60" in seen.page.get_by_role("status").inner_text()
    seen.go("/gallery?of=1&quadrant=right")
    assert f"{other.sum()} of 60" in seen.page.get_by_role("status").inner_text()
    seen.go("/gallery?quadrant=bogus")  # which is none of the choices
    assert len(seen.ids()) == 30


def test_keys_lead_through_the_report(two, look):
    seen = look(two[0])
    seen.go("/overview")
    page = seen.page
    page.keyboard.press("e")
    page.wait_for_selector(".card")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("j")
    focused = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert focused == "solid"
    assert page.evaluate("document.activeElement.className").startswith("card")
    page.keyboard.press("Enter")
    page.wait_for_selector(".example h1")
    assert page.locator("h1").inner_text() == "fake/001"
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("h1:text-is('fake/002')")
    page.keyboard.press("2")
    page.keyboard.press("m")
    assert seen.params()["phrase"] == "2"
    assert seen.params()["map"] == "attention"
    page.keyboard.press("[")
    page.keyboard.press(".")
    assert (seen.params()["site"], seen.params()["head"]) == (SITES[1], "0")
    page.keyboard.press("Escape")
    assert "phrase" not in seen.params()
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    assert page.locator("h1").inner_text() == "fake/002"
    page.keyboard.press("/")
    page.go_back()
    page.wait_for_selector("h1:text-is('fake/001')")


def pixels(seen: Seen, image: int, side: int = 0) -> np.ndarray:
    """RGBA of the map over a candidate, at the image's own pixels."""
    canvas = seen.page.locator(".side").nth(side).locator("canvas").nth(image)
    width, height, data = canvas.evaluate(
        "c => [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
    )
    return np.array(data, np.uint8).reshape(height, width, 4)


def painted(cells: np.ndarray, images: int, side: int) -> list[np.ndarray]:
    """What Python's figures would paint over each candidate: RGBA."""
    values = spread_canvas(strength(cells.astype(np.float32)), [(side, side)] * images)
    colours = np.round(np.asarray(heat_colours()(np.arange(256)))[:, :3] * 255)
    level = [np.floor(255 * value + 0.5).astype(int) for value in values]
    alpha = [np.floor(255 * 0.92 * value**0.75 + 0.5)[..., None] for value in values]
    return [np.concatenate([colours[at], a], axis=2) for at, a in zip(level, alpha, strict=True)]


@pytest.mark.parametrize("cell", [(9, 2), (0, 0), (23, 3)])
def test_a_planted_cell_is_painted_where_it_lies_to_the_pixel(tmp_path, look, cell):
    example = make_example(0)
    run = make_run([example])
    plant_attention(run, row=1, head=3, cell=cell)
    write_report([Subject(run, "x")], tmp_path / "out", by_id([example]))
    seen = look(tmp_path / "out")
    seen.go(f"/example/{example.id.replace('/', '%2F')}?phrase=2&map=attention&site={SITES[1]}&head=3")
    seen.drawn()
    whole = np.stack([pixels(seen, image) for image in range(6)])
    expected = np.zeros((6, 64, 64), bool)
    row = cell[0] % 4
    expected[cell[0] // 4, 16 * row : 16 * row + 16, 16 * cell[1] : 16 * cell[1] + 16] = True
    np.testing.assert_array_equal(whole[..., 3] > 0, expected)
    where = f"candidate {cell[0] // 4}"
    assert where in seen.page.locator(".map-words").inner_text()


def whole(seen: Seen) -> np.ndarray:
    """Where a map is painted over the six candidates of a game, bool ``[6, height, width]``."""
    return np.stack([pixels(seen, image) for image in range(6)])[..., 3] > 0


def cells_of(*cells: tuple[int, int]) -> np.ndarray:
    """Cells of a canvas of six times 4 x 4 at the pixels of candidates of 64."""
    expected = np.zeros((6, 64, 64), bool)
    for row, column in cells:
        y, x = 16 * (row % 4), 16 * column
        expected[row // 4, y : y + 16, x : x + 16] = True
    return expected


def test_a_sink_is_filtered_out_and_what_is_the_phrases_own_stays(tmp_path, look):
    example = make_example(0)
    run = make_run([example])
    for row, maps in run.attentions.items():
        maps[:] = 0
        maps[:, 9, 2], maps[:, 3 + row, 1] = 0.9, 0.1
    write_report([Subject(run, "x")], tmp_path / "out", by_id([example]))
    seen = look(tmp_path / "out")
    place = f"/example/{example.id.replace('/', '%2F')}?phrase=2&site={SITES[1]}"
    seen.go(f"{place}&map=attention")
    seen.drawn()
    np.testing.assert_array_equal(whole(seen), cells_of((9, 2), (4, 1)))
    seen.page.get_by_label("Method").select_option("sink-filtered")
    seen.page.wait_for_selector(".map-words:has-text('beyond')")
    assert seen.params()["map"] == "sink-filtered"
    seen.go(f"{place}&map=sink-filtered")  # anew, since a canvas that is read twice is complained about
    seen.drawn()
    np.testing.assert_array_equal(whole(seen), cells_of((4, 1)))
    # 28 of 255 steps of 0.9
    assert "largest value 0.099, 96 times the mean" in seen.page.locator(".map-words").inner_text()


def test_sink_filtered_maps_are_those_of_the_figures(two, look):
    folder, subjects = two
    run = subjects[0].run
    rows = run.phrases.index[run.phrases["example"] == 1]
    maps = without_sinks(np.stack([run.attentions[row][2] for row in rows]), np.zeros(len(rows), int))
    seen = look(folder)
    seen.go(f"/example/fake%2F001?phrase=1&map=sink-filtered&site={SITES[0]}&head=2&b=none")
    seen.drawn()
    for image, expected in enumerate(painted(maps[0], 6, 64)):
        assert np.abs(pixels(seen, image)[..., 3].astype(float) - expected[..., 3]).max() <= 12  # steps of several maps


def test_maps_of_probes_follow_the_layer_and_say_whether_the_probe_saw_the_image(tmp_path, look):
    write_probed(tmp_path / "out", 2)
    seen = look(tmp_path / "out")
    seen.go("/example/fake%2F001?phrase=2&map=probe")
    seen.drawn()
    words = seen.page.locator(".map-words")
    np.testing.assert_array_equal(whole(seen), cells_of((9, 2)))
    assert f"at {SITES[1]}" in words.inner_text()
    assert "never saw this image" in words.inner_text()
    seen.page.get_by_label("Layer", exact=True).fill("0")
    seen.page.wait_for_selector(".map-words:has-text('0.75')")
    assert seen.params()["site"] == SITES[0]
    seen.go("/example/fake%2F000?phrase=2&map=probe")
    seen.drawn()
    assert "zero everywhere" in words.inner_text()


def test_which_phrases_are_found_is_told_before_any_is_chosen(two, look):
    folder, subjects = two
    run = subjects[0].run
    lost = run.phrases[(run.phrases["example"] == 1) & (run.phrases["iou"] < 0.5)]
    assert len(lost) < 3
    seen = look(folder)
    seen.go("/example/fake%2F001?b=none")
    seen.drawn()
    verdict = seen.page.locator(".verdict").inner_text()
    told = f"finds {3 - len(lost) or 'none'} of its 3 phrases" if len(lost) else "finds all its 3 phrases"
    assert told in verdict
    assert all(f"“{text}”" in verdict for text in lost["text"])
    assert len(lost)


def test_phrases_of_heatmaps_are_found_by_their_strongest_point(two, look):
    folder, subjects = two
    phrases = subjects[1].run.phrases
    seen, counts = look(folder), set()
    for example in range(6):
        asked = phrases[phrases["example"] == example]
        found = int((asked["pointing"] > 0).sum())
        seen.go(f"/example/fake%2F00{example}?a=1&b=none")
        seen.drawn()
        told = "all its" if found == len(asked) else f"{found or 'none'} of its"
        assert (
            f"finds {told} {len(asked)} phrases (strongest point inside the region)"
            in seen.page.locator(".verdict").inner_text()
        )
        counts.add(found)
    assert len(counts) > 1


def test_grids_that_do_not_divide_are_painted_as_in_the_figures(tmp_path, look):
    example = make_example(4, candidates=3)
    run = make_run([example])
    rng = np.random.default_rng(0)
    run.attentions = {row: rng.random((1, 7, 5)).astype(np.float32) ** 4 for row in run.attentions}
    run.examples[["grid_rows", "grid_columns"]] = (7, 5)
    write_report([Subject(run, "x")], tmp_path / "out", by_id([example]))
    seen = look(tmp_path / "out")
    seen.go(f"/example/{example.id.replace('/', '%2F')}?phrase=1&map=attention&site={SITES[0]}")
    seen.drawn()
    for image, expected in enumerate(painted(run.attentions[0][0], 3, 64)):
        found = pixels(seen, image).astype(float)
        assert np.abs(found[..., 3] - expected[..., 3]).max() <= 3  # of 255: maps are stored in 255 steps
        opaque = expected[..., 3] > 60
        assert np.abs(found[opaque] - expected[opaque]).max() <= 6


def test_outlines_and_maps_lie_on_their_image_without_distortion(two, look):
    folder, _ = two
    record = chunk(folder, "examples-0")[3]
    for width in WIDTHS:
        seen = look(folder, width)
        seen.go(f"/example/{record['id'].replace('/', '%2F')}?phrase=1&map=attention")
        seen.drawn()
        phrase = record["phrases"][0]
        panel = seen.page.locator(".side").first.locator(".panel").nth(phrase["image"])
        image, line = (
            panel.locator(what).first.bounding_box() for what in ("img", '.outline.true[data-phrase="0"] .line')
        )
        assert image["width"] == pytest.approx(image["height"], abs=0.1)  # these scenes are square
        x1, y1, x2, y2 = phrase["boxes"][0]
        found = [(line["x"] - image["x"]) / image["width"], (line["y"] - image["y"]) / image["height"]]
        found += [found[0] + line["width"] / image["width"], found[1] + line["height"] / image["height"]]
        np.testing.assert_allclose(found, [x1, y1, x2, y2], atol=1.5 / image["width"])
        canvas = panel.locator("canvas").bounding_box()
        assert canvas == pytest.approx(image)


def test_pointing_at_a_phrase_shows_what_is_its_own(two, look):
    seen = look(two[0])
    seen.go("/example/fake%2F003")
    seen.drawn()
    page, side = seen.page, seen.page.locator(".side").nth(1)
    assert side.locator(".outline.faded").count() == 0
    assert side.locator("canvas:visible").count() == 0
    page.locator(".caption .phrase").nth(1).hover()
    page.wait_for_selector(".side canvas:visible")
    faded = side.locator(".outline").evaluate_all(
        "all => all.map(o => [o.dataset.phrase, o.classList.contains('faded')])"
    )
    assert faded
    assert all((phrase != "1") == pale for phrase, pale in faded)
    assert "active" in page.locator(".caption .phrase").nth(1).get_attribute("class")
    page.mouse.move(5, 400)
    page.wait_for_selector(".outline.faded", state="detached")
    page.locator(".caption .phrase").nth(2).focus()
    page.wait_for_selector(".outline.faded")
    assert "“" in side.locator(".why .chosen").inner_text()


def test_two_checkpoints_stand_side_by_side_under_the_same_controls(two, look):
    folder, subjects = two
    seen = look(folder)
    seen.go("/example/fake%2F002?phrase=1&map=attention")
    seen.drawn()
    assert seen.page.locator(".side h2").all_inner_texts() == ["first", "second"]
    seen.page.get_by_label("Layer", exact=True).fill("0")
    seen.page.get_by_label("Head", exact=True).fill("3")
    assert (seen.params()["site"], seen.params()["head"]) == (SITES[0], "2")
    until(seen.page, "[...document.querySelectorAll('.map-words')].every(w => w.textContent.includes('head 2'))")
    row = int(subjects[0].run.phrases.query("example == 2").index[0])
    for number, subject in enumerate(subjects):
        for image, expected in enumerate(painted(subject.run.attentions[row][2], 6, 64)):
            assert np.abs(pixels(seen, image, number)[..., 3].astype(float) - expected[..., 3]).max() <= 3
    seen.page.get_by_label("Beside it").select_option("none")
    seen.page.wait_for_selector(".sides.of-1")
    assert seen.page.locator(".side").count() == 1


def test_why_it_failed_is_told(two, look):
    folder, subjects = two
    run = subjects[1].run
    wrong = int(run.examples.index[~run.examples["task_correct"]][0])
    example, phrase = run.examples.loc[wrong], run.phrases.query(f"example == {wrong}").iloc[0]
    seen = look(folder)
    seen.go(f"/example/{example['id'].replace('/', '%2F')}?a=1&b=none&phrase=1")
    seen.drawn()
    facts = seen.page.locator(".facts").inner_text()
    assert f"the target is candidate {example['target_index']}, it chose candidate {example['answer_index']}" in facts
    assert f"{phrase['iou']:.2f}" in facts
    inside = "inside" if phrase["pointing"] else "outside"
    assert f"strongest point is {inside} the true region" in facts
    right = 2 if int(phrase.name) % 2 == 0 else 0
    assert f"linear probe (alignment, among regions of its own image) finds it at {right} of 3 layers" in facts


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_and_are_told_in_words(two, look, width, scheme, tmp_path):
    seen = look(two[0], width, scheme)
    for route in ("/overview", "/gallery", "/example/fake%2F001?phrase=1"):
        seen.go(route)
        page = seen.page
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ground = page.evaluate("getComputedStyle(document.querySelector('.probe-report')).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 150) == (scheme == "dark")
        unnamed = page.evaluate(UNNAMED)
        assert unnamed == []
        assert len(page.screenshot(path=tmp_path / "shot.png")) > 10_000


UNNAMED = """
() => [
  ...[...document.querySelectorAll('img')].filter((e) => !e.alt),
  ...[...document.querySelectorAll('canvas')].filter((e) => !e.hidden && !e.getAttribute('aria-label')),
  ...[...document.querySelectorAll('button, a')].filter((e) => !(e.textContent.trim() || e.getAttribute('aria-label'))),
  ...[...document.querySelectorAll('input, select')].filter((e) => !e.labels.length && !e.getAttribute('aria-label')),
].map((e) => e.outerHTML)
"""


def test_the_theme_can_be_switched(two, look):
    seen = look(two[0], scheme="dark")
    seen.go("/overview")
    seen.page.get_by_role("button", name="Switch to the light theme").click()
    ground = "getComputedStyle(document.querySelector('.probe-report')).backgroundColor"
    assert seen.page.evaluate(ground) == "rgb(255, 255, 255)"
    seen.page.wait_for_timeout(500)  # Chromium hands what a page stored to the next one a moment later
    seen.go("/gallery")
    assert seen.page.evaluate(ground) == "rgb(255, 255, 255)"
