"""Captions: every word drawn once, in its phrase's colour, within the width."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from visualize.caption import PAD, lay_out
from visualize.overlays import number_phrases
from visualize.sheet import Sheet, break_lines, shorten, text_width


def lines_of(caption) -> list[str]:
    return [" ".join(p.text.strip() for p in caption.pieces if p.line == n) for n in range(caption.lines)]


def spans_of(text: str, *phrases: str) -> list[list[tuple[int, int]]]:
    return [[(text.index(p), text.index(p) + len(p))] for p in phrases]


def test_words_are_coloured_by_phrase_and_nothing_else_is():
    text = "a red cup near the blue plate"
    caption = lay_out(text, spans_of(text, "red cup", "blue plate"), width=9)
    assert [(p.text.strip(), p.phrase) for p in caption.pieces] == [
        ("a", None), ("red cup", 0), ("near the", None), ("blue plate", 1),
    ]  # fmt: skip
    edges = [(p.x, p.x + p.width) for p in caption.pieces]
    assert all(right <= left + 1e-9 for (_, right), (left, _) in pairwise(edges))


def test_long_captions_wrap_within_the_width_and_lose_no_word():
    text = " ".join(f"word{n}" for n in range(300))
    caption = lay_out(text, [[(0, len(text))]], width=3.0)
    assert caption.lines > 20
    assert all(p.x + p.width <= 3.0 + 1e-9 for p in caption.pieces)
    assert " ".join(lines_of(caption)) == text
    assert caption.height == pytest.approx(caption.lines * 1.75 * 10.5 / 72)


def test_a_word_wider_than_the_line_is_broken():
    caption = lay_out("x" * 500, [], width=2.0)
    assert caption.lines > 5
    assert "".join(p.text for p in caption.pieces) == "x" * 500
    assert all(p.width <= 2.0 for p in caption.pieces)


def test_captions_can_be_cut():
    caption = lay_out("some words " * 50, [], width=2.0, max_lines=2)
    assert caption.lines == 2
    assert caption.pieces[-1].text.endswith("…")
    assert all(p.x + p.width <= 2.0 + 1e-9 for p in caption.pieces)


def test_a_phrase_inside_another_keeps_its_colour_over_the_others_line():
    text = "the man in a hat"
    caption = lay_out(text, [[(0, 16)], [(11, 16)]], width=9)
    assert [(p.text.strip(), p.phrase, p.around) for p in caption.pieces] == [
        ("the man in", 0, ()), ("a hat", 1, (0,)),
    ]  # fmt: skip


def test_spans_may_end_inside_a_word_and_come_in_several_parts():
    caption = lay_out("cups, and cups", [[(0, 4), (10, 14)]], width=9)
    assert [(p.text.strip(), p.phrase) for p in caption.pieces] == [("cups", 0), (", and", None), ("cups", 0)]


def test_line_breaks_and_control_characters_become_spaces():
    caption = lay_out("a\nb\tc\u2028d\x00e", [], width=9)
    assert caption.pieces[0].text == "a b c d e"


def test_empty_captions_take_no_room():
    assert lay_out("", [], width=9).height == 0
    assert lay_out("  ", [[(0, 2)]], width=9).pieces == ()


def test_no_break_spaces_hold_words_together():
    caption = lay_out("aaaa bbbb\u00a0cccc", [], width=text_width("aaaa bbbb", 10.5) + 0.01)
    assert lines_of(caption) == ["aaaa", "bbbb\u00a0cccc"]


def test_right_to_left_captions_start_at_the_right_and_keep_a_phrase_together():
    text = "עיגול אדום ליד TV ישן"
    caption = lay_out(text, spans_of(text, "עיגול אדום", "TV ישן"), width=5)
    assert [(p.text.strip(), p.phrase) for p in caption.pieces] == [("עיגול אדום", 0), ("ליד", None), ("TV ישן", 1)]
    lefts = [p.x for p in caption.pieces]
    assert lefts == sorted(lefts, reverse=True)
    assert caption.pieces[0].x + caption.pieces[0].width == pytest.approx(5)


def drawn(text: str, **options) -> np.ndarray:
    """A line of text as it is seen: where there is ink, ``[height, width]``, cut to what has any."""
    sheet = Sheet(3, 0.5)
    lay_out(text, [], width=3, **options).draw(sheet, 0, 0)
    figure = sheet.finish()
    figure.canvas.draw()
    ink = np.asarray(figure.canvas.buffer_rgba())[..., 0] < 128
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@pytest.mark.parametrize(
    ("text", "from_right", "bar_first"),
    [("lש", True, False), ("שl", True, True), ("lש", False, True), ("שl", False, False)],
)
def test_letters_of_both_directions_are_ordered_as_in_the_whole_caption(text, from_right, bar_first):
    ink = drawn(text, from_right=from_right)
    left, right = ink[:, :2].sum(), ink[:, -2:].sum()  # the bar of l is as high as the line
    assert (left > right) == bar_first


def test_labels_of_phrases_stand_at_the_left_in_every_script():
    label = lay_out("עיגול אדום   largest value", [[(0, 10)]], width=9, from_right=False)
    assert label.pieces[0].x == 0
    assert [p.phrase for p in label.pieces] == [0, None]


def test_what_looks_like_mathematics_is_measured_as_it_is_written():
    assert text_width("$x^2$", 10) > text_width("x2", 10)
    assert text_width("\\frac{a", 10) > text_width("a", 10)
    caption = lay_out("$5_a and $6", [[(0, 4)]], width=9)
    assert caption.pieces[0].width == pytest.approx(text_width("$5_a", 10.5) + 2 * PAD)


def test_numbers_follow_their_phrases_and_move_the_spans():
    text = "a hat on a man"
    numbered, spans = number_phrases(text, [[(0, 14)], [(2, 5)], [(9, 14)]])
    assert numbered == "a hat² on a man¹³"
    words = [[numbered[begin:end] for begin, end in phrase] for phrase in spans]
    assert words == [["a hat² on a man¹"], ["hat²"], ["a man¹³"]]


def test_text_is_shortened_and_broken_to_measure():
    assert shorten("short", 5, 8) == "short"
    cut = shorten("a very long phrase that goes on", 1.0, 8)
    assert cut.endswith("…")
    assert text_width(cut, 8) <= 1.0
    lines = break_lines("one two three four five six seven", 0.7, 8)
    assert len(lines) > 2
    assert all(text_width(line, 8) <= 0.7 for line in lines)
