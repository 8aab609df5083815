"""Where one is in the report: what is selected, shown and focused stays through what is chosen on its pages."""

from __future__ import annotations

import numpy as np
import pytest
from fake_gallery import SITES, make_example, make_run
from report_browser import until
from report_pages import PlantedProbes, by_id, items_of

from visualize.report import Subject, write_report

pytestmark = pytest.mark.slow


def test_other_checkpoints_leave_the_chosen_examples_as_they_are(two, look):
    folder, subjects = two
    other, chosen = (len(subject.outcomes.matching(False, True)) for subject in subjects)
    assert chosen != other
    seen = look(folder)
    seen.go("/gallery?of=1&quadrant=wrong_grounded")
    seen.page.locator(".card").first.click()
    seen.page.wait_for_selector(".example .where")
    assert seen.page.locator(".side h2").all_inner_texts() == ["second", "first"]
    seen.page.get_by_label("Beside it").select_option("none")
    seen.page.wait_for_selector(".sides.of-1")
    assert seen.page.locator(".where").inner_text() == f"1 of {chosen} examples"
    seen.page.get_by_label("Checkpoint").select_option("0")
    until(seen.page, "document.querySelector('.side').getAttribute('aria-label') === 'first'")
    assert seen.page.locator(".where").inner_text() == f"1 of {chosen} examples"


@pytest.mark.parametrize(("shown", "then"), [("model", "probe"), ("boxes", "probe"), ("attention", "attention")])
def test_a_layer_of_the_probes_table_leads_there_from_every_map(two, look, shown, then):
    seen = look(two[0])
    seen.go(f"/example/fake%2F001?a=1&phrase=1&map={shown}")
    seen.drawn()
    seen.page.get_by_role("button", name=f"Layer {SITES[1]}").first.click()
    assert (seen.params()["map"], seen.params()["site"]) == (then, SITES[1])
    seen.page.wait_for_selector(f".map-words:has-text('at {SITES[1]}')")
    assert seen.page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Layer {SITES[1]}"


def test_a_layer_of_the_table_is_that_of_its_own_model_beside_one_with_fewer(tmp_path, look):
    examples = [make_example(number) for number in range(2)]
    one, other = make_run(examples, seed=1), make_run(examples, seed=2)
    few = items_of(one)
    few = few[few["site"].isin([SITES[0], SITES[-1]])]
    other.site_names = tuple(f"e.{place}" for place in range(len(SITES)))
    many = items_of(other).replace({"site": dict(zip(SITES, other.site_names, strict=True))})
    write_report([Subject(one, "a", items=few), Subject(other, "b", items=many)], tmp_path / "out", by_id(examples))
    seen = look(tmp_path / "out")
    seen.go("/example/fake%2F000?phrase=1&map=probe")
    seen.drawn()
    for name in other.site_names:
        seen.page.get_by_role("button", name=f"Layer {name}", exact=True).click()
        seen.page.wait_for_selector(f".side >> nth=1 >> .map-words:has-text('at {name}')")
        marked = seen.page.locator(".side").nth(1).locator(".probe-layers .current button")
        assert marked.get_attribute("title") == name


def test_where_there_is_no_map_of_a_probe_its_answers_are_told(tmp_path, look):
    examples = [make_example(number) for number in range(2)]
    run = make_run(examples)
    probed = PlantedProbes(run, np.ones((len(run.phrases), 24, 4)), {})
    write_report([Subject(run, "x", items=items_of(run), probed=probed)], tmp_path / "out", by_id(examples))
    seen = look(tmp_path / "out")
    seen.go("/example/fake%2F000?phrase=1&map=boxes")
    seen.drawn()
    seen.page.get_by_role("button", name=f"Layer {SITES[2]}").click()
    seen.page.wait_for_selector(f".map-words:has-text('at {SITES[2]}')")
    words = seen.page.locator(".map-words").inner_text()
    assert f"this report has no map at this layer. Probes at {SITES[2]}: linear finds it." in words


def test_the_filter_of_the_run_keeps_the_focus_and_the_other_filters(two, look):
    seen = look(two[0])
    seen.go("/gallery")
    seen.page.get_by_label("Task and grounding").select_option("right")
    before = seen.ids()
    seen.page.get_by_label("Outcome of").focus()
    seen.page.keyboard.press("ArrowDown")
    until(seen.page, "document.activeElement.dataset.key === 'of' && document.activeElement.value === '1'")
    assert seen.params() == {"of": "1", "quadrant": "right"}
    assert set(seen.ids()).isdisjoint(before)  # the runs are right about other examples


def open_later_card(seen, number: int) -> list[str]:
    """Open the card of that number after the first ones of the gallery; the ids of all that it shows."""
    seen.go("/gallery")
    seen.page.get_by_role("button", name="Later").first.click()
    ids = seen.ids()
    seen.page.locator(".card").nth(number).click()
    seen.page.wait_for_selector(".example h1")
    return ids


def test_on_the_way_back_the_card_that_was_open_has_the_focus(two, look):
    seen = look(two[0])
    ids = open_later_card(seen, 20)
    seen.page.go_back()
    until(seen.page, f"document.activeElement.dataset.example === '{ids[20]}'")
    box = seen.page.locator(".card").nth(20).bounding_box()
    assert 0 <= box["y"] <= 900
    seen.page.keyboard.press("j")
    assert seen.page.evaluate("document.activeElement.dataset.example") == ids[21]


def test_on_the_way_back_from_the_next_example_its_card_is_in_sight(two, look):
    seen = look(two[0])
    ids = open_later_card(seen, 20)
    seen.page.get_by_role("link", name="Next").click()
    until(seen.page, f"document.querySelector('.example h1')?.textContent === '{ids[21]}'")
    seen.page.go_back()
    until(seen.page, f"document.querySelector('.example h1')?.textContent === '{ids[20]}'")
    seen.page.evaluate("scrollTo(0, 0)")
    seen.page.locator("[data-key='next']").focus()
    seen.page.go_back()
    until(seen.page, f"document.activeElement.dataset.example === '{ids[20]}'")
    box = seen.page.locator(".card").nth(20).bounding_box()
    assert 0 <= box["y"] <= 900


def test_what_is_no_choice_of_a_filter_is_passed_over(two, look):
    seen = look(two[0])
    seen.go("/gallery?quadrant=toString")
    assert seen.ids()


def test_labels_of_filters_lie_on_a_line(two, look):
    seen = look(two[0])
    seen.go("/gallery")
    tops = seen.page.locator(".filters .field-name").evaluate_all("all => all.map(e => e.getBoundingClientRect().top)")
    assert len({round(top) for top in tops}) == 2  # of nine fields, in two rows


def test_an_address_with_an_unknown_filter_shows_all(two, look):
    seen = look(two[0])
    for unknown in ("type=zzz", "quadrant=zzz", "change=zzz"):
        seen.go(f"/gallery?{unknown}")
        assert "60 of 60" in seen.page.get_by_role("status").inner_text()
