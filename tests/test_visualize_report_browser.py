"""The report in a real browser, opened from disk: what is seen, what answers, and that nothing leaves the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from fake_gallery import SITES, make_example, make_panorama, make_run
from report_pages import EVIL, by_id, chunk, items_of, plant_attention, write_two

from grounding.examples import Example
from visualize.canvas import spread_canvas, strength
from visualize.front import script, style
from visualize.report import Subject, write_report
from visualize.style import heat_colours

pytestmark = pytest.mark.slow
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
WIDTHS = (360, 768, 1440)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Headless Chromium of the system; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Chromium: playwright is not installed")
    path = which("chromium") or which("chromium-browser") or which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: install it (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield opened
        opened.close()


@dataclass
class Seen:
    """A page with what it asked for and complained about."""

    page: object
    folder: Path
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def go(self, route: str) -> None:
        """To a place of the report, as a deep link: with nothing loaded before."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.folder.as_uri()}/index.html#{route}")
        self.page.wait_for_selector("h1")

    def drawn(self) -> None:
        """Wait until the maps of an example are there."""
        self.page.wait_for_function("document.querySelector('.example')?.dataset.drawn")

    def params(self) -> dict[str, str]:
        """The parameters in the address."""
        return self.page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.split('?')[1]))")

    def ids(self) -> list[str]:
        """The examples that the gallery shows."""
        return self.page.locator(".card-id").all_inner_texts()


@pytest.fixture
def look(browser) -> Iterator:
    """Open reports in a page of a width and colour scheme; at the end nothing has left it and no error was logged."""
    opened: list[tuple[Seen, object]] = []

    def look_at(folder: Path, width: int = 1440, scheme: str = "light", complaints: int = 0) -> Seen:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        seen = Seen(page, folder.resolve())
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        opened.append((seen, context))
        return seen

    yield look_at
    for seen, context in opened:
        context.close()
        inside = (f"{seen.folder.as_uri()}/", "about:blank", "blob:", "data:")
        assert [url for url in seen.requests if not url.startswith(inside)] == []
        assert seen.complaints == []


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A report of two runs of 60 examples, its folder and subjects."""
    folder = tmp_path_factory.mktemp("browser") / "two"
    _, subjects, _ = write_two(folder, 60)
    return folder, subjects


def test_filters_sort_and_stay_in_the_address(two, look):
    folder, subjects = two
    outcomes = subjects[0].outcomes
    seen = look(folder)
    seen.go("/gallery")
    assert len(seen.ids()) == 48
    assert seen.page.get_by_role("status").inner_text() == "60 of 60 examples; 1 to 48 here"
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
    assert sorted(seen.ids()) == sorted(runs["id"][runs["caption"].str.contains("red circle")])[:48]


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
    page.wait_for_function("document.querySelector('h1').textContent === 'fake/002'")
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
    page.wait_for_function("document.querySelector('h1').textContent === 'fake/001'")


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
    where = f"candidate {cell[0] // 4 + 1}"
    assert where in seen.page.locator(".map-words").inner_text()


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
    page.wait_for_function("!document.querySelector('.outline.faded')")
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
    seen.page.wait_for_function(
        "[...document.querySelectorAll('.map-words')].every(w => w.textContent.includes('head 2'))"
    )
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
    assert (
        f"the target is candidate {example['target_index'] + 1}, it chose candidate {example['answer_index'] + 1}"
        in facts
    )
    assert f"{phrase['iou']:.2f}" in facts
    inside = "inside" if phrase["pointing"] else "outside"
    assert f"strongest point is {inside} the true region" in facts
    right = 2 if int(phrase.name) % 2 == 0 else 0
    assert f"linear probe (alignment) finds it at {right} of 3 layers" in facts


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
    seen.go("/gallery")
    assert seen.page.evaluate(ground) == "rgb(255, 255, 255)"


def evil_example() -> Example:
    example = make_example(5, caption=EVIL)
    for phrase in example.phrases:
        object.__setattr__(phrase, "type", EVIL)
        object.__setattr__(phrase, "id", f"{phrase.id}{EVIL}")
    object.__setattr__(example, "id", f'"><{EVIL}/a b?#%')
    return example


def test_what_captions_ids_and_names_hold_is_text(tmp_path, look):
    example = evil_example()
    run = make_run([example])
    write_report([Subject(run, EVIL, items=items_of(run))], tmp_path / "out", by_id([example]), title=EVIL)
    seen = look(tmp_path / "out")
    for route in ("/overview", "/gallery"):
        seen.go(route)
        assert EVIL.split("\u2028")[0] in seen.page.locator("main").inner_text()
    seen.page.locator(".card").click()
    seen.page.wait_for_selector(".example .caption")
    assert EVIL.split("\u2028")[0] in seen.page.locator(".caption").inner_text()
    seen.page.reload()  # the id survives as an address
    seen.page.wait_for_selector(".example .caption")
    seen.page.wait_for_timeout(300)
    assert seen.page.evaluate("window.hacked === undefined")
    assert seen.page.locator("script").count() == 1
    assert seen.page.locator("main img[src=x]").count() == 0


def test_the_policy_stops_markup_that_found_its_way_in(two, look):
    """As if escaping had failed: the browser itself refuses what is not the page's own."""
    seen = look(two[0])
    seen.go("/overview")
    refused = seen.page.evaluate("""() => [
      () => { document.querySelector('main').innerHTML = '<img src=x onerror="window.hacked=1">'; },
      () => { document.createElement('button').setAttribute('onclick', 'window.hacked=2'); },
      () => { document.createElement('script').textContent = 'window.hacked=3'; },
      () => { document.createElement('script').src = 'data/index.js'; },
    ].map((attempt) => { try { attempt(); } catch { return true; } return false; })""")
    assert refused == [True] * 4
    fetched = seen.page.evaluate("fetch('index.html').then(() => 'read', () => 'refused')")
    assert fetched == "refused"
    assert seen.page.evaluate("window.hacked === undefined")
    assert seen.complaints
    assert all("Content Security Policy" in text or "Trusted" in text for text in seen.complaints)
    seen.complaints.clear()


