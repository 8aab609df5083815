"""Alignment: does this phrase belong to this region?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probe.features import read_rows, sites_with
from probe.pairs import alignment_pairs
from probe.questions.pairs import PairQuestion
from probe.settings import SweepSettings

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo


class Alignment(PairQuestion):
    """Of an image's annotated regions and extra boxes, which belongs to the phrase? (``probe.pairs``)"""

    name = "alignment"
    words = "of an image's candidate regions, which one belongs to the phrase?"
    figure = "Its best-scored candidate belongs to the phrase for"
    shows = "phrase and region can be matched at this site."
    instead = "which region is meant may be told without matching it to the phrase."

    def __init__(self, run: Run, settings: SweepSettings):
        super().__init__(run, settings, alignment_pairs(run, settings.iou), run.regions)

    def sites(self) -> list[SiteInfo]:
        """Those with rows of phrases and of regions, their own or their partners'."""
        return sites_with(self.run, ("phrase", "region"))

    def candidate_rows(self, site: SiteInfo) -> np.ndarray:
        """RoI-aligned means of the regions."""
        return read_rows(self.run, site.name, "region")

    def candidate_width(self, site: SiteInfo) -> int:
        """Channels of region rows."""
        return self.run.read(site.name, "region", rows=np.array([0])).shape[1]
