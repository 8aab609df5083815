"""KiloGram: people's readings of tangrams, as part-coloured images, captions and reference games.

Source: Ji et al., "Abstract Visual Reasoning with Tangram Shapes" (arXiv 2211.16492), as used by Kojima et
al. (arXiv 2309.02691). A root folder holds the published ``dense.json``, ``dense10.json`` and ``tangrams-svg/``.

What this reader decides, and where it leaves the study:

* Splits are by tangram, drawn by the seed from the names in the JSON file: 3/5 train, 1/5 dev, 1/5 test.
* Parts come in the caption in a random order of their own (seeded by image), as in the study, so that a phrase's
  place in the caption tells nothing about its place, size or shape in the image.
* Pieces without a name (``UNKNOWN``, empty or not listed) are no phrase, but they form a group that has a colour
  and counts as a part, as in the study: no colour of its own marks them, nor the number of colours a game's target.
* ``colour_order="random"`` draws each image's colours; ``"caption"`` gives the k-th phrase the k-th colour, as in
  the study (where nameless pieces could take a place among them; here they have the colour after the last).
* Distractors are annotations of other tangrams of the split with the same number of parts, each coloured by its
  own parts. The candidates' wholes all differ, as in KiloGram's games. They come from nine tangrams where that
  many have such an annotation; otherwise some tangrams come twice, which never happens to the target's.
* ``transform`` is applied to the outlines. The study's preparation did not, so its boxes are off where there is one.

The 60 densely annotated tangrams of the shared extract (36/12/12), seed 0, games of ten: 1,927 examples in train,
638 in dev (13 annotations excluded; 162 games with a tangram twice), 626 in test (14 excluded; 64).
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw

from grounding.benchmarks.base import Benchmark, Fault, Skipped
from grounding.benchmarks.captions import Caption, clean_name, head_noun, part_caption, with_article
from grounding.benchmarks.files import field, read_json
from grounding.benchmarks.games import Game, make_game
from grounding.benchmarks.minimal_pairs import MinimalPair, chosen_kinds, require_pairs
from grounding.benchmarks.svg import Drawing, Piece, read_drawing
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, Phrase, ReferenceGame, Region
from grounding.values import check_counts

Colour = tuple[int, int, int]

# The study's names and order (CSS Color 4, 6.1).
COLOURS: dict[str, Colour] = {
    "coral": (255, 127, 80),
    "gold": (255, 215, 0),
    "light sky blue": (135, 206, 250),
    "light pink": (255, 182, 193),
    "medium sea green": (60, 179, 113),
    "dark grey": (169, 169, 169),
    "light grey": (211, 211, 211),
}
COLOUR_ORDERS = ("random", "caption")
ANNOTATION_SETS = ("dense", "dense10")
_WHITE = (255, 255, 255)
_OVERSAMPLING = 4
_NAMELESS = "UNKNOWN"


@dataclass(frozen=True)
class Tangram:
    """A drawing with a colour for each piece, rendered when it is needed.

    colours: RGB 0..255, one a piece, in the drawing's order. size: side in pixels unless ``render`` is told.
    """

    drawing: Drawing
    colours: tuple[Colour, ...]
    size: int = 224

    def render(self, size: int | None = None) -> np.ndarray:
        """Pixels, uint8 ``[size, size, 3]``: filled pieces with thin white edges on white, anti-aliased."""
        size = self.size if size is None else size
        check_counts(size=size)
        side = size * _OVERSAMPLING
        edge = max(1, round(self.drawing.unit * side))
        image = Image.new("RGB", (side, side), _WHITE)
        draw = ImageDraw.Draw(image)
        for piece, colour in zip(self.drawing.pieces, self.colours, strict=True):
            # Pillow's integer coordinates are pixel centres, half a pixel from the corner that ours count from.
            outline = [(x * side - 0.5, y * side - 0.5) for x, y in piece.polygon]
            draw.polygon(outline, fill=colour)
            draw.line([*outline, outline[0]], fill=_WHITE, width=edge)
        return np.asarray(image.reduce(_OVERSAMPLING))


@dataclass(frozen=True)
class Part:
    """Pieces that one person gave the same name; an empty name for those without one."""

    name: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Annotation:
    """One person's reading of a tangram; ``parts`` in the order of the caption, nameless pieces last."""

    id: str
    tangram: str
    whole: str
    parts: tuple[Part, ...]
    caption: Caption
    image: Tangram


