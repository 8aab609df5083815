"""Flickr30k Entities: reference games over photographs, or the grounding alone.

Two forms of annotations beside the folder of images: ``entities`` (the published files) and ``mdetr`` (MDETR's JSON,
``final_flickr_separateGT_{train,val,test}.json``). ``dev`` is what the files call ``val``.

A game shows six images, of which the caption describes one. Its distractors are

* drawn by the seed from the images of the split that fit the caption best: 20 in train, 5 elsewhere (as many as in the
  study, which ranks images by a contrastive image-text model; see ``caption_similarity`` for what does it here), or
* read from a file (``games``): a JSON object from ``<image>/<number of the caption, from 0>`` to the names of the
  candidates in their order, the image itself among them. Captions that it does not name have no game.

``candidates=1`` leaves only the grounding, as in KiloGram.

Source: Plummer et al., "Flickr30k Entities" (arXiv 1505.04870), as used by Kojima et al. (arXiv 2309.02691).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from grounding.benchmarks import flickr30k_entities
from grounding.benchmarks.base import Benchmark, Fault, Skipped
from grounding.benchmarks.caption_similarity import ENCODERS, CaptionEncoder, nearest_images
from grounding.benchmarks.captioned import Captioned, phrases_of
from grounding.benchmarks.coco import read_coco
from grounding.benchmarks.files import content_hash, field, read_json
from grounding.benchmarks.games import Game, make_game
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, ReferenceGame
from grounding.values import check_counts

ANNOTATION_SETS = ("entities", "mdetr")
HARDEST = {"train": 20, "dev": 5, "test": 5}  # images that distractors are drawn from


class Flickr30k(Benchmark):
    """``flickr30k``: a game, or with ``candidates=1`` one image, for each caption.

    images: folder of the photographs, below the root unless it is an absolute path. annotations: ``entities`` or
    ``mdetr``. candidates: images in a game. encoder: of captions, a CaptionEncoder or its name in ENCODERS. games:
    file that gives the games instead, below the root unless it is an absolute path.
    """

    name: ClassVar[str] = "flickr30k"
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    needs_root: ClassVar[bool] = True
    files: ClassVar[str] = (
        "{train,val,test}.txt, Sentences/, Annotations/ (annotations=entities) or "
        "final_flickr_separateGT_{train,val,test}.json (annotations=mdetr), and flickr30k-images/"
    )

    def __init__(
        self,
        root: Path | str | None = None,
        seed: int = 0,
        images: str = "flickr30k-images",
        annotations: str = "entities",
        candidates: int = 6,
        encoder: str | CaptionEncoder = "tfidf",
        games: str = "",
    ):
        super().__init__(Path(root) if root is not None else None, seed)
        if annotations not in ANNOTATION_SETS:
            raise unknown_choice("annotations", annotations, ANNOTATION_SETS)
        check_counts(candidates=candidates)
        if isinstance(encoder, str) and encoder not in ENCODERS:
            raise unknown_choice("encoder", encoder, ENCODERS)
        self._folder = self.root or Path()
        self.images = images
        self.annotations = annotations
        self.candidates = candidates
        self.encoder = encoder
        self.games = games

    def identity(self) -> Mapping[str, object]:
        """Hash of the annotations of all splits and of the file of games, with the seed and the options."""
        encoder = self.encoder if isinstance(self.encoder, str) else getattr(self.encoder, "__qualname__", "its own")
        return {
            "name": self.name,
            "content": content_hash(self._annotation_files()),
            "seed": self.seed,
            "annotations": self.annotations,
            "candidates": self.candidates,
            "games": self.games and content_hash([self._folder / self.games]),
            "encoder": encoder,
        }

    def _annotation_files(self) -> Iterator[Path]:
        if self.annotations == "mdetr":
            yield from (self._json(split) for split in self.splits)
            return
        yield from (self._folder / f"{_published(split)}.txt" for split in self.splits)
        for folder in ("Sentences", "Annotations"):
            yield from sorted((self._folder / folder).glob("*"))

    def _json(self, split: str) -> Path:
        return self._folder / f"final_flickr_separateGT_{_published(split)}.json"

    def _read(self, split: str, limit: int | None) -> Iterator[Example | Fault]:
        captions: list[Captioned] = []
        for item in self._captions(split):
            try:
                if isinstance(item, Fault):
                    raise BadInput(item.reason)
                self._note_size(item.image, item.size, item.where)
                captions.append(item)
            except BadInput as error:
                yield Fault(f"{self.name}/{split}/{item.id}", str(error))
        images = {_image(caption): caption.image for caption in captions}
        without = self.excluded[split] = []
        for caption, game in zip(captions, self._games(split, captions), strict=True):
            if isinstance(game, Fault):
                yield game
            elif game is not None:
                yield self._example(split, caption, game, images)
            else:
                reason = f"no game in {self.games}" if self.games else f"no {self.candidates - 1} distractors that fit"
                without.append(Skipped(f"{self.name}/{split}/{caption.id}", reason))

    def _captions(self, split: str) -> Iterator[Captioned | Fault]:
        images = self._folder / self.images
        if self.annotations == "entities":
            yield from flickr30k_entities.read_split(self._folder, _published(split), images, self.files)
            return
        for item in read_coco(self._json(split), images, self.files):
            yield item if isinstance(item, Fault) else _numbered(item)

    def _games(self, split: str, captions: Sequence[Captioned]) -> Iterator[Game[str] | Fault | None]:
        """The game of each caption in turn, candidates by name; None for one that has none."""
        names = [_image(caption) for caption in captions]
        if self.candidates == 1:
            yield from (Game((name,), 0) for name in names)
        elif self.games:
            yield from self._games_from_file(split, captions)
        else:
            if captions and len(set(names)) < self.candidates:
                raise BadInput(f"{split} has {len(set(names))} images; accepted: {self.candidates} or more for games")
            encoder = ENCODERS[self.encoder] if isinstance(self.encoder, str) else self.encoder
            hardest = max(HARDEST[split], self.candidates - 1)
            texts = [caption.caption for caption in captions]
            nearest = nearest_images(texts, names, encoder, hardest) if texts else iter(())
            for caption, pool in zip(captions, nearest, strict=True):
                rng = random.Random(f"{self.seed}/{caption.id}/game")
                yield make_game(_image(caption), pool, self.candidates, rng, source=str, label=str)

    def _games_from_file(self, split: str, captions: Sequence[Captioned]) -> Iterator[Game[str] | Fault | None]:
        path = self._folder / self.games
        games = read_json(path, "a file of games")
        if not isinstance(games, dict):
            raise BadInput(f"games {path} are no object; accepted: caption id -> list of image names")
        if captions and not games.keys() & {caption.id for caption in captions}:
            raise BadInput(f"games {path} name no caption of {split}; accepted: ids as {captions[0].id!r}")
        known = {_image(caption) for caption in captions}
        for caption in captions:
            try:
                yield self._checked(games[caption.id], caption, known, path) if caption.id in games else None
            except BadInput as error:
                yield Fault(f"{self.name}/{split}/{caption.id}", str(error))

    def _checked(self, names: Any, caption: Captioned, known: set[str], path: Path) -> Game[str]:
        where = f"games {path}, caption {caption.id!r}"
        if not isinstance(names, list) or len(names) != self.candidates or len(set(map(str, names))) != len(names):
            raise BadInput(f"{where}: {names!r}; accepted: {self.candidates} names of images that differ")
        if unknown := [name for name in names if name not in known]:
            raise BadInput(f"{where}: image {unknown[0]!r} is not in the split")
        if _image(caption) not in names:
            raise BadInput(f"{where}: its own image is not among the candidates")
        return Game(tuple(names), names.index(_image(caption)))

    def _example(self, split: str, caption: Captioned, game: Game[str], images: Mapping[str, Path]) -> Example:
        example_id = f"{self.name}/{split}/{caption.id}"
        return Example(
            id=example_id,
            split=split,
            images=tuple(images[name] for name in game.candidates),
            caption=caption.caption,
            phrases=phrases_of(caption, example_id, game.target_index),
            task=ReferenceGame(game.target_index),
            groups={"image": _image(caption), "caption": caption.id},
        )


def _published(split: str) -> str:
    return "val" if split == "dev" else split


def _image(caption: Captioned) -> str:
    return caption.image.stem


def _numbered(caption: Captioned) -> Captioned:
    """A caption of MDETR's file under the id that it has in the published ones: image and number of the sentence."""
    number = field(caption.record, "sentence_id", (int, str), caption.where)
    return replace(caption, id=f"{caption.image.stem}/{number}")
