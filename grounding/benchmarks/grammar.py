"""Captions for the miniature scenes: noun phrases from attributes, sentences from templates, exact spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from grounding.benchmarks.scenes import Description, SceneObject
from grounding.examples import Span

SYNONYMS = {
    "small": ("small", "small", "little"),
    "large": ("large", "large", "big"),
    "plain": ("plain", "solid"),
    "dotted": ("dotted", "spotted"),
}
TRAILING = {"striped": ("with stripes",), "dotted": ("with dots", "with spots")}
OPENINGS = (
    "there is ", "the picture with ", "look for ", "", "it has ", "i see ", "you can see ", "this one shows ",
    "find the image that contains ", "we have ", "the one that has ",
)  # fmt: skip
TURNS = (
    "; it also has ",
    ", and there is also ",
    ", as well as ",
    ", plus ",
    ". there is also ",
    " together with ",
)
WORDINGS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "next to": ("next to", "beside", "near"),
}

Piece = str | int  # literal text, or the number of a noun phrase


@dataclass(frozen=True)
class NounPhrase:
    """``words`` is what a phrase's span covers; the article stays outside of it."""

    article: str
    words: str


def noun_phrase(random: Random, description: Description, article: str | None = None) -> NounPhrase:
    """Words for a description with a ``shape``: attribute order, synonyms and form vary.

    article: ``a`` or ``an`` by default. Spans leave it out: a phrase's words all say something about it.
    """
    noun = description["shape"]
    words = {
        name: random.choice(SYNONYMS.get(description[name], (description[name],)))
        for name in ("size", "texture", "colour")
        if name in description
    }
    trailing = ""
    if description.get("texture") in TRAILING and random.random() < 0.3:
        del words["texture"]
        trailing = " " + random.choice(TRAILING[description["texture"]])
    adjectives = _ordered(random, words)
    if adjectives and not trailing and random.random() < 0.12:
        text = f"{noun} that is {' and '.join(adjectives)}"
    else:
        text = " ".join([*adjectives, noun]) + trailing
    return NounPhrase(article or ("an" if text[0] in "aeiou" else "a"), text)


def _ordered(random: Random, words: dict[str, str]) -> list[str]:
    """Adjectives in an order that is usual (size first) four times in five, else any."""
    rest = [word for name, word in words.items() if name != "size"]
    random.shuffle(rest)
    if "size" in words:
        rest.insert(0 if random.random() < 0.8 else random.randint(0, len(rest)), words["size"])
    return rest


def true_relations(first: SceneObject, second: SceneObject) -> list[str]:
    """Relations of WORDINGS that hold between two objects (first <relation> second)."""
    dx, dy = second.x - first.x, second.y - first.y
    relations = []
    side = side_of((first.x, first.y), (second.x, second.y))
    if side:
        relations.append(side)
    if (dx * dx + dy * dy) ** 0.5 < first.radius + second.radius + 0.08:
        relations.append("next to")
    return relations


def side_of(point: tuple[float, float], landmark: tuple[float, float]) -> str | None:
    """Where the point is, seen from the landmark; None unless one axis clearly says so."""
    dx, dy = landmark[0] - point[0], landmark[1] - point[1]
    if max(abs(dx), abs(dy)) < 0.12 or max(abs(dx), abs(dy)) < 1.4 * min(abs(dx), abs(dy)):
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def game_caption(
    random: Random, phrases: Sequence[NounPhrase], relations: Callable[[int, int], list[str]]
) -> tuple[str, list[Span]]:
    """A sentence that mentions the phrases in their order, and the span of each.

    relations(i, i + 1): the relations that truly hold, any of which may join two neighbouring phrases.
    """
    clauses = _clauses(random, len(phrases), relations)
    pieces: list[Piece] = [random.choice(OPENINGS)]
    if len(clauses) > 1 and random.random() < 0.45:
        turn = random.randint(1, len(clauses) - 1)
        pieces += [*_listed(random, clauses[:turn]), random.choice(TURNS), *_listed(random, clauses[turn:])]
    else:
        pieces += _listed(random, clauses)
    pieces.append(random.choice((".", "")))
    return write(pieces, phrases)


def _clauses(random: Random, count: int, relations: Callable[[int, int], list[str]]) -> list[list[Piece]]:
    clauses: list[list[Piece]] = []
    index = 0
    while index < count:
        known = relations(index, index + 1) if index + 1 < count else []
        if known and random.random() < 0.4:
            clauses.append([index, f" {random.choice(WORDINGS[random.choice(known)])} ", index + 1])
            index += 2
        else:
            clauses.append([index])
            index += 1
    return clauses


def _listed(random: Random, clauses: Sequence[list[Piece]]) -> list[Piece]:
    """``A``, ``A and B``, ``A, B and C`` or ``A, B, and C``."""
    last = random.choice((" and ", ", and ")) if len(clauses) > 2 else " and "
    pieces: list[Piece] = []
    for position, clause in enumerate(clauses):
        if position:
            pieces.append(last if position == len(clauses) - 1 else ", ")
        pieces += clause
    return pieces


def write(pieces: Sequence[Piece], phrases: Sequence[NounPhrase]) -> tuple[str, list[Span]]:
    """The pieces joined into a caption, and the span of every phrase, in the order of ``phrases``."""
    text = ""
    spans: dict[int, Span] = {}
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        else:
            text += f"{phrases[piece].article} "
            spans[piece] = (len(text), len(text) + len(phrases[piece].words))
            text += phrases[piece].words
    return text, [spans[index] for index in range(len(phrases))]


def place_caption(random: Random, phrases: Sequence[NounPhrase], sides: Sequence[str]) -> tuple[str, list[Span], Span]:
    """Where the bear is: just to ``sides[0]`` of the first phrase, and on ``sides[k]`` of the others.

    Returns the caption, the span of each phrase, and the span of the word for what is hidden.
    """
    hidden = random.choice(("bear", "touchdown"))
    subject = "the bear" if hidden == "bear" else random.choice(("touchdown", "the touchdown"))
    near: list[Piece] = [f"just {random.choice(WORDINGS[sides[0]])} ", 0]
    far: list[list[Piece]] = [[f"{random.choice(WORDINGS[side])} ", k] for k, side in enumerate(sides) if k]
    start: list[Piece] = random.choice(
        ([f"{subject} is ", *near, ", ", *_listed(random, far)],
         [f"{subject} is ", *_listed(random, far), ", ", *near],
         ["look ", *near, f" to find {subject}; it is ", *_listed(random, far)],
         ["find ", 0, f" and {subject} is just {random.choice(WORDINGS[sides[0]])} it, ", *_listed(random, far)],
         [*near, f" is {subject}, ", *_listed(random, far)])
    )  # fmt: skip
    text, spans = write([*start, random.choice((".", ""))], phrases)
    begin = text.index(hidden)
    return text, spans, (begin, begin + len(hidden))
