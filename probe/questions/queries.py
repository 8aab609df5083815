"""Queries: which detection query of a decoder does this phrase belong to?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

from grounding.errors import BadInput
from probe.checkpoints import model_of
from probe.features import sites_with
from probe.pairs import BOX, PairTable
from probe.questions.pairs import PairQuestion
from probe.questions.truth import annotated_phrases, phrase_boxes
from probe.settings import SweepSettings
from probe.tokens import ranges, read_tokens, sites_with_tokens, token_counts

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo


class Queries(PairQuestion):
    """Pairs of a phrase and each query of its example, at every decoder layer, with the answer of the last one.

    A query is the phrase's where the box that the model finally predicts from it has an IoU of at least ``iou`` with
    one of the phrase's boxes, on the canvas of all candidates. Phrases without such a query, or with no other, are left
    out.
    """

    name = "queries"
    words = "of the decoder's queries, which one's final box is the phrase's?"
    figure = "Its best-scored query's final box is the phrase's for"
    shows = "phrase and query can be matched at this site (of phrases that the model finds a box for)."
    instead = "which queries end on annotated things may be told without the phrase."

    def __init__(self, run: Run, settings: SweepSettings):
        last = sites_with_tokens(run, "query", self.name)[-1]
        boxes = predicted_boxes(run, last)
        pairs = _query_pairs(run, boxes, token_counts(run, last)["query"], settings.iou)
        super().__init__(run, settings, pairs, pd.DataFrame(boxes, columns=BOX))

    def sites(self) -> list[SiteInfo]:
        """Those with stored tokens of queries and rows of phrases, their partner's."""
        holding = sites_with_tokens(self.run, "query", self.name)
        return [site for site in sites_with(self.run, ("phrase",)) if site in holding]

    def candidate_rows(self, site: SiteInfo) -> np.ndarray:
        """States of all queries of all examples."""
        return read_tokens(self.run, site, "query")

    def candidate_width(self, site: SiteInfo) -> int:
        """Channels of the queries' states."""
        return self.run.read(site.name, "tokens", rows=np.array([0])).shape[1]


def predicted_boxes(run: Run, last: SiteInfo) -> np.ndarray:
    """The boxes of all queries of all examples, float32 ``[n, 4]`` xyxy on the stacked canvas.

    They are not stored: the model's box head makes them of the stored states of the last decoder layer.
    """
    model = model_of(run, Queries.name, "mdetr")
    if last.name != model.sites()[-1].name:
        raise BadInput(
            f"question 'queries' needs the tokens of site {model.sites()[-1].name!r}; to add them: probe extract --out "
            f"{run.path} --add-site {model.sites()[-1].name} --add-view tokens"
        )
    with torch.inference_mode():
        return model.boxes_of(torch.from_numpy(read_tokens(run, last, "query"))).numpy()  # type: ignore[operator]


def _query_pairs(run: Run, boxes: np.ndarray, counts: np.ndarray, iou: float) -> PairTable:
    """Phrases with the queries of their example, sorted by phrase; counts: queries of each example."""
    phrases = annotated_phrases(run)
    example = run.phrases["example"].to_numpy()[phrases]
    first = np.cumsum(counts) - counts
    query = ranges(first[example], counts[example])
    owner = np.repeat(np.arange(len(phrases)), counts[example])
    truth = phrase_boxes(run, phrases, canvas=True)
    label = np.zeros(len(query), dtype=bool)
    for place in range(len(phrases)):
        mine = slice(*np.searchsorted(owner, [place, place + 1]))
        own = torch.from_numpy(boxes[query[mine]]).double()
        label[mine] = (box_iou(own, truth[place]) >= iou).any(1).numpy()
    found = np.bincount(owner, label)
    usable = (found > 0) & (found < counts[example])
    if not usable.any():
        raise BadInput(
            f"question 'queries': none of {len(run.phrases)} phrases has both a query whose box has an IoU of {iou:g} "
            "with its own and another query; accepted: a lower iou, or a model that finds boxes"
        )
    kept = usable[owner]
    left_out = len(run.phrases) - int(usable.sum())
    return PairTable(phrases[owner][kept], query[kept], example[owner][kept], label[kept], left_out)
