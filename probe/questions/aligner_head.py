"""The study's own probe: a linear layer on the maps inside ViLT-Aligner's head (Kojima et al., arXiv 2309.02691)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from extract.reader import SiteInfo
from grounding.errors import BadInput
from grounding.finetune.targets import Targets, box_maps
from grounding.metrics.areas import Area
from probe.checkpoints import model_of
from probe.estimators.maps import HeadMaps, MapProbe
from probe.features import read_rows
from probe.pairs import BOX
from probe.questions.base import Judgement, Part, Question
from probe.questions.heatmaps import SCORES, Heatmaps, judge_heatmaps
from probe.questions.truth import annotated_phrases, phrase_boxes
from probe.settings import SweepSettings
from probe.tokens import ranges, read_tokens, sites_with_tokens

if TYPE_CHECKING:
    from extract.reader import Run

_LAST = "norm"  # the site that the head reads


class AlignerHead(Question):
    """Where is the phrase, from the maps that the head's three convolutions make? One site, ``head``.

    The maps are not stored: the checkpoint's head makes them of the stored tokens and phrase rows of its input. On a
    head that was trained for the task alone, this asks whether it could ground phrases as it is.
    """

    name = "aligner-head"
    words = "where is the phrase, told from the maps inside the aligner head?"
    figure = "Mean IoU of the thresholded map with the phrase's boxes:"
    shows = "the head's maps hold where the phrase is."
    instead = "where captions' things usually are may be all that is known."
    probes = ("linear",)
    scores = SCORES
    own_measure = True

    def __init__(self, run: Run, settings: SweepSettings):
        super().__init__(run, settings)
        self.head: Any = model_of(run, self.name, "vilt-aligner").sdr_head
        if _LAST not in [site.name for site in sites_with_tokens(run, "image", self.name)]:
            raise BadInput(
                f"question {self.name!r} needs the tokens of site {_LAST!r}; to add them: probe extract --out "
                f"{run.path} --add-site {_LAST} --add-view tokens"
            )
        self.phrase = annotated_phrases(run)
        self.example = run.phrases["example"].to_numpy()[self.phrase]
        self.boxes = phrase_boxes(run, self.phrase, canvas=True)
        self.grid = run.examples[["grid_rows", "grid_columns"]].to_numpy(np.int64)[self.example]
        self.left_out = len(run.phrases) - len(self.phrase)
        self.target = np.empty(len(self.phrase), dtype=object)
        for places, (rows, columns) in self._alike():
            maps = _target_maps(run, self.phrase[places], (8 * rows, 8 * columns))
            for place, cells in zip(places, _nested(maps, rows, columns), strict=True):
                self.target[place] = cells

    def sites(self) -> list[SiteInfo]:
        """The head as a whole."""
        return [SiteInfo("head", "head", 0, ("image",), sum(self._channels()), ())]

    def widths(self, site: SiteInfo) -> tuple[int, ...]:
        """Channels of the three maps."""
        return self._channels()

    @torch.inference_mode()
    def features(self, site: SiteInfo) -> HeadMaps:
        """The three maps of every phrase."""
        last = self.run.site(_LAST)
        patches = torch.from_numpy(read_tokens(self.run, last, "image"))
        vectors = torch.from_numpy(read_rows(self.run, _LAST, "phrase"))
        cells = self.run.examples[["grid_rows", "grid_columns"]].to_numpy(np.int64).prod(1)
        first = np.cumsum(cells) - cells
        groups = []
        for places, (rows, columns) in self._alike():
            examples, example = np.unique(self.example[places], return_inverse=True)
            tokens = patches[ranges(first[examples], cells[examples])].view(len(examples), rows * columns, -1)
            maps = list(self.head.maps(tokens, vectors[self.phrase[places]], torch.from_numpy(example)))
            maps[2] = maps[2][..., None]
            if not all(bool(m.isfinite().all()) for m in maps):
                raise BadInput(f"site {_LAST!r}: its rows are not finite (NaN or infinity); extract it in float32")
            groups.append((places, tuple(maps)))
        return HeadMaps(groups, len(self.phrase))

    def probe(self, name: str, widths: tuple[int, ...], seed: int) -> tuple[MapProbe, tuple[float, ...]]:
        """linear: ``MapProbe``, with a hundredth of the strengths: it has few weights, and a whole map's divergence."""
        return MapProbe(), tuple(strength / 100 for strength in self.settings.linear_strengths)

    def judge(self, probe: MapProbe, validation: Part, test: Part) -> tuple[Judgement, Judgement]:
        """IoU at the threshold that is best on validation, recall (IoU of at least 0.5), pointing."""
        return judge_heatmaps(self.heatmaps(probe, validation), self.heatmaps(probe, test))

    def heatmaps(self, probe: MapProbe, part: Part) -> Heatmaps:
        """The probe's maps at the head's resolution, with the phrases' boxes."""
        chosen = np.flatnonzero(part.chosen)
        values, coverage, inside = ([np.empty(0)] * len(chosen) for _ in range(3))
        for places, found in probe.log_maps(part.features):
            rows, columns = self.grid[chosen[places[0]]]
            area = Area.of_boxes(self.boxes[chosen[places]])
            size = int(8 * rows), int(8 * columns)
            shares = (found - found.amax(1, keepdim=True)).double().exp()
            covered, held = (_nested(m, rows, columns) for m in (area.coverage(*size), area.holds_centres(*size)))
            for place, *cells in zip(places, shares.numpy(), covered.numpy(), held.numpy(), strict=True):
                values[place], coverage[place], inside[place] = cells
        return Heatmaps(
            counts=np.array([len(v) for v in values]),
            value=np.concatenate(values),
            coverage=np.concatenate(coverage),
            inside=np.concatenate(inside),
            phrase=self.phrase[chosen],
            example=self.example[chosen],
            image=self.image(part.chosen),
        )

    def size(self, site: SiteInfo) -> int:
        """Bytes of the three maps."""
        first, second, third = self._channels()
        return 4 * int(self.grid.prod(1).sum()) * (4 * first + 16 * second + 64 * third)

    def _channels(self) -> tuple[int, ...]:
        return self.head.width // 2, self.head.width // 4, 1

    def _alike(self) -> list[tuple[np.ndarray, tuple[int, int]]]:
        """Phrases (their places) with one grid, and that."""
        shapes = np.unique(self.grid, axis=0)
        return [(np.flatnonzero((self.grid == shape).all(1)), (int(shape[0]), int(shape[1]))) for shape in shapes]