class KiloGram(Benchmark):
    """Reference games over part-coloured tangrams, one for each annotation.

    colour_order: ``random`` or ``caption``. annotations: ``dense`` (about 54 a tangram) or ``dense10`` (10).
    image_size: side in pixels of a candidate. candidates: images in a game; 1 leaves only the grounding.

    Raises BadInput for an unknown choice, a size or number of candidates that is too small, a root without
    the files, and a JSON file that cannot be read, naming it; a broken drawing or annotation is a fault of
    its own split only.
    """

    name: ClassVar[str] = "kilogram"
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    needs_root: ClassVar[bool] = True
    files: ClassVar[str] = "dense.json or dense10.json, and tangrams-svg/"

    def __init__(
        self,
        root: Path | str | None = None,
        seed: int = 0,
        colour_order: str = "random",
        annotations: str = "dense",
        image_size: int = 224,
        candidates: int = 10,
    ):
        super().__init__(Path(root) if root is not None else None, seed)
        if colour_order not in COLOUR_ORDERS:
            raise unknown_choice("colour_order", colour_order, COLOUR_ORDERS)
        if annotations not in ANNOTATION_SETS:
            raise unknown_choice("annotations", annotations, ANNOTATION_SETS)
        check_counts(image_size=image_size, candidates=candidates)
        self.colour_order = colour_order
        self.annotations = annotations
        self.image_size = image_size
        self.candidates = candidates
        self._folder = self.root or Path()
        self._json = self._folder / f"{annotations}.json"
        self._records = _read_records(self._json)
        self._loaded: dict[str, list[Example | Fault]] = {}

    def tangrams(self, split: str) -> tuple[str, ...]:
        """Names of a split's tangrams, sorted. The drawings play no part, so a broken one moves no other."""
        names = sorted(self._records)
        random.Random(f"{self.seed}/splits").shuffle(names)
        held_out = round(len(names) / 5)
        train = len(names) - 2 * held_out
        bounds = {"train": (0, train), "dev": (train, train + held_out), "test": (train + held_out, len(names))}
        if split not in bounds:
            raise unknown_choice("split", split, self.splits)
        return tuple(sorted(names[slice(*bounds[split])]))

    def identity(self) -> Mapping[str, object]:
        """Hash of the annotations and of every drawing they name, with the seed and the options."""
        content = hashlib.sha256(self._json.read_bytes())
        for tangram in sorted(self._records):
            path = self._drawing_path(tangram)
            content.update(f"\n{tangram}\n".encode())
            content.update(path.read_bytes() if path.is_file() else b"missing")
        return {
            "name": self.name,
            "content": content.hexdigest(),
            "seed": self.seed,
            "colour_order": self.colour_order,
            "annotations": self.annotations,
            "image_size": self.image_size,
            "candidates": self.candidates,
        }

    def minimal_pairs(
        self, split: str, limit: int | None = None, kinds: Sequence[str] | None = None
    ) -> list[MinimalPair]:
        """See ``grounding.benchmarks.kilogram_pairs``: ``colour`` and ``distractor``."""
        from grounding.benchmarks.kilogram_pairs import KINDS, minimal_pair

        chosen = chosen_kinds(kinds, KINDS)
        everything = self.load(split, skip_bad=True)
        games = everything[:limit]
        found = (
            minimal_pair(game, kind, everything, self._random(game.id, f"pair/{kind}"))
            for game in games
            for kind in chosen
        )
        return require_pairs([pair for pair in found if pair is not None], chosen, len(games))

    def _read(self, split: str, limit: int | None) -> Iterator[Example | Fault]:
        if split not in self._loaded:
            self._loaded[split] = self._games(split)
        yield from self._loaded[split]

    def _drawing_path(self, tangram: str) -> Path:
        return self._folder / "tangrams-svg" / f"{tangram}.svg"

    def _games(self, split: str) -> list[Example | Fault]:
        """Faults first, then one example for each annotation that has a game, in an order drawn by the seed."""
        annotations, faults = self._annotations(split)
        items: list[Example | Fault] = [*faults]
        pools: dict[int, list[Annotation]] = defaultdict(list)
        for annotation in annotations:
            pools[len(annotation.parts)].append(annotation)
        excluded = []
        for annotation in sorted(annotations, key=lambda a: self._random(a.id, "place").random()):
            game = make_game(
                annotation,
                pools[len(annotation.parts)],
                self.candidates,
                self._random(annotation.id, "game"),
                source=lambda a: a.tangram,
                label=lambda a: a.whole,
            )
            if game is None:
                reason = f"fewer than {self.candidates - 1} distractors of {len(annotation.parts)} parts in {split}"
                excluded.append(Skipped(f"{self.name}/{split}/{annotation.id}", reason))
            else:
                items.append(_example(self.name, split, annotation, game))
        self.excluded[split] = excluded
        return items

    def _annotations(self, split: str) -> tuple[list[Annotation], list[Fault]]:
        """Readable annotations of a split, and a fault for each broken drawing or annotation."""
        annotations: list[Annotation] = []
        faults: list[Fault] = []
        for tangram in self.tangrams(split):
            where = f"{self._json}, tangram {tangram!r}"
            try:
                if Path(tangram).name != tangram:
                    raise BadInput(f"{where}: the name is not a plain file name")
                drawing = read_drawing(self._drawing_path(tangram))
                records = field(self._records[tangram], "annotations", list, where)
            except BadInput as error:
                faults.append(Fault(f"{self.name}/{split}/{tangram}", f"{error}{_lost_with(self._records[tangram])}"))
                continue
            for number, record in enumerate(records):
                image_id = f"{tangram}/{number}"
                try:
                    annotations.append(self._annotation(image_id, drawing, record, f"{where}, annotation {number}"))
                except BadInput as error:
                    faults.append(Fault(f"{self.name}/{split}/{image_id}", str(error)))
        return annotations, faults

    def _annotation(self, image_id: str, drawing: Drawing, record: object, where: str) -> Annotation:
        whole = clean_name(field(field(record, "whole", dict, where), "wholeAnnotation", str, where))
        if not whole:
            raise BadInput(f"{where}: wholeAnnotation is empty")
        parts = _parts(drawing, field(record, "part", dict, where), where)
        self._random(image_id, "order").shuffle(parts)
        parts.sort(key=lambda part: not part.name)  # stable: nameless pieces go last
        if len(parts) > len(COLOURS):
            raise BadInput(f"{where}: {len(parts)} parts; accepted: up to {len(COLOURS)}, one for each colour")
        colours = list(COLOURS.values())
        if self.colour_order == "random":
            self._random(image_id, "colours").shuffle(colours)
        colour_of = {piece.id: colour for part, colour in zip(parts, colours, strict=False) for piece in part.pieces}
        return Annotation(
            id=image_id,
            tangram=drawing.name,
            whole=with_article(whole).casefold(),
            parts=tuple(parts),
            caption=part_caption(whole, [part.name for part in parts if part.name]),
            image=Tangram(drawing, tuple(colour_of[piece.id] for piece in drawing.pieces), self.image_size),
        )

    def _random(self, image_id: str, purpose: str) -> random.Random:
        """A generator of its own for each image and purpose, so that no choice moves another."""
        return random.Random(f"{self.seed}/{image_id}/{purpose}")


