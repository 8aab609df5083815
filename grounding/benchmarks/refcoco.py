"""RefCOCO, RefCOCO+ and RefCOCOg in MDETR's JSON: one referring expression and one box an entry.

There is no task beside the grounding: an example is a game of one candidate, which every model wins. Images are those
of COCO's train2014. ``dev`` is what the files call ``val``.

Source: Yu et al., "Modeling Context in Referring Expressions" (arXiv 1608.00272); Mao et al., "Generation and
Comprehension of Unambiguous Object Descriptions" (arXiv 1511.02283; the split by images, "umd").
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from grounding.benchmarks.captioned import Captioned
from grounding.benchmarks.coco import CocoBenchmark
from grounding.errors import BadInput
from grounding.examples import ReferenceGame


class RefCoco(CocoBenchmark):
    """``refcoco``. images: folder of COCO's train2014, below the root unless it is an absolute path."""

    name: ClassVar[str] = "refcoco"
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "testA", "testB")
    files: ClassVar[str] = "finetune_refcoco_{train,val,testA,testB}.json and train2014/"

    def __init__(self, root: Path | str | None = None, seed: int = 0, images: str = "train2014"):
        super().__init__(root, seed, images)

    def _annotations(self, split: str) -> Path:
        return self._folder / f"finetune_{self.name}_{'val' if split == 'dev' else split}.json"

    def _task(self, captioned: Captioned) -> ReferenceGame:
        regions = sum(len(phrase.regions) for phrase in captioned.phrases)
        if regions != 1:
            raise BadInput(f"{captioned.where}: {regions} boxes with tokens_positive; accepted: 1 an expression")
        return ReferenceGame(0)


class RefCocoPlus(RefCoco):
    """``refcoco+``: expressions without words for places."""

    name: ClassVar[str] = "refcoco+"
    files: ClassVar[str] = "finetune_refcoco+_{train,val,testA,testB}.json and train2014/"


class RefCocoG(RefCoco):
    """``refcocog``: longer expressions."""

    name: ClassVar[str] = "refcocog"
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    files: ClassVar[str] = "finetune_refcocog_{train,val,test}.json and train2014/"
