"""KiloGram captions: "This looks like <whole> with <part>, <part>, and <part>.", with articles and spans.

The study gives a singular noun phrase its indefinite article if it has none (its preprocessing uses the
``inflect`` library on the last word). The rules here are small and read the head noun instead:

* no article after a determiner (a, the, his, two, ...), before a numeral that counts, before a
  plural ("feet", "snowmen", "wings"), a mass noun ("hair", "water"), a pronoun ("someone"), a bare
  activity ("dancing") or a numbered label ("arm 1");
* the head is the last word before a preposition, conjunction, comma or participle ("top of head",
  "arms folded in prayer", "man kicking a ball");
* "an" before a vowel sound: before a vowel, but also "hour", "honest", "heir" and the numerals 8.., 11, 18, and
  not "unicorn", "use", "European", "one-eyed", "UFO"; letters that are spelled out by their names ("an s").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from grounding.examples import Span


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_DETERMINERS = _listed(
    "a an the this that these those his her its their my your our some any no another each every both all several "
    "many few one two three four five six seven eight nine ten half"
)
_AFTER_THE_HEAD = _listed(
    "of with without in inside into on onto at for to from by near under over above below behind between "
    "around against through like as facing and or & plus then who that which when where while is are was up down "
    "out outside upside sideways towards toward covered seen made"
)
_PRONOUNS = _listed("someone somebody something nothing everything it")
_MASS_NOUNS = _listed(
    "hair water smoke sand grass snow ice food clothing steam wax mail luggage armor armour debris tea liquid fur "
    "skin foliage greenery lava gas propane vomit cream syrup furniture equipment dirt mud"
)
_SINGULAR_IN_S = _listed("lens gas bus canvas atlas chess mantis series abyss")
_IRREGULAR_PLURALS = _listed("people feet teeth children mice geese oxen dice cacti fungi antennae")
_SINGULAR_IN_MEN = _listed("abdomen specimen omen semen stamen ramen")
_NOUNS_IN_ING = _listed(
    "wing ring king building string spring swing ceiling thing railing awning sling opening covering setting housing "
    "casing lining landing stocking"
)

_CONSONANT_SOUND = re.compile(r"eu|ewe|one(?![a-z])|once|ufo|uk|us[bp]|u[st][aeiou]|ura|uni(?:[bcflopqstvx]|$)")
_VOWEL_SOUND = re.compile(r"[aeiou]|hour|honest|hono|heir|8|1[18](?!\d)")
_SPELLED_WITH_VOWEL = frozenset("aefhilmnorsx")


@dataclass(frozen=True)
class Caption:
    """A caption and the character span ``[begin, end)`` of each part, its article inside."""

    text: str
    spans: tuple[Span, ...]


def part_caption(whole: str, parts: Sequence[str]) -> Caption:
    """The study's caption for a whole and its named parts, in the order given.

    >>> part_caption("boat", ["sail", "the leg"])
    Caption(text='This looks like a boat with a sail, and the leg.', spans=((28, 34), (40, 47)))
    """
    text = f"This looks like {with_article(whole)}"
    spans = []
    for number, part in enumerate(parts):
        text += " with " if number == 0 else ", and " if number == len(parts) - 1 else ", "
        begin = len(text)
        text += with_article(part)
        spans.append((begin, len(text)))
    return Caption(text + ".", tuple(spans))


def clean_name(name: str) -> str:
    """The annotator's words without outer punctuation and repeated spaces."""
    return " ".join(name.split()).strip(" .,:;'\"")


def with_article(name: str) -> str:
    """The noun phrase, with an indefinite article if it is a singular that lacks one.

    >>> [with_article(name) for name in ("hour", "one-eyed man", "legs", "hair in buns", "the wing")]
    ['an hour', 'a one-eyed man', 'legs', 'hair in buns', 'the wing']
    """
    words = _words(name)
    head = head_noun(name)
    needs_none = (
        not words
        or words[0] in _DETERMINERS
        or words[0] in _PRONOUNS
        or (len(words) > 1 and words[-1].isdigit())
        or head in _MASS_NOUNS
        or _is_plural(head)
        or (head == words[0] and _is_participle(head))
    )
    return name if needs_none else f"{indefinite_article(words[0])} {name}"


def indefinite_article(word: str) -> str:
    """``a`` or ``an``, by the sound that the word begins with."""
    word = word.lower()
    letters = re.match(r"[a-z]*", word)
    stem = letters.group() if letters else ""
    if stem and (len(stem) == 1 or not re.search("[aeiouy]", stem)):  # spelled: an s, a tv
        return "an" if stem[0] in _SPELLED_WITH_VOWEL else "a"
    if _CONSONANT_SOUND.match(word):
        return "a"
    return "an" if _VOWEL_SOUND.match(word) else "a"


def head_noun(name: str) -> str:
    """The word that a noun phrase is about, lower-cased: the last one before anything that qualifies it.

    >>> [head_noun(name) for name in ("Left leg", "top of head", "arms folded in prayer", "arm 1", "legs/feet")]
    ['leg', 'top', 'arms', 'arm', 'legs']
    """
    words = _words(name)
    while len(words) > 1 and words[-1].isdigit():
        words.pop()
    start = 1 if words and words[0] in _DETERMINERS else 0
    for position in range(start + 1, len(words)):
        word, before = words[position], words[position - 1]
        if word in _AFTER_THE_HEAD or before.endswith(","):
            words = words[:position]
            break
        if _is_participle(word) or (word.endswith("ed") and _is_plural(before)):
            words = words[:position]
            break
    return words[-1].rstrip(",").split("/")[0] if words else ""


def _words(name: str) -> list[str]:
    """Lower-case words; commas stay (they end a noun phrase), brackets and their content go."""
    text = re.sub(r"\(.*?(\)|$)", " ", name.lower()) if not name.startswith("(") else name.lower()
    words = (word.strip(".:;!?\"'()[]") for word in text.replace(" / ", "/").replace("/ ", "/").split())
    return [word for word in words if word.strip(",")]


def _is_plural(word: str) -> bool:
    word = word.rstrip(",")
    if word in _IRREGULAR_PLURALS or (word.endswith("men") and word not in _SINGULAR_IN_MEN):
        return True
    return (
        word.endswith("s")
        and len(word) > 2
        and not word.endswith(("ss", "us", "is", "'s"))
        and (word not in _SINGULAR_IN_S)
    )


def _is_participle(word: str) -> bool:
    return word.endswith("ing") and len(word) > 4 and word not in _NOUNS_IN_ING
