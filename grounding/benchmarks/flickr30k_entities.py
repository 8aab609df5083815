"""Flickr30k Entities as published: captions with marked phrases (``Sentences``), boxes of chains (``Annotations``).

A phrase is marked ``[/EN#<chain>/<type>/... words]``. A chain is one thing, or several, that captions of an image name;
its boxes are in ``Annotations/<image>.xml``. Phrases of chain 0 (not visual) and of chains without boxes (``scene``,
``nobndbox``) are left out, as in the evaluation of the originals. Boxes count pixels from 1, last one included.

Source: Plummer et al., "Flickr30k Entities" (arXiv 1505.04870).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from grounding.benchmarks.base import Fault
from grounding.benchmarks.captioned import Captioned, Located
from grounding.benchmarks.files import inside, read_text, read_xml
from grounding.benchmarks.pixel_boxes import Size, box_of_corners
from grounding.errors import BadInput
from grounding.examples import Region, Span

NOT_VISUAL = "0"
_MARKED = re.compile(r"\[/EN#(\d+)/(\S+) ([^\[\]]*)\]")


@dataclass(frozen=True)
class Mention:
    """A marked phrase: chain, types (joined by ``/`` where there are several) and its span in the plain caption."""

    chain: str
    type: str
    span: Span


@dataclass(frozen=True)
class Boxes:
    """What an image's XML file says: its size and the regions of every chain that it names (none: not located)."""

    size: Size
    chains: Mapping[str, tuple[Region, ...]]


def read_split(root: Path, split: str, images: Path, accepted: str) -> Iterator[Captioned | Fault]:
    """The captions of the images that ``<split>.txt`` lists, in its order; ids are ``<image>/<number of the line>``.

    A Fault is an image that cannot be read at all, or one caption of it.
    """
    path = root / f"{split}.txt"
    seen: set[str] = set()
    for name in read_text(path, accepted).split():
        try:
            inside(root, name, path)
            if name in seen:
                raise BadInput(f"{path}: image {name!r} is listed twice")
            seen.add(name)
            lines = read_text(root / "Sentences" / f"{name}.txt", accepted).rstrip("\n").split("\n")
            boxes = read_boxes(root / "Annotations" / f"{name}.xml", accepted)
            yield from _captions(name, root, lines, boxes, images)
        except BadInput as error:
            yield Fault(name, str(error))


def _captions(name: str, root: Path, lines: list[str], boxes: Boxes, images: Path) -> Iterator[Captioned | Fault]:
    path = root / "Sentences" / f"{name}.txt"
    marked = {chain for line in lines for chain, _, _ in _MARKED.findall(line)}
    if boxes.chains and marked and not marked & boxes.chains.keys():
        raise BadInput(
            f"{path}: no phrase is of a chain that {name}.xml names; captions and boxes do not belong together"
        )
    for number, line in enumerate(lines):
        where = f"{path}, line {number + 1}"
        try:
            caption, mentions = parse_sentence(line, where)
        except BadInput as error:
            yield Fault(f"{name}/{number}", str(error))
            continue
        phrases = tuple(
            Located(mention.type, (mention.span,), boxes.chains[mention.chain])
            for mention in mentions
            if mention.chain != NOT_VISUAL and boxes.chains.get(mention.chain)
        )
        yield Captioned(f"{name}/{number}", images / f"{name}.jpg", boxes.size, caption, phrases, where)


def parse_sentence(line: str, where: str) -> tuple[str, list[Mention]]:
    """The plain caption and its marked phrases. Raises BadInput, beginning with ``where``, for broken marks.

    >>> parse_sentence("[/EN#1/people Two men] wave .", "line 1")
    ('Two men wave .', [Mention(chain='1', type='people', span=(0, 7))])
    """
    caption, mentions, done = "", [], 0
    for match in _MARKED.finditer(line):
        chain, kind, words = match.groups()
        if not words.strip():
            raise BadInput(f"{where}: the phrase of chain {chain} is empty")
        caption += line[done : match.start()]
        mentions.append(Mention(chain, kind, (len(caption), len(caption) + len(words))))
        caption += words
        done = match.end()
    caption += line[done:]
    if "/EN#" in caption:
        raise BadInput(f"{where}: phrases overlap or are not closed; accepted: [/EN#<chain>/<type> words]")
    if not caption.strip():
        raise BadInput(f"{where}: the caption is empty")
    return caption, mentions


def read_boxes(path: Path, accepted: str) -> Boxes:
    """The boxes of one image. Raises BadInput naming the file, and the chain whose box cannot be used."""
    tree = read_xml(path, accepted)
    where = f"annotations {path}"
    of = _text(tree, "filename", where)
    if Path(of).stem != path.stem:
        raise BadInput(f"{where} are of image {of!r}; accepted: {path.stem}")
    size = _whole(tree, "size/width", where), _whole(tree, "size/height", where)
    if min(size) < 1:
        raise BadInput(f"{where}: an image of {size[0]} x {size[1]} pixels; accepted: 1 or more each")
    chains: dict[str, list[Region]] = defaultdict(list)
    for thing in tree.findall("object"):
        names = [name.text or "" for name in thing.findall("name")]
        if not all(names) or not names:
            raise BadInput(f"{where}: an object has no name")
        box = thing.find("bndbox")
        for name in names:
            found = chains[name]
            if box is not None:
                here = f"{where}, chain {name}"
                corners = [_whole(box, corner, here) for corner in ("xmin", "ymin", "xmax", "ymax")]
                found.append(Region(box_of_corners(corners, size, here)))
    return Boxes(size, {name: tuple(regions) for name, regions in chains.items()})


def _text(element: ElementTree.Element, path: str, where: str) -> str:
    text = element.findtext(path)
    if not text or not text.strip():
        raise BadInput(f"{where}: {path!r} is missing")
    return text.strip()


def _whole(element: ElementTree.Element, path: str, where: str) -> int:
    text = _text(element, path, where)
    try:
        return int(text)
    except ValueError:
        hint = "; is it relative (0..1)?" if "." in text else ""
        raise BadInput(f"{where}: {path!r} is {text!r}{hint}; accepted: a whole number of pixels") from None
