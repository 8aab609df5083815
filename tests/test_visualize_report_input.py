"""What a report is given and cannot trust, or does not have, in a real browser; and the same front end as a widget."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from fake_gallery import make_example, make_panorama, make_run
from report_browser import until
from report_pages import EVIL, by_id, chunk, items_of

from grounding.examples import Example
from visualize.front import script, style
from visualize.report import Subject, write_report

pytestmark = pytest.mark.slow


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
    seen.go(f"/example/{wide.id}?phrase=1")  # as people type it
    seen.drawn()
    assert seen.page.locator(".caption").is_visible()
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
    until(page, "[...document.querySelectorAll('.panel img')].every((i) => i.naturalWidth === 64)")
    page.evaluate("model.set('route', '/example/fake%2F005?phrase=1&map=attention')")
    page.wait_for_selector("h1:text-is('fake/005')")
    page.wait_for_selector("canvas:visible")
    assert page.url == "about:blank"
    page.evaluate("end()")
    page.evaluate("model.set('route', '/gallery')")
    assert page.locator("h1").inner_text() == "fake/005"