def _target_maps(run: Run, phrases: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Uniform over each phrase's boxes, as in fine-tuning: ``[p, *size]``."""
    boxes, owner = [], []
    regions = run.regions[run.regions["phrase"].isin(phrases)]
    place = {phrase: number for number, phrase in enumerate(phrases.tolist())}
    images = run.examples["n_images"].to_numpy()
    for region in regions.itertuples():
        x1, y1, x2, y2 = (getattr(region, name) for name in BOX)
        count = images[region.example]
        boxes.append((x1, (region.image_index + y1) / count, x2, (region.image_index + y2) / count))
        owner.append(place[region.phrase])
    box_phrase = torch.tensor(owner)
    nothing = torch.zeros(len(phrases), 2)
    targets = Targets(nothing, torch.tensor(boxes, dtype=torch.float32), box_phrase, box_phrase, nothing[:, 0])
    return box_maps(targets, len(phrases), torch.tensor([size]).expand(len(phrases), 2), size)


def _nested(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Maps ``[p, 8 rows, 8 columns]`` cell by cell, as the head computes them: ``[p, rows * columns * 64]``."""
    split = maps.reshape(len(maps), rows, 2, 2, 2, columns, 2, 2, 2)
    return split.permute(0, 1, 5, 2, 6, 3, 7, 4, 8).flatten(1)