def _example(benchmark: str, split: str, annotation: Annotation, game: Game[Annotation]) -> Example:
    example_id = f"{benchmark}/{split}/{annotation.id}"
    named = [part for part in annotation.parts if part.name]
    return Example(
        id=example_id,
        split=split,
        images=tuple(candidate.image for candidate in game.candidates),
        caption=annotation.caption.text,
        phrases=tuple(
            Phrase(
                id=f"{example_id}/{number}",
                type=head_noun(part.name),
                spans=(span,),
                regions=tuple(Region(piece.box, (piece.polygon,)) for piece in part.pieces),
                image_index=game.target_index,
            )
            for number, (part, span) in enumerate(zip(named, annotation.caption.spans, strict=True))
        ),
        task=ReferenceGame(game.target_index),
        groups={
            "image": annotation.tangram,  # one drawing, whoever annotated it and whatever its colours
            "caption": annotation.id,
            "annotation": annotation.id,
            "tangram": annotation.tangram,
        },
    )


def _lost_with(record: object) -> str:
    """How many annotations a fault of their tangram takes with it, in words."""
    annotations = record.get("annotations") if isinstance(record, dict) else None
    return f"; {len(annotations)} annotations need it" if isinstance(annotations, list) else ""


def _parts(drawing: Drawing, names: dict[str, object], where: str) -> list[Part]:
    """The drawing's pieces grouped by name, in the drawing's order; all nameless pieces form one part."""
    for piece_id in names:
        if piece_id not in {piece.id for piece in drawing.pieces}:
            raise BadInput(f"{where}: part names polygon {piece_id!r}, which {drawing.name}.svg does not have")
    groups: dict[str, list[Piece]] = defaultdict(list)
    for piece in drawing.pieces:
        name = names.get(piece.id, _NAMELESS)
        if not isinstance(name, str):
            raise BadInput(f"{where}: the name of part {piece.id!r} is {name!r}; accepted: text")
        groups[clean_name(name) if name != _NAMELESS else ""].append(piece)
    return [Part(name, tuple(pieces)) for name, pieces in groups.items()]


def _read_records(path: Path) -> dict[str, object]:
    """Tangram name -> record, from a published JSON file."""
    records = read_json(path, "a KiloGram folder")
    if not isinstance(records, dict) or not records:
        raise BadInput(f"annotations {path} hold no tangrams; accepted: an object with one entry for each")
    return records