def test_long_captions_right_to_left_and_a_hundred_phrases(tmp_path, look):
    many = make_example(1, phrases=100)
    arabic = make_example(2, caption="صورة فيها دائرة حمراء كبيرة")
    long = make_example(3, caption="word " * 2000 + "unbroken" * 200)
    examples = [many, arabic, long]
    run = make_run(examples, heatmaps=True)
    write_report([Subject(run, "x", items=items_of(run))], tmp_path / "out", by_id(examples))
    for width in (360, 1440):
        seen = look(tmp_path / "out", width)
        seen.go("/gallery")
        assert len(seen.ids()) == 3
        for example in examples:
            seen.go(f"/example/{example.id.replace('/', '%2F')}?phrase=2")
            seen.drawn()
            assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            direction = seen.page.locator(".caption").evaluate("e => getComputedStyle(e).direction")
            assert direction == ("rtl" if example is arabic else "ltr")
            assert seen.page.locator(".caption").bounding_box()["height"] < 320
        seen.go(f"/example/{many.id.replace('/', '%2F')}?phrase=100")
        seen.drawn()
        assert seen.page.locator(".facts tbody tr").count() >= 100


def test_runs_that_hold_little_are_shown_with_what_there_is(tmp_path, look):
    wide = make_panorama(0)
    run = make_run([wide], attention=False)
    run.phrases[[f"predicted_{c}" for c in ("x1", "y1", "x2", "y2")]] = np.nan
    run.phrases["predicted_image_index"] = -1
    run.phrases[["iou", "pointing"]] = np.nan
    write_report([Subject(run, "x")], tmp_path / "out", {})
    seen = look(tmp_path / "out", 768)
    seen.go("/overview")
    assert "holds no attention" in seen.page.locator("main").inner_text()
    seen.go(f"/example/{wide.id.replace('/', '%2F')}")
    seen.drawn()
    assert "No image" in seen.page.locator(".panel").inner_text()
    assert seen.page.get_by_role("button", name="Attention").is_disabled()
    seen.go("/example/none%20such")
    assert "no example called “none such”" in seen.page.locator("main").inner_text()
    seen.go("/example/%25E0%25A4%25A")
    assert seen.page.locator("h1").is_visible()


def test_a_report_that_is_not_whole_says_so(tmp_path, look):
    example = make_example(0)
    write_report([Subject(make_run([example]), "x")], tmp_path / "out", by_id([example]))
    (tmp_path / "out" / "data" / "examples-0.js").unlink()
    seen = look(tmp_path / "out")
    seen.page.goto(f"{seen.folder.as_uri()}/index.html#/example/{example.id.replace('/', '%2F')}")
    assert "examples-0.js cannot be read" in seen.page.get_by_role("alert").inner_text()
    seen.complaints.clear()  # the browser tells of the missing file too


MODEL_OF_A_WIDGET = """
async ([code, look]) => {
  const listeners = {}, traits = { route: '/gallery', selected: [] };
  const model = {
    get: (name) => traits[name],
    set: (name, value) => { traits[name] = value; (listeners[`change:${name}`] || []).forEach((call) => call()); },
    on: (name, call) => (listeners[name] ||= []).push(call),
    off: (name, call) => { listeners[name] = listeners[name].filter((other) => other !== call); },
    save_changes() {},
    async send(question) {
      const answer = JSON.parse(await window.answer(JSON.stringify(question)));
      const buffers = answer.file ? [Uint8Array.from(atob(answer.file), (c) => c.charCodeAt(0))] : [];
      listeners['msg:custom'].forEach((call) => call(answer, buffers));
    },
  };
  const module = await import(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })));
  document.head.append(Object.assign(document.createElement('style'), { textContent: look }));
  const el = document.body.appendChild(document.createElement('div'));
  window.model = model;
  window.end = module.default.render({ model, el });
}
"""


def test_the_same_front_end_runs_as_a_module_driven_from_both_sides(two, look):
    import base64

    folder, _subjects = two
    seen = look(folder, 900)
    page = seen.page
    page.goto("about:blank")

    def answer(text: str) -> str:
        question = json.loads(text)
        if "load" in question:
            return json.dumps({"name": question["load"], "chunk": chunk(folder, question["load"])})
        content = (folder / question["file"]).read_bytes()
        return json.dumps({"name": question["file"], "file": base64.b64encode(content).decode()})

    page.expose_function("answer", answer)
    page.evaluate(MODEL_OF_A_WIDGET, [script("widget"), style()])
    page.wait_for_selector(".card")
    assert page.evaluate("model.get('selected').length") == 60
    page.locator(".card").nth(2).click()
    page.wait_for_selector(".example h1")
    assert page.evaluate("model.get('selected')") == ["fake/002"]
    assert page.evaluate("model.get('route')").startswith("/example/fake%2F002")
    page.wait_for_function("[...document.querySelectorAll('.panel img')].every((i) => i.naturalWidth === 64)")
    page.evaluate("model.set('route', '/example/fake%2F005?phrase=1&map=attention')")
    page.wait_for_function("document.querySelector('h1').textContent === 'fake/005'")
    page.wait_for_selector("canvas:visible")
    assert page.url == "about:blank"
    page.evaluate("end()")
    page.evaluate("model.set('route', '/gallery')")
    assert page.locator("h1").inner_text() == "fake/005"
