"""Captions: the study's sentence, spans with their articles inside, articles by number and sound."""

from __future__ import annotations

import pytest

from grounding.benchmarks.captions import clean_name, head_noun, indefinite_article, part_caption, with_article


@pytest.mark.parametrize(
    ("whole", "parts", "text", "spans"),
    [  # the first three are the captions and spans recorded from the study's own program (E_game)
        (
            "bird",
            ["head", "arm", "the wing"],
            "This looks like a bird with a head, an arm, and the wing.",
            ((28, 34), (36, 42), (48, 56)),
        ),
        ("boat", ["sail", "the leg"], "This looks like a boat with a sail, and the leg.", ((28, 34), (40, 47))),
        ("boat", ["head"], "This looks like a boat with a head.", ((28, 34),)),
        ("red bird", [], "This looks like a red bird.", ()),
        ("an owl", ["wings", "eye"], "This looks like an owl with wings, and an eye.", ((28, 33), (39, 45))),
    ],
)
def test_captions_and_spans_are_the_studys(whole, parts, text, spans):
    caption = part_caption(whole, parts)
    assert caption.text == text
    assert caption.spans == spans


@pytest.mark.parametrize(
    ("article", "words"),
    [
        ("an", "apple owl umbrella usher uncle uninvited unimportant hour hourglass honest honor heir x-ray"),
        ("a", "bird unicorn uniform union use user usual utensil european one-eyed once-over ukulele ufo yo-yo house"),
        ("an", "8 80 800th 11 18 s f l m x atm"),
        ("a", "1 2nd 180 110 3d b k u tv usb"),
    ],
)
def test_articles_follow_the_sound(article, words):
    wrong = [word for word in words.split() if indefinite_article(word) != article]
    assert wrong == []


NO_ARTICLE = """
the wing; a man; an ear; his hat; their body; two people hugging; some bird; another leg; legs; feet; women; snowmen
wings of the plane; 3d glasses; arms folded in prayer; legs/feet; arms extended; back legs and body; hair; smoke
lower legs, bent at knees; 2 loudspeakers; shoulders & arm; hair in buns; ice cream; someone praying; dancing
kneeling on a mat; arm 1
"""
ARTICLE = """
bird; left wing; body and arms; person kicking a ball; man with arms; bus; walrus; glass; mantis; dress; specimen
building; lens; man praying on his knees; cat with wings; sitting man; face (with eyes); head, looking at birds
1st mountain; dog's head; wall; running person
"""


def names(text: str) -> list[str]:
    return text.strip().replace("\n", "; ").split("; ")


@pytest.mark.parametrize("name", names(NO_ARTICLE))
def test_plurals_determined_mass_and_numbered_phrases_get_no_article(name):
    assert with_article(name) == name


@pytest.mark.parametrize("name", names(ARTICLE))
def test_singulars_get_one(name):
    assert with_article(name) == f"a {name}"


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("Head", "head"),
        ("the left leg", "leg"),
        ("top of head", "top"),
        ("hair in buns on each side of head", "hair"),
        ("arms folded in prayer", "arms"),
        ("person 1's head", "head"),
        ("arm 2", "arm"),
        ("legs/feet", "legs"),
        ("feet / wheels", "feet"),
        ("left arm (supported by elbow)", "arm"),
        ("head looking behind", "head"),
        ("right wing", "wing"),
        ("", ""),
        ("&", "&"),
    ],
)
def test_head_nouns(name, head):
    assert head_noun(name) == head


def test_names_are_cleaned_at_their_edges_only():
    assert clean_name("  a  rabbit\tman. ") == "a rabbit man"
    assert clean_name("holding paper:") == "holding paper"
    assert clean_name("person 1's arms") == "person 1's arms"
    assert clean_name(" . ") == ""
