"""The notebook's widget: what Python answers, sets and reads; in Chromium, the front end that asks it."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_gallery import make_example, make_run
from report_browser import until
from report_pages import EVIL, by_id, chunk, items_of, two_runs, unpack

from grounding.errors import BadInput
from visualize import explore
from visualize.explorer import CHANGES, ORDERS, QUADRANTS
from visualize.front import script
from visualize.report import Subject, write_report


@pytest.fixture(scope="module")
def made():
    """The widget of two runs of six examples, and the runs."""
    one, other, examples = two_runs()
    explorer = explore([Subject(one, "first"), Subject(other, "second", items=items_of(other))], by_id(examples))
    yield explorer, one, other
    explorer.close()


def answers(explorer, asked: dict) -> list[tuple[dict, list]]:
    """What the widget sends when its front end asks."""
    sent: list[tuple[dict, list]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer, "send", lambda content, buffers=None: sent.append((content, buffers or [])))
        explorer._handle_msg({"content": {"data": {"method": "custom", "content": asked}}, "buffers": []})
    return json.loads(json.dumps([content for content, _ in sent])), [buffers for _, buffers in sent]


def test_what_is_asked_for_is_what_a_written_report_holds(made, tmp_path):
    explorer, one, other = made
    subjects = [Subject(one, "first"), Subject(other, "second", items=items_of(other))]
    examples = by_id([make_example(number) for number in range(6)])
    write_report(subjects, tmp_path / "out", examples)
    ((answer,), _), written = answers(explorer, {"load": "index"}), chunk(tmp_path / "out", "index")
    index = answer["chunk"]
    assert index["chunk"] == 1
    for name in ("id", "caption", "spans", "types", "images"):
        assert index["table"][name] == written["table"][name]
    for mine, kept in zip(index["outcomes"], written["outcomes"], strict=True):
        assert {k: v for k, v in mine.items() if k != "answer"} == {k: v for k, v in kept.items() if k != "answer"}
        assert [value is None for value in mine["answer"]] == [value is None for value in kept["answer"]]
    assert [view["units"] for view in index["runs"][1]["views"]] == [v["units"] for v in written["runs"][1]["views"]]
    records = chunk(tmp_path / "out", "examples-0")
    assert answers(explorer, {"load": "examples-3"})[0][0]["chunk"] == [records[3]]
    ((answer,), _), whole = (
        answers(explorer, {"load": "maps-1-attention-3"}),
        chunk(tmp_path / "out", "maps-1-attention-0"),
    )
    phrases = slice(whole["firsts"][3], whole["firsts"][4])
    assert answer["chunk"]["firsts"] == [0]
    assert answer["chunk"]["grids"] == whole["grids"][phrases]
    units = len(index["runs"][1]["views"][1]["units"])
    np.testing.assert_array_equal(
        unpack(answer["chunk"]["peaks"], np.float32).reshape(units, -1),
        unpack(whole["peaks"], np.float32).reshape(units, -1)[:, phrases],
    )


def test_an_image_is_drawn_when_it_is_asked_for_and_comes_as_the_only_buffer(made):
    explorer, *_ = made
    (index,), _ = answers(explorer, {"load": "index"})
    path = f"images/{index['chunk']['table']['thumb'][5][0]}"
    content, ((buffer,),) = answers(explorer, {"file": path})
    assert content == [{"name": path}]
    assert buffer[8:12] == b"WEBP"
    record = answers(explorer, {"load": "examples-5"})[0][0]["chunk"][0]
    own = f"images/{record['images'][record['target']]['src']}"
    assert answers(explorer, {"file": own})[1] == [[buffer]]  # scenes of 64 pixels are their own thumbnails


def test_opening_draws_no_image_and_reads_only_how_many_heads_there_are(monkeypatch):
    run, seen = make_run([make_example(number) for number in range(3)]), []
    read = run.read
    monkeypatch.setattr(run, "read", lambda site, view, rows=None: (seen.append(rows), read(site, view, rows))[1])
    explorer = explore(run, by_id([make_example(number) for number in range(3)]))
    assert {tuple(rows) for rows in seen} <= {(0,)}
    assert not list((Path(explorer._folder.name) / "images").iterdir())
    explorer.close()


def test_an_image_that_cannot_be_drawn_is_told_when_it_is_asked_for(tmp_path):
    example = make_example(0)
    object.__setattr__(example, "images", (tmp_path / "gone.png", *example.images[1:]))
    explorer = explore(make_run([example]), by_id([example]))
    ((answer,), _) = answers(explorer, {"file": "images/0-0.webp"})
    assert "gone.png" in answer["error"]
    assert "missing" in answers(explorer, {"load": "examples-0"})[0][0]["chunk"][0]["images"][0]
    explorer.close()


@pytest.mark.parametrize(
    "asked",
    [{"load": "examples-9"}, {"load": "../report.json"}, {"file": "index.html"}, {"file": "images/../report.json"},
     {"file": "/etc/passwd"}, {"file": "images/9-0.webp"}, {"file": "images/0-6.webp"}, {"load": "maps-0-model-0"},
     {"load": "maps-2-attention-0"}, {"load": "maps-0-attention-6"}, {"load": EVIL}],
)  # fmt: skip
def test_nothing_but_the_report_is_served(made, asked):
    (name,) = asked.values()
    assert answers(made[0], asked) == ([{"name": name, "error": f"This report holds no {name}."}], [[]])


def test_examples_are_told_of_every_run(made):
    explorer, one, other = made
    table = explorer.examples
    assert list(table) == ["run", "id", "caption", "phrases", "correct", "score", "grounding"]
    assert table["run"].tolist() == ["first", "second"] * 6
    assert table["id"].tolist() == [name for name in one.examples["id"] for _ in range(2)]
    for name, run in (("first", one), ("second", other)):
        own = table[table["run"] == name]
        assert own["correct"].tolist() == run.examples["task_correct"].tolist()
        assert own["grounding"].tolist() == run.phrases.groupby("example")["iou"].mean().tolist()
        assert own["phrases"].tolist() == [3] * 6
    assert "Explorer of first, second: 6 examples" in repr(explorer)


def test_where_there_is_no_answer_nothing_is_right_or_wrong():
    examples = [make_example(number, candidates=1) for number in range(2)]  # of one candidate there is no choice
    explorer = explore(make_run(examples), by_id(examples))
    assert explorer.examples["correct"].isna().all()
    explorer.close()


def test_what_the_page_selects_comes_back_in_its_order(made):
    explorer, one, _ = made
    ids = one.examples["id"].tolist()
    state = {"method": "update", "state": {"selected": [ids[4], ids[1]]}, "buffer_paths": []}
    explorer._handle_msg({"content": {"data": state}, "buffers": []})
    assert explorer.selection()["id"].tolist() == [ids[4], ids[4], ids[1], ids[1]]
    assert explorer.selection()["run"].tolist() == ["first", "second"] * 2


def test_python_sets_the_route(made):
    explorer, one, _ = made
    ids = one.examples["id"].tolist()
    explorer.show(ids[2], phrase=1, map="attention", head=0)
    assert explorer.route == "/example/fake%2F002?phrase=1&map=attention&head=0"
    assert explorer.selected == [ids[2]]
    wrong = explorer.examples.query("run == 'first' and not correct")["id"]
    explorer.show(wrong)
    assert explorer.selection()["id"].unique().tolist() == ids[1::2]
    explorer.filter("wrong_grounded", text="red & blue", grounding=(0.6, None), order="-grounding", run=1)
    assert explorer.route == "/gallery?quadrant=wrong_grounded&q=red+%26+blue&sort=-grounding&of=1&grounding=0.6.."
    explorer.filter()
    assert explorer.route == "/gallery"
    explorer.overview()
    assert explorer.route == "/overview"


def test_bad_input_is_told_and_changes_nothing(made):
    explorer, *_ = made
    explorer.overview()
    for call, words in [
        (lambda: explorer.show("nothing"), "example 'nothing' is not in these runs"),
        (lambda: explorer.show(["fake/001", "nothing"]), "example 'nothing'"),
        (lambda: explorer.show("fake/001", layer=1), "view 'layer' is unknown; accepted: phrase, map"),
        (lambda: explorer.show("fake/001", phrase=99), "phrase 99 of 'fake/001' is not there; accepted: 1 to "),
        (lambda: explorer.show("fake/001", map="attentoin"), "map 'attentoin' is unknown; accepted: boxes, "),
        (lambda: explorer.show("fake/001", map="attention", site="block.99"), "site 'block.99' is unknown; accepted: "),
        (lambda: explorer.show("fake/001", map="boxes", site="block.1"), "site 'block.1' is unknown; accepted: "),
        (lambda: explorer.show("fake/001", map="attention", head=77), "head 77 is unknown; accepted: 0, 1, 2, 3"),
        (lambda: explorer.show(3), "examples 3 is no id"),
        (lambda: explorer.filter("bad"), "quadrant 'bad' is unknown; accepted: right"),
        (lambda: explorer.filter(order="size"), "order 'size' is unknown"),
        (lambda: explorer.filter(run=2), "run 2 is unknown; accepted: 0, 1"),
        (lambda: explorer.filter(score=0.5), "score 0.5 is not a range"),
        (
            lambda: explorer.filter(grounding=(0.6, 0.1)),
            "grounding (0.6, 0.1) holds nothing",
        ),
        (lambda: explorer.filter(type="zz"), "type 'zz' is unknown; accepted: "),
        (lambda: explore([]), "runs: none given"),
    ]:
        with pytest.raises(BadInput, match=re.escape(words)):
            call()
    assert explorer.route == "/overview"


def test_python_knows_the_choices_of_the_front_end():
    source = script("widget")
    sorts = re.search(r"const SORTS = \{(.*?)\};", source, flags=re.DOTALL)[1]
    assert {key.strip('"') for key in re.findall(r'^  ("[^"]*"|\w+):', sorts, flags=re.MULTILINE)} == {"", *ORDERS}
    quadrants = re.search(r"const QUADRANTS = \{(.*?)\};", source, flags=re.DOTALL)[1]
    assert {"right", "wrong", *re.findall(r"^  (\w+):", quadrants, flags=re.MULTILINE)} == set(QUADRANTS)
    assert all(f'["{change}", ' in source for change in CHANGES)


def test_the_folder_goes_with_the_widget():
    one, _, examples = two_runs(1)
    explorer = explore(one, by_id(examples))
    folder = Path(explorer._folder.name)
    assert folder.is_dir()
    explorer.close()
    assert not folder.exists()


def test_without_anywidget_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "visualize.explorer")
    with pytest.raises(BadInput, match=r"explore needs anywidget: pip install 'phrase-grounding-probe\[notebook\]'"):
        explore([])


MODEL = """
async (esm) => {
  const state = { route: "/overview", selected: [] }, heard = new Map();
  const hear = (name, ...values) => (heard.get(name) || []).forEach((callback) => callback(...values));
  window.model = {
    get: (name) => state[name],
    set(name, value) { state[name] = value; hear(`change:${name}`); },
    save_changes: () => window.save(JSON.stringify(state)),
    on(name, callback) { heard.set(name, [...(heard.get(name) || []), callback]); },
    off(name, callback) { heard.set(name, heard.get(name).filter((each) => each !== callback)); },
    async send(asked) {
      const { content, buffers } = JSON.parse(await window.ask(JSON.stringify(asked)));
      const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      hear("msg:custom", content, buffers.map((text) => new DataView(bytes(text).buffer)));
    },
  };
  const module = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
  document.body.append(window.place = document.createElement("div"));
  window.end = module.default.render({ model: window.model, el: window.place });
  window.left = () => [...heard.values()].flat().length;
}
"""


def put_on(page, explorer) -> None:
    """Show the widget on a page, as Jupyter does."""

    def ask(text: str) -> str:
        (content,), (buffers,) = answers(explorer, json.loads(text))
        return json.dumps({"content": content, "buffers": [base64.b64encode(b).decode() for b in buffers]})

    page.expose_function("ask", ask)
    page.expose_function("save", lambda text: explorer.set_state(json.loads(text)))
    page.add_style_tag(content=explorer._css)
    page.evaluate(MODEL, explorer._esm)


# What JupyterLab says of links, lists and fields in what it shows (jupyterlab 4.6).
LAB = """
.jp-OutputArea-output dt { font-weight: bold; float: left; width: 20%; padding: 0px; margin: 0px; }
.jp-OutputArea-output dd { float: left; width: 80%; padding: 0px; margin: 0px; }
.jp-ThemedContainer input::placeholder { color: rgb(1, 2, 3); }
.jp-ThemedContainer a { text-decoration: unset; color: unset; }
.jp-ThemedContainer a:hover { text-decoration: unset; color: unset; }
"""


@pytest.mark.slow
def test_the_rules_of_jupyterlab_do_not_win(made, look, tmp_path):
    explorer, _, _ = made
    page = look(tmp_path).page

    def style(selector: str, name: str, pseudo: str = "") -> str:
        given = [selector, pseudo, name]
        return page.evaluate("([s, p, n]) => getComputedStyle(document.querySelector(s), p)[n]", given)

    put_on(page, explorer)
    page.add_style_tag(content=LAB)  # after ours: it wins where it is as specific
    page.evaluate("document.body.className = 'jp-ThemedContainer jp-OutputArea-output'")
    page.wait_for_selector(".about dt")
    assert [style(f".about {tag}", "float") for tag in ("dt", "dd")] == ["none", "none"]
    assert page.locator(".about dt").first.bounding_box()["height"] < 30  # one line
    button = page.locator("a.primary").first
    before = style("a.primary", "color")
    button.hover()
    assert style("a.primary", "color") == before
    page.get_by_role("link", name="Examples", exact=True).click()
    page.wait_for_selector(".card")
    assert style("input", "color", "::placeholder") != "rgb(1, 2, 3)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("around", "theme"),
    [
        ("document.body.dataset.jpThemeLight = 'false'", "dark"),
        ("document.body.dataset.jpThemeLight = 'true'", "light"),
        ("document.body.classList.add('vscode-dark')", "dark"),
        ("null", None),
    ],
)
def test_the_theme_is_the_notebooks(made, look, tmp_path, around, theme):
    page = look(tmp_path, scheme="light" if theme == "dark" else "dark").page
    page.evaluate(around)
    put_on(page, made[0])
    page.wait_for_selector("h1")
    assert page.evaluate("place.dataset.theme") == theme


@pytest.mark.slow
def test_the_front_end_and_python_drive_each_other(made, look, tmp_path):
    explorer, one, _ = made
    ids = one.examples["id"].tolist()
    page = look(tmp_path).page

    def follow(selector: str) -> None:
        page.evaluate("route => model.set('route', route)", explorer.route)
        page.wait_for_selector(selector)

    put_on(page, explorer)
    page.wait_for_selector("h1:has-text('first and second')")
    explorer.filter("wrong")
    follow(".card")
    assert explorer.selection()["id"].unique().tolist() == ids[1::2]
    until(page, "document.querySelector('.card img').naturalWidth > 0")
    explorer.show([ids[4], ids[0]])
    follow(f".card-id[title='{ids[4]}']")
    assert page.locator(".card-id").all_inner_texts() == [ids[4], ids[0]]
    page.get_by_label("Task and grounding").select_option("wrong")
    page.wait_for_selector(".card", state="detached")
    assert explorer.selection().empty
    page.get_by_role("button", name="Clear filters").click()
    page.locator(".card").nth(2).click()
    page.wait_for_selector(".example[data-drawn]", state="attached")
    assert explorer.route.startswith("/example/fake%2F002")
    assert explorer.selection()["id"].unique().tolist() == [ids[2]]
    page.evaluate("end()")
    until(page, "left() === 0")
